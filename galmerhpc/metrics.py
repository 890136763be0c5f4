"""Errors of predictions as partial sums that ranks can add up exactly, in any order.

Floating-point sums depend on their order; here every term is rounded once to a multiple of
2**-40 and split into two parts whose sums float64 holds without rounding. So the result does not
depend on how samples were dealt to ranks (for up to 2**23 terms of magnitude below 2**20).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from galmerhpc.parameters import class_groups, decode_classes, encode_classes

_COARSE, _FINE = 2.0**-10, 2.0**-40


S = TypeVar("S", bound="Sums")


class Sums(Protocol):
    """What ranks add up: the sums over each rank's samples, then the ranks' sums."""

    def __add__(self: S, other: S) -> S:
        """Merge the sums of two disjoint sets of samples."""

    def as_vector(self) -> NDArray[np.float64]:
        """Return all sums as one vector; the sum of ranks' vectors is their merger."""

    @classmethod
    def from_vector(cls: type[S], vector: NDArray[np.float64]) -> S:
        """Read what `as_vector` wrote."""

    def metrics(self) -> dict[str, Any]:
        """Return metrics by name, arrays where they are those of each parameter."""


@dataclass(frozen=True)
class PartialSums:
    """Sums over samples, per parameter; ``+`` merges those of disjoint samples.

    Attributes
    ----------
    count : int
        Number of samples.
    sums : ndarray, shape (4, P, 2), float64
        Exact sums of |error|, error^2, true value and its square, in coarse and fine parts.
    """

    count: int
    sums: NDArray[np.float64]

    @classmethod
    def of(cls, true: ArrayLike, predicted: ArrayLike) -> "PartialSums":
        """Add up samples.

        Parameters
        ----------
        true, predicted : array_like, shape (N, P)
            Labels and predictions in the same units.

        Raises
        ------
        ValueError
            The shapes differ, or a prediction is not finite.
        """
        true, predicted = (
            np.asarray(true, np.float64),
            np.asarray(predicted, np.float64),
        )
        if true.shape != predicted.shape or true.ndim != 2:
            raise ValueError(f"shapes {true.shape} and {predicted.shape} are not the same (N, P)")
        error = predicted - true  # (N, P)
        if not np.isfinite(error).all():
            raise ValueError("a label or prediction is not finite")
        terms = np.stack([np.abs(error), error**2, true, true**2])  # (4, N, P)
        coarse = np.round(terms / _COARSE) * _COARSE
        fine = np.round((terms - coarse) / _FINE) * _FINE
        return cls(len(true), np.stack([coarse.sum(axis=1), fine.sum(axis=1)], axis=-1))

    @classmethod
    def none(cls, parameters: int) -> "PartialSums":
        """Return the sums of no samples."""
        return cls(0, np.zeros((4, parameters, 2)))

    def __add__(self, other: "PartialSums") -> "PartialSums":
        """Merge the sums of two disjoint sets of samples."""
        return PartialSums(self.count + other.count, self.sums + other.sums)

    def as_vector(self) -> NDArray[np.float64]:
        """Return count and sums as one vector; the sum of ranks' vectors is their merger."""
        return np.concatenate([[self.count], self.sums.ravel()])

    @classmethod
    def from_vector(cls, vector: NDArray[np.float64]) -> "PartialSums":
        """Read what `as_vector` wrote."""
        return cls(int(vector[0]), vector[1:].reshape(4, -1, 2))

    def metrics(self) -> dict[str, NDArray[np.float64]]:
        """Return ``mae``, ``mse`` and ``r2``, each of shape (P,).

        R2 is not a number where the true values are all equal.

        Raises
        ------
        ValueError
            There are no samples.
        """
        if self.count == 0:
            raise ValueError("no samples")
        absolute, squared, true, true_squared = self.sums.sum(axis=-1)
        variance = true_squared - true**2 / self.count
        # Equal true values leave rounding in the place of a variance.
        constant = variance <= 1e-9 * np.maximum(true_squared, 1.0)
        r2 = 1.0 - squared / np.where(constant, np.nan, variance)
        return {"mae": absolute / self.count, "mse": squared / self.count, "r2": r2}


