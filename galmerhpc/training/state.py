"""What a checkpoint holds: the training's position, and every number the next step depends on."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from galmerhpc.errors import GalmerhpcError, InputError
from galmerhpc.metrics import Sums
from galmerhpc.training import horovod
from galmerhpc.training.checkpoint import Arrays
from galmerhpc.training.history import Row
from galmerhpc.training.loss_scale import LossScale

if TYPE_CHECKING:
    import keras


RESUME = (
    "the last checkpoint is sound: resume from it with a lower training.learning_rate "
    "(train CONFIG --allow-change training.learning_rate training.learning_rate=...)"
)


@dataclass
class Progress:
    """Position of the training.

    Attributes
    ----------
    sums : PartialSums or ClassifierSums
        Training metrics of the epoch so far; of this rank while it runs, of all in a checkpoint.
    epoch : int
        Epochs finished.
    step : int
        Steps done in the epoch under way.
    seconds : float
        Seconds of training so far, over all sessions.
    settled : bool
        Whether batch normalisation's statistics were frozen in the last steps, as set by
        `network.Network.reestimate_batchnorm`.
    loss : float
        Sum of the losses of the epoch's images so far, over all ranks.
    best : float, optional
        Best value of ``training.best_metric`` so far.
    best_name : str, optional
        Checkpoint of that epoch.
    epochs_since_best : int
        Compared with ``training.patience``.
    history : list of dict
        The finished epochs' rows of metrics.csv.
    """

    sums: Sums
    epoch: int = 0
    step: int = 0
    seconds: float = 0.0
    settled: bool = False
    loss: float = 0.0
    best: float | None = None
    best_name: str | None = None
    epochs_since_best: int = 0
    history: list[Row] = field(default_factory=list)

    def meta(self) -> dict[str, Any]:
        """Return everything but the sums as JSON values."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)[1:]}

    @classmethod
    def from_meta(cls, meta: dict[str, Any], sums: Sums) -> "Progress":
        """Read what `meta` wrote."""
        known = {**meta, "settled": was_settled(meta)}
        return cls(sums, **{f.name: known[f.name] for f in dataclasses.fields(cls)[1:]})


def was_settled(meta: dict[str, Any]) -> bool:
    """Return ``Progress.settled`` of a checkpoint; in older ones it follows from the keys."""
    if "settled" in meta:
        return bool(meta["settled"])
    epoch = meta["epoch"] - (meta["step"] == 0)  # of the last step
    keys = meta["configuration"]
    kept = keys.get("training.freeze_batchnorm_epochs", 0)
    return bool(epoch >= keys["training.epochs"] - kept)


