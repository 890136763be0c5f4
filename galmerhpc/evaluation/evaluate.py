"""Evaluation of a finished network beside two baselines, on images that training never saw.

Runs on rank 0 and writes a folder of the run: metrics.json (docs/metrics.md), predictions.csv,
intervals.json (`evaluation.conformal`) and the figures.
"""

import csv
import datetime as dt
import importlib.metadata
import io
import logging
import math
import platform
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from galmerhpc import __version__, files, parallel
from galmerhpc.config import Config, OnlineAugment, digest
from galmerhpc.dataset.shards import Dataset
from galmerhpc.dataset.split import SPLITS
from galmerhpc.errors import GalmerhpcError, InputError
from galmerhpc.evaluation import conformal, gallery
from galmerhpc.evaluation.baselines import LookUp, mean_prediction, thumbnails
from galmerhpc.evaluation.conditions import (
    CLEAN,
    SKY,
    Change,
    describe,
    draws,
    sky_like,
    surviving,
    trained_sky_like,
    unchanged,
)
from galmerhpc.evaluation.pair_image import BRIGHT_PERCENTILE
from galmerhpc.evaluation.sample import (
    Sample,
    Views,
    nearest_training_view,
    open_dataset,
    read_sample,
    read_views,
)
from galmerhpc.evaluation.scores import Scorer, breakdown, class_scores, sky_weights
from galmerhpc.evaluation.summary import PREDICTORS, conditions, describe_sample
from galmerhpc.metrics import to_json
from galmerhpc.models.build import load
from galmerhpc.models.targets import labels_of, prediction_width, retrograde_score
from galmerhpc.parameters import class_groups, encode_classes, named

if TYPE_CHECKING:
    import keras

log = logging.getLogger(__name__)

FORMAT = 3
"""Of metrics.json."""

BRIGHTNESS_SAMPLE = 256
"""Training images from which their brightness is measured."""

REPORT = "report.html"

PACKAGES = ("tensorflow", "tensorflow-cpu", "keras", "horovod", "numpy", "scipy", "h5py", "mpi4py")
"""Packages whose versions are written down, where they are installed."""

CURVE = tuple(round(0.1 * k, 1) for k in range(1, 10))
"""Levels of the coverage figure, beside the configured ones."""

Floats = NDArray[np.float64]


class Predictions(NamedTuple):
    """What is predicted for N images under one condition."""

    outputs: Floats
    """What the network gives, (N, P) or (N, classes)."""
    labels: dict[str, Floats]
    """Labels (N, P) by name of `summary.PREDICTORS`."""


def folder_of(config: Config, split: str | None = None, other: Config | None = None) -> Path:
    """Return where an evaluation lies.

    Parameters
    ----------
    config : Config
        The run whose network is evaluated.
    split : str, optional
        ``test``, ``validation`` or ``all``, where it was asked for.
    other : Config, optional
        The run whose images are used in place of the network's own.
    """
    names = ["evaluation", *([f"on-{other.run_dir.name}"] if other else [])]
    return config.run_dir / "-".join([*names, *([split] if split else [])])


def record_of(
    config: Config, split: str | None = None, other: Config | None = None
) -> files.StageRecord:
    """Return the record of an evaluation.

    One made with other keys of `evaluation`, or of a training that has gone on with others of its
    own since (``--allow-change``), is made anew.
    """
    inputs = config.inputs("evaluate")
    if other:
        inputs |= {"data": digest(other.inputs("preprocess"))}
    keys = [key for key in inputs if key.startswith(("evaluation.", "training."))]
    return files.StageRecord(folder_of(config, split, other), inputs, may_differ=keys)


