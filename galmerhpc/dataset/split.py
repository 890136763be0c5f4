"""Which sample is for training, validation or test: pure functions of the catalogue's views.

A view and its augmented copies, and all views of one group, are on one side, except under
``random``. Held-out views are whole tiles of neighbouring directions, and a guard band around them
is in no split: no training view's line of sight is nearer than ``tile_deg`` to a held-out one's.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from galmerhpc.catalogue import Views
from galmerhpc.config import SIMULATION_KEYS, Split
from galmerhpc.errors import InputError
from galmerhpc.parameters import AZIMUTH, INCLINATION, VIEWING_ANGLE

SPLITS = ("none", "train", "validation", "test")
"""Names by code; ``none`` is the guard band."""

NONE, TRAIN, VALIDATION, TEST = range(len(SPLITS))

Bools = NDArray[np.bool_]
Codes = NDArray[np.uint8]
Index = NDArray[np.int64]
Groups = tuple[Index, Sequence[str]]
"""The group of each view, and the groups' names."""

# Lines of sight this near to a tile's width apart count as being a tile's width apart.
_ROUNDING_DEG = 1e-6


@dataclass(frozen=True)
class ViewTable:
    """What a split looks at: one entry per view, in the catalogue's order.

    Attributes
    ----------
    simulation : ndarray, shape (V,), int64
        Realisation.
    inclination, theta, phi : ndarray, shape (V,), float64
        Degrees.
    """

    simulation: NDArray[np.int64]
    inclination: NDArray[np.float64]
    theta: NDArray[np.float64]
    phi: NDArray[np.float64]

    @classmethod
    def of(cls, views: Views) -> "ViewTable":
        """Return what a split looks at of a catalogue's views."""
        return cls(
            simulation=views.column("simulation").astype(np.int64),
            inclination=views.column(INCLINATION.name),
            theta=views.column(VIEWING_ANGLE.name),
            phi=views.column(AZIMUTH.name),
        )

    def __len__(self) -> int:
        """Return the number of views."""
        return len(self.theta)

    def where(self, chosen: Bools) -> "ViewTable":
        """Return the chosen views."""
        return ViewTable(
            self.simulation[chosen], self.inclination[chosen], self.theta[chosen], self.phi[chosen]
        )


@dataclass(frozen=True)
class Samples:
    """All samples: views in the catalogue's order, each followed by its copies.

    Attributes
    ----------
    view : ndarray, shape (N,), int32
        Index of the view in the catalogue.
    copy : ndarray, shape (N,), int32
        0 for the original, then 1, 2 ...
    split : ndarray, shape (N,), uint8
        Code of `SPLITS`.
    group : ndarray, shape (N,), int32
        Index into `group_names`.
    group_names : sequence of str
        What the split keeps together.
    """

    view: NDArray[np.int32]
    copy: NDArray[np.int32]
    split: Codes
    group: NDArray[np.int32]
    group_names: Sequence[str]

    def counts(self) -> dict[str, int]:
        """Return the number of samples by split."""
        counts = np.bincount(self.split, minlength=len(SPLITS))
        return {name: int(count) for name, count in zip(SPLITS, counts, strict=True)}

    def where(self, chosen: Bools) -> "Samples":
        """Return the chosen samples, their groups and splits as they were."""
        return Samples(
            self.view[chosen],
            self.copy[chosen],
            self.split[chosen],
            self.group[chosen],
            self.group_names,
        )


def assign(views: ViewTable, split: Split, copies: int) -> Samples:
    """Make the list of samples and give each its split and group.

    Only training views have copies; under ``random`` every view has them, since the paper drew
    its samples after augmentation.

    Parameters
    ----------
    views : ViewTable
        The catalogue's views.
    split : Split
        How to divide them.
    copies : int
        Augmented copies per view.

    Raises
    ------
    InputError
        The catalogue does not hold what the split names, or a split is empty; the message names
        the key to change.
    """
    match split.kind:
        case "random":
            codes = np.full(len(views), TRAIN, np.uint8)
            groups: Groups = np.arange(len(views)), _EachView(len(views))
        case "simulation":
            codes, groups = _by_simulation(views, split)
        case "blocked":
            fractions = {TEST: split.test_fraction, VALIDATION: split.validation_fraction}
            codes, groups = _hold_out(views, split, fractions), _tile_groups(views, split.tile_deg)
        case "inclination":
            codes, groups = _by_inclination(views, split)
    per_view = 1 + np.where(codes == TRAIN, copies, 0)
    view = np.repeat(np.arange(len(views), dtype=np.int32), per_view)
    first = np.cumsum(per_view) - per_view
    copy = (np.arange(len(view)) - first[view]).astype(np.int32)
    sample_codes = _draw(len(view), split) if split.kind == "random" else codes[view]
    if split.training_fraction is not None:
        sample_codes[_left_over(view, sample_codes == TRAIN, split)] = NONE
    _refuse_empty(sample_codes, split)
    group, group_names = groups
    return Samples(view, copy, sample_codes, group[view].astype(np.int32), group_names)


