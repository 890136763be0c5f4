"""The factor on the loss: it falls with an overflow, and that step is left out."""

import numpy as np

from galmerhpc.config import Training
from galmerhpc.training import loss_scale
from galmerhpc.training.loss_scale import FIRST, GROWTH_STEPS, LossScale


def values(scale: LossScale) -> list[float]:
    return [float(v.numpy()) for v in scale.variables]


def test_the_factor_falls_with_an_overflow_and_grows_after_many_finite_steps() -> None:
    import tensorflow as tf

    scale = LossScale(Training(precision="mixed_float16"))
    scale.update(tf.constant(True))
    assert values(scale) == [FIRST, 1]
    scale.update(tf.constant(False))
    assert values(scale) == [FIRST / 2, 0]
    scale.variables[1].assign(GROWTH_STEPS - 1)
    scale.update(tf.constant(True))
    assert values(scale) == [FIRST, 0]
    scale.variables[0].assign(1.0)
    scale.update(tf.constant(False))
    assert values(scale) == [1, 0]


def test_without_float16_there_is_none() -> None:
    scale = LossScale(Training(precision="mixed_bfloat16"))
    assert not scale.used
    assert values(scale) == [1, 0]


def test_a_step_that_overflows_changes_nothing_but_the_factor() -> None:
    import keras

    from galmerhpc.training.step import make_update

    images = keras.Input((2,))
    model = keras.Model(images, keras.layers.Dense(1)(images))
    optimizer = keras.optimizers.Adam(0.1, use_ema=True)
    optimizer.build(model.trainable_variables)
    scale = LossScale(Training(compression="fp16"))
    update = make_update(model, optimizer, scale, "fp16")
    everything = [*model.variables, *optimizer.variables]

    def step(gradient: float) -> tuple[list[float], list[bytes]]:
        gradients = [np.full(v.shape, gradient, np.float32) for v in model.trainable_variables]
        answer = np.asarray(update(gradients, np.array([0.5, 0, 0], np.float32)))
        return answer.tolist(), [v.numpy().tobytes() for v in everything]

    start = [v.numpy().tobytes() for v in everything]
    assert step(np.inf) == ([0.5, 0, 0], start)
    assert values(scale)[0] == FIRST / 2
    answer, after = step(loss_scale.FIRST)
    assert answer == [0.5, 0, 0]
    assert after != start
    scale.variables[0].assign(1.0)  # a smaller factor does not help any more
    assert step(np.nan) == ([0.5, 0, 1], after)
