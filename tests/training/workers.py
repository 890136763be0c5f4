"""What ranks do in tests: ``mpirun -np 2 python -m tests.training.workers NAME OUT ...``."""

import contextlib
import json
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from galmerhpc import cli, files, parallel
from galmerhpc.config import Config, Optimizer, Schedule, Training
from galmerhpc.dataset.batches import Batch, rank_share
from galmerhpc.models.build import build
from galmerhpc.models.resnet50 import resnet50_map
from galmerhpc.models.sky import make_augment
from galmerhpc.models.targets import Targets, make_targets
from galmerhpc.training import checkpoint, horovod
from galmerhpc.training.loss_scale import LossScale
from galmerhpc.training.losses import make_losses
from galmerhpc.training.network import Network, set_up_tensorflow
from galmerhpc.training.optimizer import make_optimizer
from galmerhpc.training.step import Step
from galmerhpc.training.watchdog import Watchdog

GLOBAL_BATCH = 25
HUGE, CLIP_NORM = 1e4, 0.01


# --- gradients ------------------------------------------------------------------------------------


def gradients(out: Path, network: str) -> None:
    """Write the weights' changes by one step, of a small network or of ResNet50, and of many ways.

    Parameters
    ----------
    out : Path
        Where they go.
    network : str
        ``small`` or ``resnet50``.
    """
    horovod.init(stall_limit_s=300)
    config = Config.model_validate({"run_dir": "unused", "training": {"loss": "mse"}})
    set_up_tensorflow(config.training)
    targets = make_targets(config, labels())
    if network == "small":
        changes = {
            "frozen": change(frozen(small(targets)), targets),
            "clipped": change(frozen(small(targets)), targets, clip_norm=CLIP_NORM),
            "pieces": change(frozen(small(targets)), targets, micro_batch=4),
            "fp16": change(frozen(small(targets)), targets, compression="fp16"),
            "synchronised": change(in_float64(small_map, targets), targets, sync_batchnorm=True),
        }
    else:
        changes = {
            "frozen": change(frozen(build(config, (32, 32, 3), targets)), targets),
            "synchronised": change(
                in_float64(lambda images: resnet50_map(images, 0.9), targets),
                targets, sync_batchnorm=True,
            ),
        }  # fmt: skip
    if horovod.rank() == 0:
        np.savez(out, **changes)


def labels() -> np.ndarray:
    return np.random.default_rng(8).uniform(0, 90, (GLOBAL_BATCH, 4)).astype(np.float32)


def small_map(images: Any) -> Any:
    import keras

    features = keras.layers.Conv2D(8, 5, strides=4)(images)
    return keras.layers.ReLU()(keras.layers.BatchNormalization()(features))


def small(targets: Targets, of: Any = small_map) -> Any:
    """Return a network that is traced at once; always of the same weights."""
    import keras

    keras.utils.set_random_seed(3)
    images = keras.Input((32, 32, 3), dtype="uint8")
    scaled = keras.layers.Rescaling(1 / 127.5, offset=-1.0)(images)
    raw = keras.layers.Dense(targets.width)(keras.layers.Flatten()(of(scaled)))
    return keras.Model(images, (raw, raw))


def frozen(model: Any) -> Any:
    import keras

    for layer in model.layers:
        layer.trainable = not isinstance(layer, keras.layers.BatchNormalization)
    return model


def in_float64(of: Any, targets: Targets) -> Any:
    """Return a network with synchronised batch normalisation, in float64 to the last layer."""
    import keras

    from galmerhpc.training.sync_batchnorm import synchronised

    keras.config.set_dtype_policy("float64")
    model = synchronised(small(targets, of))
    keras.config.set_dtype_policy("float32")
    return model


def change(model: Any, targets: Targets, clip_norm: float | None = None, **keys: Any) -> np.ndarray:
    """Return the weights' change by one huge step of plain gradient descent on 25 images.

    The step is so large that the change is the gradient to the weights' precision.
    """
    horovod.broadcast(model.variables)
    training = Training(
        loss="mse", optimizer=Optimizer(kind="sgd", clip_norm=clip_norm), learning_rate=HUGE,
        schedule=Schedule(kind="constant", warmup_steps=0), **keys,
    )  # fmt: skip
    optimizer = make_optimizer(training, 1)
    optimizer.build(model.trainable_variables)
    step = Step(
        model, optimizer, LossScale(training), make_losses(training, targets), targets,
        make_augment(training.augment, 0), training,
    )  # fmt: skip
    before = [v.numpy() for v in model.trainable_variables]
    changed = np.zeros(1)
    while not changed.any():  # a step whose gradients overflow float16 is left out
        assert not step(share(), 0, 0, stop=False).failed
        after = [v.numpy() for v in model.trainable_variables]
        changed = np.concatenate([(a - b).ravel() for a, b in zip(after, before, strict=True)])
    return changed


