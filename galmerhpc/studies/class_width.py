"""Error of classification against class width (5 deg in the paper)."""

from galmerhpc.config import Config
from galmerhpc.errors import InputError
from galmerhpc.parameters import AZIMUTH, VIEWING_ANGLE
from galmerhpc.studies.classification import as_classification
from galmerhpc.studies.study import Point, Study, name_of


def points(config: Config) -> list[Point]:
    """Return one point per width.

    Raises
    ------
    InputError
        No parameter has classes of that width.
    """
    if not {AZIMUTH.name, VIEWING_ANGLE.name} & {*config.parameters}:
        raise InputError(
            f"the study class-width needs {AZIMUTH.name} or {VIEWING_ANGLE.name} among parameters"
        )
    classification = as_classification(config)
    return [
        Point(name_of(width), width, {**classification, "model.class_width_deg": width})
        for width in config.studies.class_widths_deg
    ]


STUDY = Study(
    name="class-width",
    summary="class width of azimuth and viewing angle; a class is scored as its centre",
    points=points,
    axis="class width (deg)",
    scale="log",
)
