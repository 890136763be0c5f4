"""The snapshot library: the luminous particles of every encounter, in one HDF5 file.

Layout (format 1), with N luminous particles and T snapshots per encounter::

    /                             attributes: format, code_version
    /encounters/<name>            one group per encounter, e.g. prograde-i45-r0
        attributes                parameters and results of the encounter
        position     (T, N, 3)    int16, in units of the attribute unit_kpc, from the pair's centre
                                  of mass; axes of `galmerhpc.simulate.orbit`
        smoothing    (T, N)       uint8, smallest_kpc * ratio ** code: distance to a near neighbour
        mass         (N,)         float32, solar masses
        component    (N,)         uint8, `Component`
        galaxy       (N,)         uint8, 0 for the first of the pair and 1 for the second
        time_myr     (T,)         float64, since the pericentre passage
        snapshot_id  (T,)         int64, unique in the file

Particles are sorted by galaxy, component and mass, and among equal ones along a space-filling curve
that differs between snapshots: neighbours in the file are neighbours in space, which improves
compression by a fifth. So row k is not the same particle in two snapshots.

Positions beyond +-655.34 kpc, twenty times the width of an image, are moved to that limit; the
encounter's attribute ``clamped`` counts them.
"""

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray
from scipy.spatial import KDTree

from galmerhpc import __version__, hdf5
from galmerhpc.errors import InputError
from galmerhpc.simulate.galaxies import Component as Component

FORMAT = 1
SHIPPED = "shipped"

# An eighth of a preview pixel at the default zoom, and much smaller than the softening length.
POSITION_UNIT_KPC = 0.02
LARGEST_POSITION_KPC = POSITION_UNIT_KPC * np.iinfo(np.int16).max
# 256 steps of 4 %: from 0.02 to 440 kpc.
_SMALLEST_SMOOTHING_KPC = 0.02
_SMOOTHING_RATIO = 1.04

Attribute = str | int | float


@dataclass(frozen=True)
class Snapshot:
    """The luminous particles of a pair at one time.

    Attributes
    ----------
    snapshot_id : int
        Snapshot number, unique in the library.
    encounter : str
        Name of its encounter.
    attributes : mapping
        The encounter's parameters.
    time_myr : float
        Time since the pericentre passage.
    position : ndarray, shape (N, 3), float32
        Relative to the pair's centre of mass, kpc; the orbital plane is x-y.
    smoothing : ndarray, shape (N,), float32
        Distance to a near neighbour, kpc.
    mass : ndarray, shape (N,), float32
        Solar masses.
    component : ndarray, shape (N,), uint8
        `Component`.
    galaxy : ndarray, shape (N,), uint8
        0 or 1.
    """

    snapshot_id: int
    encounter: str
    attributes: Mapping[str, Attribute]
    time_myr: float
    position: NDArray[np.float32]
    smoothing: NDArray[np.float32]
    mass: NDArray[np.float32]
    component: NDArray[np.uint8]
    galaxy: NDArray[np.uint8]


@dataclass(frozen=True)
class Encounter:
    """An encounter to be stored.

    Attributes
    ----------
    name : str
        Its group's name.
    attributes : mapping
        Its parameters and results.
    time_myr : ndarray, shape (T,), float64
        Time since the pericentre passage.
    position : ndarray, shape (T, N, 3), float
        Relative to the pair's centre of mass, kpc.
    mass : ndarray, shape (N,), float
        Solar masses.
    component, galaxy : ndarray, shape (N,), uint8
        `Component`; 0 or 1. There must be no halo particles, which are not stored.
    """

    name: str
    attributes: Mapping[str, Attribute]
    time_myr: NDArray[np.float64]
    position: NDArray[np.floating[Any]]
    mass: NDArray[np.floating[Any]]
    component: NDArray[np.uint8]
    galaxy: NDArray[np.uint8]


# --- reading --------------------------------------------------------------------------------------


def library_path(library: str) -> Path:
    """Return the file that the configuration's `library` refers to.

    Parameters
    ----------
    library : str
        A path, or ``shipped`` for the package's library.
    """
    if library == SHIPPED:
        return Path(str(resources.files("galmerhpc") / "data" / "library.h5"))
    return Path(library)


