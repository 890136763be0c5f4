"""GalMer's particle snapshots, FITS files, as a snapshot library that the mirror can draw.

A file holds a binary table with a row a particle and columns X, Y, Z, VX, VY, VZ, MASS, M_GAS,
P_TYPE (0 gas, 1 star, 2 dark matter) and GAL (which galaxy it was of). What the file does not say,
or says in keywords that we do not know, comes from a CSV table beside the files.

Taken for granted, since GalMer's papers and files at hand do not settle it:

- Lengths are in kpc and masses in 2.3e9 solar masses, unless the caller says otherwise.
- x-y is the plane of the orbit, with the axes of `galmerhpc.simulate.orbit`, so that theta and phi
  mean what they mean for our own encounters. The velocities are used to test it: a warning says
  where the two galaxies move about another axis than z.
- The origin is the middle of the pair, and so of the pictures; nothing is moved or turned. A
  warning says where it is far from the middle of the luminous matter.
- A particle shines with its MASS as what its P_TYPE says. Stars that formed in a gas particle
  (MASS less M_GAS, if that is what these columns mean) are not told apart, nor bulge from disc.
"""

import logging
import math
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray
from pydantic import ValidationError
from tqdm import tqdm

from galmerhpc import files, tables
from galmerhpc.config import Run, Snapshot
from galmerhpc.errors import GalmerhpcError, InputError, brief
from galmerhpc.simulate.galaxies import Component, Particles
from galmerhpc.simulate.library import Attribute, Encounter, write_library

try:
    from astropy.io import fits
    from astropy.utils.exceptions import AstropyWarning
except ImportError:
    raise GalmerhpcError(
        "galmerhpc library import needs astropy: pip install 'galmerhpc[fits]'"
    ) from None

log = logging.getLogger(__name__)

COLUMNS = ("X", "Y", "Z", "VX", "VY", "VZ", "MASS", "M_GAS", "P_TYPE", "GAL")
MOST_PARTICLES = 20_000_000
"""Forty times GalMer's largest snapshots; a header may claim anything."""

_COMPONENTS = {0: Component.GAS, 1: Component.STARS, 2: Component.HALO}
_NEEDED = ("file", "id", "time_myr", "spin", "inclination_deg")
_OPTIONAL = ("simulation", "pair", "orbit")
# Names that the library has for something of its own, and what to do about such a column.
_TAKEN = {
    "realisation": "call the column simulation",
    "orbit_type": "call the column orbit",
    **dict.fromkeys(
        ("source", "source_sha256", "length_kpc", "mass_msun", "clamped", "code_version"),
        "give the column another name",
    ),
}
_LARGEST_TILT_DEG = 10.0  # of the orbit's axis to z, beyond which pictures mislead
_LARGEST_OFFSET_KPC = 5.0  # of the luminous matter's centre; a picture shows 33 to each side

Floats = NDArray[np.float64]


def import_fits(
    paths: Sequence[Path],
    table: Path,
    output: Path,
    *,
    length_kpc: float,
    mass_msun: float,
    neighbours: int,
) -> str:
    """Write a snapshot library of FITS files.

    Parameters
    ----------
    paths : sequence of Path
        FITS files.
    table : Path
        CSV file with a row for each of them: ``file`` (its name, without folder), ``id``,
        ``time_myr``, ``spin``, ``inclination_deg``, and if wanted ``simulation``, ``pair``,
        ``orbit`` and further labels, which are numbers.
    output : Path
        Library to write; a file that is there is not replaced.
    length_kpc, mass_msun : float
        Units of the files' X, Y, Z and MASS.
    neighbours : int
        A particle's smoothing length is the distance to this neighbour.

    Returns
    -------
    str
        The snapshots as a catalogue's ``runs``, YAML.

    Raises
    ------
    InputError
        A file is damaged or not of this layout, or the table is wrong; the message names it.
    """
    for name, unit in (("length-kpc", length_kpc), ("mass-msun", mass_msun)):
        if not (math.isfinite(unit) and unit > 0):
            raise InputError(f"--{name}: {unit} is no unit; give a number above 0")
    if output.exists():
        raise InputError(f"{output}: is there already; remove it or name another file")
    rows = _read_table(table)
    chosen = [_row_of(path, rows, table) for path in paths]
    _refuse_twice(paths, chosen)

    def encounters() -> Iterator[tuple[int, Encounter]]:
        for path, run in zip(tqdm(paths, "import", unit="file", disable=None), chosen, strict=True):
            (snapshot,) = run.snapshots
            particles = read_particles(path, length_kpc, mass_msun)
            made_from: dict[str, Attribute] = {
                "source": path.name,
                "source_sha256": files.sha256(path),
                "length_kpc": length_kpc,
                "mass_msun": mass_msun,
            }
            yield snapshot.id, _encounter(run, snapshot, particles, made_from)

    write_library(output, encounters(), neighbours)
    log.info("import: %s: %d snapshots", output, len(paths))
    return _catalogue(chosen)


