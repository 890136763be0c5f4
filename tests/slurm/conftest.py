"""The cluster that these tests share, and checkouts to submit from."""

import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster, missing, running
from tests.support import BIN, ROOT, environment

REQUIRED = "GALMERHPC_SLURM_TESTS"
"""Set to ``required`` where SLURM must be there: then a missing package fails instead of skips."""


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Give the running cluster."""
    if absent := missing():
        assert os.environ.get(REQUIRED) != "required", absent
        pytest.skip(absent)
    # Sockets lie in it, whose paths may have 107 characters.
    with running(Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))) as started:
        yield started


class Checkout:
    """A folder with the job scripts, configurations and a site file, as a user's clone has them.

    Attributes
    ----------
    folder : Path
        Where commands run.
    """

    def __init__(self, folder: Path, cluster: Cluster) -> None:
        self.folder, self._cluster = folder, cluster
        for name in ("slurm", "configs"):
            shutil.copytree(ROOT / name, folder / name)
        text = (folder / "slurm" / "site.example.sh").read_text()
        self._example = text.replace("source .venv/bin/activate", f"export PATH={BIN}:$PATH")
        self.site()

    def site(self, **values: object) -> None:
        """Write the site file: the example, with these values instead of its own.

        Without GPUs it is that of a site which trains on the CPUs of nodes that have some: those of
        this cluster are fakes, and a training would miss them.
        """
        text = self._example
        if "GPUS_PER_NODE" not in values:
            text = text.replace(
                f"export PATH={BIN}:$PATH",
                f"export PATH={BIN}:$PATH; unset CUDA_VISIBLE_DEVICES SLURM_GPUS_ON_NODE",
            )
        for name, value in {"CPU_PARTITION": "batch", "CPUS_PER_TASK": 1, **values}.items():
            text, count = re.subn(
                rf"(?m)^#?export {name}=\S*", lambda _, n=name, v=value: f"export {n}={v}", text
            )
            assert count == 1, f"{name} is {count} times in the example"
        (self.folder / "slurm" / "site.sh").write_text(text)

    @property
    def environment(self) -> dict[str, str]:
        """The variables that commands run with."""
        return environment(**self._cluster.environment)

    def galmerhpc(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run `galmerhpc` here."""
        return self.run(str(BIN / "galmerhpc"), *arguments)

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command here."""
        return subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True,
            check=False, timeout=300,
        )  # fmt: skip

    def submit(self, *arguments: str) -> dict[str, str]:
        """Run `galmerhpc submit` with success and return the new jobs' numbers by stage."""
        done = self.galmerhpc("submit", *arguments)
        assert done.returncode == 0, done.stderr
        return dict(re.findall(r"^(\w+): job (\d+)$", done.stdout, re.MULTILINE))

    def sbatch(self, *arguments: str) -> str:
        """Submit a script by hand, as docs/cluster.md says, and return the job's number."""
        command = 'source slurm/site.sh && sbatch --parsable "$@"'
        done = self.run("bash", "-c", command, "sbatch", *arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def read_log(self, run: str, name: str) -> str:
        """Return a job's log; empty where there is none yet."""
        path = self.folder / run / "logs" / name
        return path.read_text(errors="replace") if path.exists() else ""

    def metrics(self, run: str) -> object:
        """Return what evaluation measured."""
        return json.loads((self.folder / run / "evaluation" / "metrics.json").read_text())


@pytest.fixture
def checkout(tmp_path: Path, cluster: Cluster) -> Iterator[Checkout]:
    """Give a checkout; its jobs do not outlive the test."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    yield Checkout(folder, cluster)
    cluster.cancel_all()


@contextmanager
def nothing_starts(cluster: Cluster) -> Iterator[None]:
    """Let jobs be submitted but not started."""
    cluster.run("scontrol", "update", "PartitionName=batch", "State=DOWN")
    try:
        yield
    finally:
        cluster.run("scontrol", "update", "PartitionName=batch", "State=UP")
