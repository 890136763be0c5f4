"""The schedule: every view ends once, as many are under way as may be, whatever the ranks do."""

import hashlib
import itertools
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from galmerhpc.config import Scrape
from galmerhpc.dataset.pace import Pace
from galmerhpc.dataset.scheduler import (
    FEW,
    Assignment,
    Failed,
    Outcome,
    Report,
    Retryable,
    Scheduler,
    Skipped,
    Stored,
)
from galmerhpc.errors import GalmerhpcError

ATTEMPTS = 4
SOURCE = "http://host"


def digest(number: int) -> bytes:
    return hashlib.sha256(str(number).encode()).hexdigest().encode()


def schedule(
    views: int,
    connections: int = 8,
    rate: float | None = None,
    *,
    stored: dict[bytes, int] | None = None,
    errors: tuple[bytes, ...] = (),
    allow: bool = False,
    allow_missing: bool = False,
) -> Scheduler:
    return Scheduler(
        SOURCE, range(views), Pace(connections, rate, 0.5, 60),
        Scrape(attempts=ATTEMPTS, allow_duplicates=allow),
        spare=0 if rate else connections, stored=stored or {}, errors=errors,
        allow_missing=allow_missing,
    )  # fmt: skip


@dataclass
class Ranks:
    """Simulated ranks whose clocks differ, and a host that answers as it likes.

    `fate` gives a view's outcome at its n-th request; the time of a request is drawn.
    """

    schedule: Scheduler
    count: int
    threads: int
    fate: Callable[[int, int], Outcome]
    draw: random.Random
    now: float = 0.0
    asked: Counter[int] = field(default_factory=Counter)
    starts: list[float] = field(default_factory=list)
    most: int = 0

    def run(self) -> None:
        """Let every rank ask for work until all is over."""
        # Each rank: requests under way as (end, outcome), and when it comes back.
        under_way: list[list[tuple[float, Outcome]]] = [[] for _ in range(self.count)]
        back = [0.0] * self.count
        left = set(range(self.count))
        known = [0] * self.count
        while left:
            rank = min(left, key=lambda r: min([back[r], *(end for end, _ in under_way[r])]))
            self.now = max(self.now, min([back[rank], *(end for end, _ in under_way[rank])]))
            done = [o for end, o in under_way[rank] if end <= self.now]
            under_way[rank] = [x for x in under_way[rank] if x[0] > self.now]
            room = self.threads - len(under_way[rank])
            clock = self.now + 1000 * rank
            grant = self.schedule.answer(
                Report(tuple(done), room, known[rank], False, clock), self.now
            )
            if grant.over:
                assert not under_way[rank]
                left.remove(rank)
                continue
            assert grant.wait_s > 0
            known[rank] += len(grant.duplicates)
            back[rank] = self.now + grant.wait_s
            assert len(grant.views) <= room
            for number, delay in grant.views:
                assert delay >= 0
                start = self.now + delay
                end = start + self.draw.uniform(0.001, 0.5)
                under_way[rank].append((end, self._answer(number, start + 1000 * rank)))
                self.starts.append(start)
            self.most = max(self.most, sum(map(len, under_way)))

    def _answer(self, number: int, began: float) -> Outcome:
        outcome = self.fate(number, self.asked[number])
        self.asked[number] += not isinstance(outcome, Skipped)
        if isinstance(outcome, Retryable):
            return Retryable(
                number,
                outcome.why,
                began,
                outcome.overload,
                outcome.answered,
                outcome.retry_after_s,
            )
        return outcome


def well(number: int, _: int) -> Outcome:
    return Stored(number, digest(number))


@given(
    views=st.integers(0, 40),
    ranks=st.integers(1, 5),
    threads=st.integers(1, 8),
    connections=st.integers(1, 12),
    rate=st.sampled_from([None, 5.0, 100.0]),
    seed=st.integers(0, 2**32),
    weights=st.lists(st.integers(0, 3), min_size=5, max_size=5),
)
def test_every_view_ends_once_within_its_tries(
    views: int,
    ranks: int,
    threads: int,
    connections: int,
    rate: float | None,
    seed: int,
    weights: list[int],
) -> None:
    draw = random.Random(seed)
    ends: Counter[int] = Counter()

    def fate(number: int, tries: int) -> Outcome:
        kinds = ["well", "failed", "fault", "trouble", "busy", "unasked"]
        kind = draw.choices(kinds, [3, *weights])[0]
        if kind == "unasked":
            return Skipped(number)
        if kind == "well":
            ends[number] += 1
            return Stored(number, digest(number))
        if kind == "failed":
            ends[number] += 1
            return Failed(number, "no such view")
        ends[number] += tries + 1 == ATTEMPTS
        # Heard: an unreachable host is another test's.
        return Retryable(number, kind, 0.0, kind != "fault", True, 3.0 if kind == "busy" else 0.0)

    work = schedule(views, connections, rate)
    team = Ranks(work, ranks, threads, fate, draw)
    try:
        team.run()
    except GalmerhpcError:  # every try of a view was refused, and nothing else went well meanwhile
        return
    assert ends == Counter(range(views))
    assert work.fetched + len(work.failures) == views
    assert max(team.asked.values(), default=0) <= ATTEMPTS
    assert team.most <= connections * (1 if rate else 2)
    if rate:
        starts = sorted(team.starts)
        assert all(b - a >= (1 - 1e-6) / rate for a, b in itertools.pairwise(starts))


