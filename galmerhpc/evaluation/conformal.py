"""Intervals around predictions, and the probability of the spin: calibrated on whole groups.

Split-conformal prediction: the errors of held-out images, each divided by the error that is usual
at its predicted viewing angle, have a quantile; predicted value +- quantile x usual error is the
interval of a new image. Views of one encounter err alike, so that groups of images (realisation x
configuration) are what is exchangeable, not images: every group has the same weight, whatever its
size. This is the pooling of the groups' distributions of Dunn, Wasserman & Ramdas 2022 (Journal of
the American Statistical Association 118, 2491), with the correction for a finite sample that
`_quantiles` explains. It holds for an image of a new group; of K groups whose images err alike no
interval can hold more than K / (K + 1). `halved_coverage` measures what is held.

``evaluation/intervals.json`` holds what `Calibration.to_json` gives, by condition of the images::

    {"format": 1,
     "model": "<SHA-256 of model.keras>",
     "calibrations": {
       "clean": {
         "groups": 32, "images": 5624,            what it was calibrated on
         "levels": [0.68, 0.9],                   of the intervals
         "intervals": {                           all parameters but the spin
           "azimuth": {
             "circular": true,                    an arc: bounds wrap, and low, high bind nothing
             "low": 0.0, "high": 180.0,           range of the parameter; bounds are cut there
             "theta_deg": [7.5, 22.5, ...],       predicted viewing angles, and ...
             "usual_error": [9.1, 7.3, ...],      ... the usual error there, between them linear
             "quantiles": [1.1, 2.4]}},           half width of a level's interval in usual errors
         "spin": {"slope": 11.0, "middle": 0.5}}, P(retrograde) = 1 / (1 + exp(-slope (x - middle)))
       "sky": {...}}}

where x is `models.targets.retrograde_score`. ``spin`` is null where spin is not estimated.
`read_calibration` reads the file.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
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
"""Groups without which nothing is calibrated: half of them, to measure coverage, are two."""

_THETA_BINS = 6
"""Bins of the predicted viewing angle; 15 degrees each on the paper's quarter sphere."""
_FEWEST_IMAGES = 10
"""Images of a bin without which it takes its neighbours' usual error."""
_SMALLEST_USUAL = 0.05
"""Smallest usual error as a share of the mean error, so that no error is divided by zero."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """How wide one parameter's intervals are; the attributes are those of intervals.json."""

    circular: bool
    low: float
    high: float
    theta_deg: tuple[float, ...]
    usual_error: tuple[float, ...]
    quantiles: tuple[float, ...]

    def usual(self, theta: Floats) -> Floats:
        """Return the usual error at predicted viewing angles, both of shape (N,)."""
        return np.interp(theta, self.theta_deg, self.usual_error)

    def half_widths(self, theta: Floats) -> Floats:
        """Return half the width of each level's interval, shape (N, levels)."""
        return self.usual(theta)[:, None] * np.array(self.quantiles)

    def bounds(self, predicted: Floats, theta: Floats) -> Floats:
        """Return lower and upper bounds, shape (N, levels, 2).

        An arc's bounds are in -180..180 and the upper one may be the smaller: the arc then goes
        over +-180. One that is the whole circle is -180..180.
        """
        half = self.half_widths(theta)
        bounds = np.stack([predicted[:, None] - half, predicted[:, None] + half], axis=-1)
        if not self.circular:
            return np.clip(bounds, self.low, self.high)
        wrapped = (bounds + 180.0) % 360.0 - 180.0
        return np.where((half >= 180.0)[:, :, None], (-180.0, 180.0), wrapped)


@dataclass(frozen=True)
class SpinProbability:
    """The probability that an encounter is retrograde, a logistic curve (Platt 1999).

    The attributes are those of intervals.json.
    """

    slope: float
    middle: float

    def __call__(self, score: Floats) -> Floats:
        """Return the probabilities of `models.targets.retrograde_score`, shape (N,)."""
        return expit(self.slope * (score - self.middle))


