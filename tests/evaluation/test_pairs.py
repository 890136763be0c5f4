"""Tables of real pairs: what is read, what is refused, and Eq. 3."""

import csv
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from galmerhpc.errors import InputError
from galmerhpc.evaluation.pairs import (
    Disc,
    Pair,
    folded,
    inclination_of_axes,
    read_pairs,
    write_pairs,
)
from galmerhpc.evaluation.real_pairs import PAPER_PAIRS, PairEstimate, paper_pairs, score

HEAD = "name,image,x1_px,y1_px,x2_px,y2_px,pa1_deg,pa2_deg,i1_deg,i2_deg"
ROW = "a,a.jpg,10,20,30,40,15,75,60,45"


def read(tmp_path: Path, *lines: str) -> list[Pair]:
    path = tmp_path / "pairs.csv"
    path.write_text("\n".join(lines) + "\n")
    return read_pairs(path)


def test_equation_3_gives_the_15_published_relative_inclinations() -> None:
    pairs, predictions = paper_pairs()
    published = [
        float(row["relative_inclination_deg"])
        for row in csv.DictReader(PAPER_PAIRS.read_text().splitlines())
    ]
    assert len(pairs) == len(predictions) == len(published) == 15
    ours = [pair.solutions_deg[0] for pair in pairs]
    assert np.abs(np.array(ours) - published).max() < 0.01


def test_the_published_table_s_errors_are_not_those_of_the_paper_s_text() -> None:
    scores = score([PairEstimate(pair, 0.0, None) for pair in paper_pairs()[0]], 30.0)
    assert scores["constant"] == scores["published_constant"]
    assert scores["published"]["mae"] == pytest.approx(6.59, abs=0.005)
    assert scores["published"]["mse"] == pytest.approx(79.3, abs=0.05)
    assert scores["published"]["r2"] == pytest.approx(0.674, abs=0.0005)
    assert scores["paper"]["mae"] == 5.44
    assert scores["published_constant"]["mae"] > 10
    assert scores["trained"]["mae"] > scores["constant"]["mae"]
    # All its position angles are within 90 degrees of each other.
    assert scores["network_within"] == pytest.approx(scores["network"], nan_ok=True)


def test_a_position_angle_is_known_up_to_half_a_turn() -> None:
    pairs = [
        Pair(
            "a",
            "a.jpg",
            (Disc(pa_deg=87.5, inclination_deg=70), Disc(pa_deg=pa, inclination_deg=76)),
        )
        for pa in (-82.0, 98.0)
    ]
    first, turned = (score([PairEstimate(pair, 10.0, None)], None) for pair in pairs)
    assert first["network"]["mae"] > turned["network"]["mae"] + 10
    assert first["network_within"]["mae"] == pytest.approx(turned["network_within"]["mae"])


angle = st.floats(0, 180)


@given(i1=st.floats(0, 90), i2=st.floats(0, 90), pa1=angle, pa2=angle)
def test_both_solutions_are_those_of_the_two_signs(
    i1: float, i2: float, pa1: float, pa2: float
) -> None:
    def solutions(*discs: tuple[float, float]) -> set[float]:
        first, second = (Disc(inclination_deg=i, pa_deg=pa) for i, pa in discs)
        return set(np.round(Pair("a", "a.jpg", (first, second)).solutions_deg, 3))

    found = solutions((i1, pa1), (i2, pa2))
    assert all(0 <= i <= 90 for i in found)
    # Whatever signs and senses the angles are given in, there are no other solutions.
    for more in (
        solutions((i1, pa1 + 180), (i2, pa2)),
        solutions((-i1, pa1), (i2, pa2)),
        solutions((180 - i1, pa1), (i2, pa2)),
        solutions((i2, pa2), (i1, pa1)),
    ):
        assert all(min(abs(i - k) for k in found) < 0.02 for i in more)
        assert all(min(abs(i - k) for k in more) < 0.02 for i in found)


def test_folding_keeps_what_is_below_90() -> None:
    assert folded([0, 30, 90, 150, 180]).tolist() == [0, 30, 90, 30, 0]


def test_a_disc_s_axis_ratio_tells_its_inclination() -> None:
    assert inclination_of_axes(1.0) == 0
    assert inclination_of_axes(0.2) == inclination_of_axes(0.05) == 90
    assert inclination_of_axes(0.5) == pytest.approx(62.1, abs=0.1)


