"""The stage `simulate`: from a configuration to a snapshot library, one encounter per task.

Every finished encounter is a separate file in ``<library>.parts``; once all are complete, they are
merged into the library and the folder is removed. A rerun reuses encounters in the parts or the
library that were made with the same parameters, so that the stage can be killed at any time, and a
library can be extended by another realisation, spin or inclination.
"""

import logging
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from galmerhpc import config, files, parallel
from galmerhpc.config import Config
from galmerhpc.errors import GalmerhpcError, InputError
from galmerhpc.parameters import relative_inclination
from galmerhpc.simulate import library
from galmerhpc.simulate.galaxies import (
    Component,
    GalaxyModel,
    Particles,
    counts_from_config,
    length_scale,
    realise,
    rotate_about_x,
)
from galmerhpc.simulate.library import SHIPPED, Attribute, Encounter, library_path
from galmerhpc.simulate.nbody import Gravity, integrate, separation
from galmerhpc.simulate.orbit import Orbit

log = logging.getLogger(__name__)

_ENERGY_INTERVAL_MYR = 20.0  # computing the energy costs as much as a step
# Overlapping galaxies attract less than point masses, so the orbit takes longer.
_LATEST_PERICENTRE = 3.0  # in units of the time for point masses

# Keys that an encounter has under another name, or that do not affect it.
_NOT_SHARED = (
    "pair",
    "galaxies",
    "spins",
    "inclinations2_deg",
    "realisations",
    "first_snapshot_id",
    "max_energy_drift",
    "variants",
)


@dataclass(frozen=True)
class Task:
    """One encounter to simulate.

    Attributes
    ----------
    settings : config.Simulate
        Settings shared by all encounters.
    spin : str
        Sense of the orbit relative to the first disc.
    inclination2_deg : float
        Tilt of the second disc.
    realisation : int
        Seed of the particles.
    variant : str
        Name of the variant of these settings; empty if there are none.
    """

    settings: config.Simulate
    spin: config.Spin
    inclination2_deg: float
    realisation: int
    variant: str = ""

    @property
    def name(self) -> str:
        """The encounter's name in the library: ``prograde-i45-r0``, ``dwarf-prograde-i45-r0``."""
        kind = f"{self.variant}-" if self.variant else ""
        return f"{kind}{self.spin}-i{self.inclination2_deg:g}-r{self.realisation}"

    @property
    def orbit(self) -> Orbit:
        """The orbit of the two centres as point masses."""
        mass = sum(model.mass for model in self.models)
        settings = self.settings.orbit
        return Orbit(mass, settings.pericentre_kpc, settings.energy_km2_s2)

    @property
    def models(self) -> tuple[GalaxyModel, GalaxyModel]:
        """The two galaxies, the second scaled by the mass ratio."""
        first, second = (self.settings.galaxies[name] for name in self.settings.pair)
        return (
            GalaxyModel.from_config(first),
            GalaxyModel.from_config(second, shrink=self.settings.mass_ratio),
        )

    @property
    def gravity(self) -> Gravity:
        """The gravity solver; softening scales with galaxy size, or small ones would puff up."""
        settings = self.settings
        return Gravity(
            settings.softening_kpc, settings.opening_angle, length_scale(settings.mass_ratio)
        )

    def attributes(self) -> dict[str, Attribute]:
        """Return all parameters of the encounter, flat, by the configuration's keys.

        With a mass ratio, also ``softening2_kpc`` of the second galaxy.
        """
        settings = self.settings.model_dump(mode="json")
        shared = {key: value for key, value in settings.items() if key not in _NOT_SHARED}
        galaxy1, galaxy2 = (settings["galaxies"][name] for name in self.settings.pair)
        inclination1 = self.settings.inclination1_deg
        return {
            "pair": "-".join(self.settings.pair),
            "spin": self.spin,
            "inclination_deg": float(
                relative_inclination(inclination1, self.inclination2_deg, 0.0, 0.0)
            ),
            "inclination2_deg": self.inclination2_deg,
            "realisation": self.realisation,
            **config.flatten(shared),
            **config.flatten({"galaxy1": galaxy1, "galaxy2": galaxy2}),
            **self._second_softening(),
        }

    def _second_softening(self) -> dict[str, Attribute]:
        # Left out for equal softening, so that older libraries can still be extended.
        if self.settings.mass_ratio == 1:
            return {}
        gravity = self.gravity
        return {"softening2_kpc": gravity.softening_kpc * gravity.second_softening}


