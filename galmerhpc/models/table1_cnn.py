"""The paper's classification network (arXiv:2112.12604, Table 1)."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import keras

# Filters of each convolution, and whether pooling follows; kernels and pools are 2 x 2.
CONVOLUTIONS = (
    (16, True), (64, True), (128, True), (256, True),
    (512, False), (512, False), (512, False), (512, False), (512, False), (512, False),
    (256, True), (128, False),
)  # fmt: skip
DENSE = 128
"""Units of the dense layer applied to every pixel of the last feature map."""


def table1_map(images: "keras.KerasTensor") -> "keras.KerasTensor":
    """Return the feature map of Table 1's network, before its dropout, Flatten and last layer.

    The table gives no activation for the dense layer; ReLU is used, as for the convolutions.

    Parameters
    ----------
    images : KerasTensor, shape (B, H, W, C), float32
        Images in -1..1.

    Returns
    -------
    KerasTensor, shape (B, H / 32, W / 32, 128)
        Rounded up; 2 x 2 x 128 for the paper's 64 x 64.
    """
    import keras

    layers = keras.layers
    x = images
    for filters, pooled in CONVOLUTIONS:
        x = layers.Conv2D(filters, 2, padding="same", activation="relu")(x)
        if pooled:
            # "same", so that the last of an odd number of rows is not dropped.
            x = layers.MaxPooling2D(2, padding="same")(x)
    return layers.Dense(DENSE, activation="relu")(x)
