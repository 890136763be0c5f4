"""The conditions under which images are evaluated: clean (unchanged) or sky-like.

Which labels an image keeps depends on the changes. Roll, shift, scale, blur, noise, stars and other
galaxies leave all labels unchanged: theta and phi are of the line of sight, not of the camera.
(Face-on, at theta = 0, a rolled image is the same as one of another phi: with random rolls phi
cannot be determined there, and its errors show it.) A mirrored image is the view from the opposite
side, since matter is transparent: (180 - theta, phi +- 180), outside the range of a network trained
on the quarter sphere. Then only labels of the encounter are scored: spin, inclination and any
others.
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
"""Takes images (B, H, W, C) and their `draws` (B,), returns changed images."""


def unchanged(images: Images, draws: NDArray[np.int64]) -> Images:  # noqa: ARG001 - a `Change`
    """Return images unchanged."""
    return images


def sky_like(ranges: OnlineAugment, seed: int, image_shape: tuple[int, int, int]) -> Change:
    """Return the function that makes images sky-like.

    Parameters
    ----------
    ranges : OnlineAugment
        Ranges of the changes.
    seed : int
        An image's changes depend only on the seed and its `draws` number.
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
    """Return the number that determines each image's changes, (N,).

    Parameters
    ----------
    views : ViewColumns
        The images; the number is a hash of view and copy.
    again : int
        Another value gives other changes.
    """
    both = zip(views.id, views.copy, strict=True)
    names = (f"{view} {copy} {again}".encode() for view, copy in both)
    return np.array(
        [int.from_bytes(hashlib.sha256(name).digest()[:8], "big", signed=True) for name in names],
        np.int64,
    )


def surviving(parameters: Sequence[str], ranges: OnlineAugment | None) -> list[str]:
    """Return the labels that an image keeps under changes (None: no changes)."""
    lost = (AZIMUTH.name, VIEWING_ANGLE.name) if ranges and ranges.mirror else ()
    return [name for name in parameters if name not in lost]


def trained_sky_like(config: Config) -> bool:
    """Return whether training made every kind of change of the sky-like images."""
    trained, sky = config.training.augment, config.evaluation.sky
    if sky is None:
        return False
    return all(getattr(trained, name) for name, value in sky.model_dump().items() if value)


def describe(ranges: OnlineAugment) -> str:
    """Return a phrase that describes the changes to images."""
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