def tasks(settings: config.Simulate) -> tuple[Task, ...]:
    """Return all encounters of a configuration in the order of their snapshot numbers."""
    return tuple(
        Task(own, spin, inclination, realisation, variant)
        for variant, own in settings.kinds().items()
        for realisation in own.realisations
        for spin in own.spins
        for inclination in own.inclinations2_deg
    )


# --- one encounter --------------------------------------------------------------------------------


def initial_state(task: Task) -> Particles:
    """Return both galaxies, tilted, on their orbit, with the centre of mass at rest at the origin.

    Discs are tilted about the x axis, the line of pericentre.
    """
    orbit, (first, second) = task.orbit, task.models
    place, velocity = orbit.inbound(task.settings.orbit.start_separation_kpc, task.spin)
    counts = counts_from_config(task.settings.particles)
    # Spawned, so that the second galaxy of one realisation is not the first of another.
    seeds = np.random.SeedSequence(task.realisation).spawn(2)
    galaxies = []
    for number, (model, tilt, share) in enumerate(
        (
            (first, task.settings.inclination1_deg, -second.mass / orbit.mass),
            (second, task.inclination2_deg, first.mass / orbit.mass),
        )
    ):
        galaxy = realise(model, counts, seeds[number])
        galaxies.append(
            replace(
                galaxy,
                position=rotate_about_x(galaxy.position, tilt) + share * place,
                velocity=rotate_about_x(galaxy.velocity, tilt) + share * velocity,
                galaxy=np.full(len(galaxy), number, np.uint8),
            )
        )
    return Particles.join(*galaxies).centred()


@dataclass
class _Pericentre:
    """The closest approach so far, and whether it has passed."""

    resolution_kpc: float
    distance_kpc: float = np.inf
    time_myr: float = 0.0
    passed: bool = False

    def look(self, time_myr: float, distance_kpc: float) -> None:
        """Record the distance at a time.

        The passage is over once the distance has grown again by more than the resolution; later,
        closer passages of a merging pair do not count.
        """
        if self.passed:
            return
        if distance_kpc < self.distance_kpc:
            self.distance_kpc, self.time_myr = distance_kpc, time_myr
        self.passed = distance_kpc > self.distance_kpc + self.resolution_kpc


@dataclass
class _EnergyWatch:
    """The largest relative change of the total energy."""

    gravity: Gravity
    initial: float = field(init=False, default=np.nan)
    drift: float = field(init=False, default=0.0)

    def look(self, particles: Particles) -> None:
        energy = self.gravity.energy(particles)
        if np.isnan(self.initial):
            self.initial = energy
        self.drift = max(self.drift, abs(energy / self.initial - 1))


