"""The stage: encounters are set up correctly, run, resumed, and refused if invalid."""

import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import yaml

from galmerhpc import config, files
from galmerhpc.config import Config, load
from galmerhpc.errors import ExitCode, GalmerhpcError, InputError
from galmerhpc.simulate import encounters
from galmerhpc.simulate.encounters import Task, initial_state, run, simulate, tasks
from galmerhpc.simulate.galaxies import Component, G, Particles
from galmerhpc.simulate.library import Encounter, Library
from galmerhpc.simulate.nbody import integrate, separation
from tests.support import environment, galmerhpc, wait_for

FEW = {"halo": 300, "bulge": 200, "stars": 300, "gas": 100}
LIVE = {
    "particles": FEW,
    "snapshots": {"start_myr": -20, "stop_myr": 20, "step_myr": 20},
    "step_myr": 2,
    "softening_kpc": 0.7,
}


def settings(**keys: object) -> config.Simulate:
    return config.Simulate.model_validate({"particles": FEW} | keys)


def only(**keys: object) -> Task:
    """Return the one encounter of a configuration with one spin, tilt and realisation."""
    lists = {"spins": ["prograde"], "inclinations2_deg": [0], "realisations": [0]}
    (task,) = tasks(settings(**(lists | keys)))
    return task


def read(folder: Path, **keys: object) -> Config:
    """Return a configuration whose library is in a folder."""
    return load(write(folder, **keys))


def write(folder: Path, **keys: object) -> Path:
    path = folder / "c.yaml"
    values = {"library": str(folder / "library.h5"), "simulate": {"particles": FEW} | keys}
    path.write_text(yaml.safe_dump(values))
    return path


# --- the list -------------------------------------------------------------------------------------


def test_encounters_are_numbered_by_realisation_then_spin_then_inclination():
    names = [task.name for task in tasks(config.Simulate())]
    assert len(names) == 16
    assert names[:5] == [
        "prograde-i0-r0",
        "prograde-i45-r0",
        "prograde-i75-r0",
        "prograde-i90-r0",
        "retrograde-i0-r0",
    ]
    assert names[8] == "prograde-i0-r1"


def test_attributes_hold_every_parameter_of_the_section():
    attributes = only().attributes()
    for key in ("softening_kpc", "step_myr", "opening_angle", "mass_ratio", "orbit_type"):
        assert attributes[key] == getattr(config.Simulate(), key)
    assert attributes["pair"] == "gSa-gSb"
    assert attributes["orbit.pericentre_kpc"] == 8.0
    assert attributes["orbit.energy_km2_s2"] == 0.0
    assert attributes["particles.stars"] == 300
    assert attributes["galaxy2.halo.mass"] == 75
    assert all(isinstance(value, str | int | float) for value in attributes.values())


def test_a_dwarf_is_as_far_from_equilibrium_as_the_giant_that_it_is_a_small_copy_of():
    giants, dwarf = only(pair=["gSb", "gSb"]), only(pair=["gSb", "gSb"], mass_ratio=10)
    alone = []
    for task in (giants, dwarf):
        second = initial_state(task)
        own = second.galaxy == 1
        second = Particles(**{k: v[own] for k, v in vars(second).items()}).centred()
        alone.append((second, task.gravity.acceleration(second)))
    (big, pull), (small, small_pull) = alone
    assert small.position * np.sqrt(10) == pytest.approx(big.position)
    assert small_pull == pytest.approx(pull, rel=1e-6, abs=1e-6 * np.abs(pull).max())
    assert dwarf.attributes()["softening2_kpc"] == pytest.approx(0.35 / np.sqrt(10))
    assert "softening2_kpc" not in giants.attributes()


@pytest.mark.parametrize(("i1", "i2", "relative"), [(0, 75, 75), (33, 130, 97), (0, 180, 180)])
def test_the_relative_inclination_is_the_angle_between_the_discs(i1, i2, relative):
    attributes = only(inclination1_deg=i1, inclinations2_deg=[i2]).attributes()
    assert attributes["inclination_deg"] == pytest.approx(relative)


