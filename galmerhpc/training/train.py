"""Training: the loop over global batches, from the first step or from a checkpoint."""

import copy
import dataclasses
import functools
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from galmerhpc import files, parallel, provenance
from galmerhpc.config import RESOLVED, Config, Training, dump
from galmerhpc.dataset.batches import (
    Batch,
    SplitReader,
    evaluation_batches,
    steps_per_epoch,
    training_batches,
)
from galmerhpc.dataset.records import stage_record
from galmerhpc.dataset.shards import Dataset, Rows
from galmerhpc.errors import GalmerhpcError, InputError, InterruptedRunError
from galmerhpc.interrupt import StopRequest
from galmerhpc.metrics import ClassifierSums, PartialSums, Sums, describe_answers
from galmerhpc.models.targets import make_targets
from galmerhpc.parameters import AZIMUTH, full_circles, on_nearest_turn
from galmerhpc.training import checkpoint, history, horovod
from galmerhpc.training.memory import peak_bytes
from galmerhpc.training.network import Network
from galmerhpc.training.state import RESUME, Progress, was_settled
from galmerhpc.training.step import Outcome
from galmerhpc.training.watchdog import Watchdog

log = logging.getLogger(__name__)

SMALL_LOCAL_BATCH = 8
"""Images per pass below which a rank's batch normalisation sees too few."""

SLOWEST_READ_BYTES_PER_S = 20e6
"""A disk slower than this counts as hanging."""

WRITTEN = ("model.keras", "metrics.csv")
"""What a training leaves in the run folder, beside its own folders."""

_NAMED_VIEWS = 4


def train(config: Config, allow_change: Sequence[str] = (), elastic: bool = False) -> str:
    """Train the configured network on the run's shards; called by every rank.

    Rank 0 writes ``checkpoints/``, ``metrics.csv``, ``tensorboard/`` and ``model.keras`` into the
    run folder, and the resolved configuration once it fits what is there. Resumes from the newest
    checkpoint, and returns at once if the training is finished.

    Parameters
    ----------
    config : Config
        The run.
    allow_change : sequence of str
        Keys of `training` that may differ from the checkpoints'.
    elastic : bool
        Continue with the remaining ranks when some are lost; under an elastic horovodrun.

    Returns
    -------
    str
        What asked to stop after the last step, when only validation and export were left to do;
        empty if nothing did.

    Raises
    ------
    InputError
        The configuration, the shards or the checkpoints do not fit each other or the ranks, or a
        key may differ that never can.
    InterruptedRunError
        A signal or the time limit came; the work is saved.
    GalmerhpcError
        Loss or gradients are no longer finite, or the ranks' weights differ.
    """
    training = config.training
    with StopRequest(training.time_limit_s) as stop:
        checkpoint.check_changes(config, allow_change)
        record = stage_record(config, "train", may_differ=allow_change)
        if parallel.broadcast(record.complete):  # as rank 0 sees it: a shared disk may lag
            log.info("train: complete, nothing to do")
            return ""
        horovod.init(training.stall_limit_s)
        dataset = Dataset.open(config.run_dir / "shards")
        with (
            files.job_lock(config.run_dir / "checkpoints" / "train.lock", horovod.rank()),
            Watchdog(training.stall_limit_s) as watchdog,
            checkpoint.Writer() as writer,
        ):
            # Images are read, or copied to the node, before the first step.
            watchdog.beat(ahead_s=_bytes_of(dataset) / SLOWEST_READ_BYTES_PER_S)
            trainer = Trainer(config, dataset, watchdog, writer)
            if not elastic:
                trainer.resume()
            elif horovod.rank() == 0:
                trainer.resume_alone()
            if horovod.rank() == 0:
                files.write_text(config.run_dir / RESOLVED, dump(config))
                record.begin()
            if elastic:
                run_elastic(trainer, stop)
            else:
                trainer.run(stop)
            writer.wait()
            trainer.export()
            peaks = horovod.gather_objects(peak_bytes() / 1e9)
            if horovod.rank() == 0:
                log.info("peak memory of a rank: %.2f GB", max(peaks))
                record.finish(
                    {f"../{name}": files.sha256(config.run_dir / name) for name in WRITTEN}
                )
            reasons = horovod.gather_objects(stop.reason)  # also waits for rank 0
            return next(filter(None, reasons), "")