def evaluate(config: Config, split: str | None = None, other: Config | None = None) -> None:
    """Evaluate ``model.keras``; called by rank 0.

    Writes `folder_of` the run, or returns at once where this very model has been evaluated so.

    Parameters
    ----------
    config : Config
        The run.
    split : str, optional
        ``test``, ``validation`` or ``all``; by default test, or validation where there is no test
        split, as in the paper's regression, and every output says so.
    other : Config, optional
        Another run, whose preprocessed images are evaluated in place of the run's own.

    Raises
    ------
    InputError
        There is no model, no metrics.csv or no image to evaluate, or the files are damaged or do
        not fit each other.
    GalmerhpcError
        The network predicts something that is no number.
    """
    model_path = config.run_dir / "model.keras"
    folder, record = folder_of(config, split, other), record_of(config, split, other)
    if not model_path.is_file():
        raise InputError(f"{model_path}: no such file; run galmerhpc train first")
    model_sha256 = files.sha256(model_path)
    if intact(record, folder):
        evaluated = files.read_json(folder / "metrics.json")["repeat"]["model"]
        if evaluated == model_sha256:
            log.info("evaluate: complete, nothing to do")
            return
    # These refuse shards and weights of another configuration.
    dataset = open_dataset(config)
    files.StageRecord(config.run_dir / "checkpoints", config.inputs("train"))
    history = read_history(config.run_dir / "metrics.csv", config.parameters)
    network = load_network(model_path, dataset, prediction_width(config))
    training = dataset.rows("train")
    if not len(training):
        raise InputError("the data set has no training image: give the split another fraction")
    trained = read_views(config, dataset, training)
    sample = read_sample(
        other or config, open_dataset(other) if other else dataset, config.parameters, split
    )
    refuse_misfit(config, dataset, sample)

    ranges = {CLEAN: None, **({SKY: config.evaluation.sky} if config.evaluation.sky else {})}
    changes = {k: _change(config, r, dataset.image_shape) for k, r in ranges.items()}
    predictions = {
        condition: predict(config, dataset, trained, sample, network, change)
        for condition, change in changes.items()
    }
    found, calibrations = {}, {}
    for condition, predicted in predictions.items():
        found[condition], calibrations[condition] = assess(
            config, sample, trained, predicted, ranges[condition]
        )
    carry(config, sample, predictions, found, calibrations if not other else None, model_sha256)
    metrics = to_json(
        {
            "format": FORMAT,
            "run": describe_run(config, dataset, sample.split),
            "data": describe_data(other, sample) if other else None,
            "sample": describe_views(sample, trained),
            "training": describe_training(config, history),
            **found[CLEAN],
            "sky": {"changes": describe(config.evaluation.sky), **found[SKY]}
            if config.evaluation.sky
            else None,
            "repeat": {
                "split": split,
                **describe_origin(config, sample.dataset, model_sha256),
            },
        }
    )

    record.begin()
    clear(folder)
    files.write_text(
        folder / "predictions.csv", predictions_csv(config.parameters, sample, trained, predictions)
    )
    files.write_json(folder / conformal.FILE, conformal.as_file(model_sha256, calibrations))
    labels = {condition: predicted.labels for condition, predicted in predictions.items()}
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
    """Remove what an earlier evaluation left: the report and figures would show its results."""
    files.remove_temporaries(folder)
    for name in (REPORT, *gallery.file_names(gallery.CAPTIONS)):
        (folder / name).unlink(missing_ok=True)


def intact(record: files.StageRecord, folder: Path) -> bool:
    """Tell whether an evaluation is complete and its files are as they were written."""
    return record.complete and all(
        files.sha256(folder / name) == sha256 for name, sha256 in record.files.items()
    )


def _change(config: Config, ranges: OnlineAugment | None, shape: tuple[int, int, int]) -> Change:
    return sky_like(ranges, config.evaluation.seed, shape) if ranges else unchanged


# --- what is read ---------------------------------------------------------------------------------


