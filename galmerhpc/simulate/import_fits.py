"""GalMer's particle snapshots (FITS files) as a snapshot library that the mirror can draw.

A file contains a binary table with one row per particle and columns X, Y, Z, VX, VY, VZ, MASS,
M_GAS, P_TYPE (0 gas, 1 star, 2 dark matter) and GAL (original galaxy). What the file does not say,
or says in keywords unknown to us, is given in a CSV table.

Assumptions, where GalMer's papers and the files at hand are not conclusive:

- Lengths are in kpc and masses in 2.3e9 solar masses, unless the caller says otherwise.
- x-y is the orbital plane, with the axes of `galmerhpc.simulate.orbit`, so that theta and phi have
  the same meaning as for our own encounters. This is tested with the velocities: there is a warning
  if the two galaxies move about another axis than z.
- The origin is the centre of the pair and of the images; nothing is shifted or rotated. There is a
  warning if it is far from the centre of the luminous matter.
- A particle is drawn with its MASS as the component given by P_TYPE. Stars formed in a gas particle
  (MASS - M_GAS, if that is what these columns mean) and bulge and disc are not distinguished.
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
from galmerhpc.simulate.library import (
    LARGEST_POSITION_KPC,
    POSITION_UNIT_KPC,
    Attribute,
    Encounter,
    write_library,
)

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
"""Forty times GalMer's largest snapshots; a damaged header may claim any number."""