def run(task: Task) -> Encounter:
    """Simulate an encounter.

    Returns
    -------
    Encounter
        Its snapshots at the configured times, relative to the simulated pericentre passage; its
        attributes also include ``pericentre_kpc``, ``pericentre_myr`` (since the start) and
        ``energy_drift``.

    Raises
    ------
    GalmerhpcError
        The energy drifted too far, there was no pericentre passage, or it was too early for the
        first snapshot.
    """
    settings = task.settings
    gravity, start = task.gravity, initial_state(task)
    luminous = start.component != Component.HALO
    pericentre, energy = _Pericentre(settings.softening_kpc), _EnergyWatch(gravity)
    frames: dict[int, NDArray[np.float32]] = {}  # luminous positions by step number
    for time, particles in integrate(start, gravity, settings.step_myr):
        pericentre.look(time, separation(particles))
        frames[round(time / settings.step_myr)] = particles.position[luminous].astype(np.float32)
        _forget(frames, task, pericentre)
        finished = pericentre.passed and time >= pericentre.time_myr + settings.snapshots.stop_myr
        if finished or time % _ENERGY_INTERVAL_MYR < settings.step_myr:
            energy.look(particles)
        if finished:
            break
        _check_passage(task, pericentre, time)
    _check_energy(task, energy.drift)
    return Encounter(
        name=task.name,
        attributes=task.attributes()
        | {
            "pericentre_kpc": pericentre.distance_kpc,
            "pericentre_myr": pericentre.time_myr,
            "energy_drift": energy.drift,
        },
        time_myr=settings.snapshots.values(),
        position=_wanted_frames(frames, task, pericentre),
        mass=start.mass[luminous],
        component=start.component[luminous],
        galaxy=start.galaxy[luminous],
    )


def _wanted_steps(task: Task, pericentre: _Pericentre) -> list[int]:
    """Return the step numbers of the snapshots, given the current pericentre."""
    times = pericentre.time_myr + task.settings.snapshots.values()
    return [round(time / task.settings.step_myr) for time in times]


def _forget(frames: dict[int, NDArray[np.float32]], task: Task, pericentre: _Pericentre) -> None:
    """Drop the frames that can no longer become snapshots.

    Until pericentre has passed, it can only move to a later step.
    """
    wanted = _wanted_steps(task, pericentre)
    for step in list(frames):
        if step < wanted[0] or (pericentre.passed and step not in wanted):
            del frames[step]


def _wanted_frames(
    frames: dict[int, NDArray[np.float32]], task: Task, pericentre: _Pericentre
) -> NDArray[np.float32]:
    """Return the snapshots' positions (T, N, 3), kpc."""
    steps = _wanted_steps(task, pericentre)
    if steps[0] < 0:
        raise GalmerhpcError(
            f"{task.name}: pericentre was {pericentre.time_myr:g} Myr after the start, too early "
            "for a snapshot at simulate.snapshots.start_myr = "
            f"{task.settings.snapshots.start_myr:g}; increase it or "
            "simulate.orbit.start_separation_kpc"
        )
    return np.stack([frames[step] for step in steps])


def _check_passage(task: Task, pericentre: _Pericentre, time_myr: float) -> None:
    expected = task.orbit.time_to_pericentre_myr(task.settings.orbit.start_separation_kpc)
    if not pericentre.passed and time_myr > _LATEST_PERICENTRE * expected:
        raise GalmerhpcError(
            f"{task.name}: no pericentre after {time_myr:g} Myr ({expected:.0f} Myr for point "
            "masses); either the galaxies merge before it or their bulges have too few particles: "
            "change simulate.orbit or simulate.particles"
        )


def _check_energy(task: Task, drift: float) -> None:
    if not drift <= task.settings.max_energy_drift:
        raise GalmerhpcError(
            f"{task.name}: the energy drifted by {drift:.2%}, more than "
            f"simulate.max_energy_drift = {task.settings.max_energy_drift:.2%}; lower "
            "simulate.step_myr or simulate.opening_angle"
        )


# --- the stage ------------------------------------------------------------------------------------


def simulate(config: Config) -> None:
    """Make the snapshot library of a configuration, or the missing part of it.

    Collective: all ranks call it, and encounters are assigned to free ranks.

    Raises
    ------
    InputError
        The configuration's library cannot be written, or existing encounters were made with other
        parameters.
    GalmerhpcError
        An encounter failed; complete ones are kept.
    """
    path, everything = _target(config), tasks(config.simulate)
    for task in everything:
        _check_start(task)
    with files.job_lock(path.with_name(f"{path.name}.lock"), parallel.rank()):
        _complete(path, everything)
    parallel.barrier()