def test_variants_are_encounters_of_one_list():
    variants = {"giants": {}, "dwarf": {"mass_ratio": 10, "orbit": {"pericentre_kpc": 16}}}
    tilts = {"spins": ["prograde"], "inclinations2_deg": [130], "inclination1_deg": 33}
    giants, _, dwarf, again = tasks(settings(variants=variants, **tilts))
    assert giants.name == "giants-prograde-i130-r0"
    assert (dwarf.name, again.realisation) == ("dwarf-prograde-i130-r0", 1)
    assert giants.attributes()["mass_ratio"] == 1
    attributes = dwarf.attributes()
    assert attributes["mass_ratio"] == 10
    assert attributes["orbit.pericentre_kpc"] == 16
    assert attributes["orbit.start_separation_kpc"] == 55
    assert attributes["particles.stars"] == FEW["stars"]
    assert not any("variants" in key for key in attributes)


@pytest.mark.parametrize(
    ("variants", "message"),
    [
        ({"dwarf": {"mas_ratio": 10}}, "simulate: variants.dwarf.mas_ratio"),
        ({"dwarf": {"spins": []}}, "variants.dwarf: spins: must be non-empty"),
        ({"dwarf": {"first_snapshot_id": 7}}, "variants.dwarf.first_snapshot_id: cannot differ"),
        ({"a dwarf": {}}, "only letters, digits"),
    ],
)
def test_a_wrong_variant_is_named(tmp_path, variants, message):
    with pytest.raises(InputError) as failure:
        read(tmp_path, variants=variants)
    assert message in str(failure.value)


# --- the start ------------------------------------------------------------------------------------


def spin_axis(particles: Particles, galaxy: int) -> np.ndarray:
    """Return the direction of a stellar disc's angular momentum."""
    own = (particles.galaxy == galaxy) & (particles.component == Component.STARS)
    position, velocity = (
        values[own] - values[own].mean(axis=0)
        for values in (particles.position, particles.velocity)
    )
    angular = np.cross(position, velocity).sum(axis=0)
    return angular / np.linalg.norm(angular)


def motion(particles: Particles, galaxy: int) -> tuple[float, np.ndarray, np.ndarray]:
    """Return a galaxy's mass, and its centre of mass's place and velocity."""
    own = particles.galaxy == galaxy
    mass = particles.mass[own]
    return (
        mass.sum(),
        np.average(particles.position[own], axis=0, weights=mass),
        np.average(particles.velocity[own], axis=0, weights=mass),
    )


def axis(tilt_deg: float) -> np.ndarray:
    """Return the normal of a disc tilted about x."""
    angle = np.radians(tilt_deg)
    return np.array([0, -np.sin(angle), np.cos(angle)])


@pytest.mark.parametrize(("spin", "sign"), [("prograde", 1), ("retrograde", -1)])
def test_giants_start_on_the_parabola_with_their_discs_tilted(spin, sign):
    start = initial_state(only(spins=[spin], inclinations2_deg=[45]))
    (mass1, place1, velocity1), (mass2, place2, velocity2) = (motion(start, k) for k in (0, 1))
    assert mass1 == pytest.approx(mass2)
    place, velocity = place2 - place1, velocity2 - velocity1
    assert np.linalg.norm(place) == pytest.approx(55)
    energy = velocity @ velocity / 2 - G * (mass1 + mass2) / np.linalg.norm(place)
    assert energy == pytest.approx(0, abs=1e-6 * (velocity @ velocity))
    angular = np.cross(place, velocity)
    assert angular == pytest.approx([0, 0, sign * np.sqrt(2 * G * (mass1 + mass2) * 8)], abs=1)
    assert spin_axis(start, 0) == pytest.approx(axis(0), abs=0.03)
    assert spin_axis(start, 1) == pytest.approx(axis(45), abs=0.03)


