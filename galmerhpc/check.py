"""Verify a run folder: every shard, checkpoint and record; set aside what is bad.

What is set aside is renamed to ``*.bad`` and its stage's record is opened again, so that the next
run makes only that again. Training shards outlive the raw shards that they were made from: should a
view that is fetched again come with other bytes, the next check finds the shards of the old ones.
"""

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import h5py

from galmerhpc import files, hdf5, parallel
from galmerhpc.catalogue import View, Views, ViewsById
from galmerhpc.config import Config, Stage, require_catalogue
from galmerhpc.dataset import shards
from galmerhpc.dataset.missing import list_path
from galmerhpc.dataset.pictures import PictureError, decode
from galmerhpc.dataset.preprocess import (
    Plan,
    columns_of,
    lay_out,
    sources_of,
)
from galmerhpc.dataset.raw import RawShard, open_store
from galmerhpc.dataset.records import (
    FOLDERS,
    LEFT_OUT,
    RECORD,
    missing_views,
    read_record,
    stage_record,
)
from galmerhpc.dataset.split import SPLITS, TRAIN
from galmerhpc.errors import InputError, brief
from galmerhpc.training import checkpoint

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, order=True, slots=True)
class Fault:
    """A file that is not as it was written, or not as it should be.

    Attributes
    ----------
    path : Path
        The file, or a checkpoint's folder.
    why : str
        What is wrong with it.
    repairable : bool
        Making it again helps.
    """

    path: Path
    why: str
    repairable: bool = True


@dataclass(slots=True)
class Report:
    """What a check has found.

    Attributes
    ----------
    verified : int
        Files that were looked at.
    faults : list of Fault
        What is bad.
    notes : list of str
        What is unfinished, which is nothing bad.
    """

    verified: int = 0
    faults: list[Fault] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(slots=True)
class _Inventory:
    """The files of a run, and what its records say about them."""

    raw: list[Path] = field(default_factory=list)
    training: list[Path] = field(default_factory=list)
    others: list[Path] = field(default_factory=list)
    checkpoints: list[Path] = field(default_factory=list)
    sha256: dict[Path, str] = field(default_factory=dict)


def check(config: Config) -> Report:
    """Verify all files of a run. Collective; all ranks return the same.

    Raw shards: checksums, that every image decodes, and labels against the catalogue. Training
    shards: checksums, every column against catalogue, split and raw shards, and that no group is
    both trained on and held out. ``dataset.h5``: that its sources are these shards. Every other
    file that a stage's record or a checkpoint's manifest lists: its SHA-256.

    Parameters
    ----------
    config : Config
        The run.
    """
    report, there = parallel.from_rank_0(lambda: _take_stock(config))
    try:
        catalogue = ViewsById(Views(require_catalogue(config)))
    except InputError as error:  # a table of images that was moved or changed
        catalogue = None
        report.notes.append(f"{error}; until it is back, shards are only compared with checksums")
    for found in _each("raw", there.raw, lambda path: _check_raw(path, there, catalogue)):
        report.faults += found
    if catalogue:
        report.faults += _check_training(config, there, report)
    else:
        for found in _each("shards", there.training, lambda path: _check_sums(path, there)):
            report.faults += found
    for found in _each("checkpoints", there.checkpoints, _check_checkpoint):
        report.faults += found
    for found in _each("other files", there.others, lambda path: _check_file(path, there)):
        report.faults += found
    report.verified = sum(map(len, (there.raw, there.training, there.checkpoints, there.others)))
    report.faults.sort()
    return report


def _check_training(config: Config, there: _Inventory, report: Report) -> list[Fault]:
    """Verify the training shards, and that the raw shards hold all that they are made from."""
    if lost := _lost(config.run_dir / "raw", report):
        report.notes.append(f"{lost}: without it the training shards cannot be verified")
        return []
    plan, faults = parallel.from_rank_0(lambda: _plan(config, there, report))
    if plan is None:
        return faults
    numbers = {shards.shard_name(number): number for number in plan.shards}
    results = _each(
        "shards",
        there.training,
        lambda path: _check_shard(path, numbers.get(path.name), there, plan),
    )
    for found, _ in results:
        faults += found
    if config.split.kind != "random":
        faults += _leaks(there.training, results)
    return faults


def _lost(raw: Path, report: Report) -> Path | None:
    """Return what says which views there should be, where it cannot be read."""
    bad = {fault.path for fault in report.faults}
    return next((path for path in (raw / RECORD, list_path(raw)) if path in bad), None)


def set_aside(config: Config, faults: Iterable[Fault]) -> dict[Path, Path]:
    """Rename what is bad and open its stage's record again, so that the next run makes it again.

    Returns
    -------
    dict of Path
        New name by old name; a file that is missing has no new one.

    Raises
    ------
    InputError
        A job is at work on the run.
    """
    for lock in config.run_dir.glob("*/*.lock"):
        if files.is_locked(lock):
            raise InputError(f"{lock}: a job is at work in this folder; repair after its end")
    moved = {}
    for path in {fault.path for fault in faults if fault.repairable}:
        if path.exists():
            moved[path] = files.set_aside(path)
    for record in sorted(config.run_dir.glob(f"*/{RECORD}")):
        content = files.read_json(record)
        listed = {_listed(record, name) for name in content.get("files") or ()}
        if any(not path.exists() for path in listed):
            files.write_json(record, content | {"files": None})
            # It would show the missing shard's images as zeros; preprocessing writes it again.
            (record.parent / shards.VIRTUAL).unlink(missing_ok=True)
    return dict(sorted(moved.items()))


