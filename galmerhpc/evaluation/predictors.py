"""Predictions of the network and the baselines, and predictions.csv."""

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from galmerhpc.config import Config, OnlineAugment
from galmerhpc.dataset.shards import Dataset
from galmerhpc.errors import GalmerhpcError
from galmerhpc.evaluation.baselines import LookUp, mean_prediction, thumbnails
from galmerhpc.evaluation.conditions import CLEAN, Change, draws, surviving, unchanged
from galmerhpc.evaluation.sample import Sample, ViewColumns, nearest_training_view
from galmerhpc.models.targets import labels_of
from galmerhpc.parameters import encode_classes, named, on_nearest_turn

if TYPE_CHECKING:
    import keras

Floats = NDArray[np.float64]


class Predictions(NamedTuple):
    """Predictions for N images under one condition."""

    outputs: Floats
    """Output of the network, (N, P) or (N, classes)."""
    labels: dict[str, Floats]
    """Predicted labels (N, P) by name of `summary.PREDICTORS`."""

    def on_nearest_turn(self, true: Floats, circles: Sequence[int]) -> "Predictions":
        """Return them with the labels of full circles on the turn nearest to the true ones."""
        moved = {name: on_nearest_turn(true, p, circles) for name, p in self.labels.items()}
        return self._replace(labels=moved)


def predict(
    config: Config,
    dataset: Dataset,
    trained: ViewColumns,
    sample: Sample,
    network: "keras.Model",
    change: Change,
) -> Predictions:
    """Predict a sample's labels with the network and with the baselines.

    The look-up's training images are changed in the same way as the sample, each
    `evaluation.lookup.draws` times: a network trained on changed images saw as many versions as it
    had epochs.

    Parameters
    ----------
    config : Config
        The run.
    dataset : Dataset
        Its shards, with the training images for the baselines.
    trained : ViewColumns
        The training images' views.
    sample : Sample
        The images to predict.
    network : keras.Model
        The network.
    change : Change
        Change that is made to every image first.

    Raises
    ------
    GalmerhpcError
        A prediction is not finite.
    """
    settings, training = config.evaluation.lookup, dataset.rows("train")
    repeats = 1 if change is unchanged else settings.draws

    def over(
        what: str, images_of: Dataset, rows: NDArray[np.int64], views: ViewColumns,
        function: Callable[[NDArray[np.uint8]], Any], repeats: int = 1,
    ) -> Any:  # fmt: skip
        """Apply a function to the changed images of rows, batch by batch, `repeats` times."""
        size, results = config.training.evaluation_batch, []
        with tqdm(total=repeats * len(rows), desc=what, unit=" images", disable=None) as progress:
            for repeat in range(repeats):
                numbers = draws(views, repeat)
                for place, images in images_of.in_order(rows):
                    own = numbers[place]
                    batches = (slice(k, k + size) for k in range(0, len(images), size))
                    results += [function(change(images[batch], own[batch])) for batch in batches]
                    progress.update(len(images))
        return np.concatenate(results)

    def thumbs(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        return thumbnails(images, settings.thumbnail_px)

    asked = (sample.dataset, sample.rows, sample.views)
    outputs = over("network", *asked, network.predict_on_batch).astype(np.float64)
    if bad := int((~np.isfinite(outputs)).any(axis=1).sum()):
        raise GalmerhpcError(
            f"model.keras returned non-finite predictions for {bad} of {len(outputs)} images; "
            "retrain with a lower training.learning_rate"
        )
    labels = dataset.labels[training]
    known = over("look-up, training images", dataset, training, trained, thumbs, repeats)
    lookup = LookUp(known, np.tile(labels, (repeats, 1)), config.parameters, settings)
    return Predictions(
        outputs,
        {
            "network": labels_of(config, outputs).astype(np.float64),
            "lookup": lookup.predict(over("look-up", *asked, thumbs)),
            "mean": mean_prediction(labels, len(outputs)),
        },
    )


def class_choices(
    outputs: Floats, predictions: dict[str, Floats], names: Sequence[str], width_deg: float
) -> dict[str, NDArray[np.floating]]:
    """Return each predictor's class probabilities, (N, classes).

    The network's are its outputs; a baseline gives probability 1 to the classes of its predictions.
    """
    low, high = np.transpose([(named(n).low, named(n).high) for n in names])
    choices: dict[str, NDArray[np.floating]] = {
        name: encode_classes(np.clip(predicted, low, high), width_deg, names)
        for name, predicted in predictions.items()
        if name != "network"
    }
    return {"network": outputs, **choices}


def as_csv(
    parameters: Sequence[str],
    sample: Sample,
    trained: ViewColumns,
    predictions: dict[str, Predictions],
    ranges: Mapping[str, OnlineAugment | None],
) -> str:
    """Return predictions.csv: one row per image, angles in degrees, full float32 precision.

    Labels that an image does not keep under a condition (`conditions.surviving`) are left out.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    views, distance = sample.views, nearest_training_view(sample.views, trained)
    columns: dict[str, Any] = {
        "view": views.id,
        "split": [sample.split] * len(sample.rows),
        **{name: getattr(views, name) for name in ViewColumns._fields[1:-3]},
        "nearest_training_view_deg": distance,
    }
    for k, name in enumerate(parameters):
        columns[f"true_{name}"] = sample.true[:, k]
        for condition, predicted in predictions.items():
            if name not in surviving(parameters, ranges[condition]):
                continue
            prefix = "" if condition == CLEAN else f"{condition}_"
            columns[f"{prefix}predicted_{name}"] = predicted.labels["network"][:, k]
    writer.writerow(columns)
    for row in zip(*columns.values(), strict=True):
        writer.writerow([_cell(value) for value in row])
    return text.getvalue()


def _cell(value: Any) -> Any:
    if isinstance(value, float):
        return "" if np.isnan(value) else f"{value:.9g}"
    return value
