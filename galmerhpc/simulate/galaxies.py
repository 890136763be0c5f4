"""Galaxy models and their realisation as particles in equilibrium.

A galaxy is a Plummer bulge and halo with a Miyamoto-Nagai stellar and gas disc (the models of
GalMer: Chilingarian et al. 2010, A&A 518, A61, section 2). The gas is collisionless here.

Bulge and halo get the isotropic velocities of Eddington's inversion in the spherically averaged
potential of the whole galaxy (Binney & Tremaine 2008, eq. 4.46b); discs get velocities from the
moments of the collisionless Boltzmann equation (Hernquist 1993, ApJS 86, 389, section 2.2).

Units: kpc, km/s, solar masses; time in kpc / (km/s) except where a name says Myr.
"""

from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.integrate import cumulative_trapezoid
from scipy.interpolate import CubicSpline, RegularGridInterpolator

from galmerhpc import config

G = 4.300917e-6
"""Gravitational constant, kpc (km/s)^2 / Msun."""
MASS_UNIT_MSUN = 2.3e9
"""GalMer's unit of mass."""
MYR_PER_TIME_UNIT = 977.792
"""kpc / (km/s) in Myr."""

_SPHERE_EDGE = 10.0
_DISC_EDGE = 5.0
"""Particles lie within this many scale lengths (radius of a sphere, a + h of a disc), which contain
98.5 % of the mass of a sphere and 80 % of a disc's. They carry all of it, so the total is exact."""

_DISC_HEIGHTS = 10.0  # particles lie within this many scale heights of the plane
_ESCAPE_FRACTION = 0.95  # faster disc particles are slowed to this
_TOOMRE_STARS = 3.36  # Toomre's critical dispersion in units of G Sigma / kappa

Floats = NDArray[np.float64]


class Component(IntEnum):
    """Component that a particle belongs to."""

    HALO = 0
    BULGE = 1
    STARS = 2
    GAS = 3


@dataclass(frozen=True)
class Particles:
    """N bodies.

    Attributes
    ----------
    position, velocity : ndarray, shape (N, 3), float64
        kpc, km/s.
    mass : ndarray, shape (N,), float64
        Solar masses.
    component : ndarray, shape (N,), uint8
        `Component`.
    galaxy : ndarray, shape (N,), uint8
        0 for the first galaxy of a pair, 1 for the second.
    """

    position: Floats
    velocity: Floats
    mass: Floats
    component: NDArray[np.uint8]
    galaxy: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.mass)

    @classmethod
    def join(cls, *parts: "Particles") -> "Particles":
        """Return all particles of several sets, in order."""
        names = cls.__dataclass_fields__
        return cls(**{name: np.concatenate([getattr(p, name) for p in parts]) for name in names})

    def centred(self) -> "Particles":
        """Return the particles with their centre of mass at rest at the origin."""
        return replace(
            self,
            position=self.position - np.average(self.position, axis=0, weights=self.mass),
            velocity=self.velocity - np.average(self.velocity, axis=0, weights=self.mass),
        )


