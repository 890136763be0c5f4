"""Evaluation of the finished network beside two baselines, on images that training never saw.

Runs on rank 0 and writes ``evaluation/``: metrics.json, predictions.csv and the figures.
"""

import csv
import datetime as dt
import importlib.metadata
import io
import logging
import platform
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import parse_qs

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from galmerhpc import __version__, files, parallel
from galmerhpc.config import Config, digest
from galmerhpc.dataset.preprocess import stage_inputs
from galmerhpc.dataset.shards import Dataset
from galmerhpc.dataset.split import SPLITS
from galmerhpc.errors import GalmerhpcError, InputError
from galmerhpc.evaluation import figures
from galmerhpc.evaluation.baselines import LookUp, mean_prediction, thumbnails
from galmerhpc.evaluation.scores import class_scores, score, sky_weights
from galmerhpc.metrics import to_json
from galmerhpc.models.build import load
from galmerhpc.models.targets import labels_of, prediction_width
from galmerhpc.parameters import INCLINATION, SPIN, encode_classes, named

if TYPE_CHECKING:
    import keras

log = logging.getLogger(__name__)

FIGURES = ("learning_curve", "predicted_against_true", "error_against_theta", "montage")
REPORT = "report.html"

PACKAGES = ("tensorflow", "tensorflow-cpu", "keras", "horovod", "numpy", "scipy", "h5py", "mpi4py")
"""Packages whose versions are written down, where they are installed."""

WHAT_IS_NEW = {
    "simulation": "realisations of their own, which training never saw",
    "blocked": "tiles of views that training never saw",
    "inclination": "an inclination that training never saw",
    "random": "views drawn at random, whose near neighbours were trained on",
}
"""What sets the evaluated images apart from the training images, by kind of split."""

SHORT_TRAINING = 400_000
"""Images seen; up to here the error of networks on our images fell as a power of that number."""

COLLISIONLESS = "our collisionless N-body, not GalMer; its gas is a collisionless disc"
"""What the mirror's images show; said wherever they appear."""


class Views(NamedTuple):
    """The evaluated images' views, in the order of predictions.csv's columns; each (N,)."""

    id: NDArray[np.object_]
    """`catalogue.View.id`, str."""
    copy: NDArray[np.int64]
    """0 for the picture itself, 1, 2 ... for augmented copies, which split random evaluates too."""
    simulation: NDArray[np.int64]
    """Realisation."""
    snapshot_id: NDArray[np.int64]
    time_myr: NDArray[np.float64]
    """Time since pericentre."""
    theta_deg: NDArray[np.float64]
    """Viewing angle, also where the network does not estimate it."""
    phi_deg: NDArray[np.float64]


def evaluate(config: Config) -> None:
    """Evaluate ``model.keras`` on the run's test split; called by rank 0.

    Writes ``evaluation/`` into the run folder, or returns at once where this very model has been
    evaluated. Where there is no test split, as in the paper's regression, the validation split
    serves, and every output says so.

    Parameters
    ----------
    config : Config
        The run.

    Raises
    ------
    InputError
        There is no model, no metrics.csv or no image to evaluate, or the files are damaged or do
        not fit each other.
    GalmerhpcError
        The network predicts something that is no number.
    """
    folder, model_path = config.run_dir / "evaluation", config.run_dir / "model.keras"
    record = files.StageRecord(folder, config.inputs("evaluate"))
    if not model_path.is_file():
        raise InputError(f"{model_path}: no such file; run galmerhpc train first")
    model_sha256 = files.sha256(model_path)
    if intact(record, folder):
        evaluated = files.read_json(folder / "metrics.json")["repeat"]["model"]
        if evaluated == model_sha256:
            log.info("evaluate: complete, nothing to do")
            return
    # These refuse shards and weights of another configuration.
    files.StageRecord(config.run_dir / "shards", stage_inputs(config))
    files.StageRecord(config.run_dir / "checkpoints", config.inputs("train"))
    dataset = Dataset.open(config.run_dir / "shards")
    history = read_history(config.run_dir / "metrics.csv", dataset.parameters)
    network = load_network(model_path, dataset, prediction_width(config))
    split, rows = evaluated_rows(dataset)
    views = read_views(dataset, rows)
    true = dataset.labels[rows].astype(np.float64)
    outputs, predictions = predict(config, dataset, network, rows)
    inclinations = label(dataset, INCLINATION.name)
    weights = sky_weights(views.theta_deg, inclinations[rows])
    scores = {
        name: score(dataset.parameters, true, predicted, weights, np.unique(inclinations))
        for name, predicted in predictions.items()
    }
    if config.model.task == "classification":
        width = config.model.class_width_deg
        for name, chosen in class_choices(outputs, predictions, config.parameters, width).items():
            scores[name]["classes"] = class_scores(config.parameters, true, chosen, width)
    metrics = to_json(
        {
            "run": describe_run(config, dataset, split),
            "training": describe_training(history),
            "scores": scores,
            "repeat": {
                "configuration": digest(config.inputs("evaluate")),
                "dataset": dataset.fingerprint,
                "model": model_sha256,
                "versions": versions(),
                "machine": machine(),
                "date": dt.datetime.now(dt.timezone.utc).isoformat(timespec="seconds"),
            },
        }
    )
    record.begin()
    files.remove_temporaries(folder)
    (folder / REPORT).unlink(missing_ok=True)  # it would show another model's figures
    files.write_text(
        folder / "predictions.csv",
        predictions_csv(dataset.parameters, split, views, true, predictions["network"]),
    )
    draw(config, dataset, rows, true, predictions, views, history, metrics)
    files.write_json(folder / "metrics.json", metrics)
    record.finish({name: files.sha256(folder / name) for name in made_files()})
    scores = metrics["scores"]
    log.info(
        "evaluate: average MAE on %s: network %.3g, look-up %.3g, mean predictor %.3g",
        describe_sample(metrics), *(scores[k]["average"]["mae"] for k in figures.PREDICTORS),
    )  # fmt: skip


