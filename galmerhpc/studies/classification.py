"""The paper's 60 classes with Table 1's network and with ResNet50."""

from typing import Any

from galmerhpc.config import Config
from galmerhpc.studies.study import Point, Study

_REGRESSION_ONLY = {"model.sine_cosine": [], "model.spin": "number"}


def as_classification(config: Config) -> dict[str, Any]:
    """Return the changes that turn a configuration into a classification, if it is not one."""
    if config.model.task == "classification":
        return {}
    loss = {"training.loss": "binary_crossentropy"}  # the paper's
    return {"model.task": "classification", **loss, **_REGRESSION_ONLY}


def points(config: Config) -> list[Point]:
    """Return one point per network."""
    classification = as_classification(config)
    return [
        Point(name, name, {**classification, "model.architecture": name})
        for name in ("table1_cnn", "resnet50")
    ]


STUDY = Study(
    name="classification",
    summary="Table 1's network and ResNet50 as classifiers",
    points=points,
    axis="network",
    scale="categories",
)
