"""A catalogue's runs and angles, or its table of images, as an ordered list of views."""

import bisect
import hashlib
import itertools
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple, overload
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from galmerhpc import tables
from galmerhpc.config import (
    IMAGE_COLUMNS,
    Catalogue,
    Config,
    Images,
    Render,
    Run,
    Snapshot,
    Spin,
    ViewGrid,
    require_catalogue,
)
from galmerhpc.errors import InputError
from galmerhpc.parameters import AZIMUTH, INCLINATION, NAMES, SPIN, SPINS, VIEWING_ANGLE, named
from galmerhpc.preview import Preview, number_text

_FEW = 8  # values or snapshots that are listed one by one


@dataclass(frozen=True, slots=True)
class View:
    """One image to fetch: a snapshot of a run seen from a direction.

    Attributes
    ----------
    run : Run
        The encounter.
    snapshot : Snapshot
        Its moment; the time of an image from a table is NaN if unknown.
    theta, phi : float
        Line of sight, degrees.
    render : Render
        Options of the image.
    file : Path or None
        The image, where it comes from a table of images.
    name : str
        Its name in that table.
    """

    run: Run
    snapshot: Snapshot
    theta: float
    phi: float
    render: Render
    file: Path | None = None
    name: str = ""

    @property
    def preview(self) -> Preview:
        """The view as a request to the preview service."""
        return preview(self.render, self.snapshot.id, self.theta, self.phi)

    @property
    def id(self) -> str:
        """Identity of the view, independent of its place in a list.

        Realisation and query string; or an image's name in its table, and its line of sight.
        """
        if self.file:
            return _id_of_picture(self.name, self.theta, self.phi)
        return f"simulation={self.run.simulation}&{self.preview.query()}"

    @property
    def labels(self) -> dict[str, float]:
        """Every label by name: the four of `parameters` (degrees; spin 0, 1) and the run's own."""
        return {
            SPIN.name: SPINS[self.run.spin],
            INCLINATION.name: self.run.inclination_deg,
            AZIMUTH.name: self.phi,
            VIEWING_ANGLE.name: self.theta,
            **self.run.labels,
        }


def preview(render: Render, snap_id: int, theta: float, phi: float) -> Preview:
    """Return a request to the preview service.

    Parameters
    ----------
    render : Render
        Options of the image.
    snap_id : int
        The service's number of the snapshot.
    theta, phi : float
        Line of sight, degrees.
    """
    r = render
    return Preview(
        nbins=r.nbins, snap_id=snap_id, phi=phi, theta=theta, bins=1 / r.zoom, bri=r.brightness,
        xc=r.xc_kpc, yc=r.yc_kpc, gas=r.gas, stars=r.stars, halo=r.halo, quantity=r.quantity,
    )  # fmt: skip


MOST_VIEWS = 2_000_000_000
"""Most views of a run; GalMer's whole grid in steps of one degree has half as many."""


class Views(Sequence[View]):
    """All views of a catalogue, in its order: run by run, snapshot, theta, phi innermost.

    Views are made when asked for, so that millions of them take no memory. Those of a table of
    images come in the table's order.

    Parameters
    ----------
    catalogue : Catalogue
        The catalogue.

    Raises
    ------
    InputError
        The table of images cannot be read or a row of it is wrong; the message names the line.

    Examples
    --------
    >>> run = Run(spin="retrograde", inclination_deg=90, first_id=27436)
    >>> views = Views(Catalogue(runs=(run,)))
    >>> len(views), views[-1].theta, views[-1].phi
    (16471, 90.0, 180.0)
    """

    def __init__(self, catalogue: Catalogue) -> None:
        self._blocks: Sequence[_Grid | _Table]
        if catalogue.images:
            self._blocks = [_Table(catalogue.images, catalogue.render)]
        else:
            self._blocks = [
                _Grid(run, snapshot, run.views or catalogue.views, catalogue.render)
                for run in catalogue.runs
                for snapshot in run.all_snapshots()
            ]
        self._ends = list(itertools.accumulate(map(len, self._blocks)))

    def __len__(self) -> int:
        """Return the number of views."""
        return self._ends[-1]

    @overload
    def __getitem__(self, index: int) -> View: ...
    @overload
    def __getitem__(self, index: slice) -> list[View]: ...
    def __getitem__(self, index: int | slice) -> View | list[View]:
        """Return one view, or a list of them."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        block = bisect.bisect_right(self._ends, index)
        return self._blocks[block].view(index - (self._ends[block - 1] if block else 0))

    def ids(self) -> Iterator[str]:
        """Yield every view's id in order: millions of them in seconds."""
        return itertools.chain.from_iterable(block.ids() for block in self._blocks)

    def column(self, name: str) -> NDArray[np.float64]:
        """Return a label, or ``simulation``, of all views in order, shape (V,)."""
        return np.concatenate([block.column(name) for block in self._blocks])


