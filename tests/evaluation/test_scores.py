"""Scores against scikit-learn, sky weights against the sphere, intervals over groups."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sklearn_metrics

from galmerhpc.evaluation.predictors import class_choices
from galmerhpc.evaluation.scores import Scorer, bins, breakdown, class_scores, sky_weights
from galmerhpc.parameters import NAMES, decode_classes, encode_classes

SIMULATED = np.array([0.0, 45.0, 75.0, 90.0])


def labels(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return true labels and predictions of a made-up network, (N, 4)."""
    random = np.random.default_rng(seed)
    true = np.stack(
        [random.choice([0.0, 1.0], count), random.choice(SIMULATED, count),
         random.uniform(0, 180, count), random.uniform(0, 90, count)], axis=1,
    )  # fmt: skip
    return true, true + random.normal(0, [0.4, 12, 9, 6], true.shape)


def scorer(
    names: tuple[str, ...],
    true: np.ndarray,
    groups: np.ndarray | None = None,
    weights: np.ndarray | None = None,
    resamples: int = 20,
    simulated: np.ndarray = SIMULATED,
) -> Scorer:
    if weights is None:
        weights = np.full(len(true), 1 / len(true))
    if groups is None:
        groups = np.arange(len(true)) % 7
    return Scorer(names, true, weights, simulated, groups, resamples, seed=0)


def test_weights_make_a_grid_of_views_a_sphere() -> None:
    theta, inclination = (a.ravel() for a in np.meshgrid(np.arange(0.5, 90), SIMULATED))
    weights = sky_weights(theta, inclination)
    assert weights.sum() == pytest.approx(1)
    # Directions at random: cos theta is uniform, so its mean is 1/2 and that of its square 1/3.
    assert weights @ np.cos(np.radians(theta)) == pytest.approx(0.5, abs=1e-4)
    assert weights @ np.cos(np.radians(theta)) ** 2 == pytest.approx(1 / 3, abs=1e-4)


def test_an_inclination_weighs_as_the_tilts_nearest_to_it() -> None:
    # Unequal numbers of images must not change it.
    inclination = np.repeat(SIMULATED, [5, 1, 7, 2])
    weights = sky_weights(np.full(len(inclination), 90.0), inclination)
    tilts = np.degrees(np.arccos(np.random.default_rng(0).uniform(0, 1, 400_000)))
    nearest = np.abs(tilts[:, None] - SIMULATED).argmin(axis=1)
    shares = np.bincount(nearest) / len(tilts)
    ours = [weights[inclination == value].sum() for value in SIMULATED]
    assert ours == pytest.approx(shares, abs=0.005)


def test_views_along_the_pole_alone_have_no_weight() -> None:
    assert np.isnan(sky_weights(np.zeros(3), np.full(3, 45.0))).all()


@settings(max_examples=40)
@given(st.integers(20, 300), st.integers(0, 2**31))
def test_scores_are_scikit_learn_s(count: int, seed: int) -> None:
    true, predicted = labels(count, seed)
    weights = sky_weights(true[:, 3], true[:, 1])
    ours = scorer(NAMES, true, weights=weights).score(predicted)
    for k, name in enumerate(NAMES):
        t, p, found = true[:, k], predicted[:, k], ours["parameters"][name]
        expected = {
            "mae": sklearn_metrics.mean_absolute_error(t, p),
            "mse": sklearn_metrics.mean_squared_error(t, p),
            "rmse": sklearn_metrics.root_mean_squared_error(t, p),
            "r2": sklearn_metrics.r2_score(t, p),
            "median_error": sklearn_metrics.median_absolute_error(t, p),
            "p95_error": np.quantile(np.abs(p - t), 0.95),
            "sky_mae": sklearn_metrics.mean_absolute_error(t, p, sample_weight=weights),
            "sky_mse": sklearn_metrics.mean_squared_error(t, p, sample_weight=weights),
        }
        assert {metric: found[metric] for metric in expected} == pytest.approx(expected)
        assert found["bias"] == pytest.approx((p - t).mean())
        for metric in expected:
            average = np.mean([ours["parameters"][n][metric] for n in NAMES])
            assert ours["average"][metric] == pytest.approx(average)
    edges = (22.5, 60, 82.5)
    classes = (np.digitize(a[:, 1], edges) for a in (true, predicted))
    expected = sklearn_metrics.accuracy_score(*classes)
    assert ours["parameters"]["inclination"]["accuracy"] == pytest.approx(expected)
    spins = (a[:, 0] > 0.5 for a in (true, predicted))
    assert ours["parameters"]["spin"]["accuracy"] == pytest.approx(
        sklearn_metrics.accuracy_score(*spins)
    )


