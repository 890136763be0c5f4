"""What a study is: its name, its points, and what its figure shows them against."""

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
        Name of its run folder, and its tick where the axis has categories.
    value : float or str
        What is varied.
    changes : dict
        Values by key in which its configuration differs from the study's.
    """

    name: str
    value: float | str
    changes: dict[str, Any]


@dataclass(frozen=True)
class Study:
    """A quantity that is varied while all else stays.

    Attributes
    ----------
    name : str
        As on the command line.
    summary : str
        What is varied, in one sentence; says also what moves along with it.
    points : callable
        Returns the points for a configuration; raises InputError where it has none.
    axis : str
        The figure's horizontal axis.
    scale : str
        ``linear``, ``log``, or ``categories``: one place a point, in order.
    column : str
        Column of the table along that axis.
    simulates : bool
        Whether each point needs a snapshot library of its own.
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
    """Return a point for each value of one key."""
    return [Point(f"{value:g}", value, {key: value}) for value in values]


def epochs_for(config: Config, share: float) -> dict[str, int]:
    """Return the keys with which a share of the training images is seen as often as all of them.

    More data then means more different images, not more steps, and not more of them with frozen
    statistics.
    """
    epochs = max(round(config.training.epochs / share), 1)
    frozen = round(config.training.freeze_batchnorm_epochs / share)
    return {
        "training.epochs": epochs,
        "training.freeze_batchnorm_epochs": min(frozen, epochs - 1),
    }
