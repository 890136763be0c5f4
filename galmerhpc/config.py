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
from collections.abc import Iterator, Sequence
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

from galmerhpc import tables
from galmerhpc.errors import InputError
from galmerhpc.parameters import AZIMUTH, INCLINATION, NAMES, SPIN, VIEWING_ANGLE, Parameter, named

Spin = Literal["prograde", "retrograde"]
Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
# Nobody means a number beyond these bounds, and arithmetic within them cannot overflow.
Positive = Annotated[float, Field(ge=1e-9, le=1e9)]
Real = Annotated[float, Field(ge=-1e9, le=1e9)]
Count = Annotated[int, Field(ge=1, le=10**9)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Number = Annotated[int, Field(ge=0, lt=2**31)]
"""Of a snapshot or a realisation, as the preview protocol and the shards hold it."""


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
"""Snapshots of one catalogue: three times all of GalMer's."""


class Section(BaseModel):
    """A section of the file: no unknown keys, no change after reading, a docstring a field."""

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
    """Particles of one galaxy, by component."""

    halo: Count = 4000
    bulge: Count = 1000
    stars: Count = 6000
    gas: Count = 1500


class Orbit(Section):
    """The two centres' orbit as point masses; GalMer's type 1 is the default parabola."""

    pericentre_kpc: Positive = 8.0
    """Distance of closest approach of the point masses."""
    energy_km2_s2: Annotated[float, Field(ge=0.0)] = 0.0
    """Specific orbital energy: 0 is a parabola, above 0 a hyperbola."""
    start_separation_kpc: Positive = 55.0
    """Separation at which the integration starts."""


class SnapshotTimes(Section):
    """Equally spaced times of snapshots, relative to the pericentre passage that happened."""

    start_myr: Real = -100.0
    """First time, Myr from pericentre."""
    stop_myr: Real = 300.0
    """Last time."""
    step_myr: Positive = 10.0
    """Time from one snapshot to the next, Myr."""

    def values(self) -> NDArray[np.float64]:
        """Return the times, Myr."""
        return grid(self.start_myr, self.stop_myr, self.step_myr)


class Simulate(Section):
    """N-body encounters: every spin x inclination x realisation is one of them."""

    pair: tuple[str, str] = ("gSa", "gSb")
    """Names of the two galaxy models."""
    galaxies: dict[str, Galaxy] = {"gSa": GSA, "gSb": GSB}
    """The models by name; others may be added."""
    orbit_type: int = 1
    """GalMer's number of the orbit, kept as a label."""
    orbit: Orbit = Orbit()
    mass_ratio: Annotated[float, Field(ge=1.0)] = 1.0
    """Divides the second model's mass, and by its square root the lengths (equal surface density);
    for models of equal mass, as gSa and gSb are, it is the first galaxy's over the second's."""
    spins: tuple[Spin, ...] = ("prograde", "retrograde")
    """Sense of the first disc's rotation relative to the orbit."""
    inclination1_deg: Real = 0.0
    """Tilt i1 of disc 1 against the orbital plane about the line of pericentre."""
    inclinations2_deg: tuple[float, ...] = (0.0, 45.0, 75.0, 90.0)
    """Tilts i2 of disc 2; the pair's relative inclination is i2 - i1."""
    realisations: tuple[Number, ...] = (0, 1)
    """Random seeds of the particles: each makes the same encounter of other particles."""
    particles: Particles = Particles()
    snapshots: SnapshotTimes = SnapshotTimes()
    first_snapshot_id: Number = 27399
    """Number of the first snapshot; they count on by time, inclination, spin, realisation."""
    step_myr: Positive = 1.0
    """Leapfrog step."""
    softening_kpc: Positive = 0.35
    """Plummer-equivalent gravitational softening; the second galaxy's shrinks with its lengths."""
    opening_angle: Positive = 0.7
    """Barnes-Hut opening angle of the quadrupole tree."""
    max_energy_drift: Positive = 0.005
    """Relative change of the total energy above which an encounter counts as failed."""
    smoothing_neighbours: Count = 32
    """A luminous particle's smoothing length is its distance to this neighbour."""
    variants: dict[str, dict[str, Any]] = {}
    """Kinds of encounter that share the library, by name: for each, the keys of this section that
    it has otherwise, as in ``dwarf: {mass_ratio: 10}``. Names of encounters begin with it, and
    snapshots count on from one variant to the next."""

    def kinds(self) -> dict[str, "Simulate"]:
        """Return the settings of each variant by its name; of the section itself without any."""
        return {name: self._variant(name) for name in self.variants} or {"": self}

    def _variant(self, name: str) -> "Simulate":
        values = self.model_dump(exclude={"variants"})
        return Simulate.model_validate(_merged(values, self.variants[name]))

    @model_validator(mode="after")
    def _check(self) -> "Simulate":
        for name, changes in self.variants.items():
            if not re.fullmatch(r"[A-Za-z0-9_]+", name):
                raise ValueError(f"variants.{name}: only letters, digits and _ make its name")
            for key in ("variants", "first_snapshot_id"):
                if key in changes:
                    raise ValueError(f"variants.{name}.{key}: is the same for all")
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
                    f"(there are: {', '.join(self.galaxies)})"
                )
        if self.orbit.start_separation_kpc <= 2 * self.orbit.pericentre_kpc:
            raise ValueError("orbit.start_separation_kpc must exceed twice orbit.pericentre_kpc")
        if self.snapshots.stop_myr < self.snapshots.start_myr:
            raise ValueError("snapshots.stop_myr is before snapshots.start_myr")
        count = (self.snapshots.stop_myr - self.snapshots.start_myr) / self.snapshots.step_myr
        if count > MAX_SNAPSHOTS:
            raise ValueError(f"snapshots: more than {MAX_SNAPSHOTS} an encounter")
        for key in ("start_myr", "step_myr"):
            steps = getattr(self.snapshots, key) / self.step_myr
            if abs(steps - round(steps)) > 1e-9:
                raise ValueError(
                    f"snapshots.{key} must be a multiple of step_myr, {self.step_myr:g}"
                )
        for key in ("spins", "inclinations2_deg", "realisations"):
            values = getattr(self, key)
            if not values or len(set(values)) != len(values):
                raise ValueError(f"{key}: give at least one value and none twice")
        return self


