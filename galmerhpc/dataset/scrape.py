"""Fetch the previews of a catalogue's views into raw shards, on any number of ranks.

Every rank asks with threads of its own and writes shards of its own; rank 0 hands out the views
that are missing, a few at a time, to whoever is free. Nothing that was written is fetched again.
"""

import csv
import hashlib
import io
import itertools
import logging
import queue
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from galmerhpc import files, parallel
from galmerhpc.catalogue import View, Views
from galmerhpc.config import Config, require_catalogue
from galmerhpc.dataset.client import Answer, Client, ViewFailedError
from galmerhpc.dataset.raw import RawStore, RawWriter, Response, pack_leftovers
from galmerhpc.errors import ViewsMissingError

log = logging.getLogger(__name__)

T = TypeVar("T")

MISSING = "missing.csv"
"""Views that failed in the latest run and why; not there when all came."""

_NAMED = 3
"""Failed views that the message names; the file has them all."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A view that could not be fetched, and why."""

    view: str
    why: str


def scrape(config: Config, source: str) -> None:
    """Fetch what is missing of the catalogue into ``run_dir/raw``. Collective.

    Parameters
    ----------
    config : Config
        The run.
    source : str
        Address of the preview service, without the path.

    Raises
    ------
    ViewsMissingError
        Some views could not be fetched; the rest is there, and ``raw/missing.csv`` lists them.
    InputError
        The folder is another configuration's, a raw shard is damaged, or `source` is no address.
    GalmerhpcError
        The host cannot be reached, or the disk is full.
    """
    folder = config.run_dir / "raw"
    views = Views(require_catalogue(config))
    record = files.StageRecord(folder, config.inputs("scrape"))
    if parallel.broadcast(record.complete):
        log.info("scrape: complete, nothing to do")
        return
    old, missing = parallel.broadcast(_take_stock(folder, record, views))
    new, failed = _fetch_all(config, source, views, missing)
    shards = parallel.broadcast([*old, *itertools.chain(*parallel.gather(new))])
    failures = list(itertools.chain(*parallel.gather(failed)))
    if fault := parallel.broadcast(
        _report_missing(folder, failures, len(views)) if failures else ""
    ):
        raise ViewsMissingError(fault)
    _finish(record, folder, shards)
    log.info("scrape: %d views in %d raw shards", len(views), len(shards))


def _take_stock(
    folder: Path, record: files.StageRecord, views: Views
) -> tuple[list[str], NDArray[np.int64]]:
    """Tidy up after killed jobs; return the shards that are there and the views that are not.

    Rank 0 does so; the others get nothing.
    """
    if parallel.rank() > 0:
        return [], np.empty(0, np.int64)
    record.begin()
    files.remove_temporaries(folder)
    (folder / MISSING).unlink(missing_ok=True)
    pack_leftovers(folder)
    store = RawStore(folder)
    missing = np.flatnonzero(store.find(views.ids(), len(views)) < 0)
    return [path.name for path in store.paths], missing


