"""Where the network looks in an image: Grad-CAM (Selvaraju et al. 2017).

A layer's feature maps are weighted by the gradient of an output with respect to them, averaged over
each map; their sum shows the places that influence the output. A regression's output may go up or
down, so the magnitude of the sum is taken.
"""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from galmerhpc.config import Config
from galmerhpc.parameters import class_groups

if TYPE_CHECKING:
    import keras

_SMALLEST_MAP = 6
"""Least width of the feature maps used: the networks' last ones (2 x 2 for 64 pixels) are too
coarse."""


def grad_cam(
    config: Config, network: "keras.Model", images: NDArray[np.uint8]
) -> NDArray[np.float32]:
    """Return maps of where the network looks for each parameter.

    Parameters
    ----------
    config : Config
        The run; for a classifier, the most probable class of each parameter is explained.
    network : keras.Model
        The exported network.
    images : ndarray, shape (n, H, W, C), uint8
        Images.

    Returns
    -------
    ndarray, shape (n, P, H, W), float32
        0..1, 1 at the largest contribution; zeros if there is none.
    """
    import keras
    import tensorflow as tf

    layer = _layer(network)
    if layer is None:
        return np.zeros((len(images), len(config.parameters), *images.shape[1:3]), np.float32)
    inner = keras.Model(network.input, (layer.output, network.output))
    maps = []
    with tf.GradientTape(persistent=True) as tape:
        features, outputs = inner(tf.constant(images), training=False)  # (n, h, w, F), (n, R)
        if config.model.task == "classification":
            groups = class_groups(config.parameters, config.model.class_width_deg)
            targets = [tf.reduce_max(outputs[:, group], axis=1) for group in groups]
        else:
            targets = list(tf.unstack(outputs, axis=1))
    for target in targets:
        gradient = tape.gradient(target, features)
        weights = tf.reduce_mean(gradient, axis=(1, 2), keepdims=True)  # (n, 1, 1, F)
        heat = tf.abs(tf.reduce_sum(weights * features, axis=-1, keepdims=True))
        heat = tf.image.resize(heat, images.shape[1:3])[..., 0].numpy()  # (n, H, W)
        maps.append(heat / np.maximum(heat.max(axis=(1, 2), keepdims=True), 1e-30))
    return np.stack(maps, axis=1)


def _layer(network: "keras.Model") -> "keras.Layer | None":
    """Return the deepest layer with maps of sufficient size; None if there is none."""
    found = None
    for layer in network.layers:
        shape = getattr(layer.output, "shape", ())
        if len(shape) == 4 and layer.weights and min(shape[1:3]) >= _SMALLEST_MAP:
            found = layer
    return found