def _merged(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Return nested values with changes; what a change does not name stays."""
    merged = dict(values)
    for key, value in changes.items():
        both = isinstance(value, dict) and isinstance(values.get(key), dict)
        merged[key] = _merged(values[key], value) if both else value
    return merged


# --- the views ------------------------------------------------------------------------------------

IMAGE_COLUMNS = ("file", "simulation", "snapshot_id", "time_myr")
"""Columns of a table of images besides its labels; all but the first may be left out."""


class Render(Section):
    """Options of a preview picture; the names are those of the service."""

    nbins: Annotated[int, Field(ge=16, le=2048)] = 400
    """Width and height in pixels."""
    zoom: Annotated[float, Field(ge=1e-3, le=1e3)] = 6.0
    """Pixels per kpc; the service's query carries its inverse."""
    brightness: Annotated[float, Field(ge=-100, le=100)] = 4.0
    """Exposure; on the mirror each step doubles it, and 4 suits these encounters."""
    xc_kpc: Annotated[float, Field(ge=-1e4, le=1e4)] = 0.0
    """Centre of the picture in its own plane, to the right."""
    yc_kpc: Annotated[float, Field(ge=-1e4, le=1e4)] = 0.0
    """The same, upwards."""
    gas: bool = True
    """Whether gas is drawn."""
    stars: bool = True
    """Whether stars are drawn."""
    halo: bool = False
    """Whether dark matter is drawn; the mirror draws none."""
    quantity: Annotated[int, Field(ge=0, le=100)] = 0
    """0: surface density."""


class Angles(Section):
    """Equally spaced angles, both ends included where the step reaches them."""

    start: Real
    """First angle, degrees."""
    stop: Real
    """Last angle, degrees."""
    step: Annotated[float, Field(ge=1e-3, le=1e9)]
    """Interval, degrees; a thousandth moves nothing in a picture by as much as a pixel."""

    @property
    def count(self) -> int:
        """Number of angles."""
        return _count(self.start, self.stop, self.step)

    def at(self, index: int) -> float:
        """Return one of the angles, degrees."""
        return self.start + index * self.step

    def values(self) -> NDArray[np.float64]:
        """Return the angles, degrees."""
        return grid(self.start, self.stop, self.step)

    @model_validator(mode="after")
    def _check(self) -> "Angles":
        if self.stop < self.start:
            raise ValueError("stop is below start")
        return self


class ViewGrid(Section):
    """Directions to look from; the paper's quarter sphere in steps of one degree by default."""

    theta_deg: Angles = Angles(start=0, stop=90, step=1)
    """Viewing angle: line of sight to the normal of the orbital plane."""
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
    """The service's number of it."""
    time_myr: Real
    """Time since pericentre."""


class Run(Section):
    """One encounter of the catalogue with the snapshots to look at."""

    spin: Spin
    """Whether the first disc turns with the orbit or against it."""
    inclination_deg: Annotated[float, Field(ge=0.0, le=180.0)]
    """Relative inclination of the two discs."""
    simulation: Number = 0
    """Which realisation of this encounter it is."""
    pair: str = "gSa-gSb"
    """Galaxy models, kept as a label."""
    orbit: int = 1
    """GalMer's number of the orbit, kept as a label."""
    snapshots: tuple[Snapshot, ...] = ()
    """Snapshots one by one, or leave it out and give first_id, count, first_time_myr, step_myr."""
    first_id: Number | None = None
    """Number of the first of consecutive snapshots."""
    count: Annotated[int, Field(ge=1, le=MAX_SNAPSHOTS)] = 1
    """Number of consecutive snapshots."""
    first_time_myr: Real = 0.0
    """Time of the first of them since pericentre."""
    step_myr: Positive = 50.0
    """Time from one of them to the next, Myr."""
    views: ViewGrid | None = None
    """Directions of this run, where they differ from the catalogue's."""
    labels: dict[str, float] = {}
    """More labels by name (mass ratio, pericentre ...), for `parameters` to choose from."""

    @model_validator(mode="after")
    def _check(self) -> "Run":
        if bool(self.snapshots) == (self.first_id is not None):
            raise ValueError("give either snapshots or first_id")
        if self.first_id is not None and self.first_id + self.count > 2**31:
            raise ValueError("first_id + count: a snapshot's number must stay below 2**31")
        if clash := set(self.labels) & set(NAMES):
            raise ValueError(f"labels: {', '.join(sorted(clash))} cannot be given again")
        return self

    def snapshot_ids(self) -> NDArray[np.int64]:
        """Return the snapshots' numbers, however they were given."""
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
    """Pictures that are already there, and the table of their labels (docs/format.md)."""

    table: Path
    """CSV file, relative to the catalogue's own place; its pictures lie beside or below it."""
    sha256: Annotated[str, Field(pattern="^([0-9a-f]{64})?$")] = ""
    """The table's checksum. Leave it out: it is taken when the configuration is read, so that a
    stage can tell that the table was changed since."""
    labels: tuple[str, ...] = ()
    """Columns that are labels besides the four of every table."""

    @model_validator(mode="after")
    def _check(self) -> "Images":
        if clash := set(self.labels) & {*NAMES, *IMAGE_COLUMNS}:
            raise ValueError(f"labels: {', '.join(sorted(clash))} cannot be given again")
        if len(set(self.labels)) != len(self.labels):
            raise ValueError("labels: give none twice")
        return self


class Catalogue(Section):
    """What to fetch: every view of every snapshot of every run; or what to import: `images`."""

    render: Render = Render()
    views: ViewGrid = ViewGrid()
    runs: tuple[Run, ...] = ()
    allow_equivalent_views: bool = False
    """Accept (theta, phi) together with (-theta, phi +- 180): one picture rolled by 180 deg."""
    images: Images | None = None
    """Pictures from a folder, in place of runs and views; `render.nbins` is their size."""

    @property
    def label_names(self) -> tuple[str, ...]:
        """Names of the labels that every view carries besides the four of `parameters`."""
        return self.images.labels if self.images else tuple(self.runs[0].labels)

    @model_validator(mode="after")
    def _check(self) -> "Catalogue":
        if self.images:
            if self.runs or self.views != ViewGrid() or self.allow_equivalent_views:
                raise ValueError("images: they bring their views; leave out runs and views")
            return self
        if not self.runs:
            raise ValueError("runs: the catalogue is empty")
        total = sum(
            run.count if run.first_id is not None else len(run.snapshots) for run in self.runs
        )
        if total > MAX_SNAPSHOTS:
            raise ValueError(f"runs: {total} snapshots, more than {MAX_SNAPSHOTS}; divide it")
        ids, times = np.unique(
            np.concatenate([run.snapshot_ids() for run in self.runs]), return_counts=True
        )
        if (times > 1).any():
            raise ValueError(f"runs: snapshot {ids[times > 1][0]} is listed more than once")
        if len({frozenset(run.labels) for run in self.runs}) > 1:
            raise ValueError("runs: every run must carry the same extra labels")
        if not self.allow_equivalent_views:
            for views in {run.views or self.views for run in self.runs}:
                _refuse_equivalent_views(views)
        return self


def _refuse_equivalent_views(views: ViewGrid) -> None:
    """Raise ValueError where two directions of the grid give one picture."""
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
        f"views: theta {twice[0]:g}, phi {twice[1]:g} shows what another of the grid "
        "shows (phi wraps at 360, and (theta, phi) is (-theta, phi +- 180)); narrow "
        "the range or set allow_equivalent_views: true"
    )


