"""Conformal intervals have their nominal coverage for unseen groups."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from galmerhpc import files
from galmerhpc.errors import InputError
from galmerhpc.evaluation.conformal import (
    Calibration,
    Labels,
    as_file,
    calibrate,
    coverage,
    group_weights,
    halved_coverage,
    read_calibration,
)
from galmerhpc.parameters import NAMES

LEVELS = (0.5, 0.68, 0.9)
MadeUp = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def predictions(groups: int, per_group: int, seed: int, alike: float = 0.5) -> MadeUp:
    """Return true and predicted labels, spin scores and groups of a made-up network.

    Its errors are largest face-on, and a part `alike` of their variance is what all images of a
    group have in common. Azimuths go round.
    """
    random = np.random.default_rng(seed)
    group = np.repeat(np.arange(groups), per_group)
    count = len(group)
    true = np.stack(
        [
            (group % 2).astype(float),
            np.array([0.0, 45, 75, 90])[group // 2 % 4],
            random.uniform(-180, 180, count),
            random.uniform(0, 90, count),
        ],
        axis=1,
    )
    common = random.normal(size=(groups, 4))[group] * np.sqrt(alike)
    noise = common + random.normal(size=(count, 4)) * np.sqrt(1 - alike)
    size = np.array([0.3, 6, 10, 4]) * (2 - true[:, 3:] / 60)
    predicted = true + noise * size
    return true, predicted, predicted[:, 0], group


def test_intervals_hold_what_they_promise_for_new_groups() -> None:
    # 40 groups to calibrate on; the errors of a group are half in common.
    held = []
    for seed in range(25):
        true, predicted, score, group = predictions(80, 60, seed)
        old, new = group < 40, group >= 40
        calibration = calibrate(
            Labels(NAMES, true[old], predicted[old], score[old], group[old]), LEVELS
        )
        found = coverage(calibration, NAMES, true[new], predicted[new], group[new])
        held.append(np.array([found[name] for name in NAMES[1:]]))
    assert np.abs(np.mean(held, axis=0) - LEVELS).max() < 0.03


@pytest.mark.parametrize(
    ("groups", "images", "alike"), [(10, 1, 0.0), (16, 40, 0.0), (16, 40, 0.5), (24, 40, 1.0)]
)
def test_few_groups_hold_no_less_however_much_their_images_have_in_common(
    groups: int, images: int, alike: float
) -> None:
    generator = np.random.default_rng(5)

    def errors(groups: int, images: int) -> np.ndarray:
        shared, own = generator.normal(size=(groups, 1)), generator.normal(size=(groups, images))
        return (np.sqrt(alike) * shared + np.sqrt(1 - alike) * own).reshape(-1, 1)

    members, level, held = np.repeat(np.arange(groups), images), 0.9, []
    for _ in range(200):
        off, new = errors(groups, images), errors(500, 1)
        labels = Labels(("inclination",), np.zeros_like(off), off, None, members)
        found = calibrate(labels, [level]).holds(("inclination",), np.zeros_like(new), new)
        held.append(found["inclination"].mean())
    # More than 1 / (groups + 1) above it would be wider than need be.
    assert level - 0.015 < np.mean(held) < level + 1 / (groups + 1) + 0.015


def test_halvings_measure_the_same() -> None:
    true, predicted, score, group = predictions(60, 80, seed=3)
    found = halved_coverage(Labels(NAMES, true, predicted, score, group), LEVELS, 100, 0)
    for part in found["parameters"].values():
        assert np.abs(part["coverage"] - LEVELS).max() < 0.03
        assert (part["scatter"] > 0).all()
        assert (np.diff(part["median_width"]) > 0).all()
    assert found["parameters"].keys() == set(NAMES) - {"spin"}


def test_intervals_are_wider_where_errors_are_larger() -> None:
    true, predicted, score, group = predictions(40, 200, seed=1, alike=0)
    calibration = calibrate(Labels(NAMES, true, predicted, score, group), LEVELS)
    face_on, edge_on = (np.array([[0, 45, 90, theta]], float) for theta in (5, 85))
    for name in NAMES[1:]:
        low, high = (
            np.diff(calibration.bounds(NAMES, view)[name][0]).ravel() for view in (edge_on, face_on)
        )
        if name == "azimuth":
            assert (high > 1.8 * low).all()
    # Both halves of the viewing angles are covered alike: that is what the scale is for.
    for half in (true[:, 3] < 45, true[:, 3] >= 45):
        found = coverage(calibration, NAMES, true[half], predicted[half], group[half])
        assert np.abs(found["azimuth"] - LEVELS).max() < 0.04


def test_an_arc_goes_over_the_end_of_the_circle_and_holds_what_is_on_it() -> None:
    true, predicted, score, group = predictions(20, 50, seed=2)
    calibration = calibrate(Labels(NAMES, true, predicted, score, group), LEVELS)
    bounds = calibration.bounds(NAMES, predicted)["azimuth"]  # (N, L, 2)
    assert (np.abs(bounds) <= 180).all()
    inside = (true[:, 2, None] - bounds[..., 0]) % 360 <= (bounds[..., 1] - bounds[..., 0]) % 360
    assert (inside == calibration.holds(NAMES, true, predicted)["azimuth"]).all()
    assert (bounds[..., 0] > bounds[..., 1]).any()
    opposite = predicted + np.array([0, 0, 180, 0])
    wild = calibrate(Labels(NAMES, true, opposite, score, group), LEVELS)
    assert (wild.bounds(NAMES, predicted)["azimuth"][:, -1] == (-180, 180)).any(axis=None)


def test_bounds_stay_where_labels_are() -> None:
    true, predicted, score, group = predictions(20, 50, seed=2)
    calibration = calibrate(Labels(NAMES, true, predicted, score, group), LEVELS)
    bounds = calibration.bounds(NAMES, predicted)["inclination"]
    assert bounds.min() >= 0
    assert bounds.max() <= 90
    held = calibration.holds(NAMES, true, predicted)["inclination"]
    low, high = bounds[..., 0] - 1e-9, bounds[..., 1] + 1e-9
    cut = (low <= true[:, 1, None]) & (true[:, 1, None] <= high)
    assert (cut | ~held).all()  # cutting them loses nothing


def test_bounds_reach_the_ends_of_a_range_that_nothing_was_calibrated_at() -> None:
    names = ("viewing_angle", "mass_ratio")
    true = np.random.default_rng(4).uniform(10, 80, (400, 2))
    predicted = true + np.random.default_rng(5).normal(0, 3, true.shape)
    labels = Labels(names, true, predicted, None, np.repeat(np.arange(20), 20))
    bounds = calibrate(labels, LEVELS).bounds(names, np.array([[2.0, 2.0], [89.0, 89.0]]))
    assert bounds["viewing_angle"].min() == 0
    assert bounds["viewing_angle"].max() == 90
    low, high = bounds["mass_ratio"][0, -1]  # whose range nobody knows
    assert low < 2 < high < true[:, 1].min()


def test_a_prediction_out_of_range_has_an_interval_at_that_end() -> None:
    true, predicted, score, group = predictions(20, 50, seed=2)
    calibration = calibrate(Labels(NAMES, true, predicted, score, group), LEVELS)
    beyond, end = np.array([[0, 96, 90, 45]], float), np.array([[0, 90, 90, 45]], float)
    bounds = calibration.bounds(NAMES, beyond)["inclination"]
    assert (bounds == calibration.bounds(NAMES, end)["inclination"]).all()
    assert (bounds[..., 0] < 90).all()
    held = calibration.holds(NAMES, end, beyond)["inclination"]
    assert held.all()


def test_a_calibration_survives_its_file() -> None:
    random = np.random.default_rng(4)
    true = random.uniform(0, 90, (400, 2))
    labels = Labels(("azimuth", "mass_ratio"), true, true + random.normal(0, 3, true.shape), None,
                    np.repeat(np.arange(20), 20))  # fmt: skip
    calibration = calibrate(labels, LEVELS)
    text = json.dumps(calibration.to_json(), allow_nan=False)
    assert Calibration.from_json(json.loads(text)) == calibration


def test_the_spin_s_probability_is_calibrated() -> None:
    random = np.random.default_rng(5)
    group = np.repeat(np.arange(200), 50)
    score = random.uniform(-0.2, 1.2, len(group))
    chance = 1 / (1 + np.exp(-8 * (score - 0.4)))  # the truth, which no one is told
    true = (random.uniform(size=len(group)) < chance).astype(float)[:, None]
    calibration = calibrate(Labels(("spin",), true, score[:, None], score, group), LEVELS)
    assert calibration.spin is not None
    assert calibration.spin.slope == pytest.approx(8, rel=0.1)
    assert calibration.spin.middle == pytest.approx(0.4, abs=0.02)
    found = halved_coverage(Labels(("spin",), true, score[:, None], score, group), LEVELS, 10, 0)[
        "spin"
    ]
    for part in found["reliability"]:
        assert part["observed"] == pytest.approx(part["predicted"], abs=0.05)
    assert found["brier"] == pytest.approx(np.mean(chance * (1 - chance)), rel=0.05)


def test_spins_that_do_not_overlap_give_a_curve_that_still_doubts() -> None:
    true, _, _, group = predictions(20, 50, seed=2)
    calibration = calibrate(Labels(NAMES, true, true, true[:, 0], group), LEVELS)
    assert calibration.spin is not None
    sure, unsure = calibration.spin(np.array([1.0, 0.5]))
    assert 0.99 < sure < 1
    assert unsure == pytest.approx(0.5, abs=0.05)
    # Without errors there is nothing to be unsure of.
    assert (np.diff(calibration.bounds(NAMES, true)["azimuth"], axis=-1) == 0).all()


def test_one_spin_alone_calibrates_no_probability() -> None:
    true, predicted, score, group = predictions(20, 50, seed=2)
    retro = true[:, 0] == 1
    found = calibrate(
        Labels(NAMES, true[retro], predicted[retro], score[retro], group[retro]), LEVELS
    )
    assert found.spin is None


@given(st.lists(st.integers(0, 5), min_size=1, max_size=40))
def test_groups_weigh_the_same_whatever_their_size(groups: list[int]) -> None:
    weights = group_weights(np.array(groups))
    sums = [weights[np.array(groups) == g].sum() for g in set(groups)]
    assert sums == pytest.approx([1 / len(set(groups))] * len(set(groups)))


@given(st.integers(2, 6), st.integers(1, 30), st.integers(0, 2**31))
def test_what_calibrates_is_held_to_the_level_or_more(
    groups: int, per_group: int, seed: int
) -> None:
    true, predicted, score, group = predictions(groups, per_group, seed)
    calibration = calibrate(Labels(NAMES, true, predicted, score, group), LEVELS)
    found = coverage(calibration, NAMES, true, predicted, group)
    assert all((held >= np.array(LEVELS) - 1e-9).all() for held in found.values())


def test_the_file_gives_the_same_intervals(tmp_path: Path) -> None:
    true, predicted, score, group = predictions(20, 50, seed=2)
    calibration = calibrate(Labels(NAMES, true, predicted, score, group), LEVELS)
    path = tmp_path / "intervals.json"
    files.write_json(path, as_file("m", {"clean": calibration, "sky": None}))
    found = read_calibration(path, "m", "clean")
    assert isinstance(found, Calibration)
    assert found == calibration
    assert read_calibration(path, "m", "sky") is None
    with pytest.raises(InputError, match="another model"):
        read_calibration(path, "n", "clean")
    broken = json.loads(path.read_text())
    del broken["calibrations"]["clean"]["levels"]
    files.write_json(path, broken)
    with pytest.raises(InputError, match="damaged"):
        read_calibration(path, "m", "clean")
