"""What ranks do in tests: ``mpirun -np 2 python -m tests.training.workers NAME OUT``."""

import json
import sys
from pathlib import Path

import numpy as np

from galmerhpc.config import Config, load
from galmerhpc.dataset.batches import SplitReader, rank_share, training_batches
from galmerhpc.dataset.shards import Dataset
from galmerhpc.models.build import build
from galmerhpc.models.sky import make_augment
from galmerhpc.models.targets import make_targets
from galmerhpc.training import horovod
from galmerhpc.training.losses import make_losses
from galmerhpc.training.train import make_step, set_up_tensorflow

GLOBAL_BATCH = 25


def gradients(out: Path) -> None:
    """Write the weights' change by one huge step of plain gradient descent on 25 images.

    Batch normalisation is frozen; the step is so large that the change is the gradient to
    float32's precision. More ranks than images leave some without any.
    """
    import keras

    config = Config.model_validate({"run_dir": "unused", "training": {"loss": "mse"}})
    set_up_tensorflow(config.training)
    draw = np.random.default_rng(7)
    images = draw.integers(0, 256, (GLOBAL_BATCH, 32, 32, 3), np.uint8)
    labels = draw.uniform(0, 90, (GLOBAL_BATCH, 4)).astype(np.float32)
    targets = make_targets(config, labels)
    model = build(config, (32, 32, 3), targets)
    for layer in model.layers:
        layer.trainable = not isinstance(layer, keras.layers.BatchNormalization)
    horovod.broadcast(model.variables)
    optimizer = keras.optimizers.SGD(1e4)
    optimizer.build(model.trainable_variables)
    augment = make_augment(config.training.augment, 0)
    step = make_step(model, optimizer, make_losses(config.training, targets), augment)
    mine = rank_share(GLOBAL_BATCH, horovod.rank(), horovod.size())
    before = [v.numpy() for v in model.trainable_variables]
    weights = np.ones(mine.stop - mine.start, np.float32)
    rows = np.arange(GLOBAL_BATCH)[mine]
    step(
        images[mine], targets.encode(labels[mine]), rows, np.int64(0), weights,
        np.float32(GLOBAL_BATCH), np.float32(0),
    )  # fmt: skip
    change = [v.numpy() - b for v, b in zip(model.trainable_variables, before, strict=True)]
    if horovod.rank() == 0:
        np.save(out, np.concatenate([c.ravel() for c in change]))


def order(out: Path) -> None:
    """Write the dataset rows of every global step of two epochs, as the ranks together see them."""
    config = load(out.parent / "run.yaml")
    reader = SplitReader(Dataset.open(config.run_dir / "shards"), "train", config.data.memory_gb)
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
