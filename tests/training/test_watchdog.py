"""The watchdog: a rank that hangs ends the job, with one message."""

import sys
from pathlib import Path

import pytest

from galmerhpc.training.watchdog import Watchdog
from tests.support import mpirun
from tests.training.workers import LIMIT_S


@pytest.mark.parametrize("rank", ["1", pytest.param("0", marks=pytest.mark.soak)])
def test_a_stopped_rank_ends_the_job_with_one_message(tmp_path: Path, rank: str) -> None:
    worker = (sys.executable, "-m", "tests.training.workers", "hang", str(tmp_path), rank)
    done = mpirun(2, *worker, timeout=300)
    assert done.returncode != 0
    assert done.stderr.count(f"no step for {LIMIT_S} s (training.stall_limit_s)") == 1
    assert "Traceback" not in done.stderr


def test_what_is_watched_comes_through() -> None:
    with Watchdog(1e-9) as watchdog:  # one rank alone waits for nobody
        assert list(watchdog.watched(range(3))) == [0, 1, 2]