_UNUSED = "M_GAS"
_COMPONENTS = {0: Component.GAS, 1: Component.STARS, 2: Component.HALO}
_NEEDED = ("file", "id", "time_myr", "spin", "inclination_deg")
_OPTIONAL = ("simulation", "pair", "orbit")
# Reserved names of the library, and what to do about such a column.
_TAKEN = {
    "realisation": "call the column simulation",
    "orbit_type": "call the column orbit",
    **dict.fromkeys(
        ("source", "source_sha256", "length_kpc", "mass_msun", "clamped", "code_version"),
        "give the column another name",
    ),
}
_LARGEST_TILT_DEG = 10.0  # of the orbit's axis to z, above which images mislead
_LARGEST_OFFSET_KPC = 5.0  # of the luminous matter's centre; an image shows 33 to each side

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
    """Write a snapshot library from FITS files.

    Parameters
    ----------
    paths : sequence of Path
        FITS files.
    table : Path
        CSV file with one row for each of them: ``file`` (its name, without folder), ``id``,
        ``time_myr``, ``spin``, ``inclination_deg``, and optionally ``simulation``, ``pair``,
        ``orbit`` and further numeric labels.
    output : Path
        Library to write; an existing file is not replaced.
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
        A file is damaged or has another layout, or the table is invalid; the message names it.
    """
    for name, unit in (("length-kpc", length_kpc), ("mass-msun", mass_msun)):
        if not (math.isfinite(unit) and unit > 0):
            raise InputError(f"--{name}: {unit} is not a unit; give a number above 0")
    if output.exists():
        raise InputError(f"{output}: exists already; remove it or name another file")
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
        Velocities in the file's unit; the lower GAL number is galaxy 0.

    Raises
    ------
    InputError
        It is missing, damaged, or its columns or values are not as in GalMer's files.
    """
    columns = _read_columns(path)
    for name, values in columns.items():
        if name != _UNUSED and not np.isfinite(values).all():
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
        raise InputError(f"{path}: GAL has {len(numbers)} values, but a pair has two galaxies")
    component = np.array([_COMPONENTS[k] for k in sorted(_COMPONENTS)], np.uint8)
    particles = Particles(
        position=np.stack([columns[name] for name in ("X", "Y", "Z")], axis=1) * length_kpc,
        velocity=np.stack([columns[name] for name in ("VX", "VY", "VZ")], axis=1),
        mass=columns["MASS"] * mass_msun,
        component=component[columns["P_TYPE"].astype(np.int64)],
        galaxy=galaxy.reshape(-1).astype(np.uint8),
    )
    if not (particles.component != Component.HALO).any():
        raise InputError(f"{path}: no stars or gas: there is nothing to draw")
    _check_units(path, particles)
    _warn_of_tilt(path, particles)
    _warn_of_offset(path, particles)
    return particles


def _check_units(path: Path, particles: Particles) -> None:
    """Refuse masses and positions that a library cannot hold, or that leave nothing to see."""
    luminous = particles.component != Component.HALO
    with np.errstate(over="ignore"):
        mass = particles.mass[luminous].astype(np.float32)  # as the library holds it
    if not (np.isfinite(mass).all() and mass.sum() > 0):
        raise InputError(
            f"{path}: a star or gas particle has up to {particles.mass[luminous].max():.3g} solar "
            "masses, so that nothing can be drawn; check MASS and --mass-msun"
        )
    position = particles.position[luminous]
    with np.errstate(over="ignore"):
        size = np.median(np.linalg.norm(position - np.median(position, axis=0), axis=1))
    if not POSITION_UNIT_KPC < size < LARGEST_POSITION_KPC:
        raise InputError(
            f"{path}: half of its stars and gas lie within {size:.3g} kpc; a library's positions "
            f"go in steps of {POSITION_UNIT_KPC:g} kpc to {LARGEST_POSITION_KPC:.0f}; check X, Y, "
            "Z and --length-kpc"
        )


def _read_columns(path: Path) -> dict[str, Floats]:
    """Read the columns, shape (N,) each, of the first table that has them all."""
    try:
        with warnings.catch_warnings(record=True) as noted:
            warnings.simplefilter("always", AstropyWarning)
            # Opened here, since astropy leaves files open if it fails.
            with path.open("rb") as file, fits.open(file, lazy_load_hdus=False) as units:
                columns = _columns_of(path, units)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except InputError:
        raise
    except Exception as error:  # noqa: BLE001 - astropy raises nearly anything on damaged files
        why = brief(error)
        raise InputError(f"{path}: damaged, or not a FITS file ({why})") from None
    # Violations of the standard that do not affect the columns; a truncated table is an error.
    for text in dict.fromkeys(brief(warning.message) for warning in noted):
        log.warning("%s: %s", path, text)
    return columns


def _columns_of(path: Path, units: Any) -> dict[str, Floats]:
    tables = [unit for unit in units if isinstance(unit, fits.BinTableHDU)]
    if not tables:
        raise InputError(f"{path}: contains no binary table, or is truncated before it")
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
        raise InputError(f"{path}: {count} particles, more than the maximum of {MOST_PARTICLES}")
    columns = {}
    for name in COLUMNS:
        values = np.asarray(unit.data[name])
        if values.shape != (count,) or values.dtype.kind not in "iuf":
            raise InputError(f"{path}: column {name} is not one number per particle")
        if name != _UNUSED and (values == unit.columns[name].null).any():
            raise InputError(f"{path}: column {name} has missing values (TNULL)")
        columns[name] = values.astype(np.float64)
    return columns


def _warn_of_tilt(path: Path, particles: Particles) -> None:
    """Warn if the galaxies do not move about each other around the z axis."""
    weights = [np.where(particles.galaxy == k, particles.mass, 0.0) for k in (0, 1)]
    if min(weight.sum() for weight in weights) == 0:
        return
    place, velocity = (
        np.average(values, axis=0, weights=weights[1])
        - np.average(values, axis=0, weights=weights[0])
        for values in (particles.position, particles.velocity)
    )
    axis = np.cross(place, velocity)  # (3,), along the orbital angular momentum
    # Galaxies that collide head-on or have merged have no well-defined axis.
    if np.linalg.norm(axis) <= 0.01 * np.linalg.norm(place) * np.linalg.norm(velocity):
        return
    tilt = np.degrees(np.arccos(min(abs(axis[2]) / np.linalg.norm(axis), 1.0)))
    if tilt > _LARGEST_TILT_DEG:
        log.warning(
            "%s: the galaxies move about an axis %.0f deg from z, so that x-y is not their orbital "
            "plane, and theta and phi of its images are not those of the catalogue",
            path, tilt,
        )  # fmt: skip


def _warn_of_offset(path: Path, particles: Particles) -> None:
    """Warn if the luminous matter is far from the origin, which is the centre of the images."""
    weights = np.where(particles.component != Component.HALO, particles.mass, 0.0)
    if weights.sum() == 0:
        return
    offset = np.linalg.norm(np.average(particles.position, axis=0, weights=weights))
    if offset > _LARGEST_OFFSET_KPC:
        log.warning(
            "%s: the centre of its stars and gas is %.0f kpc from the origin, so that images show "
            "them off-centre or not at all; shift X, Y and Z, or check --length-kpc",
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
        name=f"snapshot-{snapshot.id}",  # particles form and grow: no two snapshots share them
        attributes=attributes,
        time_myr=np.array([snapshot.time_myr]),
        position=particles.position[None, luminous],
        mass=particles.mass[luminous],
        component=particles.component[luminous],
        galaxy=particles.galaxy[luminous],
    )


# --- the table ------------------------------------------------------------------------------------


def _read_table(path: Path) -> dict[str, Run]:
    """Read the table: a run of one snapshot for each file name."""

    def row(cells: dict[str, str]) -> tuple[str, Run]:
        return cells["file"], _run(cells)

    rows = tables.parse(path, tables.read_bytes(path), _NEEDED, None, row)
    if len(dict(rows)) < len(rows):
        name, _ = Counter(name for name, _ in rows).most_common(1)[0]
        raise InputError(f"{path}: {name} is listed more than once")
    return dict(rows)


def _run(cells: Mapping[str, str]) -> Run:
    """Return the run of a row.

    Raises
    ------
    ValueError
        It is invalid; the message names the column.
    """
    if taken := [name for name in _TAKEN if name in cells]:
        raise ValueError(f"{taken[0]}: reserved by the library; {_TAKEN[taken[0]]}")
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
    """Return the runs as a catalogue, with the snapshots of an encounter in one run."""
    merged: dict[str, dict[str, Any]] = {}
    for run in runs:
        values = run.model_dump(mode="json", exclude_defaults=True)
        (snapshot,) = values.pop("snapshots")
        merged.setdefault(repr(values), {**values, "snapshots": []})["snapshots"].append(snapshot)
    for values in merged.values():
        values["snapshots"].sort(key=lambda snapshot: snapshot["time_myr"])
    return yaml.safe_dump({"runs": list(merged.values())}, sort_keys=False, default_flow_style=None)
