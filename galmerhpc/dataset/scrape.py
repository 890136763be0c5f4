"""Fetch the previews of a catalogue's views into raw shards, on any number of ranks.

Rank 0 schedules what is missing; every rank gets views from it, fetches them with threads of its
own and writes shards of its own. Nothing that was written is fetched again.
"""

import contextlib
import itertools
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from galmerhpc import files, parallel
from galmerhpc.catalogue import Views, views_to_make
from galmerhpc.config import Config, require_catalogue
from galmerhpc.dataset import missing
from galmerhpc.dataset.fetch_pool import SPARE, FetchPool, Picture, Result
from galmerhpc.dataset.pace import Pace
from galmerhpc.dataset.raw import RawWriter, open_store, read_spool, tidy
from galmerhpc.dataset.records import checksums, missing_views, stage_record
from galmerhpc.dataset.scheduler import Assignment, Outcome, Report, Scheduler, Stored, duplicate
from galmerhpc.dataset.slices import WHOLE, Slice
from galmerhpc.errors import InputError, InterruptedRunError, ViewsMissingError, first_few
from galmerhpc.interrupt import StopRequest

log = logging.getLogger(__name__)

_PROGRESS_S = 60.0  # between the lines that a log file gets
_GRACE_S = 5.0  # for answers that are under way when the job is told to stop
_BYTES_PER_PIXEL = 0.4  # of the mirror's GIFs of 400 x 400


def scrape(
    config: Config,
    source: str,
    *,
    part: Slice = WHOLE,
    retry_failed: bool = False,
    allow_missing: bool = False,
) -> None:
    """Fetch what is missing of the catalogue into ``run_dir/raw``. Collective.

    Parameters
    ----------
    config : Config
        The run.
    source : str
        Address of the preview service, without the path.
    part : Slice
        The slice to fetch; jobs with the other slices may share the folder.
    retry_failed : bool
        Ask again for views that failed before.
    allow_missing : bool
        Finish without the views that failed; ``raw/missing.csv`` lists them.

    Raises
    ------
    ViewsMissingError
        Some views could not be fetched; the rest is stored, and the list names them.
    InterruptedRunError
        A signal or the time limit came; what was fetched is stored.
    InputError
        The folder is another configuration's or in use, a raw shard is damaged, or `source` is not
        an address.
    GalmerhpcError
        The host cannot be reached or gives no images, or the disk is full.
    """
    folder, settings = config.run_dir / "raw", config.scrape
    views = views_to_make(require_catalogue(config))
    connections = _connections(config, part)
    if parallel.from_rank_0(lambda: is_done(config, retry_failed)):
        log.info("scrape: complete, nothing to do")
        return

    with StopRequest(settings.time_limit_s) as stop, _alone(folder, part):
        coordinator = _coordinator(config, source, views, part, retry_failed, allow_missing)
        writer = RawWriter(folder, parallel.rank(), settings.views_per_shard, part)
        pool = FetchPool(settings, source, views, connections)
        stopped = _fetch(coordinator, pool, writer, lambda: bool(stop.reason))
        if not parallel.agree(not stopped):
            raise InterruptedRunError(
                "scrape: stopped by a signal or scrape.time_limit_s; what was fetched is kept, "
                "run the same command again"
            )
        made = itertools.chain(*parallel.gather([path.name for path in writer.shards]))
        _conclude(config, views, part, allow_missing, list(made))


def is_done(config: Config, retry_failed: bool = False) -> bool:
    """Return whether nothing is left to fetch; to be called by one rank."""
    folder = config.run_dir / "raw"
    record = stage_record(config, "scrape")
    return record.complete and not (retry_failed and missing_views(folder))


def _connections(config: Config, part: Slice) -> int:
    """Return this rank's connections: its share of the slice's share."""
    total, rank, size = config.scrape.connections, parallel.rank(), parallel.size()
    ours = part.share(total)
    if ours == 0:
        raise InputError(
            f"--slice {part.number}/{part.count}: scrape.connections, {total}, must be enough "
            "for every slice; raise it or make fewer slices"
        )
    if rank == 0 and ours < size:
        log.warning(
            "scrape: %d of %d ranks have no connection: scrape.connections allows %d",
            size - ours, size, ours,
        )  # fmt: skip
    return ours // size + (rank < ours % size)