def _complete(path: Path, everything: Sequence[Task]) -> None:
    """Make the missing encounters, then the library."""
    if parallel.rank() == 0:
        files.remove_temporaries(_parts(path))
        merges = re.compile(rf"-\d+-{re.escape(path.name)}$")  # `files.atomic_path`
        files.remove_temporaries(path.parent, lambda left: bool(merges.search(left.name)))
    held = parallel.from_rank_0(lambda: _held(path, everything))
    missing = [task for task in everything if task.name not in held]
    with parallel.progress_bar(
        total=len(everything), initial=len(held), desc="simulate", unit="encounter"
    ) as bar:
        for task in parallel.work(missing, lambda _: bar.update()):
            encounter = run(task)
            library.write_encounter(
                _part(path, task), encounter, task.settings.smoothing_neighbours
            )
    if parallel.rank() == 0:
        _finish(path, everything, held | {task.name: _part(path, task) for task in missing})


def _target(config: Config) -> Path:
    if config.library == SHIPPED:
        raise InputError(
            f"library: {SHIPPED} is part of the package and cannot be overwritten; name a file to "
            "write, for example library=runs/library.h5"
        )
    path = library_path(config.library)
    if path.is_dir():
        raise InputError(
            f"library: {path} is a folder; name a file to write, for example "
            "library=runs/library.h5"
        )
    return path


def _check_start(task: Task) -> None:
    """Refuse snapshots earlier than the start, before hours are spent."""
    ahead = task.orbit.time_to_pericentre_myr(task.settings.orbit.start_separation_kpc)
    if -task.settings.snapshots.start_myr > ahead:
        raise InputError(
            f"simulate.snapshots.start_myr: {task.settings.snapshots.start_myr:g} is before the "
            f"start, {ahead:.0f} Myr before pericentre; increase it or "
            "simulate.orbit.start_separation_kpc"
        )


def _parts(path: Path) -> Path:
    return path.with_name(f"{path.name}.parts")


def _part(path: Path, task: Task) -> Path:
    return _parts(path) / f"{task.name}.h5"


def _held(path: Path, everything: Sequence[Task]) -> dict[str, Path]:
    """Return the files of the existing encounters, by name of the encounter.

    Raises
    ------
    InputError
        An existing encounter is not of this configuration; it took hours and is not deleted.
    """
    wanted = {task.name: task.attributes() for task in everything}
    held = {}
    for file in [path] * path.exists() + sorted(_parts(path).glob("*.h5")):
        for name, stored in library.stored_attributes(file).items():
            if name not in wanted:
                raise InputError(
                    f"{file}: contains {name}, which is not in the configuration; "
                    "choose another library or remove that file"
                )
            _compare(file, name, wanted[name], stored)
            held[name] = file
    return held


def _compare(
    file: Path, name: str, wanted: Mapping[str, Attribute], stored: Mapping[str, Attribute]
) -> None:
    for key, value in wanted.items():
        if stored.get(key) != value:
            raise InputError(
                f"{file}: {name} was made with {key} = {stored.get(key)}, not {value}; "
                "choose another library or remove that file"
            )


def _finish(path: Path, everything: Sequence[Task], sources: Mapping[str, Path]) -> None:
    """Merge the encounters into the library, unless it is complete, and remove the parts."""
    names, first = [task.name for task in everything], everything[0].settings.first_snapshot_id
    if not _is_complete(path, names, first):
        library.merge(path, {name: sources[name] for name in names}, first)
    shutil.rmtree(_parts(path), ignore_errors=True)
    with library.Library(path) as made:
        drifts = [float(made.attributes(name)["energy_drift"]) for name in names]
        log.info(
            "simulate: %s: %d encounters, snapshots %d to %d, energy drift at most %.2f %%",
            path,
            len(names),
            made.snapshot_ids[0],
            made.snapshot_ids[-1],
            100 * max(drifts),
        )


def _is_complete(path: Path, names: Sequence[str], first_snapshot_id: int) -> bool:
    if not path.exists():
        return False
    with library.Library(path) as there:
        return list(there.encounters) == list(names) and there.snapshot_ids[0] == first_snapshot_id
