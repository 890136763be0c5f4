"""Effects of sky and telescope on images, as stateless TensorFlow operations on batches.

Every operation takes images (B, H, W, C) float32 in grey levels and one amount per image. The
result for an image does not depend on its batch. The operations augment training images
(`make_augment`) and make test images sky-like.

A roll of the camera changes no label. Mirroring does: matter is transparent in these images, so a
mirrored image is the view from the opposite side, with another azimuth and viewing angle. Spin and
inclination are properties of the encounter and do not change.
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
"""Kernels extend to this many sigmas of a Gaussian, or FWHMs of the point spread function."""

MOFFAT_BETA = 3.0
"""Slope of a star's wings: seeing alone has 4.765 (Trujillo et al. 2001, MNRAS 328, 977), real
telescopes scatter more light."""

STAR_FWHM_PX = 1.5
"""FWHM of a star before the point spread function is applied: that of a pixelated point."""

GALAXY_RADIUS = (0.015, 0.08)
"""Scale radii of neighbouring galaxies, as shares of the image's width: smaller than the pair."""

WHITE = 255.0

RANDOM = "philox"
"""Algorithm of all random draws; TensorFlow's automatic choice depends on the device."""

AMOUNTS, NOISE, NEIGHBOURS, STARS = 0, 1, 2, 3
"""Purposes of random numbers; no two share any."""

AMOUNT_NAMES = (
    "angle", "intensity", "psf", "blur", "noise", "mirror", "zoom", "right", "down", "neighbours",
    "stars", "sky", "slope_right", "slope_down",
)  # fmt: skip
"""Amounts that are set by an image's random numbers in 0..1, in this order."""

Augment = Callable[[Any, Any, Any], Any]


def move(
    images: "tf.Tensor",
    angle_deg: "tf.Tensor" = 0.0,
    zoom: "tf.Tensor" = 1.0,
    right_px: "tf.Tensor" = 0.0,
    down_px: "tf.Tensor" = 0.0,
    mirrored: "tf.Tensor" = False,
) -> "tf.Tensor":
    """Mirror, scale and rotate images about their centre, then shift them, in one resampling.

    Bilinear; black outside the image.

    Parameters
    ----------
    images : Tensor, shape (B, H, W, C), float32
        Images.
    angle_deg : Tensor, shape (B,) or ()
        Degrees counter-clockwise, as in `numpy.rot90`.
    zoom : Tensor, shape (B,) or ()
        Scale factor.
    right_px, down_px : Tensor, shape (B,) or ()
        Shift, pixels.
    mirrored : Tensor, shape (B,) or (), bool
        Whether left and right are exchanged.
    """
    import keras
    import tensorflow as tf

    angle, scale = _exact(angle_deg) * (math.pi / 180), _exact(zoom)
    sine, cosine = tf.sin(angle) / scale, tf.cos(angle) / scale
    side = tf.where(mirrored, tf.constant(-1.0, tf.float64), tf.constant(1.0, tf.float64))
    size = tf.cast(tf.shape(images)[1:3] - 1, tf.float64)
    y, x = size[0] / 2, size[1] / 2  # the centre
    right, down = x + _exact(right_px), y + _exact(down_px)  # its new position
    # Source of each pixel of the result; rows count downwards.
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
    """Return 1 inside the largest circle of an image and 0 outside, shape (H, W, 1).

    Images are cut to it before they are rolled: visible edges and black corners would reveal the
    roll.
    """
    down, right = np.ogrid[:height, :width]
    radius = np.hypot(down - (height - 1) / 2, right - (width - 1) / 2)
    return (radius <= min(height, width) / 2).astype(np.float32)[..., None]


def intensity(images: "tf.Tensor", factor: "tf.Tensor") -> "tf.Tensor":
    """Scale the brightness of images.

    Parameters
    ----------
    images : Tensor, shape (B, H, W, C), float32
        Images.
    factor : Tensor, shape (B,), float32
        Factor for the grey levels.
    """
    return images * factor[:, None, None, None]


def sky(images: "tf.Tensor", level: "tf.Tensor", slope: "tf.Tensor") -> "tf.Tensor":
    """Add the sky brightness, which varies linearly across the image.

    Parameters
    ----------
    images : Tensor, shape (B, H, W, C), float32
        Images.
    level : Tensor, shape (B,), float32
        Grey level at the centre.
    slope : Tensor, shape (B, 2), float32
        Increase to the right and to the lower edge, as a share of `level`.
    """
    import tensorflow as tf

    down, right = tf.meshgrid(
        tf.linspace(-1.0, 1.0, images.shape[1]), tf.linspace(-1.0, 1.0, images.shape[2]),
        indexing="ij",
    )  # fmt: skip
    plane = 1 + slope[:, 0, None, None] * right + slope[:, 1, None, None] * down  # (B, H, W)
    return images + (level[:, None, None] * plane)[..., None]


