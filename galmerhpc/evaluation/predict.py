"""The trained network on pictures that somebody gives (`photographs` says how these are treated).

A model is a run's folder, or its ``model.keras`` with the run's ``config.yaml`` beside it, which
says what the outputs mean and how the training images were made.
"""

import csv
import io
import itertools
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from galmerhpc import files
from galmerhpc.config import RESOLVED, Config, load
from galmerhpc.dataset.shards import Images
from galmerhpc.errors import GalmerhpcError, InputError
from galmerhpc.evaluation import figures, photographs
from galmerhpc.models import build
from galmerhpc.models.targets import labels_of, prediction_width
from galmerhpc.parameters import SPIN, named

if TYPE_CHECKING:
    import keras

log = logging.getLogger(__name__)

Form = Literal["table", "csv", "json"]

MOST_DRAWN = 60
"""Pictures of a montage: more cannot be told from each other on a page."""

LONGEST_NAME = 24
"""Characters of a file's name that fit across its picture."""


@dataclass(frozen=True)
class Predictor:
    """A trained network and what its outputs mean.

    Attributes
    ----------
    config : Config
        Its run.
    path : Path
        Its file.
    network : keras.Model
        Takes images (B, H, W, C) uint8.
    """

    config: Config
    path: Path
    network: "keras.Model"

    @classmethod
    def open(cls, model: Path) -> "Predictor":
        """Open a run folder's model, or a ``model.keras`` beside its run's ``config.yaml``.

        Raises
        ------
        InputError
            One of the two is missing or damaged, or they do not go with each other.
        """
        path = model / "model.keras" if model.is_dir() else model
        if not path.is_file():
            raise InputError(f"{path}: no such file; run galmerhpc train first")
        if not (path.parent / RESOLVED).is_file():
            raise InputError(
                f"{path.parent / RESOLVED}: no such file; a model needs its run's {RESOLVED} "
                "beside it, which says what its outputs mean"
            )
        config = load(path.parent / RESOLVED)
        network = build.load(path)
        size, channels = config.preprocess.image_size, config.preprocess.channels
        wanted = ((None, size, size, channels), (None, prediction_width(config)))
        found = (tuple(network.input_shape), tuple(network.output_shape))
        if found != wanted:
            raise InputError(
                f"{path}: turns {found[0][1:]} into {found[1][1:]}, but {RESOLVED} beside it says "
                f"{wanted[0][1:]} and {wanted[1][1:]}; they are of different runs"
            )
        return cls(config, path, network)

    def labels(self, images: Images) -> NDArray[np.float64]:
        """Return the labels of images (N, H, W, C), shape (N, P), in their units.

        Raises
        ------
        GalmerhpcError
            The network predicts something that is no number.
        """
        outputs = np.asarray(self.network.predict_on_batch(images), np.float64)
        if not np.isfinite(outputs).all():
            raise GalmerhpcError(f"{self.path}: predicts no number; train again")
        return np.asarray(labels_of(self.config, outputs), np.float64)


@dataclass
class Answers:
    """What became of all files.

    Attributes
    ----------
    names : tuple of str
        Names of the P labels.
    predicted : list of (Path, ndarray of shape (P,))
        Labels in their units.
    refused : list of (Path, str)
        Files that are no picture, and why.
    drawn : list of ndarray
        The first pictures as the network saw them, for the montage.
    """

    names: tuple[str, ...]
    predicted: list[tuple[Path, NDArray[np.float64]]] = field(default_factory=list)
    refused: list[tuple[Path, str]] = field(default_factory=list)
    drawn: list[Images] = field(default_factory=list)


def predict(model: Path, names: Sequence[str], form: Form, montage: Path | None) -> None:
    """Print what a network says of pictures.

    Parameters
    ----------
    model : Path
        Run folder or ``model.keras``.
    names : sequence of str
        Files, folders and patterns (`photographs.paths_of`).
    form : str
        ``table``, ``csv`` or ``json``.
    montage : Path, optional
        Where to draw the pictures with their labels, as the paper does; written as PNG and PDF.

    Raises
    ------
    InputError
        The model cannot be used; or files were refused, after all others' predictions were printed.
    """
    paths = photographs.paths_of(list(names))
    predictor = Predictor.open(model)
    log.info("predict: %s", treatment(predictor.config))
    answers = answer(predictor, paths)
    match form:
        case "table":
            text = as_table(answers)
        case "csv":
            text = as_csv(answers)
        case "json":
            text = as_json(answers, predictor)
    print(text, end="", flush=True)
    if montage and answers.drawn:
        draw(answers, predictor.config.evaluation.montage_columns, montage)
    if answers.refused:
        raise InputError(
            f"{len(answers.refused)} of {len(paths)} files are no pictures to predict; "
            "they are named above"
        )


