from __future__ import annotations

import random

import anyio
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from penstock._core.failure import Failure, FailureKind
from penstock.guards.retry.quota import FIRST, Charge, RetryQuota, Waiter

SERVER = Failure(kind=FailureKind.SERVER)
THROTTLED = Failure(kind=FailureKind.RATE_LIMITED)
FAILURES = st.sampled_from([SERVER, THROTTLED, Failure(kind=FailureKind.OVERLOADED), Failure(kind=FailureKind.TIMEOUT)])


def quota_of(capacity: int = 500, *, probe_s: float = 30.0) -> RetryQuota:
    """A quota with the usual prices."""
    return RetryQuota(capacity, cost=14, throttled_cost=5, probe_s=probe_s)


class QuotaMachine(RuleBasedStateMachine):
    """Retries buy, succeed, fail, are undone or refused, and wait in line, in any order."""

    CAPACITY, PROBE_S = 60, 30.0

    def __init__(self) -> None:
        super().__init__()
        self.quota = quota_of(self.CAPACITY, probe_s=self.PROBE_S)
        self.now = 0.0
        self.fares: list[Charge] = []
        self.line: list[Waiter] = []
        self.probes: list[float] = []

    @rule(seconds=st.floats(0, 60))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(failure=FAILURES)
    def a_call_retries(self, failure: Failure) -> None:
        left = self.quota.left
        cost = 5 if failure.kind in {FailureKind.RATE_LIMITED, FailureKind.OVERLOADED} else 14
        charge = self.quota.take(failure)
        assert (charge is None) == (left < cost)
        if charge is not None:
            assert (charge.paid, left - self.quota.left) == (cost, cost)
            self.fares.append(charge)

    @rule()
    def a_first_attempt_succeeds(self) -> None:
        left = self.quota.left
        self.quota.give_back(FIRST.reward)
        assert self.quota.left == min(left + 1, self.CAPACITY)

    @precondition(lambda self: self.fares)
    @rule(data=st.data())
    def a_retry_succeeds(self, data: st.DataObject) -> None:
        charge, left = self._pick(data), self.quota.left
        self.quota.give_back(charge.reward)
        assert self.quota.left == min(left + charge.reward, self.CAPACITY)
        assert not charge.probe or self.quota.left == self.CAPACITY

    @precondition(lambda self: self.fares)
    @rule(data=st.data())
    def a_retry_fails(self, data: st.DataObject) -> None:
        left = self.quota.left
        self._pick(data)
        assert self.quota.left == left

    @precondition(lambda self: self.fares)
    @rule(data=st.data())
    def a_retry_is_not_made(self, data: st.DataObject) -> None:
        charge, left = self._pick(data), self.quota.left
        self.quota.undo(charge)
        assert self.quota.left == min(left + charge.paid, self.CAPACITY)
        if charge.probe:
            self.probes.remove(max(self.probes))

    @precondition(lambda self: self.fares)
    @rule(data=st.data())
    def a_retry_is_refused(self, data: st.DataObject) -> None:
        charge = self._pick(data)
        self.quota.give_back(charge.paid)
        self.fares.append(charge.unpaid())
        assert self.fares[-1].paid == 0

    @rule(failure=FAILURES)
    def an_item_waits(self, failure: Failure) -> None:
        self.line.append(self.quota.join(failure))

    @precondition(lambda self: self.line)
    @rule(data=st.data())
    def an_item_asks(self, data: st.DataObject) -> None:
        waiter = data.draw(st.sampled_from(self.line))
        left, first = self.quota.left, self.line[0] is waiter
        charge = self.quota.ask(waiter, self.now)
        if charge is None:
            assert not first or left < waiter.cost
            assert self.quota.wait_s(waiter, self.now) > 0
            return
        assert first
        if charge.probe:
            assert left < waiter.cost
            assert not self.probes or self.now - max(self.probes) >= self.PROBE_S
            self.probes.append(self.now)
        self._leave(waiter)
        self.fares.append(charge)

    @precondition(lambda self: self.line)
    @rule(data=st.data())
    def an_item_gives_up(self, data: st.DataObject) -> None:
        self._leave(data.draw(st.sampled_from(self.line)))

    @invariant()
    def it_is_never_below_zero_nor_above_its_capacity(self) -> None:
        assert 0 <= self.quota.left <= self.CAPACITY

    @invariant()
    def what_is_missing_was_paid(self) -> None:
        assert self.quota.waiting == len(self.line)

    def _pick(self, data: st.DataObject) -> Charge:
        return self.fares.pop(data.draw(st.integers(0, len(self.fares) - 1)))

    def _leave(self, waiter: Waiter) -> None:
        self.line.remove(waiter)
        self.quota.leave(waiter)


