"""The lines of the results read the output of evaluations."""

import shutil
from pathlib import Path

import pytest

from galmerhpc import files
from galmerhpc.config import Config
from galmerhpc.parameters import NAMES
from results.lines import LINES, error_of_centres, law_of, resumed
from results.make import json_path, make, write_json, write_page

READ = [line for line in LINES if line.number in (1, 2, 4, 7, 8)]
"""Lines that need one or two evaluations."""

PAIRS = ("real_clean", "real_sky_short")
"""The runs of line 6."""


@pytest.fixture(scope="module")
def runs(evaluated: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of runs: one evaluation under all names that these lines read."""
    folder = tmp_path_factory.mktemp("runs")
    for run in ("random_split", "never_seen", "never_seen_sky", *PAIRS):
        (folder / run).mkdir()
        for name in ("", "-on-out_of_family-all", "-on-never_seen_sky-test"):
            (folder / run / f"evaluation{name}").symlink_to(evaluated.run_dir / "evaluation")
        shutil.copy(evaluated.run_dir / "metrics.csv", folder / run)
    metrics = files.read_json(evaluated.run_dir / "evaluation/metrics.json")
    metrics["uncertainty"]["carried"] = metrics["sky"]["uncertainty"]["carried"]
    files.write_json(folder / "never_seen/evaluation-on-inclinations-all/metrics.json", metrics)
    return folder


def test_figures_are_those_of_the_evaluation(runs: Path, tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    (tmp_path / "configs").symlink_to(Path(__file__).parents[2] / "configs")
    for line in READ:
        write_json(line, line.read(runs), tmp_path)
    metrics = files.read_json(runs / "never_seen/evaluation/metrics.json")
    first, second, fourth, seventh, _ = (files.read_json(json_path(n, tmp_path)) for n in READ)

    (table,) = first["tables"].values()
    assert [row[""] for row in table] == ["network", "look-up", "mean predictor", "the paper"]
    network = metrics["scores"]["network"]
    assert table[0]["MAE azimuth"] == network["parameters"]["azimuth"]["mae"]
    assert table[0]["average R2"] == network["average"]["r2"]
    assert first["bars"][0]["met"] == (network["average"]["mae"] <= 0.6)
    assert not any("was then resumed" in remark for remark in first["remarks"])

    sky = metrics["sky"]["scores"]
    better = [
        name for name, values in sky["network"]["parameters"].items()
        if values["mae"] < sky["lookup"]["parameters"][name]["mae"]
    ]  # fmt: skip
    assert second["bars"][-1]["value"] == len(better)
    assert second["bars"][-1]["limit"] == len(metrics["run"]["parameters"])
    centred = second["tables"]["the same with roll, PSF and noise only"]
    assert centred[0]["MAE azimuth"] == sky["network"]["parameters"]["azimuth"]["mae"]
    realisations = second["tables"]["clean images, MAE by realisation"]
    assert [row["realisation"] for row in realisations] == metrics["sample"]["simulations"]

    table, elsewhere = fourth["tables"].values()
    assert [row["i (deg)"] for row in table] == [0, 45, 75, 90]
    mean = metrics["run"]["training_mean"]["inclination"]
    assert f"{mean:.3g} degrees, has MAEs of {mean:.3g}, {mean - 45:.3g}," in fourth["remarks"][1]
    mean_bias = sum(row["network bias"] for row in table) / len(table)  # as many images of each
    (entry,) = metrics["by"]["simulation"]
    assert mean_bias == pytest.approx(entry["network"]["inclination"]["bias"])

    held = metrics["uncertainty"]["halvings"]["parameters"]
    assert {row["parameter"] for row in next(iter(seventh["tables"].values()))} == set(held)
    assert len(seventh["bars"]) == 2 * len(held)
    carried = metrics["sky"]["uncertainty"]["carried"]["coverage"]
    assert [row["held of 90 %"] for row in elsewhere] == [shares[1] for shares in carried.values()]
    assert elsewhere == seventh["tables"]["the same intervals on sky-like images"]

    write_page(LINES, tmp_path)
    page = (tmp_path / "docs/results.md").read_text()
    assert page.count("Not run.") == len(LINES) - len(READ)
    assert page.count("Machine: ") == len(READ)
    assert "| the paper | " in page


def test_beside_real_pairs_stands_what_the_networks_know_of_simulated_ones(runs: Path) -> None:
    (line,) = (line for line in LINES if line.number == 6)
    table = [{"": "network", "MAE": 21.5}]
    for run, left_out in zip(PAIRS, ([], ["Arp 244"]), strict=True):
        (runs / run / "real_pairs").mkdir()
        result = {"pairs": [{"inclination_deg": 30.0}] * 5, "table": table, "left_out": left_out}
        files.write_json(runs / run / "real_pairs/pairs.json", result)
    found = line.read(runs)
    assert list(found.tables.values()) == [table, table]
    metrics = files.read_json(runs / "real_clean/evaluation/metrics.json")
    for scores in (metrics["scores"], metrics["sky"]["scores"]):
        error = scores["network"]["parameters"]["inclination"]["mae"]
        assert f" {error:.1f} degrees on " in found.remarks[0]
    assert "Left out with it: Arp 244." in found.remarks
    assert any("exceeds 0.82" in remark for remark in found.remarks)  # 1.645 / sqrt(5 - 1)


def test_a_classifier_that_is_always_right_is_off_by_its_centres(evaluated: Config) -> None:
    # All angles of these views are edges of classes, 2.5 degrees from the centres.
    assert error_of_centres(evaluated.run_dir, NAMES) == pytest.approx((0 + 0 + 2.5 + 2.5) / 4)


def test_a_resumed_training_is_mentioned(runs: Path, tmp_path: Path) -> None:
    table = (runs / "random_split/metrics.csv").read_text().splitlines()
    cells = table[2].split(",")
    cells[table[0].split(",").index("learning_rate")] = "0"
    (tmp_path / "metrics.csv").write_text("\n".join([*table[:2], ",".join(cells), table[3]]) + "\n")
    (remark,) = resumed(tmp_path, NAMES)
    assert "after epoch 2" in remark
    assert "to epoch 3" in remark


def test_a_law_is_extrapolated_only_if_the_error_falls_with_it() -> None:
    rows = [
        {"value": x, "network_mae": 8 * x**-0.5, "lookup_mae": error}
        for x, error in zip((1, 4, 16), (2.0, 1.0, 2.0), strict=True)
    ]
    falls, does_not = law_of(rows, "network"), law_of(rows, "lookup")
    assert falls.startswith("The average MAE of the network follows 8 x^(-0.50 ± 0.00)")
    assert "to 100 of them it would be 0.8, from 3 points up to 16." in falls
    assert "does not follow" in does_not
    assert "100" not in does_not


def test_a_file_that_nothing_makes_is_missed_before_hours_of_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (line,) = (line for line in LINES if line.number == 6)
    assert make(line, tmp_path) == 2
    said = capsys.readouterr()
    assert f"{tmp_path}/real_pairs/pairs.csv: no such file" in said.err
    assert "==" not in said.out
