"""ResNet50 as in the authors' published model: Keras's v1 without the top."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import keras


def resnet50_map(images: "keras.KerasTensor", batchnorm_momentum: float) -> "keras.KerasTensor":
    """Return the feature map of ResNet50.

    Parameters
    ----------
    images : KerasTensor, shape (B, H, W, C), float32
        Images in -1..1.
    batchnorm_momentum : float
        Momentum of batch normalisation's moving statistics.

    Returns
    -------
    KerasTensor, shape (B, H / 32, W / 32, 2048)
        Rounded up; 2 x 2 x 2048 for the paper's 64 x 64.
    """
    import keras

    network = keras.applications.ResNet50(include_top=False, weights=None, input_tensor=images)
    for layer in network.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = batchnorm_momentum
    return network.output
