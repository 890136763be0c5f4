"""Tables of real pairs, and the relative inclination that follows from their entries by Eq. 3.

A table (CSV, docs/format.md) has one row per pair. All columns are optional unless needed:

    name                       default: the image's name, or name1
    image                      file in the folder of images; default: NAME.jpg
    x1_px y1_px x2_px y2_px    the two galaxies in the image, from its upper left corner
    ra1_deg dec1_deg ...       or on the sky; or name1, name2 such as J013247.27-082526.9
    scale_arcsec_per_px        scale of the image
    redshift                   redshift of the pair
    pa1_deg pa2_deg            position angles
    i1_deg i2_deg              inclinations, or axes from which they follow:
    a1_px b1_px a2_px b2_px    major and minor axes, in any unit
    mag1 mag2                  magnitudes in one band

Other columns are ignored, and named in the log.
"""

import csv
import io
import logging
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from galmerhpc import files, tables
from galmerhpc.errors import InputError
from galmerhpc.parameters import relative_inclination

log = logging.getLogger(__name__)

COLUMNS = (
    "name", "image", "scale_arcsec_per_px", "redshift",
    "name1", "ra1_deg", "dec1_deg", "x1_px", "y1_px", "pa1_deg", "i1_deg", "a1_px", "b1_px", "mag1",
    "name2", "ra2_deg", "dec2_deg", "x2_px", "y2_px", "pa2_deg", "i2_deg", "a2_px", "b2_px", "mag2",
)  # fmt: skip
"""Columns that are used."""

THICKNESS = 0.2
"""Axis ratio of a disc seen edge-on (Hubble 1926, ApJ 64, 321; Haynes & Giovanelli 1984)."""

MOST_UNEQUAL = 3.0
"""Light ratio above which a pair is far from 1:1: the usual limit of major mergers."""

FAINTEST_MAGNITUDE = 40.0
"""Larger absolute values are what catalogues write for unknown: 99.99, -999, -9999."""

FARTHEST_REDSHIFT = 10.0
"""Anything larger is a velocity in km/s."""

WIDEST_ANGLE = 360.0
"""Largest absolute value of a position angle, degrees; catalogues write 999 for unknown."""

EDGE_ON = 90.0
"""Largest inclination to the sky, degrees."""

_J_NAME = re.compile(r"J(\d\d)(\d\d)(\d\d(?:\.\d+)?)([+-])(\d\d)(\d\d)(\d\d(?:\.\d+)?)")


@dataclass(frozen=True)
class Disc:
    """One galaxy of a pair; unknown values are None.

    Attributes
    ----------
    sky : (float, float), optional
        Right ascension and declination, degrees.
    pixel : (float, float), optional
        Position in the image, column and row.
    pa_deg, inclination_deg : float, optional
        Position angle and inclination to the sky.
    magnitude : float, optional
        Magnitude.
    """

    sky: tuple[float, float] | None = None
    pixel: tuple[float, float] | None = None
    pa_deg: float | None = None
    inclination_deg: float | None = None
    magnitude: float | None = None


@dataclass(frozen=True)
class Pair:
    """A real pair.

    Attributes
    ----------
    name, image : str
        Its name, and the name of its image.
    discs : (Disc, Disc)
        Its galaxies.
    scale_arcsec_per_px : float, optional
        Scale of the image.
    redshift : float, optional
        Redshift of the pair.
    """

    name: str
    image: str
    discs: tuple[Disc, Disc]
    scale_arcsec_per_px: float | None = None
    redshift: float | None = None

    @property
    def solutions_deg(self) -> tuple[float, float] | None:
        """Relative inclination by Eq. 3, and that for one disc tilted the other way.

        None if an angle is unknown. Both are in 0..90 (`folded`).
        """
        (first, second) = self.discs
        angles = (first.inclination_deg, second.inclination_deg, first.pa_deg, second.pa_deg)
        if None in angles:
            return None
        i1, i2, pa1, pa2 = (float(a) for a in angles if a is not None)
        return (
            float(folded(relative_inclination(i1, i2, pa1, pa2))),
            float(folded(relative_inclination(i1, -i2, pa1, pa2))),
        )

    @property
    def light_ratio(self) -> float | None:
        """The brighter galaxy's light over the other's; None if unknown."""
        first, second = (disc.magnitude for disc in self.discs)
        if first is None or second is None:
            return None
        return float(10 ** (0.4 * abs(first - second)))


def folded(inclination_deg: ArrayLike) -> NDArray[np.float64]:
    """Return min(i, 180 - i), degrees: images do not show the sense of a disc's rotation."""
    inclination = np.asarray(inclination_deg, np.float64)
    return np.minimum(inclination, 180.0 - inclination)


def inclination_of_axes(axis_ratio: float) -> float:
    """Return a disc's inclination to the sky from its axis ratio b/a, degrees.

    ``cos^2 i = (q^2 - q0^2) / (1 - q0^2)`` with q0 = 0.2; flatter discs are edge-on.
    """
    square = (axis_ratio**2 - THICKNESS**2) / (1 - THICKNESS**2)
    return math.degrees(math.acos(math.sqrt(min(max(square, 0.0), 1.0))))


def place_of_name(name: str) -> tuple[float, float] | None:
    """Return right ascension and declination, degrees, from a name in J notation.

    Examples
    --------
    >>> place_of_name("J013247.27-082526.9")
    (23.19696, -8.42414)
    """
    match = _J_NAME.search(name)
    if not match:
        return None
    h, m, s, sign, d, minutes, seconds = match.groups()
    ra = 15 * (int(h) + int(m) / 60 + float(s) / 3600)
    dec = int(d) + int(minutes) / 60 + float(seconds) / 3600
    return ra, -dec if sign == "-" else dec


