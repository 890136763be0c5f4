"""What ranks do in tests: ``mpirun -np 2 python -m tests.training.workers NAME OUT``."""

import json
import sys
from pathlib import Path

import numpy as np

from galmerhpc.config import Config, Model, Optimizer, Schedule, Training, load
from galmerhpc.dataset.batches import SplitReader, rank_share, training_batches
from galmerhpc.dataset.shards import Dataset
from galmerhpc.models.build import build
from galmerhpc.models.sky import make_augment
from galmerhpc.models.targets import make_targets
from galmerhpc.training import horovod
from galmerhpc.training.losses import make_losses
from galmerhpc.training.optimizer import make_optimizer
from galmerhpc.training.train import make_step, set_up_tensorflow

GLOBAL_BATCH = 25
HUGE, CLIP_NORM = 1e4, 0.01


def gradients(out: Path) -> None:
    """Write the weights' changes by one step of ResNet50, and by one clipped step of Table 1's CNN.

    More ranks than images leave some without any.
    """
    section = {"training": {"loss": "mse"}}
    resnet50 = Config.model_validate({"run_dir": "unused", **section})
    table1 = resnet50.model_copy(update={"model": Model(architecture="table1_cnn")})
    set_up_tensorflow(resnet50.training)
    changes = {"whole": change(resnet50, Optimizer(kind="sgd"))}
    changes["clipped"] = change(table1, Optimizer(kind="sgd", clip_norm=CLIP_NORM))
    if horovod.rank() == 0:
        np.savez(out, **changes)


def change(config: Config, optimizer: Optimizer) -> np.ndarray:
    """Return the weights' change by one huge step of plain gradient descent on 25 images.

    Batch normalisation is frozen; the step is so large that the change is the gradient to
    float32's precision.
    """
    import keras

    draw = np.random.default_rng(7)
    images = draw.integers(0, 256, (GLOBAL_BATCH, 32, 32, 3), np.uint8)
    labels = draw.uniform(0, 90, (GLOBAL_BATCH, 4)).astype(np.float32)
    targets = make_targets(config, labels)
    model = build(config, (32, 32, 3), targets)
    for layer in model.layers:
        layer.trainable = not isinstance(layer, keras.layers.BatchNormalization)
    horovod.broadcast(model.variables)
    constant = Training(
        optimizer=optimizer, learning_rate=HUGE, schedule=Schedule(kind="constant", warmup_steps=0)
    )
    made = make_optimizer(constant, 1)
    made.build(model.trainable_variables)
    augment = make_augment(config.training.augment, 0)
    step = make_step(model, made, make_losses(config.training, targets), augment)
    mine = rank_share(GLOBAL_BATCH, horovod.rank(), horovod.size())
    before = [v.numpy() for v in model.trainable_variables]
    weights = np.ones(mine.stop - mine.start, np.float32)
    rows = np.arange(GLOBAL_BATCH)[mine]
    step(
        images[mine], targets.encode(labels[mine]), rows, np.int64(0), weights,
        np.float32(GLOBAL_BATCH), np.float32(0),
    )  # fmt: skip
    after = [v.numpy() for v in model.trainable_variables]
    return np.concatenate([(a - b).ravel() for a, b in zip(after, before, strict=True)])


def order(out: Path) -> None:
    """Write the dataset rows of every global step of two epochs, as the ranks together see them."""
    config = load(out.parent / "run.yaml")
    reader = SplitReader(Dataset.open(config.run_dir / "shards"), "train", config.data)
    steps = []
    for epoch in (0, 1):
        for batch in training_batches(
            reader, 0, epoch, config.training.batch_size, horovod.rank(), horovod.size()
        ):
            shares = horovod.gather_objects(np.asarray(batch.rows).tolist())
            steps.append([row for share in shares for row in share])
    if horovod.rank() == 0:
        out.write_text(json.dumps(steps))


if __name__ == "__main__":
    horovod.init(stall_limit_s=120)
    {"gradients": gradients, "order": order}[sys.argv[1]](Path(sys.argv[2]))
    horovod.barrier()
