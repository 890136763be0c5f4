"""From the configuration to a Keras model that can be loaded without this package."""

from pathlib import Path
from typing import TYPE_CHECKING

from galmerhpc.config import Config, Model
from galmerhpc.errors import InputError, brief
from galmerhpc.models.resnet50 import resnet50_map
from galmerhpc.models.table1_cnn import table1_map
from galmerhpc.models.targets import Targets

if TYPE_CHECKING:
    import keras


def build(config: Config, image_shape: tuple[int, int, int], targets: Targets) -> "keras.Model":
    """Build the configured network, to be trained.

    Parameters
    ----------
    config : Config
        Its `model` section is used.
    image_shape : (H, W, C)
        Shape of an image.
    targets : Targets
        Targets of the last layer, R outputs.

    Returns
    -------
    keras.Model
        Maps uint8 images (B, H, W, C) to the last layer's outputs (B, R), which the loss compares
        with `Targets.encode` (logits, where probabilities are learned), and to the predictions
        derived from them (`Targets.decode`), both float32.
    """
    import keras

    images = keras.Input(image_shape, dtype="uint8", name="images")
    scaled = keras.layers.Rescaling(1 / 127.5, offset=-1.0, name="to_unit_range")(images)
    features = _head(_map(scaled, config.model), config.model)
    raw = keras.layers.Dense(targets.width, name="raw", dtype="float32")(features)
    return keras.Model(images, (raw, targets.decode(raw)), name=config.model.architecture)


def exported(model: "keras.Model") -> "keras.Model":
    """Return the model to be saved, from uint8 images to predictions, with the same layers."""
    import keras

    _, predictions = model.outputs
    return keras.Model(model.input, predictions, name=model.name)


def load(path: Path, image_shape: tuple[int, int, int], outputs: int) -> "keras.Model":
    """Load an exported model in Keras's safe mode, which runs no code from the file.

    Parameters
    ----------
    path : Path
        The model.
    image_shape : (H, W, C)
        Shape of the images that it must take.
    outputs : int
        Number of outputs that it must give per image.

    Raises
    ------
    InputError
        It is missing, damaged, or has other inputs or outputs.
    """
    import keras

    try:
        model = keras.models.load_model(path, compile=False, safe_mode=True)
    except Exception as error:  # noqa: BLE001 - Keras raises whatever its parts raise
        why = brief(error) or type(error).__name__
        raise InputError(f"{path}: cannot be loaded ({why}); train again") from None
    wanted = ((None, *image_shape), (None, outputs))
    found = (tuple(model.input_shape), tuple(model.output_shape))
    if found != wanted:
        raise InputError(
            f"{path}: maps {found[0][1:]} to {found[1][1:]}, but its run's configuration needs "
            f"{wanted[0][1:]} and {wanted[1][1:]}; it belongs to another run: train again"
        )
    return model


def _map(images: "keras.KerasTensor", model: Model) -> "keras.KerasTensor":
    """Return the architecture's feature map, (B, h, w, F)."""
    if model.architecture == "table1_cnn":
        return table1_map(images)
    return resnet50_map(images, model.batchnorm_momentum)


def _head(features: "keras.KerasTensor", model: Model) -> "keras.KerasTensor":
    """Return the inputs of the last layer, (B, F) or (B, h w F)."""
    import keras

    pool = {"flatten": keras.layers.Flatten, "gap": keras.layers.GlobalAveragePooling2D}[model.head]
    pooled = pool(name=model.head)(features)
    # Table 1 has dropout before Flatten: the same, since values are dropped independently.
    return keras.layers.Dropout(model.dropout)(pooled) if model.dropout else pooled
