"""What a run's images are drawn from: its catalogue compared with a library of snapshots."""

import math
from collections.abc import Mapping
from pathlib import Path

from galmerhpc import files
from galmerhpc.config import Catalogue, digest
from galmerhpc.errors import InputError
from galmerhpc.simulate.library import Attribute, Library, library_path

FILE = "library.json"


def require(folder: Path, library: str, catalogue: Catalogue) -> None:
    """Refuse to draw images that the library cannot draw, or that do not go with a folder's others.

    Parameters
    ----------
    folder : Path
        The run's ``raw`` folder.
    library : str
        What the configuration's `library` says.
    catalogue : Catalogue
        Runs whose snapshots are to be drawn.

    Raises
    ------
    InputError
        The library lacks a snapshot of the catalogue or holds it as something else: the message
        names the run and the snapshot. Or it has been made again since the folder's images were.
    """
    _require_snapshots(library, catalogue)
    if has_changed(folder, library, catalogue):
        raise InputError(
            f"{folder}: holds images of other encounters than {library} does now, under the same "
            "numbers; choose another run_dir or remove that folder"
        )


def _require_snapshots(library: str, catalogue: Catalogue) -> None:
    with Library(library_path(library)) as held:
        known = held.snapshot_ids
        for number, run in enumerate(catalogue.runs):
            where = f"catalogue.runs.{number}: the library ({library})"
            for snapshot in run.all_snapshots():
                if snapshot.id not in held:
                    raise InputError(
                        f"{where} holds no snapshot {snapshot.id}; it holds {len(known)}, from "
                        f"{known[0]} to {known[-1]}"
                    )
                found = held.describe(snapshot.id)
                wanted: dict[str, Attribute] = {
                    "spin": run.spin,
                    "inclination_deg": run.inclination_deg,
                    "realisation": run.simulation,
                    "time_myr": snapshot.time_myr,
                    **_known(run.labels, found),
                }
                for name, value in wanted.items():
                    if not _same(found[name], value):
                        raise InputError(
                            f"{where} holds snapshot {snapshot.id} with {name} {found[name]}, the "
                            f"catalogue says {value}; correct one of them"
                        )


def _known(labels: Mapping[str, float], found: Mapping[str, Attribute]) -> dict[str, Attribute]:
    """Return the labels that an encounter's attributes have too, by the attributes' names.

    A label is what was asked for, ``orbit.pericentre_kpc``, where ``pericentre_kpc`` was measured.
    """
    names = {label: f"orbit.{label}" if f"orbit.{label}" in found else label for label in labels}
    return {name: labels[label] for label, name in names.items() if name in found}


def _same(one: Attribute, other: Attribute) -> bool:
    """Return whether two labels are equal, up to rounding."""
    if isinstance(one, str) or isinstance(other, str):
        return one == other
    return math.isclose(one, other, abs_tol=1e-6)


def note(folder: Path, library: str, catalogue: Catalogue) -> None:
    """Note what a folder's images are drawn from, in `FILE`, for `require`."""
    files.write_json(folder / FILE, _content(library, catalogue))


def has_changed(folder: Path, library: str, catalogue: Catalogue) -> bool:
    """Return whether a library is another than the one a folder's images were drawn from."""
    noted = folder / FILE
    if not (noted.exists() and library_path(library).exists()):
        return False
    return bool(files.read_json(noted) != _content(library, catalogue))


def _content(library: str, catalogue: Catalogue) -> dict[str, str]:
    """Return what `FILE` holds: a checksum of all that a library says of a catalogue's snapshots.

    The measured energy drift is a part of it, and tells one computation from another, as does the
    checksum of an imported file. A library that has only grown says the same.
    """
    with Library(library_path(library)) as held:
        said = {
            str(snapshot.id): held.describe(snapshot.id) if snapshot.id in held else None
            for run in catalogue.runs
            for snapshot in run.all_snapshots()
        }
    return {"snapshots": digest(said)}
