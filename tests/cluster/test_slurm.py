"""What is made of the words of SLURM's commands; scripts say here what the real ones said once."""

import os
from pathlib import Path

import pytest

from galmerhpc.cluster import slurm
from galmerhpc.errors import GalmerhpcError, InputError

DOWN = "slurm_load_jobs error: Unable to contact slurm controller (connect failure)"
HUNG = "Unexpected message received for job 7"
FORGOTTEN = "slurm_load_jobs error: Invalid job id specified"


class Commands:
    """A folder on PATH, in which a test puts commands."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def add(self, name: str, script: str) -> None:
        path = self._folder / name
        path.write_text(f"#!/bin/sh\ncd {self._folder}\n{script}\n")
        path.chmod(0o755)

    def fail_once(self, name: str, said: str, then: str = "") -> None:
        """Let a command fail with a message, and from its second call on print another one."""
        self.add(
            name, f"[ -e asked ] || {{ touch asked; echo '{said}' >&2; exit 1; }}\necho '{then}'"
        )


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Commands:
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(slurm, "_PAUSE_S", 0.0)
    return Commands(tmp_path)


def test_a_controller_that_does_not_answer_is_asked_again(commands: Commands) -> None:
    commands.fail_once("scontrol", DOWN, "JobId=7 JobName=train JobState=RUNNING Reason=None")
    assert slurm.show("7") == [slurm.Job("7", "train", "RUNNING")]


def test_a_job_goes_back_to_the_queue_once_the_controller_answers(
    commands: Commands, tmp_path: Path
) -> None:
    commands.fail_once("scontrol", HUNG)
    slurm.requeue("7")
    assert (tmp_path / "asked").exists()


def test_a_controller_that_never_answers_has_not_forgotten_the_job(
    commands: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slurm, "_PATIENCE_S", 0.0)
    commands.add("scontrol", f"echo '{DOWN}' >&2; exit 1")
    with pytest.raises(GalmerhpcError, match=r"SLURM does not answer .*Unable to contact"):
        slurm.show("7")


@pytest.mark.parametrize(
    "sacct", ["echo 'Slurm accounting storage is disabled' >&2; exit 1", "exec sleep 60"]
)
def test_a_forgotten_job_is_not_known_without_accounting(
    commands: Commands, monkeypatch: pytest.MonkeyPatch, sacct: str
) -> None:
    monkeypatch.setattr(slurm, "_TIME_LIMIT_S", 0.5)
    commands.add("scontrol", f"echo '{FORGOTTEN}' >&2; exit 1")
    commands.add("sacct", sacct)
    assert slurm.show("7") == []


@pytest.mark.parametrize("printed", ["12", "Welcome to the cluster!\n12", "12;federated"])
def test_the_last_line_of_sbatch_is_the_job_s_number(commands: Commands, printed: str) -> None:
    commands.add("sbatch", f"echo '{printed}'")
    assert slurm.submit(["sbatch"], dict(os.environ)) == "12"


def test_an_answer_without_a_number_is_quoted(commands: Commands) -> None:
    commands.add("sbatch", "echo 'Submitted batch job 12'")
    with pytest.raises(GalmerhpcError, match="no job number but 'Submitted batch job 12'"):
        slurm.submit(["sbatch"], dict(os.environ))


def test_lines_that_are_no_jobs_are_left_out(commands: Commands) -> None:
    banner = "echo; echo 'Welcome to the cluster | today'"
    commands.add("squeue", f"{banner}; echo '12|train|RUNNING|None'")
    assert slurm.queued(["train"]) == [slurm.Job("12", "train", "RUNNING")]
    commands.add("scontrol", f"echo '{FORGOTTEN}' >&2; exit 1")
    commands.add("sacct", f"{banner}; echo '12|train||0:0'")
    assert slurm.show("12") == [slurm.Job("12", "train", "UNKNOWN", "", "0:0")]


def test_a_refusal_is_not_repeated(commands: Commands) -> None:
    commands.fail_once("scontrol", "Requested operation is presently disabled for job 7")
    with pytest.raises(InputError, match="presently disabled"):
        slurm.requeue("7")
