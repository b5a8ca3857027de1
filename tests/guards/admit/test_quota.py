from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.errors import RequestExceedsQuota
from penstock.guards.admit.limits import Cost, LimitHeaders, Limits
from penstock.guards.admit.quota import ClassQuota, Mark, Quota
from penstock.testing import VirtualLoop

if TYPE_CHECKING:
    from penstock.testing.plugin import VirtualTime

NOTHING = Cost(0, 0, 0)
ALL = Limits(requests_per_minute=60, input_tokens_per_minute=6000, output_tokens_per_minute=600)
tokens = st.integers(min_value=0, max_value=1000)
costs = st.builds(Cost, requests=st.just(1), input_tokens=tokens, output_tokens=tokens)


def told(
    limits: dict[str, float] | None = None, remaining: dict[str, float] | None = None, **more: Any
) -> LimitHeaders:
    """What an answer's headers say."""
    return LimitHeaders(limits=limits or {}, remaining=remaining or {}, **more)


def available(allowance: ClassQuota) -> dict[str, float]:
    """What is left in every bucket."""
    return {name: round(bucket.available, 2) for name, bucket in allowance.buckets.items()}


def taught(**limits: float) -> ClassQuota:
    """A quota whose first answer has come."""
    allowance = ClassQuota(Limits(**limits))
    mark = allowance.take(NOTHING, now=0)
    allowance.learn(told(), mark, NOTHING, now=0)
    allowance.settle(NOTHING, NOTHING)
    return allowance


# Take and settle.


async def test_a_cost_is_taken_from_every_bucket(virtual_time: VirtualTime) -> None:
    """And each request under way is counted."""
    allowance = ClassQuota(ALL)
    allowance.take(Cost(1, 1000, 100), now=0)
    assert available(allowance) == {"requests": 59, "input_tokens": 5000, "output_tokens": 500}
    assert allowance.in_flight == 1
    allowance.settle(Cost(1, 1000, 100), Cost(1, 900, 150))
    assert available(allowance) == {"requests": 59, "input_tokens": 5100, "output_tokens": 450}
    assert allowance.in_flight == 0


async def test_what_was_not_processed_is_given_back(virtual_time: VirtualTime) -> None:
    """After a refusal nothing has been used."""
    allowance = ClassQuota(ALL)
    allowance.take(Cost(1, 1000, 100), now=0)
    allowance.settle(Cost(1, 1000, 100), NOTHING)
    assert available(allowance) == {"requests": 60, "input_tokens": 6000, "output_tokens": 600}


@given(st.lists(st.tuples(costs, costs), max_size=30), st.integers(min_value=0))
def test_what_is_taken_is_what_was_used_and_what_is_under_way(pairs: list[tuple[Cost, Cost]], under_way: int) -> None:
    """In any order of settling, at one moment: taken = settled + in flight, for each bucket."""
    loop = VirtualLoop()

    async def main() -> None:
        allowance = ClassQuota(
            Limits(requests_per_minute=1e9, input_tokens_per_minute=1e9, output_tokens_per_minute=1e9)
        )
        now = loop._jumping.now
        for taken, _ in pairs:
            allowance.take(taken, now=now)
        settled = pairs[under_way % (len(pairs) + 1) :]
        for taken, used in reversed(settled):
            allowance.settle(taken, used)
        open_ = pairs[: len(pairs) - len(settled)]
        assert allowance.in_flight == len(open_)
        for name, bucket in allowance.buckets.items():
            spent = sum(getattr(used, name) for _, used in settled) + sum(getattr(taken, name) for taken, _ in open_)
            assert bucket._level == pytest.approx(spent)

    try:
        loop.run_until_complete(main())
    finally:
        loop.close()


async def test_the_scarcest_bucket_decides_the_wait(virtual_time: VirtualTime) -> None:
    """All must be able to grant their share; the wait is the longest of theirs."""
    allowance = taught(requests_per_minute=60, input_tokens_per_minute=6000, output_tokens_per_minute=600)
    assert allowance.wait_s(Cost(1, 6000, 600), now=virtual_time.now()) == 0
    allowance.take(Cost(1, 3000, 600), now=virtual_time.now())
    assert allowance.wait_s(Cost(1, 3000, 0), now=virtual_time.now()) == 0
    assert allowance.wait_s(Cost(1, 4000, 0), now=virtual_time.now()) == pytest.approx(10, abs=0.01)
    assert allowance.wait_s(Cost(1, 4000, 300), now=virtual_time.now()) == pytest.approx(30, abs=0.01)