# --- a FITS file ----------------------------------------------------------------------------------


def read_particles(path: Path, length_kpc: float, mass_msun: float) -> Particles:
    """Read a FITS file.

    Returns
    -------
    Particles
        Velocities in the file's unit; the lower of its GAL numbers is galaxy 0.

    Raises
    ------
    InputError
        It is missing, damaged, or its columns or values are not GalMer's.
    """
    columns = _read_columns(path)
    for name, values in columns.items():
        if not np.isfinite(values).all():
            row = int(np.flatnonzero(~np.isfinite(values))[0])
            raise InputError(f"{path}: {name} of particle {row} is not finite")
    if (columns["MASS"] < 0).any():
        raise InputError(f"{path}: MASS is negative for {(columns['MASS'] < 0).sum()} particles")
    if unknown := set(np.unique(columns["P_TYPE"])) - set(_COMPONENTS):
        raise InputError(
            f"{path}: P_TYPE {min(unknown):g} is none of 0 (gas), 1 (star), 2 (dark matter)"
        )
    numbers, galaxy = np.unique(columns["GAL"], return_inverse=True)
    if len(numbers) > 2:
        raise InputError(f"{path}: GAL has {len(numbers)} values, and a pair has two galaxies")
    component = np.array([_COMPONENTS[k] for k in sorted(_COMPONENTS)], np.uint8)
    particles = Particles(
        position=np.stack([columns[name] for name in ("X", "Y", "Z")], axis=1) * length_kpc,
        velocity=np.stack([columns[name] for name in ("VX", "VY", "VZ")], axis=1),
        mass=columns["MASS"] * mass_msun,
        component=component[columns["P_TYPE"].astype(np.int64)],
        galaxy=galaxy.reshape(-1).astype(np.uint8),
    )
    if not (particles.component != Component.HALO).any():
        raise InputError(f"{path}: no particle is a star or gas: there is nothing to draw")
    _warn_of_tilt(path, particles)
    _warn_of_offset(path, particles)
    return particles


def _read_columns(path: Path) -> dict[str, Floats]:
    """Read the columns of the first table that has them all, shape (N,) each."""
    try:
        with warnings.catch_warnings(record=True) as noted:
            warnings.simplefilter("always", AstropyWarning)
            # Opened here, since astropy leaves a file open that it fails on.
            with path.open("rb") as file, fits.open(file, lazy_load_hdus=False) as units:
                columns = _columns_of(path, units)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except InputError:
        raise
    except Exception as error:  # noqa: BLE001 - astropy raises nearly anything on damaged files
        why = brief(error)
        raise InputError(f"{path}: damaged, or no FITS file ({why})") from None
    # Of what breaks the standard, but no number of the columns: a table cut short is an error.
    for text in dict.fromkeys(brief(warning.message) for warning in noted):
        log.warning("%s: %s", path, text)
    return columns


def _columns_of(path: Path, units: Any) -> dict[str, Floats]:
    tables = [unit for unit in units if isinstance(unit, fits.BinTableHDU)]
    if not tables:
        raise InputError(f"{path}: holds no binary table")
    fitting = [unit for unit in tables if {*COLUMNS} <= {n.upper() for n in unit.columns.names}]
    if not fitting:
        names = [name.upper() for name in tables[0].columns.names]
        missing = ", ".join(name for name in COLUMNS if name not in names)
        raise InputError(
            f"{path}: no column {missing} (its first table has: {', '.join(names)[:120]})"
        )
    unit = fitting[0]
    count = int(unit.header["NAXIS2"])
    if count == 0:
        raise InputError(f"{path}: the table is empty")
    if count > MOST_PARTICLES:
        raise InputError(f"{path}: {count} particles, more than the {MOST_PARTICLES} we take")
    columns = {}
    for name in COLUMNS:
        values = np.asarray(unit.data[name])
        if values.shape != (count,) or values.dtype.kind not in "iuf":
            raise InputError(f"{path}: column {name} is not one number a particle")
        columns[name] = values.astype(np.float64)
    return columns


def _warn_of_tilt(path: Path, particles: Particles) -> None:
    """Warn where the galaxies' motion about each other is not about the z axis."""
    weights = [np.where(particles.galaxy == k, particles.mass, 0.0) for k in (0, 1)]
    if min(weight.sum() for weight in weights) == 0:
        return
    place, velocity = (
        np.average(values, axis=0, weights=weights[1])
        - np.average(values, axis=0, weights=weights[0])
        for values in (particles.position, particles.velocity)
    )
    axis = np.cross(place, velocity)  # (3,), along the orbital angular momentum
    # Galaxies that meet head on, or are one by now, have no axis worth the name.
    if np.linalg.norm(axis) <= 0.01 * np.linalg.norm(place) * np.linalg.norm(velocity):
        return
    tilt = np.degrees(np.arccos(min(abs(axis[2]) / np.linalg.norm(axis), 1.0)))
    if tilt > _LARGEST_TILT_DEG:
        log.warning(
            "%s: the galaxies move about an axis %.0f deg from z, so that x-y is not the plane of "
            "their orbit, and theta and phi of its pictures are not those of the catalogue",
            path, tilt,
        )  # fmt: skip


