"""The figures of an evaluation: their data and captions."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from galmerhpc.config import Config
from galmerhpc.evaluation import figures
from galmerhpc.evaluation.conditions import CLEAN, SKY, Change, draws, surviving
from galmerhpc.evaluation.explain import grad_cam
from galmerhpc.evaluation.sample import Sample
from galmerhpc.evaluation.summary import COLLISIONLESS, PREDICTORS, conditions, describe_sample
from galmerhpc.parameters import INCLINATION, PROGRADE, RETROGRADE, SPIN, named

if TYPE_CHECKING:
    import keras

CAPTIONS = {
    "montage": "Images with true values (white, top left) and the network's predictions (yellow, "
    "bottom right), as in the paper's figure 4; spin as P or R, angles in degrees.",
    "montage_sky": "The same for sky-like images.",
    "predicted_against_true": "The network's predictions against the true values. Darker: more "
    "images; repeated true values are spread slightly sideways. Black: median and central 68 %.",
    "predicted_against_true_sky": "The same for sky-like images.",
    "error_against_theta": "Mean absolute error against the viewing angle, for the network and the "
    "baselines, on clean and sky-like images. θ = 0 is face-on to the orbit, θ = 90 edge-on.",
    "error_against_inclination": "Mean absolute error against the true inclination.",
    "error_against_phi": "Mean absolute error against the azimuth.",
    "error_against_time": "Mean absolute error against the time since pericentre.",
    "confusion": "Confusion matrix: share of predicted classes for each true class. For a "
    "regression, the nearest value counts.",
    "confusion_sky": "The same for sky-like images.",
    "coverage": "Measured against nominal coverage of the intervals, calibrated on one half of the "
    "encounters and measured on the other; bars: scatter over the halvings. Spin: share of "
    "retrograde encounters against their predicted probability.",
    "grad_cam": "Where the network looks (Grad-CAM), for one view of each configuration and each "
    "parameter: bright areas influence the estimate most.",
    "montage_prograde": "Prograde encounters, azimuth to the right and viewing angle downwards, as "
    "in the paper's figure 8.",
    "montage_retrograde": "Retrograde encounters, as in the paper's figure 9.",
    "learning_curve": "Training and validation against epoch, as in the paper's figures 3 "
    "(classification) and 5 (regression).",
    "geometry": "Definition of the parameters, as in the paper's figure 1.",
}
"""All possible figures, in the order of the report."""

PAPER_INCLINATION = 75.0
"""Inclination of the paper's figures 8 and 9, degrees."""

_MOST_SHOWN = 16
"""Configurations shown in the Grad-CAM figure."""

Floats = NDArray[np.float64]