class _Grid:
    """The views of one snapshot on a grid of directions."""

    def __init__(self, run: Run, snapshot: Snapshot, grid: ViewGrid, render: Render) -> None:
        self._run, self._snapshot, self._render = run, snapshot, render
        self._theta, self._phi = grid.theta_deg, grid.phi_deg
        self._rows, self._columns = grid.theta_deg.count, grid.phi_deg.count

    def __len__(self) -> int:
        return self._rows * self._columns

    def view(self, index: int) -> View:
        row, column = divmod(index, self._columns)
        theta, phi = self._theta.at(row), self._phi.at(column)
        return View(self._run, self._snapshot, theta, phi, self._render)

    def ids(self) -> Iterator[str]:
        before, _, rest = self.view(0).id.partition("&phi=")
        after = rest.partition("&theta=")[2].partition("&")[2]
        phis = [number_text(self._phi.at(k)) for k in range(self._columns)]
        for k in range(self._rows):
            theta = number_text(self._theta.at(k))
            yield from (f"{before}&phi={phi}&theta={theta}&{after}" for phi in phis)

    def column(self, name: str) -> NDArray[np.float64]:
        if name == VIEWING_ANGLE.name:
            return np.repeat(self._theta.values(), self._columns)
        if name == AZIMUTH.name:
            return np.tile(self._phi.values(), self._rows)
        return np.full(len(self), _of_run(self._run, name))


def _of_run(run: Run, name: str) -> float:
    """Return what all views of a run have in common, by name."""
    own = {SPIN.name: SPINS[run.spin], INCLINATION.name: run.inclination_deg}
    return {**own, **run.labels, "simulation": float(run.simulation)}[name]


# --- the table of images --------------------------------------------------------------------------


class _Table:
    """The views of a table of images, one per row."""

    def __init__(self, images: Images, render: Render) -> None:
        self._folder, self._render = images.table.parent, render
        rows = _read_table(images)
        self._names = [row.name for row in rows]
        self._theta = np.array([row.theta for row in rows])
        self._phi = np.array([row.phi for row in rows])
        number = {run: k for k, run in enumerate(dict.fromkeys(row.run for row in rows))}
        self._number = np.array([number[row.run] for row in rows])
        self._runs = [run.build(images.labels) for run in number]

    def __len__(self) -> int:
        return len(self._names)

    def view(self, index: int) -> View:
        run, name = self._runs[self._number[index]], self._names[index]
        theta, phi = float(self._theta[index]), float(self._phi[index])
        file = self._folder / name
        return View(run, run.snapshots[0], theta, phi, self._render, file, name)

    def ids(self) -> Iterator[str]:
        return map(_id_of_picture, self._names, self._theta.tolist(), self._phi.tolist())

    def column(self, name: str) -> NDArray[np.float64]:
        if name == VIEWING_ANGLE.name:
            return self._theta
        if name == AZIMUTH.name:
            return self._phi
        return np.array([_of_run(run, name) for run in self._runs])[self._number]


def views_to_make(catalogue: Catalogue) -> Views:
    """Return the views of a catalogue that is not only to be shown.

    Raises
    ------
    InputError
        There are more than their numbers, of 32 bits, can tell apart; or as from `Views`.
    """
    views = Views(catalogue)
    if len(views) > MOST_VIEWS:
        raise InputError(
            f"the catalogue has {len(views):,} views, more than {MOST_VIEWS:,}; take larger steps, "
            "or split it into several runs"
        )
    return views


def _id_of_picture(name: str, theta: float, phi: float) -> str:
    """Write an image's id: like a query string, since evaluation reads the line of sight there."""
    return f"file={quote(name)}&phi={number_text(phi)}&theta={number_text(theta)}"


class _RunOfRow(NamedTuple):
    """What images of one snapshot have in common; millions of rows share few of them."""

    spin: Spin
    inclination: float
    simulation: int
    snapshot_id: int
    time_myr: float | None
    labels: tuple[float, ...]

    def build(self, names: Sequence[str]) -> Run:
        # Unvalidated: in a configuration a time is a number, and here it may be unknown.
        time_myr = math.nan if self.time_myr is None else self.time_myr
        snapshot = Snapshot.model_construct(id=self.snapshot_id, time_myr=time_myr)
        return Run(
            spin=self.spin,
            inclination_deg=self.inclination,
            simulation=self.simulation,
            snapshots=(snapshot,),
            labels=dict(zip(names, self.labels, strict=True)),
        )


