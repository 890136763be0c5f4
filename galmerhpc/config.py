"""The configuration: one YAML file as typed, frozen models. Every default of the package is here.

`load` reads a file and ``key=value`` overrides; an unknown key, a wrong value or an impossible
combination is an `InputError` that names the key.
"""

import difflib
import hashlib
import itertools
import json
import os
import re
import reprlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, get_args, get_origin

import numpy as np
import yaml
from numpy.typing import NDArray
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from galmerhpc import preview, tables
from galmerhpc.errors import InputError
from galmerhpc.parameters import AZIMUTH, INCLINATION, NAMES, SPIN, VIEWING_ANGLE, Parameter, named


def _refuse_bool(value: object) -> object:
    if isinstance(value, bool):  # for Python, true is 1
        raise ValueError(f"should be a number, not {str(value).lower()}")
    return value


Float = Annotated[float, BeforeValidator(_refuse_bool)]
Integer = Annotated[int, BeforeValidator(_refuse_bool)]
Spin = Literal["prograde", "retrograde"]
Fraction = Annotated[Float, Field(ge=0.0, lt=1.0)]
# No sensible value lies outside these bounds, and arithmetic within them cannot overflow.
Positive = Annotated[Float, Field(ge=1e-9, le=1e9)]
Real = Annotated[Float, Field(ge=-1e9, le=1e9)]


Count = Annotated[Integer, Field(ge=1, le=10**9)]
Seed = Annotated[Integer, Field(ge=0, lt=2**63)]
Number = Annotated[Integer, Field(ge=0, lt=2**31)]
"""Number of a snapshot or realisation, as in the preview protocol and the shards."""


def _expand(path: Any) -> Any:
    """Replace ``~`` and environment variables in a path, as a shell does."""
    if not isinstance(path, str | Path):
        return path
    expanded = os.path.expandvars(os.path.expanduser(path))  # noqa: PTH111 - leaves others be
    if "$" in expanded:
        raise ValueError(f"{path} names an environment variable that is not set")
    return expanded


EXPANDED = BeforeValidator(_expand)

MAX_SNAPSHOTS = 200_000
"""Most snapshots in a catalogue: three times as many as GalMer has."""

WORD = r"[A-Za-z0-9_]+"
"""Pattern of names that become parts of other names: of variants and of labels."""


class Section(BaseModel):
    """A section of the file: no unknown keys, frozen after reading, one docstring per field."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


# --- the encounters -------------------------------------------------------------------------------


class Sphere(Section):
    """A Plummer sphere."""

    mass: Positive
    """Mass in units of 2.3e9 solar masses."""
    radius_kpc: Positive
    """Plummer radius."""


class Disc(Section):
    """A Miyamoto-Nagai disc."""

    mass: Positive
    """Mass in units of 2.3e9 solar masses."""
    a_kpc: Positive
    """Radial scale."""
    h_kpc: Positive
    """Vertical scale."""
    toomre_q: Positive = 1.2
    """Smallest Toomre Q of the disc, which sets its velocity dispersion."""


class Galaxy(Section):
    """A galaxy model: bulge and halo are Plummer spheres, stars and gas Miyamoto-Nagai discs."""

    bulge: Sphere
    halo: Sphere
    stars: Disc
    gas: Disc


# Chilingarian et al. 2010, A&A 518, A61 (from memory of its table, not read again).
GSA = Galaxy(
    bulge=Sphere(mass=10, radius_kpc=2),
    halo=Sphere(mass=50, radius_kpc=10),
    stars=Disc(mass=40, a_kpc=4, h_kpc=0.5),
    gas=Disc(mass=4, a_kpc=5, h_kpc=0.2, toomre_q=0.5),
)
GSB = Galaxy(
    bulge=Sphere(mass=5, radius_kpc=1),
    halo=Sphere(mass=75, radius_kpc=12),
    stars=Disc(mass=20, a_kpc=5, h_kpc=0.5),
    gas=Disc(mass=4, a_kpc=6, h_kpc=0.2, toomre_q=0.5),
)


class Particles(Section):
    """Number of particles of one galaxy, by component."""

    halo: Count = 4000
    bulge: Count = 1000
    stars: Count = 6000
    gas: Count = 1500


class Orbit(Section):
    """Orbit of the two centres as point masses; the default parabola is GalMer's type 1."""

    pericentre_kpc: Positive = 8.0
    """Distance of closest approach of the point masses."""
    energy_km2_s2: Annotated[Float, Field(ge=0.0)] = 0.0
    """Specific orbital energy: 0 for a parabola, above 0 for a hyperbola."""
    start_separation_kpc: Positive = 55.0
    """Separation at which the integration starts."""


class SnapshotTimes(Section):
    """Equally spaced snapshot times, relative to the simulated pericentre passage."""

    start_myr: Real = -100.0
    """First time, Myr from pericentre."""
    stop_myr: Real = 300.0
    """Last time, Myr from pericentre."""
    step_myr: Positive = 10.0
    """Interval between snapshots, Myr."""

    def values(self) -> NDArray[np.float64]:
        """Return the times, Myr."""
        return grid(self.start_myr, self.stop_myr, self.step_myr)


