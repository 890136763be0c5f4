"""One rank's network with everything that trains, evaluates and exports it."""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from galmerhpc import devices, files, parallel
from galmerhpc.config import Config, Training
from galmerhpc.dataset.batches import Batch
from galmerhpc.models import sky
from galmerhpc.models.build import build, exported
from galmerhpc.models.targets import Targets
from galmerhpc.training import horovod
from galmerhpc.training.loss_scale import LossScale
from galmerhpc.training.losses import make_losses
from galmerhpc.training.optimizer import make_optimizer
from galmerhpc.training.state import State, averages_of, mean_of
from galmerhpc.training.statistics import StatisticsEstimator
from galmerhpc.training.step import Step, make_predict

log = logging.getLogger(__name__)


class Network:
    """The configured network, from random weights.

    Parameters
    ----------
    config : Config
        The run.
    image_shape : (H, W, C)
        Shape of an image.
    targets : Targets
        What it learns.
    steps : int
        Steps of the whole training.

    Attributes
    ----------
    model : keras.Model
        What is trained.
    state : State
        What a checkpoint holds of it.
    step : Step
        Does a step of training.
    predict : callable
        From `make_predict`.
    losses : callable
        From `make_losses`.
    """

    def __init__(
        self, config: Config, image_shape: tuple[int, int, int], targets: Targets, steps: int
    ) -> None:
        training = config.training
        set_up_tensorflow(training)
        self._config, self._image_shape, self._targets = config, image_shape, targets
        self.model = build(config, image_shape, targets)
        if training.sync_batchnorm:
            from galmerhpc.training.sync_batchnorm import synchronised

            self.model = synchronised(self.model)
        self.optimizer = make_optimizer(training, steps)
        self.optimizer.build(self.model.trainable_variables)
        self.loss_scale = LossScale(training)
        self.state = State(self.model, self.optimizer, self.loss_scale)
        self.losses = make_losses(training, targets)
        self._augment = sky.make_augment(training.augment, training.seed)
        self.step = Step(
            self.model,
            self.optimizer,
            self.loss_scale,
            self.losses,
            targets,
            self._augment,
            training,
        )
        self.predict = make_predict(self.model)
        self._statistics = StatisticsEstimator(self.model, self._augment, training.micro_batch)

    def augmented(self, batch: Batch, epoch: int, count: int) -> NDArray[np.uint8]:
        """Return the first images of a batch as training sees them in an epoch."""
        images, rows = batch.images[:count], batch.rows[:count]
        return np.asarray(self._augment(images, np.int64(epoch), rows))

    def reestimate_batchnorm(self, batches: Iterator[Batch]) -> None:
        """Set batch normalisation's statistics to those of the present weights.

        They are estimated on training batches, or are the mean of the ranks' moving statistics.

        Parameters
        ----------
        batches : iterator of Batch
            This rank's training batches to estimate on.
        """
        training = self._config.training
        if training.statistics_batches:
            self._statistics.estimate(batches, training.epochs, training.statistics_batches)
            return
        own = horovod.gather_objects([v.numpy() for v in self.state.own])
        for variable, mean in zip(self.state.own, mean_of(own), strict=True):
            variable.assign(mean)

    @contextlib.contextmanager
    def evaluation_weights(self, batches: Iterator[Batch], frozen: bool) -> Iterator[None]:
        """Context in which the model has the weights to evaluate; afterwards, its own again.

        The weights to evaluate are the moving averages, if these are kept.

        Parameters
        ----------
        batches : iterator of Batch
            As in `reestimate_batchnorm`.
        frozen : bool
            Whether the weights were learnt with batch normalisation's present statistics, which
            then stay; else they are re-estimated.
        """
        variables = [*self.model.trainable_variables, *self.model.non_trainable_weights]
        before = [v.numpy() for v in variables]
        try:
            for weight, average in zip(
                self.model.trainable_variables, averages_of(self.optimizer), strict=False
            ):
                weight.assign(average)
            if not frozen:
                self.reestimate_batchnorm(batches)
            yield
        finally:
            for variable, value in zip(variables, before, strict=True):
                variable.assign(value)

    def export(self, path: Path) -> None:
        """Write the model as it is: plain layers, float32, uint8 images in, predictions out."""
        import keras

        keras.config.set_dtype_policy("float32")
        plain = build(self._config, self._image_shape, self._targets)
        weights = [*self.model.trainable_variables, *self.model.non_trainable_weights]
        for target, source in zip(
            [*plain.trainable_variables, *plain.non_trainable_weights], weights, strict=True
        ):
            target.assign(source)
        with files.atomic_path(path) as temporary:
            exported(plain).save(temporary)
        keras.config.set_dtype_policy(self._config.training.precision)


def set_up_tensorflow(training: Training) -> None:
    """Set seed, threads, precision, determinism and this rank's GPU, before TensorFlow starts.

    Raises
    ------
    InputError
        The GPUs do not fit the ranks (`devices.refuse_misfit`).
    """
    import keras
    import tensorflow as tf

    keras.backend.clear_session()  # a study trains one network after another
    keras.utils.set_random_seed(training.seed)
    keras.config.set_dtype_policy(training.precision)
    if training.deterministic:
        tf.config.experimental.enable_op_determinism()
    threads = training.threads or parallel.cpus_per_rank(horovod.local_size())
    with contextlib.suppress(RuntimeError):  # TensorFlow already runs, with the threads it has
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(threads)
    devices.refuse_misfit(horovod.local_size())
    device = "a GPU" if devices.take_gpu(horovod.local_rank()) else "no GPU"
    if horovod.rank() == 0:
        own = tf.config.threading.get_intra_op_parallelism_threads() or parallel.cpu_count()
        log.info("training on %d ranks: %s and %d threads each", horovod.size(), device, own)
