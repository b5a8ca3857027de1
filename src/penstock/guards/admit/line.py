"""The waiting line: lets requests in, each with everything it needs or nothing at all, in an order that is fair.

The rule here: nothing is held while waiting for something else. A request at the front takes its slot, its key and its
share of every bucket in one synchronous step; the line sleeps until the earliest moment at which a front can be let in,
and is woken by every give-back. No polling.
"""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias, cast

from penstock.errors import NoKeyAvailable, PenstockError, QueueFull
from penstock.guards.admit.fair_queue import Entry, FairQueue, Place
from penstock.guards.admit.limits import Cost

if TYPE_CHECKING:
    from collections.abc import Callable

    from penstock.guards.admit.keys import Choice, Key, KeyPool
    from penstock.guards.admit.quota import ClassQuota, Mark
    from penstock.guards.admit.slots import Slots

__all__ = ["Claim", "Grant", "Line"]

# A priority and a tenant.
Flow: TypeAlias = tuple[str, str]

_NOTHING = Cost(0, 0, 0)
_MOST_CLASSES = 1000
_MOST_TOLD = 5


@dataclass(slots=True, kw_only=True)
class Claim:
    """What a request asks for.

    Attributes:
        model_class: Which line.
        cost: What to take.
        priority: `interactive`, `default` or `batch`.
        tenant: Who it is for; `""` for nobody in particular.
        weight: Share of its flow, more than 0.
        session: Keeps to one quota while there is room.
        deadline: Time of the event loop; a cool-down known to last longer is refused at once.
        place: Where a retried request stood before.
        avoid: A key not to be used while another may be.
        estimate: Gives the cost as estimated now: what is taken at the front, where others' answers have told more.
    """

    model_class: str
    cost: Cost
    priority: str = "default"
    tenant: str = ""
    weight: float = 1.0
    session: str | None = None
    deadline: float = math.inf
    place: Place | None = None
    avoid: object = None
    estimate: Callable[[], Cost] | None = None


@dataclass(slots=True, eq=False)
class Grant:
    """What a request was let in with.

    Attributes:
        key: To send it with.
        allowance: Where its cost was taken from.
        cost: What was taken.
        mark: What had been taken from there by then.
        probe: Whether it probes a quarantined key or quota.
        place: Where it stood.
        queued_s: Seconds that it waited.
    """

    key: Key
    allowance: ClassQuota
    cost: Cost
    mark: Mark
    probe: bool
    place: Place | None = None
    queued_s: float = 0.0


@dataclass(slots=True, eq=False)
class _Waiter:
    claim: Claim
    arrived: float
    granted: asyncio.Future[Grant]


