"""Error against the number of training images: the paper's figure 7."""

from galmerhpc.config import Config
from galmerhpc.studies.study import Point, Study, epochs_for, name_of


def points(config: Config) -> list[Point]:
    """Return one point per share; all see about as many images in training."""
    return [
        Point(
            name_of(share),
            share,
            {
                "split.training_fraction": _share_of(config, share),
                **epochs_for(config, share),
            },
        )
        for share in config.studies.training_fractions
    ]


def _share_of(config: Config, share: float) -> float | None:
    """Return the fraction that is a share of the configured one, which may be unset (all)."""
    whole = config.split.training_fraction
    return whole if share == 1 else share * (whole or 1.0)


STUDY = Study(
    name="data-size",
    summary="number of training images drawn from the same views, for about as many steps",
    points=points,
    axis="training images",
    scale="log",
    column="training_images",
    law=True,
)
