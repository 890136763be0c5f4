"""Sky operations: the effect of each, and independence of the batch."""

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
EVERYTHING = OnlineAugment(
    rotation_deg=180, mirror=True, zoom=0.2, centre_px=3, intensity=0.3, neighbours=2, stars=3,
    sky=20, psf_fwhm_px=3, blur_px=1.5, noise=8,
)  # fmt: skip


def amounts(value: float) -> np.ndarray:
    return np.full(COUNT, value, np.float32)


def star(size: int = 65) -> np.ndarray:
    image = np.zeros((1, size, size, 1), np.float32)
    image[0, size // 2, size // 2] = 1
    return image


@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_a_roll_by_a_quarter_turn_is_numpy_s(quarters: int) -> None:
    rolled = sky.move(IMAGES, amounts(90.0 * quarters)).numpy()
    np.testing.assert_allclose(rolled, np.rot90(IMAGES, quarters, (1, 2)), atol=1e-3)


def test_a_roll_by_any_angle_is_scipy_s_with_black_around() -> None:
    angles = np.linspace(-180, 180, COUNT).astype(np.float32)
    images = IMAGES[:, :, : SIZE - 5]  # not square
    rolled = sky.move(images, angles).numpy()
    for image, angle, found in zip(images, angles, rolled, strict=True):
        expected = rotate(image, angle, reshape=False, order=1, mode="grid-constant")
        np.testing.assert_allclose(found, expected, atol=0.05)


def test_images_are_mirrored_enlarged_turned_and_shifted_in_this_order() -> None:
    size = 41
    images = np.zeros((4, size, size, 1), np.float32)
    images[:, 20, 26] = 1  # six pixels right of the centre
    moved = sky.move(
        images,
        angle_deg=np.array([90, 0, 0, 90], np.float32),
        zoom=np.array([1, 2, 1, 2], np.float32),
        right_px=np.array([0, 0, -3, 1], np.float32),
        down_px=np.array([0, 0, 2, 2], np.float32),
        mirrored=np.array([False, False, True, True]),
    ).numpy()
    # (row, column): up by six; right by twelve; left by six and the shift; left by twelve, which a
    # quarter turn makes down by twelve, and the shift.
    for image, place in zip(moved[..., 0], [(14, 20), (20, 32), (22, 11), (34, 21)], strict=True):
        assert np.unravel_index(image.argmax(), image.shape) == place
        assert image.max() == pytest.approx(1, abs=1e-3)


def test_an_unmoved_image_keeps_every_bit() -> None:
    assert sky.move(IMAGES).numpy().tobytes() == IMAGES.tobytes()
    flipped = sky.move(IMAGES, mirrored=np.full(COUNT, True)).numpy()
    np.testing.assert_allclose(flipped, IMAGES[:, :, ::-1], atol=1e-3)


def test_the_sky_is_a_plane_whose_level_and_slope_are_the_wanted() -> None:
    level, slope = np.array([10, 40], np.float32), np.array([[0, 0], [0.5, -0.25]], np.float32)
    bright = sky.sky(np.zeros((2, 33, 65, 3), np.float32), level, slope).numpy()
    np.testing.assert_allclose(bright[0], 10, atol=1e-4)
    np.testing.assert_allclose(bright[1, 16, [0, 32, 64], 0], [20, 40, 60], atol=1e-3)
    np.testing.assert_allclose(bright[1, [0, 16, 32], 32, 2], [50, 40, 30], atol=1e-3)


def test_stars_stand_where_they_are_drawn_as_many_as_are_counted() -> None:
    draws = np.array([[[0.25, 0.5, 1.0], [0.75, 0.25, 0.5], [0.5, 0.5, 1.0]]] * 2, np.float32)
    shown = sky.stars(np.zeros((2, 65, 65, 3), np.float32), np.array([0, 2.0]), draws).numpy()
    assert (shown[0] == 0).all()
    assert shown[1, 32, 16] == pytest.approx(2 * sky.WHITE, rel=1e-2)
    assert shown[1, 16, 48] == pytest.approx(2 * sky.WHITE * 0.5**3, rel=1e-2)
    assert shown[1, 32, 32].max() < 1  # the third is not counted
    half = shown[1, 32, 16:18, 0] / shown[1, 32, 16, 0]
    assert half[1] < 0.5  # one pixel away is beyond half of the width


def test_a_neighbour_is_an_ellipse_no_larger_than_its_bound() -> None:
    # In the middle, as bright and large as can be, flattened by half of the most, turned by 45 deg.
    draws = np.array([[[0.5, 0.5, 1.0, 1.0, 0.5, 0.25]]], np.float32)
    shown = sky.neighbours(np.zeros((1, 101, 101, 1), np.float32), np.array([1.0]), draws).numpy()
    image = shown[0, :, :, 0]
    assert image[50, 50] == pytest.approx(sky.WHITE)
    np.testing.assert_allclose(image, image.T, rtol=1e-4)  # of the diagonal
    np.testing.assert_allclose(image, image[::-1, ::-1], rtol=1e-4)
    radius = sky.GALAXY_RADIUS[1] * 101
    along, across = image[50 + 10, 50 + 10], image[50 - 10, 50 + 10]
    distance = 200**0.5
    assert along == pytest.approx(sky.WHITE * (1 + (distance / radius) ** 2) ** -2, rel=1e-3)
    assert across == pytest.approx(sky.WHITE * (1 + (distance / 0.6 / radius) ** 2) ** -2, rel=1e-3)


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


@pytest.mark.parametrize(("key", "most"), [("stars", 3), ("neighbours", 3)])
def test_up_to_so_many_stars_and_neighbours_are_added(key: str, most: int) -> None:
    black = np.zeros((200, 48, 48, 1), np.uint8)
    augment = sky.make_augment(OnlineAugment(**{key: most}), 0)
    sky_only = augment(black, np.int64(0), np.arange(200)).numpy()
    empty = (sky_only == 0).all(axis=(1, 2, 3)).mean()
    # One in most + 1 has none of them; of the others some are too faint to see.
    assert 1 / (most + 1) - 0.08 < empty < 0.6
    assert sky_only.max() > 200


def test_nothing_tells_by_how_much_a_picture_was_rolled() -> None:
    white = np.full((40, 48, 48, 1), 200, np.uint8)
    rolled = sky.make_augment(OnlineAugment(rotation_deg=180), 0)(
        white, np.int64(0), np.arange(40)
    ).numpy()
    mean = rolled.mean(axis=0)
    y, x = np.mgrid[:48, :48] - 23.5
    rim = np.abs(np.hypot(x, y) - 24) < 1.5
    assert (rolled[:, np.hypot(x, y) > 25.5] == 0).all()
    assert np.abs(rolled - mean)[:, ~rim].max() < 1
    assert np.abs(rolled[:, rim].mean(axis=(1, 2)) - mean[rim].mean()).max() < 3


def test_half_of_the_images_are_mirrored_and_the_others_stay() -> None:
    images = np.repeat(PIXELS, 10, axis=0)
    shown = sky.make_augment(OnlineAugment(mirror=True), 0)(
        images, np.int64(0), np.arange(len(images))
    ).numpy()
    same = (shown == images).all(axis=(1, 2, 3))
    flipped = (shown == images[:, :, ::-1]).all(axis=(1, 2, 3))
    assert (same ^ flipped).all()
    assert 0.4 < same.mean() < 0.6


def test_without_ranges_images_stay_as_they_are() -> None:
    augment = sky.make_augment(OnlineAugment(), 0)
    assert augment(PIXELS, np.int64(0), ROWS) is PIXELS
