"""Training: the loop over global batches, from the first step or from a checkpoint.

The gradient of a step is that of the loss over the GLOBAL batch: each rank divides its sum of
losses by the global batch size, and gradients are summed over ranks, so that uneven shares
(25 images on 2 ranks: 13 + 12) weigh right.
"""

import hashlib
import logging
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from galmerhpc import files, parallel
from galmerhpc.config import Config, Training, digest
from galmerhpc.dataset.batches import (
    Batch,
    SplitReader,
    evaluation_batches,
    steps_per_epoch,
    training_batches,
)
from galmerhpc.dataset.shards import Dataset
from galmerhpc.errors import GalmerhpcError, InputError, InterruptedRunError
from galmerhpc.interrupt import StopRequest
from galmerhpc.metrics import ClassifierSums, PartialSums, Sums, describe_answers, to_json
from galmerhpc.models import sky
from galmerhpc.models.build import build, exported
from galmerhpc.models.targets import make_targets
from galmerhpc.training import checkpoint, horovod
from galmerhpc.training.losses import Losses, make_losses
from galmerhpc.training.optimizer import make_optimizer
from galmerhpc.training.statistics import StatisticsEstimator
from galmerhpc.training.watchdog import Watchdog

if TYPE_CHECKING:
    import keras
    import tensorflow as tf

log = logging.getLogger(__name__)

Row = dict[str, float | None]

SMALL_LOCAL_BATCH = 8
"""Below this, a rank's batch normalisation sees too few images."""


@dataclass
class Progress:
    """Where the training stands: what a checkpoint holds beside arrays.

    Attributes
    ----------
    epoch : int
        Epochs finished.
    step : int
        Steps done in the epoch under way.
    seconds : float
        Seconds of training so far, over all sessions.
    loss : float
        Sum of the losses of the epoch's images so far, over all ranks.
    sums : PartialSums or ClassifierSums
        Training metrics of the epoch so far; of this rank while it runs.
    history : list of dict
        The finished epochs' rows of metrics.csv.
    """

    sums: Sums
    epoch: int = 0
    step: int = 0
    seconds: float = 0.0
    loss: float = 0.0
    history: list[Row] = field(default_factory=list)


def train(config: Config) -> None:
    """Train the configured network on the run's shards; called by every rank.

    Writes ``checkpoints/``, ``metrics.csv`` and ``model.keras`` into the run folder, from rank 0.
    Goes on from the newest checkpoint, and returns at once where the training is finished.

    Parameters
    ----------
    config : Config
        The run.

    Raises
    ------
    InputError
        The configuration, the shards or the checkpoints do not fit each other or the ranks.
    InterruptedRunError
        A signal came; the work is saved.
    GalmerhpcError
        The loss is not finite any more, or the ranks' weights differ.
    """
    inputs = config.inputs("train")
    record = files.StageRecord(config.run_dir / "checkpoints", inputs)
    if record.complete:
        log.info("train: complete, nothing to do")
        return
    horovod.init(config.training.stall_limit_s)
    dataset = Dataset.open(config.run_dir / "shards")
    check_batch_size(config.training.batch_size)
    if horovod.rank() == 0:
        record.begin()
    with StopRequest() as stop, Watchdog(config.training.stall_limit_s) as watchdog:
        trainer = Trainer(config, dataset, watchdog)
        trainer.resume()
        while trainer.progress.epoch < config.training.epochs:
            trainer.run_epoch(stop)
            trainer.finish_epoch()
        trainer.export()
        if horovod.rank() == 0:
            record.finish(
                {
                    f"../{name}": files.sha256(config.run_dir / name)
                    for name in ("model.keras", "metrics.csv")
                }
            )
        horovod.barrier()