def test_a_dwarf_of_a_tenth_with_both_discs_tilted():
    # GalMer's giant-dwarf encounters: i1 = 33, i2 = 130.
    start = initial_state(only(mass_ratio=10, inclination1_deg=33, inclinations2_deg=[130]))
    (mass1, place1, velocity1), (mass2, place2, velocity2) = (motion(start, k) for k in (0, 1))
    assert mass1 / mass2 == pytest.approx(10)
    assert mass1 * place1 + mass2 * place2 == pytest.approx([0, 0, 0], abs=1)
    assert mass1 * velocity1 + mass2 * velocity2 == pytest.approx([0, 0, 0], abs=1)
    velocity = velocity2 - velocity1
    assert velocity @ velocity / 2 == pytest.approx(G * (mass1 + mass2) / 55)
    assert spin_axis(start, 0) == pytest.approx(axis(33), abs=0.03)
    assert spin_axis(start, 1) == pytest.approx(axis(130), abs=0.03)
    stars = start.component == Component.STARS
    giant, dwarf = (
        np.median(np.linalg.norm(start.position[stars & (start.galaxy == k)] - p, axis=1))
        for k, p in ((0, place1), (1, place2))
    )
    assert giant / dwarf == pytest.approx(np.sqrt(10) * 4.5 / 5.5, rel=0.15)


def test_a_hyperbola_starts_with_its_energy():
    start = initial_state(only(orbit={"energy_km2_s2": 2e4, "pericentre_kpc": 12}))
    (mass1, _, velocity1), (mass2, _, velocity2) = (motion(start, k) for k in (0, 1))
    velocity = velocity2 - velocity1
    assert velocity @ velocity / 2 == pytest.approx(2e4 + G * (mass1 + mass2) / 55)


def test_realisations_share_no_particle_and_spins_share_all():
    def places(realisation: int, galaxy: int, spin: str = "prograde") -> np.ndarray:
        start = initial_state(only(realisations=[realisation], spins=[spin]))
        own = start.galaxy == galaxy
        return start.position[own] - start.position[own].mean(axis=0)

    assert not np.isclose(places(0, 1)[:, None], places(1, 0)[None]).all(axis=2).any()
    assert not np.isclose(places(0, 0)[:, None], places(1, 0)[None]).all(axis=2).any()
    assert places(0, 0) == pytest.approx(places(0, 0, "retrograde"), abs=1e-9)


# --- the run --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def live() -> tuple[Task, Encounter]:
    task = only(**LIVE)
    return task, run(task)


def test_a_live_encounter_keeps_its_energy_and_passes_near_the_orbits_pericentre(live):
    task, encounter = live
    assert encounter.attributes["energy_drift"] < 0.005
    assert 6 < encounter.attributes["pericentre_kpc"] < 13
    expected = task.orbit.time_to_pericentre_myr(55.0)
    assert encounter.attributes["pericentre_myr"] == pytest.approx(expected, rel=0.25)


def test_snapshots_are_counted_from_the_closest_approach(live):
    _, encounter = live
    assert encounter.time_myr.tolist() == [-20, 0, 20]
    distance = []
    for position in encounter.position:
        first, second = (
            np.median(
                position[(encounter.component == Component.BULGE) & (encounter.galaxy == k)], axis=0
            )
            for k in (0, 1)
        )
        distance.append(np.linalg.norm(first - second))
    assert distance[1] == pytest.approx(encounter.attributes["pericentre_kpc"], abs=1e-3)
    assert min(distance) == distance[1]


def test_a_run_repeats_itself_bit_for_bit(live):
    task, encounter = live
    again = run(task)
    assert np.array_equal(again.position, encounter.position)
    assert again.attributes == encounter.attributes


def test_total_momentum_is_conserved():
    task = only(**LIVE)
    gravity = task.gravity
    start = initial_state(task)
    scale = start.mass @ np.linalg.norm(start.velocity, axis=1)
    for time, particles in integrate(start, gravity, task.settings.step_myr):
        assert np.linalg.norm(particles.mass @ particles.velocity) < 1e-3 * scale
        if separation(particles) < 12 or time > 300:
            break
    assert time < 300


def test_too_coarse_a_step_is_a_failure_that_says_so():
    with pytest.raises(GalmerhpcError, match=r"energy drifted by .*simulate\.max_energy_drift"):
        run(only(**LIVE | {"max_energy_drift": 1e-9}))


def test_galaxies_that_never_pass_are_a_failure_that_says_so(monkeypatch):
    monkeypatch.setattr(encounters, "separation", lambda _: 50.0)
    with pytest.raises(GalmerhpcError, match="no pericentre after"):
        run(only(**LIVE))


# --- the stage ------------------------------------------------------------------------------------


