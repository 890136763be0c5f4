"""The images to evaluate: rows of training shards, their labels and their views."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from galmerhpc.catalogue import Places, Views
from galmerhpc.config import Config, Run, require_catalogue
from galmerhpc.dataset.records import stage_record
from galmerhpc.dataset.shards import Dataset
from galmerhpc.dataset.split import SPLITS, lines_of_sight
from galmerhpc.errors import InputError
from galmerhpc.parameters import INCLINATION, PROGRADE, SPIN, SPINS, named

ALL = "all"
"""Instead of a split: all samples of a data set."""


class ViewColumns(NamedTuple):
    """Properties of images' views, each (N,); most are columns of predictions.csv."""

    id: NDArray[np.object_]
    """`catalogue.View.id`, str."""
    copy: NDArray[np.int64]
    """0 for the original, 1, 2 ... for augmented copies, which split random evaluates too."""
    simulation: NDArray[np.int64]
    """Realisation."""
    snapshot_id: NDArray[np.int64]
    time_myr: NDArray[np.float64]
    """Time since pericentre, Myr; NaN if unknown."""
    theta_deg: NDArray[np.float64]
    """Viewing angle, even if the network does not estimate it."""
    phi_deg: NDArray[np.float64]
    inclination_deg: NDArray[np.float64]
    """NaN if unknown."""
    spin: NDArray[np.float64]
    """0 or 1; NaN if unknown."""
    configuration: NDArray[np.object_]
    """All properties of the encounter except the realisation, str."""

    def groups(self) -> NDArray[np.int64]:
        """Return group numbers: one per encounter (realisation x configuration), (N,) int64.

        Views of one encounter are not independent, since they show the same particles.
        """
        _, configuration = np.unique(self.configuration.astype(str), return_inverse=True)
        pairs = np.stack([self.simulation, configuration], axis=1)
        return np.unique(pairs, axis=0, return_inverse=True)[1].reshape(-1)


@dataclass(frozen=True)
class Sample:
    """The images to evaluate.

    Attributes
    ----------
    dataset : Dataset
        The data set that holds them.
    rows : ndarray, shape (N,), int64
        Their rows.
    split : str
        ``test``, ``validation`` or ``all``.
    true : ndarray, shape (N, P), float64
        Labels that the network estimates, in its order.
    views : ViewColumns
        Their views.
    """

    dataset: Dataset
    rows: NDArray[np.int64]
    split: str
    true: NDArray[np.float64]
    views: ViewColumns


def open_dataset(config: Config) -> Dataset:
    """Open a run's training shards.

    Raises
    ------
    InputError
        They are missing, unfinished, damaged or of another configuration.
    """
    stage_record(config, "preprocess")
    return Dataset.open(config.run_dir / "shards")


def read_sample(
    config: Config,
    dataset: Dataset,
    parameters: Sequence[str],
    split: str | None,
    with_orbits: bool = True,
) -> Sample:
    """Return the sample to evaluate; its images are read later.

    Parameters
    ----------
    config : Config
        The run that the data set belongs to.
    dataset : Dataset
        Its shards.
    parameters : sequence of str
        Labels that the network estimates.
    split : str, optional
        ``test``, ``validation`` or ``all``; by default ``test``, or ``validation`` if that is
        empty, as in the paper's regression.
    with_orbits : bool
        As in `read_views`.

    Raises
    ------
    InputError
        There are no such images, or the data set lacks a label.
    """
    if missing := [name for name in parameters if name not in dataset.parameters]:
        raise InputError(
            f"{dataset.folder}: has no label {missing[0]}, which the network estimates "
            f"(available: {', '.join(dataset.parameters)})"
        )
    split, rows = _rows(dataset, split)
    columns = [dataset.parameters.index(name) for name in parameters]
    true = dataset.labels[rows][:, columns].astype(np.float64)
    return Sample(dataset, rows, split, true, read_views(config, dataset, rows, with_orbits))


def _rows(dataset: Dataset, split: str | None) -> tuple[str, NDArray[np.int64]]:
    if split == ALL:
        return ALL, np.arange(len(dataset))
    for name in (split,) if split else ("test", "validation"):
        if len(rows := dataset.rows(name)):
            return name, rows
    there = ", ".join(name for name in SPLITS if len(dataset.rows(name)))
    raise InputError(
        f"{dataset.folder}: has no {split or 'test or validation'} images (only {there}); "
        "set split.test_fraction, or evaluate others with --split val or --split all"
    )


def knows_orbits(config: Config) -> bool:
    """Return whether a catalogue names pairs and orbits; a table of images does not."""
    return bool(config.catalogue and config.catalogue.runs)