# --- the data -------------------------------------------------------------------------------------


POLITE_RATE_PER_S = 2.0
"""Requests a second that an old CGI host can be asked for days; the paper's grid takes 18 hours."""


class Scrape(Section):
    """Fetching previews."""

    source: str = "mirror"
    """`mirror` renders `library` on this node; else the service's address, without the path."""
    rate_per_s: Positive | None = None
    """Requests started a second, over all ranks and slices; null: no budget. Where it is not given,
    an address gets 2, and the mirror, which is our own process, no budget."""
    connections: Annotated[int, Field(ge=1, le=1024)] = 8
    """Requests at once, over all ranks and slices."""
    timeout_s: Positive = 60.0
    """Seconds that a whole answer may take before it is asked for again; also the longest pause."""
    attempts: Count = 5
    """Tries per view before it counts as failed."""
    backoff_s: Positive = 0.5
    """Pause before a view's second try, and while the host refuses; it doubles each time."""
    time_limit_s: Positive | None = None
    """Seconds after which a job leaves with exit code 75, to be run again; null: none."""
    allow_duplicates: bool = False
    """Accept byte for byte the same picture for several views. By default it counts as an error's,
    and none of these views as fetched."""
    contact: Annotated[str, Field(pattern=r"^[ -~]*$")] = ""
    """Address named in User-Agent, so that an archive's keeper can write to you."""
    views_per_shard: Count = 1024
    """Responses in a raw shard."""

    @model_validator(mode="before")
    @classmethod
    def _be_polite(cls, values: Any) -> Any:
        """Set the rate that an address gets, so that config.yaml shows it."""
        if isinstance(values, dict) and values.get("source", "mirror") != "mirror":
            return {"rate_per_s": POLITE_RATE_PER_S} | values
        return values

    @field_validator("source")
    @classmethod
    def _check_source(cls, value: str) -> str:
        if value != "mirror" and not value.startswith(("http://", "https://")):
            raise ValueError("give 'mirror' or an address that starts with http:// or https://")
        return value


