"""The configured optimiser."""

from typing import TYPE_CHECKING

from galmerhpc.config import Training
from galmerhpc.training.schedule import learning_rate

if TYPE_CHECKING:
    import keras


def make_optimizer(training: Training, steps: int) -> "keras.optimizers.Optimizer":
    """Return Adam (paper, section 3.2) with the configured schedule and averaging."""
    import keras

    return keras.optimizers.Adam(
        learning_rate(training, steps),
        use_ema=training.ema_momentum > 0,
        ema_momentum=training.ema_momentum or 0.99,
    )