@dataclass(frozen=True)
class Calibration:
    """What turns predictions into intervals and the spin's probability.

    Attributes
    ----------
    groups, images : int
        What it was calibrated on.
    levels : tuple of float
        Share of the images whose true value an interval is to hold.
    intervals : dict of Interval
        By parameter, all but the spin.
    spin : SpinProbability or None
        None where the spin is not estimated, or only one was there to calibrate on.
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
        """Tell whether the intervals of predictions (N, P) hold the true values.

        Returns
        -------
        dict of ndarray, shape (N, levels), bool
            By parameter, all but the spin.
        """
        theta = predicted_theta(names, predicted)
        held = {}
        for k, name in enumerate(names):
            if interval := self.intervals.get(name):
                ratio = _errors(name, true[:, k], predicted[:, k]) / interval.usual(theta)
                held[name] = ratio[:, None] <= np.array(interval.quantiles)
        return held

    def to_json(self) -> dict[str, Any]:
        """Return it as a part of intervals.json."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Calibration":
        """Read what `to_json` wrote.

        Raises
        ------
        KeyError, TypeError
            It is something else.
        """
        intervals = {
            name: Interval(
                part["circular"], part["low"], part["high"], tuple(part["theta_deg"]),
                tuple(part["usual_error"]), tuple(part["quantiles"]),
            )
            for name, part in values["intervals"].items()
        }  # fmt: skip
        spin = SpinProbability(**values["spin"]) if values["spin"] else None
        return cls(values["groups"], values["images"], tuple(values["levels"]), intervals, spin)


class Labels(NamedTuple):
    """What held-out images are calibrated on."""

    names: Sequence[str]
    """Of the P labels."""
    true: Floats
    """(N, P), in their units."""
    predicted: Floats
    """(N, P), in their units."""
    score: NDArray[np.floating] | None
    """`models.targets.retrograde_score`, (N,); None where the spin is not estimated."""
    groups: NDArray[np.int64]
    """Group of each image, (N,)."""

    def where(self, chosen: NDArray[np.bool_]) -> "Labels":
        """Return those of the chosen images."""
        score = None if self.score is None else self.score[chosen]
        return Labels(
            self.names, self.true[chosen], self.predicted[chosen], score, self.groups[chosen]
        )


def read_calibration(path: Path, model_sha256: str, condition: str) -> Calibration | None:
    """Read a calibration of intervals.json.

    Parameters
    ----------
    path : Path
        The file.
    model_sha256 : str
        Of the model that predicts.
    condition : str
        ``clean`` or ``sky``.

    Returns
    -------
    Calibration or None
        None where there were too few groups to calibrate on, or no images of that condition.

    Raises
    ------
    InputError
        The file is missing, damaged, or of another model.
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
        raise InputError(f"{path}: calibrated for another model; run galmerhpc evaluate again")
    return calibration


def as_file(model_sha256: str, calibrations: dict[str, Calibration | None]) -> dict[str, Any]:
    """Return the content of intervals.json.

    Parameters
    ----------
    model_sha256 : str
        Of the model that predicts.
    calibrations : dict of Calibration or None
        By condition; None where there were too few groups.
    """
    parts = {name: part.to_json() if part else None for name, part in calibrations.items()}
    return {"format": FORMAT, "model": model_sha256, "calibrations": parts}


def calibrate(labels: Labels, levels: Sequence[float]) -> Calibration:
    """Calibrate intervals and the spin's probability on held-out images.

    The usual error is taken from the same images as the quantiles: six numbers from thousands of
    images bind them too little to matter, and the images that measure coverage have no part in it.

    Parameters
    ----------
    labels : Labels
        The images.
    levels : sequence of float
        Shares of images whose true value the intervals are to hold.
    """
    names, true, predicted, score, groups = labels
    weights = group_weights(groups)
    theta = predicted_theta(names, predicted)
    intervals = {}
    for k, name in enumerate(names):
        if name == SPIN.name:
            continue
        errors = _errors(name, true[:, k], predicted[:, k])
        nodes, usual = _usual_error(errors, theta, weights)
        ratio = errors / np.interp(theta, nodes, usual)
        # A held-out grid seldom reaches the ends of a range: where it is known, it is the limit.
        parameter = named(name)
        known = [limit for limit in (parameter.low, parameter.high) if np.isfinite(limit)]
        limits = [*true[:, k].tolist(), *known]
        intervals[name] = Interval(
            name == AZIMUTH.name,
            min(limits),
            max(limits),
            tuple(nodes.tolist()),
            tuple(usual.tolist()),
            tuple(_quantiles(ratio, groups, levels)),
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
    """Measure what calibrated intervals hold, over random halvings of the groups.

    In each, one half of the groups calibrates and the other is tested on, with the same weight for
    every group.

    Parameters
    ----------
    labels : Labels
        The images, of `FEWEST_GROUPS` groups or more.
    levels : sequence of float
        As in `calibrate`.
    halvings : int
        Number of halvings.
    seed : int
        What they depend on.

    Returns
    -------
    dict
        ``levels``; ``parameters``: by name ``coverage`` (mean over halvings of the share of true
        values held), ``scatter`` (its standard deviation) and ``median_width`` (of the whole
        interval), each a list over levels; ``spin``: ``brier`` and ``log_loss``, means over
        halvings, beside ``accuracy`` and ``reliability``, whose entries give the mean
        ``predicted`` probability of retrograde of a bin, the ``observed`` share, and ``images``
        (over all halvings); None where it is not estimated.
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
    """Return the share of true values that a calibration from elsewhere holds, by parameter.

    Returns
    -------
    dict of ndarray, shape (levels,)
        Every group has the same weight.
    """
    held = calibration.holds(names, true, predicted)
    return {name: group_weights(groups) @ inside for name, inside in held.items()}