# --- potentials -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class MiyamotoNagai:
    """A Miyamoto-Nagai disc (Binney & Tremaine 2008, eq. 2.69); with a = 0 a Plummer sphere.

    Attributes
    ----------
    mass : float
        Solar masses.
    a, h : float
        Radial and vertical scale, kpc; for a Plummer sphere, h is its radius.
    """

    mass: float
    a: float
    h: float

    @property
    def edge(self) -> float:
        """Radius within which particles are drawn, kpc."""
        return (_DISC_EDGE if self.a else _SPHERE_EDGE) * (self.a + self.h)

    def potential(self, radius: Floats, z: Floats) -> Floats:
        """Return the potential at cylindrical radius and height (kpc), (km/s)^2."""
        return -G * self.mass / np.hypot(radius, self.a + np.hypot(z, self.h))

    def gradient(self, radius: Floats, z: Floats) -> tuple[Floats, Floats]:
        """Return the potential's derivatives along radius and z, (km/s)^2 / kpc."""
        s = np.hypot(z, self.h)
        common = G * self.mass / np.hypot(radius, self.a + s) ** 3
        return common * radius, common * z * (self.a + s) / s

    def density(self, radius: Floats, z: Floats) -> Floats:
        """Return the density, Msun / kpc^3."""
        s = np.hypot(z, self.h)
        flat = self.a * radius**2 + (self.a + 3 * s) * (self.a + s) ** 2
        return (
            self.h**2 * self.mass / (4 * np.pi) * flat / (np.hypot(radius, self.a + s) ** 5 * s**3)
        )

    def enclosed_mass(self, r: Floats) -> Floats:
        """Return the mass inside spheres of radius r, by Gauss's law, Msun."""
        node, weight = np.polynomial.legendre.leggauss(64)
        cosine = (node + 1) / 2  # one hemisphere
        sine = np.sqrt(1 - cosine**2)
        along_radius, along_z = self.gradient(r[:, None] * sine, r[:, None] * cosine)
        return ((along_radius * sine + along_z * cosine) @ (weight / 2)) * r**2 / G


def length_scale(shrink: float) -> float:
    """Return the scale factor of lengths for masses divided by `shrink` (equal surface density)."""
    return float(1 / np.sqrt(shrink))


def _condensed(component: MiyamotoNagai) -> MiyamotoNagai:
    inside = component.enclosed_mass(np.array([component.edge]))[0]
    return replace(component, mass=component.mass**2 / inside)


@dataclass(frozen=True)
class GalaxyModel:
    """The components of a galaxy and the Toomre Q of its discs."""

    components: dict[Component, MiyamotoNagai]
    toomre_q: dict[Component, float]

    @classmethod
    def from_config(cls, galaxy: config.Galaxy, shrink: float = 1.0) -> "GalaxyModel":
        """Build a model from its configuration.

        Parameters
        ----------
        galaxy : config.Galaxy
            Masses in GalMer's unit, lengths in kpc.
        shrink : float
            Masses are divided by this, and lengths scaled by `length_scale`.
        """
        mass, length = MASS_UNIT_MSUN / shrink, length_scale(shrink)
        spheres = {Component.HALO: galaxy.halo, Component.BULGE: galaxy.bulge}
        discs = {Component.STARS: galaxy.stars, Component.GAS: galaxy.gas}
        return cls(
            {
                k: MiyamotoNagai(s.mass * mass, 0.0, s.radius_kpc * length)
                for k, s in spheres.items()
            }
            | {
                k: MiyamotoNagai(d.mass * mass, d.a_kpc * length, d.h_kpc * length)
                for k, d in discs.items()
            },
            {k: d.toomre_q for k, d in discs.items()},
        )

    @property
    def mass(self) -> float:
        """Total mass, Msun."""
        return sum(c.mass for c in self.components.values())

    def condensed(self) -> "GalaxyModel":
        """Return the model whose masses inside the edges are the total masses of this one.

        This is what the particles represent: their equilibrium must be computed in its field.
        """
        return replace(self, components={k: _condensed(c) for k, c in self.components.items()})

    def potential(self, radius: Floats, z: Floats) -> Floats:
        """Return the potential at cylindrical radius and height (kpc), (km/s)^2."""
        return np.sum([c.potential(radius, z) for c in self.components.values()], axis=0)

    def gradient(self, radius: Floats, z: Floats) -> tuple[Floats, Floats]:
        """Return the potential's derivatives along radius and z, (km/s)^2 / kpc."""
        parts = [c.gradient(radius, z) for c in self.components.values()]
        return np.sum([p[0] for p in parts], axis=0), np.sum([p[1] for p in parts], axis=0)

    def acceleration(self, position: Floats) -> Floats:
        """Return the acceleration (N, 3) at positions (N, 3) in kpc, (km/s)^2 / kpc."""
        x, y, z = position.T
        radius = np.hypot(x, y)
        along_radius, along_z = self.gradient(radius, z)
        outward = np.divide(along_radius, radius, out=np.zeros_like(radius), where=radius > 0)
        return -np.stack([outward * x, outward * y, along_z], axis=1)

    def circular_speed(self, radius: Floats) -> Floats:
        """Return the speed of circular orbits in the plane, km/s."""
        return np.sqrt(radius * self.gradient(radius, np.zeros_like(radius))[0])

    def epicyclic_frequency(self, radius: Floats) -> Floats:
        """Return the frequency of radial oscillations about circular orbits, km/s / kpc."""
        step = 1e-3 * radius

        def slope(r: Floats) -> Floats:
            return self.gradient(r, np.zeros_like(r))[0]

        curvature = (slope(radius + step) - slope(radius - step)) / (2 * step)
        return np.sqrt(curvature + 3 * slope(radius) / radius)


