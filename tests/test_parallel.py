"""MPI: work is shared, ranks agree, and no rank outlives another's failure."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from galmerhpc import parallel
from galmerhpc.errors import InputError
from tests.support import mpirun, run
from tests.workers import COUNT


def start(name: str, folder: Path, ranks: int) -> subprocess.CompletedProcess[str]:
    command = (sys.executable, "-m", "tests.workers", name, str(folder))
    return run(*command) if ranks == 0 else mpirun(ranks, *command)


def results(name: str, folder: Path, ranks: int) -> list[Any]:
    """Return what each rank came out with; 0 ranks is a process without a launcher."""
    done = start(name, folder, ranks)
    assert done.returncode == 0, done.stderr
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(max(1, ranks))]


@pytest.mark.parametrize("ranks", [0, 1, 2, 4])
def test_every_item_is_done_once_by_one_rank(tmp_path: Path, ranks: int) -> None:
    out = results("share_work", tmp_path, ranks)
    for number, items in enumerate((list(range(COUNT)), [100], [])):
        assert sorted(item for rank in out for item in rank["taken"][number]) == items
    assert sorted(out[0]["told"]) == [*range(COUNT), 100]
    assert all(rank["told"] == [] for rank in out[1:])


@pytest.mark.parametrize("ranks", [1, 3])
def test_one_desk_answers_all_ranks_one_at_a_time(tmp_path: Path, ranks: int) -> None:
    out = results("ask_the_desk", tmp_path, ranks)
    assert [len(numbers) for numbers in out] == [COUNT * k for k in range(ranks)][::-1]
    together = [number for numbers in out for number in numbers]
    assert sorted(together) == list(range(0, 10 * len(together), 10))
    assert all(numbers == sorted(numbers) for numbers in out)


def test_whoever_is_free_takes_the_next_item(tmp_path: Path) -> None:
    first, last = results("hold_one_item", tmp_path, 2)
    assert len(last) == 1
    assert sorted(first + last) == list(range(COUNT))


@pytest.mark.parametrize("ranks", [0, 3])
def test_ranks_know_each_other(tmp_path: Path, ranks: int) -> None:
    size = max(1, ranks)
    for rank, out in enumerate(results("talk", tmp_path, ranks)):
        assert out == {
            "rank": [rank, rank, rank],
            "size": [size, size],
            "broadcast": "from 0",
            "node_broadcast": "from 0",
            "gather": [10 * r for r in range(size)] if rank == 0 else [],
            "agree": [True, size == 1, False],
        }


@pytest.fixture
def shared_memory() -> Iterator[Path]:
    """Return a folder in the node's shared memory."""
    with TemporaryDirectory(dir=parallel.SHARED_MEMORY) as name:
        yield Path(name)


@pytest.mark.parametrize("ranks", [0, 2])
def test_ranks_of_a_node_share_memory_and_leave_no_name(shared_memory: Path, ranks: int) -> None:
    for shared, names in results("share_memory", shared_memory, ranks):
        assert shared == [
            [[1000, 3], "float32", pytest.approx(4498500, rel=1e-6)],
            [[0, 3], "float32", 0],
            [[7], "float32", 21],
        ]
        assert names == []


def test_nodes_may_hold_unlike_numbers_of_ranks(shared_memory: Path) -> None:
    out = results("share_memory_on_unlike_nodes", shared_memory, 3)
    assert out[0][0][-1] == out[1][0][-1] == [[7], "float32", 21]
    assert len(out) == 3


def test_too_little_shared_memory_is_known_to_every_rank(shared_memory: Path) -> None:
    for message in results("share_too_much", shared_memory, 2):
        assert "no room for" in message
        assert "lower data.memory_gb" in message
    assert not list(shared_memory.glob("galmerhpc-*"))


@pytest.mark.parametrize(
    ("name", "code", "line"),
    [
        ("fail_on_rank_1", 3, "rank 1: something is wrong"),
        ("give_up", 3, "rank 1: something is wrong"),
        ("fail_everywhere", 2, "something is wrong"),
        ("fail_at_work", 2, "something is wrong"),
        ("fail_at_the_desk", 2, "something is wrong"),
    ],
)
def test_a_failure_is_said_once_and_ends_every_rank(
    tmp_path: Path, name: str, code: int, line: str
) -> None:
    done = start(name, tmp_path, 3)
    assert done.returncode == code
    said = [text for text in done.stderr.splitlines() if "wrong" in text]
    assert said == [line]
    assert not list(tmp_path.iterdir())


def test_a_failure_without_a_launcher_ends_the_process(tmp_path: Path) -> None:
    done = start("fail_everywhere", tmp_path, 0)
    assert done.returncode == 2
    assert done.stderr == "something is wrong\n"


def test_no_rank_outlives_one_that_was_killed(tmp_path: Path) -> None:
    done = start("die", tmp_path, 3)
    assert done.returncode != 0
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("ranks", [0, 2])
def test_a_rank_counts_the_cpus_that_are_its_own(tmp_path: Path, ranks: int) -> None:
    for there, shared, said, bound, mine in results("count_own_cpus", tmp_path, ranks):
        assert shared == max(1, there // max(1, ranks))
        assert said == 1
        assert bound == mine


def test_tasks_that_know_nothing_of_each_other_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in parallel.LAUNCHER_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    monkeypatch.setenv("SLURM_PROCID", "1")
    parallel.communicator.cache_clear()
    with pytest.raises(InputError, match=r"srun started 2 tasks .* use srun --mpi=pmix"):
        parallel.rank()
    parallel.communicator.cache_clear()


@pytest.mark.parametrize(
    "env",
    [
        # As a rank finds it when mpirun is killed before MPI has started, or is another MPI's.
        {"OMPI_COMM_WORLD_SIZE": "3"},
        # Under srun --mpi=pmix with an MPI that knows no PMIx.
        {"PMIX_RANK": "1", "SLURM_STEP_NUM_TASKS": "3", "SLURM_PROCID": "1"},
    ],
)
def test_ranks_that_mpi_does_not_know_of_are_refused(env: dict[str, str]) -> None:
    command = "from galmerhpc import parallel; parallel.rank()"
    alone = run(sys.executable, "-c", command, env=env)
    assert "InputError: 3 ranks were launched, but MPI sees only this one" in alone.stderr