@dataclass(frozen=True)
class ClassifierSums:
    """A classifier's right answers, and the errors of the labels that it chose.

    Attributes
    ----------
    errors : PartialSums
        Of the chosen classes' values and bin centres (`parameters.decode_classes`).
    answers : ndarray, shape (P + 3,), float64
        Images with each parameter's class right, images with all of them right, classes right
        (probability above one half or not), classes in all.
    """

    errors: PartialSums
    answers: NDArray[np.float64]

    @classmethod
    def of(
        cls, true: ArrayLike, probabilities: ArrayLike, names: Sequence[str], width_deg: float
    ) -> "ClassifierSums":
        """Add up samples.

        Parameters
        ----------
        true : array_like, shape (N, P)
            Labels; angles in degrees.
        probabilities : array_like, shape (N, classes)
            Predictions in the layout of `parameters.encode_classes`.
        names : sequence of str
            Names of the P labels.
        width_deg : float
            Width of the azimuth's and viewing angle's bins, degrees.

        Raises
        ------
        ValueError
            A label has no class, the shapes do not fit, or a prediction is not finite.
        """
        probabilities = np.asarray(probabilities)
        classes = encode_classes(true, width_deg, names)  # (N, classes)
        if probabilities.shape != classes.shape:
            raise ValueError(f"shapes {probabilities.shape} and {classes.shape} are not the same")
        if not np.isfinite(probabilities).all():
            raise ValueError("a prediction is not finite")
        right = np.array(
            [
                probabilities[:, group].argmax(axis=1) == classes[:, group].argmax(axis=1)
                for group in class_groups(names, width_deg)
            ]
        )  # (P, N)
        answers = [
            *right.sum(axis=1),
            right.all(axis=0).sum(),
            ((probabilities > 0.5) == (classes > 0.5)).sum(),
            classes.size,
        ]
        errors = PartialSums.of(true, decode_classes(probabilities, width_deg, names))
        return cls(errors, np.array(answers, np.float64))

    @classmethod
    def none(cls, parameters: int) -> "ClassifierSums":
        """Return the sums of no samples."""
        return cls(PartialSums.none(parameters), np.zeros(parameters + 3))

    def __add__(self, other: "ClassifierSums") -> "ClassifierSums":
        """Merge the sums of two disjoint sets of samples."""
        return ClassifierSums(self.errors + other.errors, self.answers + other.answers)

    def as_vector(self) -> NDArray[np.float64]:
        """Return all sums as one vector; the sum of ranks' vectors is their merger."""
        return np.concatenate([self.errors.as_vector(), self.answers])

    @classmethod
    def from_vector(cls, vector: NDArray[np.float64]) -> "ClassifierSums":
        """Read what `as_vector` wrote."""
        parameters = (len(vector) - 4) // 9  # 1 + 8 P sums of errors, P + 3 of answers
        errors, answers = np.split(vector, [1 + 8 * parameters])
        return cls(PartialSums.from_vector(errors), answers)

    def metrics(self) -> dict[str, Any]:
        """Return what `PartialSums.metrics` does, and shares of right answers.

        ``accuracy``, shape (P,), is that of each parameter, ``all_accuracy`` the share of images
        with all parameters right. ``binary_accuracy`` counts every class by itself, as Keras does:
        ``trivial_binary_accuracy`` is that of a network that always says no (56 / 60 for the
        paper's classes).

        Raises
        ------
        ValueError
            There are no samples.
        """
        metrics = self.errors.metrics()
        count, parameters = self.errors.count, len(metrics["mae"])
        *accuracy, all_right, right, classes = self.answers
        return metrics | {
            "accuracy": np.array(accuracy) / count,
            "all_accuracy": all_right / count,
            "binary_accuracy": right / classes,
            "trivial_binary_accuracy": 1 - parameters * count / classes,
        }


def describe_answers(metrics: dict[str, Any]) -> str:
    """Return in one phrase how often a classifier is right, beside one that always says no.

    Parameters
    ----------
    metrics : dict
        What `ClassifierSums.metrics` returns.
    """
    return (
        f"binary accuracy {100 * metrics['binary_accuracy']:.2f} % "
        f"(always no: {100 * metrics['trivial_binary_accuracy']:.2f} %), "
        f"all parameters right for {100 * metrics['all_accuracy']:.2f} % of the images"
    )


def regression_metrics(true: ArrayLike, predicted: ArrayLike) -> dict[str, NDArray[np.float64]]:
    """Return ``mae``, ``mse`` and ``r2`` per parameter for arrays of shape (N, P)."""
    return PartialSums.of(true, predicted).metrics()


def to_json(values: Any) -> Any:
    """Turn arrays into lists, numbers into Python's and not-a-number into None, for JSON."""
    if isinstance(values, dict):
        return {key: to_json(value) for key, value in values.items()}
    if isinstance(values, np.ndarray | list | tuple):
        return [to_json(value) for value in values]
    if isinstance(values, np.generic):
        values = values.item()
    return None if isinstance(values, float) and not math.isfinite(values) else values