class _Row(NamedTuple):
    """A row of the table."""

    name: str
    theta: float
    phi: float
    run: _RunOfRow


_LARGEST = 2.0**31 - 1
_REAL = (-1e9, 1e9)  # as in the configuration; far larger numbers overflow in training
# Of the columns with numbers; one that is left out counts as zeros, except for the time.
_RANGES = {
    INCLINATION.name: (0.0, 180.0),
    AZIMUTH.name: (-180.0, 180.0),
    VIEWING_ANGLE.name: (-90.0, 180.0),
    "simulation": (0.0, _LARGEST),
    "snapshot_id": (0.0, _LARGEST),
}
_WHOLE = ("simulation", "snapshot_id")


def _read_table(images: Images) -> list[_Row]:
    """Read the table of images.

    Raises
    ------
    InputError
        The file is missing, changed since the configuration was read, or wrong in a line.
    """
    path = images.table
    content = tables.read_bytes(path)
    if images.sha256 and hashlib.sha256(content).hexdigest() != images.sha256:
        raise InputError(
            f"{path}: has changed since the configuration of this run was written; put the old "
            "one back, or choose another run_dir and import again"
        )
    needed = ("file", *NAMES, *images.labels)
    rows = tables.parse(path, content, needed, IMAGE_COLUMNS, lambda cells: _row(cells, images))
    name, times = Counter(row.name for row in rows).most_common(1)[0]
    if times > 1:
        raise InputError(f"{path}: {name} is listed more than once")
    return rows


def _row(cells: Mapping[str, str], images: Images) -> _Row:
    """Read a line.

    Raises
    ------
    ValueError
        It is wrong; the message names the column.
    """
    numbers = {name: _number(name, cells.get(name, "0")) for name in (*_RANGES, *images.labels)}
    time_myr = cells.get("time_myr")
    run = _RunOfRow(
        _spin(cells[SPIN.name]),
        numbers[INCLINATION.name],
        int(numbers["simulation"]),
        int(numbers["snapshot_id"]),
        _number("time_myr", time_myr) if time_myr else None,
        tuple(numbers[name] for name in images.labels),
    )
    return _Row(_file(cells["file"]), numbers[VIEWING_ANGLE.name], numbers[AZIMUTH.name], run)