def _warn_of_offset(path: Path, particles: Particles) -> None:
    """Warn where what shines is not about the origin, which is the middle of the pictures."""
    weights = np.where(particles.component != Component.HALO, particles.mass, 0.0)
    if weights.sum() == 0:
        return
    offset = np.linalg.norm(np.average(particles.position, axis=0, weights=weights))
    if offset > _LARGEST_OFFSET_KPC:
        log.warning(
            "%s: the centre of its stars and gas is %.0f kpc from the origin, so that pictures "
            "show them beside their middle or not at all; move X, Y and Z, or see to --length-kpc",
            path, offset,
        )  # fmt: skip


def _encounter(
    run: Run, snapshot: Snapshot, particles: Particles, made_from: Mapping[str, Attribute]
) -> Encounter:
    luminous = particles.component != Component.HALO
    attributes: Mapping[str, Attribute] = {
        "pair": run.pair,
        "orbit_type": run.orbit,
        "spin": run.spin,
        "inclination_deg": run.inclination_deg,
        "realisation": run.simulation,
        **run.labels,
        **made_from,
    }
    return Encounter(
        name=f"snapshot-{snapshot.id}",  # particles are born and grow: no two snapshots share them
        attributes=attributes,
        time_myr=np.array([snapshot.time_myr]),
        position=particles.position[None, luminous],
        mass=particles.mass[luminous],
        component=particles.component[luminous],
        galaxy=particles.galaxy[luminous],
    )


# --- the table ------------------------------------------------------------------------------------


def _read_table(path: Path) -> dict[str, Run]:
    """Read what each file is: a run of one snapshot by the file's name."""

    def row(cells: dict[str, str]) -> tuple[str, Run]:
        return cells["file"], _run(cells)

    rows = tables.parse(path, tables.read_bytes(path), _NEEDED, None, row)
    if len(dict(rows)) < len(rows):
        name, _ = Counter(name for name, _ in rows).most_common(1)[0]
        raise InputError(f"{path}: {name} is listed more than once")
    return dict(rows)


def _run(cells: Mapping[str, str]) -> Run:
    """Read a row.

    Raises
    ------
    ValueError
        It is wrong; the message names the column.
    """
    if taken := [name for name in _TAKEN if name in cells]:
        raise ValueError(f"{taken[0]}: the library has one of its own; {_TAKEN[taken[0]]}")
    try:
        return Run.model_validate(
            {
                "spin": cells["spin"],
                "inclination_deg": cells["inclination_deg"],
                "snapshots": [{"id": cells["id"], "time_myr": cells["time_myr"]}],
                "labels": {k: v for k, v in cells.items() if k not in (*_NEEDED, *_OPTIONAL)},
                **{name: cells[name] for name in _OPTIONAL if name in cells},
            }
        )
    except ValidationError as error:
        fault = error.errors()[0]
        names = [str(part) for part in fault["loc"] if part in cells]
        given = f", not {cells[names[-1]]!r}" if names else ""
        raise ValueError(f"{names[-1] if names else 'row'}: {fault['msg']}{given}") from None


def _row_of(path: Path, rows: Mapping[str, Run], table: Path) -> Run:
    if path.name not in rows:
        raise InputError(f"{table}: no row for {path.name}; each FITS file needs one")
    return rows[path.name]


def _refuse_twice(paths: Sequence[Path], runs: Sequence[Run]) -> None:
    ids: dict[int, Path] = {}
    for path, run in zip(paths, runs, strict=True):
        number = run.snapshots[0].id
        if number in ids:
            raise InputError(f"snapshot {number} is both {ids[number]} and {path}")
        ids[number] = path


def _catalogue(runs: Sequence[Run]) -> str:
    """Return the runs as a catalogue; snapshots of one encounter are one run."""
    merged: dict[str, dict[str, Any]] = {}
    for run in runs:
        values = run.model_dump(mode="json", exclude_defaults=True)
        (snapshot,) = values.pop("snapshots")
        merged.setdefault(repr(values), {**values, "snapshots": []})["snapshots"].append(snapshot)
    for values in merged.values():
        values["snapshots"].sort(key=lambda snapshot: snapshot["time_myr"])
    return yaml.safe_dump({"runs": list(merged.values())}, sort_keys=False, default_flow_style=None)