class Library:
    """A library opened for reading, without file locking, so that many processes can read it.

    Parameters
    ----------
    path : Path
        The file.

    Raises
    ------
    InputError
        It is missing, damaged or not a snapshot library.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = _open(path)
        try:
            with _reading(path):
                self._places = dict(
                    sorted(
                        (int(number), (name, row))
                        for name, group in self._file["encounters"].items()
                        for row, number in enumerate(group["snapshot_id"])
                    )
                )
            self._numbers: dict[str, list[int]] = {}
            for number, (name, _) in self._places.items():
                self._numbers.setdefault(name, []).append(number)
        except InputError:
            self.close()
            raise

    def __contains__(self, snapshot_id: int) -> bool:
        return snapshot_id in self._places

    @property
    def snapshot_ids(self) -> tuple[int, ...]:
        """Numbers of all snapshots, ascending."""
        return tuple(self._places)

    @property
    def encounters(self) -> tuple[str, ...]:
        """Names of all encounters in the order of their snapshot numbers."""
        return tuple(self._numbers)

    def snapshots_of(self, encounter: str) -> tuple[int, ...]:
        """Return the numbers of an encounter's snapshots, ascending."""
        return tuple(self._numbers[encounter])

    def attributes(self, encounter: str) -> dict[str, Attribute]:
        """Return the parameters and results of an encounter.

        Raises
        ------
        InputError
            The library has no such encounter, or is damaged.
        """
        if encounter not in self._numbers:
            raise InputError(
                f"{self.path}: no encounter {encounter!r} (available: {', '.join(self.encounters)})"
            )
        with _reading(self.path):
            return _read_attributes(self._file["encounters"][encounter])

    def describe(self, snapshot_id: int) -> dict[str, Attribute]:
        """Return the parameters and results of a snapshot's encounter, and its ``time_myr``.

        Raises
        ------
        InputError
            The library is damaged.
        """
        name, row = self._places[snapshot_id]
        with _reading(self.path):
            time = float(self._file["encounters"][name]["time_myr"][row])
        return {**self.attributes(name), "time_myr": time}

    def snapshot(self, snapshot_id: int) -> Snapshot:
        """Read a snapshot.

        Raises
        ------
        InputError
            The library has no snapshot with that number, or it cannot be read.
        """
        if snapshot_id not in self:
            raise InputError(
                f"{self.path}: no snapshot {snapshot_id} (available: {_ranges(self.snapshot_ids)})"
            )
        name, row = self._places[snapshot_id]
        with _reading(self.path):
            group = self._file["encounters"][name]
            return Snapshot(
                snapshot_id=snapshot_id,
                encounter=name,
                attributes=_read_attributes(group),
                time_myr=float(group["time_myr"][row]),
                position=group["position"][row] * np.float32(group["position"].attrs["unit_kpc"]),
                smoothing=_decode_smoothing(group["smoothing"], row),
                mass=group["mass"][:],
                component=group["component"][:],
                galaxy=group["galaxy"][:],
            )

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> "Library":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def stored_attributes(path: Path) -> dict[str, dict[str, Attribute]]:
    """Return the attributes of each encounter in a library or part file.

    Raises
    ------
    InputError
        The file is missing, damaged or not a snapshot library.
    """
    with _open(path) as file, _reading(path):
        return {name: _read_attributes(group) for name, group in file["encounters"].items()}


def _open(path: Path) -> h5py.File:
    if not path.is_file():
        raise InputError(
            f"{path}: no such snapshot library; make it with galmerhpc simulate, "
            f"or set library: {SHIPPED}"
        )
    with _reading(path):
        file = h5py.File(path, "r", locking=False)
        try:
            if file.attrs.get("format") != FORMAT or "encounters" not in file:
                raise ValueError(f"it has no encounters of format {FORMAT}")
        except hdf5.ERRORS:
            file.close()
            raise
    return file


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn what h5py raises on a damaged library into one error."""
    try:
        yield
    except hdf5.ERRORS as error:
        raise hdf5.fault(path, error, _damaged) from None


def _damaged(path: Path, why: str) -> InputError:
    if not h5py.is_hdf5(path):
        return InputError(
            f"{path}: damaged, or not a snapshot library at all; give one that galmerhpc simulate "
            f"made, or set library: {SHIPPED}"
        )
    return InputError(
        f"{path}: damaged, or not a snapshot library ({why}); "
        "remove it and make it again with galmerhpc simulate"
    )


def _read_attributes(group: h5py.Group) -> dict[str, Attribute]:
    return {key: _plain(value) for key, value in group.attrs.items()}


def _plain(value: Any) -> Attribute:
    """Return NumPy's scalars and bytes as Python's, which print and compare as what was written."""
    value = value.item() if isinstance(value, np.generic) else value
    return value.decode() if isinstance(value, bytes) else value


def _write_attributes(group: h5py.Group, values: Mapping[str, Attribute]) -> None:
    group.attrs.update({name: hdf5.attribute(value) for name, value in values.items()})


def _ranges(numbers: Sequence[int]) -> str:
    """Format ascending numbers as ``3-5, 9-12``."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(f"{first}-{last}" for first, last in runs) or "none"


