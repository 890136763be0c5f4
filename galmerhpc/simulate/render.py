"""Rendering of a snapshot: projection, adaptive smoothing, brightness.

Projection. The line of sight is ``n = (sin theta cos phi, sin theta sin phi, cos theta)``, from the
pair to the observer. The image axes are ``e_x = (-sin phi, cos phi, 0)`` to the right and
``e_y = n x e_x`` upwards, so the camera never rolls: ``e_x`` stays in the orbital plane. The origin
is the pair's centre of mass.

Smoothing. A particle's mass is spread over a kernel with the particle's own smoothing length: sharp
where particles are dense, soft where they are sparse, so that an image shows the encounter rather
than the particles that sample it. Wide kernels are drawn into coarser images, where they cover few
pixels, and the coarse images are enlarged and added up, so the cost of a particle does not depend
on its width.

Brightness. The service's scale and palette are not documented. Our choice is grey levels that grow
with the inverse hyperbolic sine of the surface density, which shows spiral arms and faint tails in
the same image. The scale is fixed: a grey level means the same surface density in every view,
snapshot and zoom.

Reproducibility. The same request gives the same bytes, whatever else the process does: each image
is drawn by one thread, and sums run in the order of the particles. Between processors or library
versions, single pixels may differ by one grey level, since sine, cosine and logarithm may differ in
their last digit.
"""

import numba
import numpy as np
from numpy.typing import NDArray

from galmerhpc.preview import Preview
from galmerhpc.simulate.library import Component, Snapshot

KERNEL_WIDTHS = 2.0
"""Half width of a particle's kernel in smoothing lengths. Its standard deviation is then 0.6 of the
distance to the 32nd neighbour: some 45 particles contribute to each pixel of a disc, with 15 %
noise. With narrower kernels, realisations of an encounter differ more; wider ones blur the arms."""

SMALLEST_KERNEL_PX = 2.0
"""Least half width of a kernel: a standard deviation of 0.6 pixel, to avoid aliasing."""

LARGEST_KERNEL_PX = 6.0
"""Half width above which a kernel is drawn into an image of half as many pixels per side, where it
has at least half this width: enough to be round after enlargement."""

FAINTEST = 3.0
"""Surface density, solar masses per square parsec, where the scale turns from linear to logarithmic
at brightness 4: fainter tails consist of few particles and fade to black."""

WHITE = 3000.0
"""Surface density that is white at brightness 4: that of the centres of bulges."""

NEUTRAL_BRIGHTNESS = 4.0
"""Default brightness of the service's page; each step above it doubles the exposure."""

_KERNEL_VARIANCE = 1 / 11  # along an axis, for a kernel of half width 1
_STARS = (Component.BULGE, Component.STARS)
_PARSECS = 1e3  # per kpc
_PAD = 1  # pixels around each image that its enlargement reads at the edges


def _cache_place() -> bool:
    """Return whether numba can cache compiled code, which needs a writable folder."""
    try:
        numba.njit(cache=True)(_cache_place)
    except RuntimeError:
        return False
    return True


# Threads render concurrently, and further processes need not compile again.
_COMPILE = {"nogil": True, "cache": _cache_place(), "error_model": "numpy"}


def render(snapshot: Snapshot, preview: Preview) -> NDArray[np.uint8]:
    """Draw a snapshot as requested by a preview.

    Parameters
    ----------
    snapshot : Snapshot
        The particles; ``preview.snap_id`` is ignored.
    preview : Preview
        View, size and components. ``halo`` and ``quantity`` are ignored too: a library has no halo
        particles and no other quantity.

    Returns
    -------
    ndarray, shape (nbins, nbins), uint8
        Grey levels, 0 black; the first row is the top.
    """
    gain = 2.0 ** (preview.bri - NEUTRAL_BRIGHTNESS)
    return _stretch(surface_density(snapshot, preview), gain / FAINTEST, WHITE / FAINTEST)