# --- realisation ----------------------------------------------------------------------------------


def realise(
    model: GalaxyModel, counts: dict[Component, int], seed: np.random.SeedSequence
) -> Particles:
    """Draw a galaxy in equilibrium, at rest at the origin, with its discs spinning along +z.

    Parameters
    ----------
    model : GalaxyModel
        The galaxy.
    counts : dict
        Number of particles by component.
    seed : SeedSequence
        Equal seeds give identical particles.

    Returns
    -------
    Particles
        In the order halo, bulge, stars, gas; `galaxy` is 0.
    """
    rng = np.random.default_rng(seed)
    field = model.condensed()
    parts = []
    for component in Component:
        draw = _draw_disc if component in model.toomre_q else _draw_sphere
        position, velocity = draw(field, component, counts[component], rng)
        n = len(position)
        parts.append(
            Particles(
                position=position,
                velocity=velocity,
                mass=np.full(n, model.components[component].mass / n),
                component=np.full(n, component, np.uint8),
                galaxy=np.zeros(n, np.uint8),
            )
        )
    return Particles.join(*parts).centred()


def _draw_sphere(
    model: GalaxyModel, component: Component, n: int, rng: np.random.Generator
) -> tuple[Floats, Floats]:
    """Draw positions and velocities (N, 3) of a Plummer sphere inside the whole galaxy."""
    sphere = model.components[component]
    r = _plummer_radii(sphere.h, n, rng)
    speed = _eddington_speeds(model, sphere, r, rng)
    return r[:, None] * _directions(n, rng), speed[:, None] * _directions(n, rng)


def _plummer_radii(scale: float, n: int, rng: np.random.Generator) -> Floats:
    """Draw radii from the Plummer sphere's mass profile, inverted in closed form."""
    outermost = (1 + _SPHERE_EDGE**-2) ** -1.5
    enclosed = outermost * (1 - rng.random(n))  # in (0, outermost]
    return scale / np.sqrt(enclosed ** (-2 / 3) - 1)


def _eddington_speeds(
    model: GalaxyModel, sphere: MiyamotoNagai, r: Floats, rng: np.random.Generator
) -> Floats:
    """Draw speeds (N,) at radii (N,) from the isotropic distribution function."""
    grid = sphere.h * np.geomspace(1e-4, 1e3, 2000)
    enclosed = np.sum([c.enclosed_mass(grid) for c in model.components.values()], axis=0)
    psi = _relative_potential(grid, enclosed)
    energy, f = _eddington(grid, enclosed, psi, sphere)
    psi_here = np.exp(np.interp(np.log(r), np.log(grid), np.log(psi)))
    # p(v) ~ v^2 f(psi - v^2 / 2); with v = x v_escape, tabulated and inverted particle by particle.
    x = np.linspace(0, 1, 129)
    weight = x**2 * np.interp(psi_here[:, None] * (1 - x**2), energy, f)  # (N, 129)
    cumulative = cumulative_trapezoid(weight, axis=1, initial=0)
    wanted = rng.random(len(r)) * cumulative[:, -1]
    fraction = [np.interp(w, c, x) for w, c in zip(wanted, cumulative, strict=True)]
    return np.array(fraction) * np.sqrt(2 * psi_here)


