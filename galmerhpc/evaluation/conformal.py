"""Prediction intervals and the probability of the spin, calibrated on whole groups.

Split-conformal prediction: the errors of held-out images are divided by the usual error at their
predicted viewing angle; with a quantile of these ratios, predicted value +- quantile x usual error
is the interval of a new image. Predictions and bounds outside the parameter's range are moved to
its nearer end. Errors of views of one encounter are correlated, so groups of images (realisation x
configuration) are exchangeable, not images: every group has the same weight, whatever its size.
This is the pooling of group distributions of Dunn, Wasserman & Ramdas 2022 (Journal of the American
Statistical Association 118, 2491), with the finite-sample correction explained in `_quantiles`. It
applies to an image of a new group; with K groups of fully correlated images, no interval can
guarantee more than K / (K + 1). `halved_coverage` measures the coverage.

``evaluation/intervals.json`` contains `Calibration.to_json` by condition of the images::

    {"format": 1,
     "model": "<SHA-256 of model.keras>",
     "calibrations": {
       "clean": {
         "groups": 32, "images": 5624,            the calibration sample
         "levels": [0.68, 0.9],                   of the intervals
         "intervals": {                           all parameters but the spin
           "azimuth": {
             "circular": true,                    an arc: bounds wrap, low and high are not used
             "low": 0.0, "high": 180.0,           range of the parameter (null: unlimited)
             "theta_deg": [7.5, 22.5, ...],       predicted viewing angles, and ...
             "usual_error": [9.1, 7.3, ...],      ... the usual error there; linear in between
             "quantiles": [1.1, 2.4]}},           per level, half width in units of usual error
         "spin": {"slope": 11.0, "middle": 0.5}}, P(retrograde) = 1 / (1 + exp(-slope (x - middle)))
       "sky": {...}}}

where x is `models.targets.retrograde_score`. ``spin`` is null if spin is not estimated.
`read_calibration` reads the file.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit

from galmerhpc import files
from galmerhpc.errors import InputError
from galmerhpc.parameters import AZIMUTH, SPIN, VIEWING_ANGLE, circular_error, named

FORMAT = 1
FILE = "intervals.json"

FEWEST_GROUPS = 4
"""Least number of groups for a calibration: half of them, to measure coverage, are two."""

_THETA_BINS = 6
"""Bins of the predicted viewing angle; 15 degrees each on the paper's quarter sphere."""
_FEWEST_IMAGES = 10
"""Least number of images in a bin; with fewer it takes its neighbours' usual error."""
_SMALLEST_USUAL = 0.05
"""Smallest usual error as a share of the mean error, to avoid division by zero."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """How wide one parameter's intervals are; the attributes are those of intervals.json.

    An unlimited range has infinite ends.
    """

    circular: bool
    low: float
    high: float
    theta_deg: tuple[float, ...]
    usual_error: tuple[float, ...]
    quantiles: tuple[float, ...]

    def within(self, predicted: Floats) -> Floats:
        """Return predictions, (N,), with those outside the range moved to its nearer end."""
        return predicted if self.circular else np.clip(predicted, self.low, self.high)

    def usual(self, theta: Floats) -> Floats:
        """Return the usual error at predicted viewing angles, both of shape (N,)."""
        return np.interp(theta, self.theta_deg, self.usual_error)

    def half_widths(self, theta: Floats) -> Floats:
        """Return half the width of each level's interval, shape (N, levels)."""
        return self.usual(theta)[:, None] * np.array(self.quantiles)

    def bounds(self, predicted: Floats, theta: Floats) -> Floats:
        """Return lower and upper bounds, shape (N, levels, 2).

        An arc's bounds are in -180..180; if the upper one is the smaller, the arc wraps around at
        +-180. A full circle is -180..180.
        """
        half, middle = self.half_widths(theta), self.within(predicted)[:, None]
        bounds = np.stack([middle - half, middle + half], axis=-1)
        if not self.circular:
            return np.clip(bounds, self.low, self.high)
        wrapped = (bounds + 180.0) % 360.0 - 180.0
        return np.where((half >= 180.0)[:, :, None], (-180.0, 180.0), wrapped)


@dataclass(frozen=True)
class SpinProbability:
    """The probability that an encounter is retrograde: a logistic curve (Platt 1999).

    The attributes are those of intervals.json.
    """

    slope: float
    middle: float

    def __call__(self, score: Floats) -> Floats:
        """Return the probabilities of `models.targets.retrograde_score`, shape (N,)."""
        return expit(self.slope * (score - self.middle))


