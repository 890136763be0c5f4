"""Batch normalisation's statistics for evaluation, re-estimated on training batches.

The moving statistics of a short training, or of weights averaged over many steps, lag behind the
evaluated weights; the validation of a short run is then meaningless.
"""

import itertools
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from galmerhpc.dataset.batches import Batch, pieces
from galmerhpc.models import sky
from galmerhpc.training import horovod

if TYPE_CHECKING:
    import keras


class StatisticsEstimator:
    """Estimates the statistics of one model.

    Parameters
    ----------
    model : keras.Model
        The model to evaluate. Its moving statistics are replaced by `estimate`.
    augment : callable
        The training's augmentation: the weights were learnt with it, and do not fit the statistics
        of unchanged images.
    micro_batch : int, optional
        Images per pass through the model, in training as here.
    """

    def __init__(self, model: "keras.Model", augment: sky.Augment, micro_batch: int | None) -> None:
        import keras
        import tensorflow as tf

        self._micro_batch = micro_batch
        self._layers = [x for x in model.layers if isinstance(x, keras.layers.BatchNormalization)]
        self._variables = [v for x in self._layers for v in (x.moving_mean, x.moving_variance)]
        momenta = [layer.momentum for layer in self._layers]

        @tf.function(
            autograph=False,
            input_signature=[
                tf.TensorSpec((None, *model.input_shape[1:]), tf.uint8),
                tf.TensorSpec((), tf.int64),
                tf.TensorSpec((None,), tf.int64),
            ],
        )
        def observe(images: "tf.Tensor", epoch: "tf.Tensor", rows: "tf.Tensor") -> None:
            # With momentum 0 the moving statistics become those of these images. The momentum is
            # read during tracing, so it is restored for all other uses.
            for layer in self._layers:
                layer.momentum = 0.0
            model(augment(images, epoch, rows), training=True)
            for layer, momentum in zip(self._layers, momenta, strict=True):
                layer.momentum = momentum

        self._observe = observe

    def estimate(self, batches: Iterable[Batch], epoch: int, count: int) -> None:
        """Set the moving statistics to the mean of those of training passes.

        A pass is a rank's share of a batch, or a piece of it (`micro_batch`).

        Parameters
        ----------
        batches : iterable of Batch
            This rank's share of training batches; the first has an image for every rank.
        epoch : int
            Epoch of the batches, for the augmentation.
        count : int
            Batches to use.
        """
        if not self._variables:  # a network without batch normalisation
            return
        totals = [np.zeros(v.shape, np.float64) for v in self._variables]
        seen = 0
        for batch in itertools.islice(batches, count):
            ranks = horovod.size()
            # No more pieces than the smallest share has images: none of them is empty on any rank.
            for piece in pieces(batch, ranks, self._micro_batch)[: batch.global_size // ranks]:
                self._observe(batch.images[piece], np.int64(epoch), batch.rows[piece])
                seen += 1
                for total, variable in zip(totals, self._variables, strict=True):
                    total += variable.numpy()
        flat = horovod.sum_array(np.concatenate([[seen], *totals]))
        means = np.split(flat[1:] / flat[0], np.cumsum([len(t) for t in totals])[:-1])
        for variable, mean in zip(self._variables, means, strict=True):
            variable.assign(mean)
