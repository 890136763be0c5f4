"""Error of classification against the width of its classes: the paper's are of 5 deg."""

from galmerhpc.config import Config
from galmerhpc.studies.classification import as_classification
from galmerhpc.studies.study import Point, Study


def points(config: Config) -> list[Point]:
    """Return a point for each width."""
    classification = as_classification(config)
    return [
        Point(f"{width:g}", width, {**classification, "model.class_width_deg": width})
        for width in config.studies.class_widths_deg
    ]


STUDY = Study(
    name="class-width",
    summary="width of the classes of azimuth and viewing angle; a class counts as its centre",
    points=points,
    axis="class width (deg)",
    scale="log",
)
