"""The four parameters of a galaxy pair: their order, units, ranges and classes.

Labels are in one order everywhere: spin, inclination, azimuth, viewing angle, as the paper
prints them ("P or R, i, phi, theta"; arXiv:2112.12604, figures 4, 8 and 9).

The paper defines the azimuth by the projection of the spin axis on the orbital plane; the preview
service's ``phi`` turns the line of sight about the orbital axis, and that is what the images
carry and what `AZIMUTH` means here.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

PROGRADE, RETROGRADE = 0.0, 1.0
SPINS = {"prograde": PROGRADE, "retrograde": RETROGRADE}


@dataclass(frozen=True)
class Parameter:
    """One quantity that a network estimates.

    Attributes
    ----------
    name : str
        Its name in configurations, shards and metrics.
    symbol : str
        Its symbol in figures.
    unit : str
        ``"deg"``, or empty for a number without unit.
    low, high : float
        Range that the paper trains.
    values : tuple of float
        The only values that occur, for a discrete parameter; empty for a continuous one.
    """

    name: str
    symbol: str
    unit: str
    low: float
    high: float
    values: tuple[float, ...] = ()

    def classes(self, width_deg: float) -> int:
        """Return the number of classes: one per value, or bins of `width_deg` over the range.

        Raises
        ------
        ValueError
            The width does not divide the range.
        """
        if self.values:
            return len(self.values)
        count = (self.high - self.low) / width_deg
        if count < 1 or abs(count - round(count)) > 1e-9:
            raise ValueError(
                f"a class width of {width_deg:g} does not divide {self.name}'s range "
                f"{self.low:g}..{self.high:g}"
            )
        return round(count)

    def in_class(self, values: ArrayLike) -> NDArray[np.bool_]:
        """Return of each value whether it is in a class, shape as given."""
        values = np.asarray(values, np.float64)
        if self.values:
            return np.isin(values, self.values)
        return (self.low <= values) & (values <= self.high)

    @property
    def span(self) -> str:
        """What `in_class` takes, in words."""
        return ", ".join(f"{v:g}" for v in self.values) or f"{self.low:g}..{self.high:g}"


SPIN = Parameter("spin", "spin", "", 0.0, 1.0, (PROGRADE, RETROGRADE))
INCLINATION = Parameter("inclination", "i", "deg", 0.0, 90.0, (0.0, 45.0, 75.0, 90.0))
AZIMUTH = Parameter("azimuth", "φ", "deg", 0.0, 180.0)
VIEWING_ANGLE = Parameter("viewing_angle", "θ", "deg", 0.0, 90.0)

PARAMETERS = {p.name: p for p in (SPIN, INCLINATION, AZIMUTH, VIEWING_ANGLE)}
NAMES = tuple(PARAMETERS)


def named(name: str) -> Parameter:
    """Return the parameter of that name; any other catalogue label is a plain number.

    Parameters
    ----------
    name : str
        A name of `PARAMETERS`, or that of an extra label column of a catalogue.
    """
    return PARAMETERS.get(name) or Parameter(name, name, "", -np.inf, np.inf)


def class_groups(names: Sequence[str], width_deg: float) -> list[slice]:
    """Return the columns that each parameter's classes take, side by side in the order of `names`.

    Parameters
    ----------
    names : sequence of str
        Names of `PARAMETERS`.
    width_deg : float
        Width of the azimuth's and viewing angle's bins, degrees.

    Examples
    --------
    >>> class_groups(NAMES, 5)
    [slice(0, 2, None), slice(2, 6, None), slice(6, 42, None), slice(42, 60, None)]
    """
    ends = np.cumsum([PARAMETERS[name].classes(width_deg) for name in names]).tolist()
    return [slice(start, end) for start, end in zip([0, *ends[:-1]], ends, strict=True)]


def encode_classes(
    labels: ArrayLike, width_deg: float, names: Sequence[str] = NAMES
) -> NDArray[np.float32]:
    """Write labels as one-hot groups side by side: the paper's 60 outputs (section 3).

    Bins are ``[k w, (k + 1) w)``, the last one closed; a discrete parameter takes the nearest of
    its values.

    Parameters
    ----------
    labels : array_like, shape (N, P)
        Angles in degrees.
    width_deg : float
        Width of the azimuth's and viewing angle's bins; 5 gives 2 + 4 + 36 + 18 = 60 classes.
    names : sequence of str
        The labels' names, P of `PARAMETERS`.

    Returns
    -------
    ndarray, shape (N, classes), float32

    Raises
    ------
    ValueError
        A label is outside its parameter's range or not finite.
    """
    labels = np.asarray(labels, dtype=np.float64)  # (N, P)
    groups = []
    for column, name in zip(labels.T, names, strict=True):
        parameter = PARAMETERS[name]
        bad = ~((column >= parameter.low) & (column <= parameter.high))
        if bad.any():
            raise ValueError(
                f"{parameter.name} {column[bad][0]:g} is outside "
                f"{parameter.low:g}..{parameter.high:g}"
            )
        count = parameter.classes(width_deg)
        if parameter.values:
            index = np.abs(column[:, None] - np.array(parameter.values)).argmin(axis=1)
        else:
            index = np.minimum((column - parameter.low) // width_deg, count - 1).astype(int)
        groups.append(np.eye(count, dtype=np.float32)[index])
    return np.concatenate(groups, axis=1)


def decode_classes(
    scores: ArrayLike, width_deg: float, names: Sequence[str] = NAMES
) -> NDArray[np.float32]:
    """Read one-hot groups back: the highest score of each group, as its value or bin centre.

    Parameters
    ----------
    scores : array_like, shape (N, classes)
        Scores in the layout of `encode_classes`.
    width_deg : float
        Width of the bins, degrees.
    names : sequence of str
        The labels' names, P of `PARAMETERS`.

    Returns
    -------
    ndarray, shape (N, P), float32
    """
    scores = np.asarray(scores)
    columns = []
    for name, group in zip(names, class_groups(names, width_deg), strict=True):
        parameter, index = PARAMETERS[name], scores[:, group].argmax(axis=1)
        centres = parameter.low + width_deg * (np.arange(parameter.classes(width_deg)) + 0.5)
        columns.append(np.array(parameter.values or centres)[index])
    return np.stack(columns, axis=1).astype(np.float32)


def relative_inclination(
    i1: ArrayLike, i2: ArrayLike, pa1: ArrayLike, pa2: ArrayLike
) -> NDArray[np.float64]:
    """Angle between two discs from their sky inclinations and position angles.

    The paper's equation 3: ``cos i = sin i1 sin i2 cos(PA1 - PA2) + cos i1 cos i2``.

    Parameters
    ----------
    i1, i2, pa1, pa2 : array_like
        Degrees.

    Returns
    -------
    ndarray, float64
        Degrees, 0..180.
    """
    i1, i2, pa1, pa2 = (np.radians(np.asarray(a, dtype=np.float64)) for a in (i1, i2, pa1, pa2))
    cosine = np.sin(i1) * np.sin(i2) * np.cos(pa1 - pa2) + np.cos(i1) * np.cos(i2)
    return np.degrees(np.arccos(np.clip(cosine, -1.0, 1.0)))


def circular_error(
    true: ArrayLike, predicted: ArrayLike, period: float = 360.0
) -> NDArray[np.float64]:
    """Return the smallest distance between angles that wrap, 0..period / 2.

    Parameters
    ----------
    true, predicted : array_like
        Degrees.
    period : float
        Degrees after which the angle repeats.

    Returns
    -------
    ndarray, float64
    """
    difference = np.abs(np.asarray(predicted, float) - np.asarray(true, float)) % period
    return np.minimum(difference, period - difference)


def goes_round(angles: NDArray[np.float64]) -> bool:
    """Return whether angles cover the full circle: the gap across +-180 is not the widest.

    Parameters
    ----------
    angles : ndarray, shape (N,)
        Degrees.

    Examples
    --------
    >>> goes_round(np.arange(-180, 180, 10.0)), goes_round(np.arange(0, 181, 10.0))
    (True, False)
    """
    values = np.unique(angles)
    return bool(len(values) > 1 and values[0] + 360.0 - values[-1] <= np.diff(values).max())


def full_circles(parameters: Sequence[str], labels: NDArray[np.floating]) -> list[int]:
    """Return the columns of labels that cover the full circle: that of the azimuth, or none.

    Parameters
    ----------
    parameters : sequence of str
        Names of the P labels.
    labels : ndarray, shape (N, P)
        Those of the training images.
    """
    return [
        k
        for k, name in enumerate(parameters)
        if name == AZIMUTH.name and goes_round(labels[:, k].astype(np.float64))
    ]


def on_nearest_turn(
    true: NDArray[np.floating], predicted: ArrayLike, columns: Sequence[int]
) -> NDArray[np.float64]:
    """Return predictions moved by whole turns to within 180 degrees of the true angles.

    Their plain difference is then the error the shorter way round.

    Parameters
    ----------
    true, predicted : array_like, shape (N, P)
        Degrees in `columns`.
    columns : sequence of int
        `full_circles`; the others are returned as they are.
    """
    moved = np.array(predicted, dtype=np.float64)
    for k in columns:
        moved[:, k] -= 360.0 * np.round((moved[:, k] - true[:, k]) / 360.0)
    return moved
