from __future__ import annotations

import importlib.metadata
import math
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import aiolimiter
import anyio
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from penstock.guards.admit.bucket import TokenBucket
from penstock.testing import VirtualLoop

if TYPE_CHECKING:
    from collections.abc import Callable

    from penstock.testing.plugin import VirtualTime

T = TypeVar("T")
rates = st.floats(min_value=1, max_value=1e7)
amounts = st.floats(min_value=0, max_value=1e6)
BAD = [-1.0, -1e-9, math.nan, math.inf, -math.inf]


class Leaky:
    """The reference: what a leaky bucket is, in five lines of arithmetic."""

    def __init__(self, per_minute: float, capacity: float) -> None:
        self.rate, self.capacity, self.level = per_minute / 60, capacity, 0.0

    def advance(self, seconds: float) -> None:
        self.level = max(self.level - seconds * self.rate, 0.0)


class BucketMachine(RuleBasedStateMachine):
    """A bucket beside its reference, on a clock that only the rules move."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = VirtualLoop()

    def teardown(self) -> None:
        self.loop.close()

    def ask(self, question: Callable[[], T]) -> T:
        """Ask something that needs the running loop, at exactly this moment."""
        now = self.loop._jumping.now

        async def answer() -> T:
            self.loop._jumping.now = now
            return question()

        try:
            return self.loop.run_until_complete(answer())
        finally:
            self.loop._jumping.now = now

    @initialize(per_minute=rates, capacity=st.none() | rates)
    def begin(self, per_minute: float, capacity: float | None) -> None:
        self.bucket = TokenBucket(per_minute, capacity=capacity)
        self.model = Leaky(per_minute, per_minute if capacity is None else capacity)
        self.granted = 0.0
        self.allowed = self.model.capacity
        self.debt = False

    def close(self, value: float, expected: float) -> bool:
        return math.isclose(value, expected, rel_tol=1e-6, abs_tol=1e-6 * self.model.capacity + 2e-6 * self.model.rate)

    @rule(seconds=st.floats(min_value=0, max_value=600))
    def advance(self, seconds: float) -> None:
        self.loop._jumping.now += seconds
        self.model.advance(seconds)
        self.allowed += seconds * self.model.rate

    @rule(amount=amounts)
    def take_if_there(self, amount: float) -> None:
        if self.ask(lambda: self.bucket.has_capacity(amount)):
            self.ask(lambda: self.bucket.take(amount))
            self.model.level += amount
            self.granted += amount

    @rule(amount=amounts)
    def take_into_debt(self, amount: float) -> None:
        self.ask(lambda: self.bucket.take(amount))
        self.model.level += amount
        self.granted += amount
        self.debt = True

    @rule(amount=amounts)
    def refund(self, amount: float) -> None:
        self.ask(lambda: self.bucket.refund(amount))
        self.granted -= min(amount, self.model.level)
        self.model.level = max(self.model.level - amount, 0.0)

    @rule(per_minute=rates, capacity=rates)
    def change(self, per_minute: float, capacity: float) -> None:
        self.ask(lambda: self.bucket.change(per_minute=per_minute, capacity=capacity))
        self.allowed += max(capacity - self.model.capacity, 0.0)
        self.model.rate, self.model.capacity = per_minute / 60, capacity

    @rule(at_most=st.floats(min_value=-1e6, max_value=1e6))
    def correct_downward(self, at_most: float) -> None:
        self.ask(lambda: self.bucket.correct(at_least=-math.inf, at_most=at_most))
        self.model.level = max(self.model.level, self.model.capacity - at_most)

    @rule(at_least=st.floats(min_value=0, max_value=1e6))
    def correct_upward(self, at_least: float) -> None:
        self.ask(lambda: self.bucket.correct(at_least=at_least, at_most=math.inf))
        level = max(min(self.model.level, self.model.capacity - at_least), 0.0)
        self.granted -= self.model.level - level
        self.model.level = level

    @invariant()
    def agrees_with_the_reference(self) -> None:
        if not hasattr(self, "bucket"):
            return
        # Looked at from outside the loop, first: looking changes nothing.
        assert self.close(self.bucket.available_at(self.loop.time()), self.model.capacity - self.model.level)
        assert self.close(self.ask(lambda: self.bucket.available), self.model.capacity - self.model.level)
        assert self.close(self.bucket.capacity, self.model.capacity)
        assert math.isclose(self.bucket.per_minute, self.model.rate * 60, rel_tol=1e-9)

    @invariant()
    def grants_no_more_than_there_was(self) -> None:
        if hasattr(self, "bucket") and not self.debt:
            assert self.granted <= self.allowed * (1 + 1e-6) + 1e-3

    @invariant()
    def says_now_exactly_when_there_is_capacity(self) -> None:
        if not hasattr(self, "bucket"):
            return
        for share in (0.0, 0.1, 0.5, 1.0):
            amount = share * self.bucket.capacity
            wait = self.ask(partial(self.bucket.seconds_until, amount))
            assert (wait == 0.0) is self.ask(partial(self.bucket.has_capacity, amount))


TestBucket = pytest.mark.slow(BucketMachine.TestCase)


@given(per_minute=rates, taken=amounts, amount=amounts)
def test_the_wait_is_exact(per_minute: float, taken: float, amount: float) -> None:
    """After the seconds told, the amount can be taken; a hair before, it can't."""
    assume(amount <= per_minute)
    loop = VirtualLoop()

    async def main() -> None:
        bucket = TokenBucket(per_minute)
        bucket.take(taken)
        began = loop.time()
        wait = bucket.seconds_until(amount)
        assert (wait == 0) is bucket.has_capacity(amount)
        if wait > 1e-3:
            loop._jumping.now = began + wait * (1 - 1e-6) - 1e-5
            assert not bucket.has_capacity(amount)
        loop._jumping.now = began + wait
        assert bucket.has_capacity(amount)

    try:
        loop.run_until_complete(main())
    finally:
        loop.close()


