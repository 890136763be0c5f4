"""Properties of the evaluated views, and labels that changed images keep."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from galmerhpc.config import Config, OnlineAugment
from galmerhpc.dataset.shards import Dataset
from galmerhpc.evaluation.conditions import describe, draws, surviving
from galmerhpc.evaluation.facts import drawn_otherwise
from galmerhpc.evaluation.sample import ViewColumns, nearest_training_view, read_views
from galmerhpc.parameters import NAMES
from tests.evaluation.runs import write_run, write_shards
from tests.support import galmerhpc


def views(
    theta: np.ndarray, phi: np.ndarray, configuration: str = "P", simulation: int = 0
) -> ViewColumns:
    count, known = len(theta), np.full(len(theta), np.nan)
    return ViewColumns(
        np.array([f"x&phi={p:g}&theta={t:g}" for t, p in zip(theta, phi, strict=True)], object),
        np.zeros(count, int), np.full(count, simulation), np.zeros(count, int), np.zeros(count),
        theta, phi, known, known, np.full(count, configuration, object),
    )  # fmt: skip


def joined(*parts: ViewColumns) -> ViewColumns:
    return ViewColumns(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


@settings(max_examples=50)
@given(st.integers(0, 2**31), st.integers(1, 30))
def test_the_nearest_training_view_is_the_nearest_on_the_sphere(seed: int, count: int) -> None:
    random = np.random.default_rng(seed)
    theta, phi = random.uniform(0, 180, (2, count)), random.uniform(-180, 180, (2, count))
    found = nearest_training_view(views(theta[0], phi[0]), views(theta[1], phi[1], simulation=5))
    (t, u), (p, q) = np.radians(theta), np.radians(phi)
    cosine = np.cos(t)[:, None] * np.cos(u) + np.sin(t)[:, None] * np.sin(u) * np.cos(
        p[:, None] - q
    )
    expected = np.degrees(np.arccos(np.clip(cosine, -1, 1))).min(axis=1)
    assert found == pytest.approx(expected, abs=1e-4)


def test_views_of_another_configuration_are_not_near() -> None:
    here = joined(
        views(np.array([10.0]), np.array([0.0]), "P"), views(np.array([10.0]), np.array([0.0]), "R")
    )
    found = nearest_training_view(here, views(np.array([12.0]), np.array([0.0]), "P"))
    assert found[0] == pytest.approx(2)
    assert np.isnan(found[1])


def test_a_group_is_a_realisation_of_a_configuration() -> None:
    one = np.array([10.0, 20.0])
    every = joined(*(views(one, one, c, s) for c in "PR" for s in (0, 1)))
    assert np.bincount(every.groups()).tolist() == [2, 2, 2, 2]
    assert (every.groups()[0::2] == every.groups()[1::2]).all()


def test_each_view_has_a_draw_of_its_own_wherever_it_stands() -> None:
    theta, phi = (a.ravel() for a in np.meshgrid(np.arange(0.0, 91, 5), np.arange(0.0, 181, 5)))
    every = views(theta, phi)
    numbers = draws(every)
    assert len(np.unique(numbers)) == len(numbers)
    some = ViewColumns(*(column[[3, 1]] for column in every))
    assert draws(some).tolist() == numbers[[3, 1]].tolist()


def test_a_mirrored_picture_keeps_what_belongs_to_the_encounter() -> None:
    names = (*NAMES, "mass_ratio")
    rolled = OnlineAugment(rotation_deg=180, zoom=0.1, noise=5)
    assert surviving(names, None) == surviving(names, rolled) == list(names)
    mirrored = OnlineAugment(mirror=True)
    assert surviving(names, mirrored) == ["spin", "inclination", "mass_ratio"]


def test_changes_are_described_and_none_forgotten() -> None:
    assert describe(OnlineAugment()) == "no change"
    assert describe(OnlineAugment(rotation_deg=180, zoom=0.1)) == "roll up to ±180°, scale ±10%"
    every = dict.fromkeys(OnlineAugment.model_fields, 0.5) | {
        "mirror": True,
        "neighbours": 2,
        "stars": 3,
    }
    assert describe(OnlineAugment(**every)).count(",") == len(every) - 1


def test_encounters_can_be_compared_with_those_of_a_table_of_images(evaluated: Config) -> None:
    dataset = Dataset.open(evaluated.run_dir / "shards")
    whole, bare = (read_views(evaluated, dataset, np.arange(9), known) for known in (True, False))
    assert set(whole.configuration) == {f"gSa-gSb, orbit 1, {c}" for c in bare.configuration}
    assert bare.configuration[0] == "prograde, i = 0"


def test_images_that_are_drawn_otherwise_are_known_by_their_keys(evaluated: Config) -> None:
    render = evaluated.catalogue.render.model_copy(update={"zoom": 4.0})
    catalogue = evaluated.catalogue.model_copy(update={"render": render})
    other = evaluated.model_copy(update={"catalogue": catalogue})
    assert drawn_otherwise(evaluated, evaluated) == []
    assert drawn_otherwise(evaluated, other) == ["catalogue.render.zoom 4.0 (training: 6.0)"]


def test_unknown_times_are_in_no_table(model: Path, tmp_path: Path) -> None:
    config = write_run(tmp_path, model, evaluation={"sky": None})
    shutil.rmtree(config.run_dir / "shards")
    write_shards(config, time_myr=np.nan)
    for stage in ("evaluate", "report"):
        done = galmerhpc(stage, str(config.run_dir))
        assert done.returncode == 0, done.stderr
    folder = config.run_dir / "evaluation"
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["sample"]["times_myr"] == []
    assert "time_myr" not in metrics["by"]
    assert {"theta_deg", "inclination_deg"} <= metrics["by"].keys()
    rows = csv.DictReader((folder / "predictions.csv").read_text().splitlines())
    assert {row["time_myr"] for row in rows} == {""}
    assert "since pericentre" not in (folder / "report.html").read_text()