class Augment(Section):
    """Ranges of the offline copies' changes; each copy draws its own (paper, section 2)."""

    rotation_deg: Annotated[float, Field(ge=0.0, le=180.0)] = 10.0
    """Roll of the picture, drawn from -rotation_deg..rotation_deg."""
    intensity: Fraction = 0.2
    """Relative change of brightness, drawn from 1 - intensity..1 + intensity."""
    blur_px: Annotated[float, Field(ge=0.0)] = 1.0
    """Gaussian blur's sigma in pixels of the final picture, drawn from 0..blur_px."""
    seed: Seed = 0
    """Of the copies' changes."""


class Preprocess(Section):
    """From fetched pictures to training shards."""

    image_size: Annotated[int, Field(ge=32, le=2048)] = 64
    """Width and height of a training image in pixels."""
    channels: Literal[1, 3] = 3
    """1 (grey) or 3 (RGB)."""
    copies: Annotated[int, Field(ge=0)] = 0
    """Augmented copies of each original; only training has them, except under split random."""
    augment: Augment = Augment()
    jpeg_quality: Annotated[int, Field(ge=1, le=100)] | None = None
    """Send images through JPEG of this quality, as the paper did; none by default."""
    samples_per_shard: Count = 8192
    """Images in a training shard."""
    compression: Literal["none", "gzip", "blosc-lz4", "blosc-zstd"] = "none"
    """Compress each image by itself; blosc needs hdf5plugin. Compressed shards take less room and
    are read many times slower."""
    images_in_memory: Count = 128
    """Images that a rank holds at once; beside them it holds some 20 bytes a sample."""


SIMULATION_KEYS = ("training_simulations", "validation_simulations", "test_simulations")
"""Keys of `Split` that list realisations."""


class Split(Section):
    """How samples are divided into training, validation and test (docs/format.md)."""

    kind: Literal["simulation", "blocked", "inclination", "random"] = "simulation"
    """simulation: realisations of their own; blocked: tiles of neighbouring views; inclination: one
    inclination held out; random: the paper's, which leaks neighbouring views."""
    validation_fraction: Fraction = 0.1
    """Share of the views for validation, where no whole realisations serve."""
    test_fraction: Fraction = 0.1
    """May be 0 under random: validation then serves as test too, as in the paper's regression."""
    tile_deg: Positive = 15.0
    """Side of a tile of views, degrees, and width of the guard band around a held-out region, which
    is in no split."""
    validation_simulations: tuple[int, ...] | None = None
    """Realisations for validation; by default the last but one where there are three or more, else
    blocked tiles of the first."""
    test_simulations: tuple[int, ...] | None = None
    """Realisations for test; by default the last."""
    training_simulations: tuple[int, ...] | None = None
    """Realisations for training; by default all others. Those named nowhere are in no split."""
    training_fraction: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    """Share of the training views to train on, drawn at random; a larger share holds the smaller
    ones. The others are in no split. By default all are trained on."""
    test_inclination_deg: float | None = None
    """The inclination that `inclination` holds out."""
    seed: Seed = 0
    """Of the tiles or samples that are drawn."""

    def shared(self) -> dict[str, Any]:
        """Return the keys that go with every kind."""
        own = {"kind", "test_inclination_deg", *SIMULATION_KEYS}
        return self.model_dump(mode="json", exclude=own)

    @model_validator(mode="after")
    def _check(self) -> "Split":
        if self.validation_fraction + self.test_fraction >= 1:
            raise ValueError("validation_fraction + test_fraction must stay below 1")
        if (self.kind == "inclination") != (self.test_inclination_deg is not None):
            raise ValueError("test_inclination_deg goes with kind: inclination, and only with it")
        given = {key: set(getattr(self, key) or ()) for key in SIMULATION_KEYS}
        if self.kind != "simulation" and any(given.values()):
            raise ValueError(f"{', '.join(SIMULATION_KEYS)} go with kind: simulation")
        for one, other in itertools.combinations(SIMULATION_KEYS, 2):
            if given[one] & given[other]:
                raise ValueError(f"a realisation stands in {one} and {other}")
        return self


