"""Data on real pairs from archives: SDSS's SkyServer and HyperLEDA, over HTTP.

SkyServer (https://skyserver.sdss.org/dr18/SkyServerWS) answers ``SearchTools/SqlSearch`` with rows
of its database and ``ImgCutout/getjpeg`` with a colour image. HyperLEDA (Makarov et al. 2014,
A&A 570, A13) answers ``fG.cgi`` with rows of its mean data, with right ascension in hours. Both
report some errors as a page with status 200.
"""

import csv
import io
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TypeVar

import requests
from PIL import Image
from requests.adapters import HTTPAdapter
from tqdm import tqdm
from urllib3.util import Retry

from galmerhpc import __version__, files
from galmerhpc.dataset.pictures import is_blank
from galmerhpc.errors import GalmerhpcError, InputError, brief
from galmerhpc.evaluation import photographs
from galmerhpc.evaluation.pair_image import kpc_per_arcsec
from galmerhpc.evaluation.pairs import (
    EDGE_ON,
    FAINTEST_MAGNITUDE,
    FARTHEST_REDSHIFT,
    WIDEST_ANGLE,
    Disc,
    Pair,
    read_pairs,
    write_pairs,
)

log = logging.getLogger(__name__)

Row = TypeVar("Row", Disc, Pair)

SKYSERVER = "https://skyserver.sdss.org/dr18/SkyServerWS"
HYPERLEDA = "http://atlas.obs-hp.fr/hyperleda/fG.cgi"

RADIUS_ARCSEC = 6.0
"""Largest distance of an archive's object from the requested position."""

OWN_SHARE = 0.4
"""The same in separations of the pair: less than half, so that no object is taken for both."""

CUTOUT_PX = 512
CUTOUT_SEPARATIONS = 8.0
"""Width of a cut-out in separations of the pair; training fields are 3 to 5 separations wide."""

CUTOUT_KPC = 100.0
"""Least width of a cut-out with known redshift: the widest training field, so that close pairs have
no black frame either."""

FINEST_ARCSEC = 0.1
"""Smallest pixel of a cut-out: a quarter of SDSS's."""

_TIMEOUT_S = 60.0
_RETRY = Retry(
    total=4, backoff_factor=1.0, status_forcelist=(429, 500, 502, 503, 504), raise_on_status=False
)

_NEAREST_GALAXY = """
SELECT TOP 1 p.modelMag_r AS magnitude, s.z AS redshift
FROM dbo.fGetNearbyObjEq({ra:.6f}, {dec:.6f}, {radius:.4f}) AS n
JOIN PhotoObj AS p ON p.objID = n.objID
LEFT JOIN SpecObj AS s ON s.bestObjID = p.objID
WHERE p.type = 3
ORDER BY n.distance
"""


