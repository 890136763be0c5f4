"""Which view is requested next, by whom and when: rank 0 decides it for all ranks.

A rank reports the outcomes of its requests and how many more it can start, and gets views, each
with its moment. Views that failed temporarily are requested again, by whichever rank is free. Pure
like `pace`: the clock is passed in, and nothing here knows of networks, files or ranks.
"""

import heapq
import itertools
import logging
from collections.abc import Iterable
from dataclasses import dataclass

from galmerhpc.config import Scrape
from galmerhpc.dataset.pace import Pace
from galmerhpc.errors import GalmerhpcError

log = logging.getLogger(__name__)

LATE_S = 0.03
"""A request that could not start within this of its moment gives its slot back: late ones would
coincide with punctual ones, and the host would see more than the rate in that second."""

FEW = 50
"""Views that fail in a row before the host is suspected: half a minute at the polite rate."""

_LONGEST_RETRY_AFTER_S = 3600.0
_LONG_PAUSE_S = 10.0  # a user should know why nothing happens
_SOON_S = 0.02  # slots are assigned this long before their moment, to allow for messages
_PATIENCE_S = 0.5  # a rank comes back at least this often, to learn of an overload


@dataclass(frozen=True, slots=True)
class Stored:
    """A view's image is on disk; `sha256` is its checksum, hexadecimal."""

    number: int
    sha256: bytes


@dataclass(frozen=True, slots=True)
class Failed:
    """A view that cannot be fetched, and why."""

    number: int
    why: str


@dataclass(frozen=True, slots=True)
class Retryable:
    """A request that failed in a way that may be temporary.

    Attributes
    ----------
    number : int
        The view.
    why : str
        What happened.
    began : float
        When the request started, on the rank's own clock.
    overload : bool
        Whether it shows that the host is overloaded.
    answered : bool
        Whether the host answered at all.
    retry_after_s : float
        Seconds for which it asks to be left alone.
    """

    number: int
    why: str
    began: float
    overload: bool
    answered: bool
    retry_after_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Skipped:
    """A view that was not requested: its moment had passed, or the host wanted silence."""

    number: int


Outcome = Stored | Failed | Retryable | Skipped


@dataclass(frozen=True, slots=True)
class Report:
    """What a rank reports.

    Attributes
    ----------
    outcomes : tuple of Outcome
        Outcomes since its last report.
    room : int
        Views that it could take on now.
    duplicates_known : int
        Length of the list of duplicates that it has.
    stop : bool
        Whether it was told to stop.
    clock : float
        Its clock, which need not be rank 0's.
    """

    outcomes: tuple[Outcome, ...]
    room: int
    duplicates_known: int
    stop: bool
    clock: float


@dataclass(frozen=True, slots=True)
class Assignment:
    """What a rank is to do.

    Attributes
    ----------
    views : tuple of (int, float)
        Numbers of views to request, each with the seconds until its moment.
    wait_s : float
        Seconds after which to come back if nothing happens.
    silence_s : float
        Seconds during which nothing may be requested.
    duplicates : tuple of bytes
        SHA-256 (hexadecimal) of images that belong to no view, as they came for several: those that
        this rank does not know yet.
    over : bool
        Nothing more will be given.
    stopped : bool
        Because a rank was told to stop.
    """

    views: tuple[tuple[int, float], ...]
    wait_s: float
    silence_s: float
    duplicates: tuple[bytes, ...]
    over: bool
    stopped: bool


