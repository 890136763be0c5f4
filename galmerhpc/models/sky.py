"""What the sky and the telescope do to a picture, as stateless TensorFlow operations on batches.

Every operation takes images (B, H, W, C) float32 in grey levels and an amount for each of them. An
image comes out the same in whatever batch it stands. Training augments with them (`make_augment`),
evaluation tests with them. There is no flip among them: matter is transparent in these pictures, so
a mirrored one is the view from the opposite side, with other labels.
"""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from galmerhpc.config import OnlineAugment

if TYPE_CHECKING:
    import tensorflow as tf

REACH = 4.0
"""Kernels end at this many sigmas of a Gaussian, or full widths at half maximum of a star."""

MOFFAT_BETA = 3.0
"""Slope of a star's wings: seeing alone has 4.765 (Trujillo et al. 2001, MNRAS 328, 977), real
telescopes scatter more light."""

RANDOM = "philox"
"""Generator of all draws, by name: what TensorFlow chooses by itself depends on the device."""

AMOUNTS, NOISE = 0, 1
"""What random numbers are for: no two purposes share any."""

Augment = Callable[[Any, Any, Any], Any]


def roll(images: "tf.Tensor", angle_deg: "tf.Tensor") -> "tf.Tensor":
    """Turn images counter-clockwise about their centre, as `numpy.rot90` does.

    Bilinear; what comes in from outside is black.

    Parameters
    ----------
    images : Tensor, shape (B, H, W, C), float32
        Images.
    angle_deg : Tensor, shape (B,)
        Degrees.
    """
    import keras
    import tensorflow as tf

    angle = _exact(angle_deg) * (math.pi / 180)
    sine, cosine = tf.sin(angle), tf.cos(angle)
    size = tf.cast(tf.shape(images)[1:3] - 1, tf.float64)
    y, x = size[0] / 2, size[1] / 2  # the centre
    zero = tf.zeros_like(angle)
    # Where a pixel of the result comes from; rows count downwards.
    to_source = tf.stack(
        [
            cosine, -sine, x - cosine * x + sine * y,
            sine, cosine, y - sine * x - cosine * y,
            zero, zero,
        ],
        axis=1,
    )  # fmt: skip
    return keras.ops.image.affine_transform(
        images, tf.cast(to_source, tf.float32), data_format="channels_last"
    )


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
        `AMOUNTS` or `NOISE`.
    """
    import tensorflow as tf

    words = tf.random.stateless_uniform(
        (2,), (seed, epoch), minval=None, maxval=None, dtype=tf.int64, alg=RANDOM
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

    def augment(images: "tf.Tensor", epoch: "tf.Tensor", samples: "tf.Tensor") -> "tf.Tensor":
        draws = tf.map_fn(
            lambda key: tf.random.stateless_uniform((5,), key, alg=RANDOM),
            keys(seed, epoch, samples, AMOUNTS),
            fn_output_signature=tf.TensorSpec((5,), tf.float32),
        )  # (B, 5) in 0..1
        angle, factor, fwhm, sigma, level = tf.unstack(draws, axis=1)
        changed = tf.cast(images, tf.float32)
        # From the sky through the air and the telescope to the detector.
        if ranges.rotation_deg:
            changed = roll(changed, ranges.rotation_deg * (2 * angle - 1))
        if ranges.intensity:
            changed = intensity(changed, 1 + ranges.intensity * (2 * factor - 1))
        if ranges.psf_fwhm_px:
            changed = psf(changed, ranges.psf_fwhm_px * fwhm, ranges.psf_fwhm_px)
        if ranges.blur_px:
            changed = blur(changed, ranges.blur_px * sigma, ranges.blur_px)
        if ranges.noise:
            changed = noise(changed, ranges.noise * level, keys(seed, epoch, samples, NOISE))
        return tf.cast(tf.clip_by_value(tf.round(changed), 0, 255), tf.uint8)

    return augment


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
