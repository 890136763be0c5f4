"""The pace: never above the budget, slower in trouble, never for ever."""

import itertools
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from galmerhpc.dataset.pace import Pace

PAUSE, LONGEST = 0.5, 60.0
CONNECTIONS = st.integers(1, 64)
RATES = st.floats(0.1, 500)
MOMENTS = st.floats(0, 10)


@dataclass
class Event:
    """What happens: after `later` seconds, a start, a good answer or trouble."""

    later: float
    kind: str
    age: float
    silence: float


EVENTS = st.lists(
    st.builds(
        Event,
        later=st.floats(0, 2),
        kind=st.sampled_from(["start", "start", "start", "answered", "trouble"]),
        age=st.floats(0, 5),
        silence=st.sampled_from([0.0, 0.0, 0.3, 4.0]),
    ),
    max_size=60,
)


@given(connections=CONNECTIONS, rate=RATES, events=EVENTS, burst=st.integers(1, 30))
def test_no_second_holds_more_than_the_budget_whatever_happens(
    connections: int, rate: float, events: list[Event], burst: int
) -> None:
    pace, now, starts = Pace(connections, rate, PAUSE, LONGEST), 0.0, []
    for event in events:
        now += event.later
        if event.kind == "start":
            starts += [pace.start(now) for _ in range(burst)]
        elif event.kind == "answered":
            pace.recover()
        else:
            pace.back_off(now, now - event.age, event.silence)
        assert 0 < pace.share <= 1
        assert 1 <= pace.connections <= connections
    assert starts == sorted(starts)
    gaps = [b - a for a, b in itertools.pairwise(starts)]
    assert all(gap >= (1 - 1e-9) / rate - 1e-9 for gap in gaps)


@given(rate=RATES, idle=st.floats(0, 1000))
def test_time_that_was_not_used_is_not_caught_up(rate: float, idle: float) -> None:
    pace = Pace(8, rate, PAUSE, LONGEST)
    pace.start(0.0)
    now = 1 / rate + idle
    assert pace.start(now) == now
    assert pace.start(now) == pytest.approx(now + 1 / rate)


@given(connections=CONNECTIONS, rate=RATES | st.none(), silence=st.floats(0.01, 100), now=MOMENTS)
def test_silence_is_kept_by_everybody(
    connections: int, rate: float | None, silence: float, now: float
) -> None:
    pace = Pace(connections, rate, PAUSE, LONGEST)
    pace.back_off(now, now, silence)
    assert pace.silence_s(now) >= silence * (1 - 1e-9)
    assert pace.start(now) >= now + silence * (1 - 1e-9)


@given(connections=st.integers(2, 64), answers=st.integers(1, 20))
def test_the_troubles_of_one_round_trip_count_once(connections: int, answers: int) -> None:
    pace = Pace(connections, None, PAUSE, LONGEST)
    told = [pace.back_off(10.0 + k / 100, 9.0 + k / 100) for k in range(answers)]
    assert told == [True] + [False] * (answers - 1)
    assert pace.share == max(1 / connections, 0.5)
    assert pace.back_off(12.0, 11.0)
    assert pace.share == max(1 / connections, 0.25)


@given(connections=CONNECTIONS, rounds=st.integers(1, 40))
def test_a_host_that_refuses_one_connection_is_given_longer_and_longer_pauses(
    connections: int, rounds: int
) -> None:
    pace, now, pauses = Pace(connections, None, PAUSE, LONGEST), 0.0, []
    for _ in range(rounds + 8):
        now += 1
        pace.back_off(now, now)
        if silence := pace.silence_s(now):
            pauses.append(silence)
            now += 1.001 * silence
    assert pace.connections == 1
    assert pauses == pytest.approx([min(PAUSE * 2**k, LONGEST) for k in range(len(pauses))])
    assert len(pauses) >= rounds
    pace.recover()
    while not pace.silence_s(now):
        now += 1
        pace.back_off(now, now)
    assert pace.silence_s(now) == pytest.approx(PAUSE)


@given(connections=CONNECTIONS, rate=RATES, troubles=st.integers(1, 50))
def test_the_full_pace_comes_back_with_good_answers(
    connections: int, rate: float, troubles: int
) -> None:
    pace, now = Pace(connections, rate, PAUSE, LONGEST), 0.0
    for _ in range(troubles):
        now = pace.start(now)
        pace.back_off(now, now)
    slow, before = pace.share, pace.start(now)
    assert pace.start(now) - before == pytest.approx(1 / (rate * slow))
    answers = 0
    while pace.share < 1:
        assert pace.share >= slow
        pace.recover()
        answers += 1
    assert answers <= 64
    pace.start(now)
    before = pace.start(now)
    assert pace.start(now) - before == pytest.approx(1 / rate)


def test_an_even_share_of_faults_is_ridden_out_not_stalled() -> None:
    """One request in ten refused: the pace settles, for ever, well above its floor."""
    pace, now, shares = Pace(32, 200, PAUSE, LONGEST), 0.0, []
    for k in range(20_000):
        now = pace.start(now)
        if k % 10:
            pace.recover()
        else:
            pace.back_off(now, now)
        shares.append(pace.share)
    assert 0.1 < sum(shares) / len(shares) < 0.6
    assert 20_000 / now > 20