def read_history(path: Path, parameters: Sequence[str]) -> dict[str, Floats]:
    """Read metrics.csv, a row an epoch, as columns; an empty cell is not a number.

    Raises
    ------
    InputError
        It is missing, has no row, lacks a column that is needed, or is damaged.
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
            raise ValueError(f"it has no column {min(missing)}")
        return history
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; run galmerhpc train first") from None
    except (OSError, ValueError, IndexError) as error:
        raise InputError(
            f"{path}: damaged ({error}); remove the run's checkpoints and train again"
        ) from None


def load_network(path: Path, dataset: Dataset, outputs: int) -> "keras.Model":
    """Load a model in Keras's safe mode, which runs no code of the file's own.

    Parameters
    ----------
    path : Path
        The model.
    dataset : Dataset
        The images that it is to predict.
    outputs : int
        What it is to give for each of them.

    Raises
    ------
    InputError
        It is damaged, or does not fit the data set's images or the wanted outputs.
    """
    model = load(path)
    wanted = ((None, *dataset.image_shape), (None, outputs))
    found = (tuple(model.input_shape), tuple(model.output_shape))
    if found != wanted:
        raise InputError(
            f"{path}: turns {found[0][1:]} into {found[1][1:]}, but the run's shards need "
            f"{wanted[0][1:]} and {wanted[1][1:]} (parameters: {', '.join(dataset.parameters)}); "
            "train again"
        )
    return model


def refuse_misfit(config: Config, dataset: Dataset, sample: Sample) -> None:
    """Refuse images that the network cannot take, or labels that it has no class for.

    Raises
    ------
    InputError
        It cannot.
    """
    folder, shape = sample.dataset.folder, sample.dataset.image_shape
    if shape != dataset.image_shape:
        raise InputError(
            f"{folder}: holds images {shape}, but the network takes {dataset.image_shape}; "
            "preprocess them with the same preprocess.image_size and preprocess.channels"
        )
    if config.model.task == "classification":
        try:
            encode_classes(sample.true, config.model.class_width_deg, config.parameters)
        except ValueError as error:
            raise InputError(f"{folder}: {error}, for which the network has no class") from None


# --- predictions ----------------------------------------------------------------------------------


def predict(
    config: Config,
    dataset: Dataset,
    trained: Views,
    sample: Sample,
    network: "keras.Model",
    change: Change,
) -> Predictions:
    """Predict a sample's labels with the network and with the baselines.

    The look-up's training images are changed as those that it is asked for, each
    `evaluation.lookup.draws` times: a network that trained under the conditions saw as many as it
    had epochs.

    Parameters
    ----------
    config : Config
        The run.
    dataset : Dataset
        Its shards, whose training images the baselines know.
    trained : Views
        The training images' views.
    sample : Sample
        What to predict.
    network : keras.Model
        The network.
    change : Change
        What is done to every image first.

    Raises
    ------
    GalmerhpcError
        The network predicts something that is no number.
    """
    settings, training = config.evaluation.lookup, dataset.rows("train")
    repeats = 1 if change is unchanged else settings.draws

    def over(
        what: str, images_of: Dataset, rows: NDArray[np.int64], views: Views,
        function: Callable[[NDArray[np.uint8]], Any], repeats: int = 1,
    ) -> Any:  # fmt: skip
        """Apply a function to the changed images of rows, a batch at a time; then once more."""
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
            f"model.keras predicts no number for {bad} of {len(outputs)} images; "
            "train again with a lower training.learning_rate"
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
    """Return each predictor's probabilities of the classes, (N, classes).

    The network's are its outputs; a baseline is sure of the classes that its predictions fall into.
    """
    low, high = np.transpose([(named(n).low, named(n).high) for n in names])
    choices: dict[str, NDArray[np.floating]] = {
        name: encode_classes(np.clip(predicted, low, high), width_deg, names)
        for name, predicted in predictions.items()
        if name != "network"
    }
    return {"network": outputs, **choices}


# --- scores ---------------------------------------------------------------------------------------


def assess(
    config: Config,
    sample: Sample,
    trained: Views,
    predictions: Predictions,
    ranges: OnlineAugment | None,
) -> tuple[dict[str, Any], conformal.Calibration | None]:
    """Score predictions under one condition of the images.

    Returns
    -------
    found : dict
        ``scores``, ``against_lookup``, ``by`` and ``uncertainty`` of metrics.json.
    calibration : Calibration or None
        Of the intervals, on all images; None where there are too few groups.
    """
    settings, views, groups = config.evaluation, sample.views, sample.views.groups()
    names = surviving(config.parameters, ranges)
    kept = [config.parameters.index(name) for name in names]
    true = sample.true[:, kept]
    predicted = {name: labels[:, kept] for name, labels in predictions.labels.items()}
    simulated = np.unique([*trained.inclination_deg, *views.inclination_deg])
    scorer = Scorer(
        names, true, sky_weights(views.theta_deg, views.inclination_deg),
        simulated[~np.isnan(simulated)], groups, settings.bootstrap, settings.seed,
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


def carry(
    config: Config,
    sample: Sample,
    predictions: dict[str, Predictions],
    found: dict[str, dict[str, Any]],
    own: dict[str, conformal.Calibration | None] | None,
    model_sha256: str,
) -> None:
    """Add what intervals hold that were calibrated elsewhere: ``uncertainty.carried``.

    Parameters
    ----------
    config, sample, predictions, found
        As in `evaluate`; `found` is added to.
    own : dict of Calibration, optional
        Those of the run's own images, by condition; None where other data are evaluated: then all
        conditions are held to the calibrations that the run's evaluation has written.
    model_sha256 : str
        Of the network.
    """
    path = folder_of(config) / conformal.FILE
    for condition, part in found.items():
        if own is not None:
            calibration, origin = own[CLEAN] if condition != CLEAN else None, "clean images"
        elif path.is_file():
            calibration = conformal.read_calibration(path, model_sha256, condition)
            origin = f"{condition} images of {config.run_dir.name}"
        else:
            calibration = None
        if calibration and part["uncertainty"]:
            labels = predictions[condition].labels["network"]
            held = conformal.coverage(
                calibration, config.parameters, sample.true, labels, sample.views.groups()
            )
            names = part["scores"]["network"]["parameters"]
            part["uncertainty"]["carried"] = {
                "from": origin,
                "levels": calibration.levels,
                "coverage": {name: share for name, share in held.items() if name in names},
            }


# --- facts ----------------------------------------------------------------------------------------


def describe_run(config: Config, dataset: Dataset, split: str) -> dict[str, Any]:
    """Return what was trained on what, and how it was split."""
    samples, simulations = {}, {}
    simulation = dataset.column("simulation")
    for name in SPLITS:
        rows = dataset.rows(name)
        samples[name] = len(rows)
        simulations[name] = np.unique(simulation[rows]).tolist()
    training = dataset.rows("train")
    means = dataset.labels[training].mean(axis=0, dtype=np.float64)
    return {
        "name": config.run_dir.name,
        "architecture": config.model.architecture,
        "task": config.model.task,
        "parameters": list(config.parameters),
        "image_shape": [int(n) for n in dataset.image_shape],
        "source": config.scrape.source,
        "split": config.split.kind,
        "evaluated": split,
        "samples": samples,
        "simulations": simulations,
        "training_mean": dict(zip(config.parameters, means, strict=True)),
        "bright_level": bright_level(dataset, training),
    }


def bright_level(dataset: Dataset, rows: NDArray[np.int64]) -> float:
    """Return the grey level that one pixel in a hundred of a typical image exceeds.

    It is the median over `BRIGHTNESS_SAMPLE` images at most, and tells the brightness at which a
    photograph looks like them (`pair_image.prepare`).
    """
    images = dataset.images(rows[:: math.ceil(len(rows) / BRIGHTNESS_SAMPLE)])
    levels = np.percentile(images.mean(axis=-1), BRIGHT_PERCENTILE, axis=(1, 2))
    return float(np.median(levels))


def describe_data(other: Config, sample: Sample) -> dict[str, Any]:
    """Return what else than the run's own data is evaluated."""
    return {
        "name": other.run_dir.name,
        "folder": str(other.run_dir),
        "source": other.scrape.source,
        "split": other.split.kind,
        "samples": len(sample.dataset),
    }


