"""The conditions that images are evaluated under: clean, as they are, or sky-like.

What a changed image is called follows from what was done to it. A roll, a shift, another scale,
blur, noise and whatever else is on the sky leave all labels: theta and phi name the line of sight,
not the camera. (Face-on, at theta = 0, a turned picture is the same as one of another phi: under
random rolls phi cannot be told there, and its errors say so.) A mirrored picture is the view from
the opposite side, since matter is transparent: (180 - theta, phi +- 180), outside of what a network
of the quarter sphere can say. Then only what belongs to the encounter is scored: spin and
inclination, and any other label of the encounter.
"""

import hashlib
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from galmerhpc.config import Config, OnlineAugment
from galmerhpc.evaluation.sample import ViewColumns
from galmerhpc.models.sky import make_augment
from galmerhpc.parameters import AZIMUTH, VIEWING_ANGLE

CLEAN, SKY = "clean", "sky"

Images = NDArray[np.uint8]
Change = Callable[[Images, NDArray[np.int64]], Images]
"""Takes images (B, H, W, C) and their `draws` (B,), returns such images."""


def unchanged(images: Images, draws: NDArray[np.int64]) -> Images:  # noqa: ARG001 - a `Change`
    """Return images as they are."""
    return images


def sky_like(ranges: OnlineAugment, seed: int, image_shape: tuple[int, int, int]) -> Change:
    """Return the function that makes images sky-like.

    Parameters
    ----------
    ranges : OnlineAugment
        What is changed, and how much.
    seed : int
        What an image becomes follows from the seed and its `draws` number alone.
    image_shape : tuple of int
        H, W, C.
    """
    import tensorflow as tf

    augment = tf.function(
        make_augment(ranges, seed),
        input_signature=(
            tf.TensorSpec((None, *image_shape), tf.uint8),
            tf.TensorSpec((), tf.int64),
            tf.TensorSpec((None,), tf.int64),
        ),
    )
    return lambda images, draws: augment(images, np.int64(0), draws).numpy()


def draws(views: ViewColumns, again: int = 0) -> NDArray[np.int64]:
    """Return the number that each image's changes follow from, (N,).

    Parameters
    ----------
    views : ViewColumns
        The images; the number is a hash of view and copy.
    again : int
        Another one gives other changes.
    """
    both = zip(views.id, views.copy, strict=True)
    names = (f"{view} {copy} {again}".encode() for view, copy in both)
    return np.array(
        [int.from_bytes(hashlib.sha256(name).digest()[:8], "big", signed=True) for name in names],
        np.int64,
    )


def surviving(parameters: Sequence[str], ranges: OnlineAugment | None) -> list[str]:
    """Return the labels that an image keeps under some changes; None are no changes."""
    lost = (AZIMUTH.name, VIEWING_ANGLE.name) if ranges and ranges.mirror else ()
    return [name for name in parameters if name not in lost]


def trained_sky_like(config: Config) -> bool:
    """Tell whether training made every kind of change that makes images sky-like."""
    trained, sky = config.training.augment, config.evaluation.sky
    if sky is None:
        return False
    return all(getattr(trained, name) for name, value in sky.model_dump().items() if value)


def describe(ranges: OnlineAugment) -> str:
    """Say in one phrase what is done to images."""
    texts = {
        "rotation_deg": "roll up to ±{:g}°",
        "mirror": "half of them mirrored",
        "zoom": "scale ±{:.0%}",
        "centre_px": "shift up to {:g} px",
        "intensity": "brightness ±{:.0%}",
        "neighbours": "up to {} other galaxies",
        "stars": "up to {} stars",
        "sky": "sky up to {:g} grey levels",
        "psf_fwhm_px": "PSF up to {:g} px",
        "blur_px": "blur up to {:g} px",
        "noise": "noise up to {:g} grey levels",
    }
    given = [(texts[name], value) for name, value in ranges.model_dump().items() if value]
    return ", ".join(text.format(value) for text, value in given) or "no change"