class Trainer:
    """One rank's network, optimiser and data.

    Parameters
    ----------
    config : Config
        The run.
    dataset : Dataset
        Its shards.
    watchdog : Watchdog
        Told of every step.
    """

    def __init__(self, config: Config, dataset: Dataset, watchdog: Watchdog) -> None:
        self._config, self._dataset, self._watchdog = config, dataset, watchdog
        self._training = config.training
        self._reader = SplitReader(dataset, "train", config.data)
        self._validation = SplitReader(dataset, "validation", config.data)
        set_up_tensorflow(self._training)
        self._targets = make_targets(config, self._reader.labels)
        self._model = build(config, dataset.image_shape, self._targets)
        self._evaluated = build(config, dataset.image_shape, self._targets)
        self._steps = steps_per_epoch(self._reader.count, self._training.batch_size)
        self._optimizer = make_optimizer(self._training, self._steps * self._training.epochs)
        self._optimizer.build(self._model.trainable_variables)
        self._losses = make_losses(self._training, self._targets)
        augment = sky.make_augment(self._training.augment, self._training.seed)
        self._step = make_step(self._model, self._optimizer, self._losses, augment)
        self._predict = make_predict(self._evaluated)
        self._statistics = StatisticsEstimator(self._evaluated, augment)
        self.progress = Progress(self._no_sums())
        self._traced, self._timed_seconds, self._timed_images = False, 0.0, 0

    # --- the loop ---------------------------------------------------------------------------------

    def run_epoch(self, stop: StopRequest) -> None:
        """Do the rest of the epoch's steps.

        Raises
        ------
        InterruptedRunError
            A rank was asked to stop; all ranks stop after the same step, with a checkpoint.
        """
        training, progress = self._training, self.progress
        batches = training_batches(
            self._reader, training.seed, progress.epoch, training.batch_size,
            horovod.rank(), horovod.size(), first_step=progress.step,
        )  # fmt: skip
        bar = tqdm(
            desc=f"epoch {progress.epoch + 1}/{training.epochs}",
            total=self._reader.count, initial=progress.step * training.batch_size, unit="img",
            leave=False, disable=True if horovod.rank() else None,
        )  # fmt: skip
        with bar:
            for batch in self._watchdog.watched(batches):
                start = time.perf_counter()
                stopped = self._do_step(batch, stop.requested)
                self._count_time(time.perf_counter() - start, batch.global_size)
                bar.update(batch.global_size)
                seen = min(progress.step * training.batch_size, self._reader.count)
                bar.set_postfix(loss=f"{progress.loss / seen:.4f}", refresh=False)
                if stopped:
                    self._save()
                    raise InterruptedRunError(
                        f"stopped by a signal after epoch {progress.epoch}, step {progress.step}; "
                        "the work is saved: the same command goes on from there"
                    )
                every = training.checkpoint_every_steps
                if every and progress.step % every == 0 and progress.step < self._steps:
                    self._save()

    def _do_step(self, batch: Batch, stop_requested: bool) -> bool:
        """Do one step and return whether any rank was asked to stop."""
        empty = not len(batch.images)
        if empty:  # a rank without images in a short last batch: one that weighs nothing
            batch = self._reader.batch(batch.step, np.arange(1), batch.global_size)
        weights = np.full(len(batch.images), not empty, np.float32)
        loss, stops, predicted = self._step(
            batch.images, self._targets.encode(batch.labels), batch.rows,
            np.int64(self.progress.epoch), weights,
            np.float32(batch.global_size), np.float32(stop_requested),
        )  # fmt: skip
        self.progress.step += 1
        if not np.isfinite(loss):
            raise GalmerhpcError(
                f"the loss is {float(loss)} at epoch {self.progress.epoch + 1}, "
                f"step {self.progress.step}: lower training.learning_rate, then remove the run's "
                "checkpoints or choose another run_dir"
            )
        self.progress.loss += float(loss) * batch.global_size
        if not empty:
            self.progress.sums += self._sums_of(batch.labels, predicted)
        return bool(stops > 0)

    def _count_time(self, seconds: float, images: int) -> None:
        """Add a step's time; the first step of a session traces, and is left out of the rate."""
        self.progress.seconds += seconds
        if self._traced:
            self._timed_seconds += seconds
            self._timed_images += images
        self._traced = True

    def finish_epoch(self) -> None:
        """Validate, add a row to metrics.csv, checkpoint."""
        progress = self.progress
        self._refresh_evaluated()
        training_sums = merged(progress.sums)
        validation_sums, validation_loss = self._validate()
        row = {
            "epoch": progress.epoch + 1,
            "step": (progress.epoch + 1) * self._steps,
            "seconds": round(progress.seconds, 3),
            "images_per_s": round(self._timed_images / max(self._timed_seconds, 1e-9), 2),
            "learning_rate": float(self._optimizer.learning_rate),
            "training_loss": progress.loss / self._reader.count,
            "validation_loss": validation_loss,
            **metric_columns("training", training_sums, ()),
            **metric_columns("validation", validation_sums, self._dataset.parameters),
        }
        self.progress = Progress(
            self._no_sums(),
            progress.epoch + 1,
            0,
            progress.seconds,
            history=[*progress.history, row],
        )
        self._save()
        if horovod.rank() == 0:
            write_history(self._config, self.progress.history)
            log.info(
                "epoch %d/%d: loss %.4f, MAE %.3f in training, %.3f in validation, %.0f images/s",
                row["epoch"], self._training.epochs, row["training_loss"],
                row["training_mae"], row["validation_mae"], row["images_per_s"],
            )  # fmt: skip
            if self._config.model.task == "classification":
                log.info("validation: %s", describe_answers(validation_sums.metrics()))

    # --- evaluation -------------------------------------------------------------------------------

    def _refresh_evaluated(self) -> None:
        """Give the evaluated copy the averaged weights and statistics that fit them."""
        averages = (
            getattr(self._optimizer, "_model_variables_moving_average", None)
            if self._optimizer.use_ema
            else None
        )
        for target, source in zip(
            self._evaluated.trainable_variables,
            averages or self._model.trainable_variables,
            strict=True,
        ):
            target.assign(source)
        if self._training.statistics_batches:
            # An epoch that no training has: the batches are nobody's next ones.
            batches = training_batches(
                self._reader, self._training.seed, self._training.epochs, self._training.batch_size,
                horovod.rank(), horovod.size(),
            )  # fmt: skip
            self._statistics.estimate(
                self._watchdog.watched(batches),
                self._training.epochs,
                self._training.statistics_batches,
            )
            return
        own = [v.numpy() for v in self._model.non_trainable_variables]
        for target, mean in zip(
            self._evaluated.non_trainable_variables,
            mean_over_ranks(horovod.gather_objects(own)),
            strict=True,
        ):
            target.assign(mean)

    def _validate(self) -> tuple[Sums, float]:
        """Return the sums and the mean loss of the validation split, over all ranks."""
        sums, loss = self._no_sums(), 0.0
        batches = evaluation_batches(
            self._validation, self._training.evaluation_batch, horovod.rank(), horovod.size()
        )
        for batch in self._watchdog.watched(batches):
            raw, predicted = self._predict(batch.images)
            sums += self._sums_of(batch.labels, predicted)
            loss += float(np.sum(self._losses(self._targets.encode(batch.labels), raw)))
        total = horovod.sum_array(np.array([loss]))
        return merged(sums), float(total[0]) / self._validation.count

    def export(self) -> None:
        """Write ``model.keras`` from rank 0: weights and statistics as they are evaluated."""
        self._refresh_evaluated()
        if horovod.rank() == 0:
            with files.atomic_path(self._config.run_dir / "model.keras") as temporary:
                exported(self._evaluated).save(temporary)
            write_history(self._config, self.progress.history)

    def _no_sums(self) -> Sums:
        kind = ClassifierSums if self._config.model.task == "classification" else PartialSums
        return kind.none(len(self._dataset.parameters))

    def _sums_of(self, labels: NDArray[np.float32], predicted: Any) -> Sums:
        if self._config.model.task == "classification":
            width = self._config.model.class_width_deg
            return ClassifierSums.of(labels, predicted, self._dataset.parameters, width)
        return PartialSums.of(labels, predicted)

    # --- checkpoints ------------------------------------------------------------------------------

    def _save(self) -> None:
        """Write a checkpoint from rank 0.

        Each rank's own moving statistics go into it, so that the same ranks resume bit for bit.
        """
        shared = [*self._model.trainable_variables, *self._optimizer.variables]
        arrays = {f"shared/{k}": v.numpy() for k, v in enumerate(shared)}
        own = [v.numpy() for v in self._model.non_trainable_variables]
        answers = horovod.gather_objects((hash_of(arrays), own))
        if len({weights_hash for weights_hash, _ in answers}) > 1:
            raise GalmerhpcError(
                "the ranks' weights differ: Horovod's all-reduce is broken; run galmerhpc doctor "
                "and do not use this run's later checkpoints"
            )
        progress = self.progress
        sums = merged(progress.sums)
        if horovod.rank() == 0:
            for rank, (_, statistics) in enumerate(answers):
                arrays |= {f"rank{rank}/{k}": value for k, value in enumerate(statistics)}
            arrays["sums"] = sums.as_vector()
            meta = {
                "epoch": progress.epoch, "step": progress.step, "seconds": progress.seconds,
                "loss": progress.loss, "history": progress.history, "ranks": horovod.size(),
                "configuration": digest(self._config.inputs("train")),
                "dataset": self._dataset.fingerprint,
            }  # fmt: skip
            checkpoint.save(
                self._config.run_dir / "checkpoints", progress.epoch * self._steps + progress.step,
                arrays, meta, self._training.keep_checkpoints,
            )  # fmt: skip

    def resume(self) -> None:
        """Take up the newest checkpoint, agreed on by all ranks, or rank 0's initial weights."""
        folder = self._config.run_dir / "checkpoints"
        found = None
        if horovod.rank() == 0:
            files.remove_temporaries(folder)
            found = checkpoint.load_latest(folder)
            if found and found[1]["dataset"] != self._dataset.fingerprint:
                raise InputError(
                    f"{folder}: trained on other shards than the run holds now; "
                    "choose another run_dir or remove the checkpoints"
                )
        meta = horovod.broadcast_object(found[1] if found else None)
        shared = [*self._model.trainable_variables, *self._optimizer.variables]
        if found:
            for k, variable in enumerate(shared):
                variable.assign(found[0][f"shared/{k}"])
        horovod.broadcast([*shared, *self._model.non_trainable_variables])
        if meta is None:
            return
        statistics = horovod.broadcast_object(self._saved_statistics(*found) if found else [])
        same_ranks = meta["ranks"] == horovod.size()
        own = statistics[horovod.rank()] if same_ranks else mean_over_ranks(statistics)
        for variable, value in zip(self._model.non_trainable_variables, own, strict=True):
            variable.assign(value)
        self.progress = Progress(
            type(self._no_sums()).from_vector(found[0]["sums"]) if found else self._no_sums(),
            meta["epoch"], meta["step"], meta["seconds"], meta["loss"], meta["history"],
        )  # fmt: skip
        if horovod.rank() == 0:
            log.info("resumed after epoch %d, step %d", self.progress.epoch, self.progress.step)

    def _saved_statistics(
        self, arrays: checkpoint.Arrays, meta: dict[str, Any]
    ) -> list[list[NDArray[Any]]]:
        count = len(self._model.non_trainable_variables)
        return [[arrays[f"rank{rank}/{k}"] for k in range(count)] for rank in range(meta["ranks"])]


