"""Error against the global batch: the paper's figure 6."""

from galmerhpc.studies.study import Study, points_of

STUDY = Study(
    name="batch-size",
    summary="images per step over all ranks, for the same number of epochs; the rate as scheduled",
    points=lambda config: points_of("training.batch_size", config.studies.batch_sizes),
    axis="global batch (images)",
    scale="log",
)
