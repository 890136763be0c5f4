"""The parameters: classes and back, the paper's equation 3, angles that wrap."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from galmerhpc.parameters import (
    AZIMUTH,
    INCLINATION,
    NAMES,
    PARAMETERS,
    SPIN,
    VIEWING_ANGLE,
    circular_error,
    class_groups,
    decode_classes,
    encode_classes,
    full_circles,
    goes_round,
    named,
    on_nearest_turn,
    relative_inclination,
)

# The authors' 15 SDSS pairs: i1, i2, PA1, PA2 and their relative inclination, degrees.
SDSS15 = (
    (59.1, 59.6, 46.8, 36.1, 9.22),
    (90.0, 90.0, 77.2, 86.9, 9.7),
    (90.0, 90.0, 107.2, 117.6, 10.4),
    (77.8, 67.6, 20.7, 25.9, 11.34),
    (35.7, 39.7, 78.6, 98.4, 12.7),
    (66.4, 57.8, 29.4, 40.5, 13.03),
    (90.0, 90.0, 157.7, 171.8, 14.1),
    (64.4, 90.0, 15.8, 41.9, 35.92),
    (59.5, 45.9, 179.4, 136.9, 35.96),
    (46.0, 72.7, 55.0, 24.6, 36.97),
    (42.2, 63.8, 169.8, 126.4, 40.09),
    (67.9, 82.4, 34.2, 76.0, 42.74),
    (70.9, 36.1, 152.6, 115.0, 45.13),
    (53.6, 90.0, 56.9, 87.3, 46.03),
    (90.0, 38.9, 2.8, 3.8, 51.11),
)

labels = st.tuples(
    st.sampled_from(SPIN.values),
    st.sampled_from(INCLINATION.values),
    st.floats(AZIMUTH.low, AZIMUTH.high),
    st.floats(VIEWING_ANGLE.low, VIEWING_ANGLE.high),
)
untimed = settings(deadline=None)
angles = st.floats(-720, 720, width=32)


def test_labels_stand_in_the_paper_s_order() -> None:
    assert NAMES == ("spin", "inclination", "azimuth", "viewing_angle")


@untimed
@given(
    st.lists(labels, min_size=1, max_size=20), st.sampled_from([1.0, 2.5, 5.0, 15.0, 45.0, 90.0])
)
def test_classes_read_back_to_the_nearest_half_bin(
    rows: list[tuple[float, ...]], width: float
) -> None:
    true = np.array(rows)
    scores = encode_classes(true, width)
    assert scores.sum(axis=1).tolist() == [4] * len(rows)  # one class of each group
    back = decode_classes(scores, width)
    assert np.array_equal(back[:, :2], true[:, :2])
    assert np.abs(back[:, 2:] - true[:, 2:]).max() <= width / 2 + 1e-5
    assert np.array_equal(encode_classes(back, width), scores)


def test_some_of_the_parameters_have_their_own_columns_in_their_own_order() -> None:
    names = ("viewing_angle", "spin")
    assert class_groups(names, 30) == [slice(0, 3), slice(3, 5)]
    labels = np.array([[10.0, 1.0], [90.0, 0.0]])
    scores = encode_classes(labels, 30, names)
    assert scores.tolist() == [[1, 0, 0, 0, 1], [0, 0, 1, 1, 0]]
    assert decode_classes(scores, 30, names).tolist() == [[15, 1], [75, 0]]


def test_the_paper_s_classes_are_60_and_the_last_bin_is_closed() -> None:
    scores = encode_classes([[1, 90, 180, 90], [0, 0, 0, 0], [0, 0, 5, 4.999]], 5)
    assert scores.shape == (3, 60)
    hot = [np.flatnonzero(row).tolist() for row in scores]
    # Groups start at 0 (spin), 2 (inclination), 6 (azimuth) and 42 (viewing angle).
    assert hot == [[1, 5, 41, 59], [0, 2, 6, 42], [0, 2, 7, 42]]


@pytest.mark.parametrize("row", [[2, 0, 0, 0], [0, 0, 181, 0], [0, 0, 0, -1], [0, np.nan, 0, 0]])
def test_a_label_outside_its_range_has_no_class(row: list[float]) -> None:
    with pytest.raises(ValueError, match="outside"):
        encode_classes([row], 5)


def test_a_width_that_does_not_divide_the_range_is_refused() -> None:
    with pytest.raises(ValueError, match="does not divide azimuth"):
        encode_classes([[0, 0, 0, 0]], 7)


@pytest.mark.parametrize(("i1", "i2", "pa1", "pa2", "published"), SDSS15)
def test_equation_3_gives_the_published_inclinations(
    i1: float, i2: float, pa1: float, pa2: float, published: float
) -> None:
    assert relative_inclination(i1, i2, pa1, pa2) == pytest.approx(published, abs=0.01)


@untimed
@given(*[angles] * 4)
def test_equation_3_is_the_angle_between_the_discs_normals(
    i1: float, i2: float, pa1: float, pa2: float
) -> None:
    def normal(i: float, pa: float) -> np.ndarray:
        i, pa = np.radians(i), np.radians(pa)
        return np.array([np.sin(i) * np.cos(pa), np.sin(i) * np.sin(pa), np.cos(i)])

    a, b = normal(i1, pa1), normal(i2, pa2)
    # Half angle by the chord: exact near 0 and 180 degrees, where the arc cosine is not.
    expected = 2 * np.degrees(np.arctan2(np.linalg.norm(a - b), np.linalg.norm(a + b)))
    assert relative_inclination(i1, i2, pa1, pa2) == pytest.approx(expected, abs=1e-4)


@untimed
@given(angles, angles, st.integers(-3, 3), st.sampled_from([180.0, 360.0]))
def test_circular_error_is_symmetric_and_does_not_count_turns(
    a: float, b: float, turns: int, period: float
) -> None:
    error = circular_error(a, b, period)
    assert 0 <= error <= period / 2
    assert circular_error(b, a, period) == pytest.approx(error, abs=1e-9)
    assert circular_error(a, b + turns * period, period) == pytest.approx(error, abs=1e-9)


def test_circular_error_goes_the_short_way() -> None:
    assert circular_error([179, 0, 10], [-179, 180, 350]).tolist() == [2, 180, 20]


def test_another_label_is_a_plain_number() -> None:
    ratio = named("mass_ratio")
    assert (ratio.name, ratio.unit, ratio.values) == ("mass_ratio", "", ())
    assert named("azimuth") is PARAMETERS["azimuth"]


def test_what_goes_round() -> None:
    assert goes_round(np.array([-180.0, -90, 0, 90]))
    assert not goes_round(np.arange(0.0, 181))
    assert not goes_round(np.array([30.0, 30.0]))


@given(st.lists(st.tuples(st.floats(-180, 180), st.floats(-800, 800)), min_size=1))
def test_on_the_nearest_turn_the_plain_error_is_the_shorter_way_round(
    pairs: list[tuple[float, float]],
) -> None:
    names = ("inclination", "azimuth")
    true, predicted = (np.repeat(np.array(x)[:, None], 2, axis=1) for x in zip(*pairs, strict=True))
    around = np.stack([np.zeros(36), np.arange(-180.0, 180, 10)], axis=1)
    assert full_circles(names, around) == [1]
    assert full_circles(names, np.abs(around)) == []
    assert full_circles(names[:1], around) == []
    moved = on_nearest_turn(true, predicted, full_circles(names, around))
    assert (moved[:, 0] == predicted[:, 0]).all()
    expected = circular_error(true[:, 1], predicted[:, 1])
    assert np.abs(moved - true)[:, 1] == pytest.approx(expected, abs=1e-9)
