"""Error with no augmentation, each operation alone, and all of them."""

from galmerhpc.config import Config, OnlineAugment
from galmerhpc.errors import InputError
from galmerhpc.studies.study import Point, Study


def points(config: Config) -> list[Point]:
    """Return a point without operations, one per operation, and one with all of several."""
    strengths, off = config.studies.augment.model_dump(mode="json"), OnlineAugment()
    chosen = {k: v for k, v in strengths.items() if v != getattr(off, k)}
    if not chosen:
        raise InputError("studies.augment: set at least one operation")
    each = {k.removesuffix("_deg").removesuffix("_px"): {k: v} for k, v in chosen.items()}
    sets = {"none": {}, **each, **({"all": chosen} if len(each) > 1 else {})}
    return [
        Point(name, name, {"training.augment": off.model_dump(mode="json") | operations})
        for name, operations in sets.items()
    ]


STUDY = Study(
    name="augmentation",
    summary="operations on training images, tested on unchanged images",
    points=points,
    axis="operations in training",
    scale="categories",
)