def _relative_potential(r: Floats, enclosed: Floats) -> Floats:
    """Return minus the potential of a spherical mass profile, Keplerian outside the last radius."""
    force = G * enclosed / r**2
    inwards = cumulative_trapezoid(force[::-1], -r[::-1], initial=0)[::-1]
    return inwards + G * enclosed[-1] / r[-1]


def _eddington(
    r: Floats, enclosed: Floats, psi: Floats, sphere: MiyamotoNagai
) -> tuple[Floats, Floats]:
    """Return energies, and the distribution function up to a factor: d/dE of the integral below.

    A cored halo around a heavy disc would need negative values at the very centre; they are set to
    0.
    """
    u = r / sphere.h
    density_slope = -5 * u * (1 + u**2) ** -3.5  # of Plummer's profile, up to a factor
    rise = density_slope / (-G * enclosed / r**2)  # d rho / d psi along the profile
    log_rise = CubicSpline(np.log(psi[::-1]), np.log(rise[::-1]))
    energy = np.geomspace(psi[-1], psi[0], 2000)
    node, weight = np.polynomial.legendre.leggauss(200)
    # With psi = E (1 - u^2): int_0^E (d rho / d psi) d psi / sqrt(E - psi) has no singularity.
    inner = energy[:, None] * (1 - ((node + 1) / 2) ** 2)
    integral = np.sqrt(energy) * (np.exp(log_rise(np.log(inner))) @ weight)
    return energy, np.maximum(np.gradient(integral, energy), 0.0)


def _directions(n: int, rng: np.random.Generator) -> Floats:
    """Draw unit vectors (N, 3), uniform on the sphere."""
    vector = rng.normal(size=(n, 3))
    return vector / np.linalg.norm(vector, axis=1, keepdims=True)


def _draw_disc(
    model: GalaxyModel, component: Component, n: int, rng: np.random.Generator
) -> tuple[Floats, Floats]:
    """Draw positions and velocities (N, 3) of a disc that spins along +z."""
    profile = _DiscProfile(model, component)
    radius, z = profile.draw_places(n, rng)
    radial, tangential, vertical = profile.draw_velocities(radius, z, rng)
    azimuth = 2 * np.pi * rng.random(n)
    cosine, sine = np.cos(azimuth), np.sin(azimuth)
    position = np.stack([radius * cosine, radius * sine, z], axis=1)
    velocity = np.stack(
        [radial * cosine - tangential * sine, radial * sine + tangential * cosine, vertical], axis=1
    )
    return position, velocity


