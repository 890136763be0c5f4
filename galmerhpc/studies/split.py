"""Error with each kind of split of the same views: the effect of leakage."""

from galmerhpc.config import SIMULATION_KEYS, Config, Split
from galmerhpc.studies.study import Point, Study


def points(config: Config) -> list[Point]:
    """Return one point per kind of split.

    Realisations are divided as configured if the configuration's own split is of that kind;
    everything else is the same at every point.
    """
    shared = config.split.shared()
    shared["test_fraction"] = shared["test_fraction"] or Split().test_fraction
    splits = [
        {"kind": "random", **shared},
        {"kind": "blocked", **shared},
        {"kind": "simulation", **shared, **{k: getattr(config.split, k) for k in SIMULATION_KEYS}},
        {
            "kind": "inclination",
            **shared,
            "test_inclination_deg": config.studies.inclinations_deg[0],
        },
    ]
    return [Point(split["kind"], split["kind"], {"split": split}) for split in splits]


STUDY = Study(
    name="split",
    summary="how the same views are divided into training, validation and test",
    points=points,
    axis="split",
    scale="categories",
)