class Simulate(Section):
    """N-body encounters, one for each combination of spin, inclination and realisation."""

    pair: tuple[str, str] = ("gSa", "gSb")
    """Names of the two galaxy models."""
    galaxies: dict[str, Galaxy] = {"gSa": GSA, "gSb": GSB}
    """Galaxy models by name; others may be added."""
    orbit_type: Number = 1
    """GalMer's orbit number, kept as a label."""
    orbit: Orbit = Orbit()
    mass_ratio: Annotated[Float, Field(ge=1.0)] = 1.0
    """Factor by which the second model's mass is divided; its lengths are divided by the square
    root (equal surface density). For models of equal mass, such as gSa and gSb, it is the ratio of
    the first galaxy's mass to the second's."""
    spins: tuple[Spin, ...] = ("prograde", "retrograde")
    """Sense of the first disc's rotation relative to the orbit."""
    inclination1_deg: Real = 0.0
    """Tilt i1 of disc 1 relative to the orbital plane, about the line of pericentre."""
    inclinations2_deg: tuple[Real, ...] = (0.0, 45.0, 75.0, 90.0)
    """Tilts i2 of disc 2; the pair's relative inclination is i2 - i1."""
    realisations: tuple[Number, ...] = (0, 1)
    """Random seeds of the particles: each realises the same encounter with different particles."""
    particles: Particles = Particles()
    snapshots: SnapshotTimes = SnapshotTimes()
    first_snapshot_id: Number = 27399
    """Number of the first snapshot; numbers increase by time, inclination, spin, realisation."""
    step_myr: Positive = 1.0
    """Leapfrog step."""
    softening_kpc: Positive = 0.35
    """Plummer-equivalent gravitational softening; the second galaxy's scales with its lengths."""
    opening_angle: Positive = 0.7
    """Barnes-Hut opening angle of the quadrupole tree."""
    max_energy_drift: Positive = 0.005
    """Relative change of total energy above which an encounter counts as failed."""
    smoothing_neighbours: Count = 32
    """The smoothing length of a luminous particle is the distance to this nearest neighbour."""
    variants: dict[str, dict[str, Any]] = {}
    """Kinds of encounter that share the library, by name, each with the keys of this section that
    it changes, as in ``dwarf: {mass_ratio: 10}``. Encounter names begin with the variant's name,
    and snapshot numbers continue from one variant to the next."""

    def kinds(self) -> dict[str, "Simulate"]:
        """Return each variant's settings by name, or this section under "" if there are none."""
        return {name: self._variant(name) for name in self.variants} or {"": self}

    def _variant(self, name: str) -> "Simulate":
        values = self.model_dump(exclude={"variants"})
        return Simulate.model_validate(_merged(values, self.variants[name]))

    @model_validator(mode="after")
    def _check(self) -> "Simulate":
        for name, changes in self.variants.items():
            if not re.fullmatch(WORD, name):
                raise ValueError(f"variants.{name}: a name may contain only letters, digits and _")
            for key in ("variants", "first_snapshot_id"):
                if key in changes:
                    raise ValueError(f"variants.{name}.{key}: cannot differ between variants")
            try:
                self._variant(name)
            except ValidationError as error:
                fault = error.errors()[0]
                place = ".".join(["variants", name, *map(str, fault["loc"])])
                what = fault.get("ctx", {}).get("error") or fault["msg"].lower()
                raise ValueError(f"{place}: {what}") from None
        for name in self.pair:
            if name not in self.galaxies:
                raise ValueError(
                    f"pair: no galaxy model {name!r} in simulate.galaxies "
                    f"(available: {', '.join(self.galaxies)})"
                )
        if self.orbit.start_separation_kpc <= 2 * self.orbit.pericentre_kpc:
            raise ValueError("orbit.start_separation_kpc must exceed twice orbit.pericentre_kpc")
        if self.snapshots.stop_myr < self.snapshots.start_myr:
            raise ValueError("snapshots.stop_myr is before snapshots.start_myr")
        count = (self.snapshots.stop_myr - self.snapshots.start_myr) / self.snapshots.step_myr
        if count > MAX_SNAPSHOTS:
            raise ValueError(f"snapshots: more than {MAX_SNAPSHOTS} per encounter")
        for key in ("start_myr", "step_myr"):
            steps = getattr(self.snapshots, key) / self.step_myr
            if abs(steps - round(steps)) > 1e-9:
                raise ValueError(
                    f"snapshots.{key} must be a multiple of step_myr, {self.step_myr:g}"
                )
        for key in ("spins", "inclinations2_deg", "realisations"):
            values = getattr(self, key)
            if not values or len(set(values)) != len(values):
                raise ValueError(f"{key}: must be non-empty, without duplicates")
        return self