async def test_a_guess_of_output_waits_for_a_full_bucket_at_most(virtual_time: VirtualTime) -> None:
    """Only the answer can tell how much it is, so that a large guess is no reason to refuse."""
    allowance = taught(output_tokens_per_minute=600)
    allowance.check(Cost(1, 0, 100_000))
    assert allowance.wait_s(Cost(1, 0, 100_000), now=virtual_time.now()) == 0
    allowance.take(Cost(1, 0, 300), now=virtual_time.now())
    assert allowance.wait_s(Cost(1, 0, 100_000), now=virtual_time.now()) == pytest.approx(30, abs=0.01)


async def test_input_larger_than_the_limit_is_refused(virtual_time: VirtualTime) -> None:
    """No wait would make it fit; the error names limit, need and capacity."""
    allowance = ClassQuota(ALL)
    allowance.check(Cost(1, 6000, 0))
    with pytest.raises(RequestExceedsQuota) as raised:
        allowance.check(Cost(1, 6001, 0))
    assert (raised.value.limit, raised.value.needed, raised.value.capacity) == ("input_tokens", 6001, 6000)


async def test_what_fits_a_minute_waits_for_a_bucket_that_holds_less(virtual_time: VirtualTime) -> None:
    """A capacity is read off coarse headers; only the limit itself says that a request is too large."""
    allowance = ClassQuota(ALL)
    allowance.buckets["input_tokens"].change(per_minute=6000, capacity=600)
    allowance.check(Cost(1, 6000, 0))
    with pytest.raises(RequestExceedsQuota):
        allowance.check(Cost(1, 6001, 0))


async def test_headroom_is_the_share_left_of_the_scarcest(virtual_time: VirtualTime) -> None:
    """Where no limit is known, nobody knows."""
    allowance = ClassQuota(ALL)
    allowance.take(Cost(6, 3000, 60), now=0)
    assert allowance.headroom() == pytest.approx(0.5, abs=0.01)
    assert ClassQuota(Limits()).headroom() is None


# Cool-down and the first wave.


async def test_of_two_cool_downs_the_longer_holds(virtual_time: VirtualTime) -> None:
    """In either order, and only the longer is news."""
    allowance = taught()
    assert allowance.cool_down(10, now=0)
    assert not allowance.cool_down(5, now=0)
    assert not allowance.cool_down(10, now=0)
    assert allowance.wait_s(Cost(), now=4) == 6
    assert allowance.cool_down(20, now=0)
    assert allowance.wait_s(Cost(), now=10) == 10
    assert allowance.wait_s(Cost(), now=20) == 0


async def test_before_the_first_answer_requests_come_in_a_gentle_wave(virtual_time: VirtualTime) -> None:
    """Ten at once, and ten more each second, because nobody knows yet what is left."""
    allowance, sent, now = ClassQuota(Limits()), list[float](), 0.0
    for _ in range(30):
        wait = allowance.wait_s(Cost(), now=now)
        now += wait
        assert allowance.wait_s(Cost(), now=now) < 1e-9
        allowance.take(Cost(), now=now)
        sent.append(now)
    assert sent[:10] == [0.0] * 10
    assert sent[10] == pytest.approx(0.1)
    assert sent[29] == pytest.approx(2.0)


async def test_the_first_wave_ends_with_the_first_answer(virtual_time: VirtualTime) -> None:
    """Then only what it told bounds the rest."""
    allowance = ClassQuota(Limits())
    marks = [allowance.take(Cost(), now=0) for _ in range(10)]
    assert allowance.wait_s(Cost(), now=0) > 0
    allowance.learn(told(), marks[0], Cost(), now=0)
    assert allowance.wait_s(Cost(), now=0) == 0


async def test_a_large_limit_configured_makes_a_larger_wave(virtual_time: VirtualTime) -> None:
    """Whoever says 6,000 a minute means a hundred a second."""
    allowance = ClassQuota(Limits(requests_per_minute=6000))
    for _ in range(100):
        assert allowance.wait_s(Cost(), now=virtual_time.now()) == 0
        allowance.take(Cost(), now=virtual_time.now())
    assert allowance.wait_s(Cost(), now=virtual_time.now()) > 0


# What answers teach.


async def test_an_answer_teaches_the_limits(virtual_time: VirtualTime) -> None:
    """A limit that nobody configured becomes a bucket, with what is under way taken; the same again is no news."""
    allowance = ClassQuota(Limits())
    marks = [allowance.take(Cost(1, 100, 50), now=0) for _ in range(3)]
    limits: dict[str, float] = {"requests": 60, "input_tokens": 6000, "output_tokens": 600}
    assert not allowance.learn(told(limits), marks[0], Cost(1, 100, 50), now=0)
    assert allowance.learn(told(limits), marks[1], Cost(1, 100, 50), now=0)
    assert {name: bucket.per_minute for name, bucket in allowance.buckets.items()} == limits
    assert available(allowance)["requests"] == 57
    assert available(allowance)["output_tokens"] == 450
    assert not allowance.learn(told(limits), marks[2], Cost(1, 100, 50), now=0)