@dataclass(frozen=True)
class Calibration:
    """Converts predictions into intervals and the spin's probability.

    Attributes
    ----------
    groups, images : int
        Size of the calibration sample.
    levels : tuple of float
        Nominal coverages of the intervals.
    intervals : dict of Interval
        By parameter, all but the spin.
    spin : SpinProbability or None
        None if the spin is not estimated, or the calibration sample has only one spin.
    """

    groups: int
    images: int
    levels: tuple[float, ...]
    intervals: dict[str, Interval]
    spin: SpinProbability | None

    def bounds(self, names: Sequence[str], predicted: Floats) -> dict[str, Floats]:
        """Return the intervals of predictions.

        Parameters
        ----------
        names : sequence of str
            Names of the P labels.
        predicted : ndarray, shape (N, P)
            In their units.

        Returns
        -------
        dict of ndarray, shape (N, levels, 2)
            Lower and upper bounds by parameter, all but the spin (`Interval.bounds`).
        """
        theta = predicted_theta(names, predicted)
        columns = dict(zip(names, predicted.T, strict=True))
        return {
            name: interval.bounds(columns[name], theta) for name, interval in self.intervals.items()
        }

    def holds(self, names: Sequence[str], true: Floats, predicted: Floats) -> dict[str, Any]:
        """Return whether the intervals of predictions (N, P) contain the true values.

        Returns
        -------
        dict of ndarray, shape (N, levels), bool
            By parameter, all but the spin.
        """
        theta = predicted_theta(names, predicted)
        held = {}
        for k, name in enumerate(names):
            if interval := self.intervals.get(name):
                errors = _errors(name, true[:, k], interval.within(predicted[:, k]))
                ratio = errors / interval.usual(theta)
                held[name] = ratio[:, None] <= np.array(interval.quantiles)
        return held

    def to_json(self) -> dict[str, Any]:
        """Return it in the form of intervals.json."""
        values = asdict(self)
        for part in values["intervals"].values():
            part |= {end: part[end] if np.isfinite(part[end]) else None for end in ("low", "high")}
        return values

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Calibration":
        """Return the calibration that `to_json` wrote.

        Raises
        ------
        KeyError, TypeError
            The values have another form.
        """
        intervals = {
            name: Interval(
                part["circular"],
                -np.inf if part["low"] is None else part["low"],
                np.inf if part["high"] is None else part["high"],
                tuple(part["theta_deg"]),
                tuple(part["usual_error"]),
                tuple(part["quantiles"]),
            )
            for name, part in values["intervals"].items()
        }
        spin = SpinProbability(**values["spin"]) if values["spin"] else None
        return cls(values["groups"], values["images"], tuple(values["levels"]), intervals, spin)


class Labels(NamedTuple):
    """Held-out images to calibrate on."""

    names: Sequence[str]
    """Names of the P labels."""
    true: Floats
    """True labels (N, P), in their units."""
    predicted: Floats
    """Predicted labels (N, P), in their units."""
    score: NDArray[np.floating] | None
    """`models.targets.retrograde_score`, (N,); None if the spin is not estimated."""
    groups: NDArray[np.int64]
    """Group of each image, (N,)."""

    def where(self, chosen: NDArray[np.bool_]) -> "Labels":
        """Return the labels of the chosen images."""
        score = None if self.score is None else self.score[chosen]
        return Labels(
            self.names, self.true[chosen], self.predicted[chosen], score, self.groups[chosen]
        )


def read_calibration(path: Path, model_sha256: str, condition: str) -> Calibration | None:
    """Read a calibration from intervals.json.

    Parameters
    ----------
    path : Path
        The file.
    model_sha256 : str
        SHA-256 of the model that predicts.
    condition : str
        ``clean`` or ``sky``.

    Returns
    -------
    Calibration or None
        None if there were too few groups to calibrate, or no images of that condition.

    Raises
    ------
    InputError
        The file is missing, damaged, or belongs to another model.
    """
    content = files.read_json(path)
    try:
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']}, not {FORMAT}")
        model, values = content["model"], content["calibrations"].get(condition)
        calibration = Calibration.from_json(values) if values else None
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: damaged ({error}); run galmerhpc evaluate again") from None
    if model != model_sha256:
        raise InputError(f"{path}: belongs to another model; run galmerhpc evaluate again")
    return calibration


def as_file(model_sha256: str, calibrations: dict[str, Calibration | None]) -> dict[str, Any]:
    """Return the content of intervals.json.

    Parameters
    ----------
    model_sha256 : str
        SHA-256 of the model that predicts.
    calibrations : dict of Calibration or None
        By condition; None if there were too few groups.
    """
    parts = {name: part.to_json() if part else None for name, part in calibrations.items()}
    return {"format": FORMAT, "model": model_sha256, "calibrations": parts}


