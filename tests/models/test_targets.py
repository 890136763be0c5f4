"""Targets: what is encoded is decoded, within and beyond the labels' range."""

from typing import Any

import numpy as np
import pytest

from galmerhpc.config import Config
from galmerhpc.errors import InputError
from galmerhpc.models.targets import (
    Targets,
    labels_of,
    make_targets,
    prediction_width,
    retrograde_score,
)

RANDOM = np.random.default_rng(1)
LABELS = np.stack(
    [
        RANDOM.choice([0.0, 1.0], 200),
        RANDOM.choice([0.0, 45.0, 75.0, 90.0], 200),
        RANDOM.uniform(0, 180, 200),
        RANDOM.uniform(0, 90, 200),
    ],
    axis=1,
).astype(np.float32)


def config_of(**sections: Any) -> Config:
    return Config.model_validate({"run_dir": "unused", **sections})


def decoded(targets: Targets, raw: np.ndarray) -> np.ndarray:
    """Decode as the exported model does."""
    import keras

    outputs = keras.Input((targets.width,))
    return keras.Model(outputs, targets.decode(outputs))(raw).numpy()


@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"training": {"standardise_targets": False}},
        {"model": {"sine_cosine": ["inclination", "azimuth", "viewing_angle"]}},
    ],
    ids=["standardised", "raw", "sine and cosine"],
)
def test_what_is_encoded_is_decoded(sections: dict[str, Any]) -> None:
    targets = make_targets(config_of(**sections), LABELS)
    assert decoded(targets, targets.encode(LABELS)) == pytest.approx(LABELS, abs=1e-4)


def test_standardised_targets_have_mean_0_and_variance_1_and_constant_ones_are_0() -> None:
    labels = LABELS.copy()
    labels[:, 1] = 75
    encoded = make_targets(config_of(), labels).encode(labels)
    assert encoded.dtype == np.float32
    assert encoded.mean(axis=0) == pytest.approx(np.zeros(4), abs=1e-5)
    assert encoded.std(axis=0) == pytest.approx([1, 0, 1, 1], abs=1e-5)


def test_a_spin_s_logit_becomes_its_probability() -> None:
    targets = make_targets(config_of(model={"spin": "probability"}), LABELS)
    assert targets.encode(LABELS)[:, 0].tolist() == LABELS[:, 0].tolist()
    raw = np.zeros((3, 4), np.float32)
    raw[:, 0] = [-np.log(3), 0, 50]
    assert decoded(targets, raw)[:, 0] == pytest.approx([0.25, 0.5, 1])


@pytest.mark.parametrize(
    ("labels", "angles", "expected"),
    [
        # A half circle: a prediction a little outside of it stays there.
        ([0, 180], [-5, 0, 90, 180, 185], [-5, 0, 90, 180, 185]),
        # A whole circle: -180 and 180 are one direction.
        ([-180, 180], [-179, 179, 181], [-179, 179, -179]),
    ],
)
def test_angles_jump_where_no_label_is_near(
    labels: list[float], angles: list[float], expected: list[float]
) -> None:
    config = config_of(parameters=["azimuth"], model={"sine_cosine": ["azimuth"]})
    targets = make_targets(config, np.array(labels, np.float32)[:, None])
    raw = 0.3 * targets.encode(np.array(angles, np.float32)[:, None])  # its length says nothing
    assert decoded(targets, raw)[:, 0] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("loss", ["binary_crossentropy", "categorical_crossentropy"])
def test_a_classifier_s_predictions_mean_values_and_bin_centres(loss: str) -> None:
    config = config_of(model={"task": "classification"}, training={"loss": loss})
    targets = make_targets(config, LABELS)
    assert targets.width == prediction_width(config) == 60
    probabilities = decoded(targets, 20 * (targets.encode(LABELS) - 0.5))
    labels = labels_of(config, probabilities)
    assert labels[:, :2].tolist() == LABELS[:, :2].tolist()
    assert np.abs(labels[:, 2:] - LABELS[:, 2:]).max() <= 2.5 + 1e-4


def test_the_spin_s_score_goes_from_prograde_to_retrograde() -> None:
    numbers = np.array([[0.2, 45, 90, 30], [1.1, 0, 0, 0]])
    assert retrograde_score(config_of(), numbers).tolist() == [0.2, 1.1]
    assert retrograde_score(config_of(parameters=["azimuth"]), numbers[:, 2:3]) is None
    sigmoid = {"model": {"task": "classification"}, "training": {"loss": "binary_crossentropy"}}
    outputs = np.zeros((3, 60))
    outputs[:, :2] = [[0.9, 0.1], [0.2, 0.6], [0, 0]]  # prograde, retrograde; a silent network
    score = retrograde_score(config_of(**sigmoid), outputs)
    assert score == pytest.approx([0.1, 0.75, 0])


def test_a_label_without_a_class_is_refused() -> None:
    config = config_of(model={"task": "classification"}, training={"loss": "binary_crossentropy"})
    targets = make_targets(config, LABELS)
    with pytest.raises(ValueError, match="azimuth 200 is outside"):
        targets.encode(np.array([[0, 0, 200, 0]], np.float32))
    for labels, expected in (([0, 60, 9, 0], "inclination 60"), ([0, 45, -30, 0], "azimuth -30")):
        with pytest.raises(InputError, match=f"no class for {expected} of the training images"):
            make_targets(config, np.array([labels], np.float32))
