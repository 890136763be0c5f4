"""Error against the size of the images."""

from galmerhpc.studies.study import Study, points_of

STUDY = Study(
    name="resolution",
    summary="pixels of the images that the network sees, of the same fetched pictures",
    points=lambda config: points_of("preprocess.image_size", config.studies.image_sizes),
    axis="image size (pixels)",
    scale="log",
)
