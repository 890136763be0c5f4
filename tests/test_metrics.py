"""Metrics: against scikit-learn, and exact however samples are dealt out."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sklearn_metrics

from galmerhpc.metrics import (
    ClassifierSums,
    PartialSums,
    describe_answers,
    regression_metrics,
    to_json,
)
from galmerhpc.parameters import AZIMUTH, INCLINATION, NAMES, SPIN, VIEWING_ANGLE, encode_classes

untimed = settings(deadline=None)


@st.composite
def samples(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Return labels and predictions, (N, P), of very different sizes and quality."""
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    count, parameters = draw(st.integers(10, 300)), draw(st.integers(1, 5))
    scale = draw(st.sampled_from([0.5, 10.0, 50.0, 180.0]))
    true = random.normal(draw(st.sampled_from([0.0, 45.0, -90.0])), scale, (count, parameters))
    noise = draw(st.sampled_from([0.0, 1e-3, 1.0, 30.0]))
    dtype = draw(st.sampled_from([np.float32, np.float64]))
    return true.astype(dtype), (true + random.normal(0, noise, true.shape)).astype(dtype)


@untimed
@given(samples())
def test_metrics_are_scikit_learn_s(drawn: tuple[np.ndarray, np.ndarray]) -> None:
    true, predicted = (a.astype(np.float64) for a in drawn)
    ours = regression_metrics(*drawn)
    each = {"multioutput": "raw_values"}
    mae = sklearn_metrics.mean_absolute_error(true, predicted, **each)
    assert ours["mae"] == pytest.approx(mae, rel=1e-9, abs=1e-11)
    mse = sklearn_metrics.mean_squared_error(true, predicted, **each)
    assert ours["mse"] == pytest.approx(mse, rel=1e-9, abs=1e-11)
    r2 = sklearn_metrics.r2_score(true, predicted, **each)
    assert ours["r2"] == pytest.approx(r2, rel=1e-6, abs=1e-6)


@untimed
@given(samples(), st.data())
def test_sums_do_not_depend_on_how_samples_are_dealt_to_ranks(
    drawn: tuple[np.ndarray, np.ndarray], data: st.DataObject
) -> None:
    true, predicted = drawn
    whole = PartialSums.of(true, predicted).as_vector()
    order = np.random.default_rng(data.draw(st.integers(0, 2**32))).permutation(len(true))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(true)), max_size=6)))
    shares = [PartialSums.of(true[rows], predicted[rows]) for rows in np.split(order, cuts)]
    vectors = data.draw(st.permutations([share.as_vector() for share in shares]))
    assert np.sum(vectors, axis=0).tobytes() == whole.tobytes()
    merged = shares[0]
    for share in shares[1:]:
        merged += share
    assert PartialSums.from_vector(merged.as_vector()).as_vector().tobytes() == whole.tobytes()