def read_pairs(path: Path) -> list[Pair]:
    """Read a table of pairs, and log which of its columns are ignored.

    Raises
    ------
    InputError
        It is not such a table, or a value is invalid; the message names file and line.
    """
    others: set[str] = set()

    def row(cells: dict[str, str]) -> Pair:
        others.update(cells.keys() - {"", *COLUMNS})
        return pair_of(cells)

    pairs = tables.parse(path, tables.read_bytes(path), (), None, row)
    if others:
        log.info("%s: ignored columns: %s", path, ", ".join(sorted(others)))
    names = [pair.name for pair in pairs]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"{path}: the pair {name} is listed more than once")
    return pairs


def write_pairs(path: Path, pairs: Sequence[Pair]) -> None:
    """Write a table that `read_pairs` reads back."""
    buffer = io.StringIO()
    rows = [_cells(pair) for pair in pairs]
    writer = csv.DictWriter(buffer, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    files.write_text(path, buffer.getvalue())


def _cells(pair: Pair) -> dict[str, object]:
    cells: dict[str, object] = {
        "name": pair.name,
        "image": pair.image,
        "scale_arcsec_per_px": pair.scale_arcsec_per_px,
        "redshift": pair.redshift,
    }
    for k, disc in enumerate(pair.discs, 1):
        cells[f"ra{k}_deg"], cells[f"dec{k}_deg"] = disc.sky or (None, None)
        cells[f"x{k}_px"], cells[f"y{k}_px"] = disc.pixel or (None, None)
        cells[f"pa{k}_deg"], cells[f"i{k}_deg"] = disc.pa_deg, disc.inclination_deg
        cells[f"mag{k}"] = disc.magnitude
    return cells


def pair_of(cells: dict[str, str]) -> Pair:
    """Return the pair of a row, given as its cells by column.

    Raises
    ------
    ValueError
        A cell is invalid; the message names its column.
    """
    name = cells.get("name") or Path(cells.get("image", "")).stem or cells.get("name1", "")
    if not name:
        raise ValueError("a pair needs a name, an image or a name1")
    image = cells.get("image") or f"{name}.jpg"
    if Path(image).name != image:
        raise ValueError(
            f"image {image!r} must be a file name in the folder of images, without a path"
        )
    redshift = _positive(cells, "redshift")
    if redshift is not None and redshift > FARTHEST_REDSHIFT:
        raise ValueError(f"redshift: {redshift:g} is above {FARTHEST_REDSHIFT:g}; is it in km/s?")
    return Pair(
        name,
        image,
        (_disc(cells, 1), _disc(cells, 2)),
        _positive(cells, "scale_arcsec_per_px"),
        redshift,
    )


def _disc(cells: dict[str, str], number: int) -> Disc:
    inclination = _number(cells, f"i{number}_deg")
    if inclination is not None and not 0 <= inclination <= EDGE_ON:
        raise ValueError(f"i{number}_deg: must be in 0..{EDGE_ON:g}, not {inclination:g}")
    major, minor = (_positive(cells, f"{axis}{number}_px") for axis in "ab")
    if (major is None) != (minor is None):
        raise ValueError(f"a{number}_px and b{number}_px must be given together")
    if major and minor and minor > major:
        raise ValueError(
            f"b{number}_px: {minor:g} is above a{number}_px, {major:g}; a is the major axis, to "
            "which the position angle belongs"
        )
    if inclination is None and major and minor:
        inclination = inclination_of_axes(minor / major)
    magnitude = _number(cells, f"mag{number}")
    if magnitude is not None and abs(magnitude) > FAINTEST_MAGNITUDE:
        raise ValueError(
            f"mag{number}: {magnitude:g} is not a magnitude; leave it empty if unknown"
        )
    angle = _number(cells, f"pa{number}_deg")
    if angle is not None and abs(angle) > WIDEST_ANGLE:
        raise ValueError(f"pa{number}_deg: {angle:g} is not an angle; leave it empty if unknown")
    place = _both(cells, f"ra{number}_deg", f"dec{number}_deg")
    if place and not (0 <= place[0] <= 360 and abs(place[1]) <= 90):
        raise ValueError(
            f"ra{number}_deg, dec{number}_deg: {place[0]:g}, {place[1]:g} is no position on the "
            "sky (0..360 and -90..90 degrees)"
        )
    return Disc(
        sky=place or place_of_name(cells.get(f"name{number}", "")),
        pixel=_both(cells, f"x{number}_px", f"y{number}_px"),
        pa_deg=angle,
        inclination_deg=inclination,
        magnitude=magnitude,
    )


def _both(cells: dict[str, str], first: str, second: str) -> tuple[float, float] | None:
    """Return the two coordinates of a position; None if neither is given."""
    values = _number(cells, first), _number(cells, second)
    if values[0] is not None and values[1] is not None:
        return values[0], values[1]
    if values != (None, None):
        raise ValueError(f"{first} and {second} must be given together")
    return None


def _number(cells: dict[str, str], column: str) -> float | None:
    """Return a cell's number; None if the column or its entry is missing."""
    if not (text := cells.get(column, "")):
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{column}: {text!r} is not a number")
    return value


def _positive(cells: dict[str, str], column: str) -> float | None:
    value = _number(cells, column)
    if value is not None and value <= 0:
        raise ValueError(f"{column}: must be above 0, not {value:g}")
    return value