@contextlib.contextmanager
def _alone(folder: Path, part: Slice) -> Iterator[None]:
    """Keep other jobs off this slice, and jobs with other slices off the folder."""
    if parallel.rank() > 0:
        yield
        return
    with files.lock(folder / f"scrape{part.suffix}.lock"):
        for path in folder.glob("scrape*.lock"):
            if Slice.of_file(path).count != part.count and files.is_locked(path):
                raise InputError(
                    f"{path}: a job with other slices is at work in this folder; wait for its "
                    "end, or choose another run_dir"
                )
        yield


def stage_lock(folder: Path) -> contextlib.AbstractContextManager[None]:
    """Let one slice at a time change what all slices share."""
    return files.job_lock(folder / "stage.lock", parallel.rank(), wait=True)


# --- what is missing: known to rank 0 ------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Stock:
    """What a run folder holds of a slice.

    Attributes
    ----------
    there : int
        Views of the slice that are stored.
    wanted : list of int
        Numbers of the views to ask for.
    failed : dict of str to str
        Views of the slice that failed in earlier jobs, and why.
    sha256 : dict of bytes to int
        The images' checksums (hexadecimal) and their views' numbers, of all slices.
    errors : set of bytes
        Checksums of images that count as errors, since they came for several views.
    """

    there: int
    wanted: list[int]
    failed: dict[str, str]
    sha256: dict[bytes, int]
    errors: set[bytes]


def _take_stock(
    config: Config,
    views: Views,
    part: Slice,
    retry_failed: bool,
    spooled: AbstractSet[str] = frozenset(),
) -> Stock:
    """Compare the catalogue with the raw shards, and with views that are in spools."""
    folder = config.run_dir / "raw"
    store = open_store(config)
    # A view whose image another one has, too, is asked for again unless its failure was noted.
    rows, failures = store.find(views.ids(), len(views)), missing.read_failures(folder)
    stored = np.flatnonzero(rows >= 0)
    sha256 = dict(zip(store.sha256(rows[stored]), stored.tolist(), strict=True))
    stock = Stock(0, [], {}, sha256, set(store.duplicates.values()))
    there, ours = 0, part.of(len(views))
    bar = tqdm(
        views.ids(), "scrape: what is missing", len(views), unit="view", leave=False, disable=None
    )
    for number, name in enumerate(bar):
        if number not in ours:
            continue
        if rows[number] >= 0 or name in spooled:
            there += 1
            continue
        if name in failures:
            stock.failed[name] = failures[name]
        if retry_failed or name not in failures:
            stock.wanted.append(number)
    return replace(stock, there=there)


def forecast(config: Config, part: Slice = WHOLE, retry_failed: bool = False) -> str:
    """Return in a few lines what a scrape would do; nothing is requested or written.

    Raises
    ------
    InputError
        The folder is another configuration's, or holds a damaged shard.
    """
    folder, catalogue = config.run_dir / "raw", require_catalogue(config)
    stage_record(config, "scrape")  # refuses another configuration's folder
    views = views_to_make(catalogue)
    spools = sorted(folder.glob("raw-*.spool"))
    spooled = {response.view for spool in spools for response in read_spool(spool)}
    stock = _take_stock(config, views, part, retry_failed, spooled)
    bytes_there = sum(path.stat().st_size for path in folder.glob("raw-*.h5"))
    if stock.sha256:
        each, basis = bytes_there / len(stock.sha256), "the mean of those stored"
    else:
        each = _BYTES_PER_PIXEL * catalogue.render.nbins**2
        basis = "an estimate from the mirror's"
    requests = len(stock.wanted)
    left = " (--retry-failed adds the failed ones)" if stock.failed and not retry_failed else ""
    return (
        f"views     {len(part.of(len(views)))}: {stock.there} stored, "
        f"{len(stock.failed)} failed before\n"
        f"requests  {requests}{left}\n"
        f"GB        {requests * each / 1e9:.3g} ({each / 1e3:.1f} kB per image, {basis})\n"
        f"hours     {_hours(config, part, requests)}"
    )