def made_files() -> list[str]:
    """Return the names of all files of an evaluation, without the report."""
    return [
        "metrics.json",
        "predictions.csv",
        *(f"{name}{suffix}" for name in FIGURES for suffix in figures.SUFFIXES),
    ]


def intact(record: files.StageRecord, folder: Path) -> bool:
    """Tell whether an evaluation is complete and its files are as they were written."""
    return record.complete and all(
        files.sha256(folder / name) == sha256 for name, sha256 in record.files.items()
    )


# --- what is read ---------------------------------------------------------------------------------


def read_history(path: Path, parameters: Sequence[str]) -> dict[str, NDArray[np.float64]]:
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


def evaluated_rows(dataset: Dataset) -> tuple[str, NDArray[np.int64]]:
    """Return the name and rows of the test split, or of the validation split where that is empty.

    Raises
    ------
    InputError
        Both are empty, or nothing was trained on.
    """
    if not len(dataset.rows("train")):
        raise InputError("the data set has no training image: give the split another fraction")
    for split in ("test", "validation"):
        if len(rows := dataset.rows(split)):
            return split, rows
    raise InputError("the data set has neither test nor validation images: set split.test_fraction")


def read_views(dataset: Dataset, rows: NDArray[np.int64]) -> Views:
    """Read what is known of the views of rows; the line of sight stands in a view's id."""
    ids = dataset.view[rows]
    sights = [parse_qs(view) for view in ids]
    return Views(
        ids,
        *(dataset.column(name)[rows] for name in Views._fields[1:-2]),
        *(np.array([float(sight[angle][0]) for sight in sights]) for angle in ("theta", "phi")),
    )


def label(dataset: Dataset, name: str) -> NDArray[np.float64]:
    """Return one label of all samples; not a number where the data set does not have it."""
    if name not in dataset.parameters:
        return np.full(len(dataset), np.nan)
    return dataset.labels[:, dataset.parameters.index(name)].astype(np.float64)


# --- predictions ----------------------------------------------------------------------------------