def read_views(
    config: Config, dataset: Dataset, rows: NDArray[np.int64], with_orbits: bool = True
) -> ViewColumns:
    """Return the properties of the views of rows; the line of sight is part of a view's id.

    Configurations name pair and orbit where the catalogue does (`knows_orbits`), except if
    `with_orbits` is false: those of a table of images can then be compared with them.
    """
    ids = dataset.view[rows]
    simulation, snapshot_id = (dataset.column(k)[rows] for k in ("simulation", "snapshot_id"))
    inclination, spin, configuration = _encounters(config, dataset, rows, with_orbits)
    return ViewColumns(
        ids,
        dataset.column("copy")[rows],
        simulation,
        snapshot_id,
        dataset.column("time_myr")[rows],
        _angle(ids, "theta"),
        _angle(ids, "phi"),
        inclination,
        spin,
        configuration,
    )


def _angle(ids: NDArray[np.object_], name: str) -> NDArray[np.float64]:
    return np.array([float(text.partition(f"&{name}=")[2].partition("&")[0]) for text in ids])


def _encounters(
    config: Config, dataset: Dataset, rows: NDArray[np.int64], with_orbits: bool
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.object_]]:
    """Return inclination, spin and configuration of rows.

    They are looked up in the catalogue by snapshot; in a table of images, whose snapshots may have
    no numbers, by view.
    """
    if config.catalogue and config.catalogue.runs:
        snapshot_id = dataset.column("snapshot_id")[rows]
        runs = config.catalogue.runs
        ids = [run.snapshot_ids() for run in runs]
        known = np.concatenate(ids)
        order = np.argsort(known)
        owner = np.repeat(np.arange(len(runs)), [len(i) for i in ids])[order]
        number = owner[np.searchsorted(known[order], snapshot_id)]
        return (
            np.array([run.inclination_deg for run in runs])[number],
            np.array([SPINS[run.spin] for run in runs])[number],
            np.array([_describe_run(run, with_orbits) for run in runs], object)[number],
        )
    labels = _labels_in_table(config, dataset.view[rows])
    table = np.stack(list(labels.values()), axis=1)
    kinds, number = np.unique(table, axis=0, return_inverse=True)
    texts = [_describe_labels(dict(zip(labels, kind, strict=True))) for kind in kinds.tolist()]
    return (
        labels[INCLINATION.name],
        labels[SPIN.name],
        np.array(texts, object)[number.reshape(-1)],
    )


def _labels_in_table(config: Config, ids: NDArray[np.object_]) -> dict[str, NDArray[np.float64]]:
    """Return what a table of images says of the encounters that views show, each (N,).

    The shards have only the labels that the network estimates.
    """
    catalogue = require_catalogue(config)
    views = Views(catalogue)
    places = Places(views.ids(), len(views)).of(ids, len(ids))
    names = (SPIN.name, INCLINATION.name, *catalogue.label_names)
    return {name: views.column(name)[places] for name in names}


def _describe_run(run: Run, with_orbit: bool) -> str:
    labels = {SPIN.name: SPINS[run.spin], INCLINATION.name: run.inclination_deg, **run.labels}
    text = _describe_labels(labels)
    return f"{run.pair}, orbit {run.orbit}, {text}" if with_orbit else text


def _describe_labels(labels: dict[str, float]) -> str:
    texts = [
        f"{named(name).symbol} = {value:g}" for name, value in labels.items() if name != SPIN.name
    ]
    return ", ".join(["prograde" if labels[SPIN.name] == PROGRADE else "retrograde", *texts])


def nearest_training_view(views: ViewColumns, training: ViewColumns) -> NDArray[np.float64]:
    """Return the distance of each view to the nearest training view, degrees on the sphere.

    Only views of the same configuration count, in any realisation: other configurations look
    different anyway.

    Parameters
    ----------
    views, training : ViewColumns
        The evaluated views, and the training views.

    Returns
    -------
    ndarray, shape (N,)
        NaN if the configuration was never trained on.
    """
    distance = np.full(len(views.id), np.nan)
    for configuration in set(views.configuration):
        here = views.configuration == configuration
        there = training.configuration == configuration
        if there.any():
            sights = lines_of_sight(training.theta_deg[there], training.phi_deg[there])
            chord, _ = cKDTree(np.unique(sights, axis=0)).query(
                lines_of_sight(views.theta_deg[here], views.phi_deg[here])
            )
            distance[here] = np.degrees(2 * np.arcsin(np.minimum(chord / 2, 1.0)))
    return distance
