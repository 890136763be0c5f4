"""What the site file's variables are for the jobs that are submitted with them."""

import shutil
from pathlib import Path

import pytest

from galmerhpc.cluster.site import EXAMPLE_FILE, SITE_FILE, read_site
from tests.support import ROOT


def test_a_job_that_submits_another_hands_on_nothing_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "slurm").mkdir()
    shutil.copy(ROOT / EXAMPLE_FILE, tmp_path / SITE_FILE)
    with (tmp_path / SITE_FILE).open("a") as file:
        file.write("export CPU_PARTITION=batch SLURM_CONTAINER_IMAGE=image.sqsh\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SLURM_CONF", "/there")
    monkeypatch.setenv("SLURM_NTASKS_PER_NODE", "3")
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert read_site().environment["SLURM_NTASKS_PER_NODE"] == "3"
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    environment = read_site().environment
    left = {name: value for name, value in environment.items() if name.startswith("SLURM_")}
    assert left == {"SLURM_CONF": "/there", "SLURM_CONTAINER_IMAGE": "image.sqsh"}
