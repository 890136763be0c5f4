"""Error against the number of training images: the paper's figure 7."""

from galmerhpc.config import Config
from galmerhpc.studies.study import Point, Study, epochs_for


def points(config: Config) -> list[Point]:
    """Return one point per share; all see the same number of images in training."""
    whole = config.split.training_fraction or 1.0
    return [
        Point(
            f"{share:g}",
            share,
            {
                "split.training_fraction": share * whole,
                **epochs_for(config, share),
            },
        )
        for share in config.studies.training_fractions
    ]


STUDY = Study(
    name="data-size",
    summary="number of training images drawn from the same views, for the same number of steps",
    points=points,
    axis="training images",
    scale="log",
    column="training_images",
    law=True,
)
