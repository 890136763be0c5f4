"""Error against the time since pericentre."""

from galmerhpc.config import Config, Snapshot, require_catalogue
from galmerhpc.errors import InputError
from galmerhpc.studies.study import Point, Study, name_of


def points(config: Config) -> list[Point]:
    """Return one point per time in the catalogue, with training and test at that time only."""
    catalogue = require_catalogue(config)
    times = sorted({_time(s) for run in catalogue.runs for s in run.all_snapshots()})
    if len(times) < 2:
        raise InputError("the study time needs a catalogue with snapshots at two or more times")
    made = []
    for time in times:
        runs = [
            run.model_dump(mode="json")
            | {"snapshots": [s.model_dump() for s in chosen], "first_id": None}
            for run in catalogue.runs
            if (chosen := [s for s in run.all_snapshots() if _time(s) == time])
        ]
        made.append(Point(name_of(time), time, {"catalogue.runs": runs}))
    return made


def _time(snapshot: Snapshot) -> float:
    """Return a snapshot's time; sums of steps may differ in the last digits."""
    return float(name_of(snapshot.time_myr))


STUDY = Study(
    name="time",
    summary="time since pericentre, in training and in test; each point fetches its own images",
    points=points,
    axis="time since pericentre (Myr)",
)