# --- the four kinds -------------------------------------------------------------------------------


def _draw(count: int, split: Split) -> Codes:
    """Draw samples one by one: the paper's split."""
    order = _generator(split).permutation(count)
    test = round(split.test_fraction * count)
    validation = round(split.validation_fraction * count)
    codes = np.full(count, TRAIN, np.uint8)
    codes[order[:test]] = TEST
    codes[order[test : test + validation]] = VALIDATION
    return codes


def _left_over(view: NDArray[np.int32], training: Bools, split: Split) -> Bools:
    """Return which training samples `training_fraction` leaves out; copies go with their view."""
    order = _generator(split).permutation(int(view[-1]) + 1)
    order = order[np.isin(order, view[training])]
    kept = order[: max(round(len(order) * (split.training_fraction or 1.0)), 1)]
    return training & ~np.isin(view, kept)


def _by_simulation(views: ViewTable, split: Split) -> tuple[Codes, Groups]:
    """Give whole realisations to test and validation; one short of that, hold out tiles."""
    present = np.unique(views.simulation).tolist()
    training, validation, test = (getattr(split, key) for key in SIMULATION_KEYS)
    for key in SIMULATION_KEYS:
        if unknown := set(getattr(split, key) or ()) - set(present):
            raise InputError(
                f"split.{key}: the catalogue has no realisation {min(unknown)} "
                f"(it has: {', '.join(map(str, present))})"
            )
    if len(present) == 1:
        raise InputError(
            "split.kind: simulation needs two realisations or more, and the catalogue has one; "
            "set split.kind to blocked (or inclination, or random, which leaks)"
        )
    left = [s for s in present if s not in {*(training or ()), *(validation or ())}]
    if test is None:
        test = tuple(left[-1:])
    left = [s for s in left if s not in test]
    if validation is None and len(left) > (0 if training else 1):
        validation = tuple(left[-1:])

    codes = np.full(len(views), TRAIN, np.uint8)
    codes[np.isin(views.simulation, test)] = TEST
    codes[np.isin(views.simulation, validation or ())] = VALIDATION
    if training is not None:
        codes[(codes == TRAIN) & ~np.isin(views.simulation, training)] = NONE
    groups = _groups("simulation={}", views.simulation)
    if not validation:
        rest = codes == TRAIN
        trained = views.where(rest)
        codes[rest] = _hold_out(trained, split, {VALIDATION: split.validation_fraction})
        tiles = _tiles(trained.theta, trained.phi, split.tile_deg)
        parts = _groups("simulation={} tile={},{}", trained.simulation, *tiles)
        groups = _replaced(groups, rest, parts)
    return codes, groups


def _by_inclination(views: ViewTable, split: Split) -> tuple[Codes, Groups]:
    """Give one inclination to test, and tiles of the others to validation."""
    held_out = np.isclose(views.inclination, split.test_inclination_deg or 0.0)
    if not held_out.any():
        present = ", ".join(f"{i:g}" for i in np.unique(views.inclination))
        raise InputError(
            f"split.test_inclination_deg: the catalogue has no inclination "
            f"{split.test_inclination_deg:g} (it has: {present})"
        )
    codes = np.full(len(views), TEST, np.uint8)
    groups = _groups("inclination={:g}", views.inclination)
    training = views.where(~held_out)
    codes[~held_out] = _hold_out(training, split, {VALIDATION: split.validation_fraction})
    return codes, _replaced(groups, ~held_out, _tile_groups(training, split.tile_deg))


def _hold_out(views: ViewTable, split: Split, fractions: dict[int, float]) -> Codes:
    """Hold out one region of tiles per split, the same in all snapshots and realisations.

    Tiles scattered one by one would take a guard band each: a tenth of the tiles, each with its
    eight neighbours, leaves next to nothing to train on. So a region grows around a tile that is
    drawn: the tiles nearest to it, until they hold the fraction of the views.

    Parameters
    ----------
    views : ViewTable
        The views to divide; those of neither region nor guard band are for training.
    split : Split
        Tile size and seed.
    fractions : dict
        Fraction of the views by code; 0 holds out nothing.
    """
    if not len(views):
        raise _nothing_to_train_on(split)
    # Millions of views share few directions (D), and what is done to one is done to all its views.
    first, direction = _distinct(views.theta, views.phi)  # (D,), (V,)
    weight = np.bincount(direction)  # (D,) views of each
    theta, phi = views.theta[first], views.phi[first]
    _, tile = _distinct(*_tiles(theta, phi, split.tile_deg))  # (D,)
    sight = lines_of_sight(theta, phi)  # (D, 3)
    codes = np.full(len(first), TRAIN, np.uint8)
    generator = _generator(split)
    for code, fraction in fractions.items():
        if fraction == 0:
            continue
        taken = np.bincount(tile, weights=codes != TRAIN) > 0  # (tiles,)
        free = np.flatnonzero(~taken)
        if not len(free):
            raise InputError(
                f"split: no whole tile is left for {SPLITS[code]} outside the guard band; "
                "lower split.tile_deg, split.test_fraction or split.validation_fraction"
            )
        centre = generator.choice(free)
        region = _region(tile, sight, weight, free, centre, fraction * len(views))
        codes[region] = code
        guard = _near(sight, sight[region], split.tile_deg) & (codes == TRAIN)
        codes[guard] = NONE
    return codes[direction]


