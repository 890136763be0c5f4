"""Error against the number of particles of the simulated galaxies."""

from galmerhpc.config import Config, digest
from galmerhpc.studies.study import Point, Study


def points(config: Config) -> list[Point]:
    """Return a point for each share of the particles, with a snapshot library of its own.

    What it is tested on has as few particles as what it was trained on.
    """
    made = []
    for share in config.studies.particle_fractions:
        particles = {
            component: max(round(share * count), 1)
            for component, count in config.simulate.particles.model_dump().items()
        }
        settings = config.simulate.model_dump(mode="json") | {"particles": particles}
        library = config.run_dir / "studies" / "libraries" / f"{digest(settings)[:12]}.h5"
        changes = {"simulate.particles": particles, "library": str(library)}
        made.append(Point(f"{share:g}", sum(particles.values()), changes))
    return made


STUDY = Study(
    name="particles",
    summary="particles of a galaxy, in training and in test alike",
    points=points,
    axis="particles a galaxy",
    scale="log",
    simulates=True,
)
