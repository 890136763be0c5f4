"""From a photograph of a pair to an image like those that the network was trained on.

Training images show an isolated pair in the middle of a field of known width in kpc, on a black
sky. So the sky of a photograph is subtracted, the photograph is cut and scaled about the pair,
other objects are removed, and the brightness is adjusted. All steps can be inspected (`Steps`).
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import ndimage
from scipy.integrate import trapezoid

from galmerhpc.config import Config, Render
from galmerhpc.dataset.shards import Images
from galmerhpc.errors import InputError
from galmerhpc.evaluation.pairs import Pair
from galmerhpc.evaluation.photographs import sky_of, training_form

TYPICAL_SEPARATION_KPC = 20.0
"""Projected separation of the two centres in the shipped snapshots: 26 kpc in space, 50 to 150 Myr
after pericentre, times pi / 4. Pairs of unknown redshift are scaled to it."""

HUBBLE_KM_S_MPC, MATTER = 70.0, 0.3
"""Cosmology (flat) that relates redshift and distance."""

WORKING_PX = 256
"""Side of the image in which other objects are detected; finer than training images."""

LARGE_CUT_PX = 16 * WORKING_PX
"""Squares of twice this side or more are cut from a reduced image, since parts beyond the image's
edges would take as much memory."""

DETECTION_SIGMAS = 3.0
"""Brightness above the sky, in units of its noise, at which an object is detected."""

FAINTEST_LEVELS = 4.0
"""Least such brightness in grey levels: compression may leave no measurable noise in the sky."""

STAR_LEVELS = 25.0
"""Brightness above its surroundings, in grey levels, of a foreground star."""

STAR_PX = 11
"""Side of these surroundings, pixels of the working image."""

BRIGHT_PERCENTILE = 99.0
"""Percentile of an image's levels that measures its brightness: that of nuclei and bulges."""

NUCLEUS = 0.15
"""Radius of a nucleus, in which no stars are removed, in separations of the pair."""

_SPEED_OF_LIGHT_KM_S = 299_792.458
_BORDER = 0.1  # of an image's width, where its sky is measured
_SKIRT_PX = 3  # around a detected object

Levels = NDArray[np.float32]


@dataclass(frozen=True)
class Steps:
    """The steps from a photograph to the network's input.

    Attributes
    ----------
    original : Image
        The photograph, with both nuclei and the field's outline.
    dark_sky : Image
        Grey, with a black sky.
    field : Image
        Cut and scaled about the pair.
    alone : Image
        Without other objects.
    bright : Image
        As bright as training images; unchanged if their brightness is unknown.
    image : ndarray, shape (H, W, C), uint8
        What the network sees.
    separation_kpc : float
        Projected separation of the pair; None if the redshift is unknown.
    """

    original: Image.Image
    dark_sky: Image.Image
    field: Image.Image
    alone: Image.Image
    bright: Image.Image
    image: Images
    separation_kpc: float | None

    def pictures(self) -> dict[str, Image.Image]:
        """Return all steps by name, in their order."""
        return {
            "original": self.original,
            "dark_sky": self.dark_sky,
            "field": self.field,
            "alone": self.alone,
            "bright": self.bright,
            "network": Image.fromarray(np.squeeze(self.image)),
        }