def test_an_interval_is_the_bootstrap_s_over_groups_done_the_slow_way() -> None:
    true, predicted = labels(60, seed=4)
    groups = np.repeat(np.arange(6), [3, 20, 7, 10, 5, 15])
    found = scorer(NAMES, true, groups, resamples=3000).score(predicted)
    random = np.random.default_rng(9)
    slow = []
    for _ in range(3000):
        rows = np.concatenate([np.flatnonzero(groups == g) for g in random.integers(0, 6, 6)])
        error = np.abs(predicted - true)[rows, 2]
        slow.append([error.mean(), np.median(error), np.quantile(error, 0.95)])
    for metric, values in zip(
        ("mae", "median_error", "p95_error"), np.transpose(slow), strict=True
    ):
        low, high = found["parameters"]["azimuth"]["interval"][metric]
        width = np.diff(np.percentile(values, (2.5, 97.5)))[0]
        assert [low, high] == pytest.approx(np.percentile(values, (2.5, 97.5)), abs=0.2 * width)


def test_views_of_one_encounter_count_as_one_observation() -> None:
    # Errors of a group are all alike: a thousand views of ten groups say what ten views would.
    true = np.zeros((1000, 1))
    group = np.arange(1000) % 10
    predicted = np.random.default_rng(0).uniform(1, 3, 10)[group][:, None]
    low, high = scorer(("azimuth",), true, group, resamples=500).score(predicted)["parameters"][
        "azimuth"
    ]["interval"]["mae"]
    spread = predicted[:10].std() / np.sqrt(10)
    assert 2.5 * spread < high - low < 5 * spread


def test_one_encounter_has_no_interval() -> None:
    true = np.random.default_rng(0).uniform(0, 90, (30, 1))
    judge = scorer(("inclination",), true, groups=np.zeros(30, np.int64))
    found = judge.score(true + 1)["parameters"]["inclination"]
    assert found["mae"] == pytest.approx(1)
    assert np.isnan(found["interval"]["mae"]).all()
    assert np.isnan(judge.compare(true + 1, true + 2)["inclination"]["interval"]).all()


def test_a_comparison_knows_that_both_saw_the_same_images() -> None:
    random = np.random.default_rng(0)
    true, group = np.zeros((400, 1)), np.arange(400) % 8
    hard = 5.0 * (1 + group[:, None] % 4)  # some encounters are hard for everybody
    ours, theirs = hard + random.normal(0, 0.1, true.shape), hard + 0.5
    judge = scorer(("azimuth",), true, group, resamples=500)
    found = judge.compare(ours, theirs)["azimuth"]
    assert found["mae_difference"] == pytest.approx(-0.5, abs=0.02)
    assert found["interval"][1] < 0
    own = judge.score(ours)["parameters"]["azimuth"]["interval"]["mae"]
    assert own[1] - own[0] > 20 * (found["interval"][1] - found["interval"][0])


def test_the_azimuth_is_also_scored_on_the_circle() -> None:
    true, predicted = np.array([[179.0], [90.0]]), np.array([[-179.0], [110.0]])
    found = scorer(("azimuth",), true).score(predicted)["parameters"]["azimuth"]
    assert found["circular_mae"] == pytest.approx(11)
    assert found["mae"] == pytest.approx(189)


def test_an_inclination_is_the_catalogue_s_though_labels_have_fewer_digits() -> None:
    simulated = np.array([0.0, 33.3, 60.1])
    true = simulated.astype(np.float32).astype(np.float64)[:, None]
    judge = scorer(("inclination",), true, simulated=simulated)
    predicted = true + np.array([[1.0], [-2.0], [-30.0]])
    assert judge.score(predicted)["parameters"]["inclination"]["accuracy"] == pytest.approx(2 / 3)


def test_averages_leave_out_a_parameter_without_r2() -> None:
    true = np.stack([np.full(20, 45.0), np.arange(20.0)], axis=1)
    found = scorer(("inclination", "viewing_angle"), true).score(true + 1)
    assert np.isnan(found["parameters"]["inclination"]["r2"])
    assert np.isnan(found["parameters"]["inclination"]["interval"]["r2"]).all()
    assert found["average"]["r2"] == found["parameters"]["viewing_angle"]["r2"]
    assert found["average"]["mae"] == pytest.approx(1)


