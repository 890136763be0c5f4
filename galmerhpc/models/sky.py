"""What the sky and the telescope do to a picture, as stateless TensorFlow operations on batches.

Every operation takes images (B, H, W, C) float32 in grey levels and an amount for each of them. An
image comes out the same in whatever batch it stands. Training augments with them (`make_augment`),
evaluation tests with them.

A roll of the camera changes no label. Mirroring does: matter is transparent in these pictures, so a
mirrored one is the view from the opposite side, with another azimuth and viewing angle. Spin and
inclination belong to the encounter and stay.
"""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from galmerhpc.config import OnlineAugment

if TYPE_CHECKING:
    import tensorflow as tf

REACH = 4.0
"""Kernels end at this many sigmas of a Gaussian, or full widths at half maximum of a star."""

MOFFAT_BETA = 3.0
"""Slope of a star's wings: seeing alone has 4.765 (Trujillo et al. 2001, MNRAS 328, 977), real
telescopes scatter more light."""

STAR_FWHM_PX = 1.5
"""Width of a star before the telescope's: what pixels make of a point."""

GALAXY_RADIUS = (0.015, 0.08)
"""Scale radius of a neighbouring galaxy, shares of the picture's width: smaller than the pair."""

WHITE = 255.0

RANDOM = "philox"
"""Generator of all draws, by name: what TensorFlow chooses by itself depends on the device."""

AMOUNTS, NOISE, NEIGHBOURS, STARS = 0, 1, 2, 3
"""What random numbers are for: no two purposes share any."""

AMOUNT_NAMES = (
    "angle", "intensity", "psf", "blur", "noise", "mirror", "zoom", "right", "down", "neighbours",
    "stars", "sky", "slope_right", "slope_down",
)  # fmt: skip
"""What an image's own random numbers in 0..1 decide, in their order."""

Augment = Callable[[Any, Any, Any], Any]


def move(
    images: "tf.Tensor",
    angle_deg: "tf.Tensor" = 0.0,
    zoom: "tf.Tensor" = 1.0,
    right_px: "tf.Tensor" = 0.0,
    down_px: "tf.Tensor" = 0.0,
    mirrored: "tf.Tensor" = False,
) -> "tf.Tensor":
    """Mirror, enlarge and turn images about their centre, then shift them; all in one resampling.

    Bilinear; what comes in from outside is black.

    Parameters
    ----------
    images : Tensor, shape (B, H, W, C), float32
        Images.
    angle_deg : Tensor, shape (B,) or ()
        Degrees counter-clockwise, as `numpy.rot90` turns.
    zoom : Tensor, shape (B,) or ()
        Factor on lengths.
    right_px, down_px : Tensor, shape (B,) or ()
        Shift, pixels.
    mirrored : Tensor, shape (B,) or (), bool
        Whether left and right change places.
    """
    import keras
    import tensorflow as tf

    angle, scale = _exact(angle_deg) * (math.pi / 180), _exact(zoom)
    sine, cosine = tf.sin(angle) / scale, tf.cos(angle) / scale
    side = tf.where(mirrored, tf.constant(-1.0, tf.float64), tf.constant(1.0, tf.float64))
    size = tf.cast(tf.shape(images)[1:3] - 1, tf.float64)
    y, x = size[0] / 2, size[1] / 2  # the centre
    right, down = x + _exact(right_px), y + _exact(down_px)  # where it goes
    # Where a pixel of the result comes from; rows count downwards.
    to_source = (
        side * cosine, -side * sine, x - side * (cosine * right - sine * down),
        sine, cosine, y - sine * right - cosine * down,
        0.0, 0.0,
    )  # fmt: skip
    each = [tf.broadcast_to(tf.cast(v, tf.float32), tf.shape(images)[:1]) for v in to_source]
    return keras.ops.image.affine_transform(
        images, tf.stack(each, axis=1), data_format="channels_last"
    )


def inscribed_circle(height: int, width: int) -> NDArray[np.float32]:
    """Return 1 within the largest circle of a picture and 0 beyond, shape (H, W, 1).

    Whatever is rolled is cut to it before: the edges of a square that still show, or the black that
    comes in beside them, would tell by how much it was rolled.
    """
    down, right = np.ogrid[:height, :width]
    radius = np.hypot(down - (height - 1) / 2, right - (width - 1) / 2)
    return (radius <= min(height, width) / 2).astype(np.float32)[..., None]


