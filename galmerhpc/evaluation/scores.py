"""The scores of a set of predictions: errors per parameter, averaged, and weighted by the sky."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from galmerhpc.metrics import ClassifierSums, regression_metrics, spin_accuracy
from galmerhpc.parameters import AZIMUTH, INCLINATION, SPIN, circular_error


def sky_weights(
    theta: NDArray[np.float64], inclination: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the weight of each view among pairs oriented at random in space.

    A grid in theta crowds views at the pole, so each counts as sin theta. The paper lets the
    probability of an inclination grow as 1 - cos i (discs tilted at random): each distinct true
    value stands for the inclinations nearest to it, and its images share their probability,
    the difference of 1 - cos i over that interval of 0..90 degrees.

    Parameters
    ----------
    theta : ndarray, shape (N,)
        Viewing angle, degrees.
    inclination : ndarray, shape (N,)
        Degrees; not a number where it is not known, which leaves the weights sin theta.

    Returns
    -------
    ndarray, shape (N,)
        They add up to 1; not a number where every view is along the pole.
    """
    weights = np.abs(np.sin(np.radians(theta)))
    if not np.isnan(inclination).any():
        values, member, counts = np.unique(inclination, return_inverse=True, return_counts=True)
        low, high = min(INCLINATION.low, values[0]), max(INCLINATION.high, values[-1])
        edges = np.array([low, *(values[1:] + values[:-1]) / 2, high])
        weights *= (-np.diff(np.cos(np.radians(edges))) / counts)[member]
    total = weights.sum()
    return weights / total if total > 0 else np.full(len(weights), np.nan)


def score(
    parameters: Sequence[str],
    true: NDArray[np.float64],
    predicted: NDArray[np.float64],
    weights: NDArray[np.float64],
    inclinations: NDArray[np.float64],
) -> dict[str, Any]:
    """Return the errors of predictions: per parameter, and averaged over parameters.

    Parameters
    ----------
    parameters : sequence of str
        Names of the P labels.
    true, predicted : ndarray, shape (N, P)
        In the labels' units.
    weights : ndarray, shape (N,)
        `sky_weights`.
    inclinations : ndarray
        The simulated inclinations, degrees.

    Returns
    -------
    dict
        ``parameters``: by name, ``mae``, ``mse``, ``rmse``, ``r2``, ``median_error`` and
        ``p95_error`` of the absolute error, ``sky_mae`` and ``sky_mse`` (weighted); spin and
        inclination also ``accuracy`` (the nearest value is the true one), the azimuth
        ``circular_mae``. ``average``: the means over parameters, of R2 over those that have one
        (not a number where all true values are equal).
    """
    error = np.abs(predicted - true)  # (N, P)
    values = regression_metrics(true, predicted)
    values["rmse"] = np.sqrt(values["mse"])
    values["median_error"], values["p95_error"] = np.percentile(error, (50, 95), axis=0)
    values["sky_mae"], values["sky_mse"] = weights @ error, weights @ error**2
    scores: dict[str, dict[str, float]] = {
        name: {metric: v[k] for metric, v in values.items()} for k, name in enumerate(parameters)
    }
    for k, name in enumerate(parameters):
        t, p = true[:, k], predicted[:, k]
        if name == SPIN.name:
            scores[name]["accuracy"] = spin_accuracy(t, p)
        elif name == INCLINATION.name:
            nearest = inclinations[np.abs(p[:, None] - inclinations).argmin(axis=1)]
            scores[name]["accuracy"] = float((nearest == t).mean())
        elif name == AZIMUTH.name:
            scores[name]["circular_mae"] = float(circular_error(t, p).mean())
    average = {
        metric: v[~np.isnan(v)].mean() if not np.isnan(v).all() else np.nan
        for metric, v in values.items()
    }
    return {"parameters": scores, "average": average}


def class_scores(
    parameters: Sequence[str],
    true: NDArray[np.float64],
    probabilities: NDArray[np.floating],
    width_deg: float,
) -> dict[str, Any]:
    """Return how often classes are right (`metrics.ClassifierSums`).

    Parameters
    ----------
    parameters : sequence of str
        Names of the P labels.
    true : ndarray, shape (N, P)
        In the labels' units.
    probabilities : ndarray, shape (N, classes)
        In the layout of `parameters.encode_classes`.
    width_deg : float
        Width of the azimuth's and viewing angle's classes, degrees.

    Returns
    -------
    dict
        ``accuracy``: by name, the share of images whose class is right; ``all_accuracy``,
        ``binary_accuracy`` and ``trivial_binary_accuracy``.
    """
    metrics = ClassifierSums.of(true, probabilities, parameters, width_deg).metrics()
    shares = ("all_accuracy", "binary_accuracy", "trivial_binary_accuracy")
    each = dict(zip(parameters, metrics["accuracy"], strict=True))
    return {"accuracy": each, **{name: metrics[name] for name in shares}}
