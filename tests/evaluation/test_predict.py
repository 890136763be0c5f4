"""`galmerhpc predict`: a real model on good, odd and broken files."""

import csv
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from galmerhpc import files
from galmerhpc.config import Config, dump
from galmerhpc.errors import InputError
from galmerhpc.evaluation import figures
from galmerhpc.evaluation.conformal import FILE, read_calibration
from galmerhpc.evaluation.predict import Estimate, Predictor, predict
from galmerhpc.parameters import NAMES
from tests.evaluation.pictures import bad_files, encode, grey, odd_files, write_nuisances
from tests.evaluation.runs import EXPECTED, MODEL, OTHER_MODEL, SIZE, draw_pair, training_and_unseen
from tests.support import galmerhpc


@pytest.fixture(scope="module")
def run(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with nothing but a model and its configuration."""
    folder = tmp_path_factory.mktemp("run")
    shutil.copy(model, folder / MODEL)
    config = Config(run_dir=folder, preprocess={"image_size": SIZE})
    (folder / "config.yaml").write_text(dump(config))
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of test images as PNG."""
    folder = tmp_path_factory.mktemp("pictures")
    for k, image in enumerate(draw_pair(training_and_unseen()[1])[:30]):
        Image.fromarray(image).save(folder / f"{k:02d}.png")
    return folder


def test_predictions_are_the_model_s_in_every_form(model: Path, run: Path, pictures: Path) -> None:
    expected = np.load(model.with_name(EXPECTED))[:30]
    done = galmerhpc("predict", str(run), str(pictures), "--format", "csv")
    assert done.returncode == 0, done.stderr
    rows = list(csv.DictReader(done.stdout.splitlines()))
    assert [row["file"] for row in rows] == [str(p) for p in sorted(pictures.iterdir())]
    found = np.array([[float(row[name]) for name in NAMES] for row in rows])
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-3)

    done = galmerhpc("predict", str(run / MODEL), f"{pictures}/0?.png", "--format", "json")
    values = json.loads(done.stdout)
    assert values["refused"] == []
    assert values["units"]["azimuth"] == "deg"
    found = np.array([[one[name] for name in NAMES] for one in values["predictions"]])
    np.testing.assert_allclose(found, expected[:10], rtol=1e-4, atol=1e-3)

    done = galmerhpc("predict", str(run), str(pictures / "03.png"))
    head, line = done.stdout.splitlines()
    assert head.split()[:3] == ["file", "spin", "inclination"]
    assert f"{expected[3, 1]:.1f}" in line
    assert f"{'R' if expected[3, 0] > 0.5 else 'P'} {expected[3, 0]:.2f}" in line


def test_intervals_stand_beside_predictions_where_the_run_was_calibrated(
    evaluated: Config, pictures: Path
) -> None:
    folder = evaluated.run_dir
    done = galmerhpc("predict", str(folder), str(pictures), "--format", "csv")
    assert done.returncode == 0, done.stderr
    assert "intervals of 68%, 90%: calibrated on clean images of" in done.stderr
    sky = files.read_json(folder / "evaluation/metrics.json")["sky"]
    held = sky["uncertainty"]["carried"]["coverage"]["inclination"]
    shares = " and ".join(f"{100 * share:.0f}%" for share in held)
    assert f"of sky-like images these intervals held inclination {shares}, " in done.stderr
    sha256 = files.sha256(folder / MODEL)
    calibrations = {
        name: read_calibration(folder / "evaluation" / FILE, sha256, name)
        for name in ("clean", "sky")
    }
    rows = list(csv.DictReader(done.stdout.splitlines()))
    predicted = np.array([[float(row[name]) for name in NAMES] for row in rows])
    bounds = calibrations["clean"].bounds(NAMES, predicted)
    assert set(bounds) == set(NAMES[1:])
    for name, expected in bounds.items():
        for k, level in enumerate(calibrations["clean"].levels):
            ends = [
                [float(row[f"{name}_{end}_{level:g}"]) for end in ("low", "high")] for row in rows
            ]
            np.testing.assert_allclose(ends, expected[:, k], rtol=1e-3, atol=1e-2)
    assert all(0 <= float(row["p_retrograde"]) <= 1 for row in rows)

    done = galmerhpc("predict", str(folder), str(pictures / "03.png"), "--condition", "sky")
    assert "Photographs are not clean" not in done.stderr
    (_, line), wide = done.stdout.splitlines(), calibrations["sky"].bounds(NAMES, predicted[3:4])
    low, high = wide["inclination"][0, -1]
    assert f"{predicted[3, 1]:.1f} [{low:.1f}, {high:.1f}]" in line