def prepare(picture: Image.Image, pair: Pair, config: Config, bright_level: float | None) -> Steps:
    """Bring a photograph of a pair into the form of a run's training images.

    Parameters
    ----------
    picture : Image
        Of mode L or RGB.
    pair : Pair
        The pair, with the positions of its galaxies in the image.
    config : Config
        The run.
    bright_level : float, optional
        Level that one pixel in a hundred of its training images exceeds; the photograph is scaled
        to it, since its stretch is unknown. None: it is not scaled.

    Raises
    ------
    ValueError
        A galaxy is outside the image, both are in the same place, nothing is detected at their
        positions, or too little of them is left in the field.
    InputError
        As from `field_kpc`.
    """
    first, second = (disc.pixel for disc in pair.discs)
    if first is None or second is None:
        raise ValueError("the table has no x1_px, y1_px, x2_px, y2_px for this pair")
    places = np.array([first, second], np.float64)  # (2, x y)
    if not ((places >= 0) & (places < picture.size)).all():
        raise ValueError(f"a galaxy is outside the image of {picture.size[0]} x {picture.size[1]}")
    apart = float(np.hypot(*(places[1] - places[0])))
    if apart < 1:
        raise ValueError("both galaxies are in the same place")
    kpc, width_kpc = kpc_per_px(pair), field_kpc(config)
    scale = kpc or TYPICAL_SEPARATION_KPC / apart
    apart_kpc = scale * apart
    too_little = (
        f"too little of the pair is left in its field of {width_kpc:.0f} kpc, where the galaxies "
        f"are {apart_kpc:.3g} kpc apart; check redshift, scale and positions"
    )
    if apart_kpc < width_kpc / WORKING_PX:
        raise ValueError(too_little)
    field_px = width_kpc / scale
    centre = places.mean(axis=0)
    levels = np.asarray(picture.convert("L"), np.float32)
    dark, noise = without_sky(levels)
    for k, (x, y) in enumerate(np.rint(places).astype(int), 1):
        around = dark[max(y - 2, 0) : y + 3, max(x - 2, 0) : x + 3]
        if around.mean() <= threshold_of(noise):
            raise ValueError(f"nothing is detected at x{k}_px, y{k}_px = {x}, {y}")
    field = cut(dark, centre, field_px)
    nuclei = (places - centre) * (WORKING_PX / field_px) + (WORKING_PX - 1) / 2
    alone = without_others(field, nuclei, noise)
    level = np.percentile(training_form(_picture(alone), config), BRIGHT_PERCENTILE)
    if level <= threshold_of(noise):  # scaling would only amplify noise
        raise ValueError(too_little)
    bright = alone if bright_level is None else alone * np.float32(bright_level / level)
    return Steps(
        _marked(picture, places, centre, field_px),
        _picture(dark),
        _picture(field),
        _picture(alone),
        _picture(bright),
        training_form(_picture(bright), config),
        apart_kpc if kpc else None,
    )


def field_kpc(config: Config) -> float:
    """Return the width of a run's training images, kpc.

    Raises
    ------
    InputError
        They were imported, and the configuration does not give it.
    """
    if config.catalogue and config.catalogue.images:
        if config.catalogue.images.field_kpc is None:
            raise InputError(
                "catalogue.images.field_kpc: missing; photographs are cut to the width of the "
                f"training images. Add this width in kpc ({config.catalogue.render.nbins}, the "
                "pixels per side, times the kpc that a pixel of your images shows) to the "
                "configuration and run galmerhpc preprocess with it, which makes nothing again"
            )
        return config.catalogue.images.field_kpc
    render = config.catalogue.render if config.catalogue else Render()
    return render.nbins / render.zoom


def kpc_per_px(pair: Pair) -> float | None:
    """Return the scale of a pair's image; None if redshift or angular scale is unknown."""
    if pair.redshift is None or pair.scale_arcsec_per_px is None:
        return None
    return kpc_per_arcsec(pair.redshift) * pair.scale_arcsec_per_px


def kpc_per_arcsec(redshift: float) -> float:
    """Return the length that subtends an arcsecond at a redshift.

    Examples
    --------
    >>> kpc_per_arcsec(0.05)
    0.977
    """
    z = np.linspace(0.0, redshift, 513)
    rate = np.sqrt(MATTER * (1 + z) ** 3 + 1 - MATTER)
    comoving_mpc = _SPEED_OF_LIGHT_KM_S / HUBBLE_KM_S_MPC * trapezoid(1 / rate, z)
    return float(1000 * comoving_mpc / (1 + redshift) * math.radians(1 / 3600))


