"""What the site file's variables are for the jobs that are submitted with them."""

import os
import shutil
from pathlib import Path

import pytest

from galmerhpc.cluster.site import EXAMPLE_FILE, SITE_FILE, check_environment, read_site
from galmerhpc.errors import InputError
from tests.support import BIN, ROOT


@pytest.fixture
def site_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write a site file into the current folder and return its path."""
    (tmp_path / "slurm").mkdir()
    path = tmp_path / SITE_FILE
    shutil.copy(ROOT / EXAMPLE_FILE, path)
    with path.open("a") as file:
        file.write("export CPU_PARTITION=batch SLURM_CONTAINER_IMAGE=image.sqsh\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    return path


@pytest.mark.usefixtures("site_file")
def test_a_job_that_submits_another_hands_on_nothing_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SLURM_CONF", "/there")
    monkeypatch.setenv("SLURM_NTASKS_PER_NODE", "3")
    assert read_site().environment["SLURM_NTASKS_PER_NODE"] == "3"
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    environment = read_site().environment
    left = {name: value for name, value in environment.items() if name.startswith("SLURM_")}
    assert left == {"SLURM_CONF": "/there", "SLURM_CONTAINER_IMAGE": "image.sqsh"}


def test_runs_is_a_link_whose_folder_is_made_again_after_a_purge(
    site_file: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    scratch, runs = tmp_path / "scratch/me", tmp_path / "runs"
    text = site_file.read_text()
    site_file.write_text(text.replace("export RUNS_FOLDER=", f"export RUNS_FOLDER={scratch}"))
    read_site()
    (runs / "demo").mkdir()
    shutil.rmtree(scratch)
    read_site()
    assert runs.resolve() == scratch
    assert list(scratch.iterdir()) == []  # no link inside
    assert capfd.readouterr().err == ""

    runs.unlink()
    runs.mkdir()
    read_site()
    assert f"RUNS_FOLDER={scratch} has no effect: runs exists" in capfd.readouterr().err


@pytest.mark.usefixtures("site_file")
def test_a_variable_in_another_encoding_is_handed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    name = os.fsdecode(b"Universit\xe9")
    monkeypatch.setenv("INSTITUTE", name)
    assert read_site().environment["INSTITUTE"] == name


@pytest.mark.parametrize("program", ["galmerhpc", "python"])
def test_a_program_that_jobs_need_and_load_environment_does_not_bring_is_named(
    site_file: Path, tmp_path: Path, program: str
) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in {"galmerhpc", "python", "mkdir"} - {program}:
        (programs / name).symlink_to(shutil.which("mkdir") if name == "mkdir" else BIN / name)
    text = site_file.read_text()
    site_file.write_text(text.replace("source .venv/bin/activate", f"PATH={programs}"))
    with pytest.raises(InputError, match=f"load_environment fails: no {program}"):
        check_environment()
