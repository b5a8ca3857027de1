"""What all parts of a run through message batches share: where each request is, and the way of results to the caller.

The rule here: a request is with one batch at a time, or with none, and gets one result.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal

import anyio
import anyio.lowlevel

from penstock.batch.ask import fitted
from penstock.batch.journal.digests import DigestMap
from penstock.batch.message_batches.requests import Head, encoded, wire_id
from penstock.batch.result import FanOutResult
from penstock.errors import ItemFailed

if TYPE_CHECKING:
    import random
    from collections.abc import AsyncIterator

    from penstock.batch.items import Item
    from penstock.batch.message_batches.ledger import Batch, Ledger
    from penstock.batch.message_batches.plan import Plan
    from penstock.batch.message_batches.remote import Remote
    from penstock.batch.message_batches.requests import Spool
    from penstock.batch.run import Work

__all__ = ["AT_A_STRETCH", "NO_BATCH", "Desk", "Stage", "result_of"]

Stage = Literal["batches", "live", "cancelled"]
NO_BATCH: Final = 0
_FINISHED: Final = (1 << 64) - 1
# How many requests may be read from the disk before others have a turn.
AT_A_STRETCH: Final = 100
_LONGEST_S: Final = 60.0
_GROWTH: Final = 1.5


@dataclass(slots=True, eq=False, kw_only=True)
class Desk:
    """One run's state.

    Attributes:
        plan: How it goes.
        remote: Asks the API about batches.
        ledger: The batches under way.
        spool: The requests that were read.
        work: The run.
        rng: Source of jitter.
        stage: `batches` until what remains is to be asked live, or not at all.
        places: Where each request is in the spool, and the number of the batch that it is with.
    """

    plan: Plan
    remote: Remote
    ledger: Ledger
    spool: Spool
    work: Work
    rng: random.Random
    stage: Stage = "batches"
    places: DigestMap = field(default_factory=DigestMap)
    _turned: anyio.Event = field(default_factory=anyio.Event)

    def take(self, item: Item) -> tuple[int, str, int]:
        """Set a request aside; return its place, its wire id, and the length of its params as JSON.

        Raises:
            TypeError: Its params are nothing that JSON can hold.
            ValueError: They are more than fits into a batch, or hold what no JSON in UTF-8 can.
        """
        digest, most = str(item.request), self.plan.batch_bytes
        wire, params = wire_id(item.custom_id, digest), encoded(item.params)
        if len(params) > most:
            raise ValueError(f"item {item.index} has {len(params)} bytes; a batch takes {most}")
        head = Head(index=item.index, custom_id=item.custom_id, digest=digest, wire_id=wire, labels=item.labels)
        place = self.spool.add(head, params)
        self.places.put(wire, place, NO_BATCH)
        return place, wire, len(params)

    def assign(self, wire: str, place: int, number: int) -> None:
        """Note which batch a request is with from now on."""
        self.places.put(wire, place, number)

    async def with_batch(self, batch: Batch) -> AsyncIterator[tuple[int, Head]]:
        """Return the requests that are with a batch, and have no result yet."""
        for number, place in enumerate(batch.places):
            head = self.spool.head(place)
            if self.places.get(head.wire_id) == (place, batch.number):
                yield place, head
            if number % AT_A_STRETCH == 0:
                await anyio.lowlevel.checkpoint()

    async def deliver(self, place: int, head: Head, result: FanOutResult) -> None:
        """Give a request its result."""
        self.places.put(head.wire_id, place, _FINISHED)
        result = fitted(result, self.work.output)
        self.work.finish(result, request=head.digest, params=None if result.ok else self.spool.params(place))
        await self.give(result)

    async def give(self, result: FanOutResult) -> None:
        """Hand a result over, once there is room for it."""
        await self.work.room.acquire()
        self.work.give(result)

    async def fail(self, place: int, head: Head, error: Exception, batch: Batch | None = None) -> None:
        """Give a request a failure as its result."""
        await self.deliver(place, head, result_of(head, batch, error=error))

    async def sweep(self) -> None:
        """Give all that have none the result that no time was left for them, or that the run was cancelled."""
        for number, (place, head) in enumerate(self.spool):
            if self.places.get(head.wire_id) != (place, _FINISHED):
                cancelled = self.stage == "cancelled"
                error = ItemFailed("canceled") if cancelled else ItemFailed("expired", error_type="DeadlineExceeded")
                await self.fail(place, head, error)
            if number % AT_A_STRETCH == 0:
                await anyio.lowlevel.checkpoint()

    # Waiting

    def turn(self, stage: Stage) -> None:
        """Go on otherwise, and wake all who wait for time to pass."""
        self.stage = stage
        turned, self._turned = self._turned, anyio.Event()
        turned.set()

    @property
    def overdue(self) -> bool:
        """Whether no time is left."""
        return anyio.current_time() >= self.remote.deadline_at

    async def pause(self, seconds: float) -> None:
        """Wait, but not beyond the deadline, nor beyond the moment when the run goes on otherwise."""
        with anyio.CancelScope(deadline=min(anyio.current_time() + seconds, self.remote.deadline_at)):
            await self._turned.wait()

    def delays(self) -> Delays:
        """Return the pauses between looks at something, or attempts."""
        return Delays(self.plan.poll_s, self.rng)


class Delays:
    """Pauses that grow, each up to a fifth shorter or longer."""

    __slots__ = ("_next_s", "_rng")

    def __init__(self, first_s: float, rng: random.Random) -> None:
        self._next_s = first_s
        self._rng = rng

    def __repr__(self) -> str:
        return f"<Delays, next {self._next_s:g} s>"

    def next_s(self) -> float:
        """Return the next one, in seconds."""
        delay_s = self._next_s
        self._next_s = max(delay_s, min(delay_s * _GROWTH, _LONGEST_S))
        return delay_s * self._rng.uniform(0.8, 1.2)


def result_of(head: Head, batch: Batch | None, **outcome: Any) -> FanOutResult:
    """Return the result of a request, with what is known of the batch that brought it."""
    begun = None if batch is None else batch.submitted_at
    return FanOutResult(
        custom_id=head.custom_id,
        index=head.index,
        attempts=None if batch is None else batch.attempt,
        latency_s=None if begun is None else anyio.current_time() - begun,
        labels=head.labels,
        **outcome,
    )