def test_a_table_is_read_and_written_back(tmp_path: Path) -> None:
    (pair,) = read(tmp_path, HEAD + ",mag1,mag2,redshift,comment", ROW + ",15,16.5,0.03,what")
    assert pair.discs[0] == Disc(pixel=(10, 20), pa_deg=15, inclination_deg=60, magnitude=15)
    assert pair.light_ratio == pytest.approx(10**0.6)
    assert (pair.redshift, pair.scale_arcsec_per_px) == (0.03, None)
    write_pairs(tmp_path / "again.csv", [pair])
    assert read_pairs(tmp_path / "again.csv") == [pair]


def test_columns_that_are_not_looked_at_are_named_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    read(tmp_path, HEAD, ROW)
    write_pairs(tmp_path / "again.csv", paper_pairs()[0])
    read_pairs(tmp_path / "again.csv")
    assert not caplog.messages
    rows = [f"{name}{ROW[1:]},5,6" for name in "ab"]
    pairs = read(tmp_path, HEAD + ",PA1,incl1", *rows, 11 * ",", " , ,,,,,,,,,, ")
    assert [pair.name for pair in pairs] == ["a", "b"]
    (message,) = caplog.messages
    assert message == f"{tmp_path / 'pairs.csv'}: ignored columns: PA1, incl1"


def test_axes_stand_in_for_inclinations_and_names_for_places(tmp_path: Path) -> None:
    head = "name1,name2,pa1_deg,pa2_deg,a1_px,b1_px,a2_px,b2_px"
    (pair,) = read(tmp_path, head, "J013247.27-082526.9,J013247.63-082515.9,40,50,10,5,4,4")
    assert pair.image == "J013247.27-082526.9.jpg"
    assert [disc.inclination_deg for disc in pair.discs] == [inclination_of_axes(0.5), 0]
    assert pair.discs[1].sky == pytest.approx((23.19846, -8.42108), abs=1e-5)
    assert pair.discs[1].pixel is None


def test_a_pair_without_angles_has_no_solution(tmp_path: Path) -> None:
    (pair,) = read(tmp_path, "name,pa1_deg,i1_deg", "a,10,20")
    assert pair.solutions_deg is None
    assert pair.light_ratio is None


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ((HEAD, ROW.replace("60", "sixty")), "pairs.csv:2: i1_deg: 'sixty' is not a number"),
        ((HEAD, ROW.replace("60", "nan")), "pairs.csv:2: i1_deg: 'nan' is not a number"),
        ((HEAD, ROW, ROW), "the pair a is listed more than once"),
        (("name,redshift", "a,-1"), "pairs.csv:2: redshift: must be above 0, not -1"),
        (("name,redshift", "a,6500"), "pairs.csv:2: redshift: 6500 is above 10; is it in km/s?"),
        (("name,mag1", "a,15", "b,-9999"), "pairs.csv:3: mag1: -9999 is not a magnitude; leave"),
        (("name,pa1_deg", "a,-999"), "pairs.csv:2: pa1_deg: -999 is not an angle; leave"),
        (("name,mag2", "a,99.99"), "pairs.csv:2: mag2: 99.99 is not a magnitude; leave"),
        (("name,a1_px,b1_px", "a,10,40"), "pairs.csv:2: b1_px: 40 is above a1_px, 10; a is the"),
        (("name,ra1_deg,dec1_deg", "a,400,1"), "ra1_deg, dec1_deg: 400, 1 is no position on the"),
        (("name,ra2_deg,dec2_deg", "a,4,-95"), "ra2_deg, dec2_deg: 4, -95 is no position on the"),
        (("name,a1_px", "a,10"), "a1_px and b1_px must be given together"),
        (("name,x1_px", "a,5"), "x1_px and y1_px must be given together"),
        (("name,image", "a,../../etc/passwd"), "must be a file name in the folder"),
        (("x1_px,y1_px", "1,2"), "a pair needs a name"),
        ((HEAD,), "the table has no rows"),
        ((HEAD, 9 * ","), "the table has no rows"),
        ((HEAD.replace(",", ";"), ROW.replace(",", ";")), "pairs.csv:1: one column with ';' in"),
        ((HEAD.replace(",", "\t"), ROW), "pairs.csv:1: one column with '\\t' in its name"),
    ],
)
def test_a_wrong_table_is_refused_by_line(
    tmp_path: Path, lines: tuple[str, ...], says: str
) -> None:
    with pytest.raises(InputError, match=r"pairs\.csv") as error:
        read(tmp_path, *lines)
    assert says in str(error.value)