def intensity(images: "tf.Tensor", factor: "tf.Tensor") -> "tf.Tensor":
    """Make images brighter or darker.

    Parameters
    ----------
    images : Tensor, shape (B, H, W, C), float32
        Images.
    factor : Tensor, shape (B,), float32
        Factor on the grey levels.
    """
    return images * factor[:, None, None, None]


def sky(images: "tf.Tensor", level: "tf.Tensor", slope: "tf.Tensor") -> "tf.Tensor":
    """Add the brightness of the sky, a plane over the picture.

    Parameters
    ----------
    images : Tensor, shape (B, H, W, C), float32
        Images.
    level : Tensor, shape (B,), float32
        Grey level at the centre.
    slope : Tensor, shape (B, 2), float32
        How much brighter the sky is at the right and at the lower edge, as a share of `level`.
    """
    import tensorflow as tf

    down, right = tf.meshgrid(
        tf.linspace(-1.0, 1.0, images.shape[1]), tf.linspace(-1.0, 1.0, images.shape[2]),
        indexing="ij",
    )  # fmt: skip
    plane = 1 + slope[:, 0, None, None] * right + slope[:, 1, None, None] * down  # (B, H, W)
    return images + (level[:, None, None] * plane)[..., None]


def stars(images: "tf.Tensor", count: "tf.Tensor", draws: "tf.Tensor") -> "tf.Tensor":
    """Add foreground stars anywhere: many faint ones, few that are bright.

    Parameters
    ----------
    images : Tensor, shape (B, H, W, C), float32
        Images.
    count : Tensor, shape (B,), float32
        Stars of each image, a whole number up to K.
    draws : Tensor, shape (B, K, 3), float32
        Random numbers in 0..1 of each star.
    """
    import tensorflow as tf

    core = STAR_FWHM_PX / (2 * math.sqrt(2 ** (1 / MOFFAT_BETA) - 1))
    for k in range(draws.shape[1]):
        right, down, u = tf.unstack(draws[:, k], axis=1)
        right, down = _offsets(images, right, down)
        profile = 1 + (tf.square(right) + tf.square(down)) / core**2  # (B, H, W)
        peak = tf.where(k < count, 2 * WHITE * u * u * u, 0)
        light = peak[:, None, None] / (profile * profile * profile)
        images += light[..., None]
    return images


def neighbours(images: "tf.Tensor", count: "tf.Tensor", draws: "tf.Tensor") -> "tf.Tensor":
    """Add galaxies before or behind the pair, anywhere.

    Each is a Plummer sphere seen in projection, flattened to an ellipse.

    Parameters
    ----------
    images : Tensor, shape (B, H, W, C), float32
        Images.
    count : Tensor, shape (B,), float32
        Galaxies of each image, a whole number up to K.
    draws : Tensor, shape (B, K, 6), float32
        Random numbers in 0..1 of each galaxy.
    """
    import tensorflow as tf

    smallest, largest = (share * images.shape[2] for share in GALAXY_RADIUS)
    for k in range(draws.shape[1]):
        right, down, u, size, flattening, turn = tf.unstack(draws[:, k], axis=1)
        right, down = _offsets(images, right, down)
        angle = _exact(turn) * math.pi
        sine, cosine = (tf.cast(f(angle), tf.float32)[:, None, None] for f in (tf.sin, tf.cos))
        major = (smallest + (largest - smallest) * size)[:, None, None]
        minor = major * (1 - 0.8 * flattening)[:, None, None]
        along, across = cosine * right + sine * down, cosine * down - sine * right
        profile = 1 + tf.square(along / major) + tf.square(across / minor)  # (B, H, W)
        peak = tf.where(k < count, WHITE * u * u, 0)
        light = peak[:, None, None] / (profile * profile)
        images += light[..., None]
    return images


def blur(images: "tf.Tensor", sigma_px: "tf.Tensor", largest_px: float) -> "tf.Tensor":
    """Blur images with a Gaussian, as scipy.ndimage.gaussian_filter does; the flux is conserved.

    Parameters
    ----------
    images : Tensor, shape (B, H, W, C), float32
        Images.
    sigma_px : Tensor, shape (B,)
        Sigma, pixels; 0 changes nothing.
    largest_px : float
        Bound of `sigma_px`, which sets the kernel's size. A quarter of H and W at most.
    """
    import tensorflow as tf

    reach = math.ceil(REACH * largest_px)
    distance = tf.range(-reach, reach + 1, dtype=tf.float64) / _width(sigma_px)  # (B, K)
    kernels = _normalised(tf.exp(-0.5 * distance**2))
    return _convolve(_convolve(images, kernels[:, :, None]), kernels[:, None, :])


