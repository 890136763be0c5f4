"""The points of the studies, and their table, power law and figure."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from galmerhpc import files
from galmerhpc.config import OnlineAugment, load
from galmerhpc.errors import InputError
from galmerhpc.parameters import NAMES
from galmerhpc.studies import figure, power_law, table
from galmerhpc.studies.index import STUDIES
from galmerhpc.studies.study import Point
from galmerhpc.studies.sweep import point_configs
from tests.support import ROOT

NEVER_SEEN = ROOT / "configs/never_seen.yaml"


def configs(name: str, *overrides: str, path: Path = NEVER_SEEN) -> dict[str, Any]:
    """Return the configurations of a study's points by name."""
    return {p.name: own for p, own in point_configs(STUDIES[name], load(path, overrides))}


# --- points ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(set(STUDIES) - {"time"}))
def test_points_differ_and_have_folders_of_their_own(name: str) -> None:
    found = configs(name)
    assert len(found) > 1
    assert len({own.run_dir for own in found.values()}) == len(found)
    made = {repr(own.model_dump(exclude={"run_dir"})) for own in found.values()}
    assert len(made) == len(found)


def test_the_whole_data_set_is_the_run_s_own_and_near_values_have_folders_of_their_own() -> None:
    config = load(NEVER_SEEN, ["studies.batch_sizes=[1000000, 1000001]"])
    names = [point.name for point in STUDIES["batch-size"].points(config)]
    assert names == ["1000000", "1000001"]
    *_, whole = sorted(STUDIES["data-size"].points(config), key=lambda point: point.value)
    assert whole.value == 1
    assert whole.changes["split.training_fraction"] is None


def test_what_a_point_does_not_vary_stays() -> None:
    base = load(NEVER_SEEN)
    for own in configs("batch-size").values():
        changes = {"training": base.training, "run_dir": base.run_dir}
        assert own.training.batch_size in base.studies.batch_sizes
        assert own.model_copy(update=changes) == base
        assert own.inputs("preprocess") == base.inputs("preprocess")


def test_fewer_realisations_see_as_many_images_and_the_same_test() -> None:
    found = configs("realisations", "training.epochs=4")
    assert {name: own.split.training_simulations for name, own in found.items()} == {
        "1": (0,), "4": (0, 1, 2, 3), "12": tuple(range(12)),
    }  # fmt: skip
    assert {name: own.training.epochs for name, own in found.items()} == {"1": 48, "4": 12, "12": 4}
    frozen = {name: own.training.freeze_batchnorm_epochs for name, own in found.items()}
    assert frozen == {"1": 24, "4": 6, "12": 2}
    for own in found.values():
        assert own.split.validation_simulations == (12, 13)
        assert own.split.test_simulations == (14, 15, 16, 17)
        assert own.inputs("scrape") == load(NEVER_SEEN).inputs("scrape")


def test_each_operation_is_on_alone_once() -> None:
    others = "rotation_deg: 0, intensity: 0, psf_fwhm_px: 0"
    found = configs("augmentation", f"studies.augment={{noise: 5, blur_px: 2, {others}}}")
    off = OnlineAugment()
    expected = {
        "none": off,
        "noise": off.model_copy(update={"noise": 5.0}),
        "blur": off.model_copy(update={"blur_px": 2.0}),
        "all": off.model_copy(update={"noise": 5.0, "blur_px": 2.0}),
    }
    assert {name: own.training.augment for name, own in found.items()} == expected
    found = configs("augmentation", f"studies.augment={{blur_px: 0, {others}}}")
    assert list(found) == ["none", "noise"]
    found = configs("augmentation", "studies.augment.noise=8")
    assert list(found) == ["none", "rotation", "intensity", "psf_fwhm", "blur", "noise", "all"]


def test_the_same_views_are_split_in_every_way() -> None:
    found = configs("split")
    assert [own.split.kind for own in found.values()] == list(found)
    assert found["simulation"].split == load(NEVER_SEEN).split
    assert found["inclination"].split.test_inclination_deg == 45
    found = configs("split", "studies.inclinations_deg=[30, 75]")
    assert found["inclination"].split.test_inclination_deg == 75


def test_ways_to_split_that_the_catalogue_does_not_allow_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("catalogue: {runs: [{spin: prograde, inclination_deg: 45, first_id: 7}]}")
    assert list(configs("split", path=path)) == ["random", "blocked"]