@given(st.lists(st.floats(-90, 180), min_size=1, max_size=60), st.sampled_from([None, 7.5, 15.0]))
def test_every_value_is_in_one_bin_and_within_its_ends(
    values: list[float], width: float | None
) -> None:
    numbers, seen = np.array(values), np.zeros(len(values), int)
    for low, high, inside in bins(numbers, width):
        assert inside.any()
        assert (low <= numbers[inside]).all()
        assert (numbers[inside] <= high).all()
        seen += inside
    assert (seen == 1).all()


def test_a_breakdown_holds_the_errors_of_its_bins() -> None:
    true, predicted = labels(500, seed=2)
    axes = {
        "theta_deg": (true[:, 3], 30.0),
        "inclination_deg": (true[:, 1], None),
        "time_myr": (np.full(500, np.nan), None),
    }
    found = breakdown(NAMES, true, {"network": predicted}, axes)
    assert found.keys() == {"theta_deg", "inclination_deg"}
    assert [(e["from"], e["to"]) for e in found["theta_deg"]] == [(0, 30), (30, 60), (60, 90)]
    assert [e["from"] for e in found["inclination_deg"]] == SIMULATED.tolist()
    assert sum(e["images"] for e in found["theta_deg"]) == 500
    for entry in found["inclination_deg"]:
        here = true[:, 1] == entry["from"]
        error = (predicted - true)[here, 1]
        assert entry["images"] == here.sum()
        assert entry["network"]["inclination"]["mae"] == pytest.approx(np.abs(error).mean())
        assert entry["network"]["inclination"]["bias"] == pytest.approx(error.mean())


@settings(max_examples=20)
@given(st.integers(1, 200), st.integers(0, 2**31), st.sampled_from([5.0, 15.0, 45.0]))
def test_class_scores_are_scikit_learn_s(count: int, seed: int, width: float) -> None:
    true, _ = labels(count, seed)
    classes = encode_classes(true, width)
    random = np.random.default_rng(seed)
    probabilities = np.clip(classes + random.normal(0, 0.5, classes.shape), 0, 1)
    probabilities += random.uniform(0, 1e-6, classes.shape)  # no ties
    found = class_scores(NAMES, true, probabilities, width)
    chosen = encode_classes(decode_classes(probabilities, width), width)
    start = 0
    for name in NAMES:
        size = len(found["confusion"][name])
        columns = slice(start, start + size)
        right, guess = (c[:, columns].argmax(axis=1) for c in (classes, chosen))
        matrix = sklearn_metrics.confusion_matrix(right, guess, labels=np.arange(size))
        assert (found["confusion"][name] == matrix).all()
        assert found["accuracy"][name] == pytest.approx(np.mean(right == guess))
        if size > 3:
            expected = sklearn_metrics.top_k_accuracy_score(
                right, probabilities[:, columns], k=3, labels=np.arange(size)
            )
            assert found["top3_accuracy"][name] == pytest.approx(expected)
        start += size
    assert found["top3_accuracy"]["spin"] == 1
    all_right = (classes == chosen).all(axis=1).mean()
    assert found["all_accuracy"] == pytest.approx(all_right)


def test_a_baseline_chooses_the_classes_that_its_predictions_fall_into() -> None:
    names = ("spin", "azimuth")
    true = np.array([[0, 10], [1, 180], [1, 90]], float)
    lookup = np.array([[0.2, 12], [1, 180.0001], [0.1, 94]])  # rounding may leave the range
    outputs = np.full((3, 2 + 4), 0.1)
    outputs[:, [1, 2]] = 0.9  # retrograde and the first azimuths, sure of it
    choices = class_choices(outputs, {"network": np.empty((3, 2)), "lookup": lookup}, names, 45)
    found = {name: class_scores(names, true, chosen, 45) for name, chosen in choices.items()}
    assert found["lookup"]["accuracy"] == pytest.approx({"spin": 2 / 3, "azimuth": 1})
    assert found["lookup"]["all_accuracy"] == pytest.approx(2 / 3)
    assert found["network"]["accuracy"] == pytest.approx({"spin": 2 / 3, "azimuth": 1 / 3})
    assert found["network"]["all_accuracy"] == 0
    assert found["network"]["trivial_binary_accuracy"] == pytest.approx(4 / 6)
