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
from galmerhpc.training.memory import peak_bytes, resident_bytes
from galmerhpc.training.network import Network
from galmerhpc.training.train import check_batch_size

if TYPE_CHECKING:
    import keras

_BYTES = {"float32": 4, "mixed_bfloat16": 2, "mixed_float16": 2}
_OPTIMIZER_COPIES = {"adam": 2, "adamw": 2, "sgd": 1}

# What TensorFlow 2.21 holds of a compiled step beside numbers, measured on CPU.
_GRAPH_BYTES, _LAYER_BYTES = 40_000_000, 1_200_000


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
    check_batch_size(training, reader.count)
    steps = steps_per_epoch(reader.count, training.batch_size)
    import tensorflow as tf  # noqa: F401 - a library is no part of what a training takes

    before = resident_bytes()
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
            f"{time.perf_counter() - start:.1f} s with tracing, "
            f"memory measured: {grown_bytes(before) / 1e9:.2f} GB"
        )


def describe_memory(model: "keras.Model", training: Training) -> str:
    """Return the line that `dry_run` prints of a rank's memory."""
    parts = memory_estimate(model, training)
    listed = ", ".join(f"{name} {nbytes / 1e9:.2f}" for name, nbytes in parts.items())
    return f"memory of a rank, estimated: {sum(parts.values()) / 1e9:.2f} GB ({listed})"


def grown_bytes(before: int) -> int:
    """Return the most that a rank has taken on its GPU, or since then of its node's memory."""
    import tensorflow as tf

    if tf.config.list_logical_devices("GPU"):
        return int(tf.config.experimental.get_memory_info("GPU:0")["peak"])
    return peak_bytes() - before


def memory_estimate(model: "keras.Model", training: Training) -> dict[str, int]:
    """Estimate the bytes that training takes of a rank, beside libraries and the data.

    Parameters
    ----------
    model : keras.Model
        The network.
    training : Training
        Batch size, micro-batch, precision, optimiser and averages decide.

    Returns
    -------
    dict
        Bytes of weights, gradients, optimiser, activations of the images that go through at once,
        and of the compiled graph, which stands in the node's memory also where there is a GPU.
    """
    weights = 4 * sum(math.prod(v.shape) for v in model.variables)
    trained = 4 * sum(math.prod(v.shape) for v in model.trainable_variables)
    copies = _OPTIMIZER_COPIES[training.optimizer.kind] + (training.ema_momentum > 0)
    share = math.ceil(training.batch_size / horovod.size())
    at_once = min(training.micro_batch or share, share)
    pieces = math.ceil(share / at_once)
    return {
        "weights": weights,
        "gradients": trained * (2 if pieces > 1 else 1),
        "optimiser": trained * copies,
        "activations": kept_numbers(model) * at_once * _BYTES[training.precision],
        "graph": _GRAPH_BYTES + _LAYER_BYTES * len(model.layers),
    }


def kept_numbers(model: "keras.Model") -> int:
    """Return how many numbers an image leaves behind on its way forward for the way back.

    A layer with weights needs again what it was given, an activation what it gave, a maximum both;
    sums, padding and other shapes need nothing.
    """
    import keras

    kept = {}
    for layer in model.layers:
        maximum = isinstance(layer, keras.layers.MaxPooling2D)
        activation = getattr(layer, "activation", keras.activations.linear)
        if layer.weights or maximum:
            kept[id(layer.input)] = layer.input
        if activation is not keras.activations.linear or maximum:
            kept[id(layer.output)] = layer.output
    return sum(math.prod(tensor.shape[1:]) for tensor in kept.values())
