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
from galmerhpc.evaluation import conformal, figures, photographs
from galmerhpc.evaluation.conditions import CLEAN, SKY, trained_sky_like
from galmerhpc.evaluation.conformal import Calibration
from galmerhpc.models import build
from galmerhpc.models.targets import labels_of, prediction_width, retrograde_score
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
class Estimate:
    """What the network says of one image.

    Attributes
    ----------
    labels : dict of float
        By parameter, in its unit.
    bounds : dict of ndarray, shape (levels, 2)
        Intervals by parameter (`conformal.Interval.bounds`); empty without a calibration.
    retrograde : float or None
        Calibrated probability of a retrograde encounter.
    """

    labels: dict[str, float]
    bounds: dict[str, NDArray[np.float64]]
    retrograde: float | None


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
    condition : str
        Images that its intervals are for: ``clean``, or ``sky`` for sky-like ones.
    calibration : Calibration or None
        What gives the intervals; None where the run was not evaluated, or could not be calibrated.
    """

    config: Config
    path: Path
    network: "keras.Model"
    condition: str
    calibration: Calibration | None

    @classmethod
    def open(cls, model: Path, condition: str | None = None) -> "Predictor":
        """Open a run folder's model, or a ``model.keras`` beside its run's ``config.yaml``.

        Parameters
        ----------
        model : Path
            The folder or the file.
        condition : str, optional
            As in `condition`; by default what the network was trained for (`trained_sky_like`).

        Raises
        ------
        InputError
            One of the two is missing or damaged, or they or the intervals do not go with each
            other.
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
        size, channels = config.preprocess.image_size, config.preprocess.channels
        network = build.load(path, (size, size, channels), prediction_width(config))
        if condition is None:
            condition = SKY if trained_sky_like(config) else CLEAN
        intervals, calibration = path.parent / "evaluation" / conformal.FILE, None
        if intervals.is_file():
            calibration = conformal.read_calibration(intervals, files.sha256(path), condition)
        return cls(config, path, network, condition, calibration)

    def estimate(self, images: Images) -> list[Estimate]:
        """Return what the network says of images (N, H, W, C).

        Raises
        ------
        GalmerhpcError
            A prediction is not finite.
        """
        outputs = np.asarray(self.network.predict_on_batch(images), np.float64)
        if not np.isfinite(outputs).all():
            raise GalmerhpcError(
                f"{self.path} returned non-finite predictions; retrain with a lower "
                "training.learning_rate"
            )
        names = self.config.parameters
        labels = np.asarray(labels_of(self.config, outputs), np.float64)
        bounds, retrograde = {}, [None] * len(images)
        if self.calibration:
            bounds = self.calibration.bounds(names, labels)
            score = retrograde_score(self.config, outputs)
            if self.calibration.spin and score is not None:
                retrograde = self.calibration.spin(np.asarray(score, np.float64)).tolist()
        return [
            Estimate(
                dict(zip(names, row.tolist(), strict=True)),
                {name: each[k] for name, each in bounds.items()},
                retrograde[k],
            )
            for k, row in enumerate(labels)
        ]

    def describe_intervals(self) -> str:
        """Say what the intervals are, or why there are none."""
        if self.calibration is None:
            return (
                f"no intervals: {self.path.parent / 'evaluation' / conformal.FILE} is not there or "
                f"has none for {self.condition} images; galmerhpc evaluate makes it"
            )
        levels = ", ".join(f"{level:.0%}" for level in self.calibration.levels)
        return (
            f"intervals of {levels}: calibrated on {self.condition} images of "
            f"{self.calibration.groups} encounters like those trained on; an arc of the azimuth "
            "may pass over 180"
        )


@dataclass
class Answers:
    """What became of all files.

    Attributes
    ----------
    predicted : list of (Path, Estimate)
        What the network says.
    refused : list of (Path, str)
        Files that are no picture, and why.
    drawn : list of ndarray
        The first pictures as the network saw them, for the montage.
    """

    predicted: list[tuple[Path, Estimate]] = field(default_factory=list)
    refused: list[tuple[Path, str]] = field(default_factory=list)
    drawn: list[Images] = field(default_factory=list)