def surface_density(snapshot: Snapshot, preview: Preview) -> NDArray[np.float32]:
    """Return the smoothed surface density that `render` shows.

    Parameters
    ----------
    snapshot, preview
        As for `render`.

    Returns
    -------
    ndarray, shape (nbins, nbins), float32
        Solar masses per square parsec; the first row is the top. Its sum times the area of a pixel
        is the mass of the particles whose kernels lie inside the image.
    """
    wanted = (_STARS if preview.stars else ()) + ((Component.GAS,) if preview.gas else ())
    drawn = np.isin(snapshot.component, wanted)
    middle = (preview.nbins - 1) / 2
    mass = _spread(
        snapshot.position[drawn],
        snapshot.mass[drawn],
        KERNEL_WIDTHS * snapshot.smoothing[drawn],
        image_axes(preview.theta, preview.phi),
        np.array([middle - preview.xc / preview.bins, middle + preview.yc / preview.bins]),
        preview.bins,
        preview.nbins,
    )
    return mass / np.float32((preview.bins * _PARSECS) ** 2)


def image_axes(theta: float, phi: float) -> NDArray[np.float64]:
    """Return the directions to the right and upwards in the image.

    Parameters
    ----------
    theta, phi : float
        Line of sight, degrees.

    Returns
    -------
    ndarray, shape (2, 3), float64
        ``e_x`` and ``e_y``, unit vectors.
    """
    theta, phi = np.radians(theta), np.radians(phi)
    return np.array(
        [
            [-np.sin(phi), np.cos(phi), 0.0],
            [-np.cos(theta) * np.cos(phi), -np.cos(theta) * np.sin(phi), np.sin(theta)],
        ]
    )