@pytest.mark.lengthy
async def test_sleeping_the_wait_is_enough(virtual_time: VirtualTime) -> None:
    """Ten thousand requests, each after the wait told, take exactly the time that the rate allows."""
    bucket, waits = TokenBucket(600, capacity=10, name="requests"), 0
    for _ in range(10_000):
        wait = bucket.seconds_until(1)
        if wait:
            waits += 1
            await anyio.sleep(wait)
            assert bucket.seconds_until(1) == 0.0
        bucket.take(1)
    assert waits == 10_000 - 10
    assert virtual_time.now() == pytest.approx((10_000 - 10) / 10, rel=1e-3)


async def test_more_than_it_holds_is_never_there(virtual_time: VirtualTime) -> None:
    """The wait for an amount beyond the capacity is infinite, and for exactly the capacity is not."""
    bucket = TokenBucket(60, capacity=10)
    assert bucket.seconds_until(10.001) == math.inf
    assert bucket.seconds_until(10) == 0.0
    bucket.take(3)
    assert bucket.seconds_until(10) == pytest.approx(3, abs=1e-3)


async def test_debt_is_paid_back_first(virtual_time: VirtualTime) -> None:
    """What was used beyond the capacity delays what comes next."""
    bucket = TokenBucket(60)
    bucket.take(90)
    assert bucket.available == pytest.approx(-30)
    assert bucket.seconds_until(1) == pytest.approx(31, abs=1e-3)


async def test_a_refund_never_overfills(virtual_time: VirtualTime) -> None:
    """More than a full bucket can't be given back."""
    bucket = TokenBucket(60)
    bucket.take(5)
    bucket.refund(50)
    assert bucket.available == 60


async def test_a_new_rate_holds_from_now_on(virtual_time: VirtualTime) -> None:
    """What was taken stays taken; what flows in, and the most that is held, change at once."""
    bucket = TokenBucket(60)
    bucket.take(60)
    bucket.change(per_minute=600, capacity=100)
    assert bucket.available == pytest.approx(40, abs=0.01)
    await anyio.sleep(1)
    assert bucket.available == pytest.approx(50, abs=0.01)
    assert bucket.time_period == 10


async def test_where_both_bounds_contradict_the_upper_holds(virtual_time: VirtualTime) -> None:
    """To be too careful costs time, to be too bold costs a refusal."""
    bucket = TokenBucket(60)
    bucket.correct(at_least=50, at_most=10)
    assert bucket.available == pytest.approx(10)
    bucket.correct(at_least=20, at_most=30)
    assert bucket.available == pytest.approx(20, abs=0.01)
    bucket.correct(at_least=0, at_most=30)
    assert bucket.available == pytest.approx(20, abs=0.01)


@pytest.mark.parametrize("bad", [0.0, *BAD])
def test_a_bucket_needs_numbers_above_zero(bad: float) -> None:
    """Rate and capacity: zero, negative, not-a-number and infinity are refused, by name."""
    with pytest.raises(ValueError, match="a bucket of requests needs"):
        TokenBucket(bad, name="requests")
    with pytest.raises(ValueError, match="a bucket of requests needs"):
        TokenBucket(60, capacity=bad, name="requests")


@pytest.mark.parametrize("bad", BAD)
async def test_an_amount_must_be_a_number_from_zero_up(bad: float) -> None:
    """One that isn't would spoil the level for good, so that it is refused and changes nothing."""
    bucket = TokenBucket(60, name="requests")
    for ask in (bucket.take, bucket.refund, bucket.seconds_until):
        with pytest.raises(ValueError, match="an amount of requests"):
            ask(bad)
    assert bucket.available == 60


async def test_its_repr_shows_what_is_left() -> None:
    """Name, level, capacity and rate."""
    bucket = TokenBucket(60, capacity=10, name="requests")
    bucket.take(3)
    assert repr(bucket) == "<TokenBucket requests: 7 of 10, 60 a minute>"


async def test_the_limiter_below_works_as_the_bucket_expects(virtual_time: VirtualTime) -> None:
    """A canary: the bucket leans on these internals of aiolimiter, so that a version without them must show here."""
    version = importlib.metadata.version("aiolimiter")
    changed = f"aiolimiter {version} works differently; see what TokenBucket needs of AsyncLimiter before you allow it"
    limiter = aiolimiter.AsyncLimiter(10, 5)
    assert (limiter.max_rate, limiter.time_period) == (10, 5), changed
    assert limiter._rate_per_sec == 2.0, changed
    assert limiter._level == 0.0, changed
    limiter._leak()
    assert limiter._last_check == pytest.approx(virtual_time.now(), abs=0.1), changed
    limiter._level = 9.0
    assert limiter.has_capacity(1.0), changed
    assert not limiter.has_capacity(1.1), changed
    await anyio.sleep(1)
    limiter._leak()
    assert limiter._level == pytest.approx(7.0, abs=0.01), changed
    await anyio.sleep(100)
    limiter._leak()
    assert limiter._level == 0, changed
    limiter.max_rate = 3
    assert limiter.has_capacity(3), changed
    assert not limiter.has_capacity(4), changed


async def test_nobody_waits_on_the_limiter_below() -> None:
    """Asking and taking sets no timer and makes no waiter there, so that its own order never matters."""
    bucket = TokenBucket(60)
    bucket.take(100)
    bucket.seconds_until(10)
    bucket.refund(10)
    assert bucket._waiters == []
    assert bucket._waker_handle is None