def _each(what: str, items: Sequence[T], verify: Callable[[T], R]) -> list[R]:
    """Verify items, each on the rank that is free; return all results, in order, on all ranks."""
    with parallel.progress_bar(
        desc=f"check: {what}", total=len(items), unit="file", leave=False
    ) as bar:
        numbers = parallel.work(range(len(items)), lambda _: bar.update())
        mine = {number: verify(items[number]) for number in numbers}
    results = parallel.gather_dict(mine)
    return parallel.broadcast([results[number] for number in sorted(results)])


# --- the files --------------------------------------------------------------------------------


def _take_stock(config: Config) -> tuple[Report, _Inventory]:
    """List the files and read the records."""
    report, there, run = Report(), _Inventory(), config.run_dir
    for record in sorted(run.glob(f"*/{RECORD}")):
        _read_record(record, report, there)
    _read_list(run / "raw", report)
    if _belongs(config, "scrape", report):
        there.raw = sorted((run / "raw").glob("raw-*.h5"))
        report.notes += [
            f"{spool}: of a scrape that was killed or is running; galmerhpc scrape packs it"
            for spool in sorted((run / "raw").glob("raw-*.spool"))
        ]
    if not _lost(run / "raw", report) and _belongs(config, "preprocess", report):
        if _lacks_unknown_views(run, report):
            report.notes.append(
                f"{run / 'shards'}: made without views that the scrape may still bring; verified "
                "once the scrape is finished"
            )
        else:
            there.training = sorted((run / "shards").glob("shard-*.h5"))
    there.checkpoints = checkpoint.listed(run / "checkpoints")
    known = {*there.raw, *there.training, *(fault.path for fault in report.faults)}
    there.others = sorted(path for path in there.sha256 if path not in known and path.exists())
    return report, there


def _read_record(path: Path, report: Report, there: _Inventory) -> None:
    """Take a stage's record into the inventory."""
    try:
        recorded = read_record(path.parent)
    except InputError as error:
        report.faults.append(_fault(path, error))
        return
    if recorded is None or recorded.files is None:
        report.notes.append(f"{path.parent}: not finished; run the stage again")
        return
    sha256 = {_listed(path, name): str(value) for name, value in recorded.files.items()}
    there.sha256 |= sha256
    report.faults += [Fault(file, "missing") for file in sha256 if not file.exists()]


def _read_list(raw: Path, report: Report) -> None:
    """Report a list of left out views that cannot be read."""
    if _lost(raw, report):
        return
    try:
        missing_views(raw)
    except InputError as error:
        report.faults.append(_fault(list_path(raw), error))


def _listed(record: Path, name: str) -> Path:
    """Return the file that a record means; some lie outside its folder."""
    return Path(os.path.normpath(record.parent / name))


def _belongs(config: Config, stage: Stage, report: Report) -> bool:
    """Return whether a stage's folder is this configuration's."""
    folder = config.run_dir / FOLDERS[stage]
    if not folder.is_dir() or any(fault.path.name == RECORD for fault in report.faults):
        return folder.is_dir()  # what the configuration was cannot be told
    try:
        stage_record(config, stage)
    except InputError as error:
        report.faults.append(Fault(folder / RECORD, str(error), repairable=False))
        return False
    return True


def _lacks_unknown_views(run: Path, report: Report) -> bool:
    """Return whether shards lack views of which an unfinished scrape does not tell."""
    if any(fault.path.name == RECORD for fault in report.faults):
        return False
    scraped, made = read_record(run / "raw"), read_record(run / "shards")
    unfinished = scraped is None or scraped.files is None
    return unfinished and made is not None and LEFT_OUT in made.inputs


def _plan(config: Config, there: _Inventory, report: Report) -> tuple[Plan | None, list[Fault]]:
    """Look for every view in the good raw shards; lay out what the training shards must hold.

    Where there are no training shards there is no plan: the split may be an impossible one.
    """
    folder, bad = config.run_dir / "raw", [fault.path for fault in report.faults]
    store, faults = open_store(config, without=bad), []
    finished = any(path in there.sha256 for path in there.raw)
    if finished and not any(path.parent == folder for path in bad):
        views, absent = Views(require_catalogue(config)), missing_views(folder)
        rows = zip(views.ids(), store.find(views.ids(), len(views)).tolist(), strict=True)
        if lost := [view for view, row in rows if row < 0 and view not in absent]:
            why = f"{len(lost)} views are in no shard; {lost[0]} is one"
            faults.append(Fault(folder / RECORD, why))
    return (lay_out(config, store) if there.training else None), faults


# --- raw shards -----------------------------------------------------------------------------------