@pytest.mark.parametrize("ranks", [1, 2, 5])
def test_the_rate_is_kept_and_used_on_any_number_of_ranks(ranks: int) -> None:
    team = Ranks(schedule(2000, 64, 100.0), ranks, 64, well, random.Random(1))
    team.run()
    assert 2000 / max(team.starts) == pytest.approx(100, rel=0.01)


def test_no_rank_gets_views_while_the_host_wants_silence() -> None:
    work = schedule(100)
    first = work.answer(Report((), 1, 0, False, 0.0), 0.0)
    ((number, _),) = first.views
    busy = Retryable(number, "HTTP 429", 0.0, True, True, retry_after_s=7.0)
    assert not work.answer(Report((busy,), 8, 0, False, 1.0), 1.0).views
    for now in (1.0, 4.0, 7.9):
        grant = work.answer(Report((), 8, 0, False, now), now)
        assert not grant.views
        assert grant.silence_s == pytest.approx(8.0 - now)
    assert work.answer(Report((), 8, 0, False, 8.1), 8.1).views


def test_a_view_that_failed_in_passing_is_asked_for_again_after_a_longer_pause_each_time() -> None:
    work, now, pauses = schedule(1), 0.0, []
    report = Report((), 1, 0, False, 0.0)
    while not (grant := work.answer(report, now)).over:
        outcomes: tuple[Outcome, ...] = ()
        if grant.views:
            pauses.append(now)
            outcomes = (Retryable(0, "HTTP 500", now, False, True),)
        else:
            now += grant.wait_s
        report = Report(outcomes, 1, 0, False, now)
    gaps = [b - a for a, b in itertools.pairwise(pauses)]
    assert gaps == pytest.approx([0.5, 1, 2], abs=0.05)
    assert work.failures == {0: f"HTTP 500 ({ATTEMPTS} tries)"}


def deaf(number: int, _: int) -> Outcome:
    return Retryable(number, "connection refused", 0.0, True, False)


def test_a_host_that_never_answers_ends_the_job_soon() -> None:
    team = Ranks(schedule(100), 2, 4, deaf, random.Random(1))
    with pytest.raises(GalmerhpcError, match=rf"{SOURCE}: cannot be reached \(connection refused"):
        team.run()
    assert team.now < 60


def test_a_host_that_falls_silent_ends_the_job_and_no_view_is_blamed() -> None:
    def falls_silent(number: int, tries: int) -> Outcome:
        return well(number, tries) if number < 50 else deaf(number, tries)

    work = schedule(1000)
    with pytest.raises(GalmerhpcError, match="cannot be reached"):
        Ranks(work, 2, 4, falls_silent, random.Random(1)).run()
    assert work.fetched == 50
    assert not work.failures


def test_a_view_without_an_answer_is_no_unreachable_host() -> None:
    work = schedule(1000)
    Ranks(work, 2, 4, lambda n, t: (deaf if n % 100 == 7 else well)(n, t), random.Random(1)).run()
    assert set(work.failures) == {number for number in range(1000) if number % 100 == 7}


def page(number: int, _: int) -> Outcome:
    return Failed(number, "a page instead of an image")


def out_of_order(number: int, _: int) -> Outcome:
    return Retryable(number, "HTTP 500", 0.0, False, True)


def one_for_all(number: int, _: int) -> Outcome:
    return Stored(number, digest(-1))


BROKEN = [
    (page, "a page instead"),
    (out_of_order, "HTTP 500"),
    (one_for_all, "returned for several"),
]


@pytest.mark.parametrize(("fate", "why"), BROKEN, ids=["pages", "500", "one picture"])
def test_a_host_that_is_broken_as_a_whole_ends_the_job_and_no_view_is_blamed(
    fate: Callable[[int, int], Outcome], why: str
) -> None:
    work = schedule(2000, rate=20.0)
    team = Ranks(work, 2, 4, fate, random.Random(1))
    with pytest.raises(GalmerhpcError, match=rf"no image came for {FEW} views.*{why}.* later"):
        team.run()
    assert not work.failures
    assert team.asked.total() < 2 * ATTEMPTS * FEW


def test_few_views_that_are_all_missing_are_views_that_failed() -> None:
    work = schedule(FEW - 1)
    Ranks(work, 2, 4, page, random.Random(1)).run()
    assert set(work.failures) == set(range(FEW - 1))


