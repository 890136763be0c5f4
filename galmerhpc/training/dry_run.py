"""A preview of a training: network, memory, steps; and whether one batch runs."""

import math
import time
from typing import TYPE_CHECKING

import numpy as np

from galmerhpc.config import Config, Training
from galmerhpc.dataset.batches import SplitReader, steps_per_epoch, training_batches
from galmerhpc.dataset.records import stage_record
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

# Memory of a compiled step in TensorFlow 2.21 beside its numbers, measured on CPU.
_GRAPH_BYTES, _LAYER_BYTES = 40_000_000, 1_200_000


def dry_run(config: Config) -> None:
    """Print the network, its memory and the steps, and train on one batch; writes nothing.

    Parameters
    ----------
    config : Config
        The run; its shards must exist.

    Raises
    ------
    InputError
        The shards or the configuration do not fit.
    GalmerhpcError
        The loss or gradient of the first batch is not finite.
    """
    training = config.training
    stage_record(config, "preprocess")  # refuses shards of another configuration
    horovod.init(training.stall_limit_s)
    dataset = Dataset.open(config.run_dir / "shards")
    reader = SplitReader(dataset, "train", config.data)
    check_batch_size(training, reader.count)
    steps = steps_per_epoch(reader.count, training.batch_size)
    import tensorflow as tf  # noqa: F401 - libraries do not count as the training's memory

    before = resident_bytes()
    network = Network(
        config, dataset.image_shape, make_targets(config, reader.labels), steps * training.epochs
    )
    if horovod.rank() == 0:
        network.model.summary(print_fn=print)
        print(describe_memory(network.model, training))
        print(
            f"{reader.count:,} training images: {steps:,} steps per epoch of {training.batch_size} "
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
    """Return the line that `dry_run` prints about a rank's memory."""
    parts = memory_estimate(model, training)
    listed = ", ".join(f"{name} {nbytes / 1e9:.2f}" for name, nbytes in parts.items())
    return f"estimated memory per rank: {sum(parts.values()) / 1e9:.2f} GB ({listed})"


def grown_bytes(before: int) -> int:
    """Return a rank's peak memory on its GPU or, on a CPU, its growth since `before`."""
    import tensorflow as tf

    if tf.config.list_logical_devices("GPU"):
        return int(tf.config.experimental.get_memory_info("GPU:0")["peak"])
    return peak_bytes() - before


def memory_estimate(model: "keras.Model", training: Training) -> dict[str, int]:
    """Estimate a rank's memory in training, beside libraries and the data.

    Parameters
    ----------
    model : keras.Model
        The network.
    training : Training
        Batch size, micro-batch, precision, optimiser and averages are used.

    Returns
    -------
    dict
        Bytes of weights, gradients, optimiser, activations of the images of one pass, and of the
        compiled graph, which is in host memory even if there is a GPU.
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
    """Return how many numbers per image the forward pass keeps for the backward pass.

    A layer with weights needs its input, an activation its output, a maximum both; sums, padding
    and reshapes need nothing.
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
