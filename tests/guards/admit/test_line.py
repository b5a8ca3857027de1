from __future__ import annotations

import asyncio
import functools
import math
import random
import time
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from penstock._core.secret import Secret
from penstock.errors import NoKeyAvailable, PenstockError, QueueFull, RequestExceedsQuota
from penstock.guards.admit.keys import KeyPool
from penstock.guards.admit.limits import Cost, Limits
from penstock.guards.admit.line import Claim, Grant, Line
from penstock.guards.admit.slots import Slots
from penstock.testing import Cancelled, VirtualLoop, cancel_at_every_await

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from penstock.guards.admit.fair_queue import Place
    from penstock.guards.admit.quota import ClassQuota
    from penstock.testing.cancellation import How
    from penstock.testing.plugin import VirtualTime

OPUS, SONNET = "opus-5-5", "sonnet-5-5"
NOTHING = Cost(0, 0, 0)


class Office:
    """A line with all that belongs to it."""

    def __init__(
        self, *, slots: int = 100, keys: int = 1, limits: Limits | None = None, max_queued: int | None = None
    ) -> None:
        given = limits or Limits(requests_per_minute=60_000)
        secrets = [Secret(f"sk-{number}") for number in range(keys)]
        self.pool = KeyPool(secrets, configured=lambda _: given, balance="round_robin", rng=random.Random(7))
        self.slots = Slots(slots)
        self.line = Line(self.pool, self.slots, max_queued=max_queued)
        self.served = list[str]()
        for model_class in (OPUS, SONNET):
            for allowance in self.allowances(model_class):
                allowance._taught = True

    def allowances(self, model_class: str = SONNET) -> list[ClassQuota]:
        return [key.quota.of_class(model_class) for key in self.pool.keys]

    def leave(self, grant: Grant, used: Cost | None = None) -> None:
        """As a give-back does."""
        grant.allowance.settle(grant.cost, grant.cost if used is None else used)
        self.line.leave(grant)
        self.line.wake()

    async def visit(self, name: str = "", *, for_s: float = 0.0, used: Cost | None = None, **claim: Any) -> Grant:
        """Wait, be served for some time, and leave."""
        grant = await self.line.enter(Claim(**{"model_class": SONNET, "cost": Cost(), **claim}))
        try:
            self.served.append(name)
            await anyio.sleep(for_s)
        finally:
            self.leave(grant, used)
        return grant

    def is_as_new(self) -> bool:
        """Whether nothing is left of anybody who came and went."""
        return (
            self.slots.used == self.line.waiting == 0
            and all(allowance.in_flight == 0 for key in self.pool.keys for allowance in key.quota.classes.values())
            and all(key.in_flight == 0 for key in self.pool.keys)
            and not any(self.line.lengths().values())
            and all(not len(queue._heap) for queue in self.line._queues.values())
        )


async def turns(count: int = 5) -> None:
    """Let every task run on as far as it can."""
    for _ in range(count):
        await anyio.lowlevel.checkpoint()


# All or nothing, in order.


async def test_with_room_nobody_waits(virtual_time: VirtualTime) -> None:
    """What is needed is taken in one step, without giving the loop a turn."""
    office = Office()
    grant = await office.line.enter(Claim(model_class=SONNET, cost=Cost(1, 100, 10)))
    assert (grant.queued_s, grant.probe, grant.key) == (0.0, False, office.pool.keys[0])
    assert (office.slots.used, grant.allowance.in_flight, grant.key.in_flight) == (1, 1, 1)
    office.leave(grant)
    assert office.is_as_new()


async def test_requests_are_served_in_the_order_they_came(virtual_time: VirtualTime) -> None:
    """One slot, a hundred requests of all sizes: first come, first served."""
    office = Office(slots=1, limits=Limits(input_tokens_per_minute=60_000))
    async with anyio.create_task_group() as group:
        for number in range(100):
            cost = Cost(1, 10 * (number % 7))
            group.start_soon(functools.partial(office.visit, str(number), for_s=1, cost=cost))
    assert office.served == [str(number) for number in range(100)]
    assert virtual_time.now() == pytest.approx(100, abs=1)
    assert office.is_as_new()