def psf(images: "tf.Tensor", fwhm_px: "tf.Tensor", largest_px: float) -> "tf.Tensor":
    """Convolve images with a star's image, a Moffat profile; the flux is conserved.

    Parameters
    ----------
    images : Tensor, shape (B, H, W, C), float32
        Images.
    fwhm_px : Tensor, shape (B,)
        Full width at half maximum, pixels; 0 changes nothing.
    largest_px : float
        Bound of `fwhm_px`, which sets the kernel's size. A quarter of H and W at most.
    """
    import tensorflow as tf

    reach = math.ceil(REACH * largest_px)
    squares = np.arange(-reach, reach + 1.0) ** 2
    radius = tf.constant(np.sqrt(squares[:, None] + squares).ravel())  # (K K,)
    core = _width(fwhm_px) / (2 * math.sqrt(2 ** (1 / MOFFAT_BETA) - 1))  # (B, 1)
    kernels = _normalised((1 + (radius / core) ** 2) ** -MOFFAT_BETA)
    return _convolve(images, tf.reshape(kernels, (-1, 2 * reach + 1, 2 * reach + 1)))


def noise(images: "tf.Tensor", sigma: "tf.Tensor", seeds: "tf.Tensor") -> "tf.Tensor":
    """Add Gaussian noise, of its own for each pixel.

    Parameters
    ----------
    images : Tensor, shape (B, H, W, C), float32
        Images.
    sigma : Tensor, shape (B,), float32
        Standard deviation, grey levels.
    seeds : Tensor, shape (B, 2), int64
        What each image's noise depends on (`keys`).
    """
    import tensorflow as tf

    shape = tf.shape(images)[1:]
    unit = tf.map_fn(
        lambda seed: tf.random.stateless_normal(shape, seed, alg=RANDOM),
        seeds,
        fn_output_signature=tf.TensorSpec(images.shape[1:], tf.float32),
    )
    return images + sigma[:, None, None, None] * unit


def keys(seed: int, epoch: "tf.Tensor", samples: "tf.Tensor", purpose: int) -> "tf.Tensor":
    """Return the key of each sample's random numbers for one purpose, shape (B, 2), int64.

    Parameters
    ----------
    seed : int
        Seed of the training.
    epoch : Tensor, shape (), int64
        Epoch.
    samples : Tensor, shape (B,), int64
        Rows of the data set.
    purpose : int
        `AMOUNTS`, `NOISE`, `NEIGHBOURS` or `STARS`.
    """
    import tensorflow as tf

    words = tf.random.stateless_uniform(
        (4,), (seed, epoch), minval=None, maxval=None, dtype=tf.int64, alg=RANDOM
    )
    return tf.stack([tf.fill(tf.shape(samples), words[purpose]), samples], axis=1)


def make_augment(ranges: OnlineAugment, seed: int) -> Augment:
    """Return the function that augments a batch of training.

    It takes images (B, H, W, C) uint8, the epoch () int64 and the samples' rows in the data set
    (B,) int64, and returns images of the same shape and type. The draw depends on seed, epoch and
    row alone: not on ranks, batches, or which changes are made beside it.

    Parameters
    ----------
    ranges : OnlineAugment
        What is changed, and how much.
    seed : int
        Seed of the training.
    """
    import tensorflow as tf

    if ranges == OnlineAugment():
        return lambda images, *_: images

    moved = ranges.rotation_deg or ranges.mirror or ranges.zoom or ranges.centre_px

    def augment(images: "tf.Tensor", epoch: "tf.Tensor", samples: "tf.Tensor") -> "tf.Tensor":
        def draw(purpose: int, *shape: int) -> "tf.Tensor":
            return tf.map_fn(
                lambda key: tf.random.stateless_uniform(shape, key, alg=RANDOM),
                keys(seed, epoch, samples, purpose),
                fn_output_signature=tf.TensorSpec(shape, tf.float32),
            )  # (B, *shape) in 0..1

        amounts = tf.unstack(draw(AMOUNTS, len(AMOUNT_NAMES)), axis=1)
        share = dict(zip(AMOUNT_NAMES, amounts, strict=True))
        both = {name: 2 * u - 1 for name, u in share.items()}  # in -1..1
        changed = tf.cast(images, tf.float32)
        # From the sky through the air and the telescope to the detector.
        if ranges.rotation_deg:
            changed *= inscribed_circle(*images.shape[1:3])
        if moved:
            changed = move(
                changed,
                ranges.rotation_deg * both["angle"],
                1 + ranges.zoom * both["zoom"],
                ranges.centre_px * both["right"],
                ranges.centre_px * both["down"],
                ranges.mirror & (share["mirror"] < 0.5),
            )
        if ranges.intensity:
            changed = intensity(changed, 1 + ranges.intensity * both["intensity"])
        if ranges.neighbours:
            count = tf.floor((ranges.neighbours + 1) * share["neighbours"])
            changed = neighbours(changed, count, draw(NEIGHBOURS, ranges.neighbours, 6))
        if ranges.stars:
            count = tf.floor((ranges.stars + 1) * share["stars"])
            changed = stars(changed, count, draw(STARS, ranges.stars, 3))
        if ranges.sky:
            slope = tf.stack([both["slope_right"], both["slope_down"]], axis=1) / 2
            changed = sky(changed, ranges.sky * share["sky"], slope)
        if ranges.psf_fwhm_px:
            changed = psf(changed, ranges.psf_fwhm_px * share["psf"], ranges.psf_fwhm_px)
        if ranges.blur_px:
            changed = blur(changed, ranges.blur_px * share["blur"], ranges.blur_px)
        if ranges.noise:
            level = ranges.noise * share["noise"]
            changed = noise(changed, level, keys(seed, epoch, samples, NOISE))
        return tf.cast(tf.clip_by_value(tf.round(changed), 0, 255), tf.uint8)

    return augment


