"""What ranks do in tests of `parallel`: ``mpirun -np 2 python -m tests.workers NAME FOLDER``.

Each rank writes what came out, as JSON, into the folder under its number.
"""

import itertools
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from galmerhpc import parallel
from galmerhpc.config import load
from galmerhpc.errors import GalmerhpcError
from galmerhpc.studies.index import STUDIES
from galmerhpc.studies.sweep import sweep

COUNT = 37


def share_work(folder: Path) -> Any:  # noqa: ARG001
    """Take items of three lists, one after the other: many, fewer than ranks, none."""
    told: list[int] = []
    taken = [
        list(parallel.work(items, told.append)) for items in (range(COUNT), range(100, 101), ())
    ]
    return {"taken": taken, "told": told}


def ask_the_desk(folder: Path) -> list[int]:  # noqa: ARG001
    """Ask for numbers; each rank asks another number of times, the last one never."""
    asked = itertools.count()
    with parallel.Coordinator(lambda step: step * next(asked)) as coordinator:
        return [coordinator.ask(10) for _ in range(COUNT * (parallel.size() - 1 - parallel.rank()))]


def fail_at_the_desk(folder: Path) -> None:  # noqa: ARG001
    """Ask rank 0 what it cannot answer, while it has something else to do."""

    def answer(_: int) -> int:
        raise GalmerhpcError("something is wrong")

    try:
        with parallel.Coordinator(answer) as coordinator:
            if parallel.rank() > 0:
                coordinator.ask(0)
    except GalmerhpcError as error:
        parallel.fail(str(error), 2)


def hold_one_item(folder: Path) -> list[int]:
    """Let the last rank hold its first item until the others have done all the rest."""
    last, held, done = parallel.rank() == parallel.size() - 1, folder / "held", []
    for item in parallel.work(range(COUNT)):
        if last:
            held.touch()
            wait_until(lambda: len(list(folder.glob("done-*"))) == COUNT - 1)
        else:
            wait_until(held.exists)
            (folder / f"done-{item}").touch()
        done.append(item)
    return done


def wait_until(condition: Callable[[], bool]) -> None:
    while not condition():
        time.sleep(0.01)


def talk(folder: Path) -> dict[str, Any]:  # noqa: ARG001
    """Use every collective once."""
    rank = parallel.rank()
    result = {
        "rank": [rank, parallel.launched_rank(), parallel.local_rank()],
        "size": [parallel.size(), parallel.local_size()],
        "broadcast": parallel.broadcast(f"from {rank}"),
        "node_broadcast": parallel.node_broadcast(f"from {rank}"),
        "gather": parallel.gather(rank * 10),
        "agree": [parallel.agree(True), parallel.agree(rank != 1), parallel.agree(False)],
    }
    parallel.barrier()
    parallel.node_barrier()
    return result


def share_memory(folder: Path) -> list[Any]:
    """Share an array of each of some shapes; local rank 0 fills it.

    `folder` lies in the node's shared memory and takes its place, so that all in it is ours.
    """
    parallel.SHARED_MEMORY, sums = str(folder), []
    for shape in ((1000, 3), (0, 3), (7,)):
        array = parallel.node_array(shape, np.float32)
        if parallel.local_rank() == 0:
            array[:] = np.arange(array.size, dtype=np.float32).reshape(shape)
        parallel.node_barrier()
        sums.append([list(array.shape), str(array.dtype), float(array.sum())])
    names = [path.name for path in folder.glob("galmerhpc-*")]
    return [sums, names]


def share_memory_on_unlike_nodes(folder: Path) -> list[Any]:
    """Share arrays where one node has two ranks and the other one: nodes made by splitting."""
    from mpi4py import MPI

    node = MPI.COMM_WORLD.Split(parallel.rank() // 2)
    parallel._node = lambda: node
    return share_memory(folder)


def share_too_much(folder: Path) -> str:
    """Ask for more memory than there is."""
    parallel.SHARED_MEMORY = str(folder)
    try:
        parallel.node_array((1 << 50,), np.uint8)
    except GalmerhpcError as error:
        return str(error)
    return "was given"


def fail_on_rank_1(folder: Path) -> None:  # noqa: ARG001
    """Fail on one rank while the others wait for it."""
    if parallel.rank() == 1:
        parallel.fail("something is wrong", 3)
    parallel.barrier()


def give_up(folder: Path) -> None:  # noqa: ARG001
    """Give up work with all ranks for one reason, for many, and at last on one rank alone."""
    consensus = parallel.Consensus()
    if not consensus.is_unanimous("a fault") or consensus.is_unanimous(
        f"a fault of {parallel.rank()}"
    ):
        parallel.fail("the ranks misunderstood each other", 1)
    parallel._CONSENSUS_S = 0.1
    if parallel.rank() == 1 and not consensus.is_unanimous("a fault"):
        parallel.fail("something is wrong", 3)
    parallel.barrier()


def sweep_past_failures(folder: Path) -> str:
    """Do a study whose points fail on every rank alike."""

    def command(name: str, run_dir: Path) -> None:
        if name == "run":
            raise GalmerhpcError(f"{run_dir.name} diverged")

    config = load(folder / "run.yaml", ["studies.dropout=[0, 0.5]"])
    try:
        sweep(STUDIES["dropout"], config, command)
    except GalmerhpcError as error:
        return str(error)
    return "all points are done"


def fail_everywhere(folder: Path) -> None:  # noqa: ARG001
    """Fail on every rank for the same reason."""
    parallel.barrier()
    parallel.fail("something is wrong", 2)


def fail_at_work(folder: Path) -> None:  # noqa: ARG001
    """Fail on rank 0, which hands out the work, amid the work."""
    for item in parallel.work(range(10**9)):
        if parallel.rank() == 0 and item > COUNT:
            parallel.fail("something is wrong", 2)


def die(folder: Path) -> None:  # noqa: ARG001
    """Kill rank 1 while the others wait for it."""
    if parallel.rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    parallel.barrier()


def count_own_cpus(folder: Path) -> list[int]:  # noqa: ARG001
    """Count the CPUs, and this rank's own: unbound, as SLURM says, and bound."""
    there = parallel.cpu_count()
    shared = parallel.cpus_per_rank(parallel.size())
    os.environ["SLURM_CPUS_PER_TASK"] = "1"
    said = parallel.cpus_per_rank(parallel.size())
    del os.environ["SLURM_CPUS_PER_TASK"]
    mine = sorted(os.sched_getaffinity(0))[parallel.rank() :: parallel.size()]
    os.sched_setaffinity(0, mine)
    return [there, shared, said, parallel.cpus_per_rank(parallel.size()), len(mine)]


if __name__ == "__main__":
    out = Path(sys.argv[2])
    value = globals()[sys.argv[1]](out)
    (out / f"{parallel.rank()}.json").write_text(json.dumps(value))
