"""What a run came to."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from penstock._core.usage import Usage
from penstock.cli.tally import ServerStatistics, Tally, percentile, quota_used
from penstock.events import BackgroundFailed, CallEnded, RetryScheduled

if TYPE_CHECKING:
    from penstock.simulator import Simulator


def ended(failure: str | None = None, *, latency_s: float = 1.0) -> CallEnded:
    """A call that ended."""
    return CallEnded(
        call_id="1",
        request_id=None,
        kind="messages",
        model="claude-haiku-5-5",
        stream=False,
        status=None,
        failure=failure,
        error_type=None,
        stop_reason=None,
        attempts=1,
        usage=Usage(input_tokens=10, cache_read_input_tokens=5, output_tokens=3),
        latency_s=latency_s,
        queued_s=latency_s / 2,
        first_token_s=None,
        key=None,
        labels={},
    )


def retry(reason: str) -> RetryScheduled:
    """An attempt that failed and is repeated."""
    return RetryScheduled(call_id="1", attempt=1, delay_s=0.1, reason=reason)


def statistics(**buckets: tuple[float, float, float | None]) -> ServerStatistics:
    """Statistics with one organization; each bucket is level, taken, possible."""
    unlimited = {"level": None, "taken": 5.0, "possible": None}
    quota = dict.fromkeys(("requests", "input_tokens", "output_tokens"), unlimited) | {
        name: dict(zip(("level", "taken", "possible"), values, strict=True)) for name, values in buckets.items()
    }
    return ServerStatistics.model_validate({"organizations": {"org": {"quotas": {"haiku": quota}}}})


NOTHING = ServerStatistics(organizations={})


def test_an_attempt_that_failed_counts_whether_it_was_repeated_or_not() -> None:
    """What was seen of a kind are the attempts repeated for it, and the last ones of calls that failed."""
    tally = Tally()
    for event in (retry("overloaded"), retry("server"), retry("connection"), ended("overloaded"), ended()):
        tally(event)
    assert tally.seen("overloaded", "server") == 3
    assert tally.seen("connection") == 1
    assert tally.retries.total() == 3


def test_times_and_tokens_of_every_call_are_kept() -> None:
    """Latencies and waits are kept one by one, and tokens summed, cached input included."""
    tally = Tally()
    tally(ended(latency_s=2.0))
    tally(ended(latency_s=4.0))
    assert tally.latencies_s == [2.0, 4.0]
    assert tally.waits_s == [1.0, 2.0]
    assert (tally.input_tokens, tally.output_tokens) == (30, 6)


def test_other_events_change_nothing() -> None:
    """Events that a run has no use for pass by."""
    tally = Tally()
    before = repr(tally)
    tally(BackgroundFailed(error_type="OSError"))
    assert repr(tally) == before == "<Tally 0 answered, 0 failed, 0 retries>"


@pytest.mark.parametrize(("share", "expected"), [(0.0, 1.0), (0.5, 50.0), (0.99, 99.0), (1.0, 100.0)])
def test_percentiles_are_values_that_were_there(share: float, expected: float) -> None:
    """A percentile is the smallest value that so many don't exceed."""
    assert percentile([float(number) for number in range(100, 0, -1)], share) == expected


def test_nothing_has_no_percentile_but_zero() -> None:
    """A run in which nothing happened has a table too."""
    assert percentile([], 0.5) == 0.0


def test_possible_is_what_was_there_and_what_ran_in() -> None:
    """A bucket that was half full at the start could give that half, and what it was refilled with."""
    before = statistics(requests=(50.0, 50.0, 100.0))
    after = statistics(requests=(0.0, 150.0, 300.0))
    assert quota_used(before, after) == ("requests", 100 / 250)


def test_an_organization_first_seen_during_the_run_starts_full() -> None:
    """Its first burst counts as possible."""
    assert quota_used(NOTHING, statistics(requests=(0.0, 90.0, 100.0))) == ("requests", 0.9)


def test_the_limit_that_was_used_most_held_the_run_back() -> None:
    """Of several limits the one with the highest share is reported."""
    after = statistics(requests=(0.0, 10.0, 100.0), input_tokens=(0.0, 800.0, 1000.0))
    assert quota_used(NOTHING, after) == ("input_tokens", 0.8)


def test_without_limits_there_is_nothing_to_use() -> None:
    """No limits, or none that allowed anything yet, make no share."""
    assert quota_used(NOTHING, statistics()) is None
    assert quota_used(NOTHING, NOTHING) is None
    assert quota_used(NOTHING, statistics(requests=(0.0, 0.0, 0.0))) is None


async def test_the_simulator_tells_what_is_needed(simulator: Simulator) -> None:
    """The simulator's statistics hold every number that the share is made of."""
    async with simulator.client() as claude:
        await claude.messages.create(
            model="claude-haiku-5-5", max_tokens=10, messages=[{"role": "user", "content": "Hello"}]
        )
    books = ServerStatistics.model_validate(simulator.statistics(), from_attributes=True)
    assert {place[2] for place, _ in books.buckets()} == {"requests", "input_tokens", "output_tokens"}