async def test_a_changed_limit_holds_with_the_second_answer_that_tells_it(virtual_time: VirtualTime) -> None:
    """Upwards and downwards."""
    allowance = ClassQuota(Limits())
    for limit in (60.0, 600.0, 30.0):
        mark = allowance.take(Cost(), now=0)
        assert not allowance.learn(told({"requests": limit}), mark, Cost(), now=0)
        assert allowance.learn(told({"requests": limit}), mark, Cost(), now=0)
        assert allowance.buckets["requests"].per_minute == pytest.approx(limit)


async def test_what_is_configured_is_an_upper_bound(virtual_time: VirtualTime) -> None:
    """The API's limit wins below it, and never above."""
    allowance = ClassQuota(Limits(requests_per_minute=50))
    mark = allowance.take(Cost(), now=0)
    assert not allowance.learn(told({"requests": 1000}), mark, Cost(), now=0)
    assert allowance.buckets["requests"].per_minute == 50
    assert not allowance.learn(told({"requests": 20}), mark, Cost(), now=0)
    assert allowance.learn(told({"requests": 20}), mark, Cost(), now=0)
    assert allowance.buckets["requests"].per_minute == 20


async def test_less_remaining_than_thought_is_believed(virtual_time: VirtualTime) -> None:
    """Another process spends from the same quota: the bucket follows downward at once."""
    allowance = ClassQuota(Limits(requests_per_minute=60))
    now = virtual_time.now()
    mark = allowance.take(Cost(), now=now)
    allowance.learn(told(remaining={"requests": 5}), mark, Cost(), now=now)
    assert available(allowance)["requests"] == pytest.approx(5, abs=0.1)


async def test_more_remaining_than_thought_is_believed_where_no_reading_speaks_against_it(
    virtual_time: VirtualTime,
) -> None:
    """A bucket that was emptied by a guess is filled up to what the API says is left, and no further."""
    allowance = taught(requests_per_minute=60)
    cost = Cost(50)
    mark = allowance.take(cost, now=0)
    for left in (10, 10, 10):
        assert available(allowance) == {"requests": left}
        allowance.learn(told({"requests": 60}, {"requests": 40}), mark, cost, now=0)
    assert available(allowance) == {"requests": 40}
    mark = allowance.take(Cost(30), now=0)
    allowance.learn(told({"requests": 60}, {"requests": 5}), mark, Cost(30), now=0)
    assert available(allowance) == {"requests": 5}


async def test_an_answer_does_not_count_later_requests_twice(virtual_time: VirtualTime) -> None:
    """Requests sent after the one that is answered may be in the API's count or not: neither reading is punished."""
    allowance = ClassQuota(Limits(requests_per_minute=60))
    now = virtual_time.now()
    first = allowance.take(Cost(), now=now)
    for _ in range(20):
        allowance.take(Cost(), now=now)
    for remaining in (59.0, 39.0):
        allowance.learn(told(remaining={"requests": remaining}), first, Cost(), now=now)
        assert available(allowance)["requests"] == pytest.approx(39, abs=0.1)


async def test_an_older_answer_says_nothing_new(virtual_time: VirtualTime) -> None:
    """Answers come in any order; what a later request's has told stays."""
    allowance = ClassQuota(Limits(requests_per_minute=60))
    now = virtual_time.now()
    early, late = allowance.take(Cost(), now=now), allowance.take(Cost(), now=now)
    allowance.learn(told(remaining={"requests": 40}), late, Cost(), now=now)
    allowance.learn(told(remaining={"requests": 3}), early, Cost(), now=now)
    assert available(allowance)["requests"] == pytest.approx(40, abs=0.1)


async def test_tokens_remaining_are_rounded(virtual_time: VirtualTime) -> None:
    """Half a thousand more or less than thought is no news, because the API rounds to thousands."""
    allowance = ClassQuota(Limits(input_tokens_per_minute=60_000))
    now = virtual_time.now()
    mark = allowance.take(Cost(1, 10_400), now=now)
    for remaining in (50_000.0, 49_200.0):
        allowance.learn(told(remaining={"input_tokens": remaining}), mark, Cost(1, 10_400), now=now)
        assert available(allowance)["input_tokens"] == pytest.approx(49_600, abs=10)


async def test_a_refusal_empties_the_bucket_that_was_short(virtual_time: VirtualTime) -> None:
    """After a 429, what it names as spent is only there again after the seconds that it asks for."""
    allowance = ClassQuota(ALL)
    now = virtual_time.now()
    cost = Cost(1, 1000, 100)
    mark = allowance.take(cost, now=now)
    headers = told(remaining={"requests": 0, "input_tokens": 6000, "output_tokens": 600})
    allowance.learn(headers, mark, cost, now=now, refused_for_s=5)
    allowance.settle(cost, NOTHING)
    assert allowance.buckets["requests"].seconds_until(1) == pytest.approx(5, abs=0.1)
    assert available(allowance)["input_tokens"] == pytest.approx(6000, abs=10)


