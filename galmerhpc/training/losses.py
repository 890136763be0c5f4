"""The loss of each sample, from the network's last layer."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from galmerhpc.config import Training
from galmerhpc.models.targets import Target, Targets

if TYPE_CHECKING:
    import tensorflow as tf

Losses = Callable[[Any, Any], Any]


def make_losses(training: Training, targets: Targets) -> Losses:
    """Return the function from targets and last-layer outputs (B, R) to each sample's loss (B,).

    It is the mean of the losses' terms, weighted by their parameters' weights. A parameter has one
    term, or with binary cross-entropy one per class: with all weights 1 that is the mean over the
    paper's 60 outputs. Errors are in units of the targets (`models.targets`).

    Parameters
    ----------
    training : Training
        `loss` and `loss_weights` are used.
    targets : Targets
        What the R outputs are.
    """
    import tensorflow as tf

    def losses(true: "tf.Tensor", raw: "tf.Tensor") -> "tf.Tensor":
        total, weights = 0.0, 0.0
        for target, columns in targets.columns():
            weight = training.loss_weights.get(target.name, 1.0)
            terms = _terms(training.loss, target, true[:, columns], raw[:, columns])  # (B, T)
            total += weight * tf.reduce_sum(terms, axis=1)
            weights += weight * terms.shape[1]
        return total / weights

    return losses


def huber(error: "tf.Tensor") -> "tf.Tensor":
    """Return the Huber loss with its bend at 1."""
    import tensorflow as tf

    size = tf.abs(error)
    return tf.where(size <= 1.0, 0.5 * tf.square(error), size - 0.5)


def _terms(loss: str, target: Target, true: "tf.Tensor", raw: "tf.Tensor") -> "tf.Tensor":
    """Return the terms (B, T) of one parameter from its targets and outputs (B, width)."""
    import tensorflow as tf

    if target.kind in ("probability", "sigmoid_classes"):
        return tf.nn.sigmoid_cross_entropy_with_logits(true, raw)
    if target.kind == "softmax_classes":
        return tf.nn.softmax_cross_entropy_with_logits(true, raw)[:, None]
    error = {"mae": tf.abs, "mse": tf.square, "huber": huber}[loss]
    return tf.reduce_mean(error(raw - true), axis=1, keepdims=True)