def test_damaged_figures_of_the_evaluation_are_named(evaluated: Config, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(evaluated.run_dir, folder)
    for content in ("{}", "[]", '{"sky": {"uncertainty": 1}}'):
        (folder / "evaluation/metrics.json").write_text(content)
        with pytest.raises(InputError, match=r"metrics\.json: damaged; run galmerhpc evaluate"):
            Predictor.open(folder)


def test_no_file_stops_the_others(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    good, bad = odd_files(), bad_files()
    for name, content in (good | bad).items():
        (folder / name).write_bytes(content)
    nuisances = {path.name for path in write_nuisances(folder)}
    beside = np.zeros((64, 640), np.uint8)
    beside[:40, :40] = grey()
    (folder / "beside.png").write_bytes(encode(Image.fromarray(beside), "PNG"))
    bad["beside.png"] = b""
    given = [str(folder / name) for name in (*good, *bad, *nuisances)]
    assert len(given) >= 120
    montage = tmp_path / "montage_v1.5.png"
    done = galmerhpc("predict", str(run), *given, "--format", "json", "--montage", str(montage))
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    values = json.loads(done.stdout)
    assert len(values["predictions"]) == len(good)
    refused = {one["file"].rpartition("/")[2] for one in values["refused"]}
    assert refused == {*bad, *nuisances}
    assert f"{len(refused)} of {len(given)} files cannot be used as images" in done.stderr
    assert all(f"{folder}/{name}: refused: " in done.stderr for name in refused)
    with Image.open(montage) as image:
        assert min(image.size) > 400
    assert montage.with_suffix(".pdf").is_file()


def test_a_montage_that_cannot_be_written_is_refused_before_any_work(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    cases = dict.fromkeys((Path(), tmp_path), "is a folder; give the name of a file")
    cases |= dict.fromkeys((file / "a.png", file / "b/a.png"), "file is not a folder")
    for montage, says in cases.items():
        with pytest.raises(InputError, match=says):
            predict(tmp_path / "no model", [], montage=montage)


def test_table_and_montage_give_the_same_spin() -> None:
    doubtful = Estimate({"spin": 0.52}, {}, retrograde=0.45)
    assert figures.montage_text(["spin"], [doubtful.shown("spin")]) == "P"
    assert Estimate({"spin": 0.52}, {}, None).shown("spin") == 0.52


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda run: (run / "config.yaml").unlink(), "config.yaml: no such file; a model needs"),
        (lambda run: (run / MODEL).unlink(), "model.keras: no such file; run galmerhpc train"),
        (lambda run: (run / MODEL).write_bytes(b"PK"), "model.keras: cannot be loaded"),
        (
            lambda run: shutil.copy(run / OTHER_MODEL, run / MODEL),
            "it belongs to another run",
        ),
    ],
)
def test_a_model_that_cannot_be_used_is_refused(
    model: Path, run: Path, tmp_path: Path, change: Callable[[Path], object], says: str
) -> None:
    broken = shutil.copytree(run, tmp_path / "run")
    shutil.copy(model.with_name(OTHER_MODEL), broken)
    change(broken)
    with pytest.raises(InputError, match=re.escape(says)):
        Predictor.open(broken)
