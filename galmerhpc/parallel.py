"""MPI: who am I, hand out work, agree, stop everybody. Without a launcher there is one rank.

mpi4py is imported only where a launcher has started this process, so that a command on a login
node, or the mirror, starts without MPI.
"""

import functools
import mmap
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import numpy as np
from numpy.typing import NDArray

from galmerhpc.errors import GalmerhpcError, InputError

if TYPE_CHECKING:
    from mpi4py import MPI

T = TypeVar("T")

# Set in every task by Open MPI's mpirun, by PMIx (srun --mpi=pmix) and by PMI (MPICH, Cray).
LAUNCHER_VARIABLES = ("OMPI_COMM_WORLD_SIZE", "PMIX_RANK", "PMI_SIZE")

SHARED_MEMORY = "/dev/shm"

_POLL_S = 0.001
_GRACE_S = 1.0


@functools.cache
def communicator() -> "MPI.Intracomm | None":
    """Return MPI's world, or None where no launcher started this process.

    Raises
    ------
    InputError
        srun started several tasks that MPI does not know of: each would do the whole work.
    """
    tasks = int(os.environ.get("SLURM_STEP_NUM_TASKS", "1"))
    if not any(name in os.environ for name in LAUNCHER_VARIABLES):
        if tasks > 1 and "SLURM_PROCID" in os.environ:
            raise InputError(
                f"srun started {tasks} tasks that know nothing of each other: "
                "use srun --mpi=pmix, or mpirun inside the job"
            )
        return None
    from mpi4py import MPI

    return MPI.COMM_WORLD


def launched_rank() -> int:
    """Return this task's rank as the launcher says, before MPI is started."""
    for name in (
        "OMPI_COMM_WORLD_RANK",
        "PMIX_RANK",
        "PMI_RANK",
    ):  # SLURM_PROCID lies under mpirun
        if name in os.environ:
            return int(os.environ[name])
    return 0


def rank() -> int:
    """Return this process's number, from 0."""
    world = communicator()
    return world.Get_rank() if world else 0


def size() -> int:
    """Return the number of ranks."""
    world = communicator()
    return world.Get_size() if world else 1


def barrier() -> None:
    """Wait for all ranks."""
    if world := communicator():
        world.Barrier()


def broadcast(value: T) -> T:
    """Return rank 0's value on all ranks."""
    world = communicator()
    return world.bcast(value) if world else value


def gather(value: T) -> list[T]:
    """Return every rank's value in rank order on rank 0, an empty list elsewhere."""
    world = communicator()
    return (world.gather(value) or []) if world else [value]


def agree(ok: bool) -> bool:
    """Return True on all ranks if it is true on all of them."""
    world = communicator()
    return all(world.allgather(ok)) if world else ok


@functools.cache
def _node() -> "MPI.Comm | None":
    world = communicator()
    if world is None:
        return None
    from mpi4py import MPI

    return world.Split_type(MPI.COMM_TYPE_SHARED)


def local_rank() -> int:
    """Return this process's number among the ranks of its node, from 0."""
    node = _node()
    return node.Get_rank() if node else 0


def local_size() -> int:
    """Return the number of ranks on this node."""
    node = _node()
    return node.Get_size() if node else 1


def cpu_count() -> int:
    """Return the CPUs that this process may use."""
    return len(os.sched_getaffinity(0))


def node_barrier() -> None:
    """Wait for the ranks of this node."""
    if node := _node():
        node.Barrier()


def node_broadcast(value: T) -> T:
    """Return, on all ranks of a node, the value of its local rank 0."""
    node = _node()
    return node.bcast(value) if node else value