def _hours(config: Config, part: Slice, requests: int) -> str:
    """Return in words how long `requests` requests take."""
    if config.scrape.rate_per_s is None:
        return "no budget (scrape.rate_per_s: null): as fast as the source answers"
    rate = config.scrape.rate_per_s / part.count
    return f"{requests / rate / 3600:.2f} at {rate:g} requests per second"


# --- fetching -------------------------------------------------------------------------------------


def _coordinator(
    config: Config,
    source: str,
    views: Views,
    part: Slice,
    retry_failed: bool,
    allow_missing: bool,
) -> "parallel.Coordinator[Report, Assignment]":
    """Return the coordinator where all ranks get their views."""
    if parallel.rank() > 0:
        return parallel.Coordinator(_nobody)
    folder = config.run_dir / "raw"
    list_path = missing.list_path(folder, part)
    with stage_lock(folder):
        if not is_done(config, retry_failed):  # a sibling may have finished meanwhile
            stage_record(config, "scrape").begin()
        tidy(folder, part)
        stock = _take_stock(config, views, part, retry_failed)
        missing.write(list_path, stock.failed)
    requests = len(stock.wanted)
    log.info("scrape: %d requests; hours: %s", requests, _hours(config, part, requests))
    scheduler = _scheduler(config, source, part, stock, allow_missing)
    progress = _Progress(stock)
    noted = 0

    def answer(report: Report) -> Assignment:
        nonlocal noted
        assignment = scheduler.answer(report, time.monotonic())
        if new := list(itertools.islice(scheduler.failures.items(), noted, None)):
            missing.append(list_path, [(views[number].id, why) for number, why in new])
            noted += len(new)
        progress.show(scheduler.fetched + noted, noted, scheduler.share, assignment.over)
        return assignment

    return parallel.Coordinator(answer)


class _Progress:
    """A line with rate, failures and time left: a bar on a terminal, else one per minute."""

    def __init__(self, stock: Stock) -> None:
        self._began = self._said = time.monotonic()
        self._there, self._total = stock.there, stock.there + len(stock.wanted)
        self._bar = tqdm(
            total=self._total, initial=self._there, desc="scrape", unit="view", disable=None
        )

    def show(self, done: int, failed: int, share: float, over: bool) -> None:
        """Show that so many views are done, `failed` of them without an image."""
        postfix = f"{failed} failed, pace {share:.0%}"
        now = time.monotonic()
        if not self._bar.disable:
            self._bar.set_postfix_str(postfix, refresh=False)
            self._bar.update(self._there + done - self._bar.n)
            if over:
                self._bar.close()
        elif now > self._said + _PROGRESS_S:
            self._said = now
            log.info(
                tqdm.format_meter(
                    self._there + done, self._total, now - self._began, initial=self._there,
                    prefix="scrape", unit="view", postfix=postfix, ncols=0,
                )
            )  # fmt: skip


def _nobody(_: Report) -> Assignment:
    raise AssertionError("only rank 0's coordinator answers")


def _scheduler(
    config: Config, source: str, part: Slice, stock: Stock, allow_missing: bool
) -> Scheduler:
    settings, connections = config.scrape, part.share(config.scrape.connections)
    rate = None if settings.rate_per_s is None else settings.rate_per_s / part.count
    return Scheduler(
        source,
        stock.wanted,
        Pace(connections, rate, settings.backoff_s, settings.timeout_s),
        settings,
        spare=0 if rate else SPARE * connections,
        stored=stock.sha256,
        errors=stock.errors,
        allow_missing=allow_missing,
    )