@st.composite
def classified(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Return labels, (N, 4), and probabilities of the paper's classes, (N, 60), often right."""
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    count = draw(st.integers(1, 100))
    true = np.stack(
        [
            random.choice(SPIN.values, count),
            random.choice(INCLINATION.values, count),
            random.uniform(AZIMUTH.low, AZIMUTH.high, count),
            random.uniform(VIEWING_ANGLE.low, VIEWING_ANGLE.high, count),
        ],
        axis=1,
    ).astype(np.float32)
    noise = draw(st.sampled_from([0.3, 0.6, 1.0]))
    return true, (1 - noise) * encode_classes(true, 5) + noise * random.random((count, 60))


@untimed
@given(classified())
def test_a_classifier_s_accuracies_are_scikit_learn_s_and_keras_s(
    drawn: tuple[np.ndarray, np.ndarray],
) -> None:
    true, probabilities = drawn
    metrics = ClassifierSums.of(true, probabilities, NAMES, 5).metrics()
    wanted = encode_classes(true, 5)
    groups = np.split(np.arange(60), [2, 6, 42])
    right = [
        sklearn_metrics.accuracy_score(
            wanted[:, group].argmax(axis=1), probabilities[:, group].argmax(axis=1)
        )
        for group in groups
    ]
    assert metrics["accuracy"] == pytest.approx(right)
    assert metrics["all_accuracy"] <= min(right)
    # Keras: the share of all outputs on the right side of one half.
    assert metrics["binary_accuracy"] == pytest.approx(np.mean((probabilities > 0.5) == wanted))
    assert metrics["trivial_binary_accuracy"] == pytest.approx(56 / 60)


def test_always_no_is_what_the_paper_s_accuracy_is_measured_against() -> None:
    true = np.array([[0, 45, 10, 20], [1, 0, 177, 90]], np.float32)
    always_no = ClassifierSums.of(true, np.full((2, 60), 0.1), NAMES, 5).metrics()
    assert always_no["binary_accuracy"] == always_no["trivial_binary_accuracy"]
    all_right = ClassifierSums.of(true, encode_classes(true, 5), NAMES, 5).metrics()
    assert all_right["all_accuracy"] == all_right["binary_accuracy"] == 1
    assert all_right["mae"].tolist() == [0, 0, 1.5, 2.5]  # from the bins' centres
    assert describe_answers(always_no).startswith("binary accuracy 93.33 % (always no: 93.33 %)")


@untimed
@given(classified(), st.data())
def test_a_classifier_s_sums_do_not_depend_on_how_samples_are_dealt_to_ranks(
    drawn: tuple[np.ndarray, np.ndarray], data: st.DataObject
) -> None:
    true, probabilities = drawn
    whole = ClassifierSums.of(true, probabilities, NAMES, 5)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(true)), max_size=4)))
    shares = [
        ClassifierSums.of(true[rows], probabilities[rows], NAMES, 5)
        for rows in np.split(np.arange(len(true)), cuts)
    ]
    merged = ClassifierSums.none(4)
    for share in shares:
        merged += share
    vectors = data.draw(st.permutations([share.as_vector() for share in shares]))
    assert np.sum(vectors, axis=0).tobytes() == whole.as_vector().tobytes()
    assert merged.as_vector().tobytes() == whole.as_vector().tobytes()
    again = ClassifierSums.from_vector(whole.as_vector())
    assert again.metrics()["all_accuracy"] == whole.metrics()["all_accuracy"]


@settings(max_examples=5, deadline=None)
@given(st.integers(0, 2**32))
def test_sums_of_many_large_terms_stay_exact(seed: int) -> None:
    random = np.random.default_rng(seed)
    true, predicted = random.uniform(0, 1000, (2, 200_000, 1))  # squares up to 2**20
    forth, back = PartialSums.of(true, predicted), PartialSums.of(true[::-1], predicted[::-1])
    assert forth.as_vector().tobytes() == back.as_vector().tobytes()


def test_equal_true_values_have_no_r2() -> None:
    true = np.full((10, 2), [75.0, 0.1])
    true[0, 1] = 0.2
    r2 = regression_metrics(true, true + 1)["r2"]
    assert np.isnan(r2[0])
    assert np.isfinite(r2[1])


def test_what_cannot_be_scored_is_refused() -> None:
    with pytest.raises(ValueError, match="not the same"):
        PartialSums.of(np.zeros((3, 2)), np.zeros((2, 2)))
    with pytest.raises(ValueError, match="not finite"):
        PartialSums.of(np.zeros((1, 2)), [[0.0, np.nan]])
    with pytest.raises(ValueError, match="not the same"):
        ClassifierSums.of(np.zeros((1, 4)), np.zeros((1, 59)), NAMES, 5)
    with pytest.raises(ValueError, match="not finite"):
        ClassifierSums.of(np.zeros((1, 4)), np.full((1, 60), np.nan), NAMES, 5)
    with pytest.raises(ValueError, match="no samples"):
        ClassifierSums.none(4).metrics()
    with pytest.raises(ValueError, match="no samples"):
        PartialSums.of(np.zeros((0, 2)), np.zeros((0, 2))).metrics()


def test_json_has_no_nan() -> None:
    values = {
        "r2": np.array([0.5, np.nan]),
        "mae": np.float32(0.25),
        "n": (np.int64(1), float("inf")),
    }
    expected = {"r2": [0.5, None], "mae": 0.25, "n": [1, None]}
    assert json.loads(json.dumps(to_json(values), allow_nan=False)) == expected
