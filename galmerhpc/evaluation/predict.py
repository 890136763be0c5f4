"""The trained network on images supplied by the user (prepared by `photographs`).

A model is a run folder, or its ``model.keras`` with the run's ``config.yaml`` beside it, which
defines the outputs and how the training images were made.
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

from galmerhpc import devices, files
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
"""Most images in a montage; more would be too small on a page."""

LONGEST_NAME = 24
"""Characters of a file name that fit across its image."""


@dataclass(frozen=True)
class Estimate:
    """The network's prediction for one image.

    Attributes
    ----------
    labels : dict of float
        Predictions by parameter, in its unit.
    bounds : dict of ndarray, shape (levels, 2)
        Intervals by parameter (`conformal.Interval.bounds`); empty if not calibrated.
    retrograde : float or None
        Calibrated probability that the encounter is retrograde.
    """

    labels: dict[str, float]
    bounds: dict[str, NDArray[np.float64]]
    retrograde: float | None

    def shown(self, name: str) -> float:
        """Return what a label is drawn from: for the spin its probability, if calibrated."""
        if name == SPIN.name and self.retrograde is not None:
            return self.retrograde
        return self.labels[name]


@dataclass(frozen=True)
class Predictor:
    """A trained network with the meaning of its outputs.

    Attributes
    ----------
    config : Config
        Configuration of its run.
    path : Path
        Its model file.
    network : keras.Model
        Takes images (B, H, W, C) uint8.
    condition : str
        Images for which its intervals hold: ``clean``, or ``sky`` for sky-like ones.
    calibration : Calibration or None
        Calibration of the intervals; None if the run was not evaluated or could not be calibrated.
    held_when_sky_like : dict of str to list of float
        By parameter, the share of sky-like images that the intervals of clean ones held, per level;
        empty for intervals of sky-like images, and if it was not measured.
    """

    config: Config
    path: Path
    network: "keras.Model"
    condition: str
    calibration: Calibration | None
    held_when_sky_like: dict[str, list[float]]

    @classmethod
    def open(cls, model: Path, condition: str | None = None) -> "Predictor":
        """Open the model of a run folder, or a ``model.keras`` beside its run's ``config.yaml``.

        Parameters
        ----------
        model : Path
            The folder or the file.
        condition : str, optional
            As the attribute; by default what the network was trained for (`trained_sky_like`).

        Raises
        ------
        InputError
            Model or configuration is missing or damaged, or they or the intervals do not belong
            together.
        """
        path = model / "model.keras" if model.is_dir() else model
        if not path.is_file():
            raise InputError(f"{path}: no such file; run galmerhpc train first")
        if not (path.parent / RESOLVED).is_file():
            raise InputError(
                f"{path.parent / RESOLVED}: no such file; a model needs its run's {RESOLVED} "
                "beside it, which defines its outputs"
            )
        config = load(path.parent)  # wherever the run folder is now
        size, channels = config.preprocess.image_size, config.preprocess.channels
        devices.take_gpu(local_rank=0)
        network = build.load(path, (size, size, channels), prediction_width(config))
        if condition is None:
            condition = SKY if trained_sky_like(config) else CLEAN
        intervals, calibration, held = path.parent / "evaluation" / conformal.FILE, None, {}
        if intervals.is_file():
            calibration = conformal.read_calibration(intervals, files.sha256(path), condition)
        if calibration and condition == CLEAN:
            held = _held_when_sky_like(path.parent / "evaluation" / "metrics.json")
        return cls(config, path, network, condition, calibration, held)

    def estimate(self, images: Images) -> list[Estimate]:
        """Return the network's predictions for images (N, H, W, C).

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
        """Return a text that describes the intervals, or why there are none."""
        if self.calibration is None:
            return (
                f"no intervals: {self.path.parent / 'evaluation' / conformal.FILE} is missing or "
                f"has none for {self.condition} images; run galmerhpc evaluate"
            )
        levels = ", ".join(f"{100 * level:g}%" for level in self.calibration.levels)
        text = (
            f"intervals of {levels}: calibrated on {self.condition} images of "
            f"{self.calibration.groups} encounters like those trained on; an azimuth interval may "
            "wrap around at 180"
        )
        if self.held_when_sky_like:
            shares = ", ".join(
                f"{name} {' and '.join(f'{100 * share:.0f}%' for share in shares)}"
                for name, shares in self.held_when_sky_like.items()
            )
            text += (
                f". Photographs are not clean: of sky-like images these intervals held {shares}. "
                "A network for photographs is trained with sky-like changes (training.augment, as "
                "in configs/real_sky.yaml)"
            )
        return text


