"""Batch normalisation over the images of all ranks.

Keras's own ``synchronized=True`` works only with tf.distribute. These layers replace Keras's in
training and hold the same weights in the same order, so that the exported model has plain ones.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import keras
import tensorflow as tf

from galmerhpc.training import horovod

# During tracing: 1 if this rank's images count, 0 if they are placeholders for an empty share.
_counting: list[Any] = []


class SyncBatchNormalization(keras.layers.BatchNormalization):
    """Batch normalisation whose mean and variance in training are those of the global batch."""

    def _moments(self, inputs: Any, mask: Any) -> tuple[Any, Any]:  # noqa: ARG002 - no masks here
        counts = tf.cast(_counting[-1], inputs.dtype) if _counting else 1
        axes = self._reduction_axes
        # Relative to about the mean: the difference of squares would lose digits otherwise. The
        # moving mean is the same on all ranks.
        origin = tf.stop_gradient(tf.cast(self.moving_mean.value, inputs.dtype))
        shifted = inputs - origin
        pixels = tf.cast(tf.size(inputs) // inputs.shape[-1], inputs.dtype)
        totals = horovod.sum_tensor(
            counts
            * tf.concat(
                [
                    tf.reduce_sum(shifted, axes),
                    tf.reduce_sum(tf.square(shifted), axes),
                    pixels[None],
                ],
                axis=0,
            )
        )
        first, second, count = tf.split(totals, [inputs.shape[-1], inputs.shape[-1], 1])
        mean = first / count
        return origin + mean, tf.maximum(second / count - tf.square(mean), 0)


@contextlib.contextmanager
def counting(weight: "tf.Tensor") -> Iterator[None]:
    """Set, while a step is traced, whether this rank's images count: a scalar 1 or 0."""
    _counting.append(weight)
    try:
        yield
    finally:
        _counting.pop()


def synchronised(model: "keras.Model") -> "keras.Model":
    """Return a copy of an untrained model whose batch normalisation is synchronised."""

    def copy(layer: "keras.Layer") -> "keras.Layer":
        config = layer.get_config()
        if isinstance(layer, keras.layers.BatchNormalization):
            return SyncBatchNormalization.from_config(config)
        return type(layer).from_config(config)

    return keras.models.clone_model(model, clone_function=copy)
