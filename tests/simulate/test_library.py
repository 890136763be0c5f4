"""The library file, and the physics of the shipped library."""

from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from galmerhpc.config import Catalogue, load
from galmerhpc.errors import InputError
from galmerhpc.simulate.agreement import require
from galmerhpc.simulate.encounters import tasks
from galmerhpc.simulate.galaxies import Component
from galmerhpc.simulate.library import (
    Encounter,
    Library,
    Snapshot,
    library_path,
    merge,
    neighbour_distance,
    write_encounter,
)
from tests.support import ROOT

SHIPPED = library_path("shipped")
CONFIG = load(ROOT / "configs" / "library.yaml")
LUMINOUS = (Component.BULGE, Component.STARS, Component.GAS)


def encounter(name: str = "prograde-i0-r0", particles: int = 200, times: int = 2) -> Encounter:
    rng = np.random.default_rng(len(name))
    return Encounter(
        name=name,
        attributes={"spin": "prograde", "realisation": 0, "step_myr": 2.0},
        time_myr=50.0 * np.arange(times),
        position=rng.normal(size=(times, particles, 3)) * 20,
        mass=rng.choice([1e5, 1e6], particles),
        component=rng.choice(LUMINOUS, particles).astype(np.uint8),
        galaxy=rng.integers(0, 2, particles).astype(np.uint8),
    )


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """Return a library of two encounters with two snapshots each, from number 10."""
    sources = {}
    for name in ("retrograde-i90-r0", "prograde-i0-r0"):
        sources[name] = tmp_path / "parts" / f"{name}.h5"
        write_encounter(sources[name], encounter(name), neighbours=8)
    merge(tmp_path / "library.h5", sources, first_snapshot_id=10)
    return tmp_path / "library.h5"


@given(
    position=arrays.arrays(
        np.float32,
        st.tuples(st.just(2), st.integers(1, 30), st.just(3)),
        elements=st.floats(-655.0, 655.0, width=32),
    ),
    seed=st.integers(0, 100),
)
@settings(max_examples=40, deadline=None)
def test_every_particle_comes_back(tmp_path_factory, position, seed):
    rng = np.random.default_rng(seed)
    particles = position.shape[1]
    written = Encounter(
        name="a",
        attributes={"pair": "gSa-gSb", "mass_ratio": 1.0},
        time_myr=np.array([0.0, 10.0]),
        position=position,
        mass=rng.integers(1, 4, particles) * 1e6,
        component=rng.choice(LUMINOUS, particles).astype(np.uint8),
        galaxy=rng.integers(0, 2, particles).astype(np.uint8),
    )
    folder = tmp_path_factory.mktemp("round")
    write_encounter(folder / "a.h5", written, neighbours=3)
    merge(folder / "library.h5", {"a": folder / "a.h5"}, 7)
    with Library(folder / "library.h5") as library:
        assert library.snapshot_ids == (7, 8)
        for row in range(2):
            read = library.snapshot(7 + row)
            assert read.time_myr == 10.0 * row
            assert read.encounter == "a"
            assert written.attributes.items() <= read.attributes.items()
            assert np.array_equal(table(read, read.position), table(written, position[row]))


def table(particles: Snapshot | Encounter, position: np.ndarray) -> np.ndarray:
    """Return one row per particle, (N, 6), in an order independent of the file's."""
    codes = np.rint(position.astype(np.float64) / 0.02).astype(np.int64)
    columns = (particles.galaxy, particles.component, particles.mass.astype(np.int64), *codes.T)
    return np.stack([columns[k] for k in range(6)], axis=1)[np.lexsort(columns)]


def test_arrays_have_the_documented_types(made: Path):
    with Library(made) as library:
        snapshot = library.snapshot(10)
    for name, dtype in {
        "position": np.float32,
        "smoothing": np.float32,
        "mass": np.float32,
        "component": np.uint8,
        "galaxy": np.uint8,
    }.items():
        values = getattr(snapshot, name)
        assert values.dtype == dtype
        assert values.flags.c_contiguous
        assert len(values) == 200


def test_smoothing_is_the_distance_to_the_nth_neighbour_within_two_per_cent(made: Path):
    with Library(made) as library:
        snapshot = library.snapshot(10)
    true = neighbour_distance(snapshot.position, 8)
    assert snapshot.smoothing == pytest.approx(true, rel=0.025, abs=0.03)


def test_the_nth_neighbour_does_not_count_the_particle_itself():
    line = np.array([[0.0, 0, 0], [1.0, 0, 0], [3.0, 0, 0]])
    assert neighbour_distance(line, 1) == pytest.approx([1, 1, 2])
    assert neighbour_distance(line, 99) == pytest.approx([3, 2, 3])
    assert neighbour_distance(line[:1], 5) == pytest.approx([0])