def draw(
    folder: Path,
    config: Config,
    sample: Sample,
    network: "keras.Model",
    labels: dict[str, dict[str, Floats]],
    history: dict[str, Floats],
    metrics: dict[str, Any],
    changes: dict[str, Change],
) -> list[str]:
    """Draw all figures that an evaluation has data for.

    Parameters
    ----------
    folder : Path
        Folder to write to.
    config, sample, network, history
        The run, the evaluated images, the exported network, and the columns of metrics.csv.
    labels : dict of dict of ndarray, shape (N, P)
        Predicted labels by condition and predictor.
    metrics : dict
        Content of metrics.json.
    changes : dict of Change
        Changes to images, by condition.

    Returns
    -------
    list of str
        Names of the files written.
    """
    note = f"{describe_sample(metrics)}."
    if (metrics["data"] or metrics["run"])["our_encounters"]:
        note += f"\nImages: {COLLISIONLESS}."
    drawn: list[str] = []

    def path(name: str) -> Path:
        drawn.append(name)
        return folder / name

    figures.geometry(path("geometry"))
    figures.learning_curve(
        history, config.parameters, path("learning_curve"), f"Evaluated on {note}"
    )
    for condition, found in conditions(metrics).items():
        suffix = "" if condition == CLEAN else f"_{condition}"
        own = note if condition == CLEAN else f"{note}\nMade sky-like: {found['changes']}."
        names = surviving(config.parameters, config.evaluation.sky if condition == SKY else None)
        kept = [config.parameters.index(name) for name in names]
        true = sample.true[:, kept]
        predicted = {k: labels[condition][k][:, kept] for k in PREDICTORS}
        figures.predicted_against_true(
            names, true, predicted["network"], path(f"predicted_against_true{suffix}"), own
        )
        matrices, ticks = confusion_counts(
            config, sample, metrics, condition, names, predicted["network"]
        )
        if matrices:
            figures.confusion(matrices, ticks, path(f"confusion{suffix}"), own)
        _montage(config, sample, names, true, predicted["network"], changes[condition],
                 path(f"montage{suffix}"), own)  # fmt: skip
    absolute = {
        condition: _errors(config, sample, labels[condition], condition) for condition in labels
    }
    shown = {k: absolute[SKY][k] for k in ("network", "lookup")} if SKY in absolute else {}
    sky = metrics["sky"]
    both = f"{note}\nSky-like: {sky['changes']}." if sky else note
    for axis, (xlabel, values) in _axes(sample).items():
        figures.error_against(
            xlabel, values, config.parameters, absolute[CLEAN], shown,
            path(f"error_against_{axis}"), both,
        )  # fmt: skip
    covered = {
        f"{condition if condition == CLEAN else 'sky-like'} images": part["uncertainty"]["halvings"]
        for condition, part in conditions(metrics).items()
        if part["uncertainty"]
    }
    if covered:
        figures.coverage(covered, len(config.evaluation.levels), path("coverage"), note)
    for spin, name in ((PROGRADE, "montage_prograde"), (RETROGRADE, "montage_retrograde")):
        if len(rows := _grid(config, sample, spin)):
            _paper_montage(config, sample, labels[CLEAN]["network"], rows, path(name), note)
    chosen = _one_of_each(sample)
    images = sample.dataset.images(sample.rows[chosen])
    maps = grad_cam(config, network, images)
    if maps.any():
        titles = [sample.views.configuration[k].replace(", ", "\n") for k in chosen]
        figures.grad_cam(
            images, maps, titles, config.parameters, path("grad_cam"),
            f"The views nearest to θ = 45, φ = 90 of {note}",
        )  # fmt: skip
    return file_names(drawn)


def file_names(names: Iterable[str]) -> list[str]:
    """Return the names of figures' files."""
    return [f"{name}{suffix}" for name in names for suffix in figures.SUFFIXES]


def _errors(
    config: Config, sample: Sample, labels: dict[str, Floats], condition: str
) -> dict[str, dict[str, Floats]]:
    """Return absolute errors, (N,), by predictor and parameter."""
    kept = surviving(config.parameters, config.evaluation.sky if condition == SKY else None)
    columns = [config.parameters.index(name) for name in kept]
    true = sample.true[:, columns]
    return {
        predictor: dict(zip(kept, np.abs(labels[predictor][:, columns] - true).T, strict=True))
        for predictor in PREDICTORS
    }


def _axes(sample: Sample) -> dict[str, tuple[str, Floats]]:
    """Return the axes that errors are drawn against: label and values, for values that vary."""
    views = sample.views
    axes = {
        "theta": ("true viewing angle θ (deg)", views.theta_deg),
        "inclination": ("true inclination i (deg)", views.inclination_deg),
        "phi": ("true azimuth φ (deg)", views.phi_deg),
        "time": ("time since pericentre (Myr)", views.time_myr),
    }
    return {
        name: axis
        for name, axis in axes.items()
        if not np.isnan(axis[1]).any() and axis[1].min() < axis[1].max()
    }


