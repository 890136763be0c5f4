"""Scores: against scikit-learn, and the sky's weights against the sphere."""

import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from galmerhpc.evaluation.evaluate import class_choices
from galmerhpc.evaluation.scores import class_scores, score, sky_weights
from galmerhpc.parameters import NAMES

SIMULATED = np.array([0.0, 45.0, 75.0, 90.0])


def test_weights_make_a_grid_of_views_a_sphere() -> None:
    theta, inclination = (a.ravel() for a in np.meshgrid(np.arange(0.5, 90), SIMULATED))
    weights = sky_weights(theta, inclination)
    assert weights.sum() == pytest.approx(1)
    # Directions at random: cos theta is uniform, so its mean is 1/2 and that of its square 1/3.
    assert weights @ np.cos(np.radians(theta)) == pytest.approx(0.5, abs=1e-4)
    assert weights @ np.cos(np.radians(theta)) ** 2 == pytest.approx(1 / 3, abs=1e-4)


def test_an_inclination_weighs_as_the_tilts_nearest_to_it() -> None:
    # Unequal numbers of images must not change it.
    inclination = np.repeat(SIMULATED, [5, 1, 7, 2])
    weights = sky_weights(np.full(len(inclination), 90.0), inclination)
    tilts = np.degrees(np.arccos(np.random.default_rng(0).uniform(0, 1, 400_000)))
    nearest = np.abs(tilts[:, None] - SIMULATED).argmin(axis=1)
    shares = np.bincount(nearest) / len(tilts)
    ours = [weights[inclination == value].sum() for value in SIMULATED]
    assert ours == pytest.approx(shares, abs=0.005)


def test_views_along_the_pole_alone_have_no_weight() -> None:
    assert np.isnan(sky_weights(np.zeros(3), np.full(3, 45.0))).all()


def test_scores_are_scikit_learn_s() -> None:
    random = np.random.default_rng(1)
    true = np.stack(
        [random.choice([0.0, 1.0], 500), random.choice(SIMULATED, 500), random.uniform(0, 180, 500),
         random.uniform(0, 90, 500)], axis=1,
    )  # fmt: skip
    predicted = true + random.normal(0, [0.4, 12, 9, 6], true.shape)
    weights = sky_weights(true[:, 3], true[:, 1])
    ours = score(NAMES, true, predicted, weights, SIMULATED)
    for k, name in enumerate(NAMES):
        t, p, found = true[:, k], predicted[:, k], ours["parameters"][name]
        expected = {
            "mae": sklearn_metrics.mean_absolute_error(t, p),
            "mse": sklearn_metrics.mean_squared_error(t, p),
            "rmse": sklearn_metrics.root_mean_squared_error(t, p),
            "r2": sklearn_metrics.r2_score(t, p),
            "median_error": sklearn_metrics.median_absolute_error(t, p),
            "p95_error": np.quantile(np.abs(p - t), 0.95),
            "sky_mae": sklearn_metrics.mean_absolute_error(t, p, sample_weight=weights),
            "sky_mse": sklearn_metrics.mean_squared_error(t, p, sample_weight=weights),
        }
        assert {metric: found[metric] for metric in expected} == pytest.approx(expected)
        for metric in expected:
            average = np.mean([ours["parameters"][n][metric] for n in NAMES])
            assert ours["average"][metric] == pytest.approx(average)
    edges = (22.5, 60, 82.5)
    classes = (np.digitize(a[:, 1], edges) for a in (true, predicted))
    expected = sklearn_metrics.accuracy_score(*classes)
    assert ours["parameters"]["inclination"]["accuracy"] == pytest.approx(expected)


def test_the_azimuth_is_also_scored_on_the_circle() -> None:
    true, predicted = np.array([[179.0], [-170.0]]), np.array([[-179.0], [-150.0]])
    found = score(("azimuth",), true, predicted, np.full(2, 0.5), SIMULATED)
    assert found["parameters"]["azimuth"]["circular_mae"] == pytest.approx(11)
    assert found["parameters"]["azimuth"]["mae"] == pytest.approx(189)


def test_averages_leave_out_a_parameter_without_r2() -> None:
    true = np.stack([np.full(20, 45.0), np.arange(20.0)], axis=1)
    found = score(
        ("inclination", "viewing_angle"), true, true + 1, np.full(20, 0.05), np.array([45.0])
    )
    assert np.isnan(found["parameters"]["inclination"]["r2"])
    assert found["average"]["r2"] == found["parameters"]["viewing_angle"]["r2"]
    assert found["average"]["mae"] == pytest.approx(1)


def test_a_baseline_chooses_the_classes_that_its_predictions_fall_into() -> None:
    names = ("spin", "azimuth")
    true = np.array([[0, 10], [1, 180], [1, 90]], float)
    lookup = np.array([[0.2, 12], [1, 180.0001], [0.1, 94]])  # rounding may leave the range
    outputs = np.full((3, 2 + 4), 0.1)
    outputs[:, [1, 2]] = 0.9  # retrograde and the first azimuths, sure of it
    choices = class_choices(outputs, {"network": np.empty((3, 2)), "lookup": lookup}, names, 45)
    found = {name: class_scores(names, true, chosen, 45) for name, chosen in choices.items()}
    assert found["lookup"]["accuracy"] == pytest.approx({"spin": 2 / 3, "azimuth": 1})
    assert found["lookup"]["all_accuracy"] == pytest.approx(2 / 3)
    assert found["network"]["accuracy"] == pytest.approx({"spin": 2 / 3, "azimuth": 1 / 3})
    assert found["network"]["all_accuracy"] == 0
    assert found["network"]["trivial_binary_accuracy"] == pytest.approx(4 / 6)
