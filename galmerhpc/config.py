"""The configuration: one YAML file as typed, frozen models. Every default of the package is here.

`load` reads a file and ``key=value`` overrides; an unknown key, a wrong value or an impossible
combination is an `InputError` that names the key.
"""

import difflib
import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import numpy as np
import yaml
from numpy.typing import NDArray
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from galmerhpc.errors import InputError
from galmerhpc.parameters import NAMES, PARAMETERS

Spin = Literal["prograde", "retrograde"]
Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
Positive = Annotated[float, Field(gt=0.0)]
Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0)]


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

    start_myr: float = -100.0
    stop_myr: float = 300.0
    step_myr: Positive = 10.0

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
    inclination1_deg: float = 0.0
    """Tilt i1 of disc 1 against the orbital plane about the line of pericentre."""
    inclinations2_deg: tuple[float, ...] = (0.0, 45.0, 75.0, 90.0)
    """Tilts i2 of disc 2; the pair's relative inclination is i2 - i1."""
    realisations: tuple[Annotated[int, Field(ge=0)], ...] = (0, 1)
    """Random seeds of the particles: each makes the same encounter of other particles."""
    particles: Particles = Particles()
    snapshots: SnapshotTimes = SnapshotTimes()
    first_snapshot_id: Annotated[int, Field(ge=0)] = 27399
    """Number of the first snapshot; they count on by time, inclination, spin, realisation."""
    step_myr: Positive = 1.0
    """Leapfrog step."""
    softening_kpc: Positive = 0.35
    """Plummer-equivalent gravitational softening."""
    opening_angle: Positive = 0.7
    """Barnes-Hut opening angle of the quadrupole tree."""
    max_energy_drift: Positive = 0.005
    """Relative change of the total energy above which an encounter counts as failed."""
    smoothing_neighbours: Count = 32
    """A luminous particle's smoothing length is its distance to this neighbour."""

    @model_validator(mode="after")
    def _check(self) -> "Simulate":
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


# --- the views ------------------------------------------------------------------------------------


class Render(Section):
    """Options of a preview picture; the names are those of the service."""

    nbins: Annotated[int, Field(ge=16, le=2048)] = 400
    """Width and height in pixels."""
    zoom: Positive = 6.0
    """Pixels per kpc; the service's query carries its inverse."""
    brightness: float = 4.0
    xc_kpc: float = 0.0
    yc_kpc: float = 0.0
    gas: bool = True
    stars: bool = True
    halo: bool = False
    quantity: Annotated[int, Field(ge=0)] = 0
    """0: surface density."""


class Angles(Section):
    """Equally spaced angles, both ends included where the step reaches them."""

    start: float
    stop: float
    step: Positive

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

    @model_validator(mode="after")
    def _check(self) -> "ViewGrid":
        if self.theta_deg.start < -90 or self.theta_deg.stop > 180:
            raise ValueError("theta_deg must lie in -90..180")
        if self.phi_deg.start < -180 or self.phi_deg.stop > 180:
            raise ValueError("phi_deg must lie in -180..180")
        return self


class Snapshot(Section):
    """One snapshot of a run."""

    id: Annotated[int, Field(ge=0)]
    """The service's number of it."""
    time_myr: float
    """Time since pericentre."""


class Run(Section):
    """One encounter of the catalogue with the snapshots to look at."""

    spin: Spin
    inclination_deg: Annotated[float, Field(ge=0.0, le=180.0)]
    """Relative inclination of the two discs."""
    simulation: Annotated[int, Field(ge=0)] = 0
    """Which realisation of this encounter it is."""
    pair: str = "gSa-gSb"
    orbit: int = 1
    snapshots: tuple[Snapshot, ...] = ()
    """Snapshots one by one, or leave it out and give first_id, count, first_time_myr, step_myr."""
    first_id: Annotated[int, Field(ge=0)] | None = None
    """Number of the first of consecutive snapshots."""
    count: Count = 1
    first_time_myr: float = 0.0
    step_myr: Positive = 50.0
    views: ViewGrid | None = None
    """Directions of this run, where they differ from the catalogue's."""
    labels: dict[str, float] = {}
    """More labels by name (mass ratio, pericentre ...), for `parameters` to choose from."""

    @model_validator(mode="after")
    def _check(self) -> "Run":
        if bool(self.snapshots) == (self.first_id is not None):
            raise ValueError("give either snapshots or first_id")
        if clash := set(self.labels) & set(NAMES):
            raise ValueError(f"labels: {', '.join(sorted(clash))} cannot be given again")
        return self

    def all_snapshots(self) -> tuple[Snapshot, ...]:
        """Return the snapshots, however they were given."""
        if self.first_id is None:
            return self.snapshots
        return tuple(
            Snapshot(id=self.first_id + k, time_myr=self.first_time_myr + k * self.step_myr)
            for k in range(self.count)
        )


