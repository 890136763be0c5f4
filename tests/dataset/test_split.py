import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from galmerhpc.config import Split
from galmerhpc.dataset.split import (
    NONE,
    SPLITS,
    TEST,
    TRAIN,
    VALIDATION,
    Samples,
    ViewTable,
    assign,
)
from galmerhpc.errors import InputError

KINDS = ("simulation", "blocked", "inclination", "random")


def table(
    theta: np.ndarray, phi: np.ndarray, simulations: int = 1, inclinations: tuple[float, ...] = (0,)
) -> ViewTable:
    """Return a catalogue's views: realisation, inclination, two snapshots, theta, phi."""
    grid = np.meshgrid(
        np.arange(simulations), np.array(inclinations, float), [0, 1], theta, phi, indexing="ij"
    )
    simulation, inclination, _, t, p = (axis.ravel() for axis in grid)
    return ViewTable(simulation.astype(np.int64), inclination, t.astype(float), p.astype(float))


def quarter(step: float = 5, **more: object) -> ViewTable:
    return table(np.arange(0, 90.1, step), np.arange(0, 180.1, step), **more)


def sight(views: ViewTable, index: np.ndarray) -> np.ndarray:
    t, p = np.radians(views.theta[index]), np.radians(views.phi[index])
    return np.stack([np.sin(t) * np.cos(p), np.sin(t) * np.sin(p), np.cos(t)], axis=1)


def smallest_angle(views: ViewTable, samples: Samples, one: int, other: int) -> float:
    """Return the smallest angle between lines of sight of two splits, degrees."""
    a, b = (sight(views, np.unique(samples.view[samples.split == code])) for code in (one, other))
    return float(np.degrees(np.arccos(np.clip(a @ b.T, -1, 1).max())))


@st.composite
def cases(draw: st.DrawFn) -> tuple[ViewTable, Split, int]:
    """Draw a catalogue on the quarter or the full sphere, a split, and a number of copies."""
    step = draw(st.sampled_from([6.0, 10.0, 15.0]))
    full = draw(st.booleans())
    theta = np.arange(0, (180 if full else 90) + 0.1, step)
    phi = np.arange(-180 if full else 0, 180 - (step / 2 if full else -0.1), step)
    views = table(theta, phi, draw(st.integers(2, 4)), (0.0, 45.0))
    kind = draw(st.sampled_from(KINDS))
    split = Split(
        kind=kind,
        validation_fraction=draw(st.sampled_from([0.02, 0.1])),
        test_fraction=draw(st.sampled_from([0.02, 0.1])),
        tile_deg=draw(st.sampled_from([4.0, 10.0, 15.0, 20.0])),
        test_inclination_deg=45.0 if kind == "inclination" else None,
        seed=draw(st.integers(0, 1000)),
    )
    return views, split, draw(st.integers(0, 2))


@given(cases())
@settings(max_examples=60, deadline=None)
def test_no_side_sees_what_another_side_holds(case: tuple[ViewTable, Split, int]) -> None:
    views, split, copies = case
    samples = assign(views, split, copies)
    code, group, view = samples.split, samples.group, samples.view
    held_out = np.isin(code, (VALIDATION, TEST))

    originals = view[samples.copy == 0]
    np.testing.assert_array_equal(originals, np.arange(len(views)))
    assert sum(samples.counts().values()) == len(code)
    if split.kind == "random":
        assert len(code) == len(views) * (1 + copies)
        return
    assert not set(group[code == TRAIN]) & set(group[held_out])
    assert not samples.copy[code != TRAIN].any()
    assert np.bincount(view[code == TRAIN]).max() == 1 + copies
    of_view = {}
    for v, c in zip(view.tolist(), code.tolist(), strict=True):
        assert of_view.setdefault(v, c) == c  # a copy stands beside its source

    if split.kind == "blocked":
        assert smallest_angle(views, samples, TRAIN, TEST) >= split.tile_deg - 1e-3
        assert smallest_angle(views, samples, TRAIN, VALIDATION) >= split.tile_deg - 1e-3
        assert smallest_angle(views, samples, VALIDATION, TEST) >= split.tile_deg - 1e-3
        by_direction: dict[tuple[float, float], set[int]] = {}
        for v, c in of_view.items():
            by_direction.setdefault((views.theta[v], views.phi[v]), set()).add(c)
        assert all(len(codes) == 1 for codes in by_direction.values())
    if split.kind == "inclination":
        assert smallest_angle(views, samples, TRAIN, VALIDATION) >= split.tile_deg - 1e-3