def _fetch(
    coordinator: "parallel.Coordinator[Report, Assignment]",
    pool: FetchPool,
    writer: RawWriter,
    stop: Callable[[], bool],
) -> bool:
    """Fetch what the coordinator assigns to this rank; return whether it was stopped."""
    outcomes: list[Outcome] = []
    with coordinator:
        while not (assignment := coordinator.ask(pool.report(outcomes, stop()))).over:
            pool.submit(assignment)
            outcomes = _keep(writer, pool.results(assignment.wait_s))
        pool.stop()
        end = time.monotonic() + _GRACE_S
        while pool.in_flight and (left := end - time.monotonic()) > 0:
            _keep(writer, pool.results(left))
        pool.close()
        writer.close()
    return assignment.stopped


def _keep(writer: RawWriter, results: Sequence[Result]) -> list[Outcome]:
    """Write the images among the results; return what to report."""
    writer.append([result.response for result in results if isinstance(result, Picture)])
    return [
        Stored(result.number, result.response.sha256.encode())
        if isinstance(result, Picture)
        else result
        for result in results
    ]


# --- the end --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Verdict:
    """The state when a job has nothing more to request.

    Attributes
    ----------
    complete : bool
        Every view of the catalogue is stored, or may be left out.
    files : list of str
        What the complete stage consists of.
    fault : str
        What is missing of this job's slice and may not be.
    note : str
        What else to log.
    """

    complete: bool
    files: list[str]
    fault: str
    note: str


def _conclude(
    config: Config, views: Views, part: Slice, allow_missing: bool, made: list[str]
) -> None:
    """Declare the stage complete if it is, whichever slice is the last. Collective."""
    folder = config.run_dir / "raw"
    with stage_lock(folder):
        verdict = parallel.from_rank_0(lambda: _judge(config, views, part, allow_missing, made))
        if verdict.complete:
            sums = checksums(folder, verdict.files)
            if parallel.rank() == 0:
                stage_record(config, "scrape").finish(sums)
    if verdict.fault:
        raise ViewsMissingError(verdict.fault)
    log.info("scrape: %s", verdict.note)


def _judge(
    config: Config, views: Views, part: Slice, allow_missing: bool, made: list[str]
) -> _Verdict:
    """See what all slices have stored, and write the list of what is missing."""
    folder = config.run_dir / "raw"
    store = open_store(config, made)
    rows, failures = store.find(views.ids(), len(views)), missing.read_failures(folder)
    failures |= {view: duplicate(sha256) for view, sha256 in store.duplicates.items()}
    ours, own, others, to_come = part.of(len(views)), {}, {}, 0
    for number in np.flatnonzero(rows < 0).tolist():
        view = views[number].id
        if number in ours:
            own[view] = failures[view]
        elif view in failures:
            others[view] = failures[view]
        else:
            to_come += 1
    complete = not to_come and (allow_missing or not (own or others))
    if complete:
        for path in folder.glob("missing-*.csv"):
            path.unlink()
    list_path = missing.list_path(folder, WHOLE if complete else part)
    missing.write(list_path, own | others if complete else own)
    listed = [list_path.name] if list_path.exists() else []
    fault = "" if allow_missing or not own else _fault(own, len(ours), list_path)
    note = f"{np.count_nonzero(rows >= 0)} views in {len(store.paths)} raw shards"
    if own:
        note += f"; {len(own)} could not be fetched and are left out ({list_path})"
    if not complete and not fault:
        left = [f"{to_come} views to fetch"] if to_come else []
        left += [f"{len(others)} views that failed"] if others else []
        note += f"; slice {part.number}/{part.count} is done, others have {' and '.join(left)}"
    return _Verdict(complete, [*(path.name for path in store.paths), *listed], fault, note)


def _fault(lost: dict[str, str], total: int, list_path: Path) -> str:
    """Return the message that names the first missing views."""
    views = first_few([f"{view}: {why}" for view, why in lost.items()], "; ")
    return (
        f"{len(lost)} of {total} views could not be fetched ({views}); all are listed in "
        f"{list_path}; run the same command with --retry-failed to ask for them again, or with "
        "--allow-missing to continue without them"
    )