def test_all_ways_to_split_have_as_many_views_of_the_same_tiles() -> None:
    keys = {"training_fraction": 0.5, "tile_deg": 10, "seed": 3}
    blocked = f"split={{kind: blocked, {', '.join(f'{k}: {v}' for k, v in keys.items())}}}"
    for study in ("split", "inclination"):
        for own in configs(study, blocked).values():
            assert own.split.model_dump(include={*keys}) == keys


def test_each_time_has_runs_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(
        "catalogue: {runs: [{spin: prograde, inclination_deg: 0, first_id: 7, count: 3, "
        "first_time_myr: 50, step_myr: 50}]}"
    )
    found = configs("time", path=path)
    assert list(found) == ["50", "100", "150"]
    for k, own in enumerate(found.values()):
        (run,) = own.catalogue.runs
        assert [s.id for s in run.all_snapshots()] == [7 + k]


def test_times_that_differ_in_the_last_digits_are_one_point(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(
        "catalogue: {runs: [{spin: prograde, inclination_deg: 0, first_id: 7, count: 4, "
        "step_myr: 33.3}, {spin: retrograde, inclination_deg: 0, snapshots: "
        "[{id: 20, time_myr: 33.3}, {id: 21, time_myr: 99.9}]}]}"
    )
    runs = {name: own.catalogue.runs for name, own in configs("time", path=path).items()}
    ids = {name: [s.id for run in each for s in run.all_snapshots()] for name, each in runs.items()}
    assert ids == {"0": [7], "33.3": [8, 20], "66.6": [9], "99.9": [10, 21]}


def test_libraries_of_fewer_particles_are_files_of_their_own() -> None:
    found = configs("particles", "studies.particle_fractions=[0.5, 1]")
    half, whole = found["0.5"], found["1"]
    assert half.simulate.particles.stars * 2 == whole.simulate.particles.stars
    assert whole.library == load(NEVER_SEEN).library
    assert half.library != whole.library


@pytest.mark.parametrize(
    ("study", "overrides", "message"),
    [
        ("time", [], "needs a catalogue with snapshots at two or more times"),
        ("realisations", ["studies.realisations=[13]"], "13 exceeds the 12 available for training"),
        ("realisations", ["split={kind: random}"], "needs split.kind: simulation"),
        (
            "augmentation",
            [
                f"studies.augment.{key}=0"
                for key in (
                    "rotation_deg",
                    "intensity",
                    "psf_fwhm_px",
                    "blur_px",
                    "noise",
                )
            ],
            "set at least one operation",
        ),
        ("class-width", ["parameters=[inclination]"], "needs azimuth or viewing_angle"),
        ("resolution", ["studies.image_sizes=[64, 1024]"], "1024 exceeds the fetched images' "),
        ("class-width", ["studies.class_widths_deg=[7]"], "study class-width, point 7: "),
        ("dropout", ["studies.dropout=[0.1, 0.1]"], "must be non-empty, without duplicates"),
        ("particles", ["library=shipped"], "needs its own library"),
        ("dropout", ["studies.dropout=[]"], "must be non-empty, without duplicates"),
    ],
)
def test_what_a_study_cannot_do_is_named(study: str, overrides: list[str], message: str) -> None:
    with pytest.raises(InputError) as failure:
        configs(study, *overrides)
    assert message in str(failure.value)


# --- the law --------------------------------------------------------------------------------------


@given(
    st.floats(0.01, 100), st.floats(-2, 2),
    st.lists(st.integers(1, 1000), min_size=3, max_size=8, unique=True),
)  # fmt: skip
def test_an_exact_law_is_found(amplitude: float, exponent: float, x: list[int]) -> None:
    law = power_law.fit(x, [amplitude * value**exponent for value in x])
    assert law
    assert law.exponent == pytest.approx(exponent, abs=1e-6)
    assert law.at(10) == pytest.approx(amplitude * 10**exponent, rel=1e-6)
    assert law.exponent_error == pytest.approx(0, abs=1e-6)


def test_the_exponents_error_is_that_of_the_textbook() -> None:
    rng = np.random.default_rng(0)
    x = [1.0, 2, 4, 8, 16]
    exponents, errors = [], []
    for _ in range(2000):
        law = power_law.fit(x, 3 * np.array(x) ** -0.5 * np.exp(0.1 * rng.normal(size=5)))
        assert law
        exponents.append(law.exponent)
        errors.append(law.exponent_error**2)
    assert np.mean(exponents) == pytest.approx(-0.5, abs=0.01)
    assert np.sqrt(np.mean(errors)) == pytest.approx(np.std(exponents), rel=0.05)


@pytest.mark.parametrize(
    ("x", "error"), [([1, 2], [2, 1]), ([1, 2, 3], [1, np.nan, 2]), ([4, 4, 4], [1, 2, 3])]
)
def test_too_few_points_have_no_law(x: list[float], error: list[float]) -> None:
    assert power_law.fit(x, error) is None


# --- table and figure -----------------------------------------------------------------------------


def metrics(mae: float) -> dict[str, Any]:
    """Return the part of an evaluation that a table reads."""
    each = {"mae": mae, "mse": mae**2, "r2": None}
    scores = {"parameters": {name: dict(each) for name in NAMES}, "average": dict(each)}
    scores["parameters"]["spin"]["accuracy"] = 0.75
    return {
        "run": {
            "split": "simulation", "evaluated": "test", "parameters": list(NAMES),
            "samples": {"train": 1000, "test": 90},
        },
        "training": {"epochs": 2, "seconds": 61.5, "training_mae": 1.5, "training_mse": 2.5},
        "scores": dict.fromkeys(table.PREDICTORS, scores),
        "by": {"simulation": [_entry(30, -2.0), _entry(60, 1.0)]},
        "sky": None,
    }  # fmt: skip


def _entry(images: int, bias: float) -> dict[str, Any]:
    each = {name: {"mae": 3.0, "bias": bias} for name in NAMES}
    return {"from": 0, "to": 0, "images": images, "network": each, "lookup": each}


def rows_of(folder: Path, values: list[float | str]) -> list[table.Row]:
    rows = []
    for k, value in enumerate(values):
        run_dir = folder / str(value)
        files.write_json(run_dir / "evaluation/metrics.json", metrics(8 / (k + 1)))
        rows.append(table.row_of(Point(str(value), value, {}), run_dir))
    return rows


def test_a_table_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    rows = rows_of(tmp_path, [1.5, 40.0])
    rows[1]["lookup_mae_azimuth"] = 0.25
    del rows[0]["lookup_mse"]  # a column that another point has
    table.write(tmp_path / "results.csv", rows)
    first, second = table.read(tmp_path / "results.csv")
    assert first == {**rows[0], "lookup_mse": None}
    assert second == rows[1]
    assert second["network_mae"] == 4
    assert second["network_r2"] is None
    assert second["network_accuracy_spin"] == 0.75
    assert second["network_bias_inclination"] == 0
    text = table.as_text("batch", rows)
    assert text.splitlines()[2].split() == ["40.0", "1,000", "4", "4", "-"]


@pytest.mark.parametrize(
    "content", [b"", b"\xff\xfe", b"a,b\n1,2\n", b"point,value\n1,2,3\n", b"point,value\n1\n"]
)
def test_a_damaged_table_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "results.csv").write_bytes(content)
    with pytest.raises(InputError, match=r"results\.csv: (damaged|cannot be read)"):
        table.read(tmp_path / "results.csv")


@pytest.mark.parametrize("content", [{}, [], {"run": {}, "training": None}])
def test_a_damaged_evaluation_is_named(tmp_path: Path, content: object) -> None:
    files.write_json(tmp_path / "evaluation/metrics.json", content)
    with pytest.raises(InputError, match=r"metrics\.json: damaged"):
        table.row_of(Point("1", 1.0, {}), tmp_path)


@pytest.mark.parametrize("name", ["dropout", "data-size", "split"])
@pytest.mark.parametrize("count", [1, 4])
def test_a_figure_is_drawn_of_what_is_there(tmp_path: Path, name: str, count: int) -> None:
    values = [f"kind {k}" if name == "split" else 2.0**k for k in range(count)]
    rows = rows_of(tmp_path, values)
    for k, row in enumerate(rows):
        row["training_images"] = 100 * 2**k
    figure.draw(STUDIES[name], rows, NAMES, tmp_path / "figure", "a note")
    assert (tmp_path / "figure.png").stat().st_size > 10_000
    assert (tmp_path / "figure.pdf").read_bytes().startswith(b"%PDF")