def _check_raw(path: Path, there: _Inventory, catalogue: ViewsById | None) -> list[Fault]:
    try:
        shard = RawShard.open(path)
        ids = shard.texts("view")
        if catalogue is None:
            return _check_file(path, there)
        views = catalogue.find(ids)
        if why := shard.misfit(views):
            return [Fault(path, why)]
        known = [view for view in views if view is not None]
        for view, (body, _) in zip(known, shard.read(range(len(ids)), ids), strict=True):
            if why := _undecodable(body, view):
                return [Fault(path, f"view {view.id}: {why}")]
    except InputError as error:
        return [_fault(path, error)]
    return _check_file(path, there)


def _undecodable(body: bytes, view: View) -> str:
    """Return what is wrong with an image; nothing if it decodes."""
    try:
        decode(body, view.render.nbins)
    except PictureError as error:
        return str(error)
    return ""


def _fault(path: Path, error: InputError) -> Fault:
    """Return what an error says of a file, without its name."""
    why = str(error).removeprefix(f"{path}: ")
    return Fault(path, why, repairable=not isinstance(error, files.UnreadableError))


# --- training shards ------------------------------------------------------------------------------


def _check_shard(
    path: Path, number: int | None, there: _Inventory, plan: Plan
) -> tuple[list[Fault], dict[str, set[int]]]:
    """Verify a training shard; return also the splits that each of its groups is in."""
    if number is None:
        return [Fault(path, "no shard of this configuration has this number")], {}
    samples, groups = plan.samples_of(number), defaultdict(set)
    try:
        shard = shards.Shard.open(path)
        shard.check_all()
        wanted = columns_of(plan, samples)
        columns = shards.read_columns(path, [*wanted, "source_sha256"])
        for group, split in zip(columns["group"].tolist(), columns["split"].tolist(), strict=True):
            groups[group.decode()].add(split)
        if shard.place != plan.place(number):
            return [Fault(path, "its attributes are another shard's")], groups
        if shard.shape != (samples.stop - samples.start, *plan.image_shape):
            return [Fault(path, f"its images have the shape {shard.shape}")], groups
        for name, values in wanted.items():
            if row := hdf5.first_difference(columns[name], values):
                return [Fault(path, f"{name} of image {row - 1} is not the catalogue's")], groups
    except InputError as error:
        return [_fault(path, error)], groups
    sources = columns["source_sha256"].tolist()
    for row, (made_from, there_now) in enumerate(
        zip(sources, sources_of(plan, samples), strict=True)
    ):
        if there_now and made_from != there_now:
            why = f"image {row} was made from another response than the raw shards hold"
            return [Fault(path, why)], groups
    return _check_file(path, there), groups


def _check_sums(path: Path, there: _Inventory) -> list[Fault]:
    """Compare a training shard with its own checksums."""
    try:
        shards.Shard.open(path).check_all()
    except InputError as error:
        return [_fault(path, error)]
    return _check_file(path, there)


def _leaks(
    paths: Sequence[Path], results: Sequence[tuple[list[Fault], dict[str, set[int]]]]
) -> list[Fault]:
    """Name the shards with a group that is trained on, there or elsewhere, and also held out.

    These shards are as the split says, else they have a fault of their own: it is the split that is
    wrong, and making them again does not help.
    """
    sides = {
        path: groups for path, (found, groups) in zip(paths, results, strict=True) if not found
    }
    together: dict[str, set[int]] = defaultdict(set)
    for groups in sides.values():
        for group, splits in groups.items():
            together[group] |= splits
    held_out = {SPLITS.index("validation"), SPLITS.index("test")}
    leaking = {group for group, splits in together.items() if TRAIN in splits and splits & held_out}
    return [
        Fault(path, f"group {min(found)} is in training and held out as well", repairable=False)
        for path, groups in sides.items()
        if (found := leaking & groups.keys())
    ]


# --- other files ----------------------------------------------------------------------------------


def _check_file(path: Path, there: _Inventory) -> list[Fault]:
    recorded = there.sha256.get(path)
    try:
        if recorded and files.sha256(path) != recorded:
            return [Fault(path, f"SHA-256 does not match {RECORD}")]
    except OSError as error:
        return [_fault(path, files.unreadable(path, error))]
    if path.name != shards.VIRTUAL:
        return []
    beside = [other.name for other in there.sha256 if other.parent == path.parent]
    return _check_virtual(path, shards.in_order({*beside} - {path.name}))


def _check_virtual(path: Path, names: list[str]) -> list[Fault]:
    """Verify that a virtual file's sources are these shards."""
    try:
        with h5py.File(path, "r", locking=False) as file:
            for name, dataset in file.items():
                sources = [source.file_name for source in dataset.virtual_sources()]
                if sources != names:
                    return [Fault(path, f"the sources of {name} are not the shards of {RECORD}")]
    except hdf5.ERRORS as error:
        return [Fault(path, brief(error))]
    return []


def _check_checkpoint(folder: Path) -> list[Fault]:
    try:
        checkpoint.verify(folder)
    except InputError as error:
        return [_fault(folder, error)]
    return []