TestRetryQuota = pytest.mark.lengthy(QuotaMachine.TestCase)


def test_an_outage_costs_at_most_the_quota_in_retries() -> None:
    """However many calls fail, they retry 35 times together, 100 times if throttled."""
    for failure, most in ((SERVER, 35), (THROTTLED, 100)):
        quota = quota_of()
        fares = [quota.take(failure) for _call in range(6000) for _retry in range(3)]

        assert sum(charge is not None for charge in fares) == most
        assert quota.exhausted == 18_000 - most


def test_a_service_that_fails_now_and_then_never_exhausts_it() -> None:
    """With one attempt in twenty failing and retries succeeding, there is always enough."""
    quota, rng = quota_of(), random.Random(5)

    for _ in range(10_000):
        charge = FIRST
        while rng.random() < 0.05:
            taken = quota.take(SERVER)
            assert taken is not None
            charge = taken
        quota.give_back(charge.reward)

    assert quota.exhausted == 0


def test_the_success_of_a_probe_fills_it_up() -> None:
    """One answer to an item that went on without paying ends the shortage for all."""
    quota = quota_of()
    quota.left = 0
    waiter = quota.join(SERVER)

    charge = quota.ask(waiter, 0.0)

    assert charge is not None
    assert (charge.paid, charge.probe) == (0, True)
    quota.give_back(charge.reward)
    assert quota.left == 500


def test_a_probe_that_was_not_made_may_be_made_by_the_next() -> None:
    """An item that leaves before its probe doesn't keep the others waiting for another interval."""
    quota = quota_of()
    quota.left = 0
    first, second = quota.join(SERVER), quota.join(SERVER)
    probe = quota.ask(first, 0.0)
    assert probe is not None
    quota.leave(first)
    assert quota.ask(second, 1.0) is None

    quota.undo(probe)

    assert quota.ask(second, 1.0) is not None


async def test_who_waits_first_is_woken_by_anything_given_back_and_the_next_by_its_leaving() -> None:
    """Nobody sleeps through his turn."""
    quota = quota_of()
    first, second = quota.join(SERVER), quota.join(SERVER)
    first.woken, second.woken = anyio.Event(), anyio.Event()

    quota.give_back(1)
    assert first.woken.is_set()
    assert not second.woken.is_set()

    quota.leave(first)
    assert second.woken.is_set()


def test_who_is_not_first_asks_again_only_when_woken() -> None:
    """The timer of the probe runs for one, not for thousands."""
    quota = quota_of(probe_s=30)
    quota.left = 0
    first, second = quota.join(SERVER), quota.join(SERVER)
    assert quota.ask(first, 100.0) is not None
    quota.left = 0

    assert quota.ask(first, 110.0) is None
    assert quota.wait_s(first, 110.0) == pytest.approx(20.0)
    assert quota.wait_s(second, 110.0) == float("inf")


def test_it_shows_what_is_left() -> None:
    """Its repr says how much there is and how many wait."""
    quota = quota_of()
    quota.join(THROTTLED)

    assert repr(quota) == "<RetryQuota 500 of 500, 1 waiting>"
    assert quota.exhausted == 0
