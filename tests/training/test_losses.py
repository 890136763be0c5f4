"""Losses: against their definitions and Keras's, weights included."""

from typing import Any

import numpy as np
import pytest

from galmerhpc.config import Config
from galmerhpc.models.targets import make_targets
from galmerhpc.parameters import encode_classes
from galmerhpc.training.losses import make_losses

RANDOM = np.random.default_rng(2)
COUNT = 12
LABELS = np.stack(
    [
        RANDOM.choice([0.0, 1.0], COUNT),
        RANDOM.choice([0.0, 45.0, 75.0, 90.0], COUNT),
        RANDOM.uniform(0, 180, COUNT),
        RANDOM.uniform(0, 90, COUNT),
    ],
    axis=1,
).astype(np.float32)
WEIGHTS = {"spin": 3.0, "azimuth": 0.5}


def losses(raw: np.ndarray | None = None, **sections: Any) -> tuple[np.ndarray, ...]:
    """Return targets, outputs and each sample's loss; outputs that are not given are drawn."""
    config = Config.model_validate({"run_dir": "unused", **sections})
    targets = make_targets(config, LABELS)
    true = targets.encode(LABELS)
    raw = RANDOM.normal(0, 2, true.shape).astype(np.float32) if raw is None else raw
    return true, raw, make_losses(config.training, targets)(true, raw).numpy()


def huber(error: np.ndarray) -> np.ndarray:
    size = np.abs(error)
    return np.where(size < 1, size**2 / 2, size - 0.5)


@pytest.mark.parametrize(("name", "error"), [("mae", np.abs), ("mse", np.square), ("huber", huber)])
@pytest.mark.parametrize("weights", [{}, WEIGHTS])
def test_regression_losses_are_weighted_means_over_parameters(
    name: str, error: Any, weights: dict[str, float]
) -> None:
    true, raw, found = losses(training={"loss": name, "loss_weights": weights})
    each = [weights.get(n, 1) for n in ("spin", "inclination", "azimuth", "viewing_angle")]
    assert found == pytest.approx(np.average(error(raw - true), axis=1, weights=each), rel=1e-5)


@pytest.mark.parametrize("weights", [{}, WEIGHTS])
def test_sigmoid_cross_entropy_is_keras_s_over_all_classes(weights: dict[str, float]) -> None:
    import keras

    true, raw, found = losses(
        model={"task": "classification"},
        training={"loss": "binary_crossentropy", "loss_weights": weights},
    )
    probabilities = 1 / (1 + np.exp(-raw))
    sizes = [2, 4, 36, 18]
    groups = np.split(np.arange(60), np.cumsum(sizes)[:-1])
    means = [
        keras.losses.binary_crossentropy(true[:, g], probabilities[:, g]).numpy() for g in groups
    ]
    shares = np.array([weights.get("spin", 1), 1, weights.get("azimuth", 1), 1]) * sizes
    assert found == pytest.approx(np.average(means, axis=0, weights=shares), rel=1e-4)
    if not weights:
        whole = keras.losses.binary_crossentropy(true, probabilities).numpy()
        assert found == pytest.approx(whole, rel=1e-4)


def test_softmax_cross_entropy_is_keras_s_for_each_parameter() -> None:
    import keras

    true, raw, found = losses(
        model={"task": "classification"}, training={"loss": "categorical_crossentropy"}
    )
    groups = np.split(np.arange(60), [2, 6, 42])
    each = [
        keras.losses.categorical_crossentropy(true[:, g], raw[:, g], from_logits=True).numpy()
        for g in groups
    ]
    assert found == pytest.approx(np.mean(each, axis=0), rel=1e-5)


@pytest.mark.parametrize("loss", ["binary_crossentropy", "categorical_crossentropy"])
def test_a_network_that_is_surely_wrong_still_has_a_finite_loss(loss: str) -> None:
    certain = 500 * (1 - 2 * encode_classes(LABELS, 5))
    _, _, found = losses(certain, model={"task": "classification"}, training={"loss": loss})
    assert found == pytest.approx(
        [500 if loss == "binary_crossentropy" else 1000] * COUNT, rel=0.01
    )


def test_a_spin_as_probability_adds_its_cross_entropy_to_the_others_errors() -> None:
    true, raw, found = losses(model={"spin": "probability"}, training={"loss": "mae"})
    spin = np.log1p(np.exp(-np.where(true[:, 0] == 1, raw[:, 0], -raw[:, 0])))
    errors = np.abs(raw - true)[:, 1:]
    assert found == pytest.approx((spin + errors.sum(axis=1)) / 4, rel=1e-4)


def test_sine_and_cosine_count_as_one_parameter() -> None:
    true, raw, found = losses(model={"sine_cosine": ["azimuth"]}, training={"loss": "mse"})
    squares = (raw - true) ** 2  # spin, inclination, sine, cosine, viewing angle
    expected = (squares[:, [0, 1, 4]].sum(axis=1) + squares[:, 2:4].mean(axis=1)) / 4
    assert found == pytest.approx(expected, rel=1e-5)
