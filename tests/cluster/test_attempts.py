"""When a job that was stopped is started again, and when it is not."""

import os
from pathlib import Path

import pytest

from galmerhpc.cluster.attempts import PATIENCE, Attempts, main
from galmerhpc.cluster.stages import progress
from galmerhpc.config import Config
from galmerhpc.dataset.records import StageRecord
from galmerhpc.errors import ExitCode, GalmerhpcError

SITE = {"MAX_ATTEMPTS": "5", "REQUEUE_FAILED": "no", "CONTINUATION": "array"}
ARRAY = {"SLURM_JOB_ID": "8", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_MAX": "9"}


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return Config.model_validate({"run_dir": tmp_path / "run"})


def task(config: Config, number: int = 1, **site: str) -> Attempts:
    """Return the record as the array's task of this number sees it."""
    environment = {**SITE, **ARRAY, "SLURM_ARRAY_TASK_ID": str(number), **site}
    return Attempts(config, "train", environment)


def checkpoint(config: Config, step: int) -> None:
    (config.run_dir / "checkpoints" / f"step-{step:08d}").mkdir(parents=True)


@pytest.mark.parametrize(
    ("status", "warned", "site"),
    [
        (ExitCode.INTERRUPTED, True, {}),
        (ExitCode.FAILED, False, {"REQUEUE_FAILED": "yes"}),
        (137, False, {"REQUEUE_FAILED": "yes"}),
    ],
)
def test_full_attempts_without_a_new_step_end_the_job(config, status, warned, site):
    task(config, 1).begin()
    task(config, 1, **site).end(status, warned)
    task(config, 2).begin()
    with pytest.raises(GalmerhpcError, match="made no progress in 2 attempts"):
        task(config, 2, **site).end(status, warned)
    with pytest.raises(GalmerhpcError, match="raise the job's time limit"):
        task(config, 3).begin()
    checkpoint(config, 1)
    task(config, 3).begin()
    task(config, 3, **site).end(status, warned)
    task(config, 4).begin()


def test_attempts_that_slurm_cut_short_do_not_count_as_idle(config):
    task(config, 1).begin()
    task(config, 1).end(ExitCode.INTERRUPTED, warned=True)
    task(config, 2).begin()  # its node was lost
    task(config, 3).begin()
    task(config, 3).end(ExitCode.INTERRUPTED, warned=False)  # preempted before a checkpoint
    task(config, 4).begin()
    with pytest.raises(GalmerhpcError, match="made no progress in 2 attempts"):
        task(config, 4).end(ExitCode.INTERRUPTED, warned=True)


def test_an_array_s_tasks_that_find_the_training_done_are_no_failure(config):
    record = StageRecord(config.run_dir / "checkpoints", config.inputs("train"))
    record.begin()
    record.finish({})
    for number in range(1, PATIENCE + 3):
        task(config, number).begin()
    assert not (config.run_dir / "logs").exists()


def test_a_training_may_go_on_with_a_key_that_is_named(config, monkeypatch):
    config.run_dir.mkdir()
    path = config.run_dir.parent / "run.yaml"
    path.write_text(f"run_dir: {config.run_dir}\n")
    record = StageRecord(config.run_dir / "checkpoints", config.inputs("train"))
    record.begin()
    record.finish({})
    for name, value in {**SITE, **ARRAY, "SLURM_ARRAY_TASK_ID": "1"}.items():
        monkeypatch.setenv(name, value)
    begin = ["begin", "train", str(path)]
    with pytest.raises(SystemExit) as left:
        main([*begin, "training.epochs=99"])
    assert left.value.code == ExitCode.WRONG_INPUT
    main([*begin, "--allow-change", "training.epochs", "training.epochs=99"])
    assert len(list((config.run_dir / "logs").glob("train-*.attempts"))) == 1


@pytest.mark.parametrize(
    ("stage", "options"),
    [
        ("scrape", ["--retry-failed"]),
        ("scrape", ["--allow-missing", "scrape.attempts=9"]),
        ("evaluate", ["--split", "val", "--data", "other"]),
    ],
)
def test_an_attempt_takes_the_options_of_its_stage(config, monkeypatch, stage, options):
    path = config.run_dir.parent / "run.yaml"
    path.write_text(f"run_dir: {config.run_dir}\n")
    for name, value in {**SITE, "SLURM_JOB_ID": "8"}.items():
        monkeypatch.setenv(name, value)
    main(["begin", stage, str(path), *options])
    record = config.run_dir / "logs" / f"{stage}-8.attempts"
    assert record.read_text() == "nothing yet\n"


def test_attempts_are_counted(config):
    for number in range(1, 6):
        checkpoint(config, number)
        task(config, number).begin()
    checkpoint(config, 6)
    with pytest.raises(GalmerhpcError, match="started 5 times"):
        task(config, 6).begin()
    with pytest.raises(GalmerhpcError, match="saved: step 6"):
        task(config, 5).end(ExitCode.INTERRUPTED, warned=False)


@pytest.mark.parametrize(
    ("status", "warned", "site", "again"),
    [
        (ExitCode.INTERRUPTED, False, {}, True),
        (138, True, {}, True),  # a stage that SIGUSR1 itself ended
        (143, True, {}, True),  # or SIGTERM
        (137, True, {}, False),
        (137, True, {"REQUEUE_FAILED": "yes"}, True),
        (ExitCode.FAILED, True, {}, False),
        (ExitCode.FAILED, True, {"REQUEUE_FAILED": "yes"}, True),
        (ExitCode.WRONG_INPUT, False, {"REQUEUE_FAILED": "yes"}, False),
        (ExitCode.VIEWS_MISSING, False, {"REQUEUE_FAILED": "yes"}, False),
    ],
)
def test_what_another_attempt_can_mend_gets_one(config, status, warned, site, again):
    attempts = task(config, 1, **site)
    attempts.begin()
    if again:
        attempts.end(status, warned)
        return
    with pytest.raises(SystemExit) as left:
        attempts.end(status, warned)
    assert left.value.code == status


def test_the_last_task_of_an_array_says_that_the_work_is_not_done(config, capsys):
    attempts = task(config, 9)
    attempts.begin()
    with pytest.raises(SystemExit) as left:
        attempts.end(ExitCode.INTERRUPTED, warned=False)
    assert left.value.code == ExitCode.INTERRUPTED
    assert "submit again to continue" in capsys.readouterr().err


def test_a_slice_that_was_stopped_is_not_left_to_the_next_task(config, capsys):
    environment = {**SITE, **ARRAY, "SLURM_ARRAY_TASK_ID": "1"}
    attempts = Attempts(config, "scrape", environment)
    attempts.begin()
    with pytest.raises(SystemExit) as left:
        attempts.end(ExitCode.INTERRUPTED, warned=True)
    assert left.value.code == ExitCode.INTERRUPTED
    assert "submit again to continue" in capsys.readouterr().err


def test_tasks_of_a_scrape_are_jobs_of_their_own_and_those_of_a_training_one(config):
    for number in (1, 2, 3):
        environment = {**SITE, **ARRAY, "SLURM_ARRAY_TASK_ID": str(number)}
        Attempts(config, "scrape", environment).begin()
    assert len(list((config.run_dir / "logs").glob("scrape-7_*.attempts"))) == 3
    task(config, 1).begin()
    task(config, 2).begin()
    (record,) = (config.run_dir / "logs").glob("train-*.attempts")
    assert record.read_text().splitlines() == ["nothing yet"] * 2


def test_a_study_gets_on_while_libraries_are_simulated(config):
    own = config.model_copy(update={"library": str(config.run_dir / "own.h5")})
    libraries = config.run_dir / "studies/libraries"
    parts = ("own.h5.parts", libraries / "a.h5.parts", libraries)
    seen = {progress(own, "study")}
    for number, folder in enumerate(parts, 1):
        file = config.run_dir / folder / f"{number}.h5"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
        seen.add(progress(own, "study"))
        assert len(seen) == number + 1


def test_a_checkpoint_that_was_set_aside_is_no_step(config):
    checkpoint(config, 3)
    checkpoint(config, 5)
    folder = config.run_dir / "checkpoints"
    (folder / "step-00000005").rename(folder / "step-00000005.bad")
    assert progress(config, "train") == "step 3"
    task(config).begin()


def test_a_file_that_another_task_removes_meanwhile_is_left_out(config, monkeypatch):
    folder = config.run_dir / "raw"
    folder.mkdir(parents=True)
    for name in ("raw-1", "raw-2"):
        (folder / name).write_bytes(b"0" * 1000)
    stat = Path.stat

    def stat_after_a_sibling_packed(path: Path, **options: bool) -> os.stat_result:
        (folder / "raw-1").unlink(missing_ok=True)
        return stat(path, **options)

    monkeypatch.setattr(Path, "stat", stat_after_a_sibling_packed)
    assert progress(config, "scrape") == "1 files, 0.001 MB"
