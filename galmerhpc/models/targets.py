"""Training targets of the network's last layer, and the way back to labels.

`Targets.encode` (NumPy, of labels) and `Targets.decode` (Keras's own layers, inside the exported
model) are inverse to each other, parameter by parameter.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from galmerhpc.config import Config
from galmerhpc.errors import InputError
from galmerhpc.parameters import SPIN, class_groups, decode_classes, encode_classes, named

if TYPE_CHECKING:
    import keras

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Target:
    """How one parameter is represented in the last layer.

    Attributes
    ----------
    name : str
        Name of the parameter.
    kind : str
        ``number``: the label, relative to `offset` in units of `scale`. ``sine_cosine``: sine and
        cosine of an angle relative to `offset`. ``probability``: the logit of the probability that
        the label is 1 rather than 0. ``sigmoid_classes``: the logits of independent classes (the
        paper's); ``softmax_classes``: those of classes whose probabilities sum to 1.
    width : int
        Number of outputs of the last layer for the parameter.
    offset, scale : float
        In the label's own units.
    class_width_deg : float
        Width of classes that are bins.
    """

    name: str
    kind: Literal["number", "sine_cosine", "probability", "sigmoid_classes", "softmax_classes"]
    width: int = 1
    offset: float = 0.0
    scale: float = 1.0
    class_width_deg: float = 0.0

    def encode(self, labels: Array) -> Array:
        """Return the target outputs, shape (N, width), for labels of shape (N,)."""
        match self.kind:
            case "number":
                return ((labels - self.offset) / self.scale)[:, None]
            case "sine_cosine":
                angle = np.radians(labels - self.offset)
                return np.stack([np.sin(angle), np.cos(angle)], axis=1)
            case "probability":
                return labels[:, None]
            case _:
                return encode_classes(labels[:, None], self.class_width_deg, [self.name])

    def decode(self, raw: "keras.KerasTensor") -> "keras.KerasTensor":
        """Return the prediction, shape (B, 1) or (B, classes), from outputs (B, width)."""
        import keras

        match self.kind:
            case "number":
                return keras.layers.Rescaling(self.scale, self.offset, dtype="float32")(raw)
            case "sine_cosine":
                angle = keras.ops.arctan2(raw[:, :1], raw[:, 1:])  # radians, -pi..pi
                return keras.layers.Rescaling(180 / np.pi, self.offset, dtype="float32")(angle)
            case "softmax_classes":
                return keras.layers.Activation("softmax", dtype="float32")(raw)
            case _:
                return keras.layers.Activation("sigmoid", dtype="float32")(raw)


@dataclass(frozen=True)
class Targets:
    """The targets of all parameters, side by side in the labels' order.

    Attributes
    ----------
    each : tuple of Target
        One per parameter.
    """

    each: tuple[Target, ...]

    @property
    def width(self) -> int:
        """Number R of the last layer's outputs."""
        return sum(target.width for target in self.each)

    def columns(self) -> Iterator[tuple[Target, slice]]:
        """Yield each target with its columns of the last layer."""
        start = 0
        for target in self.each:
            yield target, slice(start, start + target.width)
            start += target.width

    def encode(self, labels: Array) -> Array:
        """Return the targets of the last layer.

        Parameters
        ----------
        labels : ndarray, shape (N, P), float32
            Labels in their own units.

        Returns
        -------
        ndarray, shape (N, R), float32

        Raises
        ------
        ValueError
            A label has no class.
        """
        parts = [t.encode(column) for t, column in zip(self.each, labels.T, strict=True)]
        return np.concatenate(parts, axis=1)

    def decode(self, raw: "keras.KerasTensor") -> "keras.KerasTensor":
        """Return the model's predictions.

        Parameters
        ----------
        raw : KerasTensor, shape (B, R), float32
            The last layer's outputs.

        Returns
        -------
        KerasTensor, float32
            Labels in their own units, shape (B, P), or probabilities of classes, shape (B, R).
        """
        import keras

        parts = [target.decode(raw[:, columns]) for target, columns in self.columns()]
        return keras.layers.Concatenate(name="predictions", dtype="float32")(parts)


def make_targets(config: Config, labels: Array) -> Targets:
    """Return the configured targets.

    Parameters
    ----------
    config : Config
        Its `parameters`, `model` and `training` are used.
    labels : ndarray, shape (N, P), float32
        Training labels, from which offsets and scales follow.

    Raises
    ------
    InputError
        A label has no class.
    """
    columns = zip(config.parameters, labels.T, strict=True)
    return Targets(tuple(_target(config, name, column) for name, column in columns))


def labels_of(config: Config, predictions: NDArray[np.floating]) -> NDArray[np.floating]:
    """Return the labels (N, P) for predictions: themselves, or centres of the best classes.

    Parameters
    ----------
    config : Config
        Its `parameters` and `model` are used.
    predictions : ndarray, shape (N, P) or (N, classes)
        Output of the exported model.
    """
    if config.model.task == "classification":
        return decode_classes(predictions, config.model.class_width_deg, config.parameters)
    return predictions


def retrograde_score(
    config: Config, predictions: NDArray[np.floating]
) -> NDArray[np.floating] | None:
    """Return how far predictions lean from prograde (0) to retrograde (1), shape (N,).

    None if the spin is not estimated. It is a probability only after calibration
    (`evaluation.conformal`); a regression's score may lie outside 0..1.

    Parameters
    ----------
    config : Config
        Its `parameters` and `model` are used.
    predictions : ndarray, shape (N, P) or (N, classes)
        Output of the exported model.
    """
    if SPIN.name not in config.parameters:
        return None
    column = config.parameters.index(SPIN.name)
    if config.model.task == "regression":
        return predictions[:, column]
    spins = predictions[:, class_groups(config.parameters, config.model.class_width_deg)[column]]
    return spins[:, 1] / np.maximum(spins.sum(axis=1), np.finfo(np.float32).tiny)


def prediction_width(config: Config) -> int:
    """Return the number of outputs of the exported model."""
    if config.model.task == "classification":
        return class_groups(config.parameters, config.model.class_width_deg)[-1].stop
    return len(config.parameters)


def _target(config: Config, name: str, labels: Array) -> Target:
    model = config.model
    if model.task == "classification":
        # Catalogues and tables without classes are refused earlier; these may be shards made for
        # a regression.
        if not (good := named(name).in_class(labels)).all():
            raise InputError(
                f"model.task: classification has no class for {name} {labels[~good][0]:g} of the "
                f"training images (only for {named(name).span}); leave {name} out of "
                "parameters, or train a regression"
            )
        softmax = config.training.loss == "categorical_crossentropy"
        return Target(
            name,
            "softmax_classes" if softmax else "sigmoid_classes",
            width=named(name).classes(model.class_width_deg),
            class_width_deg=model.class_width_deg,
        )
    if name == SPIN.name and model.spin == "probability":
        return Target(name, "probability")
    if name in model.sine_cosine:
        # Relative to the middle of the labels, angles wrap by 360 deg far from any label.
        return Target(name, "sine_cosine", 2, offset=float(labels.min() + labels.max()) / 2)
    if not config.training.standardise_targets:
        return Target(name, "number")
    mean, scale = labels.mean(dtype=np.float64), labels.std(dtype=np.float64)
    varies = labels.min() < labels.max()  # otherwise the scale is 0 or rounding error
    return Target(name, "number", offset=float(mean), scale=float(scale) if varies else 1.0)