def treatment(config: Config) -> str:
    """Say how pictures are brought into the form of training images."""
    size = config.preprocess.image_size
    grey = "grey, " if photographs.trains_grey(config) else ""
    return (
        f"the central square of each picture, {grey}{size} x {size} pixels; 8-bit pictures as they "
        "are, others stretched by asinh from sky to white"
    )


def answer(predictor: Predictor, paths: Sequence[Path]) -> Answers:
    """Predict the labels of files, a batch at a time; what is no picture is named and left out."""
    answers = Answers(predictor.config.parameters)
    with tqdm(total=len(paths), desc="predict", unit="img", disable=None) as bar:
        pictures = _pictures(predictor.config, paths, answers, bar)
        while batch := list(itertools.islice(pictures, predictor.config.training.evaluation_batch)):
            images = np.stack([image for _, image in batch])
            labels = predictor.labels(images)
            answers.predicted.extend(zip((path for path, _ in batch), labels, strict=True))
            answers.drawn.extend(images[: MOST_DRAWN - len(answers.drawn)])
    return answers


def _pictures(
    config: Config, paths: Sequence[Path], answers: Answers, bar: "tqdm[None]"
) -> Iterator[tuple[Path, Images]]:
    """Yield files' pictures as the network takes them; note those that are none."""
    for path in paths:
        try:
            image = photographs.training_form(photographs.read(path), config)
        except ValueError as error:
            answers.refused.append((path, str(error)))
            log.warning("%s: refused: %s", photographs.shown(path), error)
        else:
            yield path, image
        bar.update()


# --- what is printed ------------------------------------------------------------------------------


def as_table(answers: Answers) -> str:
    """Return a line a picture, for a reader."""
    heads = ["file", *(_head(name) for name in answers.names)]
    rows = [
        [photographs.shown(path), *map(_text, answers.names, labels)]
        for path, labels in answers.predicted
    ]
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    lines = []
    for file, *cells in (heads, *rows):
        shown = [cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True)]
        lines.append("  ".join([file.ljust(widths[0]), *shown]) + "\n")
    return "".join(lines)


def as_csv(answers: Answers) -> str:
    """Return a row a picture, for a program."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["file", *answers.names])
    for path, labels in answers.predicted:
        writer.writerow([photographs.shown(path), *(f"{value:.6g}" for value in labels)])
    return buffer.getvalue()


def as_json(answers: Answers, predictor: Predictor) -> str:
    """Return all there is, with the model's checksum and what was refused."""
    values: dict[str, Any] = {
        "model": {"file": str(predictor.path), "sha256": files.sha256(predictor.path)},
        "units": {name: named(name).unit for name in answers.names},
        "treatment": treatment(predictor.config),
        "predictions": [
            {
                "file": photographs.shown(path),
                **dict(zip(answers.names, labels.tolist(), strict=True)),
            }
            for path, labels in answers.predicted
        ],
        "refused": [{"file": photographs.shown(path), "why": why} for path, why in answers.refused],
    }
    return json.dumps(values, indent=1, ensure_ascii=False) + "\n"


def _head(name: str) -> str:
    unit = named(name).unit
    return f"{name} ({unit})" if unit else name


def _text(name: str, value: float) -> str:
    """Return a label for a reader; a spin with the side of one half that it is on."""
    if name == SPIN.name:
        return f"{figures.montage_text([name], [value])} {value:.2f}"
    return f"{value:.1f}" if named(name).unit == "deg" else f"{value:.3g}"


def draw(answers: Answers, columns: int, path: Path) -> None:
    """Draw pictures as the network saw them: the file's name top left, predictions bottom right."""
    shown = answers.predicted[: len(answers.drawn)]
    left_out = len(answers.predicted) - len(shown)
    figures.montage(
        np.stack(answers.drawn),
        [ascii(file.name)[1:-1][:LONGEST_NAME] for file, _ in shown],
        [figures.montage_text(answers.names, labels.tolist()) for _, labels in shown],
        min(columns, len(shown)),
        path,
        figures.montage_key(answers.names, above="file")
        + (f"  {left_out} more are not drawn." if left_out else ""),
    )
