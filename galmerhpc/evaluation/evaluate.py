"""Evaluation of a trained network beside two baselines, on images never seen in training.

Runs on rank 0 and writes a folder of the run: metrics.json (docs/metrics.md), predictions.csv,
intervals.json (`evaluation.conformal`) and the figures.
"""

import csv
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from galmerhpc import devices, files
from galmerhpc.config import Config, OnlineAugment, digest
from galmerhpc.dataset.records import StageRecord, stage_record
from galmerhpc.dataset.shards import Dataset
from galmerhpc.errors import InputError
from galmerhpc.evaluation import conformal, facts, gallery
from galmerhpc.evaluation.conditions import (
    CLEAN,
    SKY,
    Change,
    describe,
    sky_like,
    surviving,
    unchanged,
)
from galmerhpc.evaluation.predictors import Predictions, as_csv, class_choices, predict
from galmerhpc.evaluation.sample import (
    Sample,
    ViewColumns,
    knows_orbits,
    open_dataset,
    read_sample,
    read_views,
)
from galmerhpc.evaluation.scores import Scorer, breakdown, class_scores, sky_weights
from galmerhpc.evaluation.summary import PREDICTORS, conditions, describe_sample
from galmerhpc.metrics import to_json
from galmerhpc.models.build import load
from galmerhpc.models.targets import prediction_width, retrograde_score
from galmerhpc.parameters import class_groups, full_circles, named

log = logging.getLogger(__name__)

FORMAT = 5
"""Format of metrics.json."""

REPORT = "report.html"

CURVE = tuple(round(0.1 * k, 1) for k in range(1, 10))
"""Levels of the coverage figure, in addition to the configured ones."""

Floats = NDArray[np.float64]


def folder_of(config: Config, split: str | None = None, other: Config | None = None) -> Path:
    """Return the folder of an evaluation.

    Parameters
    ----------
    config : Config
        The run whose network is evaluated.
    split : str, optional
        ``test``, ``validation`` or ``all``, if given by the user.
    other : Config, optional
        The run whose images are used instead of the network's own.
    """
    names = ["evaluation", *([f"on-{other.run_dir.name}"] if other else [])]
    return config.run_dir / "-".join([*names, *([split] if split else [])])


def record_of(config: Config, split: str | None = None, other: Config | None = None) -> StageRecord:
    """Return the record of an evaluation.

    An evaluation made with other keys of `evaluation`, or before training was continued with other
    keys of `training` (``--allow-change``), is repeated.
    """
    inputs = config.inputs("evaluate")
    if other:
        inputs |= {"data": digest(other.inputs("preprocess"))}
    keys = [key for key in inputs if key.startswith(("evaluation.", "training."))]
    return StageRecord(folder_of(config, split, other), inputs, may_differ=keys)