class Catalogue(Section):
    """What to fetch: every view of every snapshot of every run."""

    render: Render = Render()
    views: ViewGrid = ViewGrid()
    runs: tuple[Run, ...]
    allow_equivalent_views: bool = False
    """Accept (theta, phi) together with (-theta, phi +- 180): one picture rolled by 180 deg."""

    @model_validator(mode="after")
    def _check(self) -> "Catalogue":
        if not self.runs:
            raise ValueError("runs: the catalogue is empty")
        ids = [s.id for run in self.runs for s in run.all_snapshots()]
        if twice := {i for i in ids if ids.count(i) > 1}:
            raise ValueError(f"runs: snapshot {min(twice)} is listed more than once")
        if len({frozenset(run.labels) for run in self.runs}) > 1:
            raise ValueError("runs: every run must carry the same extra labels")
        if not self.allow_equivalent_views:
            for run in self.runs:
                _refuse_equivalent_views(run.views or self.views)
        return self


def _refuse_equivalent_views(views: ViewGrid) -> None:
    """Raise ValueError where two directions of the grid give one picture."""
    seen: set[tuple[float, float]] = set()
    for theta in views.theta_deg.values():
        for phi in views.phi_deg.values():
            same = (theta, phi) if theta >= 0 else (-theta, phi + 180.0)
            key = (round(float(same[0]), 6), round(float(same[1]) % 360.0, 6))
            if key in seen:
                raise ValueError(
                    f"views: theta {theta:g}, phi {phi:g} shows what another of the grid "
                    "shows (phi wraps at 360, and (theta, phi) is (-theta, phi +- 180)); narrow "
                    "the range or set allow_equivalent_views: true"
                )
            seen.add(key)


# --- the data -------------------------------------------------------------------------------------


class Scrape(Section):
    """Fetching previews."""

    source: str = "mirror"
    """`mirror` renders `library` on this node; else the service's address, without the path."""
    connections: Count = 8
    """Requests at once, over all ranks."""
    timeout_s: Positive = 60.0
    """Seconds without an answer after which a request is tried again."""
    attempts: Count = 5
    """Tries per view before it counts as failed."""
    backoff_s: Positive = 0.5
    """Pause before the second try; it doubles each time."""
    contact: Annotated[str, Field(pattern=r"^[ -~]*$")] = ""
    """Address named in User-Agent, so that an archive's keeper can write to you."""
    views_per_shard: Count = 1024

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


class Preprocess(Section):
    """From fetched pictures to training shards."""

    image_size: Annotated[int, Field(ge=32, le=2048)] = 64
    """Width and height of a training image in pixels."""
    channels: Literal[1, 3] = 3
    copies: Annotated[int, Field(ge=0)] = 0
    """Augmented copies of each original; only training has them, except under split random."""
    augment: Augment = Augment()
    jpeg_quality: Annotated[int, Field(ge=1, le=100)] | None = None
    """Send images through JPEG of this quality, as the paper did; none by default."""
    samples_per_shard: Count = 8192
    compression: Literal["none", "gzip", "blosc-lz4", "blosc-zstd"] = "none"
    """Compress each image by itself; blosc needs hdf5plugin. Compressed shards take less room and
    are read many times slower, and no memory map shows them."""
    images_in_memory: Count = 128
    """Images that a rank holds at once; beside them it holds some 20 bytes a sample."""


