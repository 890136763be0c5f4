"""`galmerhpc real-pairs`: a real model, pictures drawn or fetched from stand-ins, its scores."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn import metrics as sklearn_metrics

from galmerhpc.config import Config
from galmerhpc.errors import InputError
from galmerhpc.evaluation.pair_image import prepare
from galmerhpc.evaluation.pairs import folded, read_pairs
from galmerhpc.evaluation.photographs import read
from galmerhpc.evaluation.real_pairs import (
    PAPER_PAIRS,
    best_constant,
    errors_of,
    paper_pairs,
    real_pairs,
)
from tests.evaluation.archive_servers import Galaxy, Sky, serve
from tests.evaluation.test_predict import run  # noqa: F401 - a fixture
from tests.support import galmerhpc

HEAD = "name,x1_px,y1_px,x2_px,y2_px,pa1_deg,pa2_deg,i1_deg,i2_deg,mag1,mag2\n"
ROWS = [
    "even,80,100,120,100,10,70,60,50,15,15.5",
    "uneven,80,100,120,100,0,90,30,30,15,18",
    "no angle,80,100,120,100,,90,30,30,15,15",
    "no picture,80,100,120,100,0,90,30,30,15,15",
    "dark,5,5,190,190,0,90,30,30,15,15",
]


def draw(path: Path) -> None:
    y, x = np.mgrid[:200, :200]
    light = sum(np.exp(-((x - c) ** 2 + (y - 100) ** 2) / (2 * 12**2)) for c in (80, 120))
    Image.fromarray((180 * np.clip(light, 0, 1)).astype(np.uint8)).save(path)


def test_pairs_are_scored_against_the_first_solution_and_the_rest_is_named(
    run: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    for row in ROWS:
        if not row.startswith("no picture"):
            draw(tmp_path / f"{row.partition(',')[0]}.jpg")
    (tmp_path / "pairs.csv").write_text(HEAD + "\n".join(ROWS) + "\n")
    done = galmerhpc(
        "real-pairs", str(run), "--pairs", str(tmp_path / "pairs.csv"), "--images", str(tmp_path),
        "--explain", str(tmp_path / "steps"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "2 of 5 pairs are left out: no picture, dark" in done.stdout
    values = json.loads((run / "real_pairs/pairs.json").read_text())
    assert {k: v.split()[0] for k, v in values["left_out"].items()} == {
        "no picture": "no", "dark": "nothing",
    }  # fmt: skip
    even, uneven, no_angle = values["pairs"]
    assert no_angle["inclination_deg"] is no_angle["other_solution_deg"] is None
    # The same picture and places, so the same prediction; it is in no score below.
    assert no_angle["predicted_deg"] == even["predicted_deg"]
    cosine = np.sin(np.radians(60)) * np.sin(np.radians(50)) * 0.5
    flat = np.cos(np.radians(60)) * np.cos(np.radians(50))
    expected = [np.degrees(np.arccos(abs(flat + sign * cosine))) for sign in (1, -1)]
    assert [even["inclination_deg"], even["other_solution_deg"]] == pytest.approx(expected)
    predicted = np.array([even["predicted_deg"], uneven["predicted_deg"]])
    true = np.array([even["inclination_deg"], uneven["inclination_deg"]])
    network, constant, within = (
        next(row for row in values["table"] if row["predictor"] == name)
        for name in ("network", "median of these pairs", "network, PA within 90°")
    )
    predicted = folded(np.abs(predicted) % 180)
    assert network["MAE (deg)"] == pytest.approx(np.abs(predicted - true).mean())
    smaller = np.array([min(p["inclination_deg"], p["other_solution_deg"]) for p in (even, uneven)])
    assert within["MAE (deg)"] == pytest.approx(np.abs(predicted - smaller).mean())
    assert network["pairs"] == constant["pairs"] == 2
    assert constant["MAE (deg)"] == pytest.approx(np.ptp(true) / 2)
    lines = done.stdout.splitlines()
    assert "far from 1:1 (15.8 : 1 in light)" in next(x for x in lines if x.startswith("uneven"))
    assert "1:1" not in next(x for x in lines if x.startswith("even"))
    (line,) = [x for x in lines if x.startswith("no angle ")]
    assert line.split() == ["no", "angle", f"{no_angle['predicted_deg']:.2f}", *line.split()[3:]]
    assert any(x.startswith("paper (text)") and "5.44" in x for x in lines)
    assert any(x.startswith("paper (authors' table)") and "6.59" in x for x in lines)
    steps = sorted(p.name for p in (tmp_path / "steps").iterdir())
    names = ("1_original", "2_dark_sky", "3_field", "4_alone", "5_bright", "6_network")
    assert steps == [
        f"{k}_{step}.png" for k in ("001_even", "002_uneven", "003_no_angle") for step in names
    ]


def test_pairs_of_which_no_angle_is_known_are_predicted_without_scores(
    run: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    draw(tmp_path / "a.png")
    (tmp_path / "own.csv").write_text("image,x1_px,y1_px,x2_px,y2_px\na.png,80,100,120,100\n")
    arguments = ("--pairs", str(tmp_path / "own.csv"), "--images", str(tmp_path))
    done = galmerhpc("real-pairs", str(run), *arguments)
    assert done.returncode == 0, done.stderr
    assert "no pair has the position angles and inclinations of Eq. 3" in done.stdout
    assert "MAE" not in done.stdout
    values = json.loads((run / "real_pairs/own.json").read_text())
    assert values["table"] == []
    assert np.isfinite(values["pairs"][0]["predicted_deg"])


def test_the_paper_s_pairs_are_fetched_and_predicted(
    run: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")  # as where a locale is not set up
    pairs, _ = paper_pairs()
    sky = Sky([Galaxy(*disc.sky) for pair in pairs for disc in pair.discs])
    with serve(sky) as address:
        done = galmerhpc(
            "real-pairs", str(run), "--pairs", "paper", "--images", str(tmp_path / "new"),
            "--fetch", "--skyserver", address, "--hyperleda", f"{address}/fG.cgi",
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "new").glob("*.jpg"))) == 15
    line = next(x for x in done.stdout.splitlines() if x.startswith("network"))
    assert line.split()[1] == "15"
    assert "network, PA within 90\\xb0" in done.stdout
    assert "ignored columns" not in done.stderr


def test_steps_that_have_no_folder_are_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "steps").touch()
    for explain in (tmp_path / "steps", tmp_path / "steps/below"):
        with pytest.raises(InputError, match=r"--explain .*steps.*: not a folder"):
            real_pairs(tmp_path / "no model", PAPER_PAIRS, tmp_path, None, explain)


def test_errors_are_sklearn_s_and_the_constant_is_the_best_one() -> None:
    true, predicted = np.random.default_rng(3).uniform(0, 90, (2, 40))
    errors = errors_of(true, predicted)
    assert errors["mae"] == pytest.approx(sklearn_metrics.mean_absolute_error(true, predicted))
    assert errors["r2"] == pytest.approx(sklearn_metrics.r2_score(true, predicted))
    least = min(np.abs(true - c).mean() for c in np.linspace(0, 90, 1801))
    assert best_constant(true)["mae"] == pytest.approx(least, abs=0.01)
    assert errors_of(true, true + 5)["rank_correlation"] == pytest.approx(1)


def test_the_real_pairs_are_read_and_cut(pytestconfig: pytest.Config) -> None:
    folder = pytestconfig.getoption("--real-pairs")
    if folder is None:
        pytest.skip("no folder of real pairs: give --real-pairs DIR")
    table = Path(folder) / "pairs.csv"
    listed = [
        float(r["relative_inclination_deg"]) for r in csv.DictReader(table.read_text().splitlines())
    ]
    pairs = read_pairs(table)
    ours = np.array([pair.solutions_deg[0] for pair in pairs])
    # Angles are rounded there.
    assert np.abs(ours - folded(listed)).max() < 0.05
    config = Config(run_dir="run")
    for pair in pairs:
        picture = read(Path(folder) / "images" / pair.image)
        if pair.image == "hst_Arp_244.jpg":  # its places in the table are off the galaxies
            with pytest.raises(ValueError, match="nothing is detected"):
                prepare(picture, pair, config, None)
        else:
            image = prepare(picture, pair, config, bright_level=150.0).image
            assert np.percentile(image, 99) == pytest.approx(150, rel=0.1), pair.image