def evaluate(config: Config, split: str | None = None, other: Config | None = None) -> None:
    """Evaluate ``model.keras``; called by rank 0.

    Writes the folder `folder_of`, or returns at once if this very model has been evaluated so on
    these very images.

    Parameters
    ----------
    config : Config
        The run.
    split : str, optional
        ``test``, ``validation`` or ``all``; by default test, or validation if there is no test
        split, as in the paper's regression (all output then says so).
    other : Config, optional
        Another run, whose preprocessed images are evaluated instead of the run's own.

    Raises
    ------
    InputError
        The model, metrics.csv or images to evaluate are missing, or files are damaged or do not
        belong together.
    GalmerhpcError
        A prediction is not finite.
    """
    model_path = config.run_dir / "model.keras"
    folder, record = folder_of(config, split, other), record_of(config, split, other)
    if not model_path.is_file():
        raise InputError(f"{model_path}: no such file; run galmerhpc train first")
    model_sha256 = files.sha256(model_path)
    # These refuse shards and weights made with another configuration.
    dataset = open_dataset(config)
    evaluated = open_dataset(other) if other else dataset
    stage_record(config, "train")
    foreign = evaluated.fingerprint != dataset.fingerprint
    intervals = folder_of(config) / conformal.FILE
    tested = files.sha256(intervals) if foreign and intervals.is_file() else None
    made_from = {
        "model": model_sha256, "dataset": evaluated.fingerprint, "intervals": tested,
    }  # fmt: skip
    if intact(record, folder):
        metrics = files.read_json(folder / "metrics.json")
        if metrics["format"] == FORMAT and made_from.items() <= metrics["repeat"].items():
            log.info("evaluate: complete, nothing to do")
            return
    history = read_history(config.run_dir / "metrics.csv", config.parameters)
    devices.take_gpu(local_rank=0)  # rank 0 is the first of its node
    network = load(model_path, dataset.image_shape, prediction_width(config))
    training = dataset.rows("train")
    if not len(training):
        raise InputError("the data set has no training images: change the fractions of the split")
    orbits = knows_orbits(config) and knows_orbits(other or config)
    trained = read_views(config, dataset, training, orbits)
    sample = read_sample(other or config, evaluated, config.parameters, split, orbits)
    refuse_unfit_images(config, dataset, sample)

    ranges = {CLEAN: None, **({SKY: config.evaluation.sky} if config.evaluation.sky else {})}
    changes = {k: _change(config, r, dataset.image_shape) for k, r in ranges.items()}
    predictions = {
        condition: predict(config, dataset, trained, sample, network, change)
        for condition, change in changes.items()
    }
    circles = full_circles(config.parameters, dataset.labels[training])
    compared = {
        condition: predicted.on_nearest_turn(sample.true, circles)
        for condition, predicted in predictions.items()
    }
    found, calibrations = {}, {}
    for condition, predicted in compared.items():
        found[condition], calibrations[condition] = assess(
            config, sample, trained, predicted, ranges[condition]
        )
    own = None if foreign else calibrations
    carried = transferred_coverage(config, sample, predictions, ranges, own, model_sha256)
    for condition, part in found.items():
        if part["uncertainty"]:
            part["uncertainty"]["carried"] = carried[condition]
    metrics = to_json(
        {
            "format": FORMAT,
            "run": facts.run(config, dataset, trained, sample.split),
            "data": facts.data(config, other, evaluated, dataset) if other else None,
            "sample": facts.views(sample, trained),
            "training": facts.training(config, history),
            **found[CLEAN],
            "sky": {"changes": describe(config.evaluation.sky), **found[SKY]}
            if config.evaluation.sky
            else None,
            "repeat": {
                "split": split,
                **made_from,
                **facts.origin(config),
            },
        }
    )

    record.begin()
    clear(folder)
    text = as_csv(config.parameters, sample, trained, predictions, ranges)
    files.write_text(folder / "predictions.csv", text)
    files.write_json(folder / conformal.FILE, conformal.as_file(model_sha256, calibrations))
    labels = {condition: predicted.labels for condition, predicted in compared.items()}
    figures = gallery.draw(folder, config, sample, network, labels, history, metrics, changes)
    files.write_json(folder / "metrics.json", metrics)
    made = ["metrics.json", "predictions.csv", conformal.FILE, *figures]
    record.finish({name: files.sha256(folder / name) for name in made})
    for condition, part in conditions(metrics).items():
        log.info(
            "evaluate: average MAE on %s, %s: network %.3g, look-up %.3g, mean predictor %.3g",
            describe_sample(metrics), condition,
            *(part["scores"][k]["average"]["mae"] for k in PREDICTORS),
        )  # fmt: skip


def clear(folder: Path) -> None:
    """Remove report and figures of an earlier evaluation, which would show its results."""
    files.remove_temporaries(folder)
    for name in (REPORT, *gallery.file_names(gallery.CAPTIONS)):
        (folder / name).unlink(missing_ok=True)


def intact(record: StageRecord, folder: Path) -> bool:
    """Return whether an evaluation is complete and its files are unchanged."""
    return record.complete and all(
        files.sha256(folder / name) == sha256 for name, sha256 in record.files.items()
    )


def _change(config: Config, ranges: OnlineAugment | None, shape: tuple[int, int, int]) -> Change:
    return sky_like(ranges, config.evaluation.seed, shape) if ranges else unchanged


# --- input ----------------------------------------------------------------------------------------


def read_history(path: Path, parameters: Sequence[str]) -> dict[str, Floats]:
    """Read metrics.csv, one row per epoch, as columns; empty cells become NaN.

    Raises
    ------
    InputError
        It is missing, empty, damaged, or lacks a column that is needed.
    """
    needed = {
        "epoch", "step", "seconds", "images_per_s", "training_loss", "training_mae",
        "training_mse", "validation_mae", "validation_mse",
        *(f"validation_mae_{name}" for name in parameters),
    }  # fmt: skip
    try:
        lines = list(csv.reader(path.read_text(encoding="utf-8").splitlines()))
        cells = [[float(cell or "nan") for cell in line] for line in lines[1:]]
        history = dict(zip(lines[0], np.array(cells).T, strict=True))
        if missing := needed - history.keys():
            raise ValueError(f"no column {min(missing)}")
        return history
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; run galmerhpc train first") from None
    except (OSError, ValueError, IndexError) as error:
        raise InputError(
            f"{path}: damaged ({error}); remove the run's checkpoints and train again"
        ) from None