def _offsets(
    images: "tf.Tensor", right: "tf.Tensor", down: "tf.Tensor"
) -> tuple["tf.Tensor", "tf.Tensor"]:
    """Return how far right of and below a place pixels are, (B, 1, W) and (B, H, 1), in pixels.

    The places, (B,), are shares of the picture's width and height. What is drawn around them takes
    sums, products and quotients only, which a processor rounds alike in every place (see `_exact`).
    """
    import tensorflow as tf

    rows, columns = (tf.range(n, dtype=tf.float32) for n in images.shape[1:3])
    return (
        columns[None, None, :] - right[:, None, None] * (images.shape[2] - 1),
        rows[None, :, None] - down[:, None, None] * (images.shape[1] - 1),
    )


def _exact(amounts: "tf.Tensor") -> "tf.Tensor":
    """Return amounts in float64.

    A processor may compute an exponential or a sine in a vector's remainder in another way than
    within the vector, so that the last bit depends on an image's place in its batch. Of float64
    that bit is lost when the result becomes float32.
    """
    import tensorflow as tf

    return tf.cast(amounts, tf.float64)


def _width(amounts: "tf.Tensor") -> "tf.Tensor":
    """Return widths (B, 1), float64, large enough to divide by: a kernel of them is one pixel."""
    import tensorflow as tf

    return tf.maximum(_exact(amounts), 1e-3)[:, None]


def _normalised(kernels: "tf.Tensor") -> "tf.Tensor":
    """Return kernels (B, K) that add up to 1, float32."""
    import tensorflow as tf

    return tf.cast(kernels / tf.reduce_sum(kernels, axis=1, keepdims=True), tf.float32)


def _convolve(images: "tf.Tensor", kernels: "tf.Tensor") -> "tf.Tensor":
    """Convolve images (B, H, W, C) with symmetric kernels (B, K, L), each image with its own.

    The pictures are continued by their mirror images, so that no flux is lost at the edges.
    """
    import tensorflow as tf

    batch, height, width, channels = tf.unstack(tf.shape(images))
    rows, columns = kernels.shape[1] // 2, kernels.shape[2] // 2
    padded = tf.pad(images, [[0, 0], [rows, rows], [columns, columns], [0, 0]], "SYMMETRIC")
    # All images side by side as the channels of one: (1, H + K - 1, W + L - 1, B C)
    together = tf.reshape(
        tf.transpose(padded, (1, 2, 0, 3)),
        (1, height + 2 * rows, width + 2 * columns, batch * channels),
    )
    filters = tf.repeat(tf.transpose(kernels, (1, 2, 0)), channels, axis=2)  # (K, L, B C)
    convolved = tf.nn.depthwise_conv2d(together, filters[..., None], (1, 1, 1, 1), "VALID")
    apart = tf.transpose(tf.reshape(convolved, (height, width, batch, channels)), (2, 0, 1, 3))
    return tf.ensure_shape(apart, images.shape)
