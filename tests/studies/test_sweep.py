"""Points on real ranks: what they share, what is skipped, and a line of the results."""

import re
import shutil
import sys
from pathlib import Path

import pytest
import yaml

from galmerhpc import files
from galmerhpc.dataset.records import StageRecord
from galmerhpc.studies import table
from results.lines import Bar, Line, study_found
from results.make import json_path, make, write_page
from tests.support import environment, galmerhpc, mpirun

POINTS = "studies.dropout=[0, 0.25, 0.5]"


@pytest.fixture
def small(tiny_run: Path) -> Path:
    """Return the configuration of a preprocessed run that trains in a second."""
    values = yaml.safe_load(tiny_run.read_text())
    values["model"] = {"architecture": "table1_cnn"}
    values["training"] |= {"epochs": 1, "statistics_batches": 0}
    tiny_run.write_text(yaml.safe_dump(values))
    return tiny_run


def test_points_share_what_is_there_and_are_not_done_twice(
    small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = small.parent / "run"
    made = {path: path.stat().st_mtime_ns for path in run.glob("*/*.h5")}
    own = (run / "config.yaml").read_bytes()
    done = galmerhpc("study", "--point", "2", "dropout", str(small), POINTS)
    assert done.returncode == 0, done.stderr
    study = run / "studies/dropout"
    (row,) = table.read(study / "results.csv")
    assert (row["point"], row["training_images"], row["evaluated"]) == ("0.25", 42, "test")
    assert not (study / "0").exists()
    assert {path: path.stat().st_mtime_ns for path in run.glob("*/*.h5")} == made
    for name in ("raw", "shards"):
        assert (study / "0.25" / name).resolve() == (run / name).resolve()
    assert (run / "config.yaml").read_bytes() == own

    # One of the others leads to shards that are gone, the other has a damaged checkpoint.
    model = (study / "0.25/model.keras").stat().st_mtime_ns
    for name in ("0", "0.5"):
        (study / name).mkdir()
    (study / "0.5/shards").symlink_to("../../shards/gone")
    (study / "0/checkpoints/step-00000001").mkdir(parents=True)
    done = galmerhpc("study", "dropout", str(small), POINTS)
    assert done.returncode == 2
    failed, said = done.stderr.rsplit("galmerhpc: ", 1)
    assert "study dropout, point 0: " in failed
    assert "checkpoints: every checkpoint is damaged" in failed
    assert said.startswith("study dropout: of its 3 points these failed: 0; ")
    assert "Traceback" not in failed + said
    assert [row["point"] for row in table.read(study / "results.csv")] == ["0.25", "0.5"]
    shutil.rmtree(study / "0/checkpoints")
    (study / "0.25/evaluation/report.html").unlink()  # killed between evaluation and report

    # It is done again on two ranks, as a line of the results.
    root = small.parent
    (root / "runs").symlink_to(root)
    (root / "results").mkdir()

    def read(runs: Path) -> object:
        found = study_found(runs, "run/studies/dropout")
        errors = [row["network MAE"] for row in found.tables["dropout on run"]]
        found.bars = [Bar("smallest MAE", min(errors), "<=", 1e-9)]
        return found

    for name, value in environment().items():
        monkeypatch.setenv(name, value)
    launcher = "mpirun -np 2 --oversubscribe --bind-to none"
    command = f"{launcher} galmerhpc study dropout {small.name} '{POINTS}'"
    lines = [Line(3, "Dropout", (command,), read), Line(4, "Another", ("galmerhpc info x",), read)]
    (study / "left_over/evaluation").mkdir(parents=True)
    files.write_json(study / "left_over/evaluation/metrics.json", {})  # of a study of other points
    assert make(lines[0], root) == 0
    assert (study / "0.25/model.keras").stat().st_mtime_ns == model
    assert (study / "0.25/evaluation/report.html").exists()
    assert [row["value"] for row in table.read(study / "results.csv")] == [0, 0.25, 0.5]
    result = files.read_json(json_path(lines[0], root))
    assert {run["name"] for run in result["runs"]} == {"0", "0.25", "0.5"}
    assert result["training_s"] > 0
    of_two = files.read_json(study / "0/evaluation/metrics.json")
    assert of_two["repeat"]["machine"]["ranks"] == 2
    write_page(lines, root)
    page = (root / "docs/results.md").read_text()
    first, second = page.split("## 4. Another")
    assert "smallest MAE" in first
    assert "**missed**" in first
    assert command in first
    assert (root / "results/line-03-1.png").exists()
    assert "(../results/line-03-1.png)" in first
    assert "changed since" not in first
    assert "Not run. Its commands:\n\n```sh\ngalmerhpc info x" in second

    small.write_text(small.read_text().replace("batch_size: 25", "batch_size: 24"))
    write_page(lines, root)
    assert "changed since" in (root / "docs/results.md").read_text()
    # Points of another configuration are no points of this study.
    assert make(lines[0], root) == 2


def test_a_study_of_another_configuration_changes_nothing(small: Path) -> None:
    study = small.parent / "run/studies/dropout"
    StageRecord(study / "0/checkpoints", {"training.epochs": 99}).begin()
    files.write_text(study / "0/config.yaml", "of the other\n")
    for only in ([], ["--point", "2"]):
        done = galmerhpc("study", "dropout", str(small), POINTS, *only)
        assert done.returncode == 2
        assert "study dropout, point 0: " in done.stderr
        assert "checkpoints: made with another" in done.stderr
    assert (study / "0/config.yaml").read_text() == "of the other\n"
    assert [path.name for path in study.iterdir()] == ["0"]


def test_points_that_fail_on_every_rank_do_not_stop_the_others(small: Path) -> None:
    folder = small.parent
    worker = (sys.executable, "-m", "tests.workers", "sweep_past_failures", str(folder))
    done = mpirun(2, *worker)
    assert done.returncode == 0, done.stderr
    for rank in (0, 1):
        said = files.read_json(folder / f"{rank}.json")
        assert said.startswith("study dropout: of its 2 points these failed: 0, 0.5; ")


def test_points_of_the_same_name_are_refused(small: Path) -> None:
    done = galmerhpc("study", "dropout", str(small), "studies.dropout=[0.1, 0.10000000000000002]")
    assert done.returncode == 2
    assert "study dropout: 2 points are called 0.1; leave out all but one" in done.stderr


def test_mistakes_are_one_line(small: Path) -> None:
    done = galmerhpc("study", "dropout", str(small), POINTS, "--point", "4")
    assert done.returncode == 2
    assert "--point 4: the study dropout has points 1 to 3" in done.stderr
    assert "Traceback" not in done.stderr


def test_points_that_cannot_be_done_are_named_before_the_first_begins(small: Path) -> None:
    for study, points, faults in (
        ("batch-size", "studies.batch_sizes=[25, 1]", {"1": "leaves some of the 2 ranks"}),
        (
            "inclination",
            "studies.inclinations_deg=[90, 30, 60]",
            dict.fromkeys(("30", "60"), "no inclination"),
        ),
    ):
        done = galmerhpc("study", study, str(small), points, ranks=2)
        assert done.returncode == 2
        for point, fault in faults.items():
            assert re.search(f"study {study}, point {point}: .*{fault}", done.stderr)
        assert not (small.parent / "run/studies").exists()