class State:
    """The numbers of one rank's network.

    Weights, optimiser (with the weights' averages) and loss scale are the same on all ranks.
    Batch normalisation's moving statistics are each rank's own. Dropout has no state: what is
    dropped follows from seed, step and rank (`step.Step`).

    Parameters
    ----------
    model : keras.Model
        The network.
    optimizer : keras.optimizers.Optimizer
        Built.
    loss_scale : LossScale
        Factor on the loss.
    """

    def __init__(
        self,
        model: "keras.Model",
        optimizer: "keras.optimizers.Optimizer",
        loss_scale: LossScale,
    ) -> None:
        self._weights = model.trainable_variables
        averages = averages_of(optimizer)
        ours = {id(v) for v in averages}
        parts = {
            "weights": self._weights,
            "averages": averages,
            "optimizer": [v for v in optimizer.variables if id(v) not in ours],
            "loss_scale": loss_scale.variables,
        }
        # Numbered: Keras's names depend on what else the process has built.
        self.shared = {f"{part}/{k}": v for part, vs in parts.items() for k, v in enumerate(vs)}
        self.own = list(model.non_trainable_weights)
        self._checksum = make_checksum(self._weights)

    def copy(self) -> Arrays:
        """Return a copy of what all ranks share, in host memory."""
        return {name: variable.numpy() for name, variable in self.shared.items()}

    def check(self) -> None:
        """Check that the weights are finite, and the same on all ranks; collective.

        Raises
        ------
        GalmerhpcError
            They are not.
        """
        bits, norm = (x.numpy() for x in self._checksum())
        if len(set(horovod.gather_objects(int(bits)))) > 1:
            raise GalmerhpcError(
                "the ranks' weights differ: Horovod's all-reduce is broken; run galmerhpc doctor "
                "and do not use this run's later checkpoints"
            )
        if not np.isfinite(norm):
            raise GalmerhpcError(f"the weights are no longer finite; {RESUME}")

    def gather_own(self) -> Arrays:
        """Return the statistics of all ranks; collective."""
        answers = horovod.gather_objects([v.numpy() for v in self.own])
        return {
            f"rank{rank}/{k}": value
            for rank, own in enumerate(answers)
            for k, value in enumerate(own)
        }

    def restore(self, arrays: Arrays | None, ranks: int, path: Path) -> None:
        """Restore the numbers of a checkpoint; collective.

        Parameters
        ----------
        arrays : dict, or None
            Its arrays on rank 0; None elsewhere.
        ranks : int
            Number of ranks that wrote it. The same number of ranks take each their own statistics,
            another number take the mean.
        path : Path
            The checkpoint, for messages.

        Raises
        ------
        InputError
            It belongs to another network or optimiser.
        """
        statistics = [] if arrays is None else self.take(arrays, ranks, path)
        self.broadcast()
        if ranks == horovod.size():
            own = horovod.broadcast_object(statistics)[horovod.rank()]
            for variable, value in zip(self.own, own, strict=True):
                variable.assign(value)

    def take(self, arrays: Arrays, ranks: int, path: Path) -> list[list[NDArray[Any]]]:
        """Restore the numbers of a checkpoint on this rank only, with the mean of the statistics.

        Returns
        -------
        list of list of ndarray
            The statistics of each rank that wrote it.
        """
        # Averages that were not kept begin at the weights, as those of a new training do.
        averages = {
            name: arrays.get(name, arrays.get(name.replace("averages", "weights")))
            for name in self.shared
            if name.startswith("averages/")
        }
        arrays = arrays | {name: value for name, value in averages.items() if value is not None}
        for name, variable in self.shared.items():
            if name not in arrays or arrays[name].shape != tuple(variable.shape):
                raise InputError(
                    f"{path}: {name} does not fit the configured network and optimiser; "
                    "choose another run_dir"
                )
            variable.assign(arrays[name])
        statistics = [
            [arrays[f"rank{rank}/{k}"] for k in range(len(self.own))] for rank in range(ranks)
        ]
        for variable, value in zip(self.own, mean_of(statistics), strict=True):
            variable.assign(value)
        return statistics

    def broadcast(self) -> None:
        """Give every rank rank 0's numbers."""
        horovod.broadcast([*self.shared.values(), *self.own])


def averages_of(optimizer: "keras.optimizers.Optimizer") -> list[Any]:
    """Return the weights' moving averages, in the weights' order; empty if none are kept."""
    return list(optimizer._model_variables_moving_average) if optimizer.use_ema else []


def mean_of(statistics: list[list[NDArray[Any]]]) -> list[NDArray[Any]]:
    """Return the mean over ranks of each array."""
    return [
        np.mean(arrays, axis=0).astype(arrays[0].dtype) for arrays in zip(*statistics, strict=True)
    ]


def make_checksum(variables: list[Any]) -> Any:
    """Return a function that computes a bitwise checksum and the global norm of the variables.

    Different sums mean different weights; the norm is finite only if all weights are. Both run at
    memory speed, where a hash would hold the training up.
    """
    import tensorflow as tf

    @tf.function(autograph=False)
    def checksum() -> tuple[Any, Any]:
        values = [tf.cast(v.value, tf.float32) for v in variables]
        sums = [tf.reduce_sum(tf.bitcast(value, tf.int32)) for value in values]
        return tf.add_n(sums), tf.linalg.global_norm(values)

    return checksum
