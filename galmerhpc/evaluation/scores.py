"""Scores of predictions: errors per parameter, averaged, and sky-weighted.

Views of one encounter are not independent, so the 95 % intervals come from a cluster bootstrap:
each resample draws as many groups (realisation x configuration) as there are, with all their views
(Davison & Hinkley 1997, section 3.8).
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from galmerhpc.metrics import ClassifierSums
from galmerhpc.parameters import (
    AZIMUTH,
    INCLINATION,
    SPIN,
    circular_error,
    class_groups,
    encode_classes,
)

INTERVAL = (2.5, 97.5)
"""Percentiles of the resamples that bound the interval."""

AVERAGED = ("mae", "mse", "rmse", "r2", "median_error", "p95_error", "sky_mae", "sky_mse")
"""Measures defined for every parameter, whose mean over parameters is reported."""

_CHUNK = 4_000_000
"""Images times resamples processed at a time: some 30 MB per array."""

_MOST_VALUES = 16
"""Most distinct values of an axis that are listed one by one."""

Floats = NDArray[np.float64]


def sky_weights(theta: Floats, inclination: Floats) -> Floats:
    """Return the weight of each view among pairs oriented at random in space.

    A grid in theta crowds views at the pole, so each is weighted by sin theta. In the paper, the
    cumulative probability of an inclination is 1 - cos i (discs tilted at random): each distinct
    true value represents the inclinations nearest to it, and its images share the probability of
    that interval of 0..90 degrees.

    Parameters
    ----------
    theta : ndarray, shape (N,)
        Viewing angle, degrees.
    inclination : ndarray, shape (N,)
        Degrees; if any is NaN (unknown), the weights are sin theta.

    Returns
    -------
    ndarray, shape (N,)
        They sum to 1; NaN if every view is along the pole.
    """
    weights = np.abs(np.sin(np.radians(theta)))
    if not np.isnan(inclination).any():
        values, member, counts = np.unique(inclination, return_inverse=True, return_counts=True)
        low, high = min(INCLINATION.low, values[0]), max(INCLINATION.high, values[-1])
        edges = np.array([low, *(values[1:] + values[:-1]) / 2, high])
        weights *= (-np.diff(np.cos(np.radians(edges))) / counts)[member]
    total = weights.sum()
    return weights / total if total > 0 else np.full(len(weights), np.nan)


# --- errors ---------------------------------------------------------------------------------------


class Scorer:
    """Scores predictions for the same images on the same resamples of their groups.

    Parameters
    ----------
    parameters : sequence of str
        Names of the P labels.
    true : ndarray, shape (N, P)
        In the labels' units.
    weights : ndarray, shape (N,)
        `sky_weights`.
    inclinations : ndarray
        The simulated inclinations, degrees.
    groups : ndarray, shape (N,), int64
        Group of each image.
    resamples : int
        Number of resamples.
    seed : int
        Seed of the resamples.
    """

    def __init__(
        self,
        parameters: Sequence[str],
        true: Floats,
        weights: Floats,
        inclinations: Floats,
        groups: NDArray[np.int64],
        resamples: int,
        seed: int,
    ) -> None:
        self._parameters, self._true, self._weights = list(parameters), true, weights
        self._inclinations = inclinations
        values, self._member = np.unique(groups, return_inverse=True)
        generator = np.random.default_rng(seed)
        chances = np.full(len(values), 1 / len(values))
        self._counts = generator.multinomial(len(values), chances, size=resamples)  # (R, G)

    def score(self, predicted: Floats) -> dict[str, Any]:
        """Return the errors of predictions: per parameter, and averaged over parameters.

        Parameters
        ----------
        predicted : ndarray, shape (N, P)
            In the labels' units; angles that cover the full circle as `parameters.on_nearest_turn`
            returns them.

        Returns
        -------
        dict
            ``parameters``: by name, ``mae``, ``mse``, ``rmse``, ``r2``, ``median_error`` and
            ``p95_error`` of the absolute error, ``sky_mae`` and ``sky_mse`` (weighted), ``bias``
            (the mean error); spin and inclination also ``accuracy`` (the nearest value is the
            true one), the azimuth ``circular_mae``; ``interval``: lower and upper bound by measure.
            ``average``: the means over parameters, of R2 over those that have one (NaN if all true
            values are equal), with its ``interval``.
        """
        every = self._measures(predicted, np.ones((1, len(predicted)), np.int64))
        resampled = [self._measures(predicted, counts) for counts in self._resamples()]
        spread = {name: np.concatenate([part[name] for part in resampled]) for name in every}
        ends = {name: self._interval(values) for name, values in spread.items()}
        parameters: dict[str, dict[str, Any]] = {}
        for k, name in enumerate(self._parameters):
            own = [m for m in every if m in AVERAGED or not np.isnan(every[m][0, k])]
            parameters[name] = {m: float(every[m][0, k]) for m in own}
            parameters[name]["interval"] = {m: ends[m][:, k].tolist() for m in own}
        average: dict[str, Any] = {m: float(_mean(every[m])[0]) for m in AVERAGED}
        means = {m: _mean(spread[m])[:, None] for m in AVERAGED}
        average["interval"] = {m: self._interval(v)[:, 0].tolist() for m, v in means.items()}
        return {"parameters": parameters, "average": average}

    def compare(self, predicted: Floats, other: Floats) -> dict[str, Any]:
        """Return the difference in MAE between predictions and others for the same images.

        Returns
        -------
        dict
            By parameter ``mae_difference`` (negative if the first are better) and its
            ``interval``, which is narrower than those of the two MAEs suggest, since both are
            scored on the same images in each resample.
        """
        gain = np.abs(predicted - self._true) - np.abs(other - self._true)  # (N, P)
        groups = self._counts.shape[1]
        sums = np.stack([np.bincount(self._member, g, groups) for g in gain.T], axis=1)  # (G, P)
        sizes = np.bincount(self._member, minlength=groups)
        spread = (self._counts @ sums) / (self._counts @ sizes)[:, None]  # (R, P)
        ends = self._interval(spread)
        return {
            name: {"mae_difference": float(gain[:, k].mean()), "interval": ends[:, k].tolist()}
            for k, name in enumerate(self._parameters)
        }

    def _interval(self, spread: Floats) -> Floats:
        """Return both ends of the interval of measures over resamples (R, P), shape (2, P).

        NaN if there is only one group, whose resamples are all the same.
        """
        if self._counts.shape[1] == 1:
            return np.full((len(INTERVAL), spread.shape[1]), np.nan)
        return np.array([_percentile(spread, level) for level in INTERVAL])

    def _resamples(self) -> Iterator[NDArray[np.int64]]:
        """Yield how often each image is drawn, (r, N), for a few resamples at a time."""
        size = max(_CHUNK // len(self._member), 1)
        for first in range(0, len(self._counts), size):
            yield self._counts[first : first + size][:, self._member]

    def _measures(self, predicted: Floats, counts: NDArray[np.int64]) -> dict[str, Floats]:
        """Return each measure, (R, P), of images drawn `counts` (R, N) times."""
        signed = predicted - self._true  # (N, P)
        error = np.abs(signed)
        times = counts.astype(np.float64)
        total = times.sum(axis=1, keepdims=True)  # (R, 1)
        centred = self._true - self._true.mean(axis=0)  # less cancellation
        mean = times @ centred / total
        variance = times @ centred**2 / total - mean**2
        scale = np.maximum((self._true**2).mean(axis=0), 1.0)
        variance[variance <= 1e-9 * scale] = np.nan  # equal up to rounding
        median, p95 = _quantiles(error, counts, (0.5, 0.95))
        mse, on_sky = times @ error**2 / total, times * self._weights
        sky_total = on_sky.sum(axis=1, keepdims=True)
        sky_total[sky_total == 0] = np.nan
        return {
            "mae": times @ error / total,
            "mse": mse,
            "rmse": np.sqrt(mse),
            "r2": 1 - mse / variance,
            "median_error": median,
            "p95_error": p95,
            "sky_mae": on_sky @ error / sky_total,
            "sky_mse": on_sky @ error**2 / sky_total,
            "bias": times @ signed / total,
            "accuracy": times @ self._nearest_is_true(predicted) / total,
            "circular_mae": times @ self._on_the_circle(predicted) / total,
        }

    def _nearest_is_true(self, predicted: Floats) -> Floats:
        """Return where the nearest value is the true one, (N, P); NaN for other labels."""
        right = np.full(predicted.shape, np.nan)
        for k, name in enumerate(self._parameters):
            true, estimate = self._true[:, k], predicted[:, k]
            if name == SPIN.name:
                right[:, k] = (estimate > 0.5) == (true > 0.5)
            elif name == INCLINATION.name:
                place = np.abs(estimate[:, None] - self._inclinations).argmin(axis=1)
                nearest = self._inclinations[place].astype(np.float32)  # as labels are stored
                right[:, k] = nearest == true.astype(np.float32)
        return right

    def _on_the_circle(self, predicted: Floats) -> Floats:
        """Return the azimuth's errors on the circle, (N, P); NaN for the others."""
        error = np.full(predicted.shape, np.nan)
        for k, name in enumerate(self._parameters):
            if name == AZIMUTH.name:
                error[:, k] = circular_error(self._true[:, k], predicted[:, k])
        return error


