"""Error against the share of the head's inputs dropped in training."""

from galmerhpc.studies.study import Study, points_of

STUDY = Study(
    name="dropout",
    summary="share of the head's inputs dropped in training",
    points=lambda config: points_of("model.dropout", config.studies.dropout),
    axis="dropout",
)