def _merged(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Return nested values with changes merged in."""
    merged = dict(values)
    for key, value in changes.items():
        both = isinstance(value, dict) and isinstance(values.get(key), dict)
        merged[key] = _merged(values[key], value) if both else value
    return merged


# --- the views ------------------------------------------------------------------------------------

IMAGE_COLUMNS = ("file", "simulation", "snapshot_id", "time_myr")
"""Columns of an image table besides its labels; all but the first are optional."""


def _limits(parameter: str) -> Any:
    """Return the limits of a parameter of previews, beyond which the mirror refuses views."""
    least, largest = preview.LIMITS[parameter]
    return Field(ge=least, le=largest)


ImageSize = Annotated[Integer, Field(ge=32, le=preview.MAX_NBINS)]
"""Width and height of training images; no smaller one survives the network's five halvings."""


class Render(Section):
    """Options of a preview image, named as by the service."""

    nbins: Annotated[Integer, Field(ge=16, le=preview.MAX_NBINS)] = 400
    """Width and height in pixels."""
    zoom: Annotated[Float, Field(ge=1e-3, le=1e3)] = 6.0
    """Pixels per kpc; the service is sent its inverse."""
    brightness: Annotated[Float, _limits("bri")] = 4.0
    """Exposure; each step doubles it on the mirror, where 4 suits the shipped encounters."""
    xc_kpc: Annotated[Float, _limits("xc")] = 0.0
    """Centre of the image in the image plane, kpc to the right."""
    yc_kpc: Annotated[Float, _limits("yc")] = 0.0
    """Centre of the image in the image plane, kpc upwards."""
    gas: bool = True
    """Whether gas is drawn."""
    stars: bool = True
    """Whether stars are drawn."""
    halo: bool = False
    """Whether dark matter is drawn; the mirror cannot draw it."""
    quantity: Annotated[Integer, _limits("quantity")] = 0
    """What is drawn; 0 is the surface density."""


_ANGLE_DIGITS = 9
"""Decimals of a view's angles, degrees."""


class Angles(Section):
    """Equally spaced angles, both ends included where the step reaches them."""

    start: Real
    """First angle, degrees."""
    stop: Real
    """Last angle, degrees."""
    step: Annotated[Float, Field(ge=1e-3, le=1e9)]
    """Interval, degrees; the smallest allowed moves nothing by as much as a pixel."""

    @property
    def count(self) -> int:
        """Number of angles."""
        return _count(self.start, self.stop, self.step)

    def at(self, index: int) -> float:
        """Return one of the angles, degrees."""
        return float(self._rounded(np.float64(self.start + index * self.step)))

    def values(self) -> NDArray[np.float64]:
        """Return the angles, degrees."""
        return self._rounded(grid(self.start, self.stop, self.step))

    def _rounded(self, angles: Any) -> Any:
        """Return angles without the sums' rounding errors.

        So a direction has one name wherever its grid begins, and none lies beyond the end.
        """
        return np.minimum(np.round(angles, _ANGLE_DIGITS), self.stop)

    @model_validator(mode="after")
    def _check(self) -> "Angles":
        if self.stop < self.start:
            raise ValueError("stop is below start")
        return self


class ViewGrid(Section):
    """Viewing directions; by default the paper's quarter sphere in steps of one degree."""

    theta_deg: Angles = Angles(start=0, stop=90, step=1)
    """Viewing angle: between the line of sight and the normal of the orbital plane."""
    phi_deg: Angles = Angles(start=0, stop=180, step=1)
    """Azimuth of the line of sight about that normal."""

    @property
    def count(self) -> int:
        """Number of directions."""
        return self.theta_deg.count * self.phi_deg.count

    @model_validator(mode="after")
    def _check(self) -> "ViewGrid":
        if self.theta_deg.start < -90 or self.theta_deg.stop > 180:
            raise ValueError("theta_deg must lie in -90..180")
        if self.phi_deg.start < -180 or self.phi_deg.stop > 180:
            raise ValueError("phi_deg must lie in -180..180")
        return self


class Snapshot(Section):
    """One snapshot of a run."""

    id: Number
    """The service's snapshot number."""
    time_myr: Real
    """Time since pericentre, Myr."""


def _check_label_names(names: Iterable[str]) -> None:
    """Refuse names that another column has, or that a column of metrics.csv cannot contain."""
    if clash := set(names) & {*NAMES, *IMAGE_COLUMNS}:
        raise ValueError(f"labels: {', '.join(sorted(clash))}: already defined")
    if bad := [name for name in names if not re.fullmatch(WORD, name)]:
        raise ValueError(f"labels: {bad[0]!r}: a name may contain only letters, digits and _")


class Run(Section):
    """One encounter of the catalogue and its snapshots."""

    spin: Spin
    """Whether the first disc rotates with the orbit or against it."""
    inclination_deg: Annotated[Float, Field(ge=0.0, le=180.0)]
    """Relative inclination of the two discs."""
    simulation: Number = 0
    """Number of the realisation."""
    pair: str = "gSa-gSb"
    """Galaxy models, kept as a label."""
    orbit: Number = 1
    """GalMer's orbit number, kept as a label."""
    snapshots: tuple[Snapshot, ...] = ()
    """List of snapshots; or omit it and give first_id, count, first_time_myr, step_myr."""
    first_id: Number | None = None
    """Number of the first of several consecutive snapshots."""
    count: Annotated[Integer, Field(ge=1, le=MAX_SNAPSHOTS)] = 1
    """Number of consecutive snapshots."""
    first_time_myr: Real = 0.0
    """Time of the first of them since pericentre, Myr."""
    step_myr: Positive = 50.0
    """Interval between them, Myr."""
    views: ViewGrid | None = None
    """Viewing directions of this run; by default the catalogue's."""
    labels: dict[str, Real] = {}
    """Further labels by name (mass ratio, pericentre ...), from which `parameters` may choose."""

    @model_validator(mode="after")
    def _check(self) -> "Run":
        if bool(self.snapshots) == (self.first_id is not None):
            raise ValueError("give either snapshots or first_id")
        if self.first_id is not None and self.first_id + self.count > 2**31:
            raise ValueError("first_id + count: snapshot numbers must stay below 2**31")
        _check_label_names(self.labels)
        return self

    def snapshot_ids(self) -> NDArray[np.int64]:
        """Return the snapshot numbers, however they were given."""
        if self.first_id is None:
            return np.array([snapshot.id for snapshot in self.snapshots], np.int64)
        return self.first_id + np.arange(self.count, dtype=np.int64)

    def all_snapshots(self) -> tuple[Snapshot, ...]:
        """Return the snapshots, however they were given."""
        if self.first_id is None:
            return self.snapshots
        return tuple(
            Snapshot(id=self.first_id + k, time_myr=self.first_time_myr + k * self.step_myr)
            for k in range(self.count)
        )


class Images(Section):
    """Existing images and the table of their labels (docs/format.md)."""

    table: Path
    """CSV file, relative to the catalogue's folder; the images are beside or below it."""
    sha256: Annotated[str, Field(pattern="^([0-9a-f]{64})?$")] = ""
    """SHA-256 of the table. Omit it: it is computed when the configuration is read, so that stages
    notice later changes of the table."""
    labels: tuple[str, ...] = ()
    """Columns with further labels, besides the standard four."""
    field_kpc: Positive | None = None
    """Width of the images, kpc, to which `real-pairs` cuts photographs; may be added later."""

    @model_validator(mode="after")
    def _check(self) -> "Images":
        _check_label_names(self.labels)
        if len(set(self.labels)) != len(self.labels):
            raise ValueError("labels: must be without duplicates")
        return self


class Catalogue(Section):
    """Every view of every snapshot of every run, to be fetched; or `images`, to be imported."""

    render: Render = Render()
    views: ViewGrid = ViewGrid()
    runs: tuple[Run, ...] = ()
    allow_equivalent_views: bool = False
    """Accept (theta, phi) together with (-theta, phi +- 180): the same image rolled by 180 deg."""
    images: Images | None = None
    """Images from a folder, instead of runs and views; `render.nbins` is their size."""

    @property
    def label_names(self) -> tuple[str, ...]:
        """Names of the labels of every view besides the standard four."""
        return self.images.labels if self.images else tuple(self.runs[0].labels)

    @model_validator(mode="after")
    def _check(self) -> "Catalogue":
        if self.images:
            if self.runs or self.views != ViewGrid() or self.allow_equivalent_views:
                raise ValueError("images: they define their own views; leave out runs and views")
            return self
        if not self.runs:
            raise ValueError("runs: the catalogue is empty; list at least one run")
        total = sum(
            run.count if run.first_id is not None else len(run.snapshots) for run in self.runs
        )
        if total > MAX_SNAPSHOTS:
            raise ValueError(
                f"runs: {total} snapshots, more than {MAX_SNAPSHOTS}; split the catalogue"
            )
        ids, times = np.unique(
            np.concatenate([run.snapshot_ids() for run in self.runs]), return_counts=True
        )
        if (times > 1).any():
            raise ValueError(f"runs: snapshot {ids[times > 1][0]} is listed more than once")
        if len({frozenset(run.labels) for run in self.runs}) > 1:
            raise ValueError("runs: all runs must have the same further labels")
        if not self.allow_equivalent_views:
            for views in {run.views or self.views for run in self.runs}:
                _refuse_equivalent_views(views)
        return self


def _refuse_equivalent_views(views: ViewGrid) -> None:
    """Raise ValueError where two directions of the grid give the same image."""
    theta = np.round(views.theta_deg.values(), 6)
    phi = np.round(views.phi_deg.values(), 6)
    around, first = np.unique(phi % 360, return_index=True)
    both_signs = np.intersect1d(theta[theta >= 0], -theta[theta < 0])
    opposite = np.isin(around, np.round(around + 180, 6) % 360)
    if len(around) < len(phi):
        twice = theta[0], np.delete(phi, first)[0]
    elif len(both_signs) and opposite.any():
        twice = both_signs[0], phi[first[opposite][0]]
    else:
        return
    raise ValueError(
        f"views: theta {twice[0]:g}, phi {twice[1]:g} gives the same image as another view of the "
        "grid (phi wraps at 360, and (theta, phi) is (-theta, phi +- 180)); narrow "
        "the range or set allow_equivalent_views: true"
    )


# --- the data -------------------------------------------------------------------------------------


POLITE_RATE_PER_S = 2.0
"""Requests per second that an old CGI host can sustain for days; the paper's grid takes 18
hours."""


class Scrape(Section):
    """Fetching of preview images."""

    source: str = "mirror"
    """`mirror` to render `library` on this node, or the service's address without the path."""
    rate_per_s: Positive | None = None
    """Limit on requests started per second, over all ranks and slices; null for no limit. Default:
    2 for an address; no limit for the mirror, which is our own process."""
    connections: Annotated[Integer, Field(ge=1, le=1024)] = 8
    """Concurrent requests, over all ranks and slices."""
    timeout_s: Positive = 60.0
    """Seconds that a whole answer may take before it is requested again; also the longest pause."""
    attempts: Count = 5
    """Attempts per view before it counts as failed."""
    backoff_s: Positive = 0.5
    """Pause before the second attempt, and while the host refuses; it doubles each time."""
    time_limit_s: Positive | None = None
    """Seconds after which the job exits with code 75, to be run again; null for no limit."""
    allow_duplicates: bool = False
    """Accept byte-identical images for different views. By default they count as an error image,
    and none of these views as fetched."""
    contact: Annotated[str, Field(pattern=r"^[ -~]*$")] = ""
    """Contact address in User-Agent, so that an archive's operators can write to you."""
    views_per_shard: Count = 1024
    """Responses per raw shard."""

    @model_validator(mode="before")
    @classmethod
    def _be_polite(cls, values: Any) -> Any:
        """Set the default rate for an address, so that config.yaml shows it."""
        if isinstance(values, dict) and values.get("source", "mirror") != "mirror":
            return {"rate_per_s": POLITE_RATE_PER_S} | values
        return values

    @field_validator("source")
    @classmethod
    def _check_source(cls, value: str) -> str:
        if value != "mirror" and not value.startswith(("http://", "https://")):
            raise ValueError("must be 'mirror' or an address that starts with http:// or https://")
        if "@" in value.partition("://")[2].partition("/")[0]:
            raise ValueError(
                "must not contain a password, which would be stored with the images; put it into "
                "~/.netrc, which is read"
            )
        return value.rstrip("/")


class Augment(Section):
    """Ranges of the changes to offline copies, drawn independently for each (paper, section 2)."""

    rotation_deg: Annotated[Float, Field(ge=0.0, le=180.0)] = 10.0
    """Roll of the image, drawn from -rotation_deg..rotation_deg."""
    intensity: Fraction = 0.2
    """Relative change of brightness, drawn from 1 - intensity..1 + intensity."""
    blur_px: Annotated[Float, Field(ge=0.0)] = 1.0
    """Sigma of a Gaussian blur in pixels of the final image, drawn from 0..blur_px."""
    seed: Seed = 0
    """Seed of these changes."""


class Preprocess(Section):
    """From fetched images to training shards."""

    image_size: ImageSize = 64
    """Width and height of a training image in pixels."""
    channels: Annotated[Literal[1, 3], BeforeValidator(_refuse_bool)] = 3
    """1 (grey) or 3 (RGB)."""
    copies: Annotated[Integer, Field(ge=0, le=1000)] = 0
    """Augmented copies of each original; only in training, except with split.kind random."""
    augment: Augment = Augment()
    jpeg_quality: Annotated[Integer, Field(ge=1, le=100)] | None = None
    """Compress images as JPEG of this quality and decode them, as the paper did; null: do not."""
    samples_per_shard: Count = 8192
    """Images per training shard."""
    compression: Literal["none", "gzip", "blosc-lz4", "blosc-zstd"] = "none"
    """Compression of each image; blosc needs hdf5plugin. Compressed shards are smaller but many
    times slower to read."""
    images_in_memory: Count = 128
    """Images that each rank holds at a time, in addition to some 20 bytes per sample."""


SIMULATION_KEYS = ("training_simulations", "validation_simulations", "test_simulations")
"""Keys of `Split` that list realisations."""


class Split(Section):
    """How samples are divided into training, validation and test (docs/format.md)."""

    kind: Literal["simulation", "blocked", "inclination", "random"] = "simulation"
    """simulation: hold out whole realisations; blocked: tiles of neighbouring views; inclination:
    one inclination; random: single views, as in the paper, which leaks neighbouring views."""
    validation_fraction: Fraction = 0.1
    """Share of the views for validation, where no whole realisations are held out for it."""
    test_fraction: Fraction = 0.1
    """Share of the views for test. With random it may be 0: validation is then also the test set,
    as in the paper's regression."""
    tile_deg: Positive = 15.0
    """Side of a tile of views, degrees, and width of the unused guard band around held-out
    regions."""
    validation_simulations: tuple[Number, ...] | None = None
    """Realisations for validation. Default: the last but one if there are three or more, otherwise
    blocked tiles of the first."""
    test_simulations: tuple[Number, ...] | None = None
    """Realisations for test. Default: the last."""
    training_simulations: tuple[Number, ...] | None = None
    """Realisations for training. Default: all others. Any not listed in a split are unused."""
    training_fraction: Annotated[Float, Field(gt=0.0, le=1.0)] | None = None
    """Share of the training views to use, drawn at random; larger shares contain smaller ones.
    Default: all."""
    test_inclination_deg: Float | None = None
    """The inclination held out by kind `inclination`."""
    seed: Seed = 0
    """Seed for drawing tiles or samples."""

    def shared(self) -> dict[str, Any]:
        """Return the keys that apply to every kind."""
        own = {"kind", "test_inclination_deg", *SIMULATION_KEYS}
        return self.model_dump(mode="json", exclude=own)

    @model_validator(mode="after")
    def _check(self) -> "Split":
        if self.validation_fraction + self.test_fraction >= 1:
            raise ValueError("validation_fraction + test_fraction must be below 1")
        if (self.kind == "inclination") != (self.test_inclination_deg is not None):
            raise ValueError(
                "test_inclination_deg must be given with kind: inclination, and only then"
            )
        given = {key: set(getattr(self, key) or ()) for key in SIMULATION_KEYS}
        if self.kind != "simulation" and any(given.values()):
            raise ValueError(f"{', '.join(SIMULATION_KEYS)} apply only to kind: simulation")
        for one, other in itertools.combinations(SIMULATION_KEYS, 2):
            if given[one] & given[other]:
                raise ValueError(f"{one} and {other} share a realisation")
        return self


class Data(Section):
    """Reading of training shards."""

    memory_gb: Annotated[Float, Field(ge=0.0)] = 8.0
    """A split up to this size is read once, in order, into memory shared by the node's ranks; a
    larger one is read from the shards batch by batch."""
    stage: bool = False
    """First copy the shards of a split larger than memory_gb to node-local storage, once per
    node."""
    stage_dir: Annotated[Path, EXPANDED] | None = None
    """Folder on node-local storage. Default: TMPDIR, or /tmp if that is not set. Later jobs on the
    node reuse the copy, so choose a folder that outlives the job if there is one."""
    threads: Count = 2
    """Read-ahead threads per rank; more help on a parallel file system, not on a local disk."""
    ahead_mb: Positive = 64.0
    """Images that each rank reads ahead, MB; at least one batch per thread."""


# --- the network ----------------------------------------------------------------------------------


class Model(Section):
    """The network."""

    architecture: Literal["resnet50", "table1_cnn"] = "resnet50"
    task: Literal["regression", "classification"] = "regression"
    head: Literal["flatten", "gap"] = "flatten"
    """flatten: Flatten, then Dense, as the authors; gap: global average pooling, then Dense."""
    class_width_deg: Positive = 5.0
    """Class width of azimuth and viewing angle."""
    spin: Literal["number", "probability"] = "number"
    """number: regression between 0 and 1; probability: probability of retrograde, trained with a
    sigmoid and binary cross-entropy."""
    sine_cosine: tuple[str, ...] = ()
    """Angles that regression learns as sine and cosine, so that -180 and 180 deg are the same."""
    dropout: Fraction = 0.0
    """Share of the head's inputs dropped in training."""
    batchnorm_momentum: Annotated[Float, Field(gt=0.0, lt=1.0)] = 0.9
    """Momentum of the moving statistics; Keras's default of 0.99 leaves short runs with the
    statistics of their first steps."""


class Schedule(Section):
    """Learning-rate schedule."""

    kind: Literal["constant", "cosine"] = "cosine"
    warmup_steps: Annotated[Integer, Field(ge=0)] = 100
    """Steps of linear warm-up, for either kind."""
    batch_scaling: Literal["none", "linear", "sqrt"] = "none"
    """How the peak rate scales with batch_size / reference_batch: linear for sgd (Goyal et al.
    2017, arXiv:1706.02677), sqrt for adam (Malladi et al. 2022, arXiv:2205.10287)."""
    reference_batch: Count = 32
    """Global batch size for which training.learning_rate is given."""


class Optimizer(Section):
    """Optimizer."""

    kind: Literal["adam", "adamw", "sgd"] = "adam"
    """adam: the paper's."""
    weight_decay: Annotated[Float, Field(ge=0.0)] = 0.0
    """Decoupled weight decay of adamw, multiplied by the learning rate; not applied to biases and
    batch normalisation."""
    momentum: Fraction = 0.0
    """Momentum of sgd."""
    clip_norm: Positive | None = None
    """Largest global norm of the gradient after the all-reduce; larger gradients are scaled down to
    it. null: no clipping."""

    @model_validator(mode="after")
    def _check(self) -> "Optimizer":
        if (self.kind == "adamw") != (self.weight_decay > 0):
            raise ValueError("weight_decay applies only to kind: adamw, which needs one above 0")
        if self.momentum and self.kind != "sgd":
            raise ValueError("momentum applies only to kind: sgd")
        return self


class OnlineAugment(Section):
    """Ranges of the random changes to each training image, redrawn every epoch; 0: none."""

    rotation_deg: Annotated[Float, Field(ge=0.0, le=180.0)] = 0.0
    """Roll of the image, drawn from -rotation_deg..rotation_deg. Rolled images are cut to the
    largest circle, since corners would reveal the roll."""
    mirror: bool = False
    """Mirror half of the images. A mirrored image is the view from the opposite side, so azimuth
    and viewing angle cannot then be among the parameters."""
    zoom: Fraction = 0.0
    """Relative change of scale, drawn from 1 - zoom..1 + zoom."""
    centre_px: Annotated[Float, Field(ge=0.0)] = 0.0
    """Shift to the right and downwards, each drawn from -centre_px..centre_px."""
    intensity: Fraction = 0.0
    """Relative change of brightness, drawn from 1 - intensity..1 + intensity."""
    neighbours: Annotated[Integer, Field(ge=0, le=32)] = 0
    """Galaxies in front of or behind the pair; their number is drawn from 0..neighbours."""
    stars: Annotated[Integer, Field(ge=0, le=32)] = 0
    """Foreground stars; their number is drawn from 0..stars."""
    sky: Annotated[Float, Field(ge=0.0, le=255.0)] = 0.0
    """Sky brightness in grey levels, drawn from 0..sky, with a gradient of up to half of it from
    the centre to each edge."""
    psf_fwhm_px: Annotated[Float, Field(ge=0.0, le=8.0)] = 0.0
    """FWHM of the point spread function in pixels, drawn from 0..psf_fwhm_px."""
    blur_px: Annotated[Float, Field(ge=0.0, le=8.0)] = 0.0
    """Sigma of a Gaussian blur in pixels, drawn from 0..blur_px."""
    noise: Annotated[Float, Field(ge=0.0)] = 0.0
    """Sigma of Gaussian noise in grey levels of 0..255, drawn from 0..noise."""


class Training(Section):
    """Training with Horovod."""

    epochs: Count = 50
    """Passes over the training images."""
    batch_size: Count = 32
    """Global batch size: images per step over ALL ranks."""
    loss: Literal["mae", "mse", "huber", "binary_crossentropy", "categorical_crossentropy"] = "mae"
    """mae, mse, huber: regression; binary_crossentropy: classification with one sigmoid per class,
    as in the paper; categorical_crossentropy: classification with one softmax per parameter."""
    loss_weights: dict[str, Positive] = {}
    """Weight of a parameter's loss by name; 1 for those not named."""
    optimizer: Optimizer = Optimizer()
    learning_rate: Positive = 1e-3
    """Peak learning rate at a global batch size of schedule.reference_batch."""
    schedule: Schedule = Schedule()
    augment: OnlineAugment = OnlineAugment()
    standardise_targets: bool = True
    """Train on targets of mean 0 and variance 1 (undone in the model); raw degrees swamp the
    spin."""
    ema_momentum: Fraction = 0.0
    """Decay of an exponential moving average of the weights, used for evaluation and export; 0:
    none."""
    statistics_batches: Annotated[Integer, Field(ge=0)] = 128
    """Training batches from which batch normalisation's statistics are re-estimated before each
    evaluation; the cost grows with batch_size. 0: average the ranks' moving statistics instead."""
    freeze_batchnorm_epochs: Annotated[Integer, Field(ge=0)] = 0
    """Number of final epochs with batch normalisation's statistics frozen as in evaluation (and
    re-estimated at the start of each), so that the weights adapt to the statistics they are
    evaluated with."""
    sync_batchnorm: bool = False
    """Batch normalisation over the images of all ranks, for few images per rank. It costs one
    all-reduce per layer; model.keras contains plain layers."""
    micro_batch: Count | None = None
    """Images that pass through the network at a time on a rank; gradients of larger local batches
    are accumulated, so that a large batch_size fits on few GPUs."""
    precision: Literal["float32", "mixed_bfloat16", "mixed_float16"] = "float32"
    """Precision in which layers compute; weights, gradients and model.keras are float32."""
    compression: Literal["none", "fp16"] = "none"
    """Precision in which gradients are sent. With fp16 here or in precision, the loss is scaled to
    keep small gradients from vanishing, and steps whose gradients overflow are skipped."""
    xla: bool = False
    """Compile the forward and backward pass with XLA; for GPUs only, since it is slower on CPUs."""
    best_metric: str | None = None
    """The validation_ column of metrics.csv that selects the epoch exported as model.keras: lowest
    for errors and losses, highest for r2 and accuracies. Default: the last epoch."""
    patience: Count | None = None
    """Epochs without improvement of best_metric after which training stops. Default: never."""
    evaluation_batch: Count = 64
    """Images per batch and rank in evaluation and prediction."""
    time_limit_s: Positive | None = None
    """Seconds of training after which it saves its work and exits with code 75; null for no limit.
    Validation and export of a finished training are still done."""
    checkpoint_every_steps: Count | None = None
    """Steps between checkpoints, in addition to those at each epoch's end and after the last
    step."""
    keep_checkpoints: Count = 2
    """Latest checkpoints to keep, in addition to that of the best epoch."""
    deterministic: bool = False
    """Make repeated runs bit-identical on CPU; slower on GPU."""
    threads: Count | None = None
    """TensorFlow's threads per rank. Default: the CPUs that the launcher assigned to the rank, or
    its share of those it shares with others."""
    stall_limit_s: Positive = 600.0
    """Seconds after which an unresponsive rank ends the job; must exceed the tracing of the first
    step and any work that only rank 0 does."""
    seed: Annotated[Integer, Field(ge=0, lt=2**32)] = 0  # the limit of NumPy's legacy generator
    """Seed of weights, order, augmentation and dropout; below 2**32."""

    @model_validator(mode="after")
    def _check(self) -> "Training":
        if self.patience and not self.best_metric:
            raise ValueError("patience needs a best_metric")
        if self.freeze_batchnorm_epochs >= self.epochs:
            raise ValueError(
                f"freeze_batchnorm_epochs: must be less than epochs ({self.epochs}), not "
                f"{self.freeze_batchnorm_epochs}"
            )
        if self.sync_batchnorm and self.xla:
            raise ValueError(
                "sync_batchnorm cannot be combined with xla, which cannot compile its all-reduce"
            )
        return self

    def peak_rate(self) -> float:
        """Return the highest learning rate, scaled to the global batch."""
        growth = self.batch_size / self.schedule.reference_batch
        power = {"none": 0.0, "sqrt": 0.5, "linear": 1.0}[self.schedule.batch_scaling]
        return float(self.learning_rate * growth**power)


class Lookup(Section):
    """The baseline that every network must beat: nearest neighbours among image thumbnails."""

    thumbnail_px: Count = 16
    """Side of a thumbnail, pixels."""
    components: Count = 40
    """Principal components kept."""
    neighbours: Count = 4
    """Training images whose labels are averaged."""
    draws: Count = 4
    """Sky-like versions of each training image in the look-up of sky-like images."""


class SkyLike(OnlineAugment):
    """Ranges of the changes that make test images sky-like; same keys as training.augment."""

    rotation_deg: Annotated[Float, Field(ge=0.0, le=180.0)] = 180.0
    """Roll of the image; any by default, since pairs on the sky have random orientations."""
    psf_fwhm_px: Annotated[Float, Field(ge=0.0, le=8.0)] = 2.0
    """FWHM of the point spread function in pixels, drawn from 0..psf_fwhm_px."""
    noise: Annotated[Float, Field(ge=0.0)] = 8.0
    """Sigma of Gaussian noise in grey levels of 0..255, drawn from 0..noise."""


class Evaluation(Section):
    """Evaluation of the final model on images never seen in training."""

    sky: SkyLike | None = SkyLike()
    """Evaluate also on sky-like images, each changed independently; null: do not."""
    lookup: Lookup = Lookup()
    bin_deg: Positive = 15.0
    """Width of the bins of viewing angle and azimuth in which errors are reported."""
    bootstrap: Count = 1000
    """Bootstrap resamples of whole encounters (realisation x configuration) for 95 % intervals."""
    levels: tuple[Annotated[Float, Field(gt=0.0, lt=1.0)], ...] = (0.68, 0.9)
    """Nominal coverages of the prediction intervals, in increasing order."""
    halvings: Count = 100
    """Random halvings of the encounters with which the actual coverage is measured."""
    montage_rows: Count = 4
    """Rows of the montage."""
    montage_columns: Count = 6
    """Columns of the montage."""
    seed: Seed = 0
    """Seed of sky-like changes, resamples and halvings."""

    @field_validator("levels")
    @classmethod
    def _check_levels(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if not value or any(wider <= level for level, wider in itertools.pairwise(value)):
            raise ValueError("must be non-empty and strictly increasing")
        return value


class StudiedAugment(OnlineAugment):
    """Operations that the study `augmentation` switches on one by one; 0 or false: not studied."""

    rotation_deg: Annotated[Float, Field(ge=0.0, le=180.0)] = 180.0
    """Roll of the image, drawn from -rotation_deg..rotation_deg."""
    intensity: Fraction = 0.2
    """Relative change of brightness, drawn from 1 - intensity..1 + intensity."""
    psf_fwhm_px: Annotated[Float, Field(ge=0.0, le=8.0)] = 2.0
    """FWHM of the point spread function in pixels, drawn from 0..psf_fwhm_px."""
    blur_px: Annotated[Float, Field(ge=0.0, le=8.0)] = 1.0
    """Sigma of a Gaussian blur in pixels, drawn from 0..blur_px."""
    noise: Annotated[Float, Field(ge=0.0)] = 4.0
    """Sigma of Gaussian noise in grey levels of 0..255, drawn from 0..noise."""


class Studies(Section):
    """Points of the studies of `galmerhpc study`, each a separate run."""

    batch_sizes: tuple[Count, ...] = (8, 16, 25, 32, 64, 128)
    """`batch-size`: global batch sizes."""
    training_fractions: tuple[Annotated[Float, Field(gt=0.0, le=1.0)], ...] = (
        0.0625, 0.125, 0.25, 0.5, 1.0,
    )  # fmt: skip
    """`data-size`: shares of the training views."""
    image_sizes: tuple[ImageSize, ...] = (64, 96, 128)
    """`resolution`: image sizes, pixels."""
    augment: StudiedAugment = StudiedAugment()
    """`augmentation`: the operations and their strengths."""
    dropout: tuple[Fraction, ...] = (0.0, 0.1, 0.3, 0.5)
    """`dropout`: shares of the head's inputs."""
    class_widths_deg: tuple[Positive, ...] = (5.0, 10.0, 15.0, 30.0, 45.0)
    """`class-width`: class widths of azimuth and viewing angle."""
    realisations: tuple[Count, ...] = (1, 4, 12)
    """`realisations`: numbers of realisations to train on."""
    particle_fractions: tuple[Annotated[Float, Field(gt=0.0)], ...] = (0.1, 0.3, 1.0)
    """`particles`: shares of `simulate.particles`."""
    inclinations_deg: tuple[Real, ...] = (45.0, 75.0)
    """`inclination`: values held out of training, one at a time; `split`: the first of them that
    the catalogue has."""

    @model_validator(mode="after")
    def _check(self) -> "Studies":
        for key in type(self).model_fields:
            values = getattr(self, key)
            if isinstance(values, tuple) and (not values or len(set(values)) != len(values)):
                raise ValueError(f"{key}: must be non-empty, without duplicates")
        return self


class Config(Section):
    """A whole run."""

    run_dir: Annotated[Path, EXPANDED]
    """Folder of all output of the run. Default: `runs/<name of the configuration file>`."""
    library: Annotated[str, EXPANDED] = "shipped"
    """Snapshot library, written by `simulate` and rendered by the mirror; `shipped` is the
    package's own. Like run_dir, it is relative to the current folder."""
    parameters: tuple[str, ...] = NAMES
    """Labels that the network estimates, in this order."""
    simulate: Simulate = Simulate()
    catalogue: Catalogue | None = None
    """A catalogue, or its path relative to the configuration file."""
    scrape: Scrape = Scrape()
    preprocess: Preprocess = Preprocess()
    split: Split = Split()
    data: Data = Data()
    model: Model = Model()
    training: Training = Training()
    evaluation: Evaluation = Evaluation()
    studies: Studies = Studies()

    @model_validator(mode="after")
    def _check(self) -> "Config":
        if not self.parameters or len(set(self.parameters)) != len(self.parameters):
            raise ValueError("parameters: must be non-empty, without duplicates")
        extra = set(self.catalogue.label_names) if self.catalogue else set()
        for name in self.parameters:
            if name not in NAMES and self.catalogue and name not in extra:
                raise ValueError(
                    f"parameters: no label {name!r} "
                    f"(available: {', '.join((*NAMES, *sorted(extra)))})"
                )
        if self.scrape.source == "mirror" and self.catalogue and not self.catalogue.images:
            for key in ("halo", "quantity"):
                if getattr(self.catalogue.render, key):
                    raise ValueError(
                        f"catalogue.render.{key}: the mirror draws only the surface density of "
                        "luminous particles; leave it out, or set scrape.source to an address"
                    )
        if unknown := set(self.training.loss_weights) - set(self.parameters):
            raise ValueError(f"training.loss_weights: {min(unknown)} is not among the parameters")
        for name in (AZIMUTH.name, VIEWING_ANGLE.name):
            if self.training.augment.mirror and name in self.parameters:
                raise ValueError(
                    f"training.augment.mirror: a mirrored image has another {name}; leave out "
                    f"mirror, or remove {AZIMUTH.name} and {VIEWING_ANGLE.name} from the parameters"
                )
        for name in self.model.sine_cosine:
            if name not in self.parameters or named(name).unit != "deg":
                raise ValueError(f"model.sine_cosine: {name} is not an angle among the parameters")
        if self.model.spin == "probability" and SPIN.name not in self.parameters:
            raise ValueError("model.spin: probability requires spin among the parameters")
        classification = self.model.task == "classification"
        if classification:
            self._check_classes()
        self._check_best_metric(classification)
        if ("crossentropy" in self.training.loss) != classification:
            raise ValueError(
                f"training.loss: {self.training.loss} does not fit model.task: "
                f"{self.model.task} (for regression: mae, mse, huber; for classification: "
                "binary_crossentropy, categorical_crossentropy)"
            )
        return self

    def _check_best_metric(self, classification: bool) -> None:
        """Raise ValueError if metrics.csv will have no such column."""
        answers = ["accuracy", "all_accuracy", "binary_accuracy"] if classification else []
        each = [
            f"{k}_{name}" for name in self.parameters for k in ("mae", "mse", "r2", *answers[:1])
        ]
        names = [f"validation_{k}" for k in ("loss", "mae", "mse", "r2", *answers, *each)]
        if self.training.best_metric not in (None, *names):
            raise ValueError(
                f"training.best_metric: no column {self.training.best_metric} "
                f"(available: {', '.join(names)})"
            )

    def _check_classes(self) -> None:
        """Raise ValueError if a label has no class; see `catalogue.require_classes` for tables."""
        if self.model.sine_cosine or self.model.spin != "number":
            raise ValueError("model: sine_cosine and spin apply only to task: regression")
        for name in self.parameters:
            if name not in NAMES:
                raise ValueError(
                    f"model.task: classification has no classes for {name} "
                    f"(only for {', '.join(NAMES)})"
                )
            named(name).classes(self.model.class_width_deg)
        if self.catalogue:
            for run in self.catalogue.runs:
                views = run.views or self.catalogue.views
                labels = {
                    INCLINATION: (run.inclination_deg,),
                    AZIMUTH: (views.phi_deg.start, views.phi_deg.stop),
                    VIEWING_ANGLE: (views.theta_deg.start, views.theta_deg.stop),
                }
                for parameter, values in labels.items():
                    if parameter.name in self.parameters:
                        _refuse_without_class(parameter, values)

    def inputs(self, stage: "Stage") -> dict[str, Any]:
        """Return the keys that decide what a stage makes, flat: ``{"preprocess.image_size": 64}``.

        A stage depends on its own sections and on everything that the stages before it depend on,
        but not on how fast or with how many connections it is done.
        """
        flat = flatten(self.model_dump(mode="json"))
        stages = get_args(Stage)
        wanted = [key for s in stages[: stages.index(stage) + 1] for key in _STAGE_KEYS[s]]
        # An image table may be moved; its checksum identifies its content. The images are the same
        # whatever their width.
        for key in ("catalogue.images.table", "catalogue.images.field_kpc"):
            flat.pop(key, None)
        return {
            k: v for k, v in flat.items() if any(k == w or k.startswith(w + ".") for w in wanted)
        }


def _refuse_without_class(parameter: Parameter, values: Sequence[float]) -> None:
    """Raise ValueError if a value in the catalogue is in none of the parameter's classes."""
    for value in values:
        if not parameter.in_class(value):
            raise ValueError(
                f"model.task: classification has no class for {parameter.name} {value:g} in "
                f"the catalogue (only for {parameter.span})"
            )


RESOLVED = "config.yaml"
"""The run folder's copy of the configuration, with all defaults, overrides and the catalogue."""

Stage = Literal["scrape", "preprocess", "train", "evaluate"]

_STAGE_KEYS: dict[str, tuple[str, ...]] = {
    "scrape": ("catalogue", "scrape.source", "library"),
    "preprocess": (
        "parameters",
        *(f"preprocess.{k}" for k in Preprocess.model_fields if k != "images_in_memory"),
        "split",
    ),
    "train": (
        "model",
        *(
            f"training.{k}"
            for k in Training.model_fields
            if k
            not in (
                "keep_checkpoints",
                "checkpoint_every_steps",
                "threads",
                "xla",
                "time_limit_s",
                "stall_limit_s",
                "evaluation_batch",
            )
        ),
    ),
    "evaluate": ("evaluation",),
}


def default_inputs() -> dict[str, Any]:
    """Return the default of every key that has one, in the form of `Config.inputs`."""
    return flatten(Config(run_dir=Path()).model_dump(mode="json"))


def grid(start: float, stop: float, step: float) -> NDArray[np.float64]:
    """Return start, start + step, ... up to and including stop."""
    return start + step * np.arange(_count(start, stop, step), dtype=np.float64)


def _count(start: float, stop: float, step: float) -> int:
    return int((stop - start) / step + 1e-9) + 1


def digest(values: Any) -> str:
    """Return the SHA-256 of a JSON value in canonical form."""
    return hashlib.sha256(
        json.dumps(values, sort_keys=True, separators=(",", ":")).encode()
    ).hexdigest()


def load(path: Path | str, overrides: Sequence[str] = ()) -> Config:
    """Read a configuration file.

    Parameters
    ----------
    path : path
        YAML file, or a run folder, for its ``config.yaml``; the folder may have been moved since,
        so it is the result's ``run_dir``. A catalogue given by path in the file is read too and
        becomes part of the result.
    overrides : sequence of str
        ``section.key=value``, the value in YAML; they win over the file.

    Raises
    ------
    InputError
        The file cannot be read, or a key or value is wrong; the message names file and key.
    """
    path = Path(path)
    folder = path if path.is_dir() else None
    if folder:
        path /= RESOLVED
        if not path.exists():
            raise InputError(f"{folder}: not a run folder (it has no {RESOLVED})")
    values, catalogue = _read_yaml(path), None
    if folder:
        values["run_dir"] = str(folder)
    within = [override for override in overrides if override.startswith("catalogue.")]
    for override in overrides:
        if override not in within:
            _override(values, override)
    try:
        if isinstance(values.get("catalogue"), str):
            catalogue = path.parent / values["catalogue"]
            values["catalogue"] = _read_yaml(catalogue)
        for override in within:
            _override(values, override)
        _locate_images(values.get("catalogue"), (catalogue or path).parent)
    except InputError as error:
        raise InputError(f"{path}: catalogue: {_shortened(str(error))}") from None
    values.setdefault("run_dir", f"runs/{path.stem}")
    return _validated(path, values, catalogue)


def load_catalogue(path: Path, overrides: Sequence[str] = ()) -> Catalogue | None:
    """Read a catalogue's own file; None if the file is a configuration, or does not exist.

    Raises
    ------
    InputError
        It is a catalogue and a key or value is wrong; the message names file and key.
    """
    values = _read_yaml(path) if path.is_file() else {}
    if not values.keys() & {"runs", "images"}:
        return None
    for override in overrides:
        _override(values, override)
    _locate_images(values, path.parent)
    return _validated(path, {"run_dir": "", "catalogue": values}, path).catalogue


def replaced(config: Config, changes: dict[str, Any], what: str) -> Config:
    """Return a configuration with some keys changed.

    Parameters
    ----------
    config : Config
        Stays as it is.
    changes : dict
        Values by key, as in ``{"training.epochs": 3}``; an entire section may be replaced too.
    what : str
        Where they come from, for messages.

    Raises
    ------
    InputError
        A key or value is wrong, or they do not fit together.
    """
    values = config.model_dump(mode="json")
    for key, value in changes.items():
        *parents, last = key.split(".")
        section = values
        for parent in parents:
            section = section[parent]
        section[last] = value
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise InputError("\n".join(f"{what}: {fault}" for fault in _explain(error))) from None


def _validated(path: Path, values: dict[str, Any], catalogue: Path | None) -> Config:
    """Return the configuration of a file, whose catalogue may be in another file."""
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        faults = list(_explain(error))
    lines = []
    for fault in faults[:_MOST_FAULTS]:
        of_catalogue, _, rest = fault.partition("catalogue")
        if catalogue and not of_catalogue:
            lines.append(f"{catalogue}: {_shortened(rest.lstrip('.: '))}")
        else:
            lines.append(f"{path}: {_shortened(fault)}")
    if len(faults) > _MOST_FAULTS:
        lines.append(f"and {len(faults) - _MOST_FAULTS} more")
    raise InputError("\n".join(lines))


def dump(config: Config) -> str:
    """Write the resolved configuration as YAML that `load` reads back."""
    values = config.model_dump(mode="json")
    if config.scrape.source == "mirror" and config.scrape.rate_per_s is None:
        del values["scrape"]["rate_per_s"]  # an address given instead gets the polite rate
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def require_catalogue(config: Config) -> Catalogue:
    """Return the catalogue.

    Raises
    ------
    InputError
        The configuration has none.
    """
    if config.catalogue is None:
        raise InputError(
            "catalogue: missing; name a file such as catalogues/demo.yaml in the configuration"
        )
    return config.catalogue


def _locate_images(catalogue: Any, place: Path) -> None:
    """Make the path of a table of images absolute, and add the table's checksum."""
    images = catalogue.get("images") if isinstance(catalogue, dict) else None
    if not isinstance(images, dict) or not isinstance(images.get("table"), str):
        return  # none, or a fault that validation names
    table = place / images["table"]
    if "sha256" not in images:
        images["sha256"] = hashlib.sha256(tables.read_bytes(table)).hexdigest()
    images["table"] = str(table.absolute())


class _Loader(yaml.SafeLoader):
    """Loader that refuses what YAML 1.1 reads as something else than was meant.

    These are duplicate keys, of which the last would win, and numbers such as 010, which is octal,
    or 1:30, which is in base 60; also NUL, never in a path.
    """

    def compose_mapping_node(self, anchor: dict[str, yaml.Node]) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key in [key for key, _ in node.value if isinstance(key, yaml.ScalarNode)]:
            if key.value in seen:
                raise _fault(f"the key {_SHORT.repr(key.value)} is given twice", key)
            seen.add(key.value)
        return node

    def construct_scalar(self, node: yaml.ScalarNode | yaml.MappingNode) -> Any:
        if "\0" in node.value:
            raise _fault("a value has a NUL character", node)
        if node.tag in _NUMBERS and re.match(r"[-+]?0[0-9_]|.*:", node.value):
            raise _fault(
                f"write {_SHORT.repr(node.value)} without leading zeros and colons, which mean "
                "another base, or in quotes if it is text",
                node,
            )
        return super().construct_scalar(node)


_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")


def _fault(problem: str, node: yaml.Node) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)


_NOT_YAML = (yaml.YAMLError, RecursionError, ValueError)
"""What the loader raises; ValueError for an impossible date or number."""


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{path}: cannot be read: {getattr(error, 'strerror', None) or 'not a text file'}"
        ) from None
    except _NOT_YAML as error:
        where = getattr(error, "problem_mark", None)
        what = getattr(error, "problem", None) or "cannot be parsed"
        raise InputError(
            f"{path}{f':{where.line + 1}' if where else ''}: not valid YAML: {what}"
        ) from None
    if values is None:
        return {}
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise InputError(f"{path}: must be a mapping of keys to values")
    return values


