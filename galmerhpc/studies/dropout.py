"""Error against the share of the head's inputs that training drops."""

from galmerhpc.studies.study import Study, points_of

STUDY = Study(
    name="dropout",
    summary="share of the head's inputs that training drops",
    points=lambda config: points_of("model.dropout", config.studies.dropout),
    axis="dropout",
)