def describe_views(sample: Sample, trained: Views) -> dict[str, Any]:
    """Return how many images are evaluated, of what, and how near to the training's they are."""
    views = sample.views
    distance = nearest_training_view(views, trained)
    known = distance[~np.isnan(distance)]
    encounters = set(zip(trained.simulation, trained.configuration, strict=True))
    seen = [e in encounters for e in zip(views.simulation, views.configuration, strict=True)]
    return {
        "images": len(sample.rows),
        "groups": len(np.unique(views.groups())),
        "simulations": np.unique(views.simulation).tolist(),
        "inclinations_deg": np.unique(views.inclination_deg),
        "times_myr": np.unique(views.time_myr),
        "trained_encounters": float(np.mean(seen)),
        "never_trained_configurations": sorted(
            set(views.configuration) - set(trained.configuration)
        ),
        "nearest_training_view_deg": {
            "min": known.min(),
            "median": np.median(known),
            "max": known.max(),
        }
        if len(known)
        else None,
    }


def describe_training(config: Config, history: dict[str, Floats]) -> dict[str, Any]:
    """Return how long was trained, from the last row of metrics.csv."""
    last = {name: values[-1] for name, values in history.items()}
    return {
        "epochs": int(last["epoch"]),
        "steps": int(last["step"]),
        "seconds": last["seconds"],
        "images_per_s": last["images_per_s"],
        "training_mae": last["training_mae"],
        "training_mse": last["training_mse"],
        "sky_like": trained_sky_like(config),
        "changes": describe(config.training.augment),
    }


def describe_origin(config: Config, dataset: Dataset, model_sha256: str) -> dict[str, Any]:
    """Return what repeats the evaluation: hashes, versions, machine and date."""
    return {
        "configuration": digest(config.inputs("evaluate")),
        "dataset": dataset.fingerprint,
        "model": model_sha256,
        "versions": versions(),
        "machine": machine(),
        "date": dt.datetime.now(dt.timezone.utc).isoformat(timespec="seconds"),
    }


def versions() -> dict[str, str]:
    """Return the versions of Python, of this package and of those it stands on."""
    found = {"python": platform.python_version(), "galmerhpc": __version__}
    installed = {
        d.name.lower().replace("_", "-"): d.version for d in importlib.metadata.distributions()
    }
    return found | {name: installed[name] for name in PACKAGES if name in installed}


def machine() -> dict[str, Any]:
    """Return what this job runs on: processor, its CPUs and the number of ranks."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.processor() or platform.machine(),
        "cpus": parallel.cpu_count(),
        "ranks": parallel.size(),
    }


def predictions_csv(
    parameters: Sequence[str],
    sample: Sample,
    trained: Views,
    predictions: dict[str, Predictions],
) -> str:
    """Return predictions.csv: a row an image, angles in degrees, float32's full precision."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    views, distance = sample.views, nearest_training_view(sample.views, trained)
    columns: dict[str, Any] = {
        "view": views.id,
        "split": [sample.split] * len(sample.rows),
        **{name: getattr(views, name) for name in Views._fields[1:-3]},
        "nearest_training_view_deg": distance,
    }
    for k, name in enumerate(parameters):
        columns[f"true_{name}"] = sample.true[:, k]
        for condition, predicted in predictions.items():
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
