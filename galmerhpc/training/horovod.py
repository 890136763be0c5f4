"""The only module that uses Horovod. Without a launcher, a process is one rank without Horovod.

Keras 3 with ``hvd.DistributedOptimizer`` ends with different weights on the ranks and exit code 0,
so gradients are summed explicitly here. Keras variables are passed as their ``.value``, the
``tf.Variable`` behind them, which is what Horovod's broadcast understands.
"""

import os
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from galmerhpc import parallel
from galmerhpc.errors import InputError

T = TypeVar("T")

# Set by horovodrun, also if it uses Gloo instead of MPI.
_HOROVODRUN_VARIABLES = ("HOROVOD_SIZE", "HOROVOD_ELASTIC")

_hvd: Any = None


def init(stall_limit_s: float) -> None:
    """Start Horovod if a launcher started several ranks.

    Parameters
    ----------
    stall_limit_s : float
        Seconds after which a rank that does not answer ends the job (`watchdog`); after half of
        them Horovod names it and the pending operation.

    Raises
    ------
    InputError
        There are several ranks but no Horovod for this TensorFlow.
    """
    global _hvd
    launched = any(name in os.environ for name in _HOROVODRUN_VARIABLES)
    if _hvd is not None or (parallel.size() == 1 and not launched):
        return
    try:
        import horovod.tensorflow as hvd
    except ImportError as error:
        raise InputError(
            f"{parallel.size()} ranks need Horovod, which cannot be imported ({error}); "
            "run scripts/install_horovod.sh, then galmerhpc doctor"
        ) from None
    os.environ.setdefault("HOROVOD_STALL_CHECK_TIME_SECONDS", str(max(1, int(stall_limit_s / 2))))
    hvd.init()
    _hvd = hvd


def rank() -> int:
    """Return this rank's number."""
    return int(_hvd.rank()) if _hvd else 0


def size() -> int:
    """Return the number of ranks."""
    return int(_hvd.size()) if _hvd else 1


def local_rank() -> int:
    """Return this rank's number on its node."""
    return int(_hvd.local_rank()) if _hvd else 0


def local_size() -> int:
    """Return the number of ranks on this node."""
    return int(_hvd.local_size()) if _hvd else 1


def has_nccl() -> bool:
    """Return whether Horovod sums what is on GPUs with NCCL; False if there is no Horovod."""
    return bool(_hvd and _hvd.nccl_built())


def sum_tensors(tensors: Sequence[Any], compression: str = "none") -> list[Any]:
    """Return the sums over ranks of tensors, in one fused all-reduce; usable in a graph.

    Parameters
    ----------
    tensors : sequence of Tensor
        Of the same shapes on all ranks.
    compression : str
        ``fp16`` sends and adds them as float16.
    """
    if not _hvd:
        return list(tensors)
    return list(
        _hvd.grouped_allreduce(
            list(tensors), op=_hvd.Sum, compression=getattr(_hvd.Compression, compression)
        )
    )


def sum_tensor(tensor: Any) -> Any:
    """Return the sum over ranks of a tensor; usable in a graph, and has a gradient."""
    return _hvd.allreduce(tensor, op=_hvd.Sum) if _hvd else tensor


def sum_array(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the element-wise sum of an array over ranks."""
    return np.asarray(_hvd.allreduce(values, op=_hvd.Sum)) if _hvd else values


def broadcast(variables: Sequence[Any]) -> None:
    """Give every rank the values of rank 0's Keras variables."""
    if _hvd:
        _hvd.broadcast_variables([v.value for v in variables], root_rank=0)


def broadcast_object(value: T) -> T:
    """Return rank 0's value on all ranks."""
    return _hvd.broadcast_object(value, root_rank=0) if _hvd else value


def gather_objects(value: T) -> list[T]:
    """Return every rank's value, in rank order, on all ranks."""
    return list(_hvd.allgather_object(value)) if _hvd else [value]


def elastic_state(variables: Sequence[Any], **values: Any) -> Any:
    """Return the state that an elastic run commits and restores: Keras variables, named values.

    Horovod's own ``TensorFlowState`` broadcasts variables once, on creation; this one broadcasts
    rank 0's whenever ranks have changed.

    Raises
    ------
    InputError
        This process was not started by an elastic horovodrun.
    """
    if "HOROVOD_ELASTIC" not in os.environ or _hvd is None:
        raise InputError(
            "--elastic: start it with horovodrun --min-np 1 --host-discovery-script SCRIPT ..."
        )
    from horovod.common.elastic import ObjectState

    class State(ObjectState):
        def save(self) -> None:
            self.committed = [v.numpy() for v in variables]
            super().save()

        def restore(self) -> None:
            for variable, value in zip(variables, self.committed, strict=True):
                variable.assign(value)
            super().restore()

        def sync(self) -> None:
            broadcast(variables)
            super().sync()
            self.save()

    state = State(_hvd.broadcast_object, _hvd.rank, **values)
    state.save()
    return state


def run_elastic(state: Any, work: Callable[[Any], None]) -> None:
    """Call `work` with a state, again from its last commit whenever ranks are lost or join."""
    import tensorflow as tf
    from horovod.common.exceptions import HorovodInternalError

    @_hvd.elastic.run
    def attempt(state: Any) -> None:
        try:
            work(state)
        except tf.errors.UnknownError as error:
            # Horovod's wrapper does not know grouped all-reduce, and drops errors unknown to it.
            if "Horovod" in error.message:
                raise HorovodInternalError(error.message) from None
            raise RuntimeError(error.message) from error

    attempt(state)


def barrier() -> None:
    """Wait for all ranks."""
    sum_array(np.zeros(1))  # horovod.tensorflow has no barrier of its own