def test_what_lies_beyond_the_positions_range_is_clamped_and_counted(tmp_path: Path):
    far = encounter(times=1)
    far.position[0, 3] = [1e4, -1e4, 5.0]
    write_encounter(tmp_path / "a.h5", far, neighbours=4)
    merge(tmp_path / "library.h5", {far.name: tmp_path / "a.h5"}, 0)
    with Library(tmp_path / "library.h5") as library:
        snapshot = library.snapshot(0)
        assert snapshot.attributes["clamped"] == 1
    clamped = snapshot.position[np.abs(snapshot.position).max(axis=1) > 600]
    assert clamped == pytest.approx(np.array([[655.34, -655.34, 5.0]]), abs=0.01)


def test_merging_numbers_the_snapshots_in_order_and_again(made: Path):
    with Library(made) as library:
        assert library.encounters == ("retrograde-i90-r0", "prograde-i0-r0")
        assert library.snapshot_ids == (10, 11, 12, 13)
        before = library.snapshot(12)
    merge(made, {"prograde-i0-r0": made, "retrograde-i90-r0": made}, 100)
    with Library(made) as library:
        assert library.encounters == ("prograde-i0-r0", "retrograde-i90-r0")
        assert library.snapshot_ids == (100, 101, 102, 103)
        assert np.array_equal(library.snapshot(100).position, before.position)


def test_a_library_is_the_same_file_every_time(tmp_path: Path):
    for name in ("first.h5", "second.h5"):
        write_encounter(tmp_path / name, encounter(), neighbours=4)
    assert (tmp_path / "first.h5").read_bytes() == (tmp_path / "second.h5").read_bytes()


def test_a_failed_merge_leaves_the_library_as_it_was(made: Path):
    before = made.read_bytes()
    with pytest.raises(InputError, match="no such snapshot library"):
        merge(made, {"prograde-i0-r0": made, "gone": made.with_name("missing.h5")}, 0)
    assert made.read_bytes() == before
    assert [p.name for p in made.parent.iterdir() if p.name.startswith(".tmp")] == []


def wrong_files(folder: Path) -> dict[str, Path]:
    with h5py.File(folder / "other.h5", "w") as file:
        file["x"] = 1
    (folder / "text.h5").write_text("not HDF5")
    part = folder / "part.h5"  # of one encounter, not merged: no numbers yet
    write_encounter(part, encounter(), neighbours=4)
    cut = folder / "cut.h5"
    cut.write_bytes(part.read_bytes()[:-500])
    return {
        "no such": folder / "none.h5",
        "damaged, or": folder / "other.h5",
        "text.h5: damaged, or not a snapshot library at all": folder / "text.h5",
        "not a snapshot library": part,
        "make it again": cut,
        "no such snapshot": folder,
    }


def test_a_wrong_file_is_one_line_that_says_what_to_do(tmp_path: Path):
    for message, path in wrong_files(tmp_path).items():
        with pytest.raises(InputError, match=message) as caught:
            Library(path)
        assert str(path) in str(caught.value)
        assert "galmerhpc simulate" in str(caught.value)
        assert "\n" not in str(caught.value)


def test_damage_inside_the_file_is_said_when_it_is_read(made: Path):
    with h5py.File(made, "r") as file:
        place = file["encounters/prograde-i0-r0/position"].id.get_chunk_info(0).byte_offset
    with made.open("r+b") as file:
        file.seek(place)
        file.write(bytes(40))
    with Library(made) as library, pytest.raises(InputError, match="damaged"):
        library.snapshot(12)


def test_an_unknown_snapshot_or_encounter_names_those_that_are_there(made: Path):
    with Library(made) as library:
        with pytest.raises(InputError, match=r"no snapshot 27436 \(available: 10-13\)"):
            library.snapshot(27436)
        with pytest.raises(InputError, match="available: retrograde-i90-r0, prograde-i0-r0"):
            library.attributes("prograde-i60-r0")


def test_shipped_means_the_packages_file_and_anything_else_a_path():
    assert SHIPPED.name == "library.h5"
    assert SHIPPED.parent.parent.name == "galmerhpc"
    assert library_path("some/where.h5") == Path("some/where.h5")


@pytest.mark.parametrize(
    ("labels", "fault"),
    [
        ({"mass_ratio": 1, "pericentre_kpc": 8, "gas_fraction": 0.1}, None),  # not 8.76, as passed
        ({"mass_ratio": 10, "pericentre_kpc": 8}, "mass_ratio 1.0, the catalogue says 10"),
        ({"pericentre_kpc": 16}, "orbit.pericentre_kpc 8.0, the catalogue says 16"),
    ],
)
def test_labels_are_those_of_the_library(
    tmp_path: Path, labels: dict[str, float], fault: str | None
) -> None:
    run = {"spin": "retrograde", "inclination_deg": 90, "labels": labels}
    run["snapshots"] = [{"id": 27436, "time_myr": 100}]
    catalogue = Catalogue.model_validate({"runs": [run]})
    if fault is None:
        require(tmp_path, "shipped", catalogue)
    else:
        with pytest.raises(InputError, match=f"snapshot 27436 with {fault}"):
            require(tmp_path, "shipped", catalogue)