def group_weights(groups: NDArray[np.int64]) -> Floats:
    """Return weights of images, shape (N,), that add up to the same for every group, and to 1."""
    _, member, counts = np.unique(groups, return_inverse=True, return_counts=True)
    return 1.0 / (len(counts) * counts[member])


def predicted_theta(names: Sequence[str], predicted: Floats) -> Floats:
    """Return the predicted viewing angle, shape (N,); zeros where it is not estimated."""
    if VIEWING_ANGLE.name not in names:
        return np.zeros(len(predicted))
    return predicted[:, list(names).index(VIEWING_ANGLE.name)]


def _errors(name: str, true: Floats, predicted: Floats) -> Floats:
    return circular_error(true, predicted) if name == AZIMUTH.name else np.abs(predicted - true)


def _usual_error(errors: Floats, theta: Floats, weights: Floats) -> tuple[Floats, Floats]:
    """Return bins' middles of the predicted viewing angle, and the mean error in each."""
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
    """Return the values below which a new group's lie to the levels' shares, all groups weighed.

    A new value is one more than the n that were drawn, so that split-conformal prediction takes
    the quantile of level x (1 + 1 / n). Here n is as many independent images as would leave the
    groups' mean share as uncertain as it is (Kish 1965, Survey Sampling, effective size): the
    number of images where those of a group have nothing in common, of groups where they err alike.
    Where that asks for more than there is, the largest value has to do.
    """
    _, member, counts = np.unique(groups, return_inverse=True, return_counts=True)
    order = np.argsort(values)
    reached = np.cumsum(group_weights(groups)[order])

    def at(share: float) -> float:
        # The last sum is 1 but for rounding.
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
    """Fit the logistic curve by maximum likelihood, with Platt's targets a little off 0 and 1.

    They keep the curve from a step where the two spins' scores do not overlap, and from trusting
    the few groups it is fitted to: on new ones it scores better than without.
    """
    count = retrograde.sum()
    high, low = (count + 1) / (count + 2), 1 / (len(retrograde) - count + 2)
    target = np.where(retrograde > 0.5, high, low)

    def loss(line: Floats) -> float:
        z = line[0] * (score - 0.5) + line[1]
        return float(weights @ (np.logaddexp(0.0, z) - target * z))

    slope, offset = minimize(loss, np.array([1.0, 0.0]), method="BFGS").x
    slope = float(slope) or 1e-9  # a score that says nothing
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