async def test_a_large_request_is_not_overtaken_by_small_ones(virtual_time: VirtualTime) -> None:
    """Small ones that come later would fit now, but then the large one might starve."""
    office = Office(limits=Limits(input_tokens_per_minute=600))
    async with anyio.create_task_group() as group:
        group.start_soon(functools.partial(office.visit, "first", cost=Cost(1, 500)))
        await turns()
        group.start_soon(functools.partial(office.visit, "large", cost=Cost(1, 600)))
        for number in range(5):
            group.start_soon(functools.partial(office.visit, f"small {number}", cost=Cost(1, 1)))
        await turns()
        assert office.served == ["first"]
        assert office.line.lengths() == {SONNET: 6}
    assert office.served == ["first", "large", *(f"small {number}" for number in range(5))]
    assert virtual_time.now() == pytest.approx(50 + 0.5, abs=0.2)


async def test_nothing_is_held_while_waiting_for_something_else(virtual_time: VirtualTime) -> None:
    """Who waits for a slot has taken nothing of a bucket, and who waits for a bucket has no slot."""
    office = Office(slots=1, limits=Limits(requests_per_minute=60))
    (allowance,) = office.allowances()
    async with anyio.create_task_group() as group:
        group.start_soon(functools.partial(office.visit, for_s=10))
        await turns()
        group.start_soon(functools.partial(office.visit, cost=Cost(60)))
        await anyio.sleep(5)
        assert allowance.in_flight == 1
        assert allowance.buckets["requests"].available == pytest.approx(60, abs=0.1)
        await anyio.sleep(5.01)
        assert (office.slots.used, office.line.waiting) == (0, 0)


async def test_an_empty_bucket_holds_up_its_own_line_only(virtual_time: VirtualTime) -> None:
    """Another model class goes on as if nothing were."""
    office = Office(limits=Limits(requests_per_minute=1))
    async with anyio.create_task_group() as group:
        for _ in range(3):
            group.start_soon(functools.partial(office.visit, "opus", model_class=OPUS))
        await turns()
        began = virtual_time.now()
        await office.visit("sonnet")
        assert virtual_time.now() - began < 0.01
        assert office.served == ["opus", "sonnet"]
        group.cancel_scope.cancel()
    await turns()
    assert office.is_as_new()


async def test_lines_share_the_slots_in_turn(virtual_time: VirtualTime) -> None:
    """A backlog of one model class doesn't keep another from its share."""
    office = Office(slots=1)
    async with anyio.create_task_group() as group:
        for number in range(40):
            model_class = OPUS if number < 20 else SONNET
            group.start_soon(functools.partial(office.visit, model_class, for_s=1, model_class=model_class))
    assert all(set(office.served[at : at + 3]) == {OPUS, SONNET} for at in range(1, 35))


async def test_a_retried_request_goes_first(virtual_time: VirtualTime) -> None:
    """It keeps the place that it had, and several keep theirs among each other."""
    office = Office(slots=2)
    grants = [await office.line.enter(Claim(model_class=SONNET, cost=Cost())) for _ in range(2)]
    async with anyio.create_task_group() as group:
        for number in range(3):
            group.start_soon(functools.partial(office.visit, f"new {number}", for_s=1))
        await turns()
        for number in (1, 0):
            group.start_soon(functools.partial(office.visit, f"again {number}", for_s=1, place=grants[number].place))
        await turns()
        for grant in grants:
            office.leave(grant)
    assert office.served == ["again 0", "again 1", "new 0", "new 1", "new 2"]


@pytest.mark.slow
async def test_ten_thousand_wait_without_ado(virtual_time: VirtualTime) -> None:
    """Entering, serving and cancelling cost so little that a second is ample for all of them."""
    office = Office(slots=50)
    began = time.process_time()
    async with anyio.create_task_group() as group:
        for number in range(10_000):
            group.start_soon(functools.partial(office.visit, str(number), for_s=1))
        await turns()
        assert office.line.waiting == 9950
        assert repr(office.line) == "<Line 9950 waiting, <Slots 50 of 50>>"
    assert office.served == [str(number) for number in range(10_000)]
    assert virtual_time.now() == pytest.approx(200, abs=1)
    async with anyio.create_task_group() as group:
        for _ in range(10_000):
            group.start_soon(functools.partial(office.visit, for_s=1))
        await turns()
        group.cancel_scope.cancel()
    assert office.is_as_new()
    assert time.process_time() - began < 10


