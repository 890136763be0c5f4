"""A catalogue's runs and angles as an ordered list of views with stable ids."""

import bisect
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from galmerhpc.config import Catalogue, Render, Run, Snapshot
from galmerhpc.parameters import AZIMUTH, INCLINATION, SPIN, SPINS, VIEWING_ANGLE
from galmerhpc.preview import Preview, number_text


@dataclass(frozen=True, slots=True)
class View:
    """One picture to fetch: a snapshot of a run seen from a direction.

    Attributes
    ----------
    run : Run
        The encounter.
    snapshot : Snapshot
        Its moment.
    theta, phi : float
        Line of sight, degrees.
    render : Render
        Options of the picture.
    """

    run: Run
    snapshot: Snapshot
    theta: float
    phi: float
    render: Render

    @property
    def preview(self) -> Preview:
        """The view as a request to the preview service."""
        r = self.render
        return Preview(
            nbins=r.nbins, snap_id=self.snapshot.id, phi=self.phi, theta=self.theta,
            bins=1 / r.zoom, bri=r.brightness, xc=r.xc_kpc, yc=r.yc_kpc, gas=r.gas,
            stars=r.stars, halo=r.halo, quantity=r.quantity,
        )  # fmt: skip

    @property
    def id(self) -> str:
        """Identity of the view, wherever in a list it stands: realisation and query string."""
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


class Views(Sequence[View]):
    """All views of a catalogue, in its order: run by run, snapshot, theta, phi innermost.

    Views are made when asked for, so that millions of them take no memory.

    Parameters
    ----------
    catalogue : Catalogue
        The catalogue.

    Examples
    --------
    >>> run = Run(spin="retrograde", inclination_deg=90, first_id=27436)
    >>> views = Views(Catalogue(runs=(run,)))
    >>> len(views), views[-1].theta, views[-1].phi
    (16471, 90.0, 180.0)
    """

    def __init__(self, catalogue: Catalogue) -> None:
        self._render = catalogue.render
        self._blocks = []
        for run in catalogue.runs:
            grid = run.views or catalogue.views
            thetas, phis = (
                grid.theta_deg.values().tolist(),
                grid.phi_deg.values().tolist(),
            )
            self._blocks += [(run, snapshot, thetas, phis) for snapshot in run.all_snapshots()]
        sizes = [len(thetas) * len(phis) for _, _, thetas, phis in self._blocks]
        self._ends = list(itertools.accumulate(sizes))

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
        run, snapshot, thetas, phis = self._blocks[block]
        within = index - (self._ends[block - 1] if block else 0)
        theta, phi = divmod(within, len(phis))
        return View(run, snapshot, thetas[theta], phis[phi], self._render)

    def ids(self) -> Iterator[str]:
        """Yield every view's id in order: millions of them in seconds."""
        for run, snapshot, thetas, phis in self._blocks:
            first = View(run, snapshot, thetas[0], phis[0], self._render).id
            before, _, rest = first.partition("&phi=")
            after = rest.partition("&theta=")[2].partition("&")[2]
            phi_texts = [number_text(phi) for phi in phis]
            for theta in map(number_text, thetas):
                yield from (f"{before}&phi={phi}&theta={theta}&{after}" for phi in phi_texts)

    def table(self) -> dict[str, NDArray[Any]]:
        """Return what tells views from each other, by name, each of shape (V,), in order.

        They are ``simulation`` (int64) and ``inclination``, ``theta`` and ``phi`` (float64,
        degrees).
        """
        sizes = [len(thetas) * len(phis) for _, _, thetas, phis in self._blocks]
        runs = [run for run, _, _, _ in self._blocks]
        return {
            "simulation": np.repeat(np.array([run.simulation for run in runs], np.int64), sizes),
            "inclination": np.repeat([run.inclination_deg for run in runs], sizes),
            "theta": np.concatenate(
                [np.repeat(thetas, len(phis)) for _, _, thetas, phis in self._blocks]
            ),
            "phi": np.concatenate(
                [np.tile(phis, len(thetas)) for _, _, thetas, phis in self._blocks]
            ),
        }


class Places:
    """Where ids stand in a list of millions; of one that stands twice, the first place.

    Ids are compared by a hash of 64 bits, which takes 16 bytes an id; whoever reads what stands at
    a place compares the ids themselves.

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
        """Return the places of so many ids, shape (count,); -1 where one is not in the list."""
        wanted = np.fromiter(map(hash, ids), np.int64, count)
        if not len(self._hashes):
            return np.full(count, -1)
        place = np.minimum(np.searchsorted(self._hashes, wanted), len(self._hashes) - 1)
        return np.where(self._hashes[place] == wanted, self._order[place], -1)
