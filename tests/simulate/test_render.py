from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import ArrayLike, NDArray
from scipy.spatial.transform import Rotation

from galmerhpc.preview import Preview
from galmerhpc.simulate.library import Component, Snapshot, neighbour_distance
from galmerhpc.simulate.render import KERNEL_WIDTHS, image_axes, render, surface_density

VIEW = Preview(
    nbins=200, snap_id=1, phi=30.0, theta=40.0, bins=0.5, bri=4.0, xc=0.0, yc=0.0,
    gas=True, stars=True, halo=False, quantity=0,
)  # fmt: skip

untimed = settings(deadline=None)  # the first call of a compiled function takes seconds

angles = st.tuples(st.floats(-90, 180), st.floats(-180, 180))


def snapshot(
    position: ArrayLike, smoothing: ArrayLike, mass: ArrayLike, component: ArrayLike
) -> Snapshot:
    position = np.atleast_2d(np.asarray(position, np.float32))  # (N, 3)

    def full(values: ArrayLike, dtype: Any) -> NDArray[Any]:
        return np.broadcast_to(np.asarray(values, dtype), len(position)).copy()

    return Snapshot(
        snapshot_id=1,
        encounter="made up",
        attributes={},
        time_myr=0.0,
        position=position,
        smoothing=full(smoothing, np.float32),
        mass=full(mass, np.float32),
        component=full(component, np.uint8),
        galaxy=full(0, np.uint8),
    )


def particle(position: ArrayLike, smoothing: float = 1.0, mass: float = 1e9) -> Snapshot:
    return snapshot(position, smoothing, mass, Component.STARS)


