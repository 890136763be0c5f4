"""MPI: ranks, work distribution, agreement, ending the job. Without a launcher there is one rank.

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
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, NoReturn, TypeVar

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from galmerhpc.errors import GalmerhpcError, InputError

if TYPE_CHECKING:
    from mpi4py import MPI

K = TypeVar("K")
T = TypeVar("T")
Q = TypeVar("Q")
A = TypeVar("A")

# Set in every task by Open MPI's mpirun, by PMIx (srun --mpi=pmix) and by PMI (MPICH, Cray).
LAUNCHER_VARIABLES = ("OMPI_COMM_WORLD_SIZE", "PMIX_RANK", "PMI_SIZE")

SHARED_MEMORY = "/dev/shm"

_POLL_S = 0.001
_ASK, _LEAVE = 0, 1
# On a busy node ranks come to the same fault seconds apart.
_GRACE_S = 5.0
_CONSENSUS_S = 20.0  # no less: who takes longer for the same fault ends the job


@functools.cache
def communicator() -> "MPI.Intracomm | None":
    """Return MPI's world, or None where no launcher started this process.

    Raises
    ------
    InputError
        A launcher started several ranks that MPI does not know of: each would do all the work.
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

    # Open MPI starts a world of one where its daemon has gone, MPICH under Open MPI's mpirun, any
    # MPI where srun offers another PMI than its own. Under mpirun, a step's tasks are its daemons.
    sizes = [os.environ.get(name, "1") for name in ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE")]
    by_srun = "PMIX_RANK" in os.environ and "OMPI_COMM_WORLD_SIZE" not in os.environ
    started = max(*map(int, sizes), tasks if by_srun else 1)
    if MPI.COMM_WORLD.Get_size() == 1 < started:
        raise InputError(
            f"{started} ranks were launched, but MPI sees only this one: mpirun was killed, or it "
            "(or srun --mpi) belongs to a different MPI than mpi4py's"
        )
    return MPI.COMM_WORLD


def launched_rank() -> int:
    """Return this task's rank as the launcher says, before MPI is started."""
    for name in (  # SLURM_PROCID lies under mpirun
        "OMPI_COMM_WORLD_RANK",
        "PMIX_RANK",
        "PMI_RANK",
        "HOROVOD_RANK",  # horovodrun with Gloo, of which MPI knows nothing
    ):
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
    """Wait for all ranks, not in a busy loop: one may be at work for minutes."""
    if world := communicator():
        _wait_for_all(world)


def _wait_for_all(ranks: "MPI.Comm") -> None:
    everybody = ranks.Ibarrier()
    while not everybody.Test():
        time.sleep(_POLL_S)


def broadcast(value: T) -> T:
    """Return rank 0's value on all ranks."""
    world = communicator()
    return world.bcast(value) if world else value


def from_rank_0(make: Callable[[], T]) -> T:
    """Return on all ranks what rank 0 makes; the others do not call `make`."""
    world = communicator()
    if world is None:
        return make()
    value: T = world.bcast(make() if world.Get_rank() == 0 else None)
    return value


def gather(value: T) -> list[T]:
    """Return every rank's value in rank order on rank 0, an empty list elsewhere."""
    world = communicator()
    return (world.gather(value) or []) if world else [value]


def gather_dict(part: dict[K, T]) -> dict[K, T]:
    """Return the entries of all ranks on rank 0, an empty dict elsewhere; no two share a key."""
    return {key: value for one in gather(part) for key, value in one.items()}


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


def unshared_ranks() -> int:
    """Return how many ranks of this node share no memory, each with its own of what others share.

    It is 1 where MPI knows of them. horovodrun with Gloo, as in elastic trainings, starts each as
    an MPI world of its own, and says how many there are on the node.
    """
    return int(os.environ.get("HOROVOD_LOCAL_SIZE", "1")) if size() == 1 else 1


def cpu_count() -> int:
    """Return the CPUs that this process may use."""
    return len(os.sched_getaffinity(0))


def cpus_per_rank(ranks: int) -> int:
    """Return the CPUs that are this rank's own: those of its mask over the ranks that share it.

    srun and mpirun give each rank a mask of its own, or none at all; where SLURM does not bind,
    ``--cpus-per-task`` says how many it meant. Collective over the node.

    Parameters
    ----------
    ranks : int
        Ranks on this node, for a launcher that MPI does not know of: they share the CPUs.
    """
    mine = os.sched_getaffinity(0)
    node = _node()
    masks = node.allgather(mine) if node else [mine] * ranks
    share = max(1, len(mine) // sum(1 for mask in masks if mask & mine))
    return min(share, int(os.environ.get("SLURM_CPUS_PER_TASK", share)))


def own_device(visible: Sequence[T], local_rank: int) -> T:
    """Return a rank's device of those that it sees: all of the node's, or only its own.

    Examples
    --------
    >>> own_device(["0", "1"], local_rank=1), own_device(["0"], local_rank=1)
    ('1', '0')
    """
    return visible[local_rank % len(visible)]


def node_barrier() -> None:
    """Wait for the ranks of this node, not in a busy loop: one may be at work for minutes."""
    if node := _node():
        _wait_for_all(node)


def node_broadcast(value: T) -> T:
    """Return, on all ranks of a node, the value of its local rank 0, which may take its time."""
    node_barrier()
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
        try:
            path = _allocate_shared(max(nbytes, 1))
        except OSError as error:
            fault = (
                f"{SHARED_MEMORY}: no room for {nbytes / 1e9:.2f} GB ({error.strerror}); ask for "
                "more memory, or lower data.memory_gb if it is above 0"
            )
    path, fault = node_broadcast((path, fault))
    _agree_on_room(fault)
    array: NDArray[Any] = np.memmap(path, dtype, "r+", shape=shape)
    node_barrier()
    if node.Get_rank() == 0:
        Path(path).unlink()
    return array


def _allocate_shared(nbytes: int) -> str:
    """Return the path of a new file in shared memory that has its room."""
    descriptor, path = tempfile.mkstemp(prefix="galmerhpc-", dir=SHARED_MEMORY)
    try:
        os.posix_fallocate(descriptor, 0, nbytes)
    except OSError:
        Path(path).unlink()
        raise
    finally:
        os.close(descriptor)
    return path


def _agree_on_room(fault: str) -> None:
    if not agree(not fault):
        raise GalmerhpcError(
            fault
            or "another node has too little shared memory; ask for more memory, or lower "
            "data.memory_gb if it is above 0"
        )


class Coordinator(Generic[Q, A]):
    """A function on rank 0 that answers the questions of all ranks, one at a time.

    A collective context: every rank enters it and leaves it. A thread of rank 0 answers the others
    while rank 0 does its own part. No rank waits in a busy loop.

    Parameters
    ----------
    answer : callable
        Called on rank 0 alone, never twice at once. What it raises, rank 0 raises.

    Examples
    --------
    >>> with Coordinator(lambda question: 2 * question) as coordinator:
    ...     coordinator.ask(21)
    42
    """

    def __init__(self, answer: Callable[[Q], A]) -> None:
        self._answer, self._lock = answer, threading.Lock()
        self._fault: Exception | None = None

    def __enter__(self) -> "Coordinator[Q, A]":
        """Begin to answer."""
        world = communicator()
        # Messages of its own cannot meet anybody else's.
        self._messages = world.Dup() if world and world.Get_size() > 1 else None
        self._here = self._messages is None or self._messages.Get_rank() == 0
        self._thread = threading.Thread(target=self._serve, daemon=True)
        if self._messages and self._here:
            self._thread.start()
        return self

    def ask(self, question: Q) -> A:
        """Return the answer to a question; one thread of a rank may ask."""
        if self._messages is None or self._here:
            return self._say(question)
        self._messages.send(question, dest=0, tag=_ASK)
        while not self._messages.iprobe(source=0):
            time.sleep(_POLL_S)
        return self._messages.recv(source=0)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Leave it, when all ranks do; after an error at once."""
        if self._messages is None or kind is not None:
            return
        if self._here:
            self._thread.join()
            if self._fault:
                raise self._fault
        else:
            self._messages.send(None, dest=0, tag=_LEAVE)
        _wait_for_all(self._messages)
        self._messages.Free()

    def _say(self, question: Q) -> A:
        with self._lock:
            if self._fault:
                raise self._fault
            return self._answer(question)

    def _serve(self) -> None:
        """Answer the other ranks until all have left."""
        from mpi4py import MPI

        messages, status = self._messages, MPI.Status()
        assert messages is not None
        there = messages.Get_size() - 1
        while there:
            # A blocking receive would spin on the core that rank 0 works on.
            if not messages.iprobe(source=MPI.ANY_SOURCE, tag=MPI.ANY_TAG, status=status):
                time.sleep(_POLL_S)
                continue
            question = messages.recv(source=status.Get_source(), tag=status.Get_tag())
            if status.Get_tag() == _LEAVE:
                there -= 1
                continue
            try:
                answer = self._say(question)
            except Exception as error:  # noqa: BLE001 - raised again by rank 0's own thread
                self._fault = error
                return
            messages.send(answer, dest=status.Get_source())


def progress_bar(**options: Any) -> "tqdm[None]":
    """Return a progress bar that only rank 0 shows, and only on a terminal; options are tqdm's."""
    return tqdm(disable=None if rank() == 0 else True, **options)


def work(items: Sequence[T], told: Callable[[T], object] | None = None) -> Iterator[T]:
    """Yield items of a list that all ranks hold, each to exactly one rank: whoever is free next.

    Collective: every rank must run it to its end. Rank 0 works too, and no rank waits for another
    one's item.

    Parameters
    ----------
    items : sequence
        The same on every rank.
    told : callable, optional
        Called on rank 0 with every item that is handed out, to whatever rank: for a progress bar.
    """
    left = iter(range(len(items)))

    def take(_: None) -> int:
        index = next(left, len(items))
        if told and index < len(items):
            told(items[index])
        return index

    with Coordinator(take) as coordinator:
        while (index := coordinator.ask(None)) < len(items):
            yield items[index]


class Consensus:
    """Where ranks find out whether all of them have given up the same work and may continue.

    Collective, and made before the work: the messages of what was given up cannot meet its own.
    """

    def __init__(self) -> None:
        world = communicator()
        self._messages = world.Dup() if world else None

    def is_unanimous(self, fault: str) -> bool:
        """Return whether every rank arrives here soon, with the same fault.

        If not, the others may be waiting in the midst of the work for this one: the job must end.
        """
        if self._messages is None:
            return True
        everybody, end = self._messages.Ibarrier(), time.monotonic() + _CONSENSUS_S
        while not everybody.Test():
            if time.monotonic() > end:
                return False
            time.sleep(_POLL_S)
        return len(set(self._messages.allgather(fault))) == 1


def fail(message: str, exit_code: int) -> NoReturn:
    """Print one message for the job and end all its ranks.

    What is wrong for one rank is mostly wrong for all: the others give rank 0 a moment to say it
    first, and are ended by that.
    """
    if launched_rank() > 0:
        time.sleep(_GRACE_S)
        message = f"rank {launched_rank()}: {message}"
    end_job(message, exit_code)


def end_job(message: str, exit_code: int) -> NoReturn:
    """Print a message and end every rank at once."""
    print(message, file=sys.stderr, flush=True)
    if "mpi4py.MPI" in sys.modules:
        from mpi4py import MPI

        if MPI.Is_initialized() and not MPI.Is_finalized() and MPI.COMM_WORLD.Get_size() > 1:
            MPI.COMM_WORLD.Abort(exit_code)
    sys.exit(exit_code)
