"""Error at inclinations never seen in training: the paper claims that it interpolates."""

from galmerhpc.config import Config
from galmerhpc.studies.study import Point, Study, name_of


def points(config: Config) -> list[Point]:
    """Return one point per inclination that is held out of training and tested."""
    shared = config.split.shared()
    return [
        Point(
            name_of(value),
            value,
            {"split": {"kind": "inclination", **shared, "test_inclination_deg": value}},
        )
        for value in config.studies.inclinations_deg
    ]


STUDY = Study(
    name="inclination",
    summary="inclination that is tested and held out of training",
    points=points,
    axis="inclination held out (deg)",
)
