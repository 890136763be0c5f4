"""The point-mass orbit against Barker's and Kepler's equations and against rebound."""

import numpy as np
import pytest
import rebound

from galmerhpc.simulate.galaxies import MYR_PER_TIME_UNIT, G
from galmerhpc.simulate.orbit import Orbit

MASS_MSUN = 208 * 2.3e9
PARABOLA = Orbit(MASS_MSUN, pericentre=8.0, energy=0.0)
HYPERBOLA = Orbit(MASS_MSUN, pericentre=8.0, energy=2.0e4)


def integrate(orbit: Orbit, separation: float, spin: str) -> tuple[float, float]:
    """Follow the two points with rebound; return the pericentre (kpc) and its time (Myr)."""
    place, velocity = orbit.inbound(separation, spin)
    simulation = rebound.Simulation()
    simulation.G = G
    simulation.integrator = "ias15"
    simulation.add(m=orbit.mass / 2)
    simulation.add(
        m=orbit.mass / 2,
        **dict(zip(("x", "y", "z"), place, strict=True)),
        **dict(zip(("vx", "vy", "vz"), velocity, strict=True)),
    )

    def approach(time: float) -> float:
        simulation.integrate(time)
        a, b = simulation.particles[0], simulation.particles[1]
        return np.dot(np.subtract(b.xyz, a.xyz), np.subtract(b.vxyz, a.vxyz))

    low, high = 0.0, 2 * orbit.time_to_pericentre_myr(separation) / MYR_PER_TIME_UNIT
    for _ in range(60):  # where the separation stops shrinking, by bisection
        middle = (low + high) / 2
        low, high = (middle, high) if approach(middle) < 0 else (low, middle)
    a, b = simulation.particles[0], simulation.particles[1]
    return float(np.linalg.norm(np.subtract(b.xyz, a.xyz))), low * MYR_PER_TIME_UNIT


@pytest.mark.parametrize("orbit", [PARABOLA, HYPERBOLA], ids=["parabola", "hyperbola"])
@pytest.mark.parametrize("spin", ["prograde", "retrograde"])
def test_rebound_passes_the_pericentre_where_and_when_the_orbit_says(orbit, spin):
    distance, time = integrate(orbit, 100.0, spin)
    assert distance == pytest.approx(8.0, rel=1e-7)
    assert time == pytest.approx(orbit.time_to_pericentre_myr(100.0), rel=1e-7)


def test_parabola_keeps_barkers_equation():
    # D + D^3 / 3 = sqrt(G M / 2 q^3) t, with D the tangent of half the true anomaly.
    place, _ = PARABOLA.inbound(100.0, "prograde")
    tangent = np.tan(np.arctan2(-place[1], place[0]) / 2)
    time = np.sqrt(2 * 8.0**3 / (G * MASS_MSUN)) * (tangent + tangent**3 / 3) * MYR_PER_TIME_UNIT
    assert PARABOLA.time_to_pericentre_myr(100.0) == pytest.approx(time, rel=1e-12)
    assert time == pytest.approx(357.53, abs=0.01)  # FACTS of the proof of concept


def test_relative_speed_of_the_parabola_at_100_kpc_is_galmers():
    _, velocity = PARABOLA.inbound(100.0, "prograde")
    assert np.linalg.norm(velocity) == pytest.approx(203.0, abs=0.5)


@pytest.mark.parametrize("orbit", [PARABOLA, HYPERBOLA], ids=["parabola", "hyperbola"])
@pytest.mark.parametrize(("spin", "sign"), [("prograde", 1), ("retrograde", -1)])
@pytest.mark.parametrize("separation", [8.0, 20.0, 500.0])
def test_energy_angular_momentum_and_direction(orbit, spin, sign, separation):
    place, velocity = orbit.inbound(separation, spin)
    speed2 = velocity @ velocity
    assert np.linalg.norm(place) == pytest.approx(separation)
    assert speed2 / 2 - G * MASS_MSUN / separation == pytest.approx(orbit.energy, abs=1e-9 * speed2)
    angular = np.cross(place, velocity)
    assert angular[:2] == pytest.approx([0, 0])
    pericentre_speed = np.sqrt(2 * (orbit.energy + G * MASS_MSUN / 8.0))
    assert angular[2] == pytest.approx(sign * 8.0 * pericentre_speed)
    assert place @ velocity <= 1e-6  # inbound, or at the pericentre


def test_retrograde_is_the_mirror_image():
    for ahead, behind in zip(
        PARABOLA.inbound(60.0, "prograde"), PARABOLA.inbound(60.0, "retrograde"), strict=True
    ):
        assert behind == pytest.approx(ahead * [1, -1, 1])