@dataclass(frozen=True)
class Archives:
    """The two archives.

    Attributes
    ----------
    skyserver, hyperleda : str
        Their addresses.
    """

    skyserver: str = SKYSERVER
    hyperleda: str = HYPERLEDA

    def photometry(
        self, ra_deg: float, dec_deg: float, radius_arcsec: float = RADIUS_ARCSEC
    ) -> tuple[float | None, float | None]:
        """Return r magnitude and redshift of the galaxy at a position, each None if unknown.

        Raises
        ------
        GalmerhpcError
            SkyServer cannot be reached or gives an unexpected answer.
        """
        query = _NEAREST_GALAXY.format(ra=ra_deg, dec=dec_deg, radius=radius_arcsec / 60)
        address = f"{self.skyserver}/SearchTools/SqlSearch"
        text = _get(address, cmd=" ".join(query.split()), format="csv").decode("utf-8", "replace")
        lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
        head, *rows = [line.replace(" ", "").lower().split(",") for line in lines] or [[]]
        if head != ["magnitude", "redshift"] or any(len(row) != len(head) for row in rows):
            raise GalmerhpcError(
                f"{address}: answered {_quote(text)} instead of a table; try again later"
            )
        if not rows:
            return None, None
        magnitude, redshift = map(_number, rows[0])
        return (
            _within(magnitude, -FAINTEST_MAGNITUDE, FAINTEST_MAGNITUDE),
            # A negative redshift is of a galaxy too near for it to measure the distance.
            _within(redshift, 0, FARTHEST_REDSHIFT) or None,
        )

    def cutout(self, ra_deg: float, dec_deg: float, scale_arcsec: float) -> bytes | None:
        """Return a JPEG of `CUTOUT_PX` pixels per side, north up, east left; None if blank.

        Raises
        ------
        GalmerhpcError
            SkyServer cannot be reached or gives an unexpected answer.
        """
        address = f"{self.skyserver}/ImgCutout/getjpeg"
        body = _get(
            address, ra=f"{ra_deg:.6f}", dec=f"{dec_deg:.6f}", scale=f"{scale_arcsec:.4f}",
            width=CUTOUT_PX, height=CUTOUT_PX,
        )  # fmt: skip
        try:
            picture = photographs.decode(io.BytesIO(body))
            if picture.size != (CUTOUT_PX, CUTOUT_PX):
                raise ValueError(f"{picture.width} x {picture.height} pixels")
        except ValueError as error:
            text = body.decode("utf-8", "backslashreplace")
            raise GalmerhpcError(
                f"{address}: {_quote(text)} is not the requested image ({error}); try again later"
            ) from None
        return None if is_blank(picture) else body

    def orientation(
        self, ra_deg: float, dec_deg: float, radius_arcsec: float = RADIUS_ARCSEC
    ) -> tuple[float | None, float | None]:
        """Return position angle and inclination of the galaxy at a position, degrees or None.

        Raises
        ------
        GalmerhpcError
            HyperLEDA cannot be reached or gives an unexpected answer.
        """
        reach = radius_arcsec / 3600
        reach_ra = reach / max(math.cos(math.radians(dec_deg)), 1e-3)
        where = (
            f"al2000 between {(ra_deg - reach_ra) / 15:.7f} and {(ra_deg + reach_ra) / 15:.7f} and "
            f"de2000 between {dec_deg - reach:.6f} and {dec_deg + reach:.6f} and objtype = 'G'"
        )
        text = _get(
            self.hyperleda, n="meandata", c="o", of="1,leda,simbad", nra="l", nakd="1",
            d="objname,al2000,de2000,pa,incl", sql=where, ob="", a="csv[,]",
        ).decode("utf-8", "replace")  # fmt: skip
        rows = [row for row in csv.reader(io.StringIO(text)) if row and row[0][:1] not in ("#", "")]
        head = [name.strip().lstrip("$").lower() for name in rows[0]] if rows else []
        if not {"al2000", "de2000", "pa", "incl"} <= set(head):
            raise GalmerhpcError(
                f"{self.hyperleda}: answered {_quote(text)} instead of a table; try again later"
            )
        places = {}
        for row in rows[1:]:
            cells = dict(zip(head, map(_number, row), strict=False))
            hours, declination = cells.get("al2000"), cells.get("de2000")
            if hours is not None and declination is not None:
                apart = separation_arcsec((ra_deg, dec_deg), (15 * hours, declination))
                places[apart] = cells
        if not places or min(places) > radius_arcsec:
            return None, None
        nearest = places[min(places)]
        return (
            _within(nearest.get("pa"), -WIDEST_ANGLE, WIDEST_ANGLE),
            _within(nearest.get("incl"), 0, EDGE_ON),
        )