def calibrate(labels: Labels, levels: Sequence[float]) -> Calibration:
    """Calibrate intervals and the spin's probability on held-out images.

    The usual error is taken from the same images as the quantiles: six numbers from thousands of
    images hardly depend on any of them, and the images that measure coverage are not used.

    Parameters
    ----------
    labels : Labels
        The images.
    levels : sequence of float
        Nominal coverages of the intervals.
    """
    names, true, predicted, score, groups = labels
    weights = group_weights(groups)
    theta = predicted_theta(names, predicted)
    intervals = {}
    for k, name in enumerate(names):
        if name == SPIN.name:
            continue
        # A held-out grid seldom reaches the ends of a range, and a catalogue may exceed it.
        low = min(named(name).low, float(true[:, k].min()))
        high = max(named(name).high, float(true[:, k].max()))
        interval = Interval(name == AZIMUTH.name, low, high, (), (), ())
        errors = _errors(name, true[:, k], interval.within(predicted[:, k]))
        nodes, usual = _usual_error(errors, theta, weights)
        ratio = errors / np.interp(theta, nodes, usual)
        intervals[name] = replace(
            interval,
            theta_deg=tuple(nodes.tolist()),
            usual_error=tuple(usual.tolist()),
            quantiles=tuple(_quantiles(ratio, groups, levels)),
        )
    spin = None
    if score is not None:
        retrograde = true[:, list(names).index(SPIN.name)]
        if retrograde.min() < retrograde.max():
            spin = _fit_spin(score.astype(np.float64), retrograde, weights)
    return Calibration(len(np.unique(groups)), len(true), tuple(levels), intervals, spin)