class Data(Section):
    """Reading of training shards."""

    memory_gb: Annotated[float, Field(ge=0.0)] = 8.0
    """A split up to this size is read once, in order, into memory that the node's ranks share; of a
    larger one each batch is read from the shards."""
    stage: bool = False
    """Copy the shards of a split larger than memory_gb to node-local storage first, once a node."""
    stage_dir: Annotated[Path, EXPANDED] | None = None
    """Folder on node-local storage; by default TMPDIR, or /tmp where that is not set. Later jobs on
    the node use the same copy again, so name a folder that outlives the job where there is one."""
    threads: Count = 2
    """Threads a rank that read ahead; more help on a parallel file system, not on a local disk."""
    ahead_mb: Positive = 64.0
    """Images that a rank reads ahead; at least a batch a thread."""


# --- the network ----------------------------------------------------------------------------------


class Model(Section):
    """The network."""

    architecture: Literal["resnet50", "table1_cnn"] = "resnet50"
    task: Literal["regression", "classification"] = "regression"
    head: Literal["flatten", "gap"] = "flatten"
    """flatten: Flatten and Dense, the authors' head; gap: global average pooling before it."""
    class_width_deg: Positive = 5.0
    """Width of the azimuth's and viewing angle's classes."""
    spin: Literal["number", "probability"] = "number"
    """number: a regression between 0 and 1; probability: that of retrograde, by a sigmoid and
    binary cross-entropy."""
    sine_cosine: tuple[str, ...] = ()
    """Angles that regression learns as sine and cosine, for which -180 and 180 deg are one."""
    dropout: Fraction = 0.0
    """Share of the head's inputs that training drops."""
    batchnorm_momentum: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.9
    """Keras's own 0.99 leaves short runs with the statistics of their first steps."""


class Schedule(Section):
    """Learning rate against step."""

    kind: Literal["constant", "cosine"] = "cosine"
    warmup_steps: Annotated[int, Field(ge=0)] = 100
    """Steps of linear warm-up before either kind."""
    batch_scaling: Literal["none", "linear", "sqrt"] = "none"
    """How the peak rate grows with the global batch over reference_batch: linear for sgd (Goyal et
    al. 2017, arXiv:1706.02677), sqrt for adam (Malladi et al. 2022, arXiv:2205.10287)."""
    reference_batch: Count = 32
    """Global batch for which training.learning_rate is given."""


class Optimizer(Section):
    """What turns gradients into steps."""

    kind: Literal["adam", "adamw", "sgd"] = "adam"
    """adam: the paper's."""
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.0
    """Share of the weights that an adamw step takes away, times the learning rate; biases and batch
    normalisation keep theirs."""
    momentum: Fraction = 0.0
    """Share of the last step that an sgd step keeps."""
    clip_norm: Positive | None = None
    """Largest norm of the gradient, all weights together and summed over ranks; a larger one is
    scaled down to it."""

    @model_validator(mode="after")
    def _check(self) -> "Optimizer":
        if (self.kind == "adamw") != (self.weight_decay > 0):
            raise ValueError("weight_decay goes with kind: adamw, and adamw needs one above 0")
        if self.momentum and self.kind != "sgd":
            raise ValueError("momentum goes with kind: sgd")
        return self


class OnlineAugment(Section):
    """Ranges of the changes that training makes to each image anew in each epoch; 0: none."""

    rotation_deg: Annotated[float, Field(ge=0.0, le=180.0)] = 0.0
    """Roll of the picture, drawn from -rotation_deg..rotation_deg. What is rolled is cut to the
    largest circle: corners would tell the roll."""
    mirror: bool = False
    """Mirror every other picture. A mirrored one is the view from the opposite side, so azimuth and
    viewing angle cannot be among the parameters then."""
    zoom: Fraction = 0.0
    """Relative change of scale, drawn from 1 - zoom..1 + zoom."""
    centre_px: Annotated[float, Field(ge=0.0)] = 0.0
    """Shift to the right and downwards, each drawn from -centre_px..centre_px."""
    intensity: Fraction = 0.0
    """Relative change of brightness, drawn from 1 - intensity..1 + intensity."""
    neighbours: Annotated[int, Field(ge=0, le=32)] = 0
    """Galaxies before or behind the pair, their number drawn from 0..neighbours."""
    stars: Annotated[int, Field(ge=0, le=32)] = 0
    """Foreground stars, their number drawn from 0..stars."""
    sky: Annotated[float, Field(ge=0.0, le=255.0)] = 0.0
    """Brightness of the sky in grey levels, drawn from 0..sky; it differs by up to half of that
    from the centre to each edge."""
    psf_fwhm_px: Annotated[float, Field(ge=0.0, le=8.0)] = 0.0
    """Full width at half maximum of a telescope's image of a star, drawn from 0..psf_fwhm_px."""
    blur_px: Annotated[float, Field(ge=0.0, le=8.0)] = 0.0
    """Gaussian blur's sigma in pixels, drawn from 0..blur_px."""
    noise: Annotated[float, Field(ge=0.0)] = 0.0
    """Gaussian noise's sigma in grey levels of 0..255, drawn from 0..noise."""