async def test_the_wait_is_told(virtual_time: VirtualTime) -> None:
    """In seconds, from entry to grant."""
    office = Office(slots=1)
    async with anyio.create_task_group() as group:
        group.start_soon(functools.partial(office.visit, for_s=3))
        await turns()
        grant = await office.visit()
        assert grant.queued_s == pytest.approx(3, abs=0.01)


# What waiting can't help.


async def test_a_full_line_refuses_at_once(virtual_time: VirtualTime) -> None:
    """With `max_queued` waiting, the next is told so; with 0, nobody ever waits."""
    office = Office(slots=1, max_queued=2)
    async with anyio.create_task_group() as group:
        for model_class in (SONNET, OPUS, SONNET):
            group.start_soon(functools.partial(office.visit, for_s=1, model_class=model_class))
        await turns()
        with pytest.raises(QueueFull, match="2 requests are waiting already"):
            await office.visit()
    await office.visit()
    none = Office(slots=1, max_queued=0)
    await none.visit()
    grant = await none.line.enter(Claim(model_class=SONNET, cost=Cost()))
    with pytest.raises(QueueFull):
        await none.visit()
    none.leave(grant)
    assert office.is_as_new()
    assert none.is_as_new()


async def test_waiters_that_left_make_room_in_the_line(virtual_time: VirtualTime) -> None:
    """Cancelled ones don't count against `max_queued`."""
    office = Office(slots=1, max_queued=1)
    grant = await office.line.enter(Claim(model_class=SONNET, cost=Cost()))
    for _ in range(10):
        with anyio.move_on_after(0.1) as scope:
            await office.visit()
        assert scope.cancelled_caught
        assert office.line.waiting == 0
    office.leave(grant)
    assert office.is_as_new()


async def test_a_cost_beyond_the_limit_is_refused_at_once(virtual_time: VirtualTime) -> None:
    """Even where others wait: it would never be let in."""
    office = Office(slots=1, limits=Limits(input_tokens_per_minute=100))
    async with anyio.create_task_group() as group:
        for _ in range(2):
            group.start_soon(functools.partial(office.visit, for_s=1))
        await turns()
        began = virtual_time.now()
        with pytest.raises(RequestExceedsQuota):
            await office.visit(cost=Cost(1, 101))
        assert virtual_time.now() == began
    assert office.is_as_new()


async def test_quarantine_refuses_those_who_wait_and_those_who_come(virtual_time: VirtualTime) -> None:
    """When the last key is quarantined, nobody waits for what may never come back; the error says when it is tried."""
    office, errors = Office(slots=1, keys=2), list[float | None]()
    grant = await office.line.enter(Claim(model_class=SONNET, cost=Cost()))

    async def wait() -> None:
        try:
            await office.visit()
        except NoKeyAvailable as error:
            errors.append(error.retry_after_s)

    async with anyio.create_task_group() as group:
        for _ in range(5):
            group.start_soon(wait)
        await turns()
        for key in office.pool.keys:
            key.quarantine.begin(now=virtual_time.now())
        began = virtual_time.now()
        with pytest.raises(NoKeyAvailable, match="every API key is quarantined"):
            await office.visit()
        office.leave(grant)
        await turns()
        assert virtual_time.now() - began < 0.01
    assert errors == [pytest.approx(60, abs=0.1)] * 5
    assert office.is_as_new()


async def test_without_keys_the_error_says_so(virtual_time: VirtualTime) -> None:
    """All were retired: no time will help."""
    office = Office()
    office.pool.retire(office.pool.keys[0].name)
    with pytest.raises(NoKeyAvailable, match="no API key left") as raised:
        await office.visit()
    assert raised.value.retry_after_s is None


async def test_a_cool_down_beyond_the_deadline_is_refused_at_once(virtual_time: VirtualTime) -> None:
    """Known beforehand to be too late; a cool-down that ends in time is waited for."""
    office = Office()
    (allowance,) = office.allowances()
    now = virtual_time.now()
    allowance.cool_down(30, now=now)
    with pytest.raises(NoKeyAvailable, match="rate limited for another 30 s, longer than the 20 s left") as raised:
        await office.visit(deadline=now + 20)
    assert raised.value.retry_after_s == pytest.approx(30, abs=0.01)
    await office.visit(deadline=now + 40)
    assert virtual_time.now() == pytest.approx(30, abs=0.01)
    assert office.is_as_new()


