"""All studies by name."""

from galmerhpc.studies import (
    augmentation,
    batch_size,
    class_width,
    classification,
    data_size,
    dropout,
    inclination,
    particles,
    realisations,
    resolution,
    split,
    time,
)
from galmerhpc.studies.study import Study

STUDIES: dict[str, Study] = {
    module.STUDY.name: module.STUDY
    for module in (
        batch_size,
        data_size,
        resolution,
        split,
        augmentation,
        dropout,
        class_width,
        classification,
        realisations,
        particles,
        time,
        inclination,
    )
}
