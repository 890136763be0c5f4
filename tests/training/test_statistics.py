"""Batch normalisation's statistics for evaluation: those that training normalises with."""

import numpy as np
import pytest

from galmerhpc.config import OnlineAugment
from galmerhpc.dataset.batches import Batch
from galmerhpc.models.sky import make_augment
from galmerhpc.training.statistics import StatisticsEstimator


@pytest.mark.parametrize(
    ("micro_batch", "pieces"),
    [(None, [range(10)]), (16, [range(10)]), (4, [range(4), range(4, 7), range(7, 10)])],
)
def test_the_statistics_are_the_mean_of_those_of_what_passes_at_once(
    micro_batch: int | None, pieces: list[range]
) -> None:
    import keras

    inputs = keras.Input((4, 4, 1), dtype="uint8")
    normalise = keras.layers.BatchNormalization()
    model = keras.Model(inputs, normalise(keras.layers.Rescaling(1.0)(inputs)))
    images = np.random.default_rng(1).integers(0, 256, (10, 4, 4, 1), np.uint8)
    batch = Batch(0, np.arange(10), images, np.zeros((10, 1), np.float32), 10)
    augment = make_augment(OnlineAugment(), 0)
    StatisticsEstimator(model, augment, micro_batch).estimate([batch], 0, 1)
    parts = [images[list(rows)].astype(np.float64) for rows in pieces]
    np.testing.assert_allclose(normalise.moving_mean, [np.mean([p.mean() for p in parts])], 1e-5)
    np.testing.assert_allclose(normalise.moving_variance, [np.mean([p.var() for p in parts])], 1e-4)