def _region(
    tile: Index,
    sight: NDArray[np.float64],
    weight: Index,
    free: Index,
    centre: int,
    wanted: float,
) -> Bools:
    """Return the directions of the free tiles nearest to a centre tile that hold `wanted` views."""
    inside = tile == centre
    middle = np.average(sight[inside], axis=0, weights=weight[inside])  # (3,)
    counts = np.bincount(tile, weights=weight)  # (tiles,)
    nearness = np.bincount(tile, weights=weight * (sight @ middle)) / counts
    nearness = nearness.round(9)  # tiles that are equally near come in order on any machine
    # The drawn tile itself comes first, also where its neighbours show nearly the same directions.
    order = free[np.lexsort((-nearness[free], free != centre))]
    excess = np.abs(np.cumsum(counts[order]) - wanted)
    return np.isin(tile, order[: excess.argmin() + 1])


def _near(sight: NDArray[np.float64], centres: NDArray[np.float64], distance_deg: float) -> Bools:
    """Return which lines of sight are nearer than a distance to any of the centres'."""
    chord = 2 * np.sin(np.radians(min(distance_deg - _ROUNDING_DEG, 180.0)) / 2)
    found, _ = cKDTree(np.unique(centres, axis=0)).query(sight, distance_upper_bound=chord)
    return np.isfinite(found)


def lines_of_sight(
    theta_deg: NDArray[np.float64], phi_deg: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return unit vectors, shape (D, 3); near the pole directions of all phi are one."""
    theta, phi = np.radians(theta_deg), np.radians(phi_deg)
    x, y = np.sin(theta) * np.cos(phi), np.sin(theta) * np.sin(phi)
    return np.stack([x, y, np.cos(theta)], axis=1)


# --- tiles and groups -----------------------------------------------------------------------------


def _tiles(
    theta: NDArray[np.float64], phi: NDArray[np.float64], tile_deg: float
) -> tuple[Index, Index]:
    """Return each direction's tile: row along theta and column along phi."""

    def along(angle: NDArray[np.float64]) -> Index:
        from_start = angle - angle.min()
        # The last tile is closed, so that 0..90 in tiles of 15 has six rows and not a sliver more.
        last = max(int(np.ceil(from_start.max() / tile_deg - 1e-9)) - 1, 0)
        return np.minimum((from_start / tile_deg + 1e-9).astype(np.int64), last)

    return along(theta), along(phi)


def _tile_groups(views: ViewTable, tile_deg: float) -> Groups:
    return _groups("tile={},{}", *_tiles(views.theta, views.phi, tile_deg))


def _groups(pattern: str, *columns: NDArray[np.generic]) -> Groups:
    """Make a group of the views that are alike in all columns; a million views share few names."""
    first, group = _distinct(*columns)
    rows = zip(*(column[first].tolist() for column in columns), strict=True)
    return group, [pattern.format(*row) for row in rows]


def _replaced(groups: Groups, where: Bools, parts: Groups) -> Groups:
    """Give some of the views groups of their own."""
    group, names = groups
    group = group.copy()
    group[where] = parts[0] + len(names)
    return group, [*names, *parts[1]]


class _EachView(Sequence[str]):
    """Names of as many groups as there are views; they are made when asked for."""

    def __init__(self, count: int) -> None:
        self._numbers = range(count)

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [f"view={number}" for number in self._numbers[index]]
        return f"view={self._numbers[index]}"


def _distinct(*columns: NDArray[np.generic]) -> tuple[Index, Index]:
    """Return where each distinct row of columns is first, and every row's number among them."""
    key = np.zeros(len(columns[0]), np.int64)
    for column in columns:
        values, code = np.unique(column, return_inverse=True)
        key = key * len(values) + code.reshape(-1)
    _, first, number = np.unique(key, return_index=True, return_inverse=True)
    return first, number.reshape(-1)


def _generator(split: Split) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(split.seed)))


def _refuse_empty(codes: Codes, split: Split) -> None:
    present = set(np.unique(codes).tolist())
    if TRAIN not in present:
        raise _nothing_to_train_on(split)
    if VALIDATION not in present:
        raise InputError("split.validation_fraction: the validation split is empty; give it more")
    if TEST not in present and not (split.kind == "random" and split.test_fraction == 0):
        key = "test_simulations" if split.kind == "simulation" else "test_fraction"
        raise InputError(f"split.{key}: the test split is empty; give it more")


def _nothing_to_train_on(split: Split) -> InputError:
    return InputError(
        f"split.kind: {split.kind} leaves nothing to train on; lower split.tile_deg, "
        "split.validation_fraction or split.test_fraction, or hold out fewer realisations"
    )