def stars(images: "tf.Tensor", count: "tf.Tensor", draws: "tf.Tensor") -> "tf.Tensor":
    """Add foreground stars at random positions: many faint and few bright ones.

    Parameters
    ----------
    images : Tensor, shape (B, H, W, C), float32
        Images.
    count : Tensor, shape (B,), float32
        Number of stars per image, a whole number up to K.
    draws : Tensor, shape (B, K, 3), float32
        Random numbers in 0..1 for each star.
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
    """Add galaxies in front of or behind the pair, at random positions.

    Each is a projected Plummer sphere, flattened to an ellipse.

    Parameters
    ----------
    images : Tensor, shape (B, H, W, C), float32
        Images.
    count : Tensor, shape (B,), float32
        Number of galaxies per image, a whole number up to K.
    draws : Tensor, shape (B, K, 6), float32
        Random numbers in 0..1 for each galaxy.
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
    """Blur images with a Gaussian, as scipy.ndimage.gaussian_filter; flux is conserved.

    Parameters
    ----------
    images : Tensor, shape (B, H, W, C), float32
        Images.
    sigma_px : Tensor, shape (B,)
        Sigma, pixels; 0 has no effect.
    largest_px : float
        Upper limit of `sigma_px`, which sets the kernel size; at most a quarter of H and W.
    """
    import tensorflow as tf

    reach = math.ceil(REACH * largest_px)
    distance = tf.range(-reach, reach + 1, dtype=tf.float64) / _width(sigma_px)  # (B, K)
    kernels = _normalised(tf.exp(-0.5 * distance**2))
    return _convolve(_convolve(images, kernels[:, :, None]), kernels[:, None, :])


def psf(images: "tf.Tensor", fwhm_px: "tf.Tensor", largest_px: float) -> "tf.Tensor":
    """Convolve images with a point spread function, a Moffat profile; flux is conserved.

    Parameters
    ----------
    images : Tensor, shape (B, H, W, C), float32
        Images.
    fwhm_px : Tensor, shape (B,)
        Full width at half maximum, pixels; 0 has no effect.
    largest_px : float
        Upper limit of `fwhm_px`, which sets the kernel size; at most a quarter of H and W.
    """
    import tensorflow as tf

    reach = math.ceil(REACH * largest_px)
    squares = np.arange(-reach, reach + 1.0) ** 2
    radius = tf.constant(np.sqrt(squares[:, None] + squares).ravel())  # (K K,)
    core = _width(fwhm_px) / (2 * math.sqrt(2 ** (1 / MOFFAT_BETA) - 1))  # (B, 1)
    kernels = _normalised((1 + (radius / core) ** 2) ** -MOFFAT_BETA)
    return _convolve(images, tf.reshape(kernels, (-1, 2 * reach + 1, 2 * reach + 1)))


def noise(images: "tf.Tensor", sigma: "tf.Tensor", seeds: "tf.Tensor") -> "tf.Tensor":
    """Add independent Gaussian noise to each pixel.

    Parameters
    ----------
    images : Tensor, shape (B, H, W, C), float32
        Images.
    sigma : Tensor, shape (B,), float32
        Standard deviation, grey levels.
    seeds : Tensor, shape (B, 2), int64
        Seeds of each image's noise (`keys`).
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
    """Return the seeds of each sample's random numbers for one purpose, shape (B, 2), int64.

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
    """Return the function that augments a training batch.

    It takes images (B, H, W, C) uint8, the epoch () int64 and the samples' rows in the data set
    (B,) int64, and returns images of the same shape and type. Each draw depends only on seed, epoch
    and row, not on ranks, batches or other changes.

    Parameters
    ----------
    ranges : OnlineAugment
        Ranges of the changes.
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
        # In physical order: from the sky through atmosphere and telescope to the detector.
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
    """Return the distances of pixels to the right of and below positions, (B, 1, W), (B, H, 1).

    The positions, (B,), are shares of the image's width and height. Profiles around them use only
    sums, products and quotients, whose rounding does not depend on the batch (see `_exact`).
    """
    import tensorflow as tf

    rows, columns = (tf.range(n, dtype=tf.float32) for n in images.shape[1:3])
    return (
        columns[None, None, :] - right[:, None, None] * (images.shape[2] - 1),
        rows[None, :, None] - down[:, None, None] * (images.shape[1] - 1),
    )


def _exact(amounts: "tf.Tensor") -> "tf.Tensor":
    """Return amounts in float64.

    Processors may compute exponentials and sines differently in the remainder of a vector, so the
    last bit may depend on an image's place in its batch. In float64 this bit is lost when the
    result is converted to float32.
    """
    import tensorflow as tf

    return tf.cast(amounts, tf.float64)


def _width(amounts: "tf.Tensor") -> "tf.Tensor":
    """Return widths (B, 1), float64, large enough to divide by; the smallest give one pixel."""
    import tensorflow as tf

    return tf.maximum(_exact(amounts), 1e-3)[:, None]


def _normalised(kernels: "tf.Tensor") -> "tf.Tensor":
    """Return kernels (B, K), normalised to a sum of 1, float32."""
    import tensorflow as tf

    return tf.cast(kernels / tf.reduce_sum(kernels, axis=1, keepdims=True), tf.float32)


def _convolve(images: "tf.Tensor", kernels: "tf.Tensor") -> "tf.Tensor":
    """Convolve images (B, H, W, C) with symmetric kernels (B, K, L), each image with its own.

    Images are reflected at the edges, so that no flux is lost.
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
