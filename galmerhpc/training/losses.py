"""What training makes small: the loss of each sample, in units of its targets' scale."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import tensorflow as tf

Losses = Callable[[Any, Any], Any]


def target_scale(
    labels: NDArray[np.float32], standardise: bool
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return mean and scale of the targets, each of shape (P,).

    Parameters
    ----------
    labels : ndarray, shape (N, P), float32
        Training labels.
    standardise : bool
        If not, the mean is 0 and the scale 1: raw degrees, as in the paper.
    """
    if not standardise:
        return np.zeros(labels.shape[1], np.float32), np.ones(labels.shape[1], np.float32)
    mean, scale = labels.mean(axis=0, dtype=np.float64), labels.std(axis=0, dtype=np.float64)
    return mean.astype(np.float32), np.where(scale > 0, scale, 1.0).astype(np.float32)


def make_losses(name: str, scale: NDArray[np.float32]) -> Losses:
    """Return the function from labels and predictions (B, P) to each sample's loss (B,).

    Errors count in units of `scale`, shape (P,).
    """
    import tensorflow as tf

    error = {"mae": tf.abs, "mse": tf.square, "huber": huber}[name]
    return lambda labels, predicted: tf.reduce_mean(error((predicted - labels) / scale), axis=1)


def huber(error: "tf.Tensor") -> "tf.Tensor":
    """Return the Huber loss with its bend at 1."""
    import tensorflow as tf

    size = tf.abs(error)
    return tf.where(size <= 1.0, 0.5 * tf.square(error), size - 0.5)
