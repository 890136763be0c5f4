import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from galmerhpc.config import Augment
from galmerhpc.dataset.augment import Change, apply, draw

NOTHING = Change(roll_deg=0, brightness=1, blur_px=0)


def noise(channels: int = 3, size: int = 33) -> np.ndarray:
    shape = (size, size) if channels == 1 else (size, size, channels)
    return np.random.default_rng(0).integers(0, 200, shape, np.uint8)


@given(st.integers(0, 2**32), st.text(), st.integers(1, 100))
@settings(max_examples=50)
def test_a_draw_depends_on_its_key_alone_and_stays_in_range(
    seed: int, view: str, copy: int
) -> None:
    ranges = Augment(rotation_deg=30, intensity=0.3, blur_px=2, seed=seed)
    change = draw(ranges, view, copy)
    assert change == draw(ranges, view, copy)
    assert abs(change.roll_deg) <= 30
    assert 0.7 <= change.brightness <= 1.3
    assert 0 <= change.blur_px <= 2
    for other in (
        draw(ranges, view + "x", copy),
        draw(ranges, view, copy + 1),
        draw(ranges.model_copy(update={"seed": seed + 1}), view, copy),
    ):
        assert other != change


def test_draws_fill_their_ranges_evenly() -> None:
    changes = [draw(Augment(rotation_deg=10, blur_px=1), f"view {k}", 1) for k in range(2000)]
    for values, low, high in (
        ([c.roll_deg for c in changes], -10, 10),
        ([c.brightness for c in changes], 0.8, 1.2),
        ([c.blur_px for c in changes], 0, 1),
    ):
        counts, _ = np.histogram(values, bins=5, range=(low, high))
        assert counts.sum() == 2000
        assert counts.min() > 320  # 400 expected, sigma 18


@pytest.mark.parametrize("channels", [1, 3])
def test_no_change_changes_nothing(channels: int) -> None:
    pixels = noise(channels)
    np.testing.assert_array_equal(apply(NOTHING, Image.fromarray(pixels)), pixels)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_roll_turns_counter_clockwise(channels: int) -> None:
    pixels = noise(channels)
    rolled = apply(Change(roll_deg=90, brightness=1, blur_px=0), Image.fromarray(pixels))
    np.testing.assert_array_equal(rolled, np.rot90(pixels))


def test_brightness_is_a_factor_that_saturates() -> None:
    pixels = noise()
    brighter = apply(Change(roll_deg=0, brightness=1.5, blur_px=0), Image.fromarray(pixels))
    np.testing.assert_allclose(brighter, np.minimum(pixels * 1.5, 255), atol=0.5)


def test_a_blur_is_a_gaussian_of_its_sigma_in_each_channel() -> None:
    pixels = np.zeros((41, 41, 3), np.uint8)
    pixels[20, 20] = 0, 0, 255
    pixels[20, 20, 2] = 255
    sigma = 1.5
    blurred = apply(Change(roll_deg=0, brightness=1, blur_px=sigma), Image.fromarray(pixels))
    assert not blurred[..., :2].any()
    r2 = (np.arange(41) - 20) ** 2
    expected = 255 * np.exp(-(r2[:, None] + r2) / (2 * sigma**2)) / (2 * np.pi * sigma**2)
    np.testing.assert_allclose(blurred[..., 2], expected, atol=1)