@pytest.fixture
def counted(monkeypatch) -> list[str]:
    """Make encounters free; return the names of those that are run."""
    names = []

    def start_alone(task: Task) -> Encounter:
        names.append(task.name)
        start = initial_state(task)
        luminous = start.component != Component.HALO
        times = task.settings.snapshots.values()
        return Encounter(
            task.name,
            task.attributes() | {"energy_drift": 0.001},
            times,
            np.repeat(start.position[None, luminous], len(times), axis=0),
            start.mass[luminous],
            start.component[luminous],
            start.galaxy[luminous],
        )

    monkeypatch.setattr(encounters, "run", start_alone)
    return names


SHORT = {"snapshots": {"start_myr": 0, "stop_myr": 10, "step_myr": 10}, "realisations": [0]}


def test_a_complete_library_is_left_alone(tmp_path, counted):
    simulate(read(tmp_path, **SHORT))
    assert len(counted) == 8
    before = (tmp_path / "library.h5").stat()
    simulate(read(tmp_path, **SHORT))
    assert len(counted) == 8
    assert (tmp_path / "library.h5").stat() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c.yaml", "library.h5"]


def test_a_second_job_on_a_library_says_so_and_stops(tmp_path, counted):
    with (
        files.lock(tmp_path / "library.h5.lock"),
        pytest.raises(InputError, match="in use by process"),
    ):
        simulate(read(tmp_path, **SHORT))
    assert counted == []


def test_finished_encounters_are_reused_after_a_failure(tmp_path, counted, monkeypatch):
    cheap = encounters.run

    def fail_at_third(task: Task) -> Encounter:
        if len(counted) == 2:
            raise GalmerhpcError("killed")
        return cheap(task)

    monkeypatch.setattr(encounters, "run", fail_at_third)
    with pytest.raises(GalmerhpcError, match="killed"):
        simulate(read(tmp_path, **SHORT))
    assert not (tmp_path / "library.h5").exists()
    monkeypatch.setattr(encounters, "run", cheap)
    simulate(read(tmp_path, **SHORT))
    assert counted == [task.name for task in tasks(settings(**SHORT))]  # each once


def test_a_library_grows_by_a_realisation_and_an_inclination(tmp_path, counted):
    simulate(read(tmp_path, **SHORT))
    with Library(tmp_path / "library.h5") as library:
        before = library.snapshot(library.snapshot_ids[-1])
    more = SHORT | {"realisations": [1, 0], "inclinations2_deg": [0, 45, 60, 75, 90]}
    simulate(read(tmp_path, **more))
    assert len(counted) == len(set(counted)) == 20
    with Library(tmp_path / "library.h5") as library:
        assert len(library.encounters) == 20
        assert library.encounters[0] == "prograde-i0-r1"
        after = library.snapshot(library.snapshot_ids[-1])
        assert after.encounter == before.encounter == "retrograde-i90-r0"
        assert np.array_equal(after.position, before.position)


def test_another_first_number_renumbers_without_a_run(tmp_path, counted):
    simulate(read(tmp_path, **SHORT))
    simulate(read(tmp_path, **SHORT, first_snapshot_id=5))
    assert len(counted) == 8
    with Library(tmp_path / "library.h5") as library:
        assert library.snapshot_ids == tuple(range(5, 21))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"softening_kpc": 0.5}, "softening_kpc = 0.35, not 0.5"),
        ({"particles": FEW | {"gas": 7}}, "particles.gas = 100, not 7"),
        ({"orbit": {"pericentre_kpc": 9}}, "orbit.pericentre_kpc = 8.0, not 9.0"),
        ({"spins": ["prograde"]}, "contains retrograde-i0-r0, which"),
    ],
)
def test_what_was_made_otherwise_is_neither_reused_nor_overwritten(
    tmp_path, counted, change, message
):
    simulate(read(tmp_path, **SHORT))
    before = (tmp_path / "library.h5").read_bytes()
    with pytest.raises(InputError, match=message) as caught:
        simulate(read(tmp_path, **SHORT | change))
    assert "choose another library or remove" in str(caught.value)
    assert "library.h5" in str(caught.value)
    assert (tmp_path / "library.h5").read_bytes() == before
    assert len(counted) == 8


