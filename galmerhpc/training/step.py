"""One step of training: gradients of this rank's share, their sum over ranks, the update.

The gradient of a step is that of the loss over the GLOBAL batch: each rank divides its sum of
losses by the global batch size, and gradients are summed over ranks, so that uneven shares
(25 images on 2 ranks: 13 + 12) have the right weights.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from galmerhpc.config import Training
from galmerhpc.dataset.batches import Batch, pieces
from galmerhpc.models import sky
from galmerhpc.models.targets import Targets
from galmerhpc.training import horovod
from galmerhpc.training.loss_scale import LossScale
from galmerhpc.training.losses import Losses

if TYPE_CHECKING:
    import keras
    import tensorflow as tf


@dataclass(frozen=True)
class Outcome:
    """Result of a step; `predicted` and `finite_here` are this rank's, the others all ranks'.

    Attributes
    ----------
    loss : float
        Mean over the global batch.
    stop : bool
        Whether a rank was asked to stop.
    failed : bool
        Whether loss or gradients were not finite, and a smaller loss scale cannot help.
    finite_here : bool
        Whether this rank's own loss and gradients were finite.
    predicted : ndarray, shape (n, ...)
        Predictions for this rank's images, from the same forward pass.
    """

    loss: float
    stop: bool
    failed: bool
    finite_here: bool
    predicted: NDArray[np.float32]


class Step:
    """The compiled step of one rank.

    Parameters
    ----------
    model : keras.Model
        From `models.build`.
    optimizer : keras.optimizers.Optimizer
        Built for the model's trainable variables.
    loss_scale : LossScale
        Factor on the loss.
    losses : callable
        From `make_losses`.
    targets : Targets
        What the last layer learns.
    augment : callable
        From `sky.make_augment`.
    training : Training
        `micro_batch`, `compression`, `sync_batchnorm`, `xla` and `seed` are used.
    """

    def __init__(
        self,
        model: "keras.Model",
        optimizer: "keras.optimizers.Optimizer",
        loss_scale: LossScale,
        losses: Losses,
        targets: Targets,
        augment: sky.Augment,
        training: Training,
    ) -> None:
        self._model, self._targets, self._training = model, targets, training
        self._gradients = {
            frozen: make_gradients(model, loss_scale, losses, augment, training, frozen)
            for frozen in (False, True)
        }
        self._update = make_update(model, optimizer, loss_scale, training.compression)

    def __call__(
        self, batch: Batch, epoch: int, step: int, stop: bool, frozen: bool = False
    ) -> Outcome:
        """Do the step of a batch.

        Parameters
        ----------
        batch : Batch
            This rank's share; may be empty.
        epoch, step : int
            The epoch, for the augmentation, and the step since the start, for dropout; from 0.
        stop : bool
            Whether this rank was asked to stop.
        frozen : bool
            Whether batch normalisation keeps its statistics.
        """
        import tensorflow as tf

        total: list[Any] = []
        share: Any = 0.0
        finite: Any = True
        predicted = []
        for k, piece in enumerate(pieces(batch, horovod.size(), self._training.micro_batch)):
            count = piece.stop - piece.start
            if not count and not self._training.sync_batchnorm:
                continue
            images, labels, rows = batch.images[piece], batch.labels[piece], batch.rows[piece]
            if not count:  # weight 0, but the other ranks wait for its statistics
                images = np.zeros((1, *images.shape[1:]), np.uint8)
                labels, rows = np.zeros((1, labels.shape[1]), np.float32), np.zeros(1, np.int64)
            encoded = self._targets.encode(labels) if count else self._no_targets()
            gradients, part, all_finite, answers = self._gradients[frozen](
                images, encoded, rows, np.int64(epoch), np.float32(count > 0),
                np.float32(batch.global_size), self._dropout_key(step, k),
            )  # fmt: skip
            total = [a + b for a, b in zip(total, gradients, strict=True)] if total else gradients
            share, finite = share + part, finite & all_finite
            predicted.append(answers[:count])
        if not total:
            total = [np.zeros(v.shape, v.dtype) for v in self._model.trainable_variables]
        # Tensors to the end: the all-reduce starts before anything waits for a number.
        numbers = tf.stack([share, float(stop), 1.0 - tf.cast(finite, tf.float32)])
        loss, stops, failed = np.asarray(self._update(total, numbers))
        return Outcome(
            float(loss), bool(stops > 0), bool(failed > 0), bool(finite),
            np.concatenate(predicted) if predicted else np.zeros((0, 0), np.float32),
        )  # fmt: skip

    def _no_targets(self) -> NDArray[np.float32]:
        return np.zeros((1, self._targets.width), np.float32)

    def _dropout_key(self, step: int, piece: int) -> NDArray[np.uint32]:
        """Return the seed of dropout, unique to a piece of a training."""
        entropy = [self._training.seed, step, horovod.rank(), piece]
        return np.random.SeedSequence(entropy).generate_state(2).astype(np.uint32)


def make_gradients(
    model: "keras.Model",
    loss_scale: LossScale,
    losses: Losses,
    augment: sky.Augment,
    training: Training,
    frozen: bool,
) -> Any:
    """Return the compiled function from images to their part of the gradient.

    It takes images (n, H, W, C) uint8, targets (n, R) float32, the images' rows in the data set
    (n,) int64, the epoch, a weight (1, or 0 for placeholders of an empty share), the global batch
    size and dropout's key (2,) uint32; it returns gradients times the loss scale, the part of the
    mean loss, whether all of these are finite, and the predictions. If `frozen`, batch
    normalisation keeps its statistics.
    """
    import tensorflow as tf

    variables = [v.value for v in model.trainable_variables]
    raw, _ = model.outputs
    generators = [getattr(layer, "seed_generator", None) for layer in model.layers]
    seeds = [generator.state for generator in generators if generator]
    compile_it = training.xla and bool(tf.config.list_physical_devices("GPU"))

    def forward(images: "tf.Tensor", weight: "tf.Tensor") -> Any:
        if frozen:
            with frozen_batchnorm(model):
                return model(images, training=True)
        if not training.sync_batchnorm:
            return model(images, training=True)
        from galmerhpc.training.sync_batchnorm import counting

        with counting(weight):
            return model(images, training=True)

    # Without autograph, which has nothing to rewrite here: half the tracing time.
    @tf.function(
        autograph=False,
        jit_compile=compile_it or None,
        input_signature=[
            tf.TensorSpec((None, *model.input_shape[1:]), tf.uint8),
            tf.TensorSpec((None, raw.shape[1]), tf.float32),
            tf.TensorSpec((None,), tf.int64),
            tf.TensorSpec((), tf.int64),
            tf.TensorSpec((), tf.float32),
            tf.TensorSpec((), tf.float32),
            tf.TensorSpec((2,), tf.uint32),
        ],
    )
    def gradients(
        images: "tf.Tensor",
        targets: "tf.Tensor",
        rows: "tf.Tensor",
        epoch: "tf.Tensor",
        weight: "tf.Tensor",
        global_size: "tf.Tensor",
        dropout_key: "tf.Tensor",
    ) -> tuple[list[Any], Any, Any, Any]:
        for seed in seeds:
            seed.assign(tf.cast(dropout_key, seed.dtype))
        images = augment(images, epoch, rows)
        with tf.GradientTape() as tape:
            raw, predicted = forward(images, weight)  # (n, R), and labels or probabilities
            each = losses(tf.cast(targets, raw.dtype), raw)  # (n,)
            share = tf.reduce_sum(each) * tf.cast(weight / global_size, each.dtype)
            scaled = share * tf.cast(loss_scale.factor, share.dtype)
        result = tape.gradient(scaled, variables)
        # The norm is finite only if every number is, and costs one pass over them.
        finite = tf.math.is_finite(share) & tf.math.is_finite(tf.linalg.global_norm(result))
        return result, tf.cast(share, tf.float32), finite, predicted

    return gradients


@contextlib.contextmanager
def frozen_batchnorm(model: "keras.Model") -> Iterator[None]:
    """Let batch normalisation, while a step is traced, use its statistics and keep them.

    A layer that is not trainable does so (Keras, "About setting layer.trainable = False on a
    BatchNormalization layer"); its scale and shift still learn, since the step has them.
    """
    import keras

    layers = [x for x in model.layers if isinstance(x, keras.layers.BatchNormalization)]
    before = {layer: layer.trainable for layer in layers}
    for layer in before:
        layer.trainable = False
    try:
        yield
    finally:
        for layer, trainable in before.items():
            layer.trainable = trainable


def make_update(
    model: "keras.Model",
    optimizer: "keras.optimizers.Optimizer",
    loss_scale: LossScale,
    compression: str,
) -> Any:
    """Return the compiled update: the ranks' gradients are summed and the optimiser applies them.

    It takes this rank's gradients times the loss scale and three numbers: its part of the loss,
    whether it was asked to stop, whether any of its numbers is not finite. It returns the loss, the
    number of ranks asked to stop, and 1 if a number is not finite that the loss scale does not
    explain.
    """
    import tensorflow as tf

    weights = model.trainable_variables

    def apply(gradients: list[Any]) -> None:
        optimizer.apply(gradients, weights)

    def apply_scaled(gradients: list[Any], not_finite: Any) -> Any:
        finite = (not_finite == 0) & tf.math.is_finite(tf.linalg.global_norm(gradients))
        hopeless = ~finite & (loss_scale.factor <= 1.0)

        def apply_finite() -> Any:
            apply([g / tf.cast(loss_scale.factor, g.dtype) for g in gradients])
            return tf.constant(True)

        tf.cond(finite, apply_finite, lambda: tf.constant(False))
        loss_scale.update(finite)
        return tf.cast(hopeless, tf.float32)

    @tf.function(autograph=False)
    def update(gradients: list[Any], numbers: "tf.Tensor") -> Any:
        if compression == "none":
            # Loss and flags travel with the gradients: no message of their own.
            numbers = tf.cast(numbers, gradients[0].dtype)
            *gradients, numbers = horovod.sum_tensors([*gradients, numbers])
            numbers = tf.cast(numbers, tf.float32)
        else:
            numbers = horovod.sum_tensor(numbers)
            gradients = horovod.sum_tensors(gradients, compression)
        if loss_scale.used:
            failed = apply_scaled(gradients, numbers[2])
            failed = tf.maximum(failed, tf.cast(~tf.math.is_finite(numbers[0]), tf.float32))
        else:
            apply(gradients)
            failed = numbers[2]
        return tf.stack([numbers[0], numbers[1], failed])

    return update


def make_predict(model: "keras.Model") -> Any:
    """Return the compiled prediction: images (B, H, W, C) uint8 to `build`'s two outputs."""
    import tensorflow as tf

    @tf.function(
        autograph=False, input_signature=[tf.TensorSpec((None, *model.input_shape[1:]), tf.uint8)]
    )
    def predict(images: "tf.Tensor") -> tuple[Any, Any]:
        raw, predicted = model(images, training=False)
        return raw, predicted

    return predict