def fetch(pairs: Sequence[Pair], images: Path, archives: Archives) -> list[Pair]:
    """Complete a table of pairs from archives, and write the images into a folder.

    Existing images are kept, and nothing is requested that the table gives or that an earlier fetch
    into this folder has found.

    Parameters
    ----------
    pairs : sequence of Pair
        Incomplete ones need the right ascensions and declinations of their discs.
    images : Path
        Folder of the images; ``fetched.csv`` in it is the table that is returned, as far as it is
        complete if fetching ends early.
    archives : Archives
        The archives.

    Raises
    ------
    InputError
        A pair has no position on the sky, or its image is not from this function.
    GalmerhpcError
        An archive cannot be reached or gives an unexpected answer; what was fetched is kept.
    """
    for pair in pairs:
        if _lacks(pair) and None in (disc.sky for disc in pair.discs):
            raise InputError(
                f"pair {pair.name}: --fetch needs ra1_deg, dec1_deg, ra2_deg and dec2_deg, or "
                "names such as J013247.27-082526.9 in name1 and name2"
            )
    table = images / "fetched.csv"
    before = {pair.name: pair for pair in read_pairs(table)} if table.exists() else {}
    fetched, done = [_resumed(pair, before.get(pair.name)) for pair in pairs], 0
    try:
        for pair in tqdm(fetched, desc="fetch", unit="pair", disable=None):
            fetched[done] = _fetched(pair, images, archives)
            done += 1
    finally:
        if done:
            write_pairs(table, fetched)
            log.info("fetch: %s: %d of %d pairs", table, done, len(pairs))
    return fetched


def _resumed(pair: Pair, before: Pair | None) -> Pair:
    """Return a pair as an earlier fetch completed it, unless its row has changed since."""
    if before is None:
        return pair
    discs = [_completed(disc, other) for disc, other in zip(pair.discs, before.discs, strict=True)]
    filled = replace(_completed(pair, before), discs=(discs[0], discs[1]))
    return before if filled == before else pair


def _completed(one: Row, other: Row) -> Row:
    """Return one with its missing values taken from the other."""
    missing = [f.name for f in fields(one) if getattr(one, f.name) is None]
    return replace(one, **{name: getattr(other, name) for name in missing})


def _lacks(pair: Pair) -> bool:
    """Return whether archives may know more about a pair than the table."""
    known = [(d.pixel, d.pa_deg, d.inclination_deg, d.magnitude) for d in pair.discs]
    return pair.redshift is None or any(None in disc for disc in known)


def _fetched(pair: Pair, images: Path, archives: Archives) -> Pair:
    first, second = (disc.sky for disc in pair.discs)
    if first is None or second is None:
        return pair
    radius = min(RADIUS_ARCSEC, OWN_SHARE * separation_arcsec(first, second))
    discs = tuple(
        _oriented(disc, place, radius, archives)
        for disc, place in zip(pair.discs, (first, second), strict=True)
    )
    redshift = pair.redshift
    if redshift is None or any(disc.magnitude is None for disc in discs):
        known = [archives.photometry(*place, radius) for place in (first, second)]
        discs = tuple(
            replace(disc, magnitude=magnitude if disc.magnitude is None else disc.magnitude)
            for disc, (magnitude, _) in zip(discs, known, strict=True)
        )
        redshift = next((z for z in (redshift, known[0][1], known[1][1]) if z is not None), None)
    pair = replace(pair, discs=(discs[0], discs[1]), redshift=redshift)
    return _with_cutout(pair, first, second, images, archives)


def _oriented(
    disc: Disc, place: tuple[float, float], radius_arcsec: float, archives: Archives
) -> Disc:
    if disc.pa_deg is not None and disc.inclination_deg is not None:
        return disc
    pa, inclination = archives.orientation(*place, radius_arcsec)
    return replace(
        disc,
        pa_deg=pa if disc.pa_deg is None else disc.pa_deg,
        inclination_deg=inclination if disc.inclination_deg is None else disc.inclination_deg,
    )