class Line:
    """The lines of all model classes: one each, sharing the slots by weight.

    Args:
        pool: Keys and quotas.
        slots: Shared by all lines.
        max_queued: The most that may wait, all lines together; `None` for no bound.
    """

    def __init__(self, pool: KeyPool, slots: Slots, *, max_queued: int | None = None) -> None:
        self._pool = pool
        self._slots = slots
        self._max_queued = max_queued
        self._queues: dict[str, FairQueue[Flow, _Waiter]] = {}
        # Start-time fair queueing among the lines themselves, for the slots that they share.
        self._finish: dict[str, float] = {}
        self._virtual = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self.waiting = 0

    def __repr__(self) -> str:
        return f"<Line {self.waiting} waiting, {self._slots}>"

    def lengths(self) -> dict[str, int]:
        """Return how many wait, by model class."""
        return {model_class: len(queue) for model_class, queue in self._queues.items() if queue}

    def lengths_by(self) -> dict[str, dict[Flow, int]]:
        """Return how many wait, by model class, and by priority and tenant; retried requests are not counted."""
        return {model_class: queue.lengths() for model_class, queue in self._queues.items() if queue}

    async def enter(self, claim: Claim) -> Grant:
        """Wait until the request is let in, with everything taken on its behalf; `leave` gives it back.

        Raises:
            NoKeyAvailable: Every key is quarantined, or none can serve before the deadline.
            QueueFull: Too many are waiting.
            RequestExceedsQuota: No wait would make the cost fit.
        """
        loop = asyncio.get_running_loop()
        now = loop.time()
        self._pool.check(claim.model_class, claim.cost, now=now)
        queue = self._queue(claim.model_class)
        if not queue and self._slots.free:
            choice = self._choose(claim, now)
            if choice.key is not None:
                return self._grant(choice.key, claim, now, claim.place or queue.pass_by())
        elif all(key.quarantined for key in self._pool.keys):
            self._choose(claim, now)
        if self._max_queued is not None and self.waiting >= self._max_queued:
            raise QueueFull(
                f"{self.waiting} requests are waiting already (max_queued={self._max_queued}). "
                "Send less at once, or raise it."
            )
        return await self._wait(claim, queue, loop, now)

    def _queue(self, model_class: str) -> FairQueue[Flow, _Waiter]:
        queue = self._queues.get(model_class)
        if queue is None:
            if len(self._queues) >= _MOST_CLASSES:
                self._queues = {name: queue for name, queue in self._queues.items() if queue}
            queue = self._queues[model_class] = FairQueue[Flow, _Waiter]()
        return queue

    async def _wait(
        self, claim: Claim, queue: FairQueue[Flow, _Waiter], loop: asyncio.AbstractEventLoop, now: float
    ) -> Grant:
        waiter = _Waiter(claim, now, loop.create_future())
        if claim.place is not None:
            entry = queue.put_back(waiter, claim.place)
        else:
            flow = (claim.priority, claim.tenant)
            entry = queue.push(waiter, flow=flow, weight=claim.weight, cost=_amount(claim.cost))
        self.waiting += 1
        if self._timer is None or queue.first() is entry:
            self.wake()
        try:
            grant = await waiter.granted
        except asyncio.CancelledError:
            self._withdraw(queue, entry, waiter)
            raise
        grant.queued_s = loop.time() - now
        return grant

    def _withdraw(self, queue: FairQueue[Flow, _Waiter], entry: Entry[Flow, _Waiter], waiter: _Waiter) -> None:
        """Leave no trace of a waiter whose task was cancelled, be it let in already or not."""
        if entry.item is not None:
            queue.leave(entry)
            self.waiting -= 1
        elif not waiter.granted.cancelled() and waiter.granted.exception() is None:
            grant = waiter.granted.result()
            grant.allowance.settle(grant.cost, _NOTHING)
            self.leave(grant)
        self.wake()

    def _choose(self, claim: Claim, now: float) -> Choice:
        pool = self._pool
        choice = pool.choose(claim.model_class, claim.cost, now=now, session=claim.session, avoid=claim.avoid)
        if choice.key is None:
            self._refuse_hopeless(choice, claim.deadline - now)
        return choice

    def _refuse_hopeless(self, choice: Choice, left_s: float) -> None:
        """Raise where waiting can't help: every key is quarantined, or the cool-down outlasts the deadline."""
        again = choice.wait_s if choice.wait_s < math.inf else None
        if choice.quarantined and again is None:
            raise NoKeyAvailable("there is no API key left: all were retired. Add one.", retry_after_s=None)
        if choice.quarantined:
            raise NoKeyAvailable(
                f"every API key is quarantined: {self._reasons()}. Nothing was sent; mend the key or its account. "
                f"The next is tried again in {choice.wait_s:.0f} s.",
                retry_after_s=again,
            )
        if choice.cooling_s > left_s:
            raise NoKeyAvailable(
                f"every quota is rate limited for another {choice.cooling_s:.0f} s, "
                f"longer than the {max(left_s, 0):.0f} s left to the deadline.",
                retry_after_s=choice.cooling_s,
            )

    def _reasons(self) -> str:
        """Return why each key is quarantined, of the first few."""
        keys = self._pool.keys
        more = f", and {len(keys) - _MOST_TOLD} more" if len(keys) > _MOST_TOLD else ""
        return ", ".join(f"{key.name} ({key.reason})" for key in keys[:_MOST_TOLD]) + more

    def _grant(self, key: Key, claim: Claim, now: float, place: Place | None) -> Grant:
        allowance = key.quota.of_class(claim.model_class)
        mark = allowance.take(claim.cost, now=now)
        self._slots.used += 1
        return Grant(key, allowance, claim.cost, mark, self._pool.use(key, session=claim.session), place)

    def leave(self, grant: Grant) -> None:
        """Give the slot back; after a probe whose answer told nothing of the key, the next request may probe it."""
        self._slots.used -= 1
        grant.key.in_flight -= 1
        if grant.probe:
            now = asyncio.get_running_loop().time()
            grant.key.quarantine.probe_told_nothing(now=now)
            grant.key.quota.quarantine.probe_told_nothing(now=now)

    def wake(self) -> None:
        """Let in whoever can be let in now, and set the timer for the next."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self.waiting:
            return
        loop = asyncio.get_running_loop()
        now = loop.time()
        earliest = math.inf
        blocked: set[str] = set()
        while self._slots.free and (model_class := self._next_class(blocked)) is not None:
            wait = self._admit_front(model_class, now)
            if wait is not None:
                blocked.add(model_class)
                earliest = min(earliest, wait)
        if not self.waiting:
            self._finish.clear()
            self._virtual = 0.0
        elif earliest < math.inf:
            self._timer = loop.call_at(now + earliest, self.wake)

    def _next_class(self, blocked: set[str]) -> str | None:
        """Return the line whose turn it is for a slot, of those that wait for nothing else."""
        waiting = [name for name, queue in self._queues.items() if queue and name not in blocked]
        if len(waiting) < 2:
            return waiting[0] if waiting else None
        return min(waiting, key=lambda name: max(self._finish.get(name, 0.0), self._virtual))

    def _admit_front(self, model_class: str, now: float) -> float | None:
        """Let in the first of a line; return `None` if done, else how long to wait."""
        queue = self._queues[model_class]
        # A line that is asked for its first isn't empty.
        first = cast("Entry[Flow, _Waiter]", queue.first())
        waiter = cast("_Waiter", first.item)
        if waiter.granted.cancelled():
            # Its task has been cancelled and has not run since; it takes nothing any more.
            queue.leave(first)
            self.waiting -= 1
            return None
        claim = waiter.claim
        if claim.estimate is not None:
            claim.cost = claim.estimate()
            first.cost = _amount(claim.cost)
        try:
            choice = self._choose(claim, now)
            if choice.key is None:
                return choice.wait_s
            grant = self._grant(choice.key, claim, now, None)
        except PenstockError as error:
            waiter.granted.set_exception(error)
            queue.leave(first)
        else:
            grant.place = queue.pop().place
            waiter.granted.set_result(grant)
            self._virtual = max(self._finish.get(model_class, 0.0), self._virtual)
            self._finish[model_class] = self._virtual + 1 / waiter.claim.weight
        self.waiting -= 1
        return None


def _amount(cost: Cost) -> float:
    """Return what a request counts in the line, where all that waits is measured alike."""
    return max(cost.input_tokens + cost.output_tokens, cost.requests)