def check_batch_size(batch_size: int) -> None:
    """Refuse a global batch that is smaller than the number of ranks; warn of a small share."""
    ranks = horovod.size()
    if batch_size < ranks:
        raise InputError(
            f"training.batch_size {batch_size} leaves some of the {ranks} ranks without images: "
            "raise it or start fewer ranks"
        )
    if batch_size // ranks < SMALL_LOCAL_BATCH:
        log.warning(
            "training.batch_size %d over %d ranks is fewer than %d images a rank, "
            "few for batch normalisation", batch_size, ranks, SMALL_LOCAL_BATCH,
        )  # fmt: skip


def set_up_tensorflow(training: Training) -> None:
    """Set seed, threads, determinism and this rank's GPU, before TensorFlow does anything."""
    import keras
    import tensorflow as tf

    keras.utils.set_random_seed(training.seed)
    if training.deterministic:
        tf.config.experimental.enable_op_determinism()
    threads = training.threads or parallel.cpus_per_rank(horovod.local_size())
    try:
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(threads)
    except RuntimeError:  # TensorFlow already runs in this process, with the threads it has
        log.debug("TensorFlow's threads stay as they are")
    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        mine = parallel.own_device(gpus, horovod.local_rank())
        tf.config.set_visible_devices(mine, "GPU")
        tf.config.experimental.set_memory_growth(mine, True)


