"""The learning rate as a function of the step."""

from typing import TYPE_CHECKING

from galmerhpc.config import Training

if TYPE_CHECKING:
    import keras


def learning_rate(
    training: Training, steps: int
) -> "keras.optimizers.schedules.LearningRateSchedule":
    """Return the schedule: linear warm-up, then constant or half a cosine down to zero.

    Parameters
    ----------
    training : Training
        Rate, batch size and schedule.
    steps : int
        Steps of the whole training. A warm-up longer than half of it is cut to half.
    """
    import keras

    peak = training.peak_rate()
    warmup = min(training.schedule.warmup_steps, steps // 2)
    return keras.optimizers.schedules.CosineDecay(
        initial_learning_rate=0.0 if warmup else peak,
        decay_steps=steps - warmup,
        # The final fraction of the peak; 1 makes the rate constant.
        alpha=1.0 if training.schedule.kind == "constant" else 0.0,
        warmup_target=peak if warmup else None,
        warmup_steps=warmup,
    )
