"""Power-law fit to errors: what more data would bring if the law continued to hold."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

FEWEST = 3
"""Least number of points for a fit; two points fit any law."""


@dataclass(frozen=True)
class PowerLaw:
    """``error = amplitude * x ** exponent``, fitted by least squares to the logarithms.

    Attributes
    ----------
    amplitude, exponent : float
        Parameters of the law.
    exponent_error : float
        Standard error of the exponent, from the scatter about the law; with three points it is
        itself uncertain by a factor of about 2.
    """

    amplitude: float
    exponent: float
    exponent_error: float

    def at(self, x: float) -> float:
        """Return the error at x; an extrapolation outside the fitted range."""
        return float(self.amplitude * x**self.exponent)

    def __str__(self) -> str:
        """Return the law as text."""
        return f"{self.amplitude:.3g} x^({self.exponent:.2f} ± {self.exponent_error:.2f})"


def fit(x: Sequence[float], error: Sequence[float]) -> PowerLaw | None:
    """Fit the law; None if fewer than `FEWEST` points are positive and finite.

    Parameters
    ----------
    x, error : sequence of float, the same length
        Points.

    Examples
    --------
    >>> law = fit([1, 4, 16], [8.0, 4.0, 2.0])
    >>> law.exponent, law.at(64)
    (-0.5, 1.0)
    """
    both = np.array([x, error], np.float64)  # (2, n)
    both = both[:, (np.isfinite(both) & (both > 0)).all(axis=0)]
    if len(np.unique(both[0])) < FEWEST:
        return None
    log_x, log_error = np.log(both)
    centred = log_x - log_x.mean()
    exponent = centred @ log_error / (centred @ centred)
    offset = log_error.mean() - exponent * log_x.mean()
    residual = log_error - offset - exponent * log_x
    variance = residual @ residual / (len(log_x) - 2) / (centred @ centred)
    return PowerLaw(float(np.exp(offset)), float(exponent), float(np.sqrt(variance)))
