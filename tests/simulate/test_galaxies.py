"""Galaxy models against galpy, and the equilibrium of their realisations."""

import itertools

import numpy as np
import pytest
from galpy.potential import MiyamotoNagaiPotential, PlummerPotential
from galpy.potential.Potential import Potential

from galmerhpc.config import GSA, GSB, Galaxy
from galmerhpc.simulate.galaxies import (
    Component,
    G,
    GalaxyModel,
    MiyamotoNagai,
    realise,
    rotate_about_x,
)
from galmerhpc.simulate.nbody import Gravity

COUNTS = {
    Component.HALO: 9000,
    Component.BULGE: 3000,
    Component.STARS: 13500,
    Component.GAS: 3500,
}
MODELS = {"gSa": GSA, "gSb": GSB}


@pytest.fixture(params=MODELS)
def galaxy(request) -> Galaxy:
    return MODELS[request.param]


def in_galpy(galaxy: Galaxy) -> Potential:
    """Build the same galaxy of galpy's potentials, in kpc and (km/s)^2."""
    spheres = [
        PlummerPotential(amp=G * s.mass * 2.3e9, b=s.radius_kpc)
        for s in (galaxy.bulge, galaxy.halo)
    ]
    discs = [
        MiyamotoNagaiPotential(amp=G * d.mass * 2.3e9, a=d.a_kpc, b=d.h_kpc)
        for d in (galaxy.stars, galaxy.gas)
    ]
    return spheres[0] + spheres[1] + discs[0] + discs[1]


def places() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return 10 ** rng.uniform(-2, 2.3, 200), rng.normal(size=200) * 10 ** rng.uniform(-2, 2, 200)


def test_accelerations_are_galpys(galaxy):
    radius, z = places()
    model, peer = GalaxyModel.from_config(galaxy), in_galpy(galaxy)
    azimuth = np.random.default_rng(1).uniform(0, 2 * np.pi, len(radius))
    direction = np.stack([np.cos(azimuth), np.sin(azimuth)], axis=1)
    ours = model.acceleration(np.column_stack([radius[:, None] * direction, z]))
    inward = np.array([peer.Rforce(r, h) for r, h in zip(radius, z, strict=True)])
    down = np.array([peer.zforce(r, h) for r, h in zip(radius, z, strict=True)])
    theirs = np.column_stack([inward[:, None] * direction, down])
    error = np.linalg.norm(ours - theirs, axis=1) / np.linalg.norm(theirs, axis=1)
    assert error.max() < 1e-5


def test_potential_and_density_are_galpys(galaxy):
    radius, z = places()
    model, peer = GalaxyModel.from_config(galaxy), in_galpy(galaxy)
    potential = [peer(r, h) for r, h in zip(radius, z, strict=True)]
    assert model.potential(radius, z) == pytest.approx(np.array(potential), rel=1e-5)
    density = [peer.dens(r, h) / G for r, h in zip(radius, z, strict=True)]
    ours = sum(c.density(radius, z) for c in model.components.values())
    assert ours == pytest.approx(np.array(density), rel=1e-5)


def test_frequencies_and_speeds_are_galpys(galaxy):
    radius = np.geomspace(0.1, 50, 20)
    model, peer = GalaxyModel.from_config(galaxy), in_galpy(galaxy)
    speed = [peer.vcirc(r) for r in radius]
    kappa = [peer.epifreq(r) for r in radius]
    assert model.circular_speed(radius) == pytest.approx(np.array(speed), rel=1e-5)
    assert model.epicyclic_frequency(radius) == pytest.approx(np.array(kappa), rel=1e-4)


def test_mass_inside_a_sphere_follows_gauss():
    plummer = MiyamotoNagai(1e10, 0.0, 3.0)
    r = np.geomspace(0.1, 100, 10)
    assert plummer.enclosed_mass(r) == pytest.approx(1e10 * r**3 / (r**2 + 9) ** 1.5, rel=1e-9)
    assert MiyamotoNagai(1e10, 4.0, 0.5).enclosed_mass(np.array([1e5])) == pytest.approx(
        1e10, rel=1e-3
    )