def is_imported(path: Path) -> bool:
    """Return whether a library was converted from files (`import_fits`), not simulated here.

    Raises
    ------
    InputError
        The file is missing, damaged or not a snapshot library.
    """
    with _open(path) as file, _reading(path):
        return any("source_sha256" in group.attrs for group in file["encounters"].values())


def is_library(path: Path) -> bool:
    """Return whether a file looks like a snapshot library."""
    try:
        with h5py.File(path, "r", locking=False) as file:
            return "encounters" in file
    except hdf5.ERRORS:
        return False


def describe(path: Path) -> list[str]:
    """Return a description of a library, one line per encounter.

    Raises
    ------
    InputError
        It is damaged.
    """
    size = path.stat().st_size / 1e6
    with Library(path) as library:
        lines = [
            f"{path}: snapshot library of format {FORMAT}, {size:.3g} MB",
            f"{'encounter':<24}{'particles':>10}{'snapshots':>10}  ids, times since pericentre",
        ]
        for name in library.encounters:
            ids = library.snapshots_of(name)
            first, last = library.snapshot(ids[0]), library.describe(ids[-1])
            lines.append(
                f"{name:<24}{len(first.mass):>10}{len(ids):>10}  {_ranges(ids)}, "
                f"{first.time_myr:g} to {last['time_myr']:g} Myr"
            )
    return lines


# --- writing --------------------------------------------------------------------------------------


def write_encounter(path: Path, encounter: Encounter, neighbours: int) -> None:
    """Write one encounter to a separate file, atomically; its snapshots have no numbers yet.

    Parameters
    ----------
    path : Path
        The file; its folder is created.
    encounter : Encounter
        The encounter.
    neighbours : int
        A particle's smoothing length is the distance to this neighbour, of any component.
    """
    with hdf5.written(path) as (file, _):
        _write_root(file)
        _write_group(file, encounter, neighbours)


def write_library(path: Path, encounters: Iterable[tuple[int, Encounter]], neighbours: int) -> None:
    """Write a library of encounters with one numbered snapshot each, atomically.

    Parameters
    ----------
    path : Path
        The library.
    encounters : iterable of (int, Encounter)
        Snapshot number and encounter; only one is held in memory at a time.
    neighbours : int
        As for `write_encounter`.
    """
    with hdf5.written(path) as (file, check):
        _write_root(file)
        for number, encounter in encounters:
            group = _write_group(file, encounter, neighbours)
            group["snapshot_id"] = np.array([number], np.int64)
            check()


def merge(library: Path, sources: Mapping[str, Path], first_snapshot_id: int) -> None:
    """Merge encounters into a library, atomically, and number their snapshots.

    Parameters
    ----------
    library : Path
        File to write; it may be one of the sources.
    sources : mapping
        Files of the encounters by name, in the order of numbering.
    first_snapshot_id : int
        Number of the first encounter's first snapshot.

    Raises
    ------
    InputError
        A source is missing or damaged.
    """
    with hdf5.written(library) as (file, check):
        _write_root(file)
        number = first_snapshot_id
        for name, path in sources.items():
            with _open(path) as source:
                with _reading(path):
                    attributes = _read_attributes(source["encounters"][name])
                source.copy(f"encounters/{name}", file.require_group("encounters"))
            group = file["encounters"][name]
            # Texts of older libraries have no fixed length.
            _write_attributes(group, attributes)
            group.pop("snapshot_id", None)
            group["snapshot_id"] = number + np.arange(len(group["time_myr"]), dtype=np.int64)
            number += len(group["time_myr"])
            check()


def _write_root(file: h5py.File) -> None:
    _write_attributes(file, {"format": FORMAT, "code_version": __version__})