class Training(Section):
    """Horovod training."""

    epochs: Count = 50
    """Passes over the training images."""
    batch_size: Count = 32
    """Images per step over ALL ranks."""
    loss: Literal["mae", "mse", "huber", "binary_crossentropy", "categorical_crossentropy"] = "mae"
    """mae, mse, huber: regression; binary_crossentropy: classification by a sigmoid a class, the
    paper's; categorical_crossentropy: classification by a softmax a parameter."""
    loss_weights: dict[str, Positive] = {}
    """Weight of a parameter's loss by name; 1 where it is not named."""
    optimizer: Optimizer = Optimizer()
    learning_rate: Positive = 1e-3
    """Peak rate at a global batch of schedule.reference_batch."""
    schedule: Schedule = Schedule()
    augment: OnlineAugment = OnlineAugment()
    standardise_targets: bool = True
    """Train on targets of mean 0, variance 1 (the model undoes it); raw degrees drown the spin."""
    ema_momentum: Fraction = 0.0
    """Decay of the weights' exponential moving average that is evaluated and exported; 0: none."""
    statistics_batches: Annotated[int, Field(ge=0)] = 128
    """Training batches that re-estimate batch normalisation's statistics before each evaluation,
    at a cost that grows with batch_size; 0 takes the ranks' averaged moving statistics."""
    freeze_batchnorm_epochs: Annotated[int, Field(ge=0)] = 0
    """Last epochs in which batch normalisation keeps the statistics estimated at their beginning,
    as in evaluation, so that the weights adapt to what they are evaluated with."""
    sync_batchnorm: bool = False
    """Batch normalisation over the images of all ranks, for small shares; it costs an all-reduce a
    layer, and model.keras holds plain layers."""
    micro_batch: Count | None = None
    """Images that pass through the network at once on a rank; a larger share goes through in pieces
    and their gradients are added up, so that a large batch_size fits few GPUs."""
    precision: Literal["float32", "mixed_bfloat16", "mixed_float16"] = "float32"
    """What layers compute in; weights, gradients and model.keras are float32."""
    compression: Literal["none", "fp16"] = "none"
    """What gradients are sent in. With fp16 here or in precision the loss is scaled, so that small
    gradients do not vanish, and a step whose gradients overflow is left out."""
    xla: bool = False
    """Compile forward and backward with XLA; on a GPU only, for it is slower on CPUs."""
    best_metric: str | None = None
    """A validation_ column of metrics.csv; the epoch that is best by it becomes model.keras: errors
    and losses are best small, r2 and accuracies large. By default the last epoch does."""
    patience: Count | None = None
    """Epochs without a better best_metric after which training stops; by default none do."""
    evaluation_batch: Count = 64
    """Images a rank predicts at once."""
    time_limit_s: Positive | None = None
    """Seconds after which the command saves its work and leaves with exit code 75."""
    checkpoint_every_steps: Count | None = None
    """Checkpoint this often beside the last step and the end of each epoch."""
    keep_checkpoints: Count = 2
    """Newest checkpoints that stay; that of the best epoch stays beside them."""
    deterministic: bool = False
    """Bit-identical repeats on CPU; slower on GPU."""
    threads: Count | None = None
    """TensorFlow's threads a rank; by default the CPUs that the launcher gave it, or its share of
    those that it was not given alone."""
    stall_limit_s: Positive = 600.0
    """Seconds after which a rank that does not answer ends the job; must exceed first-step tracing
    and work that only rank 0 does."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0  # no more is taken by NumPy's own generator
    """Of weights, order, augmentation and dropout; below 2**32."""

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
            raise ValueError("sync_batchnorm cannot go with xla, which compiles no all-reduce")
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
    """Sky-like versions of each training image among which sky-like images are looked up."""


class SkyLike(OnlineAugment):
    """Ranges of what makes a test image sky-like; the keys are those of training.augment."""

    rotation_deg: Annotated[float, Field(ge=0.0, le=180.0)] = 180.0
    """Any roll by default: on the sky nothing tells how a camera was held against the orbit."""
    psf_fwhm_px: Annotated[float, Field(ge=0.0, le=8.0)] = 2.0
    """Full width at half maximum of a telescope's image of a star, drawn from 0..psf_fwhm_px."""
    noise: Annotated[float, Field(ge=0.0)] = 8.0
    """Gaussian noise's sigma in grey levels of 0..255, drawn from 0..noise."""