@numba.njit(**_COMPILE)
def _spread(
    position: NDArray[np.float32],
    mass: NDArray[np.float32],
    width: NDArray[np.float32],
    axes: NDArray[np.float64],
    origin: NDArray[np.float64],
    bins: float,
    nbins: int,
) -> NDArray[np.float32]:
    """Return the mass in each pixel.

    Parameters
    ----------
    position : ndarray, shape (N, 3), float32
        kpc.
    mass, width : ndarray, shape (N,), float32
        Mass, and half width of the kernel in kpc.
    axes : ndarray, shape (2, 3), float64
        From `image_axes`.
    origin : ndarray, shape (2,), float64
        Column and row of the origin of positions; pixel centres are whole numbers.
    bins : float
        kpc per pixel.
    nbins : int
        Pixels per side.

    Returns
    -------
    ndarray, shape (nbins, nbins), float32
    """
    count = len(mass)
    column, row, radius = np.empty(count), np.empty(count), np.empty(count)  # pixels
    level = np.empty(count, np.int64)  # an image of level l has pixels of 2**l
    for i in range(count):
        x, y, z = position[i, 0], position[i, 1], position[i, 2]
        column[i] = origin[0] + (axes[0, 0] * x + axes[0, 1] * y + axes[0, 2] * z) / bins
        row[i] = origin[1] - (axes[1, 0] * x + axes[1, 1] * y + axes[1, 2] * z) / bins
        radius[i] = max(width[i] / bins, SMALLEST_KERNEL_PX)
        level[i] = 0
        while radius[i] > LARGEST_KERNEL_PX * 2.0 ** level[i]:
            level[i] += 1
        # Enlarging adds (4^level - 1) / 4 to the variance: draw the kernel narrower.
        radius[i] = np.sqrt(radius[i] ** 2 - (4.0 ** level[i] - 1.0) / 4.0 / _KERNEL_VARIANCE)

    top = max(level) if count else 0
    image = np.zeros((0, 0), np.float32)
    weights = np.empty(
        (2, int(2 * LARGEST_KERNEL_PX) + 1), np.float32
    )  # of a kernel's columns, rows
    for step in range(top, -1, -1):
        pixel = 2**step
        side = -(-nbins // pixel) + 2 * _PAD
        image = _enlarged(image, side) if step < top else np.zeros((side, side), np.float32)
        for i in range(count):
            if level[i] == step:
                # The centre of a coarse pixel is the middle of the fine ones inside it.
                x = (column[i] + 0.5) / pixel - 0.5 + _PAD
                y = (row[i] + 0.5) / pixel - 0.5 + _PAD
                _add_bump(image, x, y, radius[i] / pixel, mass[i], weights)
    return image[_PAD:-_PAD, _PAD:-_PAD].copy()


@numba.njit(**_COMPILE)
def _add_bump(
    image: NDArray[np.float32],
    x: float,
    y: float,
    radius: float,
    mass: float,
    weights: NDArray[np.float32],
) -> None:
    """Add a mass to an image, spread over ``(1 - dx^2 / r^2)^4 (1 - dy^2 / r^2)^4``.

    The product is nearly round (a Gaussian in the limit of high powers) and needs one polynomial
    per row and column. It is normalised by its sum over pixels, including those outside the image,
    so that mass is conserved wherever the particle lies between pixels.
    """
    rows, columns = image.shape
    left, right = int(np.ceil(x - radius)), int(np.floor(x + radius))
    bottom, top = int(np.ceil(y - radius)), int(np.floor(y + radius))
    if right < 0 or left >= columns or top < 0 or bottom >= rows:
        return
    across, along = weights[0], weights[1]
    total = _fill(across, left, right, x, radius) * _fill(along, bottom, top, y, radius)
    for k in range(max(bottom, 0), min(top, rows - 1) + 1):
        strength = np.float32(mass / total) * along[k - bottom]
        for j in range(max(left, 0), min(right, columns - 1) + 1):
            image[k, j] += strength * across[j - left]


@numba.njit(**_COMPILE)
def _fill(
    weights: NDArray[np.float32], first: int, last: int, centre: float, radius: float
) -> float:
    """Write the kernel at the integers first..last, and return its sum."""
    total = 0.0
    for k in range(first, last + 1):
        q = (k - centre) / radius
        height = (1.0 - q * q) * (1.0 - q * q)
        weights[k - first] = height * height
        total += height * height
    return total


@numba.njit(**_COMPILE)
def _enlarged(coarse: NDArray[np.float32], side: int) -> NDArray[np.float32]:
    """Return an image with pixels of half the size and the same mass, interpolated linearly.

    A fine pixel is a quarter of a coarse one from the nearest centre. Repeated, this gives
    quadratic B-splines (Chaikin's subdivision), without visible blocks.
    """
    fine = np.empty((side, side), np.float32)
    half = np.empty((len(coarse), side), np.float32)
    near, far = np.float32(0.75 / 2), np.float32(0.25 / 2)  # half of the mass along each axis
    for j in range(side):
        inner, outer = _sources(j)
        for k in range(len(coarse)):
            half[k, j] = near * coarse[k, inner] + far * coarse[k, outer]
    for k in range(side):
        inner, outer = _sources(k)
        for j in range(side):
            fine[k, j] = near * half[inner, j] + far * half[outer, j]
    return fine


@numba.njit(**_COMPILE)
def _sources(pixel: int) -> tuple[int, int]:
    """Return the coarse pixel that contains a fine one, and the neighbour nearest to it."""
    inner = (pixel - _PAD) // 2 + _PAD
    return inner, inner + (1 if (pixel - _PAD) % 2 else -1)


@numba.njit(**_COMPILE)
def _stretch(density: NDArray[np.float32], gain: float, white: float) -> NDArray[np.uint8]:
    """Return grey levels ``255 asinh(gain density) / asinh(white)``, rounded, at most 255."""
    grey = np.empty(density.shape, np.uint8)
    scale = 255.0 / np.arcsinh(white)
    for k in range(density.shape[0]):
        for j in range(density.shape[1]):
            x = gain * density[k, j]
            grey[k, j] = int(min(scale * np.log(x + np.sqrt(x * x + 1.0)) + 0.5, 255.0))
    return grey
