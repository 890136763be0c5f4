"""Forces against direct summation, and conservation in an isolated galaxy."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from galmerhpc.config import load
from galmerhpc.simulate.galaxies import (
    Component,
    G,
    GalaxyModel,
    Particles,
    counts_from_config,
    realise,
)
from galmerhpc.simulate.nbody import Gravity, integrate, separation
from tests.support import ROOT

SETTINGS = load(ROOT / "configs" / "library.yaml").simulate
GRAVITY = Gravity(SETTINGS.softening_kpc, SETTINGS.opening_angle)


def isolated(counts: dict[Component, int], seed: int = 0) -> Particles:
    model = GalaxyModel.from_config(SETTINGS.galaxies["gSa"])
    return realise(model, counts, np.random.SeedSequence(seed))


def direct_sum(particles: Particles, targets: np.ndarray) -> np.ndarray:
    """Sum point-mass forces on some particles; softening is checked elsewhere."""
    offset = particles.position[None] - particles.position[targets][:, None]  # (n, N, 3)
    distance = np.linalg.norm(offset, axis=2)
    distance[np.arange(len(targets)), targets] = np.inf
    return G * np.einsum("j,ijk->ik", particles.mass, offset / distance[..., None] ** 3)


def test_tree_forces_are_those_of_direct_summation_at_the_librarys_opening_angle():
    particles = isolated(dict.fromkeys(Component, 1500))
    targets = np.random.default_rng(0).choice(len(particles), 500, replace=False)
    # Far below any distance between particles, so that the direct sum needs no kernel.
    tree = Gravity(1e-6, SETTINGS.opening_angle).acceleration(particles)[targets]
    exact = direct_sum(particles, targets)
    error = np.linalg.norm(tree - exact, axis=1) / np.linalg.norm(exact, axis=1)
    assert np.sqrt((error**2).mean()) < 0.01


def test_beyond_its_kernel_a_softened_particle_attracts_like_a_point_and_inside_it_less():
    pair = Particles(
        position=np.array([[0.0, 0, 0], [1.0, 0, 0], [0.0, 50, 0]]),
        velocity=np.zeros((3, 3)),
        mass=np.array([1e10, 1.0, 1.0]),
        component=np.zeros(3, np.uint8),
        galaxy=np.zeros(3, np.uint8),
    )
    wide, narrow = (Gravity(s, 0.7).acceleration(pair) for s in (1.0, 0.35))
    assert narrow[1, 0] == pytest.approx(-G * 1e10, rel=1e-6)
    assert abs(wide[1, 0]) < 0.8 * G * 1e10
    assert wide[2, 1] == pytest.approx(-G * 1e10 / 50**2, rel=1e-6)


def test_energy_is_that_of_the_pairs():
    particles = isolated(dict.fromkeys(Component, 200))
    kinetic, potential = Gravity(1e-6, 0.3).energies(particles)
    every = np.arange(len(particles))
    offset = particles.position[None] - particles.position[:, None]
    distance = np.linalg.norm(offset, axis=2)
    distance[every, every] = np.inf
    pairs = -G * np.outer(particles.mass, particles.mass) / distance
    assert potential == pytest.approx(pairs.sum() / 2, rel=1e-3)
    assert kinetic == pytest.approx((particles.mass[:, None] * particles.velocity**2).sum() / 2)


def test_time_goes_on_in_steps_and_leaves_the_start_alone():
    start = isolated(dict.fromkeys(Component, 50))
    before = start.position.copy()
    times, states = zip(*itertools.islice(integrate(start, GRAVITY, 0.5), 4), strict=True)
    assert times == (0.0, 0.5, 1.0, 1.5)
    assert states[0] is start
    assert np.array_equal(start.position, before)
    assert not np.array_equal(states[3].position, before)


def test_leapfrog_runs_backwards_to_where_it_came_from():
    start = isolated(dict.fromkeys(Component, 50))
    _, end = next(itertools.islice(integrate(start, GRAVITY, 1.0), 20, None))
    turned = replace(end, velocity=-end.velocity)
    _, back = next(itertools.islice(integrate(turned, GRAVITY, 1.0), 20, None))
    assert back.position == pytest.approx(start.position, abs=1e-6)


def test_the_separation_is_that_of_the_bulges():
    first = isolated(dict.fromkeys(Component, 50))
    away = first.position + np.array([3.0, 4.0, 0.0])
    away[first.component != Component.BULGE] += 100.0
    second = replace(first, position=away, galaxy=np.ones(len(first), np.uint8))
    assert separation(Particles.join(first, second)) == pytest.approx(5.0)


def half_mass_radius(particles: Particles, components: tuple[Component, ...]) -> float:
    own = np.isin(particles.component, components)
    centre = np.median(particles.position[particles.component == Component.BULGE], axis=0)
    radius = np.linalg.norm(particles.position[own] - centre, axis=1)
    order = np.argsort(radius)
    enclosed = np.cumsum(particles.mass[own][order])
    return float(np.interp(enclosed[-1] / 2, enclosed, radius[order]))


def test_an_isolated_gsa_keeps_its_size_for_300_myr_at_the_librarys_resolution():
    start = isolated(counts_from_config(SETTINGS.particles))
    everything = tuple(Component)
    luminous = (Component.BULGE, Component.STARS, Component.GAS)
    before = {c: half_mass_radius(start, c) for c in (everything, luminous)}
    momentum = []
    for time, particles in integrate(start, GRAVITY, SETTINGS.step_myr):
        if time % 50 == 0:
            for components, radius in before.items():
                now = half_mass_radius(particles, components)
                assert now == pytest.approx(radius, rel=0.05), f"{components} at {time:g} Myr"
            momentum.append(particles.mass @ particles.velocity)
        if time >= 300:
            break
    scale = start.mass @ np.linalg.norm(start.velocity, axis=1)
    assert np.linalg.norm(momentum, axis=1).max() < 1e-3 * scale
