"""GalMer's FITS snapshots: what is imported, what it looks like, and what is refused."""

import io
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from astropy.io import fits

from galmerhpc.catalogue import Views
from galmerhpc.config import Catalogue, Config
from galmerhpc.errors import ExitCode, InputError
from galmerhpc.evaluation import facts
from galmerhpc.preview import Preview
from galmerhpc.simulate.agreement import has_changed, note, require
from galmerhpc.simulate.galaxies import MASS_UNIT_MSUN, Component
from galmerhpc.simulate.import_fits import COLUMNS, import_fits
from galmerhpc.simulate.library import Library, Snapshot, library_path
from galmerhpc.simulate.render import render
from tests.dataset.runs import galmerhpc_without_room
from tests.support import galmerhpc, run

HEADER = "file,id,time_myr,spin,inclination_deg,simulation\n"
ROW = "a.fits,500,100,retrograde,90,2\n"


@pytest.fixture(scope="module")
def shipped() -> Snapshot:
    with Library(library_path("shipped")) as library:
        return library.snapshot(27436)


def columns(snapshot: Snapshot, length_kpc: float = 1.0) -> dict[str, np.ndarray]:
    """Return one of our snapshots in GalMer's columns, with dark matter, which is not drawn."""
    dark = np.random.default_rng(0).normal(size=(500, 3)) * 30
    position = np.concatenate([snapshot.position, dark]) / length_kpc
    mass = np.concatenate([snapshot.mass, np.full(500, 1e8)]) / MASS_UNIT_MSUN
    gas = np.concatenate([snapshot.component == Component.GAS, np.zeros(500, bool)])
    kind = np.where(gas, 0, 1)
    kind[-500:] = 2
    table = {name: position[:, k] for k, name in enumerate("XYZ")}
    table |= {name: np.zeros(len(mass)) for name in ("VX", "VY", "VZ")}
    galaxy = np.concatenate([snapshot.galaxy, np.arange(500) % 2]) + 1
    return {**table, "MASS": mass, "M_GAS": mass * gas, "P_TYPE": kind, "GAL": galaxy}


def few(count: int = 60) -> dict[str, np.ndarray]:
    """Return columns of few particles."""
    draw = np.random.default_rng(count)
    table = {name: draw.normal(size=count) for name in COLUMNS[:6]}
    table |= {name: np.ones(count) for name in ("MASS", "M_GAS")}
    return {**table, "P_TYPE": np.arange(count) % 3, "GAL": np.arange(count) % 2 + 1}


def write_fits(path: Path, table: dict[str, np.ndarray]) -> Path:
    kinds = {"f": "D", "i": "J"}
    made = [fits.Column(n, kinds[v.dtype.kind], array=v) for n, v in table.items()]
    fits.BinTableHDU.from_columns(made).writeto(path)
    return path


def imported(
    folder: Path, *paths: Path, header: str = HEADER, rows: str = ROW, **options: float
) -> str:
    (folder / "table.csv").write_text(header + rows)
    units = {"length_kpc": 1.0, "mass_msun": MASS_UNIT_MSUN, "neighbours": 32} | options
    return import_fits(paths, folder / "table.csv", folder / "library.h5", **units)


def refusal(folder: Path, *paths: Path, **options: Any) -> str:
    with pytest.raises(InputError) as caught:
        imported(folder, *paths, **options)
    assert "\n" not in str(caught.value)
    assert not (folder / "library.h5").exists()
    assert not list(folder.glob(".tmp*"))
    return str(caught.value)


@pytest.mark.parametrize("length_kpc", [1.0, 10.0])
def test_a_snapshot_of_ours_comes_back_as_the_same_picture(
    shipped: Snapshot, tmp_path: Path, length_kpc: float
) -> None:
    path = write_fits(tmp_path / "a.fits", columns(shipped, length_kpc))
    imported(tmp_path, path, length_kpc=length_kpc)
    with Library(tmp_path / "library.h5") as library:
        assert library.snapshot_ids == (500,)
        back = library.snapshot(500)
    assert (back.time_myr, back.attributes["spin"], back.attributes["realisation"]) == (
        100,
        "retrograde",
        2,
    )
    assert len(back.mass) == len(shipped.mass)
    assert back.mass.sum() == pytest.approx(shipped.mass.sum(), rel=1e-5)
    for theta, phi in ((0, 0), (45, 30), (90, 120)):
        view = Preview(200, 500, phi, theta, 1 / 3, 4, 0, 0, True, True, False, 0)
        before, after = (render(s, view).astype(int) for s in (shipped, back))
        # Smoothing lengths were taken before positions were rounded to 0.02 kpc, and now after.
        assert np.abs(before - after).max() <= 3
        assert np.abs(before - after).mean() < 0.05