def _fetch_all(
    config: Config, source: str, views: Views, missing: NDArray[np.int64]
) -> tuple[list[str], list[Failure]]:
    """Fetch this rank's part of the missing views; return its new shards and its failures."""
    settings, rank, size = config.scrape, parallel.rank(), parallel.size()
    connections = max(1, settings.connections // size + (rank < settings.connections % size))
    client = Client(
        source,
        connections=connections,
        timeout_s=settings.timeout_s,
        attempts=settings.attempts,
        backoff_s=settings.backoff_s,
        contact=settings.contact,
    )
    writer = RawWriter(config.run_dir / "raw", rank, settings.views_per_shard)
    failures = []
    # Handed out by the few: one round of a rank's connections, the same number on all ranks.
    few = max(1, settings.connections // size)
    handfuls = range(0, len(missing), few)
    with tqdm(
        total=len(views),
        initial=len(views) - len(missing),
        desc="scrape",
        unit="view",
        disable=None if rank == 0 else True,
    ) as bar:
        mine = (
            views[index]
            for start in parallel.work(
                handfuls, lambda start: bar.update(len(missing[start : start + few]))
            )
            for index in missing[start : start + few].tolist()
        )
        for outcomes in _fetch(client, mine, connections):
            writer.append([o for o in outcomes if isinstance(o, Response)])
            failures += [o for o in outcomes if isinstance(o, Failure)]
            if fatal := next((o for o in outcomes if isinstance(o, Exception)), None):
                raise fatal
    writer.close()
    client.close()
    return [path.name for path in writer.shards], failures


def _fetch(
    client: Client, views: Iterable[View], connections: int
) -> Iterator[list[Response | Failure | Exception]]:
    """Yield what became of each view, as it comes; at most `connections` are unfinished at once.

    A view is unfinished until its outcome has been taken, so that a kill cannot lose more.
    """
    todo: queue.SimpleQueue[View | None] = queue.SimpleQueue()
    done: queue.SimpleQueue[Response | Failure | Exception] = queue.SimpleQueue()

    def outcome(view: View) -> Response | Failure | Exception:
        try:
            return _response(view, client.fetch(view.preview))
        except ViewFailedError as error:
            return Failure(view.id, str(error))
        except Exception as error:  # noqa: BLE001 - raised again by the rank's main thread
            return error

    def ask() -> None:
        while (view := todo.get()) is not None:
            done.put(outcome(view))

    # Daemons: a rank that must end does not wait for answers.
    for _ in range(connections):
        threading.Thread(target=ask, daemon=True).start()
    unfinished = 0
    for view in views:
        if unfinished == connections:
            outcomes = _take(done)
            unfinished -= len(outcomes)
            yield outcomes
        todo.put(view)
        unfinished += 1
    while unfinished:
        outcomes = _take(done)
        unfinished -= len(outcomes)
        yield outcomes
    for _ in range(connections):
        todo.put(None)


def _take(done: "queue.SimpleQueue[T]") -> list[T]:
    """Wait for one outcome; take along what else is there, to be written in one go."""
    outcomes = [done.get()]
    while not done.empty():
        outcomes.append(done.get())
    return outcomes


def _response(view: View, answer: Answer) -> Response:
    return Response(
        view=view.id,
        labels=view.labels,
        simulation=view.run.simulation,
        snapshot_id=view.snapshot.id,
        time_myr=view.snapshot.time_myr,
        url=answer.url,
        content_type=answer.content_type,
        fetched_utc=answer.fetched_utc,
        sha256=hashlib.sha256(answer.body).hexdigest(),
        body=answer.body,
    )


def _finish(record: files.StageRecord, folder: Path, names: list[str]) -> None:
    """Declare the stage complete, with the checksums of all shards."""
    bar = tqdm(
        total=len(names),
        desc="scrape: checksums",
        unit="shard",
        leave=False,
        disable=None if parallel.rank() == 0 else True,
    )
    with bar:
        mine = {
            name: files.sha256(folder / name)
            for name in parallel.work(names, lambda _: bar.update())
        }
    parts = parallel.gather(mine)
    if parallel.rank() == 0:
        record.finish({name: part[name] for part in parts for name in part})


def _report_missing(folder: Path, failures: list[Failure], total: int) -> str:
    """Write the list of failed views; return the message that names the first ones."""
    rows = io.StringIO()
    table = csv.writer(rows)
    table.writerow(["view", "reason"])
    table.writerows((failure.view, failure.why) for failure in failures)
    files.write_text(folder / MISSING, rows.getvalue())
    first = "; ".join(f"{failure.view}: {failure.why}" for failure in failures[:_NAMED])
    return (
        f"{len(failures)} of {total} views could not be fetched ({first}"
        f"{'; ...' if len(failures) > _NAMED else ''}); all are listed in {folder / MISSING}; "
        "run the same command again to try just those"
    )