def halved_coverage(
    labels: Labels, levels: Sequence[float], halvings: int, seed: int
) -> dict[str, Any]:
    """Measure the coverage of calibrated intervals over random halvings of the groups.

    In each, one half of the groups is used to calibrate and the other to test, with the same weight
    for every group.

    Parameters
    ----------
    labels : Labels
        The images, of `FEWEST_GROUPS` groups or more.
    levels : sequence of float
        As in `calibrate`.
    halvings : int
        Number of halvings.
    seed : int
        Seed of the halvings.

    Returns
    -------
    dict
        ``levels``; ``parameters``: by name ``coverage`` (share of true values inside, mean over
        halvings), ``scatter`` (its standard deviation) and ``median_width`` (full width), each a
        list over levels; ``spin``: means over halvings of ``brier``, ``log_loss`` and
        ``accuracy``, and ``reliability``, whose entries give for each bin the mean ``predicted``
        probability of retrograde, the ``observed`` share, and ``images`` (over all halvings);
        None if it is not estimated.
    """
    generator = np.random.default_rng(seed)
    names, distinct = labels.names, np.unique(labels.groups)
    held: dict[str, list[Floats]] = {name: [] for name in names if name != SPIN.name}
    widths: dict[str, list[Floats]] = {name: [] for name in held}
    spins: list[tuple[Floats, Floats, Floats]] = []
    for _ in range(halvings):
        chosen = generator.permutation(distinct)[: len(distinct) // 2]
        first = np.isin(labels.groups, chosen)
        calibration, test = calibrate(labels.where(first), levels), labels.where(~first)
        weights = group_weights(test.groups)
        theta = predicted_theta(names, test.predicted)
        for name, inside in calibration.holds(names, test.true, test.predicted).items():
            held[name].append(weights @ inside)
            half = calibration.intervals[name].half_widths(theta)
            widths[name].append(np.median(2 * half, axis=0))
        if test.score is not None and calibration.spin:
            retrograde = test.true[:, list(names).index(SPIN.name)]
            spins.append((calibration.spin(test.score.astype(np.float64)), retrograde, weights))
    return {
        "levels": list(levels),
        "parameters": {
            name: {
                "coverage": np.mean(held[name], axis=0),
                "scatter": np.std(held[name], axis=0),
                "median_width": np.mean(widths[name], axis=0),
            }
            for name in held
        },
        "spin": _spin_scores(spins) if spins else None,
    }


def coverage(
    calibration: Calibration,
    names: Sequence[str],
    true: Floats,
    predicted: Floats,
    groups: NDArray[np.int64],
) -> dict[str, Floats]:
    """Return the coverage of intervals that were calibrated on other images, by parameter.

    Returns
    -------
    dict of ndarray, shape (levels,)
        Every group has the same weight.
    """
    held = calibration.holds(names, true, predicted)
    return {name: group_weights(groups) @ inside for name, inside in held.items()}


def group_weights(groups: NDArray[np.int64]) -> Floats:
    """Return weights of images, shape (N,), with equal sums for all groups and a total of 1."""
    _, member, counts = np.unique(groups, return_inverse=True, return_counts=True)
    return 1.0 / (len(counts) * counts[member])


def predicted_theta(names: Sequence[str], predicted: Floats) -> Floats:
    """Return the predicted viewing angle, shape (N,); zeros if it is not estimated."""
    if VIEWING_ANGLE.name not in names:
        return np.zeros(len(predicted))
    return predicted[:, list(names).index(VIEWING_ANGLE.name)]


def _errors(name: str, true: Floats, predicted: Floats) -> Floats:
    return circular_error(true, predicted) if name == AZIMUTH.name else np.abs(predicted - true)


def _usual_error(errors: Floats, theta: Floats, weights: Floats) -> tuple[Floats, Floats]:
    """Return bin centres of the predicted viewing angle, and the mean error in each bin."""
    edges = np.linspace(theta.min(), theta.max(), _THETA_BINS + 1)
    member = np.clip(np.digitize(theta, edges) - 1, 0, _THETA_BINS - 1)
    filled = np.flatnonzero(np.bincount(member, minlength=_THETA_BINS) >= _FEWEST_IMAGES)
    mean = float(weights @ errors)
    if mean == 0:
        return edges[:1], np.ones(1)
    if not len(filled):
        return edges[:1], np.array([mean])
    total = np.bincount(member, weights, _THETA_BINS)[filled]
    usual = np.bincount(member, weights * errors, _THETA_BINS)[filled] / total
    middles = (edges[:-1] + edges[1:])[filled] / 2
    return middles, np.maximum(usual, _SMALLEST_USUAL * mean)


def _quantiles(values: Floats, groups: NDArray[np.int64], levels: Sequence[float]) -> list[float]:
    """Return the quantiles of a new group's values at the levels, with equal weight per group.

    Split-conformal prediction takes the quantile of level x (1 + 1 / n), since a new value joins
    the n that were drawn. Here n is the effective sample size (Kish 1965, Survey Sampling): the
    number of independent images that would leave the groups' mean share as uncertain as it is.
    It lies between the number of groups (fully correlated images) and the number of images
    (independent ones). If the level exceeds 1, the largest value is taken.
    """
    _, member, counts = np.unique(groups, return_inverse=True, return_counts=True)
    order = np.argsort(values)
    reached = np.cumsum(group_weights(groups)[order])

    def at(share: float) -> float:
        # The last sum is 1 up to rounding.
        place = int(np.searchsorted(reached, share - 1e-12))
        return float(values[order][min(place, len(values) - 1)])

    found = []
    for level in levels:
        shares = np.bincount(member, values <= at(level)) / counts
        variance = shares.var(ddof=1) / len(counts) if len(counts) > 1 else np.inf
        alone = level * (1 - level) / variance if variance else np.inf
        found.append(at(level * (1 + 1 / np.clip(alone, len(counts), len(values)))))
    return found


def _fit_spin(score: Floats, retrograde: Floats, weights: Floats) -> SpinProbability:
    """Fit the logistic curve by maximum likelihood, with Platt's targets slightly off 0 and 1.

    They prevent a step function where the scores of the two spins do not overlap, and overfitting
    to few groups: the curve scores better on new groups than without them.
    """
    count = retrograde.sum()
    high, low = (count + 1) / (count + 2), 1 / (len(retrograde) - count + 2)
    target = np.where(retrograde > 0.5, high, low)

    def loss(line: Floats) -> float:
        z = line[0] * (score - 0.5) + line[1]
        return float(weights @ (np.logaddexp(0.0, z) - target * z))

    slope, offset = minimize(loss, np.array([1.0, 0.0]), method="BFGS").x
    slope = float(slope) or 1e-9  # an uninformative score
    return SpinProbability(slope, 0.5 - float(offset) / slope)


def _spin_scores(spins: list[tuple[Floats, Floats, Floats]], bins: int = 10) -> dict[str, Any]:
    """Score probabilities of retrograde over halvings."""
    brier = [w @ (p - r) ** 2 for p, r, w in spins]
    log_loss = [-(w @ np.log(np.clip(np.where(r > 0.5, p, 1 - p), 1e-12, 1))) for p, r, w in spins]
    accuracy = [w @ ((p > 0.5) == (r > 0.5)) for p, r, w in spins]
    p, r, w = (np.concatenate(parts) for parts in zip(*spins, strict=True))
    member = np.minimum((p * bins).astype(int), bins - 1)
    reliability = [
        {
            "predicted": np.average(p[member == b], weights=w[member == b]),
            "observed": np.average(r[member == b], weights=w[member == b]),
            "images": int((member == b).sum()),
        }
        for b in np.unique(member)
    ]
    return {
        "brier": np.mean(brier),
        "log_loss": np.mean(log_loss),
        "accuracy": np.mean(accuracy),
        "reliability": reliability,
    }