async def test_headers_that_say_nothing_change_nothing(virtual_time: VirtualTime) -> None:
    """A proxy may strip them all."""
    allowance = ClassQuota(ALL)
    before = available(allowance)
    mark = allowance.take(NOTHING, now=0)
    assert not allowance.learn(told(), mark, NOTHING, now=0)
    assert available(allowance) == before


async def test_when_it_is_full_tells_how_much_a_bucket_holds(virtual_time: VirtualTime) -> None:
    """A limit enforced over shorter times than a minute is learned from `reset`, and its burst not expected again."""
    allowance = ClassQuota(Limits(requests_per_minute=600))
    now = virtual_time.now()
    mark = allowance.take(Cost(), now=now)
    date, reset = b"Fri, 20 Nov 2026 10:00:00 GMT", b"2026-11-20T10:00:01Z"
    headers = told(remaining={"requests": 9}, resets={"requests": reset}, date=date)
    allowance.learn(headers, mark, Cost(), now=now)
    bucket = allowance.buckets["requests"]
    assert bucket.per_minute == 600
    assert 10 <= bucket.capacity <= 30


async def test_a_capacity_learned_too_small_grows_again(virtual_time: VirtualTime) -> None:
    """More left than it was thought to hold shows that it holds more, up to a minute's worth."""
    allowance = ClassQuota(Limits(requests_per_minute=600))
    now = virtual_time.now()
    allowance.buckets["requests"].change(per_minute=600, capacity=20)
    mark = allowance.take(Cost(), now=now)
    allowance.learn(told(remaining={"requests": 100}), mark, Cost(), now=now)
    assert allowance.buckets["requests"].capacity == 100
    mark = allowance.take(Cost(), now=now)
    allowance.learn(told(remaining={"requests": 1_000_000}), mark, Cost(), now=now)
    assert allowance.buckets["requests"].capacity == 600


@given(
    st.lists(
        st.tuples(
            st.sampled_from(Cost.NAMES),
            st.floats(min_value=1, max_value=1e12),
            st.floats(min_value=0, max_value=1e9),
            st.none() | st.floats(min_value=0, max_value=1e5),
        )
    )
)
def test_no_headers_break_a_quota(answers: list[tuple[str, float, float, float | None]]) -> None:
    """Whatever numbers come, buckets stay finite, and a request can be let in after a finite wait."""
    loop = VirtualLoop()

    async def main() -> None:
        allowance = ClassQuota(Limits(requests_per_minute=50))
        for name, limit, remaining, refused in answers:
            mark = allowance.take(Cost(), now=loop.time())
            headers = told({name: limit}, {name: remaining})
            allowance.learn(headers, mark, Cost(), now=loop.time(), refused_for_s=refused)
            allowance.settle(Cost(), Cost())
        for bucket in allowance.buckets.values():
            assert math.isfinite(bucket.available)
            assert 0 < bucket.capacity < math.inf
        wait = allowance.wait_s(Cost(), now=loop.time())
        assert 0 <= wait < math.inf
        assert (allowance.headroom() or 0) <= 1

    try:
        loop.run_until_complete(main())
    finally:
        loop.close()


# Quotas.


async def test_a_quota_keeps_its_model_classes_apart(virtual_time: VirtualTime) -> None:
    """Each has its own buckets, made by the limits configured for it, once."""
    asked = list[str]()

    def configured(model_class: str) -> Limits:
        asked.append(model_class)
        return Limits(requests_per_minute=len(model_class))

    quota = Quota("org", configured)
    opus, haiku = quota.of_class("opus-5"), quota.of_class("haiku-5-5")
    assert quota.of_class("opus-5") is opus
    assert asked == ["opus-5", "haiku-5-5"]
    opus.take(Cost(), now=0)
    assert available(haiku) == {"requests": 9}
    statistics = quota.statistics(now=anyio.current_time())["opus-5"]["requests"]
    assert statistics.available == pytest.approx(5)
    assert (statistics.capacity, statistics.per_minute) == (6, 6)
    assert repr(quota) == "<Quota org, 2 model classes>"
    assert repr(opus).startswith("<ClassQuota [<TokenBucket requests: 5 of 6")


async def test_a_mark_counts_what_was_taken_until_then(virtual_time: VirtualTime) -> None:
    """Its own share included, and what was given back left out."""
    allowance = ClassQuota(Limits())
    allowance.take(Cost(1, 100, 10), now=1)
    allowance.settle(Cost(1, 100, 10), Cost(1, 40, 4))
    await anyio.sleep(1)
    assert allowance.take(Cost(1, 5, 6), now=2) == Mark(2, 2, (2.0, 45.0, 10.0), 6.0)
