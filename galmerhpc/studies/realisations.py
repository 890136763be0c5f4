"""Error on realisations never seen against the number of those trained on."""

import numpy as np

from galmerhpc.config import Config, require_catalogue
from galmerhpc.errors import InputError
from galmerhpc.studies.study import Point, Study, epochs_for


def points(config: Config) -> list[Point]:
    """Return a point for each number; each has seen as many images at its end.

    Validation and test are the same realisations at every point.
    """
    from galmerhpc.catalogue import Views  # here, since every command loads this module
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
            "the study realisations needs some for validation alone: set "
            "split.validation_simulations, or take a catalogue of three realisations or more"
        )
    if max(config.studies.realisations) > len(trained):
        raise InputError(
            f"studies.realisations: {max(config.studies.realisations)} is more than there are to "
            f"train on, {len(trained)}"
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
    summary="realisations of each encounter to train on, with as many steps",
    points=points,
    axis="training realisations",
    scale="log",
    law=True,
)
