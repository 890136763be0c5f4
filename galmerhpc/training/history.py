"""The record of a training: one row per epoch in metrics.csv, and TensorBoard's files."""

import io
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from galmerhpc import files
from galmerhpc.metrics import Sums, to_json

Row = dict[str, float | None]

MONTAGE_ROWS, MONTAGE_COLUMNS = 4, 6
MONTAGE_IMAGES = MONTAGE_ROWS * MONTAGE_COLUMNS


def metric_columns(name: str, sums: Sums, parameters: tuple[str, ...]) -> Row:
    """Return the columns of metrics.csv for one split: means over parameters, then each parameter.

    R2 is None if it is undefined: if all labels are equal. Its mean is over the other parameters.
    """
    metrics = sums.metrics()
    columns = {f"{name}_{key}": _mean(value) for key, value in metrics.items()}
    each = [key for key in ("mae", "mse", "r2", "accuracy") if key in metrics]
    for k, parameter in enumerate(parameters):
        columns |= {f"{name}_{key}_{parameter}": metrics[key][k] for key in each}
    return to_json(columns)


def _mean(values: ArrayLike) -> float:
    """Return the mean of the defined values; NaN if there are none."""
    defined = np.atleast_1d(np.asarray(values, np.float64))
    defined = defined[~np.isnan(defined)]
    return float(defined.mean()) if len(defined) else math.nan


def larger_is_better(metric: str) -> bool:
    """Return whether a column of metrics.csv is better if it is larger."""
    _, _, measure = metric.partition("_")  # training or validation, measure, perhaps a parameter
    return measure.startswith(("r2", "accuracy", "all_accuracy", "binary_accuracy"))


def write_metrics(folder: Path, history: list[Row]) -> None:
    """Write metrics.csv into a run folder; undefined values are left empty."""
    rows = [["" if value is None else f"{value:.9g}" for value in row.values()] for row in history]
    lines = [",".join(cells) for cells in [list(history[0]), *rows]]
    files.write_text(folder / "metrics.csv", "\n".join(lines) + "\n")


def write_tensorboard(folder: Path, row: Row, montage: NDArray[np.uint8] | None) -> None:
    """Write one epoch's scalars, and the montage, for TensorBoard.

    Each epoch has a file of its own, written atomically; an epoch that is repeated after a kill
    replaces it, so that no curve is doubled. TensorBoard reads them in the order of their names.

    Parameters
    ----------
    folder : Path
        The run's ``tensorboard``.
    row : dict
        A row of metrics.csv.
    montage : ndarray, shape (H, W, C), uint8, optional
        An image.
    """
    import tensorflow as tf

    # TensorBoard's record format, written directly: tf.summary's writer chooses its file's name.
    event, summary = tf.compat.v1.Event, tf.compat.v1.Summary
    step = int(row["step"] or 0)
    values = [
        summary.Value(tag=name.replace("_", "/", 1), simple_value=value)
        for name, value in row.items()
        if value is not None and name not in ("epoch", "step")
    ]
    if montage is not None:
        height, width, channels = montage.shape
        values.append(
            summary.Value(
                tag="images/training",
                image=summary.Image(
                    height=height, width=width, colorspace=channels,
                    encoded_image_string=png(montage),
                ),
            )
        )  # fmt: skip
    name = f"events.out.tfevents.{int(row['epoch'] or 0):010d}.galmerhpc"
    with (
        files.atomic_path(folder / name) as temporary,
        tf.io.TFRecordWriter(str(temporary)) as writer,
    ):
        writer.write(event(file_version="brain.Event:2").SerializeToString())
        writer.write(event(step=step, summary=summary(value=values)).SerializeToString())


def montage_of(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return up to 24 images (N, H, W, C) as one image, row by row."""
    count = min(len(images), MONTAGE_IMAGES)
    rows = -(-count // MONTAGE_COLUMNS)
    _, height, width, channels = images.shape
    sheet = np.zeros((rows * MONTAGE_COLUMNS, height, width, channels), np.uint8)
    sheet[:count] = images[:count]
    grid = sheet.reshape(rows, MONTAGE_COLUMNS, height, width, channels).swapaxes(1, 2)
    return grid.reshape(rows * height, MONTAGE_COLUMNS * width, channels)


def png(image: NDArray[np.uint8]) -> bytes:
    """Return an image (H, W, 1 or 3) as a PNG file's bytes."""
    buffer = io.BytesIO()
    Image.fromarray(image if image.shape[-1] == 3 else image[..., 0]).save(buffer, "PNG")
    return buffer.getvalue()


def describe(row: Row, epochs: int, spent: Mapping[str, float], left_s: float | None) -> str:
    """Return the line logged after an epoch.

    Parameters
    ----------
    row : dict
        The epoch's row of metrics.csv.
    epochs : int
        Of the whole training.
    spent : mapping of str to float
        Seconds since the last such line, by what they went to.
    left_s : float or None
        Seconds to the end of the training; None if there is no rate yet.
    """
    parts = [
        f"loss {row['training_loss']:.4f} (validation {row['validation_loss']:.4f})",
        f"MAE {row['training_mae']:.3f} ({row['validation_mae']:.3f})",
    ]
    if rate := row["images_per_s"]:
        parts.append(f"{rate:.0f} images/s")
    parts.append(", ".join(f"{name} {seconds:.0f} s" for name, seconds in spent.items()))
    if row["epoch"] == epochs:
        parts.append("done")
    elif left_s is not None:
        parts.append(f"{left_s / 60:.0f} min left")
    return f"epoch {row['epoch']:.0f}/{epochs}: {', '.join(parts)}"
