"""The waiting line: lets requests in, first come first served, each with everything it needs or nothing at all.

The rule here: nothing is held while waiting for something else. A request at the front takes its slot, its key and its
share of every bucket in one synchronous step; the line sleeps until the earliest moment at which the front can be let
in, and is woken by every give-back. No polling.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from penstock.errors import NoKeyAvailable, PenstockError, QueueFull

if TYPE_CHECKING:
    from penstock.admission.keys import Choice, Key, KeyPool
    from penstock.admission.limits import Cost
    from penstock.admission.quota import ClassQuota

__all__ = ["Grant", "Line", "Slots"]


class Slots:
    """How many requests may be under way at once, over all lines.

    Args:
        total: At least 1.
    """

    __slots__ = ("total", "used")

    def __init__(self, total: int) -> None:
        self.total = total
        self.used = 0

    def __repr__(self) -> str:
        return f"<Slots {self.used} of {self.total}>"

    @property
    def free(self) -> bool:
        """Whether there is one left."""
        return self.used < self.total


@dataclass(slots=True, eq=False)
class Grant:
    """What a request was let in with.

    Attributes:
        key: To send it with.
        allowance: Where its cost was taken from.
        cost: What was taken.
        probe: Whether it probes a quarantined key or quota.
        queued_s: Seconds that it waited.
    """

    key: Key
    allowance: ClassQuota
    cost: Cost
    probe: bool
    queued_s: float = 0.0


@dataclass(slots=True, eq=False)
class _Waiter:
    model_class: str
    cost: Cost
    deadline: float
    arrived: float
    granted: asyncio.Future[Grant]
    in_line: bool = True


class Line:
    """The lines of all model classes: one each, sharing the slots in turn.

    Args:
        pool: Keys and quotas.
        slots: Shared by all lines.
        max_queued: The most that may wait, all lines together; `None` for no bound.
    """

    def __init__(self, pool: KeyPool, slots: Slots, *, max_queued: int | None = None) -> None:
        self._pool = pool
        self._slots = slots
        self._max_queued = max_queued
        self._queues: dict[str, list[tuple[int, int, _Waiter]]] = {}
        self._places = itertools.count()
        self._arrivals = itertools.count()
        self._timer: asyncio.TimerHandle | None = None
        self.waiting = 0

    def __repr__(self) -> str:
        return f"<Line {self.waiting} waiting, {self._slots}>"

    def lengths(self) -> dict[str, int]:
        """Return how many wait, by model class."""
        return {
            model_class: sum(not waiter.granted.done() for _, _, waiter in queue)
            for model_class, queue in self._queues.items()
            if queue
        }

    def next_place(self) -> int:
        """Return the place at the end of the line."""
        return next(self._places)

    async def enter(self, model_class: str, cost: Cost, *, place: int, deadline: float = math.inf) -> Grant:
        """Wait until the request is let in, with everything taken on its behalf; `leave` gives it back.

        Args:
            model_class: Which line.
            cost: What to take.
            place: From `next_place`; a retried request gives the place that it had.
            deadline: Time of the event loop; a cool-down known to last longer raises at once.

        Raises:
            NoKeyAvailable: Every key is quarantined, or none can serve before the deadline.
            QueueFull: Too many are waiting.
            RequestExceedsQuota: No wait would make the cost fit.
        """
        loop = asyncio.get_running_loop()
        now = loop.time()
        choice = self._pool.choose(model_class, cost, now=now)
        if choice.key is None:
            self._refuse_hopeless(choice, deadline - now)
        elif self._slots.free and not self._queues.get(model_class):
            return self._grant(choice.key, model_class, cost, now=now)
        if self._max_queued is not None and self.waiting >= self._max_queued:
            raise QueueFull(
                f"{self.waiting} requests are waiting already (max_queued={self._max_queued}). "
                "Send less at once, or raise it."
            )
        waiter = _Waiter(model_class, cost, deadline, now, loop.create_future())
        queue = self._queues.setdefault(model_class, [])
        heapq.heappush(queue, (place, next(self._arrivals), waiter))
        self.waiting += 1
        if self._timer is None or queue[0][2] is waiter:
            self.wake()
        try:
            grant = await waiter.granted
        except asyncio.CancelledError:
            self._withdraw(waiter)
            raise
        grant.queued_s = loop.time() - waiter.arrived
        return grant

    def _withdraw(self, waiter: _Waiter) -> None:
        """Leave no trace of a waiter whose task was cancelled, be it let in already or not."""
        if waiter.in_line:
            waiter.in_line = False
            self.waiting -= 1
            self._forget_gone(waiter.model_class)
        elif waiter.granted.exception() is None:
            grant = waiter.granted.result()
            grant.allowance.settle(grant.cost, type(grant.cost)(0, 0, 0))
            self.leave(grant)
        self.wake()

    def _forget_gone(self, model_class: str) -> None:
        """Drop cancelled waiters once they are the greater part: each costs constant time and space, amortised."""
        queue = self._queues.get(model_class)
        if queue is not None and len(queue) > 2 * self.waiting + 16:
            queue[:] = [entry for entry in queue if not entry[2].granted.done()]
            heapq.heapify(queue)

    def _grant(self, key: Key, model_class: str, cost: Cost, *, now: float) -> Grant:
        allowance = self._pool.class_quota(key, model_class)
        allowance.take(cost, now=now)
        self._slots.used += 1
        return Grant(key, allowance, cost, self._pool.use(key))

    def leave(self, grant: Grant) -> None:
        """Give the slot back; after a probe whose answer told nothing of the key, the next request may probe it."""
        self._slots.used -= 1
        if grant.probe:
            now = asyncio.get_running_loop().time()
            grant.key.quarantine.probe_told_nothing(now=now)
            grant.key.quota.quarantine.probe_told_nothing(now=now)

    def wake(self) -> None:
        """Let in whoever can be let in now, in turn over the lines, and set the timer for the next."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self.waiting:
            self._queues.clear()
            return
        loop = asyncio.get_running_loop()
        now = loop.time()
        earliest = math.inf
        open_classes = list(self._queues)
        while open_classes and self._slots.free:
            for model_class in tuple(open_classes):
                wait = self._admit_front(model_class, now)
                if wait is None:
                    continue
                open_classes.remove(model_class)
                earliest = min(earliest, wait)
        if earliest < math.inf:
            self._timer = loop.call_at(now + earliest, self.wake)

    def _admit_front(self, model_class: str, now: float) -> float | None:
        """Let in the first of a line; return `None` if done, else how long to wait (infinity if nobody is there)."""
        queue = self._queues.get(model_class, [])
        while queue and queue[0][2].granted.done():
            heapq.heappop(queue)
        if not queue:
            self._queues.pop(model_class, None)
        if not queue or not self._slots.free:
            return math.inf
        waiter = queue[0][2]
        try:
            choice = self._pool.choose(model_class, waiter.cost, now=now)
            if choice.key is None:
                self._refuse_hopeless(choice, waiter.deadline - now)
                return choice.wait_s
            grant = self._grant(choice.key, model_class, waiter.cost, now=now)
        except PenstockError as error:
            waiter.granted.set_exception(error)
        else:
            waiter.granted.set_result(grant)
        heapq.heappop(queue)
        waiter.in_line = False
        self.waiting -= 1
        # Behind the other lines, or the oldest line would take every slot while it has anybody waiting.
        self._queues[model_class] = self._queues.pop(model_class)
        return None

    @staticmethod
    def _refuse_hopeless(choice: Choice, left_s: float) -> None:
        """Raise where waiting can't help: every key is quarantined, or the cool-down outlasts the deadline."""
        again = choice.wait_s if choice.wait_s < math.inf else None
        if choice.quarantined:
            raise NoKeyAvailable(
                "every API key is quarantined: the API refused it (401), or its organization reached its spend limit. "
                f"Check the keys; the next is tried again in {choice.wait_s:.0f} s.",
                retry_after_s=again,
            )
        if choice.cooling and choice.wait_s > left_s:
            raise NoKeyAvailable(
                f"every quota is rate limited for another {choice.wait_s:.0f} s, "
                f"longer than the {max(left_s, 0):.0f} s left to the deadline.",
                retry_after_s=again,
            )
