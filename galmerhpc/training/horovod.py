"""The one door to Horovod. A process without a launcher behaves as one rank without Horovod.

Keras 3 with ``hvd.DistributedOptimizer`` ends with different weights on the ranks and exit code 0,
so gradients are summed here explicitly. Keras variables are passed as their ``.value``, the
``tf.Variable`` behind them, which is what Horovod's broadcast understands.
"""

import os
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from galmerhpc import parallel
from galmerhpc.errors import InputError

T = TypeVar("T")

# Set by horovodrun, also where it uses Gloo instead of MPI.
_HOROVODRUN_VARIABLE = "HOROVOD_SIZE"

_hvd: Any = None


def init(stall_limit_s: float) -> None:
    """Start Horovod where a launcher started several ranks.

    Parameters
    ----------
    stall_limit_s : float
        Seconds after which a rank that does not answer ends the job (`watchdog`); Horovod names it
        and what is waited for at half of them.

    Raises
    ------
    InputError
        There are several ranks but no Horovod for this TensorFlow.
    """
    global _hvd
    if _hvd is not None or (parallel.size() == 1 and _HOROVODRUN_VARIABLE not in os.environ):
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


def sum_tensors(tensors: Sequence[Any]) -> list[Any]:
    """Return the sums over ranks of tensors, in one fused all-reduce; usable in a graph."""
    return list(_hvd.grouped_allreduce(list(tensors), op=_hvd.Sum)) if _hvd else list(tensors)


def sum_array(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the element-wise sum of an array over ranks."""
    return np.asarray(_hvd.allreduce(values, op=_hvd.Sum)) if _hvd else values


def broadcast(variables: Sequence[Any]) -> None:
    """Give every rank the values that rank 0's Keras variables have."""
    if _hvd:
        _hvd.broadcast_variables([v.value for v in variables], root_rank=0)


def broadcast_object(value: T) -> T:
    """Return rank 0's value on all ranks."""
    return _hvd.broadcast_object(value, root_rank=0) if _hvd else value


def gather_objects(value: T) -> list[T]:
    """Return every rank's value, in rank order, on all ranks."""
    return list(_hvd.allgather_object(value)) if _hvd else [value]


def barrier() -> None:
    """Wait for all ranks."""
    sum_array(np.zeros(1))  # horovod.tensorflow has no barrier of its own