async def test_a_cool_down_refuses_those_whom_it_makes_late(virtual_time: VirtualTime) -> None:
    """A waiter at the front, whose deadline a new cool-down passes, is told at the next wake-up."""
    office = Office(slots=1)
    grant = await office.line.enter(Claim(model_class=SONNET, cost=Cost()))
    async with anyio.create_task_group() as group:

        async def wait() -> None:
            with pytest.raises(NoKeyAvailable):
                await office.visit(deadline=virtual_time.now() + 10)
            office.served.append("refused")

        group.start_soon(wait)
        await turns()
        grant.allowance.cool_down(60, now=virtual_time.now())
        office.leave(grant)
        await turns()
        assert office.served == ["refused"]
    assert office.is_as_new()


async def test_one_refused_does_not_hold_up_the_next(virtual_time: VirtualTime) -> None:
    """At the front, each is judged by its own deadline."""
    office, outcomes = Office(slots=1), list[str]()
    grant = await office.line.enter(Claim(model_class=SONNET, cost=Cost()))

    async def wait(name: str, seconds: float) -> None:
        try:
            await office.visit(deadline=virtual_time.now() + seconds)
        except NoKeyAvailable:
            name += " refused"
        outcomes.append(name)

    async with anyio.create_task_group() as group:
        for name, seconds in (("first", 10), ("second", 20), ("third", 100)):
            group.start_soon(wait, name, seconds)
        await turns()
        grant.allowance.cool_down(60, now=virtual_time.now())
        office.leave(grant)
    assert outcomes == ["first refused", "second refused", "third"]
    assert office.is_as_new()


# No wake-up is lost.


async def test_the_end_of_a_cool_down_wakes(virtual_time: VirtualTime) -> None:
    """Without anybody leaving or coming."""
    office = Office()
    (allowance,) = office.allowances()
    allowance.cool_down(50, now=0)
    await office.visit()
    assert virtual_time.now() == pytest.approx(50, abs=0.01)


async def test_a_probe_that_comes_due_wakes(virtual_time: VirtualTime) -> None:
    """While the other key rests for longer, the quarantined one is probed."""
    office = Office(keys=2)
    first, second = office.pool.keys
    first.quota.of_class(SONNET).cool_down(1000, now=5)
    second.quarantine.begin(now=0)
    grant = await office.visit()
    assert (grant.key, grant.probe) == (second, True)
    assert virtual_time.now() == pytest.approx(60, abs=0.1)


async def test_a_probe_that_told_nothing_may_be_repeated(virtual_time: VirtualTime) -> None:
    """Its key is not lost for ever, whatever became of the probe."""
    office = Office()
    key = office.pool.keys[0]
    key.quota.quarantine.begin(now=0)
    key.quarantine.begin(now=0)
    await anyio.sleep(60)
    for _ in range(3):
        assert (await office.visit()).probe
    assert office.is_as_new()


async def test_a_refund_wakes(virtual_time: VirtualTime) -> None:
    """What is given back may be enough for the next, long before the bucket refills."""
    office = Office(limits=Limits(output_tokens_per_minute=600))
    async with anyio.create_task_group() as group:
        group.start_soon(functools.partial(office.visit, for_s=2, cost=Cost(1, 0, 600), used=NOTHING))
        await turns()
        await office.visit(cost=Cost(1, 0, 600))
        assert virtual_time.now() == pytest.approx(2, abs=0.01)


async def test_a_newcomer_in_another_line_is_not_forgotten_behind_a_timer(virtual_time: VirtualTime) -> None:
    """The timer is set for the earliest of all fronts, whoever came first."""
    office = Office(limits=Limits(requests_per_minute=60))
    opus, sonnet = office.allowances(OPUS)[0], office.allowances(SONNET)[0]
    opus.cool_down(50, now=0)
    sonnet.cool_down(10, now=0)
    async with anyio.create_task_group() as group:
        group.start_soon(functools.partial(office.visit, model_class=OPUS))
        await turns()
        await office.visit()
        assert virtual_time.now() == pytest.approx(10, abs=0.01)
    assert virtual_time.now() == pytest.approx(50, abs=0.01)