def _write_group(file: h5py.File, encounter: Encounter, neighbours: int) -> h5py.Group:
    group = file.create_group(f"encounters/{encounter.name}")
    group["time_myr"] = np.asarray(encounter.time_myr, np.float64)
    for name, dtype in (("mass", np.float32), ("component", np.uint8), ("galaxy", np.uint8)):
        values = np.asarray(getattr(encounter, name), dtype)[_order(encounter)]
        group.create_dataset(name, data=values, compression="gzip", shuffle=True)
    clamped = _write_snapshots(group, encounter, neighbours)
    results: dict[str, Attribute] = {"clamped": clamped, "code_version": __version__}
    _write_attributes(group, {**encounter.attributes, **results})
    return group


def _write_snapshots(group: h5py.Group, encounter: Encounter, neighbours: int) -> int:
    """Write positions and smoothing lengths; return how many positions were clamped."""
    times, particles = len(encounter.position), len(encounter.mass)
    # One chunk per coordinate and snapshot, so that similar bytes are adjacent.
    position = group.create_dataset(
        "position",
        (times, particles, 3),
        np.int16,
        chunks=(1, particles, 1),
        shuffle=True,
        compression="gzip",
        compression_opts=9,
    )
    position.attrs["unit_kpc"] = POSITION_UNIT_KPC
    smoothing = group.create_dataset(
        "smoothing",
        (times, particles),
        np.uint8,
        chunks=(1, particles),
        compression="gzip",
        compression_opts=9,
    )
    smoothing.attrs.update({"smallest_kpc": _SMALLEST_SMOOTHING_KPC, "ratio": _SMOOTHING_RATIO})
    clamped = 0
    for row, kpc in enumerate(encounter.position):
        codes, outside = _encode_position(kpc)
        order = _order(encounter, _morton(codes))
        position[row] = codes[order]
        smoothing[row] = _encode_smoothing(neighbour_distance(kpc, neighbours))[order]
        clamped += outside
    return clamped


def _order(encounter: Encounter, place: NDArray[np.uint64] | None = None) -> NDArray[np.intp]:
    """Return the order of particles in the file; `place` (N,) orders equal ones."""
    keys = (encounter.mass, encounter.component, encounter.galaxy)
    return np.lexsort(keys if place is None else (place, *keys))


def neighbour_distance(position: NDArray[np.floating[Any]], neighbours: int) -> NDArray[np.float64]:
    """Return each particle's distance to its n-th neighbour, or to the farthest if there are fewer.

    Parameters
    ----------
    position : ndarray, shape (N, 3)
        kpc.
    neighbours : int
        n, not counting the particle itself.

    Returns
    -------
    ndarray, shape (N,), float64
        kpc.
    """
    rank = min(neighbours + 1, len(position))
    return KDTree(position).query(position, k=[rank])[0][:, 0]


def _encode_position(kpc: NDArray[np.floating[Any]]) -> tuple[NDArray[np.int16], int]:
    """Return int16 codes (N, 3) and the number of particles that had to be clamped."""
    limit = np.iinfo(np.int16).max
    codes = np.rint(np.asarray(kpc, np.float64) / POSITION_UNIT_KPC)
    outside = int((np.abs(codes) > limit).any(axis=1).sum())
    return np.clip(codes, -limit, limit).astype(np.int16), outside


def _encode_smoothing(kpc: NDArray[np.float64]) -> NDArray[np.uint8]:
    with np.errstate(divide="ignore"):  # coincident particles get the smallest code
        codes = np.log(kpc / _SMALLEST_SMOOTHING_KPC) / np.log(_SMOOTHING_RATIO)
    return np.clip(np.rint(codes), 0, np.iinfo(np.uint8).max).astype(np.uint8)


def _decode_smoothing(dataset: h5py.Dataset, row: int) -> NDArray[np.float32]:
    smallest, ratio = dataset.attrs["smallest_kpc"], dataset.attrs["ratio"]
    return (smallest * ratio ** dataset[row].astype(np.float64)).astype(np.float32)


def _morton(codes: NDArray[np.int16]) -> NDArray[np.uint64]:
    """Return positions along the Z-order curve: interleaved bits of the three coordinates."""
    place = np.zeros(len(codes), np.uint64)
    for axis in range(3):
        unsigned = (codes[:, axis].astype(np.int32) - np.iinfo(np.int16).min).astype(np.uint64)
        for bit in range(16):
            place |= ((unsigned >> np.uint64(bit)) & np.uint64(1)) << np.uint64(3 * bit + axis)
    return place
