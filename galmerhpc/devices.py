"""The GPU of a rank: chosen once per process, before TensorFlow starts."""

import os

from galmerhpc import parallel
from galmerhpc.errors import InputError

_NONE = ("", "-1", "NoDevFiles")
"""First entries of CUDA_VISIBLE_DEVICES that mean no GPU; the last one is SLURM's."""


def take_gpu(local_rank: int) -> bool:
    """Let this process use one GPU of its node, and only the GPU memory that it needs.

    A process may train, evaluate and train again (a study). TensorFlow's devices cannot change once
    it runs, so the first call decides for all.

    Parameters
    ----------
    local_rank : int
        This rank's number on its node.

    Returns
    -------
    bool
        Whether there is a GPU; otherwise TensorFlow uses CPUs.
    """
    import tensorflow as tf

    gpus = tf.config.list_physical_devices("GPU")
    if gpus and tf.config.get_visible_devices("GPU") == gpus:  # none has been chosen
        mine = parallel.own_device(gpus, local_rank)
        tf.config.set_visible_devices(mine, "GPU")
        tf.config.experimental.set_memory_growth(mine, True)
    return bool(gpus)


def refuse_misfit(local_size: int) -> None:
    """Refuse a training whose node has GPUs that TensorFlow does not see, or fewer than ranks.

    A single visible GPU is each rank's own if SLURM was asked for GPUs per task, and always fits.

    Parameters
    ----------
    local_size : int
        Ranks on this node.

    Raises
    ------
    InputError
        The training would run on CPUs, or ranks would share a GPU.
    """
    import tensorflow as tf

    gpus = len(tf.config.list_physical_devices("GPU"))
    given = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    if not gpus and given.partition(",")[0] not in _NONE:
        raise InputError(
            f"CUDA_VISIBLE_DEVICES is {given}, but TensorFlow sees no GPU: galmerhpc doctor says "
            "what is missing; unset the variable to train on CPUs"
        )
    if 1 < gpus < local_size:
        raise InputError(
            f"{local_size} ranks on a node where TensorFlow sees {gpus} GPUs: start one per GPU"
        )
