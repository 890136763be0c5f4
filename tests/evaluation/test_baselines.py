"""The look-up: it finds known images and beats the mean."""

import numpy as np
import pytest
from PIL import Image

from galmerhpc.config import Lookup
from galmerhpc.evaluation.baselines import LookUp, mean_prediction, thumbnails
from galmerhpc.parameters import NAMES
from tests.evaluation.runs import draw_pair, grid

SETTINGS = Lookup()


def look_up(labels: np.ndarray, **settings: int) -> LookUp:
    thumbs = thumbnails(draw_pair(labels), SETTINGS.thumbnail_px)
    return LookUp(thumbs, labels, NAMES, Lookup(**settings))


@pytest.mark.parametrize(("height", "width", "size"), [(64, 64, 16), (50, 37, 16), (8, 8, 16)])
@pytest.mark.parametrize("channels", [1, 3])
def test_thumbnails_are_pillow_s_box_means(
    height: int, width: int, size: int, channels: int
) -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, height, width, channels), np.uint8)
    ours = thumbnails(images, size).reshape(3, size, size)
    for image, thumb in zip(images, ours, strict=True):
        grey = Image.fromarray(image.mean(axis=-1).astype(np.float32))
        expected = np.asarray(grey.resize((size, size), Image.Resampling.BOX))
        # Pillow gives a pixel to the cells that hold its centre; only whole cells compare exactly.
        if height % size == width % size == 0:
            assert np.abs(thumb - expected).max() < 1e-3
        assert thumb.mean() == pytest.approx(image.mean(), abs=1e-3)


def test_training_images_are_found_without_error() -> None:
    labels = grid(np.arange(0, 181, 20), np.arange(10, 81, 20))
    found = look_up(labels).predict(thumbnails(draw_pair(labels), SETTINGS.thumbnail_px))
    assert np.abs(found - labels).max() < 1e-3


def test_views_between_the_grid_are_found_much_better_than_by_the_mean() -> None:
    training = grid(np.arange(0, 181, 10), np.arange(0, 91, 10))
    unseen = grid(np.arange(5, 180, 10), np.arange(5, 90, 10))
    found = look_up(training).predict(thumbnails(draw_pair(unseen), SETTINGS.thumbnail_px))
    error = np.abs(found - unseen).mean(axis=0)
    mean = np.abs(mean_prediction(training, len(unseen)) - unseen).mean(axis=0)
    assert (error < 0.2 * mean).all()


def test_one_neighbour_and_more_neighbours_than_images_both_work() -> None:
    labels = grid(np.array([0, 90]), np.array([45]))
    thumbs = thumbnails(draw_pair(labels), SETTINGS.thumbnail_px)
    assert np.abs(look_up(labels, neighbours=1).predict(thumbs) - labels).max() < 1e-3
    far = look_up(labels, neighbours=10**6, components=10**6).predict(thumbs)
    assert np.abs(far - labels).max() < 1e-3


def test_azimuths_are_averaged_on_the_circle_where_they_go_round() -> None:
    # One thumbnail pixel: the images at +-170 look alike, and the one asked for lies between them.
    azimuths = np.arange(-170, 180, 20.0)
    labels = np.zeros((len(azimuths), 4), np.float32)
    labels[:, 2] = azimuths
    levels = np.where(np.abs(azimuths) == 170, azimuths / 85, 200 + azimuths)[:, None]
    found = LookUp(levels.astype(np.float32), labels, NAMES, Lookup(neighbours=2))
    assert abs(found.predict(np.zeros((1, 1), np.float32))[0, 2]) == pytest.approx(180)
