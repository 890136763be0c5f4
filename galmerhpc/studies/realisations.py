"""Error on unseen realisations against the number of training realisations."""

import numpy as np

from galmerhpc.config import Config, require_catalogue
from galmerhpc.errors import InputError
from galmerhpc.studies.study import Point, Study, epochs_for


def points(config: Config) -> list[Point]:
    """Return one point per number of realisations; all see about as many images in training.

    Validation and test realisations are the same at every point.
    """
    from galmerhpc.catalogue import Views  # imported here, since every command loads this module
    from galmerhpc.dataset.split import TEST, TRAIN, VALIDATION, ViewTable, assign

    if config.split.kind != "simulation":
        raise InputError("the study realisations needs split.kind: simulation")
    table = ViewTable.of(Views(require_catalogue(config)))
    samples = assign(table, config.split, copies=0)
    trained, validated, tested = (
        np.unique(table.simulation[samples.view[samples.split == code]]).tolist()
        for code in (TRAIN, VALIDATION, TEST)
    )
    if set(trained) & set(validated):
        raise InputError(
            "the study realisations needs realisations for validation only: set "
            "split.validation_simulations, or use a catalogue of three or more realisations"
        )
    if max(config.studies.realisations) > len(trained):
        raise InputError(
            f"studies.realisations: {max(config.studies.realisations)} exceeds the {len(trained)} "
            "available for training"
        )
    return [
        Point(
            str(count),
            count,
            {
                "split.training_simulations": trained[:count],
                "split.validation_simulations": validated,
                "split.test_simulations": tested,
                **epochs_for(config, count / len(trained)),
            },
        )
        for count in config.studies.realisations
    ]


STUDY = Study(
    name="realisations",
    summary="training realisations of each encounter, for about as many steps",
    points=points,
    axis="training realisations",
    scale="log",
    law=True,
)