def test_gas_and_stars_are_told_apart_and_dark_matter_stays_out(tmp_path: Path) -> None:
    imported(tmp_path, write_fits(tmp_path / "a.fits", few(60)))
    with Library(tmp_path / "library.h5") as library:
        back = library.snapshot(500)
    kinds, counts = np.unique(back.component, return_counts=True)
    assert dict(zip(kinds.tolist(), counts.tolist(), strict=True)) == {
        Component.STARS: 20,
        Component.GAS: 20,
    }
    assert set(back.galaxy) == {0, 1}
    assert (back.mass == np.float32(MASS_UNIT_MSUN)).all()


def test_what_is_drawn_of_an_imported_library_is_not_called_ours(tmp_path: Path) -> None:
    imported(tmp_path, write_fits(tmp_path / "a.fits", few(60)))
    run = {"spin": "prograde", "inclination_deg": 0, "first_id": 500}
    values = {"library": str(tmp_path / "library.h5"), "catalogue": {"runs": [run]}}
    config = Config.model_validate({"run_dir": tmp_path / "run", **values})
    assert not facts.shows_our_encounters(config)
    assert facts.source(config) == f"the mirror, library {config.library}"
    assert facts.shows_our_encounters(config.model_copy(update={"library": "shipped"}))


def test_a_library_of_other_units_or_files_is_another_one(tmp_path: Path) -> None:
    catalogue = Catalogue.model_validate(
        {"runs": [{"spin": "prograde", "inclination_deg": 0,
                   "snapshots": [{"id": 500, "time_myr": 50}]}]}
    )  # fmt: skip
    library = tmp_path / "library.h5"
    imported(tmp_path, write_fits(tmp_path / "a.fits", few(60)))
    note(tmp_path, str(library), catalogue)
    assert not has_changed(tmp_path, str(library), catalogue)
    library.unlink()
    (tmp_path / "a.fits").unlink()
    imported(tmp_path, write_fits(tmp_path / "a.fits", few(61)))
    assert has_changed(tmp_path, str(library), catalogue)


def test_the_command_prints_runs_that_the_mirror_answers(tmp_path: Path) -> None:
    names = ["a.fits", "b.fits", "c.fits"]
    for name in names:
        write_fits(tmp_path / name, few())
    (tmp_path / "table.csv").write_text(
        "simulation,file,id,time_myr,spin,inclination_deg,mass_ratio\n"
        "0,b.fits,8,50,prograde,0,2\n0,a.fits,7,0,prograde,0,2\n1,c.fits,3,0,prograde,0,2\n"
    )
    library = tmp_path / "library.h5"
    done = galmerhpc(
        "library", "import", *(str(tmp_path / name) for name in names),
        "--table", str(tmp_path / "table.csv"), "--output", str(library),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    catalogue = Catalogue.model_validate(yaml.safe_load(done.stdout))
    first, second = catalogue.runs
    assert [(s.id, s.time_myr) for s in first.snapshots] == [(7, 0), (8, 50)]
    assert (second.simulation, second.labels) == (1, {"mass_ratio": 2})
    require(tmp_path, str(library), catalogue)
    with pytest.raises(InputError, match=r"snapshot 7 with mass_ratio 2.0, the catalogue says 3"):
        require(
            tmp_path,
            str(library),
            Catalogue.model_validate(yaml.safe_load(done.stdout.replace("2.0", "3"))),
        )
    config = tmp_path / "run.yaml"
    config.write_text(
        f"library: {library}\ncatalogue: {{runs: {yaml.safe_load(done.stdout)['runs']}}}"
    )
    picture = tmp_path / "picture.gif"
    probed = galmerhpc(
        "catalogue", "probe", str(config), "--snap-id", "8", "--output", str(picture)
    )
    assert probed.returncode == 0, probed.stderr
    assert picture.read_bytes()[:3] == b"GIF"
    assert len(Views(catalogue)) == 3 * 91 * 181


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda table: table.pop("P_TYPE"), "no column P_TYPE (its first table has: X, Y"),
        (
            lambda table: table.update(Y=np.where(np.arange(60) == 7, np.nan, 0.0)),
            "Y of particle 7",
        ),
        (lambda table: table.update(MASS=-np.ones(60)), "MASS is negative for 60 particles"),
        (lambda table: table.update(P_TYPE=np.full(60, 5)), "P_TYPE 5 is none of"),
        (lambda table: table.update(P_TYPE=np.full(60, 2)), "nothing to draw"),
        (lambda table: table.update(GAL=np.arange(60)), "GAL has 60 values"),
        (lambda table: table.update({k: v[:0] for k, v in table.items()}), "the table is empty"),
        (lambda table: table.update(MASS=np.zeros(60)), "has up to 0 solar masses"),
        (lambda table: table.update(MASS=np.full(60, 1e40)), "check MASS and --mass-msun"),
        (lambda table: [table[k].__imul__(1e-3) for k in "XYZ"], "check X, Y, Z and --length-kpc"),
        (lambda table: [table[k].__imul__(1e3) for k in "XYZ"], "check X, Y, Z and --length-kpc"),
    ],
    ids=[
        "column",
        "nan",
        "mass",
        "type",
        "dark",
        "galaxies",
        "empty",
        "massless",
        "overflow",
        "megaparsecs",
        "parsecs",
    ],
)
def test_what_is_not_galmers_layout_is_named(
    tmp_path: Path, damage: Callable[[dict[str, np.ndarray]], object], expected: str
) -> None:
    table = few()
    damage(table)
    message = refusal(tmp_path, write_fits(tmp_path / "a.fits", table))
    assert message.startswith(str(tmp_path / "a.fits"))
    assert expected in message