def _with_cutout(
    pair: Pair,
    first: tuple[float, float],
    second: tuple[float, float],
    images: Path,
    archives: Archives,
) -> Pair:
    """Return a pair with an image of the sky around it and its discs' positions there.

    A pair with other positions is returned unchanged: they refer to an image of the user's.
    """
    ra = first[0] + _wrapped(second[0] - first[0]) / 2
    dec = (first[1] + second[1]) / 2
    width = CUTOUT_SEPARATIONS * separation_arcsec(first, second)
    if pair.redshift:
        width = max(width, CUTOUT_KPC / kpc_per_arcsec(pair.redshift))
    scale = max(width / CUTOUT_PX, FINEST_ARCSEC)
    middle = (CUTOUT_PX - 1) / 2

    def pixel(place: tuple[float, float]) -> tuple[float, float]:
        east = _wrapped(place[0] - ra) * math.cos(math.radians(dec))  # to the left
        return middle - 3600 * east / scale, middle - 3600 * (place[1] - dec) / scale

    discs = tuple(
        replace(disc, pixel=pixel(place))
        for disc, place in zip(pair.discs, (first, second), strict=True)
    )
    placed = replace(pair, discs=(discs[0], discs[1]), scale_arcsec_per_px=scale)
    has_places = pair.discs[0].pixel is not None and pair.discs[1].pixel is not None
    if has_places and pair != placed:
        return pair
    path, recorded = images / pair.image, pair == placed  # by an earlier fetch
    if path.exists():
        if not is_cutout(path) or pair.scale_arcsec_per_px not in (None, scale):
            raise _not_ours(pair, path)
        if recorded and not is_broken_cutout(path):
            return placed
    picture = archives.cutout(ra % 360, dec, scale)
    # An earlier fetch may have been killed before it recorded this one.
    if path.exists() and not recorded and path.read_bytes() != picture:
        raise _not_ours(pair, path)
    if picture is None:
        log.warning("%s: not written: SkyServer has only a blank image of this position", path)
        return pair
    with files.atomic_path(path) as temporary:
        temporary.write_bytes(picture)
    return placed


def _not_ours(pair: Pair, path: Path) -> InputError:
    """Return the error of an image that is no cut-out of ours: positions in it are unknown."""
    return InputError(
        f"pair {pair.name}: {path} exists and is not from --fetch; give x1_px, y1_px, x2_px and "
        "y2_px in the table, or move the image away"
    )


def is_cutout(path: Path) -> bool:
    """Return whether an image has the format and size of a cut-out, intact or not."""
    try:
        with Image.open(path, formats=("JPEG",)) as picture:
            return picture.size == (CUTOUT_PX, CUTOUT_PX)
    except Exception:  # noqa: BLE001 - Pillow raises nearly anything on damaged files
        return False


def is_broken_cutout(path: Path) -> bool:
    """Return whether a cut-out is truncated or blank, so that it may be fetched again."""
    try:
        photographs.read(path)
    except ValueError:
        return is_cutout(path)
    return False


def separation_arcsec(first: tuple[float, float], second: tuple[float, float]) -> float:
    """Return the distance of two nearby positions (right ascension, declination, degrees)."""
    middle = math.radians((first[1] + second[1]) / 2)
    east = _wrapped(second[0] - first[0]) * math.cos(middle)
    return 3600 * math.hypot(east, second[1] - first[1])


def _wrapped(degrees: float) -> float:
    return (degrees + 180) % 360 - 180


def _get(address: str, **query: object) -> bytes:
    """Return the content of an address."""
    with requests.Session() as session:
        for scheme in ("http://", "https://"):
            session.mount(scheme, HTTPAdapter(max_retries=_RETRY))
        try:
            answer = session.get(
                address, params={k: str(v) for k, v in query.items()}, timeout=_TIMEOUT_S,
                headers={"User-Agent": f"galmerhpc/{__version__}"},
            )  # fmt: skip
        except requests.RequestException as error:
            raise GalmerhpcError(
                f"{address}: cannot be reached ({brief(error)}); try again later"
            ) from None
    if answer.status_code != requests.codes.ok:
        raise GalmerhpcError(
            f"{address}: answered {answer.status_code} {answer.reason}: {_quote(answer.text)}; "
            "try again later"
        )
    return answer.content


def _number(cell: str) -> float | None:
    """Return a cell's number; None if it is empty, null or not a number."""
    try:
        value = float(cell)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _within(value: float | None, low: float, high: float) -> float | None:
    """Return a value; None where it is what catalogues write for unknown: 99.99, 999, -9999."""
    return value if value is not None and low <= value <= high else None


def _quote(text: str) -> str:
    return repr(brief(text))
