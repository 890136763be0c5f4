"""The optimisers: one step of each, on gradients that are summed already."""

from typing import Any

import numpy as np
import pytest

from galmerhpc.config import Training
from galmerhpc.training.optimizer import make_optimizer

SIZES = {"kernel": 2, "bias": 1}


def steps(optimizer: dict[str, Any], *gradients: list[float], **training: Any) -> np.ndarray:
    """Return the changes, (steps, 2 + 1), that gradients make to a kernel and a bias of ones."""
    import keras

    settings = {
        "learning_rate": 0.1, "schedule": {"kind": "constant", "warmup_steps": 0},
        "optimizer": optimizer, **training,
    }  # fmt: skip
    made = make_optimizer(Training.model_validate(settings), 100)
    variables = [keras.Variable(np.ones(n, np.float32), name=k) for k, n in SIZES.items()]
    made.build(variables)
    values = [np.ones(3)]
    for gradient in np.array(gradients, np.float32):
        made.apply(list(map(keras.ops.convert_to_tensor, (gradient[:2], gradient[2:]))), variables)
        values.append(np.concatenate([v.numpy() for v in variables]))
    return np.diff(values, axis=0)


def test_adam_s_first_step_has_the_length_of_its_rate() -> None:
    assert steps({}, [5, -0.2, 3])[0] == pytest.approx([-0.1, 0.1, -0.1], rel=1e-3)


@pytest.mark.parametrize("kind", ["adam", "adamw"])
def test_adam_does_keras_s_steps(kind: str) -> None:
    import keras

    draw = np.random.default_rng(1)
    gradients = draw.normal(size=(20, 3)) * np.geomspace(1e-6, 1e3, 3)
    decay = {"weight_decay": 0.01} if kind == "adamw" else {}
    found = steps({"kind": kind, **decay}, *gradients.tolist())
    theirs: Any = keras.optimizers.Adam(0.1)
    if kind == "adamw":
        theirs = keras.optimizers.AdamW(0.1, **decay)
        theirs.exclude_from_weight_decay(var_names=["bias"])
    variables = [keras.Variable(np.ones(n, np.float32), name=k) for k, n in SIZES.items()]
    for gradient in gradients.astype(np.float32):
        theirs.apply(list(map(keras.ops.convert_to_tensor, np.split(gradient, [2]))), variables)
    last = np.concatenate([v.numpy() for v in variables])
    np.testing.assert_allclose(1 + found.sum(axis=0), last, rtol=1e-4)


def test_sgd_keeps_a_share_of_its_last_step() -> None:
    found = steps({"kind": "sgd", "momentum": 0.5}, [1, 0, 0], [1, 0, 0])
    assert found[:, 0] == pytest.approx([-0.1, -0.15], rel=1e-5)


def test_adamw_s_decay_spares_biases() -> None:
    found = steps({"kind": "adamw", "weight_decay": 0.2}, [0, 0, 0])
    assert found[0] == pytest.approx([-0.02, -0.02, 0], abs=1e-6)


def test_a_long_gradient_is_cut_as_a_whole_and_a_short_one_is_not() -> None:
    clipped = {"kind": "sgd", "clip_norm": 1.0}
    long, short = steps(clipped, [3, 0, 4], [0.3, 0, 0.4])
    assert long == pytest.approx([-0.06, 0, -0.08], abs=1e-6)
    assert short == pytest.approx([-0.03, 0, -0.04], abs=1e-6)
