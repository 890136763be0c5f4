"""Definition of a study: its name, its points, and the axis of its figure."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from galmerhpc.config import Config


@dataclass(frozen=True)
class Point:
    """One run of a study.

    Attributes
    ----------
    name : str
        Name of its run folder, and its tick label on an axis of categories.
    value : float or str
        Value of the varied quantity.
    changes : dict
        Changes to the study's configuration, by key.
    """

    name: str
    value: float | str
    changes: dict[str, Any]


@dataclass(frozen=True)
class Study:
    """A study that varies one quantity.

    Attributes
    ----------
    name : str
        As on the command line.
    summary : str
        What is varied, and what changes with it.
    points : callable
        Returns the points for a configuration; raises InputError if it has none.
    axis : str
        The figure's horizontal axis.
    scale : str
        ``linear``, ``log``, or ``categories`` (points equally spaced, in order).
    column : str
        Column of the table shown on that axis.
    simulates : bool
        Whether each point needs its own snapshot library.
    law : bool
        Whether a power law is fitted to the errors (`power_law`).
    """

    name: str
    summary: str
    points: Callable[[Config], Sequence[Point]]
    axis: str
    scale: Literal["linear", "log", "categories"] = "linear"
    column: str = "value"
    simulates: bool = False
    law: bool = False


def points_of(key: str, values: Sequence[float]) -> list[Point]:
    """Return one point per value of a key."""
    return [Point(name_of(value), value, {key: value}) for value in values]


def name_of(value: float) -> str:
    """Return the name of a value's point, of twelve digits at most."""
    return f"{value:.12g}"


def epochs_for(config: Config, share: float) -> dict[str, int]:
    """Return the keys with which training on a share of the images takes as many steps as on all.

    Only whole epochs are possible, so that it may be some steps more or less. More data then
    means more different images, not more steps, nor more steps with frozen statistics.
    """
    epochs = max(round(config.training.epochs / share), 1)
    frozen = round(config.training.freeze_batchnorm_epochs / share)
    return {
        "training.epochs": epochs,
        "training.freeze_batchnorm_epochs": min(frozen, epochs - 1),
    }