class Split(Section):
    """How samples are divided into training, validation and test (docs/format.md)."""

    kind: Literal["simulation", "blocked", "inclination", "random"] = "simulation"
    """simulation: realisations of their own; blocked: tiles of neighbouring views; inclination: one
    inclination held out; random: the paper's, which leaks neighbouring views."""
    validation_fraction: Fraction = 0.1
    test_fraction: Fraction = 0.1
    """May be 0 under random: validation then serves as test too, as in the paper's regression."""
    tile_deg: Positive = 15.0
    """Side of a tile of views; a guard band of one tile around a held-out tile is in no split."""
    validation_simulations: tuple[int, ...] | None = None
    """Realisations for validation; by default the last but one where there are three or more, else
    blocked tiles of the first."""
    test_simulations: tuple[int, ...] | None = None
    """Realisations for test; by default the last."""
    test_inclination_deg: float | None = None
    """The inclination that `inclination` holds out."""
    seed: Seed = 0

    @model_validator(mode="after")
    def _check(self) -> "Split":
        if self.validation_fraction + self.test_fraction >= 1:
            raise ValueError("validation_fraction + test_fraction must stay below 1")
        if (self.kind == "inclination") != (self.test_inclination_deg is not None):
            raise ValueError("test_inclination_deg goes with kind: inclination, and only with it")
        if self.kind != "simulation" and (self.validation_simulations or self.test_simulations):
            raise ValueError("validation_simulations and test_simulations go with kind: simulation")
        if set(self.validation_simulations or ()) & set(self.test_simulations or ()):
            raise ValueError("a realisation stands in validation_simulations and test_simulations")
        return self


class Data(Section):
    """Reading of training shards."""

    memory_gb: Annotated[float, Field(ge=0.0)] = 8.0
    """A split up to this size is held in memory once a node; a larger one is memory-mapped."""


# --- the network ----------------------------------------------------------------------------------


class Model(Section):
    """The network."""

    architecture: Literal["resnet50", "table1_cnn"] = "resnet50"
    task: Literal["regression", "classification"] = "regression"
    head: Literal["flatten", "gap"] = "flatten"
    """flatten: Flatten and Dense, the authors' head; gap: global average pooling before it."""
    class_width_deg: Positive = 5.0
    """Width of the azimuth's and viewing angle's classes."""
    dropout: Fraction = 0.0
    """Share of the head's inputs that training drops."""
    batchnorm_momentum: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.9
    """Keras's own 0.99 leaves short runs with the statistics of their first steps."""


class Schedule(Section):
    """Learning rate against step."""

    kind: Literal["constant", "cosine"] = "cosine"
    warmup_steps: Annotated[int, Field(ge=0)] = 100
    """Steps of linear warm-up before either kind."""


class Training(Section):
    """Horovod training."""

    epochs: Count = 50
    batch_size: Count = 32
    """Images per step over ALL ranks."""
    loss: Literal["mae", "mse", "huber"] = "mae"
    learning_rate: Positive = 1e-3
    """Peak rate of Adam."""
    schedule: Schedule = Schedule()
    standardise_targets: bool = True
    """Train on targets of mean 0, variance 1 (the model undoes it); raw degrees drown the spin."""
    ema_momentum: Fraction = 0.0
    """Decay of the weights' exponential moving average that is evaluated and exported; 0: none."""
    statistics_batches: Annotated[int, Field(ge=0)] = 32
    """Training batches that re-estimate batch normalisation's statistics before each evaluation;
    0 takes the ranks' averaged moving statistics."""
    evaluation_batch: Count = 64
    """Images a rank predicts at once."""
    checkpoint_every_steps: Count | None = None
    """Checkpoint this often beside the end of each epoch."""
    keep_checkpoints: Count = 2
    deterministic: bool = False
    """Bit-identical repeats on CPU; slower on GPU."""
    threads: Count | None = None
    """TensorFlow's threads a rank; by default the CPUs of this process over the ranks that share
    them."""
    stall_limit_s: Positive = 600.0
    """Seconds after which a rank that does not answer ends the job; must exceed first-step tracing
    and work that only rank 0 does."""
    seed: Seed = 0


class Lookup(Section):
    """The baseline that every network must beat: nearest neighbours among image thumbnails."""

    thumbnail_px: Count = 16
    components: Count = 40
    """Principal components kept."""
    neighbours: Count = 4


class Evaluation(Section):
    """Evaluation of the finished model on the test split."""

    lookup: Lookup = Lookup()
    montage_rows: Count = 4
    montage_columns: Count = 6