def _quantiles(
    errors: Floats, counts: NDArray[np.int64], levels: tuple[float, ...]
) -> list[Floats]:
    """Return quantiles, each (R, P), of errors (N, P) drawn `counts` (R, N) times.

    They are interpolated linearly, as by `numpy.quantile`.
    """
    last = counts.sum(axis=1) - 1  # (R,) index of the largest
    results = [np.empty((len(counts), errors.shape[1])) for _ in levels]
    for k, column in enumerate(errors.T):
        order = np.argsort(column)
        reached = np.cumsum(counts[:, order], axis=1)  # (R, N)
        for level, result in zip(levels, results, strict=True):
            place = level * last
            low, high = (
                column[order][(reached > ends[:, None]).argmax(axis=1)]
                for ends in (np.floor(place), np.ceil(place))
            )
            result[:, k] = low + (place - np.floor(place)) * (high - low)
    return results


def _mean(values: Floats) -> Floats:
    """Return the mean over the defined parameters of (R, P), shape (R,)."""
    defined = ~np.isnan(values)
    count = defined.sum(axis=1)
    total = np.where(defined, values, 0.0).sum(axis=1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _percentile(values: Floats, level: float) -> Floats:
    """Return a percentile over the defined resamples of (R, P), shape (P,)."""
    columns = [column[~np.isnan(column)] for column in values.T]
    return np.array([np.percentile(c, level) if len(c) else np.nan for c in columns])


# --- where errors are large -----------------------------------------------------------------------


def breakdown(
    parameters: Sequence[str],
    true: Floats,
    predictions: dict[str, Floats],
    axes: dict[str, tuple[Floats, float | None]],
) -> dict[str, list[dict[str, Any]]]:
    """Return the errors as functions of known properties of the views.

    Parameters
    ----------
    parameters : sequence of str
        Names of the P labels.
    true : ndarray, shape (N, P)
        In the labels' units.
    predictions : dict of ndarray, shape (N, P)
        By predictor.
    axes : dict of (ndarray of shape (N,), float or None)
        By name, the values to bin images by, NaN where unknown, and the width of the bins (`bins`).

    Returns
    -------
    dict
        By axis a list of bins: ``from`` and ``to`` (equal for a single value), ``images``, and by
        predictor and parameter ``mae`` and ``bias`` (the mean error). Axes with unknown values are
        left out.
    """
    result: dict[str, list[dict[str, Any]]] = {}
    off = {name: predicted - true for name, predicted in predictions.items()}
    for axis, (values, width) in axes.items():
        if np.isnan(values).any():
            continue
        entries = result[axis] = []
        for low, high, inside in bins(values, width):
            entry: dict[str, Any] = {"from": low, "to": high, "images": int(inside.sum())}
            for predictor, error in off.items():
                entry[predictor] = {
                    name: {"mae": float(np.abs(e).mean()), "bias": float(e.mean())}
                    for name, e in zip(parameters, error[inside].T, strict=True)
                }
            entries.append(entry)
    return result


def bins(values: Floats, width: float | None) -> Iterator[tuple[float, float, NDArray[np.bool_]]]:
    """Divide values: one by one if they are few, otherwise into bins, the last one closed.

    Parameters
    ----------
    values : ndarray, shape (N,)
        Values.
    width : float, optional
        Width of the bins, which begin at its multiples; by default there are `_MOST_VALUES` bins.

    Yields
    ------
    tuple of (float, float, ndarray of bool, shape (N,))
        Both ends, and which values are inside; empty bins are left out.
    """
    distinct = np.unique(values)
    few = len(distinct) <= _MOST_VALUES
    if few and (width is None or np.diff(distinct).min(initial=np.inf) >= width):
        for value in distinct.tolist():
            yield value, value, values == value
        return
    if width is None:
        edges = np.linspace(distinct[0], distinct[-1], _MOST_VALUES + 1)
    else:
        first, last = np.floor(distinct[0] / width), np.ceil(distinct[-1] / width)
        edges = width * np.arange(first, max(last, first + 1) + 1)
    member = np.clip(np.digitize(values, edges) - 1, 0, len(edges) - 2)
    for k in np.unique(member).tolist():
        yield float(edges[k]), float(edges[k + 1]), member == k


# --- classes --------------------------------------------------------------------------------------


def class_scores(
    parameters: Sequence[str],
    true: Floats,
    probabilities: NDArray[np.floating],
    width_deg: float,
) -> dict[str, Any]:
    """Return the accuracies and confusion matrices of classes.

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
        By name ``accuracy`` (share of images whose class is right), ``top3_accuracy`` (whose class
        is among the three most probable) and ``confusion`` (number of images by true (row) and
        predicted class); ``all_accuracy``, ``binary_accuracy`` and ``trivial_binary_accuracy`` as
        in `metrics.ClassifierSums.metrics`.

    Raises
    ------
    ValueError
        A label has no class.
    """
    metrics = ClassifierSums.of(true, probabilities, parameters, width_deg).metrics()
    shares = ("all_accuracy", "binary_accuracy", "trivial_binary_accuracy")
    classes = encode_classes(true, width_deg, parameters)
    top3, confusion = {}, {}
    for name, group in zip(parameters, class_groups(parameters, width_deg), strict=True):
        right, given = classes[:, group].argmax(axis=1), probabilities[:, group]
        best = np.argsort(-given, axis=1, kind="stable")[:, :3]
        top3[name] = float((best == right[:, None]).any(axis=1).mean())
        count = group.stop - group.start
        pairs = right * count + given.argmax(axis=1)
        confusion[name] = np.bincount(pairs, minlength=count**2).reshape(count, count)
    return {
        "accuracy": dict(zip(parameters, metrics["accuracy"], strict=True)),
        "top3_accuracy": top3,
        "confusion": confusion,
        **{name: metrics[name] for name in shares},
    }