def make_step(
    model: "keras.Model",
    optimizer: "keras.optimizers.Optimizer",
    losses: Losses,
    augment: sky.Augment,
) -> Any:
    """Return the compiled training step.

    It takes images (B, H, W, C) uint8, targets (B, R) float32, the images' rows in the data set
    (B,) int64, the epoch, weights (B,) float32, the global batch size and whether this rank was
    asked to stop; it returns the global batch's mean loss, the number of ranks asked to stop, and
    this rank's predictions.
    """
    import tensorflow as tf

    variables = [v.value for v in model.trainable_variables]
    raw, _ = model.outputs

    # Without autograph, which rewrites the optimiser's update of every variable: half the tracing.
    @tf.function(
        autograph=False,
        input_signature=[
            tf.TensorSpec((None, *model.input_shape[1:]), tf.uint8),
            tf.TensorSpec((None, raw.shape[1]), tf.float32),
            tf.TensorSpec((None,), tf.int64),
            tf.TensorSpec((), tf.int64),
            tf.TensorSpec((None,), tf.float32),
            tf.TensorSpec((), tf.float32),
            tf.TensorSpec((), tf.float32),
        ],
    )
    def step(
        images: "tf.Tensor",
        targets: "tf.Tensor",
        rows: "tf.Tensor",
        epoch: "tf.Tensor",
        weights: "tf.Tensor",
        global_size: "tf.Tensor",
        stop: "tf.Tensor",
    ) -> tuple[Any, Any, Any]:
        images = augment(images, epoch, rows)
        with tf.GradientTape() as tape:
            raw, predicted = model(images, training=True)  # (B, R) and labels or probabilities
            share = tf.reduce_sum(weights * losses(targets, raw)) / global_size
        gradients = tape.gradient(share, variables)
        # Loss and stop flag travel with the gradients: no message of their own.
        *gradients, mean_loss, stops = horovod.sum_tensors([*gradients, share, stop])
        optimizer.apply(gradients, model.trainable_variables)
        return mean_loss, stops, predicted

    return step


