"""GalMer's preview protocol: a view of a snapshot as a query string, and back.

The scraper asks with it and the mirror answers to it, so it is written down once.

Source: the address that GalMer's preview page requests, ``get_preview.cgi``
(Chilingarian et al. 2010, A&A 518, A61).
"""

import dataclasses
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl

PATH = "/get_preview.cgi"

MAX_NBINS = 2048
"""Widest image that is served, in pixels; a CGI must not be asked for gigabytes."""


@dataclass(frozen=True, slots=True)
class Preview:
    """The parameters of one preview image, in the order of the service's own query string.

    Attributes
    ----------
    nbins : int
        Width and height of the image in pixels.
    snap_id : int
        The service's number of the snapshot.
    phi, theta : float
        Azimuth of the line of sight about the orbital axis, and its angle to that axis, degrees.
    bins : float
        Kiloparsecs per pixel: the inverse of the page's zoom (inferred, not documented).
    bri : float
        Brightness step of the page.
    xc, yc : float
        Centre of the image in its own plane, kpc.
    gas, stars, halo : bool
        Components drawn.
    quantity : int
        What is drawn; 0 is the surface density.
    """

    nbins: int
    snap_id: int
    phi: float
    theta: float
    bins: float
    bri: float
    xc: float
    yc: float
    gas: bool
    stars: bool
    halo: bool
    quantity: int

    def query(self) -> str:
        """Return the query string, without the question mark.

        Examples
        --------
        >>> Preview(400, 27436, 30, 45, 1 / 6, 4, 0, 0, True, True, False, 0).query()
        'nbins=400&snap_id=27436&phi=30&theta=45&bins=0.16666666666666666&bri=4&xc=0&yc=0&gas=1&stars=1&halo=0&quantity=0'
        """
        # Numbers need no escaping; a catalogue of millions asks for as many of these.
        return "&".join([f"{name}={number_text(getattr(self, name))}" for name in _NAMES])

    @classmethod
    def parse(cls, query: str) -> "Preview":
        """Read a query string, as a CGI does: every parameter once, in any order.

        Raises
        ------
        ValueError
            A parameter is missing, unknown, repeated, not a number or out of its range. The
            message names it.
        """
        pairs = parse_qsl(query, keep_blank_values=True)
        given = dict(pairs)
        if len(given) != len(pairs):
            raise ValueError("a parameter is given twice")
        names = set(_NAMES)
        for name in given.keys() - names:
            raise ValueError(f"unknown parameter {name!r}")
        for name in names - given.keys():
            raise ValueError(f"parameter {name!r} is missing")
        values: dict[str, Any] = {
            f.name: _read(f.name, f.type, given[f.name]) for f in dataclasses.fields(cls)
        }
        return cls(**values)


_NAMES = tuple(f.name for f in dataclasses.fields(Preview))

LIMITS = {
    "nbins": (1, MAX_NBINS),
    "snap_id": (0, 2**31 - 1),
    "phi": (-180.0, 180.0),
    "theta": (-90.0, 180.0),
    "bins": (1e-3, 1e3),
    "bri": (-100.0, 100.0),
    "xc": (-1e4, 1e4),
    "yc": (-1e4, 1e4),
    "gas": (0, 1),
    "stars": (0, 1),
    "halo": (0, 1),
    "quantity": (0, 100),
}
"""Least and largest value of each parameter, as the mirror accepts them."""


def number_text(value: float) -> str:
    """Write a number as the page's own script does: no trailing ``.0``, full precision."""
    return str(int(value)) if value == int(value) else repr(float(value))


def _read(name: str, kind: object, text: str) -> float:
    try:
        number = float(text) if kind is float else int(text)
    except ValueError:
        raise ValueError(f"parameter {name!r} is not a number: {text!r}") from None
    low, high = LIMITS[name]
    if not low <= number <= high:
        raise ValueError(f"parameter {name!r} is {text}, outside {low}..{high}")
    return bool(number) if kind is bool else number