def _held_when_sky_like(path: Path) -> dict[str, list[float]]:
    """Return from metrics.json how often intervals of clean images held on sky-like ones.

    Raises
    ------
    InputError
        The file is damaged.
    """
    if not path.is_file():
        return {}
    try:
        sky = files.read_json(path)["sky"]
        carried = sky and sky["uncertainty"] and sky["uncertainty"]["carried"]
        return carried["coverage"] if carried else {}
    except (KeyError, TypeError):
        raise InputError(f"{path}: damaged; run galmerhpc evaluate again") from None


@dataclass
class Answers:
    """Predictions for all files, and which files were refused.

    Attributes
    ----------
    predicted : list of (Path, Estimate)
        Files and their predictions.
    refused : list of (Path, str)
        Files that cannot be used, and why.
    drawn : list of ndarray
        The first images as the network saw them, for the montage.
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
    """Print a network's predictions for images.

    Parameters
    ----------
    model : Path
        Run folder or ``model.keras``.
    names : sequence of str
        Files, folders and patterns (`photographs.paths_of`).
    form : str
        ``table``, ``csv`` or ``json``.
    montage : Path, optional
        File for a montage of the images with their labels, as in the paper; written as PNG and
        PDF, whatever its suffix.
    condition : str, optional
        Images for which the intervals hold (`Predictor.open`).

    Raises
    ------
    InputError
        The model cannot be used, or the montage cannot be written there; or files were refused,
        after the predictions for all others have been printed.
    """
    if montage:
        refuse_montage(montage)
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
            f"{len(answers.refused)} of {len(paths)} files cannot be used as images; "
            "the reasons are given above"
        )


def refuse_montage(path: Path) -> None:
    """Refuse a montage that is a folder or below a file, before any work.

    Raises
    ------
    InputError
        It is.
    """
    if path.is_dir():
        raise InputError(f"--montage {path}: is a folder; give the name of a file")
    nearest = next(folder for folder in path.absolute().parents if folder.exists())
    if not nearest.is_dir():
        raise InputError(f"--montage {path}: {nearest} is not a folder")


def treatment(config: Config) -> str:
    """Return a text that says how images are brought into the form of training images."""
    size = config.preprocess.image_size
    grey = "grey, " if photographs.trains_grey(config) else ""
    return (
        f"the central square of each image, {grey}{size} x {size} pixels; 8-bit images as they "
        "are, others with an asinh stretch from sky to white"
    )


def answer(predictor: Predictor, paths: Sequence[Path]) -> Answers:
    """Predict the labels of files, batch by batch; log and skip those that cannot be used."""
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
    """Yield images in the form that the network takes; note the files that are refused."""
    for path in paths:
        try:
            image = photographs.training_form(photographs.read(path), config)
            if image.min() == image.max():
                raise ValueError("blank in the central square, which the network sees; crop it")
        except ValueError as error:
            answers.refused.append((path, str(error)))
            log.warning("%s: refused: %s", photographs.shown(path), error)
        else:
            yield path, image
        bar.update()


# --- output ---------------------------------------------------------------------------------------


def as_table(answers: Answers, predictor: Predictor) -> str:
    """Return a table for a reader, one line per image; in brackets the widest interval."""
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
    """Return a label for a reader; for the spin with its probability, if calibrated."""
    value = estimate.labels[name]
    if name == SPIN.name:
        retrograde = estimate.retrograde
        letter = figures.montage_text([name], [estimate.shown(name)])
        sure = f"{value:.2f}" if retrograde is None else f"{max(retrograde, 1 - retrograde):.0%}"
        return f"{letter} {sure}"
    form = ".1f" if named(name).unit == "deg" else ".3g"
    if name not in estimate.bounds:
        return f"{value:{form}}"
    low, high = estimate.bounds[name][-1]
    return f"{value:{form}} [{low:{form}}, {high:{form}}]"


def as_csv(answers: Answers, predictor: Predictor) -> str:
    """Return CSV, one row per image."""
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
    """Return JSON with all predictions, the model's checksum and the refused files."""
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
    """Draw images as the network saw them: file name top left, prediction bottom right."""
    names = config.parameters
    shown = answers.predicted[: len(answers.drawn)]
    left_out = len(answers.predicted) - len(shown)
    figures.montage(
        np.stack(answers.drawn),
        [ascii(file.name)[1:-1][:LONGEST_NAME] for file, _ in shown],
        [figures.montage_text(names, [one.shown(name) for name in names]) for _, one in shown],
        min(config.evaluation.montage_columns, len(shown)),
        path,
        figures.montage_key(names, above="file")
        + (f"  {left_out} more not shown." if left_out else ""),
    )