def pair(seed: int = 0, count: int = 3000) -> Snapshot:
    """Two unequal lumps with a tail: no symmetry that could hide a wrong axis."""
    random = np.random.default_rng(seed)
    disc = random.normal(size=(count, 3)) * (6, 4, 0.5)
    disc[: count // 3] = random.normal(size=(count // 3, 3)) * (1, 2, 3) + (9, 5, 3)
    tail = np.linspace(0, 1, count // 10)[:, None] * (-20, 15, 8)
    position = np.concatenate([disc, tail + random.normal(size=tail.shape)])
    component = random.choice([Component.BULGE, Component.STARS, Component.GAS], len(position))
    mass = random.uniform(1e6, 2e7, len(position))
    return snapshot(position, neighbour_distance(position, 32), mass, component)


def mass_in(density: NDArray[np.float32], preview: Preview) -> float:
    return float(density.sum(dtype=np.float64)) * (preview.bins * 1000) ** 2


def centre_of(density: NDArray[np.float32], preview: Preview) -> NDArray[np.float64]:
    """Return the centroid, kpc to the right of and above the image's centre."""
    kpc = (np.arange(preview.nbins) - (preview.nbins - 1) / 2) * preview.bins
    weight = density.astype(np.float64) / density.sum(dtype=np.float64)
    return np.array([(weight.sum(axis=0) * kpc).sum(), -(weight.sum(axis=1) * kpc).sum()])


# --- projection -----------------------------------------------------------------------------------


@untimed
@given(angles, st.tuples(*[st.floats(-20, 20)] * 3), st.tuples(*[st.floats(-5, 5)] * 2))
def test_a_particle_appears_where_a_rotated_camera_sees_it(
    angle: tuple[float, float],
    position: tuple[float, float, float],
    centre: tuple[float, float],
) -> None:
    theta, phi = angle
    # A camera above the orbital plane, up on its picture towards -x, right towards +y, is tilted
    # by theta about y and turned by phi about z.
    camera = Rotation.from_euler("yz", [theta, phi], degrees=True)
    right, up = camera.apply([[0, 1, 0], [-1, 0, 0]])
    preview = replace(VIEW, theta=theta, phi=phi, xc=centre[0], yc=centre[1])
    seen = centre_of(surface_density(particle(position), preview), preview)
    np.testing.assert_allclose(
        seen + centre, [right @ position, up @ position], atol=0.05 * preview.bins
    )


@untimed
@given(angles)
def test_the_picture_s_axes_and_the_line_of_sight_are_right_handed(
    angle: tuple[float, float],
) -> None:
    theta, phi = np.radians(angle)
    sight = [np.sin(theta) * np.cos(phi), np.sin(theta) * np.sin(phi), np.cos(theta)]
    right, up = image_axes(*angle)
    np.testing.assert_allclose(np.cross(right, up), sight, atol=1e-12)
    np.testing.assert_allclose(np.linalg.norm([right, up], axis=1), 1)


def same_picture(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> bool:
    """Return whether images differ by no more than the rounding of a grey level."""
    difference = np.abs(one.astype(int) - other)
    return bool(one.std() > 10 and difference.max() <= 1 and (difference > 0).mean() < 0.01)


@pytest.mark.parametrize(("theta", "phi"), [(30, 20), (90, 100), (0, 45), (-60, -170)])
def test_every_line_of_sight_has_two_names_that_differ_by_half_a_turn(
    theta: float, phi: float
) -> None:
    shown = pair()
    one = render(shown, replace(VIEW, theta=theta, phi=phi))
    other = render(shown, replace(VIEW, theta=-theta, phi=phi + 180 if phi <= 0 else phi - 180))
    assert same_picture(one, other[::-1, ::-1])
    assert not same_picture(one, other)


@pytest.mark.parametrize(("theta", "phi"), [(30, 20), (90, 100), (0, 45)])
def test_the_view_from_behind_is_the_mirror_image(theta: float, phi: float) -> None:
    shown = pair()
    front = render(shown, replace(VIEW, theta=theta, phi=phi))
    behind = render(shown, replace(VIEW, theta=180 - theta, phi=phi - 180))
    assert same_picture(front, behind[:, ::-1])
    assert not same_picture(front, behind)


# --- mass and smoothing ---------------------------------------------------------------------------


@given(
    nbins=st.integers(16, 300),
    field=st.floats(120, 400),
    angle=angles,
    smoothing=st.floats(0.01, 8),
)
@settings(untimed, max_examples=50)
def test_a_picture_holds_all_the_mass_inside_it(
    nbins: int, field: float, angle: tuple[float, float], smoothing: float
) -> None:
    shown = pair()
    shown = replace(shown, smoothing=np.full_like(shown.smoothing, smoothing))
    preview = replace(VIEW, nbins=nbins, bins=field / nbins, theta=angle[0], phi=angle[1])
    total = float(shown.mass.sum(dtype=np.float64))
    assert mass_in(surface_density(shown, preview), preview) == pytest.approx(total, rel=1e-4)


def test_a_particle_on_the_rim_leaves_half_its_mass_in_the_picture() -> None:
    for smoothing in (0.5, 3.0, 10.0):
        rim = particle(VIEW.nbins / 2 * VIEW.bins * image_axes(VIEW.theta, VIEW.phi)[0], smoothing)
        assert mass_in(surface_density(rim, VIEW), VIEW) == pytest.approx(1e9 / 2, rel=0.02)


@untimed
@given(st.floats(1, 40), st.floats(-3, 3), st.floats(-3, 3))
def test_a_particle_is_as_wide_as_its_smoothing_length_says(
    smoothing_px: float, x: float, y: float
) -> None:
    preview = replace(VIEW, nbins=400, bins=1.0, theta=0.0, phi=0.0)
    density = surface_density(particle([x, y, 0], smoothing_px), preview).astype(np.float64)
    columns = density.sum(axis=0) / density.sum()
    kpc = np.arange(400) - (columns * np.arange(400)).sum()
    # Standard deviation of (1 - x^2)^4 on -1..1: 1 / sqrt(11).
    expected = KERNEL_WIDTHS * smoothing_px / np.sqrt(11)
    assert np.sqrt((columns * kpc**2).sum()) == pytest.approx(expected, rel=0.05)


def test_smoothing_lets_two_realisations_look_alike() -> None:
    one, other = (render(pair(seed), VIEW).astype(float) for seed in (1, 2))
    turned = render(pair(1), replace(VIEW, phi=VIEW.phi + 20)).astype(float)
    assert np.abs(one - other).mean() < 0.5 * np.abs(one - turned).mean()


def test_the_density_does_not_depend_on_the_size_of_pixels() -> None:
    shown = pair()
    coarse = surface_density(shown, replace(VIEW, nbins=100, bins=1.0))
    fine = surface_density(shown, replace(VIEW, nbins=400, bins=0.25))
    binned = fine.reshape(100, 4, 100, 4).mean(axis=(1, 3))
    assert np.abs(coarse - binned).mean() < 0.05 * binned.mean()


# --- components and brightness --------------------------------------------------------------------


def test_gas_and_stars_are_drawn_as_asked_and_add_up() -> None:
    shown = pair()
    both = surface_density(shown, VIEW)
    stars = surface_density(shown, replace(VIEW, gas=False))
    gas = surface_density(shown, replace(VIEW, stars=False))
    np.testing.assert_allclose(stars + gas, both, rtol=1e-4, atol=1e-4)
    wanted = shown.mass[shown.component == Component.GAS].sum()
    assert mass_in(gas, VIEW) == pytest.approx(float(wanted), rel=1e-3)
    assert not render(shown, replace(VIEW, gas=False, stars=False)).any()


def test_a_brightness_step_doubles_the_exposure() -> None:
    shown = pair()
    doubled = replace(shown, mass=2 * shown.mass)
    assert (render(shown, replace(VIEW, bri=5.0)) == render(doubled, VIEW)).all()
    assert render(shown, replace(VIEW, bri=5.0)).mean() > render(shown, VIEW).mean()


def test_the_scale_is_the_same_in_every_picture() -> None:
    from_above = replace(VIEW, theta=0.0, phi=-90.0)  # +x is to the right
    alone = render(particle([-20, 0, 0]), from_above)
    beside = snapshot([[-20, 0, 0], [20, 0, 0]], 1.0, [1e9, 1e12], Component.STARS)
    left, right = np.hsplit(render(beside, from_above), 2)
    assert (left == np.hsplit(alone, 2)[0]).all()
    assert left.any()
    assert right.max() > left.max()


@untimed
@given(st.integers(1, 64), st.floats(1e-3, 1e3), st.floats(-100, 100), st.floats(-1e4, 1e4), angles)
def test_every_preview_that_can_be_asked_for_is_drawn(
    nbins: int, bins: float, bri: float, xc: float, angle: tuple[float, float]
) -> None:
    preview = replace(VIEW, nbins=nbins, bins=bins, bri=bri, xc=xc, theta=angle[0], phi=angle[1])
    shown = snapshot([[0, 0, 0], [0, 0, 0], [650, -650, 650]], [0.02, 440, 5], 1e9, 2)
    assert render(shown, preview).shape == (nbins, nbins)


# --- determinism ----------------------------------------------------------------------------------


def test_pictures_are_the_same_in_any_number_of_threads() -> None:
    shown = pair()
    previews = [replace(VIEW, phi=float(phi)) for phi in range(0, 180, 15)]
    alone = [render(shown, preview) for preview in previews]
    with ThreadPoolExecutor(8) as threads:
        together = list(threads.map(lambda p: render(shown, p), previews * 4))
    assert all((a == b).all() for a, b in zip(alone * 4, together, strict=True))
