"""Error against the size of the images."""

from galmerhpc.config import Config, require_catalogue
from galmerhpc.errors import InputError
from galmerhpc.studies.study import Point, Study, points_of


def points(config: Config) -> list[Point]:
    """Return one point per size.

    Raises
    ------
    InputError
        A size exceeds that of the fetched images: there is nothing to learn from enlarging them.
    """
    sizes, fetched = config.studies.image_sizes, require_catalogue(config).render.nbins
    if max(sizes) > fetched:
        raise InputError(
            f"studies.image_sizes: {max(sizes)} exceeds the fetched images' {fetched} pixels "
            "(catalogue.render.nbins)"
        )
    return points_of("preprocess.image_size", sizes)


STUDY = Study(
    name="resolution",
    summary="image size for the network, from the same fetched images",
    points=points,
    axis="image size (pixels)",
    scale="log",
)