def confusion_counts(
    config: Config,
    sample: Sample,
    metrics: dict[str, Any],
    condition: str,
    names: list[str],
    predicted: Floats,
) -> tuple[dict[str, NDArray[np.int64]], dict[str, list[str]]]:
    """Return confusion matrices and names of classes, for the parameters that have classes.

    Those of a regression are the values that were trained or evaluated.
    """
    if config.model.task == "classification":
        counts = conditions(metrics)[condition]["scores"]["network"]["classes"]["confusion"]
        width = config.model.class_width_deg
        ticks = {
            name: ["P", "R"]
            if name == SPIN.name
            else [f"{v:g}" for v in named(name).values]
            or [f"{named(name).low + width * k:g}" for k in range(len(counts[name]))]
            for name in names
        }
        return {name: np.array(matrix) for name, matrix in counts.items()}, ticks
    counts, ticks = {}, {}
    inclinations = np.union1d(*(metrics[part]["inclinations_deg"] for part in ("run", "sample")))
    for name in names:
        if name not in (SPIN.name, INCLINATION.name):
            continue
        k = names.index(name)
        column = sample.true[:, config.parameters.index(name)]
        values = np.array(SPIN.values if name == SPIN.name else inclinations)
        true, chosen = (
            np.abs(of[:, None] - values).argmin(axis=1) for of in (column, predicted[:, k])
        )
        pairs = np.bincount(true * len(values) + chosen, minlength=len(values) ** 2)
        counts[name] = pairs.reshape(len(values), len(values))
        ticks[name] = [("P", "R")[int(v)] if name == SPIN.name else f"{v:g}" for v in values]
    return counts, ticks


def _montage(
    config: Config,
    sample: Sample,
    names: Sequence[str],
    true: Floats,
    predicted: Floats,
    change: Change,
    path: Path,
    note: str,
) -> None:
    """Draw a montage of all kinds of views, with the labels that they keep under a change."""
    settings, views = config.evaluation, sample.views
    # Evenly spaced in order of encounter and viewing angle, so that all kinds appear.
    order = np.lexsort((views.phi_deg, views.theta_deg, views.snapshot_id))
    count = min(settings.montage_rows * settings.montage_columns, len(order))
    shown = order[np.linspace(0, len(order) - 1, count).round().astype(int)]
    figures.montage(
        change(sample.dataset.images(sample.rows[shown]), draws(views)[shown]),
        [figures.montage_text(names, values) for values in true[shown]],
        [figures.montage_text(names, values) for values in predicted[shown]],
        settings.montage_columns,
        path,
        f"{figures.montage_key(names)}\n{count} of {note}",
    )


def _paper_montage(
    config: Config,
    sample: Sample,
    predicted: Floats,
    rows: NDArray[np.int64],
    path: Path,
    note: str,
) -> None:
    """Draw a montage over a grid of directions, as the paper's figures 8 and 9."""
    names = config.parameters
    figures.montage(
        sample.dataset.images(sample.rows[rows]),
        [figures.montage_text(names, values) for values in sample.true[rows]],
        [figures.montage_text(names, values) for values in predicted[rows]],
        config.evaluation.montage_columns,
        path,
        f"{figures.montage_key(names)}\n{sample.views.configuration[rows[0]]}; of {note}",
        ("azimuth φ", "viewing angle θ"),
    )


def _grid(config: Config, sample: Sample, spin: float) -> NDArray[np.int64]:
    """Return the indices of the views nearest to a grid of directions, row by row.

    They are of one encounter with this spin, at the inclination nearest to the paper's; empty if
    there is none.
    """
    views, settings = sample.views, config.evaluation
    there = np.flatnonzero((views.spin == spin) & ~np.isnan(views.inclination_deg))
    if not len(there):
        return there
    off = np.abs(views.inclination_deg[there] - PAPER_INCLINATION)
    there = there[off == off.min()]
    first = np.lexsort((views.time_myr[there], views.simulation[there]))[0]
    one = views.snapshot_id[there] == views.snapshot_id[there[first]]
    one &= views.simulation[there] == views.simulation[there[first]]
    there = there[one]
    theta, phi = views.theta_deg[there], views.phi_deg[there]
    return np.array(
        [
            there[np.hypot(theta - t, phi - p).argmin()]
            for t in np.linspace(theta.min(), theta.max(), settings.montage_rows)
            for p in np.linspace(phi.min(), phi.max(), settings.montage_columns)
        ]
    )


def _one_of_each(sample: Sample) -> NDArray[np.int64]:
    """Return the index of one view per configuration, with a line of sight in mid-range."""
    views = sample.views
    off = np.hypot(views.theta_deg - 45.0, views.phi_deg - 90.0)
    order = np.lexsort((off, views.configuration.astype(str)))
    _, first = np.unique(views.configuration[order].astype(str), return_index=True)
    chosen = order[first]
    return chosen[np.lexsort((views.inclination_deg[chosen], views.spin[chosen]))][:_MOST_SHOWN]