def test_missing_values_of_a_column_that_is_used_are_refused(tmp_path: Path) -> None:
    table = few()
    table["M_GAS"][0] = np.nan  # not used
    imported(tmp_path, write_fits(tmp_path / "a.fits", table))
    (tmp_path / "library.h5").unlink()
    whole = {k: v for k, v in table.items() if k != "X"}
    columns = [fits.Column(n, "JD"[v.dtype.kind == "f"], array=v) for n, v in whole.items()]
    columns.append(fits.Column("X", "J", null=-99, array=np.where(np.arange(60) == 3, -99, 7)))
    (tmp_path / "a.fits").unlink()
    fits.BinTableHDU.from_columns(columns).writeto(tmp_path / "a.fits")
    assert "column X has missing values" in refusal(tmp_path, tmp_path / "a.fits")


def test_a_library_onto_a_full_disk_is_one_line(tmp_path: Path) -> None:
    path = write_fits(tmp_path / "a.fits", few(30_000))
    (tmp_path / "table.csv").write_text(HEADER + ROW)
    done = galmerhpc_without_room(
        50_000, "library", "import", str(path),
        "--table", str(tmp_path / "table.csv"), "--output", str(tmp_path / "library.h5"),
    )  # fmt: skip
    assert done.returncode == ExitCode.FAILED
    assert "library.h5: cannot be written: " in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.fits", "table.csv"]


def test_what_is_no_whole_fits_file_is_named(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    good = write_fits(tmp_path / "good.fits", few(500)).read_bytes()
    fits.PrimaryHDU(np.zeros((3, 3))).writeto(buffer)
    bad = {
        "cut short": good[: len(good) // 2],
        "of text": b"X Y Z\n1 2 3\n" * 99,
        "of nothing": b"",
        "without a table": buffer.getvalue(),
        "that claims to be huge": good.replace(
            b"=                  500", b"=        9999999999999"
        ),
    }
    path = tmp_path / "a.fits"
    for what, content in bad.items():
        path.write_bytes(content)
        assert refusal(tmp_path, path).startswith(f"{path}: "), what
    path.unlink()
    assert "no such file" in refusal(tmp_path, path)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ("", "the table has no rows"),
        (ROW.replace("a.fits", "b.fits"), "no row for a.fits"),
        (ROW + ROW, "a.fits is listed more than once"),
        (ROW.replace("retrograde", "up"), "table.csv:2: spin: Input should be 'prograde'"),
        (ROW.replace("500", "-1"), "table.csv:2: id: "),
        (ROW.replace("100", "soon"), "not 'soon'"),
        (ROW.replace(",2\n", "\n"), "5 cells, but the header has 6"),
        (ROW.replace(",2\n", ",99999999999\n"), "table.csv:2: simulation: "),
    ],
)
def test_a_wrong_table_is_named_with_its_line(tmp_path: Path, rows: str, expected: str) -> None:
    path = write_fits(tmp_path / "a.fits", few())
    message = refusal(tmp_path, path, rows=rows)
    assert message.startswith(str(tmp_path / "table.csv"))
    assert expected in message


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("realisation", "call the column simulation"),
        ("orbit_type", "call the column orbit"),
        ("source", "give the column another name"),
    ],
)
def test_a_column_by_the_librarys_own_name_is_refused(
    tmp_path: Path, name: str, remedy: str
) -> None:
    path = write_fits(tmp_path / "a.fits", few())
    message = refusal(tmp_path, path, header=HEADER.replace("simulation", name))
    assert f"table.csv:2: {name}: " in message
    assert remedy in message


