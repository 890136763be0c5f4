"""Fetching data on real pairs from stand-ins for SkyServer and HyperLEDA over HTTP."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from galmerhpc.errors import GalmerhpcError, InputError
from galmerhpc.evaluation.archives import CUTOUT_PX, Archives, fetch, separation_arcsec
from galmerhpc.evaluation.pairs import Disc, Pair, read_pairs
from tests.evaluation.archive_servers import Answer, Galaxy, Sky, serve
from tests.evaluation.pictures import encode

FIRST = Galaxy(150.0, 60.0, magnitude=15.0, redshift=None, pa_deg=10, inclination_deg=45)
SECOND = Galaxy(150.01, 60.003, magnitude=16.5, redshift=0.04, pa_deg=80, inclination_deg=70)
FAR = Galaxy(150.3, 60.0)
PAIR = Pair("a", "a.jpg", (Disc(sky=(150.0, 60.0)), Disc(sky=(150.01, 60.003))))


@pytest.fixture
def sky() -> Sky:
    return Sky([FAR, SECOND, FIRST])


@pytest.fixture
def archives(sky: Sky) -> Iterator[Archives]:
    with serve(sky) as address:
        yield Archives(f"{address}/dr18/SkyServerWS", f"{address}/hyperleda/fG.cgi")


def test_everything_that_is_open_is_filled_in(archives: Archives, sky: Sky, tmp_path: Path) -> None:
    (pair,) = fetch([PAIR], tmp_path, archives)
    first, second = pair.discs
    assert (first.pa_deg, first.inclination_deg, first.magnitude) == (10, 45, 15)
    assert (second.pa_deg, second.inclination_deg, second.magnitude) == (80, 70, 16.5)
    assert pair.redshift == 0.04  # that of the galaxy that has one
    assert pair.light_ratio == pytest.approx(10**0.6)
    with Image.open(tmp_path / "a.jpg") as picture:
        assert picture.size == (CUTOUT_PX, CUTOUT_PX)
        levels = np.asarray(picture.convert("L"))
    for disc in pair.discs:  # both are where they are said to be
        column, row = map(round, disc.pixel)
        assert levels[row, column] > 150
        assert (
            levels[row, column] >= levels[row - 20 : row + 21, column - 20 : column + 21].max() - 3
        )
    apart = np.hypot(*np.subtract(first.pixel, second.pixel)) * pair.scale_arcsec_per_px
    assert apart == pytest.approx(separation_arcsec(first.sky, second.sky), rel=1e-3)
    assert read_pairs(tmp_path / "fetched.csv") == [pair]

    before = len(sky.asked)
    assert fetch(read_pairs(tmp_path / "fetched.csv"), tmp_path, archives) == [pair]
    assert len(sky.asked) == before  # nothing was left to ask for


def test_what_the_table_says_stays(archives: Archives, sky: Sky, tmp_path: Path) -> None:
    known = Disc(sky=(150.0, 60.0), pixel=(3, 4), pa_deg=1, inclination_deg=2, magnitude=3)
    other = replace(PAIR.discs[1], pixel=(5, 6))
    (pair,) = fetch([replace(PAIR, discs=(known, other), redshift=0.1)], tmp_path, archives)
    assert pair.discs[0] == known
    assert pair.discs[1].pixel == (5, 6)
    assert pair.discs[1].magnitude == 16.5
    assert pair.redshift == 0.1
    assert not (tmp_path / "a.jpg").exists()
    assert not any("getjpeg" in path for path in sky.asked)


def test_what_nobody_knows_stays_open(archives: Archives, sky: Sky, tmp_path: Path) -> None:
    sky.galaxies[:] = [replace(FIRST, pa_deg=None, inclination_deg=None), FAR]
    (pair,) = fetch([PAIR], tmp_path, archives)
    assert pair.discs[0].magnitude == 15
    assert pair.discs[1].magnitude is pair.discs[0].pa_deg is pair.discs[1].inclination_deg is None
    assert pair.redshift is None
    assert pair.solutions_deg is pair.light_ratio is None


@pytest.mark.parametrize("unknown", [-9999.0, -999.0, 99.99, 999.0])
def test_what_stands_for_an_unknown_magnitude_is_none(
    archives: Archives, sky: Sky, tmp_path: Path, unknown: float
) -> None:
    sky.galaxies[:] = [replace(FIRST, magnitude=unknown), SECOND]
    (pair,) = fetch([PAIR], tmp_path, archives)
    assert [disc.magnitude for disc in pair.discs] == [None, 16.5]


@pytest.mark.parametrize(
    "unknown",
    [{"pa_deg": -9999.0}, {"pa_deg": 999.9}, {"inclination_deg": -9999.0}, {"redshift": 12.0}],
)
def test_what_stands_for_an_unknown_number_stays_open_and_is_read_back(
    archives: Archives, sky: Sky, tmp_path: Path, unknown: dict[str, float]
) -> None:
    sky.galaxies[:] = [replace(FIRST, **unknown), replace(SECOND, redshift=unknown.get("redshift"))]
    for _ in range(2):
        (pair,) = fetch([PAIR], tmp_path, archives)
    first = pair.discs[0]
    assert (first.pa_deg is None) == ("pa_deg" in unknown)
    assert (first.inclination_deg is None) == ("inclination_deg" in unknown)
    assert pair.redshift is None


def test_one_entry_is_not_taken_for_both_galaxies_of_a_close_pair(
    archives: Archives, sky: Sky, tmp_path: Path
) -> None:
    apart = 8 / 3600
    discs = (Disc(sky=(150.0, 0.0)), Disc(sky=(150.0, apart)))
    sky.galaxies[:] = [Galaxy(150.0, apart / 2)]
    (pair,) = fetch([replace(PAIR, discs=discs)], tmp_path, archives)
    assert pair.solutions_deg is pair.light_ratio is None
    sky.galaxies[:] = [Galaxy(150.0, apart / 20)]  # one of the two is known
    (pair,) = fetch([replace(PAIR, name="b", image="b.jpg", discs=discs)], tmp_path, archives)
    assert [disc.pa_deg for disc in pair.discs] == [30, None]
    assert [disc.magnitude for disc in pair.discs] == [16, None]


def test_a_pair_astride_the_meridian_is_one_pair(
    archives: Archives, sky: Sky, tmp_path: Path
) -> None:
    west, east = replace(FIRST, ra_deg=359.999, dec_deg=0), replace(SECOND, ra_deg=0.001, dec_deg=0)
    sky.galaxies[:] = [west, east]
    discs = tuple(Disc(sky=(g.ra_deg, g.dec_deg)) for g in (west, east))
    (pair,) = fetch([replace(PAIR, discs=discs)], tmp_path, archives)
    assert pair.discs[0].pixel[0] > pair.discs[1].pixel[0]  # east is left
    assert separation_arcsec(discs[0].sky, discs[1].sky) == pytest.approx(7.2)


PAGE = (200, "text/html", b"<html><body>Error: the database is down</body></html>")


SHORT_ROW = (200, "text/csv", b"#Table1\nmagnitude,redshift\n15.0\n")


@pytest.mark.parametrize("service", ["SqlSearch", "getjpeg", "fG.cgi"])
@pytest.mark.parametrize(
    "answer", [PAGE, SHORT_ROW, (404, "text/html", b"gone"), (200, "text/csv", b"")]
)
def test_a_page_instead_of_an_answer_is_an_error_that_names_the_service(
    archives: Archives, sky: Sky, tmp_path: Path, service: str, answer: Answer
) -> None:
    sky.instead = lambda path, _: answer if service in path else None
    with pytest.raises(GalmerhpcError, match=service):
        fetch([PAIR], tmp_path, archives)
    assert not (tmp_path / "a.jpg").exists() or service == "fG.cgi"
    assert not (tmp_path / "fetched.csv").exists()


def test_a_cut_out_is_stored_whole_or_not_at_all(
    archives: Archives, sky: Sky, tmp_path: Path
) -> None:
    whole = sky.picture({"ra": 150, "dec": 60, "scale": 0.5, "width": 512, "height": 512})
    for length in (2, 100, 600, len(whole) // 2):
        cut = (200, "image/jpeg", whole[:length])
        sky.instead = lambda path, _, cut=cut: cut if "getjpeg" in path else None
        with pytest.raises(GalmerhpcError, match="is not the requested image"):
            fetch([PAIR], tmp_path, archives)
        assert list(tmp_path.iterdir()) == []


def test_a_place_of_which_there_is_no_picture_does_not_stop_the_others(
    archives: Archives, sky: Sky, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    black = (200, "image/jpeg", encode(Image.new("RGB", (CUTOUT_PX, CUTOUT_PX)), "JPEG"))
    sky.instead = lambda path, query: (
        black if "getjpeg" in path and query["ra"].startswith("150.005") else None
    )
    other = replace(PAIR, name="b", image="b.jpg", discs=(Disc(sky=(150.3, 60)), PAIR.discs[1]))
    first, second = fetch([PAIR, other], tmp_path, archives)
    assert first.discs[0].pixel is None
    assert "a.jpg: not written" in caplog.text
    assert second.discs[0].pixel
    assert [path.name for path in tmp_path.glob("*.jpg")] == ["b.jpg"]


def test_a_broken_cut_out_is_fetched_again_and_another_picture_is_not(
    archives: Archives, tmp_path: Path
) -> None:
    expected, path = fetch([PAIR], tmp_path, archives), tmp_path / "a.jpg"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert fetch([PAIR], tmp_path, archives) == expected
    assert path.read_bytes() == whole
    other = whole[:100], encode(Image.new("L", (300, 200)), "JPEG")
    for content in other:
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"a\.jpg exists and is not from --fetch"):
            fetch([PAIR], tmp_path, archives)
        assert path.read_bytes() == content


def test_a_picture_of_the_same_size_is_not_taken_for_a_cut_out(
    archives: Archives, tmp_path: Path
) -> None:
    expected, path = fetch([PAIR], tmp_path, archives), tmp_path / "a.jpg"
    # As if the first fetch had been killed before it wrote its table.
    (tmp_path / "fetched.csv").unlink()
    assert fetch([PAIR], tmp_path, archives) == expected
    (tmp_path / "fetched.csv").unlink()
    own = encode(Image.new("L", (CUTOUT_PX, CUTOUT_PX), 90), "JPEG")
    path.write_bytes(own)
    with pytest.raises(InputError, match=r"a\.jpg exists and is not from --fetch"):
        fetch([PAIR], tmp_path, archives)
    assert path.read_bytes() == own


def test_what_was_fetched_before_a_failure_is_kept(
    archives: Archives, sky: Sky, tmp_path: Path
) -> None:
    lost = replace(PAIR, name="b", image="b.jpg", discs=(Disc(sky=(150.0, 20.0)), PAIR.discs[1]))
    sky.instead = lambda _, query: PAGE if " 20.0" in query.get("cmd", "") else None
    with pytest.raises(GalmerhpcError, match="SqlSearch"):
        fetch([PAIR, lost], tmp_path, archives)
    first, second = read_pairs(tmp_path / "fetched.csv")
    assert second == lost
    sky.asked.clear()
    assert fetch([first], tmp_path, archives) == [first]
    assert sky.asked == []
    # The same command goes on from there.
    sky.instead = lambda *_: None
    fetch([PAIR], tmp_path, archives)
    assert sky.asked == []
    assert fetch([PAIR, lost], tmp_path, archives)[0] == first
    assert {path.rpartition("/")[2] for path in sky.asked} >= {"SqlSearch", "getjpeg"}


def test_pictures_that_a_fetched_table_lacks_are_fetched(
    archives: Archives, sky: Sky, tmp_path: Path
) -> None:
    fetch([PAIR], tmp_path, archives)
    sky.asked.clear()
    (pair,) = pairs = read_pairs(tmp_path / "fetched.csv")
    assert fetch(pairs, tmp_path / "new", archives) == pairs
    assert [path.rpartition("/")[2] for path in sky.asked] == ["getjpeg"]
    assert (tmp_path / "new/a.jpg").read_bytes() == (tmp_path / "a.jpg").read_bytes()
    nowhere = replace(pair, discs=tuple(replace(disc, sky=None) for disc in pair.discs))
    assert fetch([nowhere], tmp_path / "other", archives) == [nowhere]  # it lacks nothing


def test_a_busy_service_is_asked_again(
    archives: Archives, sky: Sky, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("galmerhpc.evaluation.archives._RETRY.backoff_factor", 0.0)
    tries: list[str] = []

    def busy(path: str, _: dict[str, str]) -> Answer | None:
        tries.append(path)
        return (503, "text/plain", b"busy") if tries.count(path) < 3 else None

    sky.instead = busy
    (pair,) = fetch([PAIR], tmp_path, archives)
    assert pair.redshift == 0.04


def test_a_service_that_is_not_there_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("galmerhpc.evaluation.archives._RETRY.total", 0)
    nowhere = "http://127.0.0.1:9/fG.cgi"
    with pytest.raises(GalmerhpcError, match="cannot be reached"):
        fetch([PAIR], tmp_path, Archives(nowhere, nowhere))


def test_without_a_place_nothing_can_be_fetched(
    archives: Archives, sky: Sky, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="pair a: --fetch needs ra1_deg"):
        fetch([PAIR, replace(PAIR, discs=(Disc(), Disc()))], tmp_path, archives)
    assert sky.asked == []