class Config(Section):
    """A whole run."""

    run_dir: Path
    """Folder of everything the run makes; `runs/<configuration's file name>` by default."""
    library: str = "shipped"
    """Snapshot library, written by `simulate`, rendered by the mirror; `shipped`: the package's."""
    parameters: tuple[str, ...] = NAMES
    """Labels that the network estimates, in this order."""
    simulate: Simulate = Simulate()
    catalogue: Catalogue | None = None
    """A catalogue, or the path of one relative to the configuration file."""
    scrape: Scrape = Scrape()
    preprocess: Preprocess = Preprocess()
    split: Split = Split()
    data: Data = Data()
    model: Model = Model()
    training: Training = Training()
    evaluation: Evaluation = Evaluation()

    @model_validator(mode="after")
    def _check(self) -> "Config":
        if not self.parameters or len(set(self.parameters)) != len(self.parameters):
            raise ValueError("parameters: give at least one label and none twice")
        extra = set(self.catalogue.runs[0].labels) if self.catalogue else set()
        for name in self.parameters:
            if name not in NAMES and self.catalogue and name not in extra:
                raise ValueError(
                    f"parameters: no label {name!r} "
                    f"(there are: {', '.join((*NAMES, *sorted(extra)))})"
                )
        if self.model.architecture == "table1_cnn" and self.preprocess.image_size % 32:
            raise ValueError(
                f"model.architecture: table1_cnn halves its images five times, so "
                f"preprocess.image_size must be a multiple of 32, not {self.preprocess.image_size}"
            )
        if self.model.task == "classification":
            if self.parameters != NAMES:
                raise ValueError(
                    f"model.task: classification needs parameters: [{', '.join(NAMES)}]"
                )
            for parameter in PARAMETERS.values():
                parameter.classes(self.model.class_width_deg)
        return self

    def inputs(self, stage: "Stage") -> dict[str, Any]:
        """Return the keys that decide what a stage makes, flat: ``{"preprocess.image_size": 64}``.

        A stage depends on its own sections and on all that the stages above it depend on; how
        fast or with how many connections something is done is no part of it.
        """
        flat = _flatten(self.model_dump(mode="json"))
        stages = get_args(Stage)
        wanted = [key for s in stages[: stages.index(stage) + 1] for key in _STAGE_KEYS[s]]
        return {
            k: v for k, v in flat.items() if any(k == w or k.startswith(w + ".") for w in wanted)
        }


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
                "stall_limit_s",
                "evaluation_batch",
            )
        ),
    ),
    "evaluate": ("evaluation",),
}


def grid(start: float, stop: float, step: float) -> NDArray[np.float64]:
    """Return start, start + step, ... up to and including stop."""
    return start + step * np.arange(int((stop - start) / step + 1e-9) + 1, dtype=np.float64)


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
        YAML file. A catalogue named in it by path is read too and becomes part of the result.
    overrides : sequence of str
        ``section.key=value``, the value in YAML; they win over the file.

    Raises
    ------
    InputError
        The file cannot be read, or a key or value is wrong; the message names file and key.
    """
    path = Path(path)
    values = _read_yaml(path)
    for override in overrides:
        _override(values, override)
    if isinstance(values.get("catalogue"), str):
        values["catalogue"] = _read_yaml(path.parent / values["catalogue"])
    values.setdefault("run_dir", f"runs/{path.stem}")
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise InputError("\n".join(f"{path}: {line}" for line in _explain(error))) from None


def dump(config: Config) -> str:
    """Write the resolved configuration as YAML that `load` reads back."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


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
                yield f"{key}: {fault['msg'][0].lower()}{fault['msg'][1:]}, not {fault['input']!r}"


def _keys_at(place: tuple[int | str, ...]) -> list[str]:
    """Return the keys allowed at a place of the file."""
    section: Any = Config
    for step in place:
        if isinstance(step, str) and isinstance(section, type) and issubclass(section, BaseModel):
            section = section.model_fields[step].annotation
        # A list, a mapping or an optional section: look for the section inside its type.
        while not isinstance(section, type):
            inner = [a for a in get_args(section) if a not in (type(None), str, ...)]
            if not inner:
                return []
            section = inner[-1]
    return list(section.model_fields) if issubclass(section, BaseModel) else []


def _flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict) and value:
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
