"""The parts of metrics.json besides the scores: run, data, and provenance of the evaluation."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from galmerhpc import parallel, provenance
from galmerhpc.config import Config, digest
from galmerhpc.dataset.shards import Dataset
from galmerhpc.dataset.split import SPLITS
from galmerhpc.evaluation.conditions import describe, trained_sky_like
from galmerhpc.evaluation.pair_image import BRIGHT_PERCENTILE
from galmerhpc.evaluation.sample import Sample, ViewColumns, knows_orbits, nearest_training_view
from galmerhpc.simulate.library import is_imported, library_path

BRIGHTNESS_SAMPLE = 256
"""Number of training images from which their brightness is measured."""


def run(config: Config, dataset: Dataset, trained: ViewColumns, split: str) -> dict[str, Any]:
    """Return the network, its training data and their split."""
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
        "source": source(config),
        "our_encounters": shows_our_encounters(config),
        "split": config.split.kind,
        "evaluated": split,
        "samples": samples,
        "simulations": simulations,
        "inclinations_deg": distinct(trained.inclination_deg),
        "training_mean": dict(zip(config.parameters, means, strict=True)),
        "bright_level": bright_level(dataset, training),
    }


def source(config: Config) -> str:
    """Return where the images of a run are from, for a reader."""
    if config.catalogue and config.catalogue.images:
        return f"the image table {config.catalogue.images.table}"
    if config.scrape.source != "mirror":
        return config.scrape.source
    return f"the mirror, library {config.library}"


def shows_our_encounters(config: Config) -> bool:
    """Return whether the images show what galmerhpc simulated, not others' particles or pictures.

    A library that is no longer there is taken for one of ours: few are imported.
    """
    if config.scrape.source != "mirror" or (config.catalogue and config.catalogue.images):
        return False
    library = library_path(config.library)
    return not (library.exists() and is_imported(library))


def distinct(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the distinct values that are known, in order."""
    return np.unique(values[~np.isnan(values)])


def bright_level(dataset: Dataset, rows: NDArray[np.int64]) -> float:
    """Return the grey level that one pixel in a hundred of a typical image exceeds.

    It is the median over at most `BRIGHTNESS_SAMPLE` images, to which photographs are scaled
    (`pair_image.prepare`).
    """
    images = dataset.images(rows[:: math.ceil(len(rows) / BRIGHTNESS_SAMPLE)])
    levels = np.percentile(images.mean(axis=-1), BRIGHT_PERCENTILE, axis=(1, 2))
    return float(np.median(levels))


def data(config: Config, other: Config, evaluated: Dataset, trained: Dataset) -> dict[str, Any]:
    """Return the data set that was given for evaluation; it may be the training's, by any name."""
    return {
        "name": other.run_dir.name,
        "folder": str(other.run_dir),
        "source": source(other),
        "our_encounters": shows_our_encounters(other),
        "split": other.split.kind,
        "samples": len(evaluated),
        "own": evaluated.fingerprint == trained.fingerprint,
        "drawn_otherwise": drawn_otherwise(config, other),
    }


def drawn_otherwise(config: Config, other: Config) -> list[str]:
    """Return the keys with which the service drew other images than those of training, in words.

    It did not draw those of a table of images.
    """
    if not (knows_orbits(config) and knows_orbits(other)):
        return []
    trained, evaluated = config.inputs("preprocess"), other.inputs("preprocess")
    return [
        f"{key} {evaluated[key]} (training: {value})"
        for key, value in trained.items()
        if key.startswith("catalogue.render.") and evaluated[key] != value
    ]


def views(sample: Sample, trained: ViewColumns) -> dict[str, Any]:
    """Return the evaluated images: how many, of what, and how near to the training views."""
    views = sample.views
    distance = nearest_training_view(views, trained)
    known = distance[~np.isnan(distance)]
    encounters = set(zip(trained.simulation, trained.configuration, strict=True))
    seen = [e in encounters for e in zip(views.simulation, views.configuration, strict=True)]
    return {
        "images": len(sample.rows),
        "groups": len(np.unique(views.groups())),
        "simulations": np.unique(views.simulation).tolist(),
        "inclinations_deg": distinct(views.inclination_deg),
        "times_myr": distinct(views.time_myr),
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


def training(config: Config, history: dict[str, NDArray[np.float64]]) -> dict[str, Any]:
    """Return the length of the training, from the last row of metrics.csv."""
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


def origin(config: Config) -> dict[str, Any]:
    """Return the provenance of the evaluation: configuration, versions, machine and date."""
    return {
        "configuration": digest(config.inputs("evaluate")),
        "versions": provenance.versions(),
        "machine": {
            "cpu": provenance.processor(),
            "cpus": parallel.cpu_count(),
            "ranks": parallel.size(),
        },
        "date": provenance.now(),
    }