# --- the shipped library --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shipped():
    with Library(SHIPPED) as library:
        yield library


def at(library: Library, name: str, time_myr: float) -> Snapshot:
    for number in library.snapshot_ids:
        snapshot = library.snapshot(number)
        if snapshot.encounter == name and snapshot.time_myr == time_myr:
            return snapshot
    raise AssertionError(f"no {name} at {time_myr}")


def test_shipped_library_is_what_its_configuration_makes(shipped: Library):
    everything = tasks(CONFIG.simulate)
    assert len(everything) == 16
    assert shipped.encounters == tuple(task.name for task in everything)
    for task in everything:
        assert task.attributes().items() <= shipped.attributes(task.name).items()
    assert shipped.snapshot_ids[0] == CONFIG.simulate.first_snapshot_id
    assert len(shipped.snapshot_ids) == 16 * len(CONFIG.simulate.snapshots.values())


def test_shipped_library_fits_the_package():
    assert SHIPPED.stat().st_size <= 8_000_000


def test_the_example_querys_snapshot_is_retrograde_at_90_degrees(shipped: Library):
    snapshot = shipped.snapshot(27436)
    assert snapshot.attributes["spin"] == "retrograde"
    assert snapshot.attributes["inclination_deg"] == 90
    assert snapshot.attributes["realisation"] == 0
    assert snapshot.time_myr == 100


def test_every_shipped_encounter_keeps_its_energy(shipped: Library):
    for name in shipped.encounters:
        attributes = shipped.attributes(name)
        assert attributes["energy_drift"] < 0.005
        assert attributes["clamped"] == 0
        assert 7.5 < attributes["pericentre_kpc"] < 10.0


def test_shipped_snapshots_hold_the_pairs_whole_luminous_mass(shipped: Library):
    for number in shipped.snapshot_ids:
        snapshot = shipped.snapshot(number)
        assert len(snapshot.mass) == 40_000
        assert np.isfinite(snapshot.position).all()
        assert snapshot.mass.sum() == pytest.approx((54 + 29) * 2.3e9, rel=1e-4)
        assert set(np.unique(snapshot.component)) == set(LUMINOUS)


def normal(snapshot: Snapshot, galaxy: int) -> np.ndarray:
    """Return the direction in which the inner disc is thinnest."""
    bulge = (snapshot.galaxy == galaxy) & (snapshot.component == Component.BULGE)
    offset = snapshot.position - np.median(snapshot.position[bulge], axis=0)
    inner = (snapshot.galaxy == galaxy) & (snapshot.component == Component.STARS)
    inner &= np.linalg.norm(offset, axis=1) < 6
    return np.linalg.eigh(np.cov(offset[inner].T))[1][:, 0]


@pytest.mark.parametrize("inclination", [0, 45, 75, 90])
def test_shipped_discs_are_tilted_against_each_other(shipped: Library, inclination: int):
    # The encounter itself tilts the inner discs by some degrees.
    snapshot = at(shipped, f"retrograde-i{inclination}-r0", 50)
    assert abs(normal(snapshot, 0)[2]) > np.cos(np.radians(10))
    tilt = np.degrees(np.arccos(min(abs(normal(snapshot, 0) @ normal(snapshot, 1)), 1.0)))
    assert tilt == pytest.approx(inclination, abs=20)


def tail_mass(snapshot: Snapshot) -> float:
    """Return the share of disc mass farther than 25 kpc from both galaxies."""
    discs = snapshot.component != Component.BULGE
    far = np.ones(discs.sum(), bool)
    for galaxy in (0, 1):
        bulge = (snapshot.galaxy == galaxy) & ~discs
        centre = np.median(snapshot.position[bulge], axis=0)
        far &= np.linalg.norm(snapshot.position[discs] - centre, axis=1) > 25
    return float(snapshot.mass[discs][far].sum() / snapshot.mass[discs].sum())


@pytest.mark.parametrize("realisation", [0, 1])
def test_prograde_tails_are_longer(shipped: Library, realisation: int):
    for inclination in (0, 45, 75, 90):
        prograde, retrograde = (
            tail_mass(at(shipped, f"{spin}-i{inclination}-r{realisation}", 150))
            for spin in ("prograde", "retrograde")
        )
        assert prograde > 1.15 * retrograde, f"i = {inclination}"


def test_realisations_are_other_particles_of_the_same_encounter(shipped: Library):
    one, other = (at(shipped, f"prograde-i0-r{k}", 100) for k in (0, 1))
    assert not np.array_equal(one.position, other.position)
    assert np.median(one.smoothing) == pytest.approx(np.median(other.smoothing), rel=0.05)