class Evaluation(Section):
    """Evaluation of the finished model on images that training never saw."""

    sky: SkyLike | None = SkyLike()
    """Evaluate all once more on sky-like images, each with changes of its own; null: do not."""
    lookup: Lookup = Lookup()
    bin_deg: Positive = 15.0
    """Width of the bins of viewing angle and azimuth for which errors are listed."""
    bootstrap: Count = 1000
    """Resamples of whole encounters (realisation x configuration) behind the 95 % intervals."""
    levels: tuple[Annotated[float, Field(gt=0.0, lt=1.0)], ...] = (0.68, 0.9)
    """Shares of the true values that the intervals around predictions are to hold, increasing."""
    halvings: Count = 100
    """Random halvings of the encounters that measure what these intervals do hold."""
    montage_rows: Count = 4
    """Images down in the montage."""
    montage_columns: Count = 6
    """Images across."""
    seed: Seed = 0
    """Of the sky-like changes, the resamples and the halvings."""

    @field_validator("levels")
    @classmethod
    def _check_levels(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if not value or any(wider <= level for level, wider in itertools.pairwise(value)):
            raise ValueError("give one or more, each above the one before it")
        return value


class Studies(Section):
    """The points of `galmerhpc study`, each a run of its own."""

    batch_sizes: tuple[Count, ...] = (8, 16, 25, 32, 64, 128)
    """`batch-size`: global batches."""
    training_fractions: tuple[Annotated[float, Field(gt=0.0, le=1.0)], ...] = (
        0.0625, 0.125, 0.25, 0.5, 1.0,
    )  # fmt: skip
    """`data-size`: shares of the training views."""
    image_sizes: tuple[Annotated[int, Field(ge=32, le=2048)], ...] = (64, 96, 128)
    """`resolution`: pixels of a side."""
    augment: OnlineAugment = OnlineAugment(
        rotation_deg=180, intensity=0.2, psf_fwhm_px=2, blur_px=1, noise=4
    )
    """`augmentation`: the operations and their strengths; one that is left at its default is not
    looked at."""
    dropout: tuple[Fraction, ...] = (0.0, 0.1, 0.3, 0.5)
    """`dropout`: shares of the head's inputs."""
    class_widths_deg: tuple[Positive, ...] = (5.0, 10.0, 15.0, 30.0, 45.0)
    """`class-width`: widths of the azimuth's and viewing angle's classes."""
    realisations: tuple[Count, ...] = (1, 4, 12)
    """`realisations`: numbers of realisations to train on."""
    particle_fractions: tuple[Annotated[float, Field(gt=0.0)], ...] = (0.1, 0.3, 1.0)
    """`particles`: shares of `simulate.particles`."""
    inclinations_deg: tuple[float, ...] = (45.0, 75.0)
    """`inclination`: values that are left out of training, one at a time."""

    @model_validator(mode="after")
    def _check(self) -> "Studies":
        for key in type(self).model_fields:
            values = getattr(self, key)
            if isinstance(values, tuple) and (not values or len(set(values)) != len(values)):
                raise ValueError(f"{key}: give at least one value and none twice")
        return self


class Config(Section):
    """A whole run."""

    run_dir: Annotated[Path, EXPANDED]
    """Folder of everything the run makes; `runs/<configuration's file name>` by default."""
    library: Annotated[str, EXPANDED] = "shipped"
    """Snapshot library, written by `simulate`, rendered by the mirror; `shipped`: the package's. It
    is relative to the current folder, as run_dir is."""
    parameters: tuple[str, ...] = NAMES
    """Labels that the network estimates, in this order."""
    simulate: Simulate = Simulate()
    catalogue: Catalogue | None = None
    """A catalogue, or the path of one, relative to the configuration file."""
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
            raise ValueError("parameters: give at least one label and none twice")
        extra = set(self.catalogue.label_names) if self.catalogue else set()
        for name in self.parameters:
            if name not in NAMES and self.catalogue and name not in extra:
                raise ValueError(
                    f"parameters: no label {name!r} "
                    f"(there are: {', '.join((*NAMES, *sorted(extra)))})"
                )
        if self.scrape.source == "mirror" and self.catalogue and not self.catalogue.images:
            for key in ("halo", "quantity"):
                if getattr(self.catalogue.render, key):
                    raise ValueError(
                        f"catalogue.render.{key}: the mirror draws luminous particles' surface "
                        "density only; leave it out, or set scrape.source to an address"
                    )
        if unknown := set(self.training.loss_weights) - set(self.parameters):
            raise ValueError(f"training.loss_weights: {min(unknown)} is not among the parameters")
        for name in (AZIMUTH.name, VIEWING_ANGLE.name):
            if self.training.augment.mirror and name in self.parameters:
                raise ValueError(
                    f"training.augment.mirror: a mirrored picture shows another {name}; leave "
                    f"{AZIMUTH.name} and {VIEWING_ANGLE.name} out of the parameters, or mirror out"
                )
        for name in self.model.sine_cosine:
            if name not in self.parameters or named(name).unit != "deg":
                raise ValueError(f"model.sine_cosine: {name} is not an angle of the parameters")
        if self.model.spin == "probability" and SPIN.name not in self.parameters:
            raise ValueError("model.spin: probability needs spin among the parameters")
        classification = self.model.task == "classification"
        if classification:
            self._check_classes()
        self._check_best_metric(classification)
        if ("crossentropy" in self.training.loss) != classification:
            raise ValueError(
                f"training.loss: {self.training.loss} does not go with model.task: "
                f"{self.model.task} (regression has mae, mse and huber, classification "
                "binary_crossentropy and categorical_crossentropy)"
            )
        return self

    def _check_best_metric(self, classification: bool) -> None:
        """Raise ValueError where metrics.csv will have no such column."""
        answers = ["accuracy", "all_accuracy", "binary_accuracy"] if classification else []
        each = [
            f"{k}_{name}" for name in self.parameters for k in ("mae", "mse", "r2", *answers[:1])
        ]
        names = [f"validation_{k}" for k in ("loss", "mae", "mse", "r2", *answers, *each)]
        if self.training.best_metric not in (None, *names):
            raise ValueError(
                f"training.best_metric: no column {self.training.best_metric} "
                f"(there are: {', '.join(names)})"
            )

    def _check_classes(self) -> None:
        """Raise ValueError where a label has no class; `catalogue.require_classes` sees tables."""
        if self.model.sine_cosine or self.model.spin != "number":
            raise ValueError("model: sine_cosine and spin go with task: regression")
        for name in self.parameters:
            if name not in NAMES:
                raise ValueError(
                    f"model.task: classification has no classes for {name} "
                    f"(it has them for {', '.join(NAMES)})"
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

        A stage depends on its own sections and on all that the stages above it depend on; how
        fast or with how many connections something is done is no part of it.
        """
        flat = flatten(self.model_dump(mode="json"))
        stages = get_args(Stage)
        wanted = [key for s in stages[: stages.index(stage) + 1] for key in _STAGE_KEYS[s]]
        # A table of images may move; its checksum says what is in it.
        flat.pop("catalogue.images.table", None)
        return {
            k: v for k, v in flat.items() if any(k == w or k.startswith(w + ".") for w in wanted)
        }


def _refuse_without_class(parameter: Parameter, values: Sequence[float]) -> None:
    """Raise ValueError where a value of the catalogue is in none of the parameter's classes."""
    for value in values:
        if not parameter.in_class(value):
            raise ValueError(
                f"model.task: classification has no class for {parameter.name} {value:g} of "
                f"the catalogue (it has them for {parameter.span})"
            )


RESOLVED = "config.yaml"
"""The run folder's copy of the configuration: all defaults, overrides and the catalogue in it."""

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
    """Return every key that has a default, with that default, as `Config.inputs` has them."""
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
        so it is the result's ``run_dir``. A catalogue named in the file by path is read too and
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
    """Read a catalogue's own file; None where the file is a configuration (or no file at all).

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
    """Return a configuration with other values of some keys.

    Parameters
    ----------
    config : Config
        Stays as it is.
    changes : dict
        Values by key, as in ``{"training.epochs": 3}``; a whole section may be replaced too.
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
    """Make the configuration of a file, whose catalogue may stand in a file of its own."""
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
    """Make the path of a table of images absolute, and take the table's checksum."""
    images = catalogue.get("images") if isinstance(catalogue, dict) else None
    if not isinstance(images, dict) or not isinstance(images.get("table"), str):
        return  # none, or a fault that validation names
    table = place / images["table"]
    if "sha256" not in images:
        images["sha256"] = hashlib.sha256(tables.read_bytes(table)).hexdigest()
    images["table"] = str(table.absolute())


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{path}: cannot be read: {getattr(error, 'strerror', None) or 'not a text file'}"
        ) from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
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
            raise InputError(f"{override}: {parent} holds no keys of its own")
    try:
        values[last] = yaml.safe_load(text)
    except yaml.YAMLError:
        raise InputError(f"{override}: the value is not valid YAML") from None


# A few lines of YAML can stand for a key or value of any length, or hold any number of faults.
_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother = 2, 80, 80
_LONGEST_LINE, _MOST_FAULTS = 600, 20


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST_LINE else f"{text[: _LONGEST_LINE // 2]} ... {text[-200:]}"


def _explain(error: ValidationError) -> Iterator[str]:
    """Turn pydantic's report into one line a fault: the key, what is wrong, what is allowed."""
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
    """Return what makes a configuration of another one, as `load` takes overrides."""
    values, known = (one.model_dump(mode="json") for one in (config, base))
    return [f"{key}={json.dumps(value)}" for key, value in _changed(values, known)]


def _changed(
    values: dict[str, Any], known: dict[str, Any], prefix: str = ""
) -> Iterator[tuple[str, Any]]:
    """Yield the dotted keys with other values; a mapping as one where keys of it are gone."""
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
