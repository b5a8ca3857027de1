from __future__ import annotations

import itertools

import pytest

from penstock.guards.admit.ramp import Ramp


def sent(ramp: Ramp, *, since: float, seconds: float) -> list[float]:
    """Send as fast as it allows, at most 100 a second; the times."""
    now, times = since, list[float]()
    while now < since + seconds:
        now += max(ramp.wait_s(now=now), 0.01)
        ramp.admitted(now=now)
        times.append(now)
    return times


def test_without_a_complaint_nothing_is_bounded() -> None:
    """Any rate is fine."""
    ramp = Ramp()
    for _ in range(1000):
        ramp.admitted(now=0)
        assert ramp.wait_s(now=0) == 0
    assert not ramp.active
    assert repr(ramp) == "<Ramp off>"


def test_after_a_complaint_requests_go_at_four_fifths_of_their_rate() -> None:
    """Evenly: no burst within the minute either."""
    ramp = Ramp()
    for number in range(1000):
        ramp.admitted(now=number / 20)
    ramp.too_steep(now=50)
    assert ramp.active
    times = sent(ramp, since=50, seconds=10)
    assert len(times) / 10 == pytest.approx(0.8 * 20, rel=0.15)
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert max(gaps) < 3 * min(gaps)
    assert repr(ramp).startswith("<Ramp from 1")


def test_the_rate_doubles_each_minute() -> None:
    """So that growth is what the API calls gradual."""
    ramp = Ramp()
    for number in range(200):
        ramp.admitted(now=number / 2)
    ramp.too_steep(now=100)
    per_minute = [len(sent(ramp, since=100 + 60 * minute, seconds=60)) for minute in range(4)]
    for earlier, later in itertools.pairwise(per_minute):
        assert later / earlier == pytest.approx(2, rel=0.15)


def test_complaints_of_one_moment_are_one() -> None:
    """Many answers at once complain of the same growth."""
    once, often = Ramp(), Ramp()
    for ramp in (once, often):
        for number in range(1000):
            ramp.admitted(now=number / 20)
        ramp.too_steep(now=50)
    for _ in range(20):
        often.too_steep(now=50.5)
    assert len(sent(once, since=51, seconds=5)) == len(sent(often, since=51, seconds=5))


def test_another_complaint_slows_down_further() -> None:
    """Below what was allowed, whatever rate was tried."""
    ramp = Ramp()
    for number in range(1000):
        ramp.admitted(now=number / 20)
    ramp.too_steep(now=50)
    before = len(sent(ramp, since=50, seconds=5))
    ramp.too_steep(now=55)
    assert len(sent(ramp, since=55, seconds=5)) < before


def test_it_never_comes_to_a_halt() -> None:
    """After many complaints, or one without any request before it, one goes every two seconds."""
    ramp = Ramp()
    for number in range(50):
        ramp.too_steep(now=2.0 * number)
    assert len(sent(ramp, since=100, seconds=10)) >= 5


def test_after_ten_minutes_the_matter_is_forgotten() -> None:
    """Without another complaint."""
    ramp = Ramp()
    ramp.too_steep(now=0)
    ramp.admitted(now=0)
    assert ramp.wait_s(now=0) > 0
    assert ramp.wait_s(now=601) == 0
    assert not ramp.active