@pytest.mark.parametrize(("fate", "why"), BROKEN, ids=["pages", "500", "one picture"])
@pytest.mark.parametrize("first", [0, 60], ids=["resumed", "midway"])
def test_an_outage_ends_the_job_and_no_view_is_blamed(
    first: int, fate: Callable[[int, int], Outcome], why: str
) -> None:
    stored = {} if first else {digest(9999): 9999}
    work = schedule(3000, rate=20.0, stored=stored)
    team = Ranks(work, 2, 4, lambda n, t: (well if n < first else fate)(n, t), random.Random(1))
    if first:  # what was well is so no more
        team.fate = lambda n, t: (well if n < first and not t else fate)(n, t)
    with pytest.raises(GalmerhpcError, match=rf"no image came for .*{why}.* was fetched before"):
        team.run()
    assert work.failures.keys() < set(range(first, first + 8))  # while the last good ones came
    assert team.asked.total() < first + 2 * ATTEMPTS * FEW


@pytest.mark.parametrize("fate", [page, out_of_order], ids=["pages", "500"])
@pytest.mark.parametrize(
    ("first", "resumed", "allow_missing"), [(100, False, False), (0, True, False), (0, False, True)]
)
def test_a_missing_snapshot_is_its_views_loss_where_others_come_or_it_may_be_missing(
    first: int, resumed: bool, allow_missing: bool, fate: Callable[[int, int], Outcome]
) -> None:
    lost = range(first, first + 300)
    stored = {digest(9999): 9999} if resumed else {}
    work = schedule(1000, stored=stored, allow_missing=allow_missing)
    team = Ranks(work, 2, 4, lambda n, t: (fate if n in lost else well)(n, t), random.Random(1))
    team.run()
    assert set(work.failures) == set(lost)
    assert work.fetched == 700
    again = [number for number in team.asked if number not in lost and team.asked[number] > 1]
    assert len(again) <= 1  # the view that shows whether the host is well
    assert sum(team.asked[n] for n in team.asked if n not in lost) <= 701 + 300 / FEW


@pytest.mark.parametrize(
    "outcome", [Failed(0, "a page"), Retryable(0, "HTTP 502", 1.0, False, True)]
)
def test_what_is_no_picture_does_not_speed_up_a_slowed_pace(outcome: Outcome) -> None:
    work = schedule(100)
    (one, _), (two, _) = work.answer(Report((), 2, 0, False, 0.0), 0.0).views
    work.answer(Report((Retryable(one, "HTTP 503", 0.0, True, True),), 0, 0, False, 0.0), 0.0)
    slow = work.share
    assert slow < 1
    work.answer(Report((replace(outcome, number=two),), 0, 0, False, 1.0), 1.0)
    assert work.share == slow


def test_a_long_silence_ends_the_job() -> None:
    work = schedule(10)
    ((number, _),) = work.answer(Report((), 1, 0, False, 0.0), 0.0).views
    with pytest.raises(GalmerhpcError, match=r"left alone for 100000 s .* same command again"):
        work.answer(Report((Retryable(number, "", 0.0, True, True, 1e5),), 1, 0, False, 1.0), 1.0)


@given(seed=st.integers(0, 2**32), allow=st.booleans())
def test_a_picture_that_came_for_several_views_is_none_of_theirs(seed: int, allow: bool) -> None:
    draw = random.Random(seed)
    # Views 0..29 are asked for; 100 has been there; 200's and 201's picture is known as an error's.
    picture = {n: draw.choice([digest(n), digest(-1), digest(100), digest(200)]) for n in range(30)}
    there = {digest(100): 100}
    work = schedule(30, stored=there, errors=(digest(200),), allow=allow)
    Ranks(work, 3, 4, lambda n, _: Stored(n, picture[n]), draw).run()
    if allow:
        assert work.fetched == 30
        assert not work.failures
        return
    count = Counter({digest(100): 1, digest(200): 2}) + Counter(picture.values())
    lost = {n for n, sha in ({100: digest(100)} | picture).items() if count[sha] > 1}
    assert set(work.failures) == lost
    assert work.fetched == 30 - len(lost)
    assert all("allow_duplicates" in why for why in work.failures.values())


def test_ranks_hear_of_duplicates_once() -> None:
    work = schedule(10, errors=(b"a",))
    grants: list[Assignment] = [work.answer(Report((), 2, 0, False, 0.0), 0.0)]
    assert grants[0].duplicates == (b"a",)
    (one, _), (two, _) = grants[0].views
    both = (Stored(one, b"b"), Stored(two, b"b"))
    assert work.answer(Report(both, 0, 1, False, 0.0), 0.0).duplicates == (b"b",)
    assert work.answer(Report((), 0, 2, False, 0.0), 0.0).duplicates == ()
    assert work.answer(Report((), 0, 0, False, 0.0), 0.0).duplicates == (b"a", b"b")


def test_one_rank_that_stops_stops_all() -> None:
    work = schedule(10)
    assert not work.answer(Report((), 1, 0, False, 0.0), 0.0).over
    for stop in (True, False):
        grant = work.answer(Report((), 1, 0, stop, 0.0), 0.0)
        assert (grant.over, grant.stopped, grant.views) == (True, True, ())