def test_the_realised_galaxy_is_in_virial_equilibrium(galaxy):
    particles = realise(GalaxyModel.from_config(galaxy), COUNTS, np.random.SeedSequence(0))
    kinetic, potential = Gravity(softening_kpc=0.35, opening_angle=0.7).energies(particles)
    assert -2 * kinetic / potential == pytest.approx(1.0, abs=0.03)


def test_a_realisation_has_the_models_masses_and_spins_along_z(galaxy):
    particles = realise(GalaxyModel.from_config(galaxy), COUNTS, np.random.SeedSequence(0))
    assert particles.mass.sum() == pytest.approx(104 * 2.3e9)
    assert particles.mass @ particles.position == pytest.approx([0, 0, 0], abs=1.0)
    for component in Component:
        own = particles.component == component
        mass = getattr(galaxy, component.name.lower()).mass * 2.3e9
        assert own.sum() == COUNTS[component]
        assert particles.mass[own].sum() == pytest.approx(mass)
    for disc in (Component.STARS, Component.GAS):
        own = particles.component == disc
        angular = np.cross(particles.position[own], particles.velocity[own]).mean(axis=0)
        assert angular[2] > 20 * np.abs(angular[:2]).max()


def test_equal_seeds_give_equal_particles_and_spawned_ones_do_not():
    model = GalaxyModel.from_config(GSA)
    few = dict.fromkeys(Component, 50)
    first, second = np.random.SeedSequence(0).spawn(2)
    again = np.random.SeedSequence(0).spawn(2)[0]
    other = np.random.SeedSequence(1).spawn(2)[0]
    drawn = [realise(model, few, seed).position for seed in (first, again, second, other)]
    assert np.array_equal(drawn[0], drawn[1])
    assert not np.isin(drawn[2], drawn[0]).any()
    assert not np.isin(drawn[3], np.concatenate([drawn[0], drawn[2]])).any()


def test_a_scaled_model_keeps_its_surface_density_and_equilibrium():
    giant, dwarf = GalaxyModel.from_config(GSB), GalaxyModel.from_config(GSB, shrink=10.0)
    assert dwarf.mass == pytest.approx(giant.mass / 10)
    for component, big in giant.components.items():
        small = dwarf.components[component]
        assert small.mass / (small.a + small.h) ** 2 == pytest.approx(
            big.mass / (big.a + big.h) ** 2
        )
    particles = realise(dwarf, COUNTS, np.random.SeedSequence(0))
    kinetic, potential = Gravity(softening_kpc=0.1, opening_angle=0.7).energies(particles)
    assert -2 * kinetic / potential == pytest.approx(1.0, abs=0.03)


def test_discs_have_the_toomre_q_asked_for():
    model = GalaxyModel.from_config(GSA)
    counts = COUNTS | {Component.STARS: 60000}
    particles = realise(model, counts, np.random.SeedSequence(0))
    own = particles.component == Component.STARS
    x, y, _ = particles.position[own].T
    radius = np.hypot(x, y)
    radial = (particles.velocity[own][:, 0] * x + particles.velocity[own][:, 1] * y) / radius
    rings = np.linspace(2, 20, 19)
    q = []
    for low, high in itertools.pairwise(rings):
        inside = (radius >= low) & (radius < high)
        surface = inside.sum() * 40 * 2.3e9 / own.sum() / (np.pi * (high**2 - low**2))
        kappa = model.condensed().epicyclic_frequency(np.array([(low + high) / 2]))[0]
        q.append(radial[inside].std() * kappa / (3.36 * G * surface))
    assert min(q) == pytest.approx(1.2, rel=0.07)


def test_a_tilt_turns_about_the_line_of_pericentre():
    vectors = np.eye(3)
    assert rotate_about_x(vectors, 90.0) == pytest.approx(
        np.array([[1, 0, 0], [0, 0, 1], [0, -1, 0]])
    )
    normal = rotate_about_x(np.array([[0.0, 0.0, 1.0]]), 33.0)[0]
    assert np.degrees(np.arccos(normal[2])) == pytest.approx(33.0)