class Scheduler:
    """The views that are missing, until each is stored or has failed.

    Parameters
    ----------
    source : str
        The host's address, for messages.
    missing : iterable of int
        Numbers of the views to request, in order.
    pace : Pace
        How fast.
    settings : config.Scrape
        Tries per view and the pauses between them, and whether several views may have one image.
    spare : int
        Views that the ranks may hold beyond those being asked for, so that a connection has its
        next one at hand; given out only while the host is not overloaded.
    stored : dict of bytes to int
        SHA-256 (hexadecimal) of the images that are stored, and the view of each; it grows.
    errors : iterable of bytes
        SHA-256 of images that count as errors, since they came for several views.
    allow_missing : bool
        Continue however many views fail in a row.

    Attributes
    ----------
    fetched : int
        Views that came.
    failures : dict of int to str
        Views that failed, and why. Where `FEW` fail in a row, a view that is stored is asked for
        once more: if it comes, they failed; if not, the host did, and no view is blamed.
        Fewer count as failed once an image comes or everything is done.
    """

    def __init__(
        self,
        source: str,
        missing: Iterable[int],
        pace: Pace,
        settings: Scrape,
        *,
        spare: int,
        stored: dict[bytes, int],
        errors: Iterable[bytes],
        allow_missing: bool,
    ) -> None:
        self.fetched = 0
        self.failures: dict[int, str] = {}
        self._suspended: dict[int, str] = {}  # views that failed since the last image, and why
        self._source, self._pace, self._settings = source, pace, settings
        self._spare, self._allow_missing = spare, allow_missing
        self._stored = stored
        self._good = next(iter(stored.values()), None)  # a view that the host has an image of
        self._canary: int | None = None  # that view, while it is asked for once more
        self._duplicates = dict.fromkeys(errors)  # in order of discovery
        self._fresh = iter(missing)
        self._next_fresh = next(self._fresh, None)
        self._again: list[tuple[float, int]] = []  # heap: when to ask again, view
        self._tries: dict[int, tuple[int, float]] = {}  # view -> failed tries, when they began
        self._in_flight = 0  # views that ranks hold
        self._stopped = False
        self._last_answer = float("-inf")
        self._unreachable_rounds = 0

    @property
    def share(self) -> float:
        """Share of the full pace that is kept now."""
        return self._pace.share

    def answer(self, report: Report, now: float) -> Assignment:
        """Take a rank's report and assign it work.

        Raises
        ------
        GalmerhpcError
            The host cannot be reached, gives nothing but refusals or invalid images, or wants a
            long silence.
        """
        for outcome in report.outcomes:
            self._take(outcome, now, now - report.clock)
        self._stopped |= report.stop
        over = self._stopped or not (self._in_flight or self._again or self._next_fresh is not None)
        if over and not self._stopped:
            self._blame_views()
        views, wait_s = ((), 0.0) if over else self._give(report.room, now)
        return Assignment(
            views=views,
            wait_s=wait_s,
            silence_s=self._pace.silence_s(now),
            duplicates=tuple(itertools.islice(self._duplicates, report.duplicates_known, None)),
            over=over,
            stopped=self._stopped,
        )

    def _give(self, room: int, now: float) -> tuple[tuple[tuple[int, float], ...], float]:
        """Return views with the seconds until their moments, and when to come back for more."""
        spare = self._spare if self._pace.share == 1 else 0
        free = min(room, self._pace.connections + spare - self._in_flight)
        views: list[tuple[int, float]] = []
        # A rank is not told when another one's requests are done.
        wait_s = _SOON_S if free <= 0 < room else _PATIENCE_S
        while len(views) < free:
            ahead = self._pace.next_start(now) - now
            if ahead > _SOON_S:
                wait_s = min(wait_s, ahead - _SOON_S / 2)
                break
            number = self._take_next(now)
            if number is None:
                wait_s = _SOON_S
                break
            views.append((number, self._pace.start(now) - now))
        self._in_flight += len(views)
        return tuple(views), wait_s

    def _take_next(self, now: float) -> int | None:
        """Take a view that is due again, else a fresh one unless the host is suspected."""
        if self._again and self._again[0][0] <= now:
            return heapq.heappop(self._again)[1]
        if self._canary is not None:
            return None
        number, self._next_fresh = self._next_fresh, next(self._fresh, None)
        return number

    def _take(self, outcome: Outcome, now: float, offset: float) -> None:
        """Note the outcome of a view; `offset` turns the rank's clock into this one."""
        self._in_flight -= 1
        match outcome:
            case Skipped(number):
                heapq.heappush(self._again, (now, number))
            case Stored(number, sha256):
                self._note_answer(number, now)
                self._note_picture(number, sha256)
            case Failed(number, why):
                self._note_answer(number, now)
                self._fail(number, why)
            case Retryable():
                self._note_retryable(outcome, now, outcome.began + offset)

    def _note_answer(self, number: int, now: float) -> None:
        self._tries.pop(number, None)
        self._last_answer = now

    def _note_picture(self, number: int, sha256: bytes) -> None:
        """Count an image; one that came for another view too is neither's."""
        first = self._stored.setdefault(sha256, number)
        if self._settings.allow_duplicates or (first == number and sha256 not in self._duplicates):
            if number == self._canary:
                self._canary = None
            else:
                self.fetched += 1
            if self._good is None:
                self._good = number
            self._pace.recover()
            self._blame_views()
            return
        if sha256 not in self._duplicates:
            self._duplicates[sha256] = None
            self.fetched -= 1
            if first == self._good:
                self._good = None
            self._fail(first, duplicate(sha256))
        self._fail(number, duplicate(sha256))

    def _fail(self, number: int, why: str) -> None:
        """Give up a view, or the host if nothing comes from it any more."""
        if number == self._canary:
            if self._suspended:
                raise self._out_of_order(f"{why}, for a view that was fetched before")
            self._canary = None  # others came meanwhile
            return
        self._suspended[number] = why
        if self._allow_missing:
            self._blame_views()
        elif len(self._suspended) < FEW or self._canary is not None:
            return
        elif self._good is None:
            raise self._out_of_order(why)
        else:
            self._canary = self._good
            heapq.heappush(self._again, (float("-inf"), self._canary))

    def _out_of_order(self, why: str) -> GalmerhpcError:
        return GalmerhpcError(
            f"{self._source}: no image came for {len(self._suspended)} views in a row, the last "
            f"fault: {why}; look at the address in a browser, check scrape.source and the "
            "snapshots' numbers, and run the same command again later, which asks for these views "
            "again (if they really do not exist, --allow-missing continues without them)"
        )

    def _blame_views(self) -> None:
        self.failures |= self._suspended
        self._suspended.clear()

    def _note_retryable(self, fault: Retryable, now: float, began: float) -> None:
        """Slow down if need be; ask again later, or give up the view, or the host."""
        if fault.retry_after_s > _LONGEST_RETRY_AFTER_S:
            raise GalmerhpcError(
                f"{self._source}: asks to be left alone for {fault.retry_after_s:.0f} s "
                "(Retry-After); run the same command again then"
            )
        if fault.retry_after_s > _LONG_PAUSE_S:
            log.warning("%s: asks for a pause of %.0f s", self._source, fault.retry_after_s)
        if fault.overload:
            new = self._pace.back_off(now, began, fault.retry_after_s)
            self._unreachable_rounds += new and not fault.answered
        elif fault.answered:
            self._last_answer = now
        tries, since = self._tries.get(fault.number, (0, began))
        tries += 1
        if tries == 2:  # its first try may have been under way when all was still well
            since = began
        never = self._last_answer == float("-inf")
        if not fault.answered and never and self._unreachable_rounds >= self._settings.attempts:
            raise self._unreachable(fault.why)
        if tries < self._settings.attempts:
            self._tries[fault.number] = tries, since
            pause_s = min(self._settings.backoff_s * 2 ** (tries - 1), self._settings.timeout_s)
            heapq.heappush(self._again, (now + pause_s, fault.number))
            return
        # A view that fails alone is a view's failure; where all do, it is the host's.
        others = self._next_fresh is not None
        if self._last_answer < since and (others or (never and not fault.answered)):
            raise self._unreachable(fault.why)
        self._tries.pop(fault.number, None)
        self._fail(fault.number, f"{fault.why} ({tries} tries)")

    def _unreachable(self, why: str) -> GalmerhpcError:
        return GalmerhpcError(
            f"{self._source}: cannot be reached ({why}); check scrape.source and this node's "
            "network, then run the same command again"
        )


def duplicate(sha256: bytes) -> str:
    """Return why an image that came for several views is none of theirs."""
    return (
        f"the same image (SHA-256 {sha256[:12].decode('ascii', 'replace')}...) was returned for "
        "several views, so it is probably an error page; if this view really looks like that, set "
        "scrape.allow_duplicates: true"
    )
