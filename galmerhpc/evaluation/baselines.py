"""Baselines without a network: the mean of the training labels, and a look-up of similar images.

A network that does not beat the look-up was not worth training.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from galmerhpc.config import Lookup
from galmerhpc.parameters import full_circles

_SAME_IMAGE = 1e-6
"""Grey levels: thumbnails closer than this are of the same image and differ only by rounding."""


def mean_prediction(labels: NDArray[np.float32], count: int) -> NDArray[np.float64]:
    """Predict the mean of the training labels for every image.

    Parameters
    ----------
    labels : ndarray, shape (N, P), float32
        Training labels.
    count : int
        Number of images to predict.

    Returns
    -------
    ndarray, shape (count, P), float64
    """
    return np.tile(labels.mean(axis=0, dtype=np.float64), (count, 1))


def thumbnails(images: NDArray[np.uint8], size: int) -> NDArray[np.float32]:
    """Shrink images to grey thumbnails by averaging over equal areas.

    Parameters
    ----------
    images : ndarray, shape (n, H, W, C), uint8
        Images.
    size : int
        Width and height of a thumbnail, pixels; need not divide H or W.

    Returns
    -------
    ndarray, shape (n, size * size), float32
        Grey levels, 0..255.
    """
    grey = images.mean(axis=-1, dtype=np.float32)  # (n, H, W)
    rows, columns = (_area_shares(length, size) for length in grey.shape[1:])
    return (rows @ grey @ columns.T).reshape(len(images), -1)


def _area_shares(length: int, size: int) -> NDArray[np.float32]:
    """Return the share of each of `length` pixels in each of `size` equal cells, (size, length)."""
    edges = np.linspace(0, length, size + 1)
    pixels = np.arange(length)
    overlap = np.minimum(pixels + 1, edges[1:, None]) - np.maximum(pixels, edges[:-1, None])
    return (np.maximum(overlap, 0.0) * size / length).astype(np.float32)


class LookUp:
    """Mean label of the most similar training images, weighted by inverse distance.

    Distances are between the thumbnails' leading principal components. With inverse-distance
    weights, a training image is predicted without error.

    Parameters
    ----------
    thumbs : ndarray, shape (N, pixels), float32
        `thumbnails` of the training images.
    labels : ndarray, shape (N, P), float32
        Their labels.
    parameters : tuple of str
        Names of the labels. The azimuth is averaged on the circle if it covers the full circle.
    settings : Lookup
        Components and neighbours.
    """

    def __init__(
        self,
        thumbs: NDArray[np.float32],
        labels: NDArray[np.float32],
        parameters: tuple[str, ...],
        settings: Lookup,
    ) -> None:
        self._mean = thumbs.mean(axis=0, dtype=np.float64)
        covariance = np.atleast_2d(np.cov(thumbs, rowvar=False, ddof=0))  # (pixels, pixels)
        _, vectors = np.linalg.eigh(covariance)  # ascending
        self._components = vectors[:, ::-1][:, : settings.components]
        self._labels = labels.astype(np.float64)
        self._neighbours = min(settings.neighbours, len(labels))
        self._tree = cKDTree(self._project(thumbs))
        self._circular = full_circles(parameters, self._labels)

    def _project(self, thumbs: NDArray[np.float32]) -> NDArray[np.float64]:
        return (thumbs - self._mean) @ self._components

    def predict(self, thumbs: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return predictions, shape (n, P), float64, for thumbnails of shape (n, pixels)."""
        ranks = list(range(1, self._neighbours + 1))  # a list keeps the axis for one neighbour
        distances, rows = self._tree.query(self._project(thumbs), ranks, workers=-1)  # (n, k)
        weights = 1.0 / np.maximum(distances, _SAME_IMAGE)
        weights /= weights.sum(axis=1, keepdims=True)
        neighbours = self._labels[rows]  # (n, k, P)
        predicted = np.einsum("nk,nkp->np", weights, neighbours)
        for k in self._circular:
            direction = np.exp(1j * np.radians(neighbours[:, :, k]))
            predicted[:, k] = np.degrees(np.angle((weights * direction).sum(axis=1)))
        return predicted