def predict(
    model: Path,
    names: Sequence[str],
    form: Form = "table",
    montage: Path | None = None,
    condition: str | None = None,
) -> None:
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
        Where to draw the pictures with their labels, as the paper does; written as PNG and PDF,
        whichever ending it has.
    condition : str, optional
        Images that the intervals are for (`Predictor.open`).

    Raises
    ------
    InputError
        The model cannot be used or the montage is a folder; or files were refused, after all
        others' predictions were printed.
    """
    if montage and montage.is_dir():
        raise InputError(f"{montage}: a folder; --montage needs a file's name")
    paths = photographs.paths_of(names)
    predictor = Predictor.open(model, condition)
    log.info("predict: %s", treatment(predictor.config))
    log.info("predict: %s", predictor.describe_intervals())
    answers = answer(predictor, paths)
    match form:
        case "table":
            text = as_table(answers, predictor)
        case "csv":
            text = as_csv(answers, predictor)
        case "json":
            text = as_json(answers, predictor)
    print(text, end="", flush=True)
    if montage and answers.drawn:
        known = montage.suffix.lower() in figures.SUFFIXES
        draw(answers, predictor.config, montage.with_suffix("") if known else montage)
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
    answers = Answers()
    with tqdm(total=len(paths), desc="predict", unit="img", disable=None) as bar:
        pictures = _pictures(predictor.config, paths, answers, bar)
        while batch := list(itertools.islice(pictures, predictor.config.training.evaluation_batch)):
            images = np.stack([image for _, image in batch])
            estimates = predictor.estimate(images)
            answers.predicted.extend(zip((path for path, _ in batch), estimates, strict=True))
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


def as_table(answers: Answers, predictor: Predictor) -> str:
    """Return a line a picture, for a reader; in brackets the widest interval."""
    names = predictor.config.parameters
    heads = [
        "file",
        *(f"{name} ({unit})" if (unit := named(name).unit) else name for name in names),
    ]
    rows = [
        [photographs.shown(path), *(_text(name, estimate) for name in names)]
        for path, estimate in answers.predicted
    ]
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    lines = []
    for file, *cells in (heads, *rows):
        shown = [cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True)]
        lines.append("  ".join([file.ljust(widths[0]), *shown]) + "\n")
    return "".join(lines)


def _text(name: str, estimate: Estimate) -> str:
    """Return a label for a reader; a spin with the probability of its side, where calibrated."""
    value = estimate.labels[name]
    if name == SPIN.name:
        if estimate.retrograde is None:
            return f"{figures.montage_text([name], [value])} {value:.2f}"
        retrograde = estimate.retrograde
        return f"{figures.montage_text([name], [retrograde])} {max(retrograde, 1 - retrograde):.0%}"
    form = ".1f" if named(name).unit == "deg" else ".3g"
    if name not in estimate.bounds:
        return f"{value:{form}}"
    low, high = estimate.bounds[name][-1]
    return f"{value:{form}} [{low:{form}}, {high:{form}}]"


def as_csv(answers: Answers, predictor: Predictor) -> str:
    """Return a row a picture, for a program."""
    buffer = io.StringIO()
    rows = [
        {"file": photographs.shown(path), **_values(estimate, predictor)}
        for path, estimate in answers.predicted
    ]
    heads = rows[0] if rows else {"file": "", **dict.fromkeys(predictor.config.parameters, "")}
    writer = csv.DictWriter(buffer, list(heads), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()})
    return buffer.getvalue()


def as_json(answers: Answers, predictor: Predictor) -> str:
    """Return all there is, with the model's checksum and what was refused."""
    values: dict[str, Any] = {
        "model": {"file": str(predictor.path), "sha256": files.sha256(predictor.path)},
        "units": {name: named(name).unit for name in predictor.config.parameters},
        "treatment": treatment(predictor.config),
        "intervals": predictor.describe_intervals(),
        "predictions": [
            {"file": photographs.shown(path), **_values(estimate, predictor)}
            for path, estimate in answers.predicted
        ],
        "refused": [{"file": photographs.shown(path), "why": why} for path, why in answers.refused],
    }
    return json.dumps(values, indent=1) + "\n"


def _values(estimate: Estimate, predictor: Predictor) -> dict[str, float]:
    """Return an estimate by column: ``inclination``, ``inclination_low_0.9`` and so on."""
    values = dict(estimate.labels)
    if estimate.retrograde is not None:
        values["p_retrograde"] = estimate.retrograde
    if predictor.calibration:
        for name, bounds in estimate.bounds.items():
            for level, (low, high) in zip(predictor.calibration.levels, bounds, strict=True):
                values[f"{name}_low_{level:g}"] = float(low)
                values[f"{name}_high_{level:g}"] = float(high)
    return values


def draw(answers: Answers, config: Config, path: Path) -> None:
    """Draw pictures as the network saw them: the file's name top left, predictions bottom right."""
    names = config.parameters
    shown = answers.predicted[: len(answers.drawn)]
    left_out = len(answers.predicted) - len(shown)
    figures.montage(
        np.stack(answers.drawn),
        [ascii(file.name)[1:-1][:LONGEST_NAME] for file, _ in shown],
        [figures.montage_text(names, [one.labels[name] for name in names]) for _, one in shown],
        min(config.evaluation.montage_columns, len(shown)),
        path,
        figures.montage_key(names, above="file")
        + (f"  {left_out} more are not drawn." if left_out else ""),
    )