def test_a_damaged_part_is_named(tmp_path, counted):
    part = tmp_path / "library.h5.parts" / "prograde-i0-r0.h5"
    part.parent.mkdir()
    part.write_bytes(b"half")
    with pytest.raises(InputError, match=r"prograde-i0-r0\.h5: damaged"):
        simulate(read(tmp_path, **SHORT))
    assert counted == []


def test_what_a_killed_writer_left_is_removed(tmp_path, counted):
    left = tmp_path / "library.h5.parts" / ".tmp-1-prograde-i0-r0.h5"
    left.parent.mkdir()
    left.write_bytes(b"half")
    merge, of_another = (tmp_path / f".tmp-node-1-{name}.h5" for name in ("library", "my-library"))
    for path in (merge, of_another):
        path.write_bytes(b"half")
    simulate(read(tmp_path, **SHORT))
    assert not left.parent.exists()
    assert not merge.exists()
    assert of_another.exists()
    assert len(counted) == 8


def test_the_shipped_library_is_not_overwritten(tmp_path):
    with pytest.raises(InputError, match=r"library: shipped .* name a file"):
        simulate(load(write(tmp_path), ["library=shipped"]))


@pytest.mark.parametrize("folder", [".", "", "/"])
def test_a_folder_is_no_library_to_make(tmp_path, folder):
    with pytest.raises(InputError, match=r"is a folder; name a file to write, .*library="):
        simulate(load(write(tmp_path), [f"library='{folder}'"]))


def test_a_snapshot_from_before_the_start_is_refused_at_once(tmp_path, counted):
    with pytest.raises(InputError, match=r"start_myr: -400 .*start_separation"):
        simulate(read(tmp_path, snapshots={"start_myr": -400}))
    assert counted == []


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"snapshots": {"step_myr": 5}, "step_myr": 2}, "multiple of step_myr"),
        ({"spins": ["sideways"]}, "simulate.spins.0"),
        ({"orbit": {"energy_km2_s2": -1}}, "simulate.orbit.energy_km2_s2"),
        ({"pair": ["gSa", "dE0"]}, "no galaxy model 'dE0'"),
        ({"softning_kpc": 1}, "did you mean softening_kpc"),
        ({"realisations": [0, 0]}, "realisations: must be non-empty"),
    ],
)
def test_the_command_answers_wrong_input_with_one_line(tmp_path, keys, message):
    done = galmerhpc("simulate", str(write(tmp_path, **keys)))
    assert done.returncode == ExitCode.WRONG_INPUT
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c.yaml"]


@pytest.mark.timeout(900)  # each process compiles the tree's code anew
def test_two_ranks_go_on_after_a_kill_and_make_what_one_rank_makes(tmp_path):
    few = {k: v // 2 for k, v in FEW.items()}
    keys = LIVE | {
        "particles": few,
        "snapshots": {"start_myr": 0, "stop_myr": 0},
        "spins": ["prograde"],
        "inclinations2_deg": [0, 45, 90],
        "realisations": [0],
        "max_energy_drift": 0.05,
    }
    parts = tmp_path / "library.h5.parts"
    path = str(write(tmp_path, **keys))
    command = (sys.executable, "-m", "galmerhpc.cli", "simulate", path)
    with subprocess.Popen(
        command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as job:
        wait_for(lambda: any(parts.glob("[a-z]*.h5")), job, timeout=400)
        job.kill()
    assert not (tmp_path / "library.h5").exists()
    kept = sorted(parts.glob("[a-z]*.h5"))[0]
    with h5py.File(kept, "r+") as file:
        file[f"encounters/{kept.stem}"].attrs["mark"] = "made before the kill"

    done = galmerhpc("simulate", path, ranks=2, timeout=400)
    assert done.returncode == ExitCode.COMPLETE, done.stderr
    assert not parts.exists()
    with Library(tmp_path / "library.h5") as library:
        assert library.attributes(kept.stem)["mark"] == "made before the kill"
        assert library.encounters == ("prograde-i0-r0", "prograde-i45-r0", "prograde-i90-r0")
        made = library.attributes("prograde-i90-r0")
        alone = run(tasks(settings(**keys))[2])
        assert alone.attributes.items() <= made.items()
