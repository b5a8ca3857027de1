"""What answers say of limits is believed when it is confirmed, forgotten when it is old, and locks nobody out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from penstock.errors import RequestExceedsQuota
from penstock.guards.admit.limits import Cost, LimitHeaders, Limits
from penstock.guards.admit.quota import ClassQuota

if TYPE_CHECKING:
    from penstock.testing.plugin import VirtualTime

LARGE = Cost(1, 5000, 100)


def told(limit: float | None = None, remaining: float | None = None) -> LimitHeaders:
    """What an answer's headers say of input tokens."""
    return LimitHeaders(
        limits={} if limit is None else {"input_tokens": limit},
        remaining={} if remaining is None else {"input_tokens": remaining},
    )


def answer(allowance: ClassQuota, headers: LimitHeaders, *, now: float, cost: Cost = LARGE) -> bool:
    """One request, and its answer at once."""
    mark = allowance.take(cost, now=now)
    changed = allowance.learn(headers, mark, cost, now=now)
    allowance.works(mark, now=now)
    allowance.settle(cost, cost)
    return changed


@pytest.mark.lengthy
@pytest.mark.parametrize(
    ("header", "value"),
    [
        *[("limit", value) for value in ("0", "-5", "0.5", "1e-300", "1e18", "nan", "inf", "many", "", "0x10")],
        *[("remaining", value) for value in ("-5", "nan", "inf", "1e400", "many", "")],
    ],
)
@pytest.mark.parametrize("name", ["requests", "input-tokens", "output-tokens"])
def test_what_no_limit_can_mean_is_not_read(header: str, value: str, name: str) -> None:
    """Nor what no number is."""
    headers = LimitHeaders.read([(f"anthropic-ratelimit-{name}-{header}".encode(), value.encode())])
    assert not headers.limits
    assert not headers.remaining


def test_more_left_than_the_limit_is_not_read() -> None:
    """But for what rounding to thousands adds."""
    for remaining, read in (("100", True), ("1600", True), ("2000", True), ("3000", False), ("1e18", False)):
        headers = LimitHeaders.read(
            [
                (b"anthropic-ratelimit-input-tokens-limit", b"1500"),
                (b"anthropic-ratelimit-input-tokens-remaining", remaining.encode()),
            ]
        )
        assert bool(headers.remaining) is read


@pytest.mark.parametrize("reset", ["2100-01-01T00:00:00Z", "1970-01-01T00:00:00Z", "soon", "", "9" * 40])
def test_a_bucket_that_is_full_in_another_century_tells_nothing(reset: str) -> None:
    """Nor one that was full long ago, or that is no time."""
    headers = LimitHeaders.read(
        [(b"anthropic-ratelimit-requests-reset", reset.encode()), (b"date", b"Fri, 20 Nov 2026 10:00:00 GMT")]
    )
    assert headers.seconds_to_full("requests") is None


async def test_one_answer_alone_teaches_no_limit(virtual_time: VirtualTime) -> None:
    """The second in a row that tells it does; in between, the one believed holds."""
    allowance, now = ClassQuota(Limits()), virtual_time.now()
    assert not answer(allowance, told(3), now=now)
    assert not allowance.buckets
    assert not answer(allowance, told(20_000), now=now)
    assert answer(allowance, told(20_000), now=now)
    for absurd in (3, 1e11, 7):
        assert not answer(allowance, told(absurd), now=now)
        assert not answer(allowance, told(20_000), now=now)
        assert allowance.buckets["input_tokens"].per_minute == 20_000
    answer(allowance, told(10_000), now=now)
    assert answer(allowance, told(10_000), now=now)
    assert allowance.buckets["input_tokens"].per_minute == 10_000


async def test_a_limit_that_is_not_told_any_more_is_forgotten(virtual_time: VirtualTime) -> None:
    """After ten minutes; what is configured then holds alone."""
    for configured in (None, 50_000.0):
        allowance, now = ClassQuota(Limits(input_tokens_per_minute=configured)), virtual_time.now()
        answer(allowance, told(20_000), now=now)
        answer(allowance, told(20_000), now=now)
        assert not answer(allowance, told(), now=now + 599)
        assert allowance.buckets["input_tokens"].per_minute == 20_000
        assert answer(allowance, told(), now=now + 601)
        left = {name: bucket.per_minute for name, bucket in allowance.buckets.items()}
        assert left == ({} if configured is None else {"input_tokens": configured})


async def test_only_what_is_configured_refuses(virtual_time: VirtualTime) -> None:
    """What only answers say can't fit waits for a full bucket, and goes."""
    allowance, now = ClassQuota(Limits(input_tokens_per_minute=4000)), virtual_time.now()
    with pytest.raises(RequestExceedsQuota):
        allowance.check(LARGE)
    allowance.check(Cost(1, 5000, 0, sure_input_tokens=4000))
    allowance = ClassQuota(Limits())
    for _ in range(2):
        answer(allowance, told(1000), now=now, cost=Cost(1, 0, 0))
    allowance.check(LARGE)
    assert allowance.wait_s(LARGE, now=now) == 0


