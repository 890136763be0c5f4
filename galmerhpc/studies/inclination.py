"""Error at inclinations that training never saw: the paper's claim that it reads those between."""

from galmerhpc.config import Config
from galmerhpc.studies.study import Point, Study


def points(config: Config) -> list[Point]:
    """Return a point for each inclination that is left out of training and tested."""
    shared = config.split.shared()
    return [
        Point(
            f"{value:g}",
            value,
            {"split": {"kind": "inclination", **shared, "test_inclination_deg": value}},
        )
        for value in config.studies.inclinations_deg
    ]


STUDY = Study(
    name="inclination",
    summary="the inclination that is tested and was left out of training",
    points=points,
    axis="inclination never trained (deg)",
)