class _DiscProfile:
    """Density and velocity moments of a disc inside the whole galaxy, tabulated."""

    def __init__(self, model: GalaxyModel, component: Component) -> None:
        self._model = model
        self._disc = disc = model.components[component]
        self._radius = disc.edge * np.concatenate([[0.0], np.geomspace(2e-3, 1, 400)])
        # Far beyond the particles, since the vertical pressure is an integral to infinity.
        self._height = disc.h * np.concatenate([[0.0], np.geomspace(5e-3, 40, 600)])
        self._column, self._sigma_z = self._vertical()
        self._sigma_r, self._sigma_phi, self._streaming = self._planar(model.toomre_q[component])

    def _vertical(self) -> tuple[Floats, Floats]:
        """Tabulate the mass column up to a height, and sigma_z^2 = 1/rho int rho dPhi/dz dz."""
        radius, z = np.meshgrid(self._radius, self._height, indexing="ij")
        density = self._disc.density(radius, z)
        weight = density * self._model.gradient(radius, z)[1]
        column = cumulative_trapezoid(density, self._height, axis=1, initial=0)
        pressure = cumulative_trapezoid(weight, self._height, axis=1, initial=0)
        return column, np.sqrt((pressure[:, -1:] - pressure) / density)

    def _planar(self, toomre_q: float) -> tuple[Floats, Floats, Floats]:
        """Tabulate radial and tangential dispersion and mean rotation in the plane, km/s.

        The squared radial dispersion is proportional to the surface density, with the factor set
        by the requested minimum of Toomre's Q.
        """
        radius = np.maximum(self._radius, self._radius[1] / 2)  # the moments divide by it
        surface = 2 * self._column[:, -1]
        kappa = self._model.epicyclic_frequency(radius)
        circular = self._model.circular_speed(radius)
        shape = np.sqrt(surface)
        level = toomre_q / np.min(shape * kappa / (_TOOMRE_STARS * G * surface))
        sigma_r2 = (level * shape) ** 2
        sigma_phi2 = sigma_r2 * (kappa * radius / (2 * circular)) ** 2
        slope = np.gradient(np.log(surface * sigma_r2), np.log(radius))
        drift2 = circular**2 + sigma_r2 * (1 + slope) - sigma_phi2
        return np.sqrt(sigma_r2), np.sqrt(sigma_phi2), np.sqrt(np.maximum(drift2, 0))

    def draw_places(self, n: int, rng: np.random.Generator) -> tuple[Floats, Floats]:
        """Draw cylindrical radii and heights (N,), kpc."""
        inside = self._height <= _DISC_HEIGHTS * self._disc.h
        column, height = self._column[:, inside], self._height[inside]
        ring = cumulative_trapezoid(self._radius * column[:, -1], self._radius, initial=0)
        radius = np.interp(rng.random(n), ring / ring[-1], self._radius)
        share = np.linspace(0, 1, 1025)
        inverse = np.array([np.interp(share, row / row[-1], height) for row in column])
        table = RegularGridInterpolator((self._radius, share), inverse)
        z = table(np.stack([radius, rng.random(n)], axis=1))
        return radius, z * rng.choice([-1.0, 1.0], n)

    def draw_velocities(
        self, radius: Floats, z: Floats, rng: np.random.Generator
    ) -> tuple[Floats, Floats, Floats]:
        """Draw velocities (N,) along radius, azimuth and z, km/s."""
        n = len(radius)
        radial = rng.normal(size=n) * np.interp(radius, self._radius, self._sigma_r)
        table = RegularGridInterpolator((self._radius, self._height), self._sigma_z)
        vertical = rng.normal(size=n) * table(np.stack([radius, np.abs(z)], axis=1))
        tangential = rng.normal(size=n) * np.interp(radius, self._radius, self._sigma_phi)
        tangential += np.interp(radius, self._radius, self._streaming) * self._lag(radius, z)
        speed = np.sqrt(radial**2 + tangential**2 + vertical**2)
        escape = np.sqrt(-2 * self._model.potential(radius, z))
        slowing = np.minimum(1, _ESCAPE_FRACTION * escape / speed)
        return radial * slowing, tangential * slowing, vertical * slowing

    def _lag(self, radius: Floats, z: Floats) -> Floats:
        """Return the factor by which rotation is slower off the plane (weaker inward force)."""
        here = self._model.gradient(radius, z)[0]
        plane = self._model.gradient(radius, np.zeros_like(z))[0]
        return np.sqrt(np.clip(here / plane, 0, 1))


def counts_from_config(particles: config.Particles) -> dict[Component, int]:
    """Return the number of particles by component."""
    return {component: getattr(particles, component.name.lower()) for component in Component}


def rotate_about_x(vectors: NDArray[Any], angle_deg: float) -> Floats:
    """Rotate vectors (N, 3) about the x axis, the line of pericentre: the tilt of a disc."""
    cosine, sine = np.cos(np.radians(angle_deg)), np.sin(np.radians(angle_deg))
    return vectors @ np.array([[1, 0, 0], [0, cosine, sine], [0, -sine, cosine]])
