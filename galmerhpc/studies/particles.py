"""Error against the number of particles of the simulated galaxies."""

from galmerhpc.config import Config, digest
from galmerhpc.errors import InputError
from galmerhpc.studies.study import Point, Study, name_of


def points(config: Config) -> list[Point]:
    """Return one point per share of the particles, each with its own snapshot library.

    Training and test encounters have the same number of particles.
    """
    if config.library == "shipped":
        raise InputError(
            "the study particles needs its own library: set library, and the section simulate "
            "that makes the catalogue's snapshots, as in configs/particles.yaml"
        )
    made = []
    for share in config.studies.particle_fractions:
        particles = {
            component: max(round(share * count), 1)
            for component, count in config.simulate.particles.model_dump().items()
        }
        changes = {"simulate.particles": particles, "library": _library(config, particles)}
        made.append(Point(name_of(share), sum(particles.values()), changes))
    return made


def _library(config: Config, particles: dict[str, int]) -> str:
    """Return the library file: the configuration's own if it has the same number of particles."""
    if particles == config.simulate.particles.model_dump():
        return config.library
    settings = config.simulate.model_dump(mode="json") | {"particles": particles}
    return str(config.run_dir / "studies" / "libraries" / f"{digest(settings)[:12]}.h5")


STUDY = Study(
    name="particles",
    summary="particles per galaxy, both in training and in test",
    points=points,
    axis="particles per galaxy",
    scale="log",
    simulates=True,
)
