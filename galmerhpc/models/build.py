"""From the configuration to a Keras model that needs no code of ours to be loaded."""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from galmerhpc.config import Config
from galmerhpc.errors import InputError
from galmerhpc.models.resnet50 import SMALLEST_IMAGE, resnet50_features

if TYPE_CHECKING:
    import keras


def check_supported(config: Config) -> None:
    """Refuse what cannot be trained, before any data are read.

    Raises
    ------
    InputError
        The configured network does not exist yet or does not fit its images.
    """
    model, size = config.model, config.preprocess.image_size
    if model.architecture != "resnet50" or model.task != "regression":
        raise InputError(
            f"model.architecture {model.architecture} with model.task {model.task} cannot be "
            "trained yet: this version trains architecture resnet50 with task regression"
        )
    if size < SMALLEST_IMAGE:
        raise InputError(
            f"preprocess.image_size {size} is too small for resnet50: use {SMALLEST_IMAGE} or more"
        )


def build(
    config: Config,
    image_shape: tuple[int, int, int],
    mean: NDArray[np.float32],
    scale: NDArray[np.float32],
) -> "keras.Model":
    """Build the configured network.

    Parameters
    ----------
    config : Config
        Its `model` section and `parameters` are used.
    image_shape : (H, W, C)
        Shape of an image.
    mean, scale : ndarray, shape (P,), float32
        The network's last layer works in units of `scale` about `mean`; the model undoes that.

    Returns
    -------
    keras.Model
        Takes uint8 images (B, H, W, C), gives labels (B, P) float32 in their own units (degrees
        where an angle).
    """
    import keras

    check_supported(config)
    images = keras.Input(image_shape, dtype="uint8", name="images")
    scaled = keras.layers.Rescaling(1 / 127.5, offset=-1.0, name="to_unit_range")(images)
    features = resnet50_features(scaled, config.model)
    standardised = keras.layers.Dense(len(mean), name="standardised", dtype="float32")(features)
    labels = keras.layers.Normalization(
        mean=mean, variance=scale**2, invert=True, name="labels", dtype="float32"
    )(standardised)
    return keras.Model(images, labels, name=config.model.architecture)
