"""Error against the number of particles of the simulated galaxies."""

from galmerhpc.config import Config, digest
from galmerhpc.errors import InputError
from galmerhpc.studies.study import Point, Study


def points(config: Config) -> list[Point]:
    """Return a point for each share of the particles, with a snapshot library of its own.

    What it is tested on has as few particles as what it was trained on.
    """
    if config.library == "shipped":
        raise InputError(
            "the study particles needs a library of its own: name it, and give the section "
            "simulate whose snapshots the catalogue lists, as configs/particles.yaml does"
        )
    made = []
    for share in config.studies.particle_fractions:
        particles = {
            component: max(round(share * count), 1)
            for component, count in config.simulate.particles.model_dump().items()
        }
        changes = {"simulate.particles": particles, "library": _library(config, particles)}
        made.append(Point(f"{share:g}", sum(particles.values()), changes))
    return made


def _library(config: Config, particles: dict[str, int]) -> str:
    """Return the file of a library: the configuration's own where it has as many particles."""
    if particles == config.simulate.particles.model_dump():
        return config.library
    settings = config.simulate.model_dump(mode="json") | {"particles": particles}
    return str(config.run_dir / "studies" / "libraries" / f"{digest(settings)[:12]}.h5")


STUDY = Study(
    name="particles",
    summary="particles of a galaxy, in training and in test alike",
    points=points,
    axis="particles a galaxy",
    scale="log",
    simulates=True,
)
