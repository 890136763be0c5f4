"""The orbit of two point masses on which an encounter starts.

Axes: the orbit lies in the x-y plane with its pericentre on +x; its angular momentum points along
+z for a prograde encounter and along -z for a retrograde one, since the first disc spins along +z.

Source: Binney & Tremaine 2008, section 3.1; Barker's equation for the parabola.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from galmerhpc.config import Spin
from galmerhpc.simulate.galaxies import MYR_PER_TIME_UNIT, G

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Orbit:
    """A parabola or hyperbola.

    Attributes
    ----------
    mass : float
        Total mass of both bodies, Msun.
    pericentre : float
        Pericentre distance, kpc.
    energy : float
        Specific orbital energy, (km/s)^2: 0 for a parabola, above 0 for a hyperbola.
    """

    mass: float
    pericentre: float
    energy: float

    @property
    def eccentricity(self) -> float:
        """Eccentricity: 1 for a parabola, more for a hyperbola."""
        return 1 + 2 * self.energy * self.pericentre / (G * self.mass)

    def inbound(self, separation: float, spin: Spin) -> tuple[Floats, Floats]:
        """Return the second body's position and velocity relative to the first, before pericentre.

        Parameters
        ----------
        separation : float
            Their distance, kpc; at least the pericentre.
        spin : str
            Sense of the first disc relative to the orbit.

        Returns
        -------
        position, velocity : ndarray, shape (3,), float64
            kpc, km/s.
        """
        mu, e = G * self.mass, self.eccentricity
        semilatus = self.pericentre * (1 + e)
        cosine = (semilatus / separation - 1) / e
        sine = -np.sqrt(1 - min(cosine**2, 1.0))  # negative, since pericentre is yet to come
        position = separation * np.array([cosine, sine, 0.0])
        velocity = np.sqrt(mu / semilatus) * np.array([-sine, e + cosine, 0.0])
        mirror = np.array([1.0, 1.0 if spin == "prograde" else -1.0, 1.0])
        return position * mirror, velocity * mirror

    def time_to_pericentre_myr(self, separation: float) -> float:
        """Return the time from a separation (kpc) to pericentre, Myr."""
        mu, q = G * self.mass, self.pericentre
        if self.energy == 0:  # Barker's equation, with the tangent of half the true anomaly
            tangent = np.sqrt(separation / q - 1)
            time = np.sqrt(2 * q**3 / mu) * (tangent + tangent**3 / 3)
        else:  # Kepler's equation for the hyperbola
            a = mu / (2 * self.energy)
            anomaly = np.arccosh((separation / a + 1) / self.eccentricity)
            time = np.sqrt(a**3 / mu) * (self.eccentricity * np.sinh(anomaly) - anomaly)
        return float(time * MYR_PER_TIME_UNIT)