def node_array(shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
    """Return an array that all ranks of a node share; the caller fills it on local rank 0.

    Collective over all ranks. The memory has no name once all ranks hold it, so that nothing is
    left behind by a killed job.

    Raises
    ------
    GalmerhpcError
        The node's shared memory has no room for it.
    """
    node = _node()
    nbytes = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    if node is None or node.Get_size() == 1:
        _agree_on_room("")  # other nodes may hold several ranks
        # Shared memory here too: what a rank holds in private does not depend on their number.
        return np.ndarray(shape, dtype, mmap.mmap(-1, max(nbytes, 1)))
    path, fault = "", ""
    if node.Get_rank() == 0:
        descriptor, path = tempfile.mkstemp(prefix="galmerhpc-", dir=SHARED_MEMORY)
        try:
            os.posix_fallocate(descriptor, 0, max(nbytes, 1))
        except OSError as error:
            fault = (
                f"{SHARED_MEMORY}: no room for {nbytes / 1e9:.1f} GB ({error.strerror}); "
                "lower data.memory_gb"
            )
            Path(path).unlink()
        os.close(descriptor)
    path, fault = node_broadcast((path, fault))
    _agree_on_room(fault)
    array: NDArray[Any] = np.memmap(path, dtype, "r+", shape=shape)
    node.Barrier()
    if node.Get_rank() == 0:
        Path(path).unlink()
    return array


def _agree_on_room(fault: str) -> None:
    if not agree(not fault):
        raise GalmerhpcError(
            fault or "another node has too little shared memory; lower data.memory_gb"
        )


def work(items: Sequence[T], told: Callable[[T], object] | None = None) -> Iterator[T]:
    """Yield items of a list that all ranks hold, each to exactly one rank: whoever is free next.

    Collective: every rank must run it to its end. Rank 0 works too; a thread of it answers the
    others, so that no rank waits for another one's item.

    Parameters
    ----------
    items : sequence
        The same on every rank.
    told : callable, optional
        Called on rank 0 with every item that is handed out, to whatever rank: for a progress bar.
    """
    world = communicator()
    if world is None or world.Get_size() == 1:
        for item in items:
            if told:
                told(item)
            yield item
        return
    desk = world.Dup()  # its messages cannot meet anybody else's
    if world.Get_rank() == 0:
        yield from _hand_out(desk, items, told)
    else:
        while (index := desk.sendrecv(None, dest=0, source=0)) < len(items):
            yield items[index]
    # Not after an error, which ends the job: the others, and rank 0's thread, are still using it.
    desk.Barrier()
    desk.Free()


def _hand_out(
    desk: "MPI.Intracomm", items: Sequence[T], told: Callable[[T], object] | None
) -> Iterator[T]:
    """Yield rank 0's own items while a thread gives the others theirs."""
    from mpi4py import MPI

    lock, taken = threading.Lock(), iter(range(len(items)))

    def take() -> int:
        with lock:
            index = next(taken, len(items))
            if told and index < len(items):
                told(items[index])
            return index

    def answer() -> None:
        waiting = desk.Get_size() - 1
        status = MPI.Status()
        while waiting:
            # A blocking receive would spin on the core that rank 0 works on.
            if not desk.iprobe(source=MPI.ANY_SOURCE, status=status):
                time.sleep(_POLL_S)
                continue
            desk.recv(source=status.Get_source())
            index = take()
            waiting -= index >= len(items)
            desk.send(index, dest=status.Get_source())

    thread = threading.Thread(target=answer, daemon=True)
    thread.start()
    while (index := take()) < len(items):
        yield items[index]
    thread.join()


def fail(message: str, exit_code: int) -> NoReturn:
    """Print one message for the whole job and end every rank of it.

    What is wrong for one rank is mostly wrong for all: the others give rank 0 a moment to say it
    first, and are ended by that.
    """
    if launched_rank() > 0:
        time.sleep(_GRACE_S)
        message = f"rank {launched_rank()}: {message}"
    print(message, file=sys.stderr, flush=True)
    if "mpi4py.MPI" in sys.modules:
        from mpi4py import MPI

        if MPI.Is_initialized() and not MPI.Is_finalized() and MPI.COMM_WORLD.Get_size() > 1:
            MPI.COMM_WORLD.Abort(exit_code)
    sys.exit(exit_code)
