"""A factor on the loss, without which small gradients would underflow in float16.

It grows while gradients stay finite, and falls when they overflow; that step is then skipped
(Micikevicius et al. 2018, arXiv:1710.03740, section 3.2). All ranks decide on the summed gradients,
and so alike.
"""

from typing import Any

from galmerhpc.config import Training

FIRST = 2.0**15
GROWTH_STEPS = 2000
"""Finite steps after which the factor doubles."""


class LossScale:
    """The factor, and for how many steps it has been adequate.

    Parameters
    ----------
    training : Training
        Without float16 in `precision` or `compression` the factor stays 1.

    Attributes
    ----------
    used : bool
        Whether there is anything to scale.
    variables : list of Variable
        The factor, and the finite steps since it last changed; float32 scalars.
    """

    def __init__(self, training: Training) -> None:
        import keras

        self.used = training.precision == "mixed_float16" or training.compression == "fp16"
        self._first = (FIRST if self.used else 1.0, 0.0)
        self.variables = [
            keras.Variable(value, dtype="float32", trainable=False, name=name)
            for name, value in zip(("loss_scale", "finite_steps"), self._first, strict=True)
        ]

    def reset(self) -> None:
        """Begin again, in a training that was continued with another precision."""
        for variable, value in zip(self.variables, self._first, strict=True):
            variable.assign(value)

    @property
    def factor(self) -> Any:
        """The factor, as a tensor."""
        return self.variables[0].value

    def update(self, finite: Any) -> None:
        """Take a step's outcome into account; in a graph.

        Parameters
        ----------
        finite : Tensor, bool
            Whether the gradients, summed over ranks, were all finite.
        """
        import tensorflow as tf

        factor, steps = (variable.value for variable in self.variables)
        grown = steps + 1 >= GROWTH_STEPS
        new_factor = tf.where(
            finite, tf.where(grown, factor * 2, factor), tf.maximum(factor / 2, 1.0)
        )
        new_steps = tf.where(finite & ~grown, steps + 1, 0.0)
        self.variables[0].assign(new_factor)
        self.variables[1].assign(new_steps)
