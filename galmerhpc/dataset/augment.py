"""Offline copies of images: rolled, brighter or darker, blurred (arXiv:2112.12604, section 2).

No change is a flip: matter is transparent in these images, so a mirrored one is
the view from the opposite side, with other labels.
"""

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter

from galmerhpc.config import Augment


@dataclass(frozen=True, slots=True)
class Change:
    """What one copy differs in.

    Attributes
    ----------
    roll_deg : float
        Counter-clockwise rotation about the image's centre, degrees.
    brightness : float
        Factor on the pixel values.
    blur_px : float
        Sigma of the Gaussian blur, pixels.
    """

    roll_deg: float
    brightness: float
    blur_px: float


def draw(ranges: Augment, view_id: str, copy: int) -> Change:
    """Draw a copy's change from its ranges.

    It depends on the seed, the view and the copy's number alone: not on the order of work.

    Parameters
    ----------
    ranges : Augment
        Ranges and seed.
    view_id : str
        `catalogue.View.id`.
    copy : int
        Number of the copy, from 1.
    """
    view = int.from_bytes(hashlib.sha256(view_id.encode()).digest(), "big")
    seeds = np.random.SeedSequence([ranges.seed, view, copy])
    roll, brightness, blur = np.random.Generator(np.random.Philox(seeds)).random(3)
    return Change(
        roll_deg=ranges.rotation_deg * (2 * roll - 1),
        brightness=1 + ranges.intensity * (2 * brightness - 1),
        blur_px=ranges.blur_px * blur,
    )


def apply(change: Change, picture: Image.Image) -> NDArray[np.uint8]:
    """Return a changed copy; what rolls in from outside the image is black.

    Parameters
    ----------
    change : Change
        What to do.
    picture : Image
        An image of mode L or RGB, in its final size.

    Returns
    -------
    ndarray, shape (H, W) or (H, W, 3), uint8
    """
    rolled = picture.rotate(change.roll_deg, Image.Resampling.BICUBIC)
    pixels = np.asarray(rolled, np.float32) * change.brightness
    blurred = gaussian_filter(pixels, change.blur_px, axes=(0, 1))
    return np.clip(np.rint(blurred), 0, 255).astype(np.uint8)