def refuse_unfit_images(config: Config, dataset: Dataset, sample: Sample) -> None:
    """Refuse images that do not fit the network, or labels that it has no class for.

    Raises
    ------
    InputError
        The images or labels do not fit.
    """
    folder, shape = sample.dataset.folder, sample.dataset.image_shape
    if shape != dataset.image_shape:
        raise InputError(
            f"{folder}: contains images of shape {shape}, but the network takes "
            f"{dataset.image_shape}; "
            "preprocess them with the same preprocess.image_size and preprocess.channels"
        )
    if config.model.task == "classification":
        for name, column in zip(config.parameters, sample.true.T, strict=True):
            if not (good := named(name).in_class(column)).all():
                raise InputError(
                    f"{folder}: {name} {column[~good][0]:g}, for which the network has no class "
                    f"(only for {named(name).span}); train a regression to evaluate it"
                )


# --- scores ---------------------------------------------------------------------------------------


def assess(
    config: Config,
    sample: Sample,
    trained: ViewColumns,
    predictions: Predictions,
    ranges: OnlineAugment | None,
) -> tuple[dict[str, Any], conformal.Calibration | None]:
    """Score predictions under one condition of the images.

    Returns
    -------
    found : dict
        ``scores``, ``against_lookup``, ``by`` and ``uncertainty`` of metrics.json.
    calibration : Calibration or None
        Calibration of the intervals on all images; None if there are too few groups.
    """
    settings, views, groups = config.evaluation, sample.views, sample.views.groups()
    names = surviving(config.parameters, ranges)
    kept = [config.parameters.index(name) for name in names]
    true = sample.true[:, kept]
    predicted = {name: labels[:, kept] for name, labels in predictions.labels.items()}
    simulated = np.concatenate([trained.inclination_deg, views.inclination_deg])
    scorer = Scorer(
        names, true, sky_weights(views.theta_deg, views.inclination_deg),
        facts.distinct(simulated), groups, settings.bootstrap, settings.seed,
    )  # fmt: skip
    scores = {name: scorer.score(labels) for name, labels in predicted.items()}
    if config.model.task == "classification":
        width = config.model.class_width_deg
        columns = class_groups(config.parameters, width)
        outputs = np.concatenate([predictions.outputs[:, columns[k]] for k in kept], axis=1)
        for name, chosen in class_choices(outputs, predicted, names, width).items():
            scores[name]["classes"] = class_scores(names, true, chosen, width)
    axes = {
        "theta_deg": (views.theta_deg, settings.bin_deg),
        "phi_deg": (views.phi_deg, settings.bin_deg),
        "inclination_deg": (views.inclination_deg, None),
        "time_myr": (views.time_myr, None),
        "simulation": (views.simulation.astype(np.float64), None),
    }
    shown = {name: predicted[name] for name in ("network", "lookup")}
    found = {
        "scores": scores,
        "against_lookup": scorer.compare(predicted["network"], predicted["lookup"]),
        "by": breakdown(names, true, shown, axes),
        "uncertainty": None,
    }
    count = len(np.unique(groups))
    if count < conformal.FEWEST_GROUPS:
        return found, None
    score = retrograde_score(config, predictions.outputs)
    labels = conformal.Labels(names, true, predicted["network"], score, groups)
    levels = (*settings.levels, *(k for k in CURVE if k not in settings.levels))
    found["uncertainty"] = {
        "groups": count,
        "configured_levels": len(settings.levels),
        "halvings": conformal.halved_coverage(labels, levels, settings.halvings, settings.seed),
        "carried": None,
    }
    return found, conformal.calibrate(labels, settings.levels)


def transferred_coverage(
    config: Config,
    sample: Sample,
    predictions: dict[str, Predictions],
    ranges: Mapping[str, OnlineAugment | None],
    own: dict[str, conformal.Calibration | None] | None,
    model_sha256: str,
) -> dict[str, dict[str, Any] | None]:
    """Return the coverage of intervals that were calibrated elsewhere.

    Parameters
    ----------
    config, sample, predictions, ranges
        As in `evaluate`.
    own : dict of Calibration, optional
        Calibrations of the run's own images by condition; None where another data set is evaluated,
        which are then tested with the calibrations that the run's own evaluation wrote.
    model_sha256 : str
        SHA-256 of the model file.

    Returns
    -------
    dict
        ``uncertainty.carried`` of metrics.json by condition; None where there is no calibration.
    """
    path = folder_of(config) / conformal.FILE
    carried: dict[str, dict[str, Any] | None] = dict.fromkeys(predictions)
    for condition, predicted in predictions.items():
        calibration, origin = None, ""
        if own is not None and condition != CLEAN:
            calibration, origin = own[CLEAN], "clean images"
        elif own is None and path.is_file():
            calibration = conformal.read_calibration(path, model_sha256, condition)
            origin = f"{condition} images of {config.run_dir.name}"
        if calibration:
            labels, groups = predicted.labels["network"], sample.views.groups()
            held = conformal.coverage(calibration, config.parameters, sample.true, labels, groups)
            names = surviving(config.parameters, ranges[condition])
            carried[condition] = {
                "from": origin,
                "levels": calibration.levels,
                "coverage": {name: share for name, share in held.items() if name in names},
            }
    return carried
