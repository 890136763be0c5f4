"""What a training would be: network, memory, steps; and whether one batch goes through."""

import math
import time
from typing import TYPE_CHECKING

import numpy as np

from galmerhpc.config import Config, Training
from galmerhpc.dataset.batches import SplitReader, steps_per_epoch, training_batches
from galmerhpc.dataset.shards import Dataset
from galmerhpc.errors import GalmerhpcError
from galmerhpc.models.targets import make_targets
from galmerhpc.training import horovod
from galmerhpc.training.network import Network

if TYPE_CHECKING:
    import keras

_BYTES = {"float32": 4, "mixed_bfloat16": 2, "mixed_float16": 2}
_OPTIMIZER_COPIES = {"adam": 2, "adamw": 2, "sgd": 1}


def dry_run(config: Config) -> None:
    """Print the network, its memory and the steps, and train on one batch; writes nothing.

    Parameters
    ----------
    config : Config
        The run; its shards must be there.

    Raises
    ------
    InputError
        The shards or the configuration do not fit.
    GalmerhpcError
        The loss or gradient of the first batch is not finite.
    """
    training = config.training
    horovod.init(training.stall_limit_s)
    dataset = Dataset.open(config.run_dir / "shards")
    reader = SplitReader(dataset, "train", config.data)
    steps = steps_per_epoch(reader.count, training.batch_size)
    network = Network(
        config, dataset.image_shape, make_targets(config, reader.labels), steps * training.epochs
    )
    if horovod.rank() == 0:
        network.model.summary(print_fn=print)
        print(describe_memory(network.model, training))
        print(
            f"{reader.count:,} training images: {steps:,} steps an epoch of {training.batch_size} "
            f"images over {horovod.size()} ranks, {steps * training.epochs:,} steps in "
            f"{training.epochs} epochs"
        )
    batch = next(
        training_batches(
            reader, training.seed, 0, training.batch_size, horovod.rank(), horovod.size()
        )
    )
    start = time.perf_counter()
    outcome = network.step(batch, 0, 0, stop=False)
    if outcome.failed or not np.isfinite(outcome.loss):
        raise GalmerhpcError(
            "the first batch's loss or gradient is not finite: look at its images and labels"
        )
    if horovod.rank() == 0:
        print(
            f"one batch: loss {outcome.loss:.4f}, gradients finite, "
            f"{time.perf_counter() - start:.1f} s with tracing"
        )


def describe_memory(model: "keras.Model", training: Training) -> str:
    """Return the line that `dry_run` prints of a rank's memory."""
    parts = memory_estimate(model, training)
    listed = ", ".join(f"{name} {nbytes / 1e9:.2f}" for name, nbytes in parts.items())
    return f"memory of a rank, estimated: {sum(parts.values()) / 1e9:.2f} GB ({listed})"


def memory_estimate(model: "keras.Model", training: Training) -> dict[str, int]:
    """Estimate the bytes that training takes on a rank's device, beside libraries and the images.

    Parameters
    ----------
    model : keras.Model
        The network.
    training : Training
        Batch size, micro-batch, precision, optimiser and averages decide.

    Returns
    -------
    dict
        Bytes of weights, gradients, optimiser and activations. The last are the outputs of all
        layers for the images that go through at once: what the way back needs of them.
    """
    weights = 4 * sum(math.prod(v.shape) for v in model.variables)
    trained = 4 * sum(math.prod(v.shape) for v in model.trainable_variables)
    copies = _OPTIMIZER_COPIES[training.optimizer.kind] + (training.ema_momentum > 0)
    share = math.ceil(training.batch_size / horovod.size())
    at_once = min(training.micro_batch or share, share)
    pieces = math.ceil(share / at_once)
    outputs = sum(
        math.prod(layer.output.shape[1:])
        for layer in model.layers
        if hasattr(layer.output, "shape")
    )
    return {
        "weights": weights,
        "gradients": trained * (2 if pieces > 1 else 1),
        "optimiser": trained * copies,
        "activations": outputs * at_once * _BYTES[training.precision],
    }