@given(st.sampled_from([4.0, 10.0, 15.0, 20.0]), st.floats(0.01, 0.15), st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_the_test_region_misses_its_fraction_by_a_tile_at_most(
    tile_deg: float, fraction: float, seed: int
) -> None:
    views = quarter()
    split = Split(
        kind="blocked",
        tile_deg=tile_deg,
        test_fraction=fraction,
        validation_fraction=0.01,
        seed=seed,
    )
    samples = assign(views, split, copies=0)
    wanted, largest_tile = fraction * len(views), np.bincount(samples.group).max()
    assert abs(samples.counts()["test"] - wanted) <= largest_tile


def test_two_realisations_are_training_and_test_with_tiles_for_validation() -> None:
    views = quarter(simulations=2)
    samples = assign(views, Split(), copies=0)
    simulation = views.simulation[samples.view]
    assert set(simulation[samples.split == TEST]) == {1}
    assert set(samples.split[simulation == 1]) == {TEST}
    assert set(samples.split[simulation == 0]) == {NONE, TRAIN, VALIDATION}
    assert smallest_angle(views, samples, TRAIN, VALIDATION) >= 15 - 1e-3


@pytest.mark.parametrize(
    ("given_keys", "validation", "test"),
    [
        ({}, {3}, {4}),
        ({"test_simulations": (0, 1)}, {4}, {0, 1}),
        ({"validation_simulations": (4,)}, {4}, {3}),
        ({"validation_simulations": (0,), "test_simulations": (2, 3)}, {0}, {2, 3}),
    ],
)
def test_realisations_of_their_own(
    given_keys: dict[str, tuple[int, ...]], validation: set[int], test: set[int]
) -> None:
    views = quarter(15, simulations=5)
    samples = assign(views, Split(**given_keys), copies=1)
    simulation = views.simulation[samples.view]
    assert set(simulation[samples.split == VALIDATION]) == validation
    assert set(simulation[samples.split == TEST]) == test
    assert set(simulation[samples.split == TRAIN]) == set(range(5)) - validation - test
    assert samples.counts()["none"] == 0


def test_only_the_named_realisations_are_trained_on() -> None:
    views = quarter(15, simulations=5)
    samples = assign(views, Split(training_simulations=(1, 4)), copies=0)
    simulation = views.simulation[samples.view]
    found = {s: set(samples.split[simulation == s]) for s in range(5)}
    assert found == {0: {NONE}, 1: {TRAIN}, 2: {VALIDATION}, 3: {TEST}, 4: {TRAIN}}


@pytest.mark.parametrize("kind", ["random", "blocked", "simulation"])
def test_a_smaller_share_of_the_training_views_is_part_of_a_larger_one(kind: str) -> None:
    views = quarter(10, simulations=3)
    whole, half, quarter_of_it = (
        assign(views, Split(kind=kind, training_fraction=share), copies=1)
        for share in (None, 0.5, 0.25)
    )
    trained = [
        set(samples.view[samples.split == TRAIN].tolist())
        for samples in (whole, half, quarter_of_it)
    ]
    assert trained[2] < trained[1] < trained[0]
    assert len(trained[1]) == round(len(trained[0]) / 2)
    for code in (VALIDATION, TEST):
        np.testing.assert_array_equal(whole.split == code, half.split == code)


def test_the_held_out_inclination_is_the_test_and_nothing_else_is() -> None:
    views = quarter(inclinations=(0.0, 45.0, 75.0))
    split = Split(kind="inclination", test_inclination_deg=45)
    samples = assign(views, split, copies=0)
    inclination = views.inclination[samples.view]
    np.testing.assert_array_equal(samples.split == TEST, inclination == 45)


def test_the_papers_split_has_the_papers_numbers() -> None:
    """263,536 = 4 i x 2 spin x 181 phi x 91 theta x 2 variants; 237,182 of them to train."""
    grid = table(
        np.arange(91), np.arange(181), inclinations=(0, 45, 75, 90)
    )  # two snapshots: as two spins
    samples = assign(grid, Split(kind="random", test_fraction=0.0), copies=1)
    expected = {"none": 0, "train": 237_182, "validation": 26_354, "test": 0}
    assert samples.counts() == expected


def test_random_draws_copies_apart_from_their_source() -> None:
    samples = assign(quarter(10), Split(kind="random"), copies=1)
    by_view = samples.split.reshape(-1, 2)
    assert (by_view[:, 0] != by_view[:, 1]).any()


@pytest.mark.parametrize("kind", KINDS)
def test_the_seed_decides(kind: str) -> None:
    views = quarter(10, simulations=2, inclinations=(0.0, 45.0))
    held = 45.0 if kind == "inclination" else None
    splits = [Split(kind=kind, test_inclination_deg=held, seed=seed) for seed in (0, 0, 1)]
    first, again, other = (assign(views, split, copies=0).split for split in splits)
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


@pytest.mark.parametrize(
    ("keys", "names"),
    [
        ({}, "split.kind"),
        ({"test_simulations": (7,)}, "split.test_simulations"),
        ({"kind": "inclination", "test_inclination_deg": 60}, "split.test_inclination_deg"),
        ({"kind": "blocked", "test_fraction": 0}, "split.test_fraction"),
        ({"kind": "blocked", "validation_fraction": 0}, "split.validation_fraction"),
        ({"kind": "blocked", "tile_deg": 90}, "split.tile_deg"),
        ({"kind": "random", "validation_fraction": 0}, "split.validation_fraction"),
    ],
)
def test_an_impossible_split_names_the_key_to_change(keys: dict[str, object], names: str) -> None:
    with pytest.raises(InputError) as failure:
        assign(quarter(15), Split(**keys), copies=0)
    assert names in str(failure.value)
    assert "\n" not in str(failure.value)


def test_every_realisation_held_out_leaves_nothing_to_train_on() -> None:
    with pytest.raises(InputError, match="nothing to train on"):
        assign(quarter(15, simulations=2), Split(test_simulations=(0, 1)), copies=0)


def test_codes_have_names() -> None:
    assert [SPLITS[code] for code in (NONE, TRAIN, VALIDATION, TEST)] == [
        "none",
        "train",
        "validation",
        "test",
    ]
