"""Error against the size of the images."""

from galmerhpc.studies.study import Study, points_of

STUDY = Study(
    name="resolution",
    summary="image size for the network, from the same fetched images",
    points=lambda config: points_of("preprocess.image_size", config.studies.image_sizes),
    axis="image size (pixels)",
    scale="log",
)