def test_a_column_without_a_name_is_refused(tmp_path: Path) -> None:
    path = write_fits(tmp_path / "a.fits", few())
    message = refusal(tmp_path, path, header=f",{HEADER}", rows=f"0,{ROW}")
    assert "table.csv:2: " in message
    assert "labels: '': a name may contain only" in message


def test_one_number_for_two_snapshots_is_refused(tmp_path: Path) -> None:
    paths = [write_fits(tmp_path / name, few()) for name in ("a.fits", "b.fits")]
    rows = ROW + ROW.replace("a.fits", "b.fits")
    assert "snapshot 500 is both" in refusal(tmp_path, *paths, rows=rows)
    assert "--length-kpc: nan" in refusal(tmp_path, *paths, length_kpc=float("nan"))


def test_nothing_that_is_there_is_replaced(tmp_path: Path) -> None:
    path = write_fits(tmp_path / "a.fits", few())
    imported(tmp_path, path)
    before = (tmp_path / "library.h5").read_bytes()
    with pytest.raises(InputError, match="exists already"):
        imported(tmp_path, path)
    assert (tmp_path / "library.h5").read_bytes() == before


def test_an_orbit_that_is_not_in_the_x_y_plane_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    table = few()
    second = table["GAL"] == 2
    for name, value in (("X", 20.0), ("Y", 0.0), ("Z", 0.0), ("VX", 0.0), ("VY", 1.0), ("VZ", 0.0)):
        table[name] = np.where(second, value, -value)
    caplog.set_level(logging.WARNING)
    imported(tmp_path, write_fits(tmp_path / "a.fits", table))
    assert not caplog.records
    (tmp_path / "library.h5").unlink()
    table["VY"], table["VZ"] = table["VZ"], table["VY"]
    (tmp_path / "a.fits").unlink()
    imported(tmp_path, write_fits(tmp_path / "a.fits", table))
    assert "90 deg from z" in caplog.text


def test_a_pair_beside_the_origin_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    table = few()
    table["Y"] = table["Y"] + 80
    imported(tmp_path, write_fits(tmp_path / "a.fits", table))
    assert "a.fits: the centre of its stars and gas is 80 kpc from the origin" in caplog.text


def test_a_whole_file_that_breaks_the_standard_is_taken_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_fits(tmp_path / "a.fits", few())
    with fits.open(path, mode="update") as units:
        units[1].header["TNULL1"] = -99
        units[1].header["TDISP2"] = "Q9.9"
    table_bytes = 60 * (8 * 8 + 2 * 4)
    end = len(path.read_bytes()) // 2880 * 2880 - (-table_bytes % 2880)
    path.write_bytes(path.read_bytes()[:end])
    imported(tmp_path, path)
    with Library(tmp_path / "library.h5") as library:
        assert len(library.snapshot(500).mass) == 40
    for what in ("TNULL", "Q9.9", "truncated"):
        lines = [r.getMessage() for r in caplog.records if what in r.getMessage()]
        assert len(lines) == 1
        assert lines[0].startswith(f"{path}: ")
    (tmp_path / "library.h5").unlink()
    path.write_bytes(path.read_bytes()[:-1])
    assert "damaged" in refusal(tmp_path, path)


def test_without_astropy_the_extra_is_named() -> None:
    code = """
import sys
sys.modules["astropy"] = None
from galmerhpc.cli import main
main(["library", "import", "a.fits", "--table", "t.csv", "--output", "l.h5"])
"""
    done = run(sys.executable, "-c", code)
    assert done.returncode == 1
    assert done.stderr.strip() == (
        "galmerhpc: galmerhpc library import needs astropy: pip install 'galmerhpc[fits]'"
    )
