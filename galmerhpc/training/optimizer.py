"""The configured optimiser."""

from typing import TYPE_CHECKING, Any

from galmerhpc.config import Training
from galmerhpc.training.schedule import learning_rate

if TYPE_CHECKING:
    import keras

NOT_DECAYED = ("bias", "gamma", "beta")
"""Variables without weight decay, as is usual for biases and normalisation."""


def make_optimizer(training: Training, steps: int) -> "keras.optimizers.Optimizer":
    """Return the optimiser with its schedule, clipping and averaging.

    Its `apply` takes gradients summed over ranks, so that their norm, and with it the clipping, is
    the same on all ranks.

    Parameters
    ----------
    training : Training
        The paper's is Adam at a constant 1e-3 (arXiv:2112.12604, section 3).
    steps : int
        Steps of the whole training.
    """
    import keras

    settings = training.optimizer
    common: dict[str, Any] = {
        "learning_rate": learning_rate(training, steps),
        "global_clipnorm": settings.clip_norm,
        "use_ema": training.ema_momentum > 0,
        "ema_momentum": training.ema_momentum or 0.99,  # Keras wants one even if unused
    }
    if settings.kind == "sgd":
        return keras.optimizers.SGD(momentum=settings.momentum, **common)
    from galmerhpc.training.adam import Adam, AdamW

    if settings.kind == "adam":
        return Adam(**common)
    optimizer = AdamW(weight_decay=settings.weight_decay, **common)
    optimizer.exclude_from_weight_decay(var_names=NOT_DECAYED)
    return optimizer
