"""The same views divided in every way: what a split that leaks makes of an error."""

from galmerhpc.config import Config, Split
from galmerhpc.studies.study import Point, Study

_SHARES = ("validation_fraction", "test_fraction", "tile_deg", "seed")


def points(config: Config) -> list[Point]:
    """Return a point for each kind of split.

    Realisations are divided as the configuration says, where its own split does so.
    """
    shares = config.split.model_dump(mode="json", include={*_SHARES})
    shares["test_fraction"] = shares["test_fraction"] or Split().test_fraction
    held_out = {"test_inclination_deg": config.studies.inclinations_deg[0]}
    own = config.split if config.split.kind == "simulation" else Split()
    splits = [
        {"kind": "random", **shares},
        {"kind": "blocked", **shares},
        own.model_dump(mode="json"),
        {"kind": "inclination", **shares, **held_out},
    ]
    return [Point(split["kind"], split["kind"], {"split": split}) for split in splits]


STUDY = Study(
    name="split",
    summary="how the same views are divided into training, validation and test",
    points=points,
    axis="split",
    scale="categories",
)
