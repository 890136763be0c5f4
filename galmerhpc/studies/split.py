"""Error with each kind of split of the same views: the effect of leakage."""

import numpy as np

from galmerhpc.config import SIMULATION_KEYS, Config, Split, require_catalogue
from galmerhpc.studies.study import Point, Study


def points(config: Config) -> list[Point]:
    """Return one point per kind of split that the catalogue allows.

    Realisations are divided as configured if the configuration's own split is of that kind;
    everything else is the same at every point. The inclination held out is the first of
    `studies.inclinations_deg` that the catalogue has beside others.
    """
    from galmerhpc.catalogue import Views  # imported here, since every command loads this module
    from galmerhpc.dataset.split import ViewTable

    table = ViewTable.of(Views(require_catalogue(config)))
    shared = config.split.shared()
    shared["test_fraction"] = shared["test_fraction"] or Split().test_fraction
    splits = [{"kind": "random", **shared}, {"kind": "blocked", **shared}]
    if len(np.unique(table.simulation)) > 1:
        own = {key: getattr(config.split, key) for key in SIMULATION_KEYS}
        splits.append({"kind": "simulation", **shared, **own})
    inclinations = np.unique(table.inclination)
    there = [i for i in config.studies.inclinations_deg if np.isclose(inclinations, i).any()]
    if there and len(inclinations) > 1:
        splits.append({"kind": "inclination", **shared, "test_inclination_deg": there[0]})
    return [Point(split["kind"], split["kind"], {"split": split}) for split in splits]


STUDY = Study(
    name="split",
    summary="how the same views are divided, in each way that the catalogue allows",
    points=points,
    axis="split",
    scale="categories",
)