async def test_nobody_waits_for_longer_than_a_minute_for_what_answers_say(virtual_time: VirtualTime) -> None:
    """A request of 5,000 tokens leaves a bucket of 3 a minute in debt for a day: one a minute goes all the same."""
    allowance, now = ClassQuota(Limits()), virtual_time.now()
    for _ in range(2):
        answer(allowance, told(3), now=now, cost=Cost(1, 0, 0))
    mark = allowance.take(LARGE, now=now)
    assert allowance.wait_s(LARGE, now=now) > 3600, "while one is under way, there is nothing else to see"
    allowance.learn(told(3), mark, LARGE, now=now)
    allowance.settle(LARGE, LARGE)
    assert allowance.wait_s(LARGE, now=now) == pytest.approx(60)
    assert allowance.wait_s(LARGE, now=now + 60) == 0


async def test_what_is_configured_holds_however_long_that_takes(virtual_time: VirtualTime) -> None:
    """It isn't for a probe to spend more than the user allows."""
    allowance, now = ClassQuota(Limits(input_tokens_per_minute=1000)), virtual_time.now()
    answer(allowance, told(), now=now, cost=Cost(1, 5000))
    assert allowance.wait_s(Cost(1, 1000), now=now) == pytest.approx(300, rel=0.01)


async def test_an_hours_rest_is_probed_and_ends_with_a_probe_that_succeeds(virtual_time: VirtualTime) -> None:
    """After a minute one request goes, alone; refused again, the next goes two minutes later, up to ten."""
    allowance, now = ClassQuota(Limits()), virtual_time.now()
    allowance.cool_down(3600, now=now)
    intervals, before = list[int](), allowance.take(Cost(), now=now - 1)
    allowance.settle(Cost(), Cost())
    for _ in range(5):
        wait = allowance.wait_s(Cost(), now=now)
        intervals.append(round(wait))
        now += wait + 1e-6
        assert allowance.wait_s(Cost(), now=now) == 0
        allowance.take(Cost(), now=now)
        assert allowance.wait_s(Cost(), now=now) > 600, "one at a time"
        allowance.settle(Cost(), Cost(0))
        allowance.cool_down(3600, now=now + 0.001)
    assert intervals == [60, 120, 240, 480, 600]
    now += allowance.wait_s(Cost(), now=now) + 1e-6
    probe = allowance.take(Cost(), now=now)
    allowance.works(before, now=now)
    assert allowance.cooling_until > now, "an older answer tells nothing of the rest"
    allowance.works(probe, now=now)
    allowance.settle(Cost(), Cost())
    assert allowance.cooling_until == now


async def test_a_long_rest_is_sure_only_when_a_probe_was_refused(virtual_time: VirtualTime) -> None:
    """So that who can't wait for its end is refused at once then, and not because of one answer."""
    allowance, now = ClassQuota(Limits()), virtual_time.now()
    allowance.cool_down(30, now=now)
    assert allowance.cooling_s(now=now) == 30
    allowance.cool_down(3600, now=now)
    assert allowance.cooling_s(now=now) == 0
    now += 61
    allowance.take(Cost(), now=now)
    assert allowance.cooling_s(now=now) == 0
    allowance.settle(Cost(), Cost(0))
    allowance.cool_down(3600, now=now + 1)
    assert allowance.cooling_s(now=now + 1) == 3600


async def test_after_a_rest_of_which_no_limit_tells_more_not_all_come_at_once(virtual_time: VirtualTime) -> None:
    """Where headers are stripped, answers don't end the gentle wave that follows a 429."""
    allowance, now = ClassQuota(Limits()), virtual_time.now()
    answer(allowance, told(), now=now)
    assert allowance.wait_s(Cost(), now=now) == 0
    allowance.cool_down(1, now=now)
    now, sent = now + 1, 0
    while allowance.wait_s(Cost(), now=now) == 0:
        allowance.take(Cost(), now=now)
        sent += 1
    assert sent == 10
    answer(allowance, told(), now=now)
    assert allowance.wait_s(Cost(), now=now) > 0


async def test_a_refusal_leaves_no_more_than_a_minutes_debt(virtual_time: VirtualTime) -> None:
    """The rest itself says how long; the bucket need not."""
    allowance, now = ClassQuota(Limits(requests_per_minute=60)), virtual_time.now()
    mark = allowance.take(Cost(), now=now)
    headers = LimitHeaders(remaining={"requests": 0})
    allowance.learn(headers, mark, Cost(), now=now, refused_for_s=3600)
    assert allowance.buckets["requests"].available == pytest.approx(-60, abs=0.1)