def make_predict(model: "keras.Model") -> Any:
    """Return the compiled prediction: images (B, H, W, C) uint8 to what `build` says, a pair."""
    import tensorflow as tf

    @tf.function(
        autograph=False, input_signature=[tf.TensorSpec((None, *model.input_shape[1:]), tf.uint8)]
    )
    def predict(images: "tf.Tensor") -> tuple[Any, Any]:
        raw, predicted = model(images, training=False)
        return raw, predicted

    return predict


def merged(sums: Sums) -> Sums:
    """Return the sums over all ranks."""
    return type(sums).from_vector(horovod.sum_array(sums.as_vector()))


def metric_columns(name: str, sums: Sums, parameters: tuple[str, ...]) -> Row:
    """Return the columns of metrics.csv for one split: means over parameters, then each parameter.

    R2 is None where it is not defined: for labels that are all equal.
    """
    metrics = sums.metrics()
    columns = {f"{name}_{key}": np.mean(value) for key, value in metrics.items()}
    each = [key for key in ("mae", "r2", "accuracy") if key in metrics]
    for k, parameter in enumerate(parameters):
        columns |= {f"{name}_{key}_{parameter}": metrics[key][k] for key in each}
    return to_json(columns)


def write_history(config: Config, history: list[Row]) -> None:
    """Write metrics.csv, a row an epoch; what is not defined is left empty."""
    rows = [["" if value is None else f"{value:.9g}" for value in row.values()] for row in history]
    lines = [",".join(cells) for cells in [list(history[0]), *rows]]
    files.write_text(config.run_dir / "metrics.csv", "\n".join(lines) + "\n")


def mean_over_ranks(statistics: list[list[NDArray[Any]]]) -> list[NDArray[Any]]:
    """Return the mean of each array over ranks; integers (random states) are rank 0's."""
    return [
        np.mean(arrays, axis=0).astype(arrays[0].dtype)
        if arrays[0].dtype.kind == "f"
        else arrays[0]
        for arrays in zip(*statistics, strict=True)
    ]


def hash_of(arrays: checkpoint.Arrays) -> str:
    """Return the SHA-256 of a set of arrays."""
    hasher = hashlib.sha256()
    for name, array in arrays.items():
        hasher.update(name.encode())
        hasher.update(np.ascontiguousarray(array).tobytes())
    return hasher.hexdigest()
