"""Self-gravity of many particles: forces from a quadrupole tree, leapfrog in time.

Forces are computed with pytreegrav (Grudić & Gurvich 2021, JOSS 6, 3675). Quadrupoles are needed:
with monopoles alone, the energy of an encounter drifts by almost one per cent.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from galmerhpc.errors import GalmerhpcError
from galmerhpc.simulate.galaxies import MYR_PER_TIME_UNIT, Component, G, Particles

try:
    import pytreegrav
except ImportError:
    raise GalmerhpcError(
        "galmerhpc simulate needs numba and pytreegrav: pip install 'galmerhpc[simulate]'"
    ) from None

Floats = NDArray[np.float64]

# pytreegrav's softening is the radius at which its spline kernel ends (Springel 2005, section 2.1).
_KERNEL_PER_PLUMMER = 2.8
_OPTIONS: dict[str, Any] = {"G": G, "method": "tree", "quadrupole": True}


@dataclass(frozen=True)
class Gravity:
    """Settings of the gravity solver.

    Attributes
    ----------
    softening_kpc : float
        Plummer-equivalent softening length of the first galaxy's particles.
    opening_angle : float
        Barnes-Hut opening angle; smaller is more accurate.
    second_softening : float
        Softening of the second galaxy's particles, in units of the first's. Between two particles
        the larger one applies.
    """

    softening_kpc: float
    opening_angle: float
    second_softening: float = 1.0

    def acceleration(self, particles: Particles) -> Floats:
        """Return the acceleration (N, 3), (km/s)^2 / kpc."""
        return np.asarray(
            pytreegrav.Accel(
                particles.position,
                particles.mass,
                self._kernel(particles),
                theta=self.opening_angle,
                **_OPTIONS,
            )
        )

    def energy(self, particles: Particles) -> float:
        """Return the total energy, Msun (km/s)^2."""
        kinetic, potential = self.energies(particles)
        return kinetic + potential

    def energies(self, particles: Particles) -> tuple[float, float]:
        """Return the kinetic and the potential energy, Msun (km/s)^2."""
        potential = pytreegrav.Potential(
            particles.position,
            particles.mass,
            self._kernel(particles),
            theta=self.opening_angle,
            **_OPTIONS,
        )
        kinetic = (particles.velocity**2).sum(axis=1) @ particles.mass / 2
        return float(kinetic), float(potential @ particles.mass / 2)

    def _kernel(self, particles: Particles) -> Floats:
        radius = _KERNEL_PER_PLUMMER * self.softening_kpc
        return np.array([radius, radius * self.second_softening])[particles.galaxy]


def integrate(
    particles: Particles, gravity: Gravity, step_myr: float
) -> Iterator[tuple[float, Particles]]:
    """Integrate forever with kick, drift, kick (Binney & Tremaine 2008, section 3.4.1).

    Parameters
    ----------
    particles : Particles
        The state at time zero; not modified.
    gravity : Gravity
        The gravity solver.
    step_myr : float
        Time step, the same for all particles.

    Yields
    ------
    time_myr : float
        0, step_myr, 2 step_myr ...
    particles : Particles
        The state at that time, a new object each time.
    """
    step = step_myr / MYR_PER_TIME_UNIT
    acceleration = gravity.acceleration(particles)
    count = 0
    while True:
        yield count * step_myr, particles
        halfway = particles.velocity + acceleration * (step / 2)
        particles = replace(particles, position=particles.position + halfway * step)
        acceleration = gravity.acceleration(particles)
        particles = replace(particles, velocity=halfway + acceleration * (step / 2))
        count += 1


def separation(particles: Particles) -> float:
    """Return the distance between the two galaxies' centres, kpc.

    A centre is the median position of the bulge particles, which stay together, whereas tides
    stretch discs and haloes.
    """
    bulge = particles.component == Component.BULGE
    first, second = (
        np.median(particles.position[bulge & (particles.galaxy == k)], axis=0) for k in (0, 1)
    )
    return float(np.linalg.norm(first - second))