def share() -> Batch:
    mine = rank_share(GLOBAL_BATCH, horovod.rank(), horovod.size())
    draw = np.random.default_rng(7)
    images = draw.integers(0, 256, (GLOBAL_BATCH, 32, 32, 3), np.uint8)
    return Batch(0, np.arange(GLOBAL_BATCH)[mine], images[mine], labels()[mine], GLOBAL_BATCH)


# --- a training that is watched, and dies ---------------------------------------------------------


def train(out: Path, config: str, fault: str = "", *more: str) -> None:
    """Train; tell which rows each step saw, and kill ranks at a moment.

    Parameters
    ----------
    out : Path
        A folder. Each rank writes a line a step into it: epoch, step, rows.
    config : str
        The configuration file.
    fault : str
        ``MOMENT:NUMBER:VICTIM:SECONDS``: so long after the number-th moment of its kind in this
        session the victim, a rank or ``all``, is killed. Moments are ``step`` and ``evaluation``,
        ``save``, when a checkpoint begins to be written, ``write``, just before it is there, and
        ``saved``, as soon as it is.
    *more : str
        Given to the command.
    """
    moment, number, victim, seconds = fault.split(":") if fault else ("", "0", "", "0")
    pids, left = _all_pids(), int(number)

    def strike() -> None:
        known = pids if len(pids) > 1 else {horovod.rank(): os.getpid()}
        doomed = [pid for rank, pid in known.items() if victim in ("all", str(rank))]
        for pid in sorted(doomed, key=os.getpid().__eq__):  # itself last
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def reached(now: str) -> None:
        nonlocal left
        left -= now == moment
        if now == moment and left == 0:
            if float(seconds):
                threading.Timer(float(seconds), strike).start()
            else:
                strike()

    do_step, evaluation, replace = Step.__call__, Network.evaluation_weights, files.write_json
    save_it = checkpoint.save

    def step(self: Step, batch: Batch, epoch: int, number: int, *more: Any) -> Any:
        with (out / f"rows-{os.getpid()}.jsonl").open("a") as file:
            file.write(json.dumps([number, horovod.rank(), batch.rows.tolist()]) + "\n")
        reached("step")
        return do_step(self, batch, epoch, number, *more)

    def evaluate(self: Network, *more: Any) -> Any:
        reached("evaluation")
        return evaluation(self, *more)

    def write(path: Path, value: Any) -> None:
        if path.name == "manifest.json":  # the state is there, its manifest and name are not
            reached("write")
        replace(path, value)

    def save(*arguments: Any) -> None:
        reached("save")
        save_it(*arguments)
        reached("saved")

    with (
        mock.patch.object(Step, "__call__", step),
        mock.patch.object(Network, "evaluation_weights", evaluate),
        mock.patch.object(checkpoint, "save", save),
        mock.patch.object(checkpoint.files, "write_json", write),
    ):
        sys.exit(cli.main(["train", config, *more]))


def _all_pids() -> dict[int, int]:
    """Return the process ids of the ranks that MPI knows of."""
    world = parallel.communicator()
    return dict(enumerate(world.allgather(os.getpid()))) if world else {}


# --- a rank that hangs ----------------------------------------------------------------------------


LIMIT_S = 5


def hang(_: Path, rank: str) -> None:
    """Stop one rank while the other waits for it."""
    horovod.init(LIMIT_S)
    horovod.barrier()
    with Watchdog(LIMIT_S):
        if horovod.rank() == int(rank):
            os.kill(os.getpid(), signal.SIGSTOP)
        horovod.barrier()


if __name__ == "__main__":
    _, name, out, *more = sys.argv
    {"gradients": gradients, "train": train, "hang": hang}[name](Path(out), *more)
    horovod.barrier()