def without_sky(levels: Levels) -> tuple[Levels, float]:
    """Return grey levels with the sky, measured near the edges, at 0; and its noise.

    The edges are those of the exposed area: an image may have a black frame.
    """
    exposed = levels > FAINTEST_LEVELS
    rows, columns = (np.flatnonzero(exposed.any(axis=axis)) for axis in (1, 0))
    if not len(rows):
        return np.zeros_like(levels), 0.0
    inside = levels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    y, x = (max(1, round(_BORDER * length)) for length in inside.shape)
    border = np.ones(inside.shape, bool)
    border[y:-y, x:-x] = False
    sky, noise = sky_of(inside[border])
    return np.maximum(levels - np.float32(sky), 0), noise


def cut(levels: Levels, centre: NDArray[np.float64], side: float) -> Levels:
    """Return a square of an image in `WORKING_PX` pixels; black outside the image.

    Parameters
    ----------
    levels : ndarray, shape (H, W), float32
        The image.
    centre : ndarray, shape (2,)
        Column and row of the square's centre.
    side : float
        Its side, pixels.
    """
    picture = Image.fromarray(levels)
    if side >= 2 * LARGE_CUT_PX:
        factor = int(side // LARGE_CUT_PX)
        picture, side = picture.reduce(factor), side / factor
        centre = (centre + 0.5) / factor - 0.5
    x, y = centre + 0.5 - side / 2
    box = (math.floor(x), math.floor(y), math.ceil(x + side), math.ceil(y + side))
    around = picture.crop(box)  # 0 beyond the edges
    inside = (x - box[0], y - box[1], x - box[0] + side, y - box[1] + side)
    size = (WORKING_PX, WORKING_PX)
    scaled = around.resize(size, Image.Resampling.LANCZOS, box=inside)
    return np.maximum(np.asarray(scaled, np.float32), 0)


def without_others(levels: Levels, nuclei: NDArray[np.float64], noise: float) -> Levels:
    """Return a field without other objects.

    Of all detected objects, only those connected to one of the nuclei are kept, so a tail that
    appears detached is lost. Points outside the nuclei that are much brighter than their
    surroundings are taken for stars and replaced by the median of their surroundings.

    Parameters
    ----------
    levels : ndarray, shape (H, W), float32
        Grey levels, the sky at 0.
    nuclei : ndarray, shape (2, 2)
        Column and row of each.
    noise : float
        Noise of the sky.
    """
    objects, _ = ndimage.label(ndimage.gaussian_filter(levels, 1.0) > threshold_of(noise))
    x, y = np.meshgrid(np.arange(levels.shape[1]), np.arange(levels.shape[0]))
    distance = np.min([np.hypot(x - column, y - row) for column, row in nuclei], axis=0)
    near = distance < max(NUCLEUS * float(np.hypot(*(nuclei[1] - nuclei[0]))), 2.0)
    kept = np.isin(objects, np.setdiff1d(objects[near], 0))
    skirt = np.ones((2 * _SKIRT_PX + 1, 2 * _SKIRT_PX + 1), bool)
    others = ndimage.binary_dilation((objects > 0) & ~kept, skirt) & ~kept
    surroundings = ndimage.median_filter(levels, STAR_PX)
    stars = ndimage.binary_dilation((levels - surroundings > STAR_LEVELS) & ~near, iterations=2)
    return np.where(others, 0, np.where(stars & ~near, surroundings, levels)).astype(np.float32)


def threshold_of(noise: float) -> float:
    """Return the grey level above the sky at which an object is detected."""
    return max(DETECTION_SIGMAS * noise, FAINTEST_LEVELS)


def _picture(levels: Levels) -> Image.Image:
    return Image.fromarray(np.clip(np.rint(levels), 0, 255).astype(np.uint8))


def _marked(
    picture: Image.Image, places: NDArray[np.float64], centre: NDArray[np.float64], side: float
) -> Image.Image:
    """Return a photograph with its nuclei and field marked."""
    shown = picture.convert("RGB")
    draw, width = ImageDraw.Draw(shown), max(1, picture.width // 300)
    for place in places:
        corners = (*(place - 4 * width), *(place + 4 * width))
        draw.ellipse(corners, outline="yellow", width=width)
    draw.rectangle((*(centre - side / 2), *(centre + side / 2)), outline="cyan", width=width)
    return shown