async def test_when_the_front_leaves_the_next_is_looked_at(virtual_time: VirtualTime) -> None:
    """A large request that gives up no longer holds up a small one that fits."""
    office = Office(limits=Limits(input_tokens_per_minute=600))
    async with anyio.create_task_group() as group:
        await office.visit(cost=Cost(1, 500))

        async def give_up() -> None:
            with anyio.move_on_after(3):
                await office.visit(cost=Cost(1, 600))

        group.start_soon(give_up)
        await turns()
        await office.visit(cost=Cost(1, 10))
        assert virtual_time.now() == pytest.approx(3, abs=0.01)
    assert office.is_as_new()


async def test_many_model_classes_leave_no_lines_behind(
    virtual_time: VirtualTime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names come from callers; lines where nobody waits are forgotten in time."""
    monkeypatch.setattr("penstock.guards.admit.line._MOST_CLASSES", 20)
    office = Office()
    for number in range(100):
        await office.visit(model_class=f"model-{number}")
    assert len(office.line._queues) <= 20


# Cancellation.


@pytest.mark.parametrize("how", ["waiting", "done", "repeatedly"])
async def test_cancelled_at_any_await_a_waiter_leaves_no_trace(how: How, virtual_time: VirtualTime) -> None:
    """Before its grant, after its grant and before it runs on, once or again and again."""

    async def scenario(cancelled: Cancelled) -> None:
        office = Office(slots=1, limits=Limits(requests_per_minute=600))
        grant = await office.line.enter(Claim(model_class=SONNET, cost=Cost()))
        async with anyio.create_task_group() as group:

            async def release() -> None:
                await anyio.sleep(1)
                office.leave(grant)

            group.start_soon(release)
            await cancelled(office.visit(for_s=1))
        await turns()
        assert office.is_as_new()
        (allowance,) = office.allowances()
        assert allowance._taken["requests"] == (1 if not office.served else 2)
        began = virtual_time.now()
        await office.visit()
        assert virtual_time.now() - began < 0.01

    assert await cancel_at_every_await(scenario, how=how) >= 2


async def test_cancelled_between_grant_and_resumption_all_is_given_back(virtual_time: VirtualTime) -> None:
    """The next in line gets it in the same turn."""
    office = Office(slots=1, limits=Limits(requests_per_minute=600))
    grant = await office.line.enter(Claim(model_class=SONNET, cost=Cost()))
    doomed = asyncio.get_running_loop().create_task(office.visit("doomed"))
    await turns()
    async with anyio.create_task_group() as group:
        group.start_soon(functools.partial(office.visit, "next"))
        await turns()
        office.leave(grant)
        assert office.slots.used == 1
        doomed.cancel()
    with pytest.raises(asyncio.CancelledError):
        await doomed
    assert office.served == ["next"]
    assert office.is_as_new()
    assert office.allowances()[0]._taken["requests"] == 2


async def test_a_waiter_cancelled_in_the_turn_of_its_grant_takes_nothing(virtual_time: VirtualTime) -> None:
    """Cancelled first and then due, before its task has run: the next gets the slot."""
    office = Office(slots=1)
    grant = await office.line.enter(Claim(model_class=SONNET, cost=Cost()))
    loop = asyncio.get_running_loop()
    doomed = loop.create_task(office.visit("doomed"))
    await turns()
    following = loop.create_task(office.visit("next"))
    await turns()
    doomed.cancel()
    office.leave(grant)
    with pytest.raises(asyncio.CancelledError):
        await doomed
    await following
    assert office.served == ["next"]
    assert office.is_as_new()


async def test_cancelled_in_the_turn_of_its_refusal_a_waiter_is_cancelled(virtual_time: VirtualTime) -> None:
    """The refusal is no grant, and there is nothing to give back."""
    office = Office(slots=1)
    grant = await office.line.enter(Claim(model_class=SONNET, cost=Cost()))
    doomed = asyncio.get_running_loop().create_task(office.visit("doomed"))
    await turns()
    office.pool.keys[0].quarantine.begin(now=virtual_time.now())
    office.leave(grant)
    doomed.cancel()
    with pytest.raises(asyncio.CancelledError):
        await doomed
    assert office.is_as_new()


class LineMachine(RuleBasedStateMachine):
    """Requests of two model classes enter, are let in, end, are tried again and cancelled, in any order."""

    SLOTS = 3

    def __init__(self) -> None:
        super().__init__()
        self.loop = VirtualLoop()
        self.office = self.on_loop(self._open())
        self.arrivals = 0
        self.waiting = dict[int, tuple[asyncio.Task[None], Claim]]()
        self.inside = dict[int, Grant]()
        self.ended = list[Grant]()
        self.failed = list[PenstockError]()
        self.served = {OPUS: list[tuple[Any, ...]](), SONNET: list[tuple[Any, ...]]()}
        self.taken = {OPUS: 0.0, SONNET: 0.0}

    async def _open(self) -> Office:
        limits = Limits(requests_per_minute=60, input_tokens_per_minute=600)
        return Office(slots=self.SLOTS, keys=2, limits=limits)

    def on_loop(self, main: Coroutine[Any, Any, Any]) -> Any:
        async def run() -> Any:
            result = await main
            await turns(8)
            return result

        return self.loop.run_until_complete(run())

    async def _visit(self, number: int, claim: Claim) -> None:
        # The smaller of these goes first: those with a place by their place, then the others as they came.
        rank = (0, claim.place, 0) if claim.place is not None else (1, 0, number)
        try:
            grant = await self.office.line.enter(claim)
        except PenstockError as error:
            self.failed.append(error)
        else:
            self.inside[number] = grant
            ahead = [
                other
                for other, (_, waiting) in self.waiting.items()
                if other != number and waiting.model_class == claim.model_class and self._before(waiting, other, rank)
            ]
            assert not ahead, f"{number} overtook {ahead}"
        finally:
            del self.waiting[number]

    @staticmethod
    def _before(claim: Claim, number: int, rank: tuple[Any, ...]) -> bool:
        mine: tuple[Any, ...] = (0, claim.place, 0) if claim.place is not None else (1, 0, number)
        return mine < rank

    async def _enter(self, claim: Claim) -> None:
        number, self.arrivals = self.arrivals, self.arrivals + 1
        task = self.loop.create_task(self._visit(number, claim))
        self.waiting[number] = task, claim

    @rule(
        model_class=st.sampled_from([OPUS, SONNET]),
        tokens=st.integers(min_value=0, max_value=650),
        count=st.integers(min_value=1, max_value=4),
        deadline_s=st.sampled_from([math.inf, math.inf, 20.0]),
    )
    def enter(self, model_class: str, tokens: int, count: int, deadline_s: float) -> None:
        for _ in range(count):
            claim = Claim(model_class=model_class, cost=Cost(1, tokens), deadline=self.loop.time() + deadline_s)
            self.on_loop(self._enter(claim))

    @precondition(lambda self: self.ended)
    @rule(data=st.data())
    def enter_again(self, data: st.DataObject) -> None:
        grant = self.ended.pop(data.draw(st.integers(min_value=0, max_value=len(self.ended) - 1)))
        model_class = next(
            name for key in self.office.pool.keys for name, q in key.quota.classes.items() if q is grant.allowance
        )
        place: Place | None = grant.place
        assert place is not None
        self.on_loop(self._enter(Claim(model_class=model_class, cost=grant.cost, place=place)))

    async def _end(self, number: int, used: Cost) -> None:
        grant = self.inside.pop(number)
        self.office.leave(grant, used)
        self.ended.append(grant)

    @precondition(lambda self: self.inside)
    @rule(data=st.data(), tokens=st.integers(min_value=0, max_value=900), many=st.booleans())
    def end(self, data: st.DataObject, tokens: int, many: bool) -> None:
        numbers = data.draw(st.permutations(sorted(self.inside)))

        async def end() -> None:
            for number in numbers if many else numbers[:1]:
                await self._end(number, Cost(1, tokens))

        self.on_loop(end())

    @precondition(lambda self: self.waiting)
    @rule(data=st.data(), many=st.booleans(), end_first=st.booleans(), end_last=st.booleans(), again=st.booleans())
    def cancel(self, data: st.DataObject, many: bool, end_first: bool, end_last: bool, again: bool) -> None:
        """Cancel waiters, perhaps in the very turn in which a slot gets free, before or after."""
        numbers = data.draw(st.permutations(sorted(self.waiting)))
        tasks = [self.waiting[number][0] for number in (numbers if many else numbers[:1])]
        inside = sorted(self.inside)

        async def cancel() -> None:
            if end_first and inside:
                await self._end(inside[0], Cost(1, 0))
            for task in tasks:
                task.cancel()
            if end_last and inside[1:]:
                await self._end(inside[1], Cost(1, 0))
            if again:
                await anyio.lowlevel.checkpoint()
                for task in tasks:
                    task.cancel()

        self.on_loop(cancel())

    @rule(seconds=st.floats(min_value=0, max_value=90))
    def advance(self, seconds: float) -> None:
        self.on_loop(anyio.sleep(seconds))

    @rule(seconds=st.floats(min_value=0, max_value=30), key=st.integers(min_value=0, max_value=1))
    def cool_down(self, seconds: float, key: int) -> None:
        async def cool_down() -> None:
            for allowance in self.office.pool.keys[key].quota.classes.values():
                allowance.cool_down(seconds, now=self.loop.time())
            self.office.line.wake()

        self.on_loop(cool_down())

    @rule(key=st.integers(min_value=0, max_value=1), begin=st.booleans())
    def quarantine(self, key: int, begin: bool) -> None:
        async def change() -> None:
            quarantine = self.office.pool.keys[key].quarantine
            if begin:
                quarantine.begin(now=self.loop.time())
            else:
                quarantine.end()
            self.office.line.wake()

        self.on_loop(change())

    @rule(tokens=st.integers(min_value=100, max_value=600))
    def learn(self, tokens: int) -> None:
        async def learn() -> None:
            for key in self.office.pool.keys:
                bucket = key.quota.of_class(SONNET).buckets["input_tokens"]
                bucket.change(per_minute=tokens, capacity=tokens)
            self.office.line.wake()

        self.on_loop(learn())

    @invariant()
    def slots_are_those_inside(self) -> None:
        assert self.office.slots.used == len(self.inside) <= self.SLOTS

    @invariant()
    def what_is_under_way_is_what_is_inside(self) -> None:
        for key in self.office.pool.keys:
            assert key.in_flight == sum(grant.key is key for grant in self.inside.values())
            for allowance in key.quota.classes.values():
                inside = [grant for grant in self.inside.values() if grant.allowance is allowance]
                assert allowance.in_flight == len(inside)

    @invariant()
    def those_who_wait_are_counted(self) -> None:
        assert self.office.line.waiting == len(self.waiting)
        assert sum(map(len, self.office.line._queues.values())) == len(self.waiting)

    @invariant()
    def nobody_waits_who_could_be_inside(self) -> None:
        async def look() -> None:
            line, now = self.office.line, self.loop.time()
            if not self.office.slots.free:
                return
            for model_class, queue in line._queues.items():
                first = queue.first()
                if first is None:
                    continue
                assert first.item is not None
                claim = first.item.claim
                choice = self.office.pool.choose(model_class, claim.cost, now=now)
                assert choice.key is None, f"the first of {model_class} could go"
                # While every key is being probed, one that came before may wait for the outcome.
                probing = any(key.quarantine._probing for key in self.office.pool.keys)
                assert probing or not choice.quarantined, f"the first of {model_class} waits for nothing"
                assert line._timer is not None, f"nothing will wake the first of {model_class}"
                assert line._timer.when() <= now + choice.wait_s + 1e-3

        self.loop.run_until_complete(look())

    def teardown(self) -> None:
        """In the end everybody who waits is let in or refused, and nothing is left of anybody."""

        async def finish() -> None:
            for _ in range(1000):
                for number in list(self.inside):
                    await self._end(number, NOTHING)
                if not self.waiting and not self.inside:
                    return
                await anyio.sleep(60)
                await turns()

        try:
            self.on_loop(finish())
            assert not self.waiting
            assert self.office.is_as_new()
            assert self.office.line._timer is None
        finally:
            self.loop.close()


TestLine = pytest.mark.slow(LineMachine.TestCase)
TestLine.settings = settings(max_examples=60, stateful_step_count=40)