def predict(
    config: Config, dataset: Dataset, network: "keras.Model", rows: NDArray[np.int64]
) -> tuple[NDArray[np.float64], dict[str, NDArray[np.float64]]]:
    """Predict the labels of rows with the network and with the baselines.

    Returns
    -------
    outputs : ndarray, shape (len(rows), P) or (len(rows), classes), float64
        What the network gives.
    predictions : dict of ndarray, shape (len(rows), P), float64
        Labels by name of `figures.PREDICTORS`.

    Raises
    ------
    GalmerhpcError
        The network predicts something that is no number.
    """
    settings = config.evaluation.lookup

    def over(
        what: str, rows: NDArray[np.int64], function: Callable[[NDArray[np.uint8]], Any]
    ) -> Any:
        """Apply a function to the images of rows, a batch at a time."""
        size, results = config.training.evaluation_batch, []
        with tqdm(total=len(rows), desc=what, unit=" images", disable=None) as progress:
            for _, images in dataset.in_order(rows):
                results += [function(images[k : k + size]) for k in range(0, len(images), size)]
                progress.update(len(images))
        return np.concatenate(results)

    def thumbs(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        return thumbnails(images, settings.thumbnail_px)

    training = dataset.rows("train")
    outputs = over("network", rows, network.predict_on_batch).astype(np.float64)
    if bad := int((~np.isfinite(outputs)).any(axis=1).sum()):
        raise GalmerhpcError(
            f"model.keras predicts no number for {bad} of {len(rows)} images; "
            "train again with a lower training.learning_rate"
        )
    lookup = LookUp(
        over("look-up, training images", training, thumbs),
        dataset.labels[training],
        dataset.parameters,
        settings,
    )
    return outputs, {
        "network": labels_of(config, outputs).astype(np.float64),
        "lookup": lookup.predict(over("look-up", rows, thumbs)),
        "mean": mean_prediction(dataset.labels[training], len(rows)),
    }


def class_choices(
    outputs: NDArray[np.float64],
    predictions: dict[str, NDArray[np.float64]],
    names: Sequence[str],
    width_deg: float,
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


# --- facts ----------------------------------------------------------------------------------------


def describe_run(config: Config, dataset: Dataset, split: str) -> dict[str, Any]:
    """Return what was trained on what, and how it was split."""
    samples, simulations = {}, {}
    simulation = dataset.column("simulation")
    for name in SPLITS:
        rows = dataset.rows(name)
        samples[name] = len(rows)
        simulations[name] = np.unique(simulation[rows]).tolist()
    return {
        "name": config.run_dir.name,
        "architecture": config.model.architecture,
        "parameters": list(dataset.parameters),
        "image_shape": [int(n) for n in dataset.image_shape],
        "source": config.scrape.source,
        "split": config.split.kind,
        "evaluated": split,
        "samples": samples,
        "simulations": simulations,
    }


def describe_training(history: dict[str, NDArray[np.float64]]) -> dict[str, float]:
    """Return how long was trained, from the last row of metrics.csv."""
    last = {name: values[-1] for name, values in history.items()}
    return {
        "epochs": int(last["epoch"]),
        "steps": int(last["step"]),
        "seconds": last["seconds"],
        "images_per_s": last["images_per_s"],
        "training_mae": last["training_mae"],
        "training_mse": last["training_mse"],
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


# --- what is written ------------------------------------------------------------------------------


def predictions_csv(
    parameters: Sequence[str],
    split: str,
    views: Views,
    true: NDArray[np.float64],
    predicted: NDArray[np.float64],
) -> str:
    """Return predictions.csv: a row an image, angles in degrees, float32's full precision."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    pairs = [f"{kind}_{name}" for name in parameters for kind in ("true", "predicted")]
    writer.writerow(["view", "split", *Views._fields[1:], *pairs])
    values = np.stack([true, predicted], axis=-1).reshape(len(true), -1)  # (N, 2 P)
    for (name, *view), row in zip(zip(*views, strict=True), values, strict=True):
        cells = (f"{x:.9g}" if isinstance(x, float) else x for x in (*view, *row))
        writer.writerow([name, split, *cells])
    return text.getvalue()


def draw(
    config: Config,
    dataset: Dataset,
    rows: NDArray[np.int64],
    true: NDArray[np.float64],
    predictions: dict[str, NDArray[np.float64]],
    views: Views,
    history: dict[str, NDArray[np.float64]],
    metrics: dict[str, Any],
) -> None:
    """Draw the figures."""
    folder, names, network = (
        config.run_dir / "evaluation",
        dataset.parameters,
        predictions["network"],
    )
    sample = describe_sample(metrics)
    source = f"\nImages: {COLLISIONLESS}." if config.scrape.source == "mirror" else ""
    figures.learning_curve(history, names, folder / "learning_curve", f"Evaluated on {sample}.")
    figures.predicted_against_true(
        names, true, network, folder / "predicted_against_true", f"{sample}.{source}"
    )
    errors = {name: np.abs(predicted - true) for name, predicted in predictions.items()}
    figures.error_against_theta(
        names, views.theta_deg, errors, folder / "error_against_theta", f"{sample}.{source}"
    )
    settings = config.evaluation
    # Evenly through the views sorted by encounter and viewing angle, so that all kinds appear.
    order = np.lexsort((views.phi_deg, views.theta_deg, views.snapshot_id))
    count = min(settings.montage_rows * settings.montage_columns, len(rows))
    shown = order[np.linspace(0, len(rows) - 1, count).round().astype(int)]
    figures.montage(
        dataset.images(rows[shown]),
        [figures.montage_text(names, values) for values in true[shown]],
        [figures.montage_text(names, values) for values in network[shown]],
        settings.montage_columns,
        folder / "montage",
        f"{figures.montage_key(names)}\n{count} of {sample}.{source}",
    )


def describe_sample(metrics: dict[str, Any]) -> str:
    """Say in one phrase which images were evaluated."""
    run = metrics["run"]
    evaluated = run["evaluated"]
    new = WHAT_IS_NEW[run["split"]]
    count = f"{run['samples'][evaluated]:,} {evaluated} images"
    if evaluated == "validation":
        return (
            f"{count} (split {run['split']}: {new}; there is no test split, so validation serves)"
        )
    return f"{count} (split {run['split']}: {new})"


def result_table(metrics: dict[str, Any]) -> str:
    """Return the results as text: the network, the look-up and the mean predictor, and a verdict.

    Parameters
    ----------
    metrics : dict
        Content of metrics.json.
    """
    names, scores = metrics["run"]["parameters"], metrics["scores"]
    lines = [describe_sample(metrics)]
    for metric, title in (("mae", "MAE"), ("r2", "R2")):
        with_accuracy = metric == "mae" and SPIN.name in names
        lines += ["", _row(title, [*names, "average", *(["spin right"] if with_accuracy else [])])]
        for predictor, (label, _) in figures.PREDICTORS.items():
            by_name = scores[predictor]["parameters"]
            values = [
                *(by_name[name][metric] for name in names),
                scores[predictor]["average"][metric],
            ]
            cells = [number(value, metric) for value in values]
            if with_accuracy:
                cells.append(f"{100 * by_name[SPIN.name]['accuracy']:.1f} %")
            lines.append(_row(label, cells, [*names, "average", "spin right"]))
    if "classes" in scores["network"]:
        heads = [*names, "all of them", "binary"]
        lines += ["", _row("class right", heads)]
        for predictor, (label, _) in figures.PREDICTORS.items():
            right = scores[predictor]["classes"]
            shares = [*right["accuracy"].values(), right["all_accuracy"], right["binary_accuracy"]]
            lines.append(_row(label, [f"{100 * share:.2f} %" for share in shares], heads))
        trivial = scores["network"]["classes"]["trivial_binary_accuracy"]
        lines.append(
            f"Binary: every class by itself, as Keras counts; always no is {100 * trivial:.2f} %."
        )
    unit = "MAE in degrees, spin as 0 or 1; the average is the plain mean over parameters."
    return "\n".join([*lines, "", unit, *textwrap.wrap(verdict(metrics), 88)])


def _row(label: str, cells: Sequence[str], heads: Sequence[str] | None = None) -> str:
    widths = [max(len(head), 7) for head in heads or cells]
    return f"{label:14}" + "".join(f"  {c:>{w}}" for c, w in zip(cells, widths, strict=False))


def number(value: float | None, metric: str) -> str:
    """Write a figure of metrics.json for a table; a dash where it is not defined."""
    if value is None:
        return "-"
    if metric == "r2" or abs(value) < 1:
        return f"{round(value, 3) + 0.0:.3f}"  # 0.0: no negative zero
    return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"


def lost_to_lookup(metrics: dict[str, Any]) -> list[str]:
    """Return the names of the parameters whose MAE the look-up makes smaller than the network."""
    network, lookup = (metrics["scores"][k]["parameters"] for k in ("network", "lookup"))
    return [n for n in metrics["run"]["parameters"] if network[n]["mae"] > lookup[n]["mae"]]


def verdict(metrics: dict[str, Any]) -> str:
    """Say in one sentence whether the network beats the look-up, and why not where it does not."""
    names, lost = metrics["run"]["parameters"], lost_to_lookup(metrics)
    if not lost:
        return "The network beats the look-up on every parameter."
    lost_on = "every parameter" if lost == names else " and ".join(
        [", ".join(lost[:-1]), lost[-1]] if lost[:-1] else lost
    ).replace("_", " ")  # fmt: skip
    training, run = metrics["training"], metrics["run"]
    seen = f"{training['epochs']} epochs of {run['samples']['train']:,} images"
    real_skies = (
        "and real skies, with any roll, noise and other sources, leave the look-up no near-copy to "
        "find."
    )
    if training["epochs"] * run["samples"]["train"] >= SHORT_TRAINING:
        return (
            f"The look-up beats the network on {lost_on}, after {seen}: so far it has learned "
            "nothing there that is worth a GPU; more realisations, blur and noise in training are "
            f"what to try, {real_skies}"
        )
    return (
        f"The look-up beats the network on {lost_on}: clean images at a fixed roll leave every "
        f"view near-copies among the training images, which a look-up has only to find, while "
        f"{training['seconds'] / 60:.0f} minutes ({seen}) of {run['architecture']} end long before "
        f"its error does; full training goes on lowering that error, {real_skies}"
    )