def _bytes_of(dataset: Dataset) -> int:
    return len(dataset) * math.prod(dataset.image_shape)


class Trainer:
    """One rank's network and data, and the position of its training.

    Parameters
    ----------
    config : Config
        The run.
    dataset : Dataset
        Its shards.
    watchdog : Watchdog
        Told of every step.
    writer : Writer
        Writes checkpoints.

    Attributes
    ----------
    reader : SplitReader
        The training split.
    network : Network
        What is trained.
    progress : Progress
        Position of the training.
    saving_s : float
        Seconds that this rank has waited for checkpoints.
    on_checkpoint : callable
        Called on every rank at each checkpoint, with the progress of all ranks.
    """

    def __init__(
        self, config: Config, dataset: Dataset, watchdog: Watchdog, writer: checkpoint.Writer
    ) -> None:
        self._config, self._dataset, self._training = config, dataset, config.training
        self._folder = config.run_dir / "checkpoints"
        self._watchdog, self._writer = watchdog, writer
        self.reader = SplitReader(dataset, "train", config.data)
        self._validation = SplitReader(dataset, "validation", config.data)
        check_batch_size(config.training, self.reader.count)
        warn_of_azimuth(config, self.reader.labels)
        self._circles = full_circles(dataset.parameters, self.reader.labels)
        self._steps = steps_per_epoch(self.reader.count, self._training.batch_size)
        self._targets = make_targets(config, self.reader.labels)
        steps = self._steps * self._training.epochs
        self.network = Network(config, dataset.image_shape, self._targets, steps)
        self.progress = Progress(self.no_sums())
        self._timed_since: float | None = None
        self._timed_seconds, self._timed_images = 0.0, 0
        self._spent = _no_time()
        self._shown: NDArray[np.uint8] | None = None
        self.saving_s = 0.0
        self.on_checkpoint: Callable[[Progress], None] = lambda _: None

    # --- the loop ---------------------------------------------------------------------------------

    @property
    def finished(self) -> bool:
        """Whether all epochs are done, or there was no improvement for `patience` epochs."""
        patience, progress = self._training.patience, self.progress
        impatient = patience is not None and progress.epochs_since_best >= patience
        return progress.epoch >= self._training.epochs or impatient

    def run(self, stop: StopRequest) -> None:
        """Train to the end.

        Raises
        ------
        InterruptedRunError
            A rank was asked to stop.
        """
        while not self.finished:
            self.run_epoch(stop)
            self.finish_epoch()

    def run_epoch(self, stop: StopRequest) -> None:
        """Do the remaining steps of the epoch, if any, and checkpoint.

        Raises
        ------
        InterruptedRunError
            A rank was asked to stop; all ranks stop after the same step, with a checkpoint.
        """
        training, progress = self._training, self.progress
        self._reestimate_batchnorm()
        bar = tqdm(
            desc=f"epoch {progress.epoch + 1}/{training.epochs}",
            total=self.reader.count, initial=progress.step * training.batch_size, unit="img",
            leave=False, disable=True if horovod.rank() else None,
        )  # fmt: skip
        with bar:
            start = time.perf_counter()
            for batch in self._watchdog.watched(self._batches(progress.epoch, progress.step)):
                stopped = self._do_step(batch, bool(stop.reason))
                self._count_time(time.perf_counter() - start, batch.global_size)
                bar.update(batch.global_size)
                seen = min(progress.step * training.batch_size, self.reader.count)
                bar.set_postfix(loss=f"{progress.loss / seen:.4f}", refresh=False)
                if stopped:
                    self.save()
                    self._writer.wait()
                    horovod.barrier()  # the first rank to exit with a code would end the others
                    reason = stop.reason or "a signal to another rank"
                    raise InterruptedRunError(
                        f"stopped by {reason} after epoch {progress.epoch}, step {progress.step}; "
                        "the work is saved: the same command resumes from there"
                    )
                every = training.checkpoint_every_steps or self._steps
                if progress.step % every == 0 or progress.step == self._steps:
                    self.save()  # after the last step too: validation may be cut short
                self._writer.check()
                start = time.perf_counter()

    def _reestimate_batchnorm(self) -> None:
        """Re-estimate batch normalisation's statistics before each epoch that freezes them.

        A training that resumes with another number of epochs may freeze them in mid-epoch.
        """
        training, progress = self._training, self.progress
        kept = progress.epoch >= training.epochs - training.freeze_batchnorm_epochs
        if kept and not (progress.step and progress.settled):
            self.network.reestimate_batchnorm(self._statistics_batches())
        progress.settled = kept

    def _statistics_batches(self) -> Iterator[Batch]:
        """Return batches of an epoch after the last one: no step trains on them next."""
        return self._watchdog.watched(self._batches(self._training.epochs))

    def _batches(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """Return this rank's training batches."""
        return training_batches(
            self.reader, self._training.seed, epoch, self._training.batch_size,
            horovod.rank(), horovod.size(), first_step=first_step,
        )  # fmt: skip

    def _do_step(self, batch: Batch, stop: bool) -> bool:
        """Do one step and return whether any rank was asked to stop."""
        progress = self.progress
        step = progress.epoch * self._steps + progress.step
        outcome = self.network.step(batch, progress.epoch, step, stop, progress.settled)
        progress.step += 1
        if outcome.failed or not np.isfinite(outcome.loss):
            self._fail(batch, outcome)
        progress.loss += outcome.loss * batch.global_size
        if len(batch.images):
            progress.sums += self._sums_of(batch.labels, outcome.predicted)
        if self._shown is None and horovod.rank() == 0:
            self._shown = history.montage_of(
                self.network.augmented(batch, progress.epoch, history.MONTAGE_IMAGES)
            )
        return outcome.stop

    def _fail(self, batch: Batch, outcome: Outcome) -> None:
        """Name the ranks and views whose loss or gradient is not finite."""
        self._writer.wait()  # the last checkpoint is sound: no rank may exit before it is written
        where = self._named(batch.rows[:0] if outcome.finite_here else batch.rows)
        raise GalmerhpcError(
            f"loss or gradient is not finite at epoch {self.progress.epoch + 1}, "
            f"step {self.progress.step} ({where or 'the sum over ranks'}); {RESUME}, or look at "
            "these views"
        )

    def _named(self, rows: Rows) -> str:
        """Return the ranks and the views of these rows of the data set; collective."""
        views = self._dataset.view[rows].tolist()
        at_fault = {k: ids for k, ids in enumerate(horovod.gather_objects(views)) if ids}
        return "; ".join(
            f"rank {k}: views {', '.join(ids[:_NAMED_VIEWS])}{' ...' * (len(ids) > _NAMED_VIEWS)}"
            for k, ids in at_fault.items()
        )

    def _count_time(self, seconds: float, images: int) -> None:
        """Add the time of a step, including the wait for its images.

        The first step of a session traces, and does not count for the rate.
        """
        self.progress.seconds += seconds
        self._spent["steps"] += seconds
        if self._timed_since is None:
            self._timed_since = time.perf_counter()
            return
        self._timed_seconds += seconds
        self._timed_images += images

    def finish_epoch(self) -> None:
        """Validate, add a row to the history, checkpoint."""
        progress = self.progress
        training_sums = merged(progress.sums)
        start = time.perf_counter()
        with self.network.evaluation_weights(self._statistics_batches(), progress.settled):
            validation_sums, validation_loss = self._validate()
        self._spent["validation"] += time.perf_counter() - start
        row: history.Row = {
            "epoch": progress.epoch + 1,
            "step": (progress.epoch + 1) * self._steps,
            "seconds": round(progress.seconds, 3),
            "images_per_s": self._rate(),
            "learning_rate": float(self.network.optimizer.learning_rate),
            "training_loss": progress.loss / self.reader.count,
            "validation_loss": validation_loss,
            **history.metric_columns("training", training_sums, self._dataset.parameters),
            **history.metric_columns("validation", validation_sums, self._dataset.parameters),
        }
        self.progress = dataclasses.replace(
            progress, sums=self.no_sums(), epoch=progress.epoch + 1, step=0, loss=0.0,
            epochs_since_best=progress.epochs_since_best + 1, history=[*progress.history, row],
        )  # fmt: skip
        self._note_best(row)
        if horovod.rank() == 0:
            history.write_metrics(self._config.run_dir, self.progress.history)
            history.write_tensorboard(self._config.run_dir / "tensorboard", row, self._shown)
            log.info(history.describe(row, self._training.epochs, self._spent, self._left_s()))
            if self._config.model.task == "classification":
                log.info("validation: %s", describe_answers(validation_sums.metrics()))
        self._spent = _no_time()
        self.save()  # last: in an elastic training it may raise, to take in new workers

    def _rate(self) -> float | None:
        """Return this session's images per second; None before its second step."""
        if not self._timed_images:
            return None
        return round(self._timed_images / max(self._timed_seconds, 1e-9), 2)

    def _left_s(self) -> float | None:
        """Return the seconds to the last epoch's end, at the pace of this session by the clock.

        Unlike `_rate` the pace includes checkpoints and validation. None before the second step.
        """
        if self._timed_since is None or not self._timed_images:
            return None
        images = (self._training.epochs - self.progress.epoch) * self.reader.count
        return images * (time.perf_counter() - self._timed_since) / self._timed_images

    def _note_best(self, row: history.Row) -> None:
        """Record whether this epoch is the best so far.

        Raises
        ------
        InputError
            The measure to tell it by is undefined.
        """
        metric, progress = self._training.best_metric, self.progress
        if metric is None:
            return
        value = row[metric]
        if value is None:
            raise InputError(
                f"training.best_metric: {metric} is undefined where all validation images have the "
                "same label; choose another, with --allow-change training.best_metric"
            )
        sign = -1 if history.larger_is_better(metric) else 1
        if progress.best is None or sign * value < sign * progress.best:
            progress.best, progress.best_name = value, self._checkpoint_name()
            progress.epochs_since_best = 0

    # --- evaluation -------------------------------------------------------------------------------

    def _validate(self) -> tuple[Sums, float]:
        """Return the sums and the mean loss of the validation split, over all ranks.

        Raises
        ------
        GalmerhpcError
            A prediction or its loss is not finite. The checkpoint of the epoch's last step is then
            removed: every resume from it would end here.
        """
        sums, loss, at_fault = self.no_sums(), 0.0, np.zeros(0, np.int64)
        batches = evaluation_batches(
            self._validation, self._training.evaluation_batch, horovod.rank(), horovod.size()
        )
        for batch in self._watchdog.watched(batches):
            raw, predicted = self.network.predict(batch.images)
            losses = self.network.losses(self._targets.encode(batch.labels), raw)  # (n,)
            finite = np.isfinite(losses) & np.isfinite(predicted).all(axis=1)
            if not finite.all():
                at_fault = np.append(at_fault, batch.rows[~finite])
                continue
            sums += self._sums_of(batch.labels, predicted)
            loss += float(np.sum(losses))
        if where := self._named(at_fault):
            self._writer.wait()
            if horovod.rank() == 0:
                files.remove_folder(self._folder / self._checkpoint_name())
            horovod.barrier()
            raise GalmerhpcError(
                f"a prediction is not finite in the validation of epoch {self.progress.epoch + 1} "
                f"({where}); {RESUME}, or look at these views"
            )
        total = horovod.sum_array(np.array([loss]))
        return merged(sums), float(total[0]) / self._validation.count

    def export(self) -> None:
        """Write ``model.keras`` from rank 0: the last epoch's network, or the best one's."""
        best, settled = self.progress.best_name, self.progress.settled
        if best and best != self._checkpoint_name():
            path = self._folder / best
            found = load_best(path) if horovod.rank() == 0 else None
            ranks, settled = horovod.broadcast_object(
                (found[1]["ranks"], was_settled(found[1])) if found else (0, False)
            )
            self.network.state.restore(found[0] if found else None, ranks, path)
        with self.network.evaluation_weights(self._statistics_batches(), settled):
            if horovod.rank() == 0:
                self.network.export(self._config.run_dir / "model.keras")
                history.write_metrics(self._config.run_dir, self.progress.history)

    def no_sums(self) -> Sums:
        """Return the metrics' sums of no images."""
        kind = ClassifierSums if self._config.model.task == "classification" else PartialSums
        return kind.none(len(self._dataset.parameters))

    def _sums_of(self, labels: NDArray[np.float32], predicted: Any) -> Sums:
        if self._config.model.task == "classification":
            width = self._config.model.class_width_deg
            return ClassifierSums.of(labels, predicted, self._dataset.parameters, width)
        return PartialSums.of(labels, on_nearest_turn(labels, predicted, self._circles))

    # --- checkpoints ------------------------------------------------------------------------------

    def _checkpoint_name(self) -> str:
        progress = self.progress
        step = progress.epoch * self._steps + progress.step
        return checkpoint.checkpoint_name(step, None if progress.step else progress.epoch)

    def save(self) -> None:
        """Begin to write a checkpoint from rank 0; the ranks continue once it is copied."""
        start = time.perf_counter()
        state, progress = self.network.state, self.progress
        state.check()
        own, sums = state.gather_own(), merged(progress.sums)
        if horovod.rank() == 0:
            arrays = {**state.copy(), **own, "sums": sums.as_vector()}
            inputs = self._config.inputs("train")
            # A checkpoint before validation does not push out one after it.
            keep = self._training.keep_checkpoints + (progress.step == self._steps)
            meta = {
                **progress.meta(), "ranks": horovod.size(), "configuration": inputs,
                "dataset": self._dataset.fingerprint, "versions": provenance.versions(),
            }  # fmt: skip
            self._writer.start(
                functools.partial(
                    checkpoint.save, self._folder, self._checkpoint_name(), arrays, meta, keep,
                    progress.best_name,
                )
            )  # fmt: skip
        self.on_checkpoint(dataclasses.replace(progress, sums=sums))
        seconds = time.perf_counter() - start
        self.saving_s += seconds
        self._spent["checkpoints"] += seconds

    def resume(self) -> None:
        """Restore the newest checkpoint on all ranks, or rank 0's initial weights."""
        found = self._newest() if horovod.rank() == 0 else None
        arrays, meta = found or (None, None)
        meta = horovod.broadcast_object(meta)
        if meta is None:
            self.network.state.broadcast()
            return
        self.network.state.restore(arrays, meta["ranks"], self._folder)
        self._take_position(meta, arrays)

    def resume_alone(self) -> None:
        """Restore the newest checkpoint on this rank only; an elastic state shares it."""
        if found := self._newest():
            self.network.state.take(found[0], found[1]["ranks"], self._folder)
            self._take_position(found[1], found[0])

    def _newest(self) -> tuple[checkpoint.Arrays, dict[str, Any]] | None:
        """Read the newest intact checkpoint, and refuse one of other data."""
        for folder in (self._folder, self._config.run_dir / "tensorboard"):
            files.remove_temporaries(folder)
        files.remove_temporaries(self._config.run_dir, lambda path: path.name.endswith(WRITTEN))
        found = checkpoint.load_latest(self._folder)
        if found and found[1]["dataset"] != self._dataset.fingerprint:
            raise InputError(
                f"{self._folder}: trained on other shards than the run holds now; "
                "choose another run_dir or remove the checkpoints"
            )
        return found

    def _take_position(self, meta: dict[str, Any], arrays: checkpoint.Arrays | None) -> None:
        # The epoch's sums so far are those of all ranks; only the rank with the arrays keeps them.
        sums = self.no_sums()
        self.progress = Progress.from_meta(
            meta, type(sums).from_vector(arrays["sums"]) if arrays else sums
        )
        before, now = meta["configuration"], self._config.inputs("train")
        if any(
            before.get(key) != now[key] for key in ("training.precision", "training.compression")
        ):
            self.network.loss_scale.reset()
        if before.get("training.best_metric") != self._training.best_metric:
            self.progress.best, self.progress.best_name = None, None
            self.progress.epochs_since_best = 0
        if horovod.rank() == 0:
            log.info("resumed after epoch %d, step %d", self.progress.epoch, self.progress.step)
            if meta["versions"] != provenance.versions():
                log.info("it was made with %s, this is %s", meta["versions"], provenance.versions())


def _no_time() -> dict[str, float]:
    """Return the seconds that an epoch's log line accounts for, before the epoch."""
    return dict.fromkeys(("steps", "checkpoints", "validation"), 0.0)


def load_best(path: Path) -> tuple[checkpoint.Arrays, dict[str, Any]]:
    """Read the best epoch's checkpoint.

    Raises
    ------
    InputError
        It is damaged or missing; the message says how to do without it.
    """
    try:
        return checkpoint.load(path)
    except InputError as error:
        raise InputError(
            f"{error}, and it holds the best epoch; to continue with the last epoch's network: "
            "galmerhpc train --allow-change training.best_metric --allow-change training.patience "
            "CONFIG training.best_metric=null training.patience=null"
        ) from None


def run_elastic(trainer: Trainer, stop: StopRequest) -> None:
    """Train to the end with the remaining ranks: a lost one costs the steps since a checkpoint.

    The state committed at each checkpoint is in every rank's memory, so that nothing is read from
    disk and no process restarts. The global batch stays, and with it the order of samples.

    Parameters
    ----------
    trainer : Trainer
        Resumed on rank 0.
    stop : StopRequest
        The request to stop.
    """
    numbers = [*trainer.network.state.shared.values(), *trainer.network.state.own]
    state = horovod.elastic_state(numbers, progress=trainer.progress)

    def commit(progress: Progress) -> None:
        state.progress = progress
        state.commit()

    def work(state: Any) -> None:
        trainer.progress = copy.deepcopy(state.progress)  # the committed one stays as it is
        if (
            horovod.rank() > 0
        ):  # the epoch's sums so far are those of all ranks; only rank 0 keeps them
            trainer.progress.sums = trainer.no_sums()
        trainer.run(stop)

    trainer.on_checkpoint = commit
    horovod.run_elastic(state, work)


def merged(sums: Sums) -> Sums:
    """Return the sums over all ranks."""
    return type(sums).from_vector(horovod.sum_array(sums.as_vector()))


def check_batch_size(training: Training, images: int) -> None:
    """Refuse a global batch smaller than the number of ranks; warn of small pieces."""
    batch_size, ranks = training.batch_size, horovod.size()
    if min(batch_size, images) < ranks:
        raise InputError(
            f"training.batch_size {batch_size}, of {images} training images, leaves some of the "
            f"{ranks} ranks without images: raise it or start fewer ranks"
        )
    warn_of_small_pieces(training, ranks)


def warn_of_small_pieces(training: Training, ranks: int) -> None:
    """Warn if the ranks' pieces of the global batch are small for batch normalisation."""
    batch_size = training.batch_size
    at_once = min(batch_size // ranks, training.micro_batch or batch_size)
    if at_once < SMALL_LOCAL_BATCH and not training.sync_batchnorm:
        log.warning(
            "%d images at once on a rank (training.batch_size %d over %d ranks, "
            "training.micro_batch) are few for batch normalisation: at least %d, or "
            "training.sync_batchnorm", at_once, batch_size, ranks, SMALL_LOCAL_BATCH,
        )  # fmt: skip


def warn_of_azimuth(config: Config, labels: NDArray[np.float32]) -> None:
    """Warn if the azimuth goes round the circle and is learned as a plain number.

    Parameters
    ----------
    config : Config
        The run.
    labels : ndarray, shape (N, P), float32
        Labels of the training images.
    """
    names, model = config.parameters, config.model
    if model.task != "regression" or AZIMUTH.name not in {*names} - {*model.sine_cosine}:
        return
    if full_circles(names, labels):
        log.warning(
            "the azimuth covers the full circle and is learned as a plain number, for which -180 "
            "and 180 degrees are 360 apart; set model.sine_cosine: [%s]", AZIMUTH.name,
        )  # fmt: skip
