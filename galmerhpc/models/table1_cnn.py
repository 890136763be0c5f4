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
"""Units of the dense layer that is applied to every pixel of the last map."""


def table1_map(images: "keras.KerasTensor") -> "keras.KerasTensor":
    """Return the feature map of Table 1's network, before its dropout, Flatten and last layer.

    The table names no activation for the dense layer; it has the convolutions' ReLU here.

    Parameters
    ----------
    images : KerasTensor, shape (B, H, W, C), float32
        Images in -1..1.

    Returns
    -------
    KerasTensor, shape (B, H / 32, W / 32, 128)
        Quotients are rounded up; 2 x 2 x 128 for the paper's 64 x 64.
    """
    import keras

    layers = keras.layers
    x = images
    for filters, pooled in CONVOLUTIONS:
        x = layers.Conv2D(filters, 2, padding="same", activation="relu")(x)
        if pooled:
            # "same": the last row of an odd number of rows counts too.
            x = layers.MaxPooling2D(2, padding="same")(x)
    return layers.Dense(DENSE, activation="relu")(x)