def _override(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise InputError(
            f"{override}: an override is written key=value, for example training.epochs=3"
        )
    *parents, last = key.split(".")
    for parent in parents:
        values = values.setdefault(parent, {})
        if not isinstance(values, dict):
            raise InputError(f"{override}: {parent} has no keys of its own")
    if not text.strip():  # in a script, more likely a variable that is not set than null
        raise InputError(f"{override}: no value; write {key}=null for none")
    try:
        values[last] = yaml.load(text, _Loader)
    except _NOT_YAML as error:
        what = getattr(error, "problem", None) or "cannot be parsed"
        raise InputError(f"{override}: the value is not valid YAML: {what}") from None


# A few lines of YAML can make a key or value of any length, or any number of faults.
_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother = 2, 80, 80
_LONGEST_LINE, _MOST_FAULTS = 600, 20


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST_LINE else f"{text[: _LONGEST_LINE // 2]} ... {text[-200:]}"


def _explain(error: ValidationError) -> Iterator[str]:
    """Turn pydantic's report into one line per fault: the key, what is wrong, what is allowed."""
    for fault in error.errors():
        places = [str(p) for p in fault["loc"]]
        key = ".".join(places)
        match fault["type"]:
            case "extra_forbidden":
                allowed = _keys_at(fault["loc"][:-1])
                near = difflib.get_close_matches(places[-1], allowed, 1)
                hint = f"did you mean {near[0]}?" if near else f"allowed: {', '.join(allowed)}"
                yield f"{key}: unknown key ({hint})"
            case "missing":
                yield f"{key}: must be given"
            case "value_error":
                yield f"{key}: {fault['ctx']['error']}" if key else str(fault["ctx"]["error"])
            case _:
                what = _SHORT.repr(fault["input"])
                yield f"{key}: {fault['msg'][0].lower()}{fault['msg'][1:]}, not {what}"


def _keys_at(place: tuple[int | str, ...]) -> list[str]:
    """Return the keys allowed at a place of the file."""
    section: Any = Config
    for step in place:
        if isinstance(section, type) and issubclass(section, BaseModel):
            section = section.model_fields[str(step)].annotation
        else:  # a list or a mapping: what is inside
            section = [inner for inner in get_args(section) if inner is not Ellipsis][-1]
        if get_origin(section) is UnionType:  # an optional section
            section = get_args(section)[0]
    return list(section.model_fields)


def differences(config: Config, base: Config) -> list[str]:
    """Return the overrides, as `load` takes them, that turn `base` into `config`."""
    values, known = (one.model_dump(mode="json") for one in (config, base))
    return [f"{key}={json.dumps(value)}" for key, value in _changed(values, known)]


def _changed(
    values: dict[str, Any], known: dict[str, Any], prefix: str = ""
) -> Iterator[tuple[str, Any]]:
    """Yield the changed dotted keys with their values; a mapping that lost keys as one value."""
    for key, value in values.items():
        old = known.get(key)
        if isinstance(value, dict) and isinstance(old, dict) and old.keys() <= value.keys():
            yield from _changed(value, old, f"{prefix}{key}.")
        elif key not in known or value != old:
            yield prefix + key, value


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested values by dotted key: ``{"training.epochs": 3}``."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
