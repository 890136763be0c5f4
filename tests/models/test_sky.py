"""Sky operations: what each does, and that an image comes out the same in any batch."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter, rotate

from galmerhpc.config import OnlineAugment
from galmerhpc.dataset.batches import rank_share
from galmerhpc.models import sky

SIZE, COUNT = 32, 24
RANDOM = np.random.default_rng(5)
IMAGES = RANDOM.uniform(0, 255, (COUNT, SIZE, SIZE, 3)).astype(np.float32)
EVERYTHING = OnlineAugment(rotation_deg=180, intensity=0.3, psf_fwhm_px=3, blur_px=1.5, noise=8)


def amounts(value: float) -> np.ndarray:
    return np.full(COUNT, value, np.float32)


def star(size: int = 65) -> np.ndarray:
    image = np.zeros((1, size, size, 1), np.float32)
    image[0, size // 2, size // 2] = 1
    return image


@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_a_roll_by_a_quarter_turn_is_numpy_s(quarters: int) -> None:
    rolled = sky.roll(IMAGES, amounts(90.0 * quarters)).numpy()
    np.testing.assert_allclose(rolled, np.rot90(IMAGES, quarters, (1, 2)), atol=1e-3)


def test_a_roll_by_any_angle_is_scipy_s_with_black_around() -> None:
    angles = np.linspace(-180, 180, COUNT).astype(np.float32)
    images = IMAGES[:, :, : SIZE - 5]  # not square
    rolled = sky.roll(images, angles).numpy()
    for image, angle, found in zip(images, angles, rolled, strict=True):
        expected = rotate(image, angle, reshape=False, order=1, mode="grid-constant")
        np.testing.assert_allclose(found, expected, atol=0.05)


def test_a_blur_is_scipy_s_and_conserves_the_flux() -> None:
    sigma = np.linspace(0, 2, COUNT).astype(np.float32)
    blurred = sky.blur(IMAGES, sigma, 2.0).numpy()
    expected = [
        gaussian_filter(image, s, axes=(0, 1), radius=8)
        for image, s in zip(IMAGES, sigma, strict=True)
    ]
    np.testing.assert_allclose(blurred, expected, atol=1e-3)
    np.testing.assert_allclose(blurred.sum((1, 2)), IMAGES.sum((1, 2)), rtol=1e-5)
    assert blurred[0].tobytes() == IMAGES[0].tobytes()  # sigma 0


def test_a_star_s_image_has_its_width_and_conserves_the_flux() -> None:
    image = sky.psf(star(), np.array([6.0]), 7.0).numpy()[0, :, :, 0]
    assert image.sum() == pytest.approx(1, rel=1e-5)
    row = image[32] / image[32, 32]
    assert row[32 + 3] == pytest.approx(0.5, rel=1e-4)  # half of the full width
    assert row[32 - 3] == row[32 + 3] == pytest.approx(image[32 + 3, 32] / image[32, 32])
    unchanged = sky.psf(IMAGES, amounts(0.0), 1.0).numpy()
    assert unchanged.tobytes() == IMAGES.tobytes()


def test_noise_has_the_wanted_sigma_and_is_each_sample_s_and_epoch_s_own() -> None:
    images = np.full((COUNT, SIZE, SIZE, 3), 100, np.float32)
    sigma = np.linspace(2, 40, COUNT).astype(np.float32)

    def noise(epoch: int, seed: int = 0) -> np.ndarray:
        seeds = sky.keys(seed, np.int64(epoch), np.arange(COUNT), sky.NOISE)
        return (sky.noise(images, sigma, seeds).numpy() - images) / sigma[:, None, None, None]

    first = noise(0)
    flat = first.reshape(COUNT, -1)
    assert flat.std(axis=1) == pytest.approx(np.ones(COUNT), abs=0.06)
    assert flat.mean(axis=1) == pytest.approx(np.zeros(COUNT), abs=0.08)
    others = np.concatenate([flat, noise(1).reshape(COUNT, -1), noise(0, 1).reshape(COUNT, -1)])
    correlation = np.corrcoef(others) - np.eye(3 * COUNT)
    assert np.abs(correlation).max() < 0.1
    assert noise(0).tobytes() == first.tobytes()


@pytest.fixture(scope="module")
def augmented() -> Callable[..., np.ndarray]:
    """Return the whole augmentation, compiled as in training."""
    import tensorflow as tf

    signature = [
        tf.TensorSpec((None, SIZE, SIZE, 3), tf.uint8),
        tf.TensorSpec((), tf.int64),
        tf.TensorSpec((None,), tf.int64),
    ]
    augment = tf.function(
        sky.make_augment(EVERYTHING, seed=3), autograph=False, input_signature=signature
    )
    return lambda images, epoch, rows: augment(images, epoch, rows).numpy()


PIXELS = IMAGES.astype(np.uint8)
ROWS = RANDOM.choice(2**40, COUNT, replace=False)  # of a very large data set


@settings(max_examples=25)
@given(rows=st.lists(st.integers(0, COUNT - 1), min_size=1, max_size=COUNT))
def test_a_sample_s_pixels_do_not_depend_on_its_batch(
    augmented: Callable[..., np.ndarray], rows: list[int]
) -> None:
    whole = augmented(PIXELS, 7, ROWS)
    assert augmented(PIXELS[rows], 7, ROWS[rows]).tobytes() == whole[rows].tobytes()


@pytest.mark.parametrize("ranks", [2, 3, 5])
def test_ranks_together_augment_as_one_does(
    augmented: Callable[..., np.ndarray], ranks: int
) -> None:
    shares = [rank_share(COUNT, rank, ranks) for rank in range(ranks)]
    together = np.concatenate([augmented(PIXELS[s], 0, ROWS[s]) for s in shares])
    assert together.tobytes() == augmented(PIXELS, 0, ROWS).tobytes()


def test_an_epoch_changes_every_image_anew(augmented: Callable[..., np.ndarray]) -> None:
    first, second = augmented(PIXELS, 0, ROWS), augmented(PIXELS, 1, ROWS)
    assert first.dtype == np.uint8
    assert (first != PIXELS).any(axis=(1, 2, 3)).all()
    assert (first != second).any(axis=(1, 2, 3)).all()
    same = np.repeat(PIXELS[:1], COUNT, axis=0)
    assert len({image.tobytes() for image in augmented(same, 0, ROWS)}) == COUNT


def test_amounts_fill_their_range_and_do_not_depend_on_each_other() -> None:
    grey = np.full((400, 32, 32, 1), 100, np.uint8)

    def factors(**more: Any) -> np.ndarray:
        augment = sky.make_augment(OnlineAugment(intensity=0.5, **more), 0)
        return augment(grey, np.int64(0), np.arange(400)).numpy().mean(axis=(1, 2, 3)) / 100

    alone = factors()
    assert 0.5 <= alone.min() < 0.52
    assert 1.48 < alone.max() <= 1.5
    assert alone.std() == pytest.approx(1 / np.sqrt(12), rel=0.1)  # uniform
    assert factors(blur_px=1, psf_fwhm_px=1) == pytest.approx(alone, abs=0.01)


def test_without_ranges_images_stay_as_they_are() -> None:
    augment = sky.make_augment(OnlineAugment(), 0)
    assert augment(PIXELS, np.int64(0), ROWS) is PIXELS