def _number(name: str, text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        raise ValueError(f"{name}: {text!r} is not a number") from None
    low, high = _RANGES.get(name, _REAL)
    if not (math.isfinite(number) and low <= number <= high):
        raise ValueError(f"{name}: {text} is outside {low:g}..{high:g}")
    if name in _WHOLE and number != int(number):
        raise ValueError(f"{name}: {text} is not a whole number")
    return number


def _spin(text: str) -> Spin:
    if text in ("prograde", "0"):
        return "prograde"
    if text in ("retrograde", "1"):
        return "retrograde"
    raise ValueError(f"{SPIN.name}: {text!r} is neither prograde (0) nor retrograde (1)")


def _file(text: str) -> str:
    """Return an image's name in one spelling: its identity, on whatever machine."""
    path = PurePosixPath(text)
    if not text or not text.isprintable() or path.is_absolute() or ".." in path.parts:
        raise ValueError(f"file: {text!r} is not a file beside or below the table")
    return str(path)


def require_classes(config: Config, views: Views) -> None:
    """Refuse a table of images with labels that the configured classification has no class for.

    Of a catalogue's runs the configuration itself refuses them; a table is not read with it.

    Raises
    ------
    InputError
        There are such labels; the message names the first image.
    """
    catalogue = require_catalogue(config)
    if config.model.task != "classification" or not catalogue.images:
        return
    for parameter in map(named, config.parameters):
        values = views.column(parameter.name)
        if not (good := parameter.in_class(values)).all():
            first = int(np.argmin(good))
            raise InputError(
                f"{catalogue.images.table}: {views[first].name}: model.task: classification has "
                f"no class for {parameter.name} {values[first]:g} (it has them for "
                f"{parameter.span}), as for {np.count_nonzero(~good)} of {len(views)} images; "
                f"take them out of the table, or leave {parameter.name} out of parameters"
            )


# --- a catalogue for the eye ----------------------------------------------------------------------


def describe(catalogue: Catalogue) -> str:
    """Return a catalogue as text: runs, views, labels and counts.

    Raises
    ------
    InputError
        Its table of images cannot be read or is wrong.
    """
    views = Views(catalogue)
    if catalogue.images:
        lines = [f"table of images {catalogue.images.table}"]
    else:
        lines = [*_run_lines(catalogue), ""]
        lines += [f"views   {_grid_text(grid)}" for grid in _grids(catalogue)]
    r = catalogue.render
    lines += [f"image   {r.nbins} x {r.nbins} pixels", "", "label           values"]
    for name in (*NAMES, *catalogue.label_names):
        values = _values(catalogue, views, name)
        few = ", ".join(f"{value:g}" for value in values[:_FEW])
        span = f"{values[0]:g} to {values[-1]:g} ({len(values)} values)"
        lines.append(f"{name:15} {few if len(values) <= _FEW else span}")
    what = "images to import" if catalogue.images else "requests"
    return "\n".join([*lines, "", f"{len(views):,} views, as many {what}"])


def _values(catalogue: Catalogue, views: Views, name: str) -> NDArray[np.float64]:
    """Return the values of a label, ascending, without going through all views of grids."""
    if catalogue.images:
        return np.unique(views.column(name))
    if name in (VIEWING_ANGLE.name, AZIMUTH.name):
        axes = [
            grid.theta_deg if name == VIEWING_ANGLE.name else grid.phi_deg
            for grid in _grids(catalogue)
        ]
        return np.unique(np.concatenate([axis.values() for axis in axes]))
    return np.unique([_of_run(run, name) for run in catalogue.runs])


def _grids(catalogue: Catalogue) -> list[ViewGrid]:
    """Return the different grids of directions, in order."""
    return list(dict.fromkeys(run.views or catalogue.views for run in catalogue.runs))


def _run_lines(catalogue: Catalogue) -> Iterator[str]:
    yield "pair        orbit  spin          i  simulation  snapshots (id at time in Myr)     views"
    for run in catalogue.runs:
        grid = run.views or catalogue.views
        snapshots = run.all_snapshots()
        shown = ", ".join(f"{s.id} at {s.time_myr:g}" for s in snapshots[:_FEW])
        if len(snapshots) > _FEW:
            last = snapshots[-1]
            shown = f"{shown}, ... {last.id} at {last.time_myr:g} ({len(snapshots)} in all)"
        yield (
            f"{run.pair:11} {run.orbit:5}  {run.spin:10} {run.inclination_deg:4g}  "
            f"{run.simulation:10}  {shown:32} {len(snapshots) * grid.count:6,}"
        )


def _grid_text(grid: ViewGrid) -> str:
    axes = [("theta", grid.theta_deg), ("phi", grid.phi_deg)]
    return ", ".join(
        f"{name} {a.start:g} to {a.at(a.count - 1):g} in steps of {a.step:g}" for name, a in axes
    )


class Places:
    """Places of ids in a list of millions; of a repeated one the first.

    Ids are compared by a hash of 64 bits, which takes 16 bytes per id; whoever reads what is at a
    place compares the ids themselves.

    Parameters
    ----------
    ids : iterable of str
        The list.
    count : int
        Its length.
    """

    def __init__(self, ids: Iterable[str], count: int) -> None:
        hashes = np.fromiter(map(hash, ids), np.int64, count)
        self._order = np.argsort(hashes, kind="stable")
        self._hashes = hashes[self._order]

    def of(self, ids: Iterable[str], count: int) -> NDArray[np.int64]:
        """Return the places of `count` ids, shape (count,); -1 where one is not in the list."""
        wanted = np.fromiter(map(hash, ids), np.int64, count)
        if not len(self._hashes):
            return np.full(count, -1)
        place = np.minimum(np.searchsorted(self._hashes, wanted), len(self._hashes) - 1)
        return np.where(self._hashes[place] == wanted, self._order[place], -1)


class ViewsById:
    """Views by their ids.

    Parameters
    ----------
    views : Views
        The views.
    """

    def __init__(self, views: Views) -> None:
        self._views, self._places = views, Places(views.ids(), len(views))

    def find(self, ids: Sequence[str]) -> list[View | None]:
        """Return the views of ids; None where there is no such view."""
        places = self._places.of(ids, len(ids)).tolist()
        found = [self._views[place] if place >= 0 else None for place in places]
        return [v if v and v.id == i else None for v, i in zip(found, ids, strict=True)]
