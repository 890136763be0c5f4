"""ResNet50 as the authors' stored network has it: Keras's v1 without its top, and a small head."""

from typing import TYPE_CHECKING

from galmerhpc.config import Model

if TYPE_CHECKING:
    import keras

SMALLEST_IMAGE = 32
"""ResNet50 halves its input five times."""


def resnet50_features(images: "keras.KerasTensor", model: Model) -> "keras.KerasTensor":
    """Return the features of ResNet50 under the configured head.

    Parameters
    ----------
    images : KerasTensor, shape (B, H, W, C), float32
        Images in -1..1.
    model : Model
        `head`, `batchnorm_momentum` and `dropout` are used.

    Returns
    -------
    KerasTensor, shape (B, F), float32
        F is 2048 for ``head: gap``, and (H / 32) (W / 32) 2048 for ``head: flatten`` (the authors'
        network for 64 x 64: Flatten of 2 x 2 x 2048; arXiv:2112.12604, section 3).
    """
    import keras

    network = keras.applications.ResNet50(include_top=False, weights=None, input_tensor=images)
    for layer in network.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = model.batchnorm_momentum
    pool = {"flatten": keras.layers.Flatten, "gap": keras.layers.GlobalAveragePooling2D}[model.head]
    features = pool(name=model.head)(network.output)
    return keras.layers.Dropout(model.dropout)(features) if model.dropout else features
