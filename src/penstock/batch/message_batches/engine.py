"""The engine of a run through message batches: submits, follows, and asks live for what they don't get done in time.

The rule here: whoever has a request passes it on or delivers its result, so that the run is over when the input has
been read and nobody has one; and where the run is cut short, what is left is swept up at the end.
"""

from __future__ import annotations

import math
from array import array
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final, cast

import anyio
import anyio.lowlevel

from penstock._core.context import current_deadline
from penstock.batch.fan_out import FanOut
from penstock.batch.message_batches.desk import AT_A_STRETCH, Desk
from penstock.batch.message_batches.follow import Follower
from penstock.batch.message_batches.ledger import Ledger
from penstock.batch.message_batches.remote import Remote
from penstock.batch.message_batches.requests import Spool
from penstock.batch.message_batches.submit import Submitter
from penstock.batch.result import FanOutResult
from penstock.batch.run import KNOWN_PARAMS

if TYPE_CHECKING:
    import random
    from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
    from contextlib import AsyncExitStack

    from anthropic import AsyncAnthropic
    from anyio.abc import TaskGroup
    from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

    from penstock.batch.intake import Ready
    from penstock.batch.items import Item, Request
    from penstock.batch.message_batches.desk import Stage
    from penstock.batch.message_batches.ledger import Batch
    from penstock.batch.message_batches.plan import Plan
    from penstock.batch.message_batches.requests import BatchIntake
    from penstock.batch.run import Work

__all__ = ["Batches"]

# Results that may wait for the caller.
_READY: Final = 64
_STOPPED_WITHIN_S: Final = 10.0
# What surrounds a request in the body.
_AROUND_BYTES: Final = 32
_LONGEST_WIRE_ID: Final = 64


@dataclass(slots=True)
class _Chunk:
    """Requests for the next batch."""

    places: array[int] = field(default_factory=lambda: array("Q"))
    size_bytes: int = 0

    def add(self, place: int, size_bytes: int) -> None:
        self.places.append(place)
        self.size_bytes += size_bytes


class Batches:
    """The engine behind `claude.batch(…)`.

    Args:
        sdk: Submits, follows, and asks live.
        plan: How it goes.
        rng: Source of jitter.
    """

    def __init__(self, sdk: AsyncAnthropic, plan: Plan, *, rng: random.Random) -> None:
        self._sdk = sdk
        self._plan = plan
        self._rng = rng
        self._chunk = _Chunk()
        self.room = _READY
        self._opened = False
        # Made when the run is opened, or when the work begins: it may never do so.
        self._desk: Desk
        self._live_at = math.inf
        self._follower: Follower
        self._submitter: Submitter
        self._to_live: MemoryObjectSendStream[int]
        self._group: TaskGroup
        self._reading: anyio.CancelScope

    def __repr__(self) -> str:
        return "<Batches, not begun>" if not self._opened else f"<Batches {self._desk.stage}, {self._desk.ledger!r}>"

    async def open(self, work: Work, stack: AsyncExitStack) -> None:
        """Take up what an earlier run has left."""
        spool = stack.enter_context(Spool(None if work.journal is None else work.journal.path.parent))
        # A deadline around the block is one of the run, too.
        deadline_at = min(anyio.current_time() + (self._plan.deadline_s or math.inf), current_deadline())
        left_s = deadline_at - anyio.current_time()
        live_s = self._plan.live_for(left_s)
        self._live_at = deadline_at - live_s
        self._desk = desk = Desk(
            plan=self._plan,
            remote=Remote(self._sdk, deadline_at=deadline_at, sending=self._plan.sending),
            ledger=Ledger(work.journal),
            spool=spool,
            work=work,
            rng=self._rng,
            stage="live" if live_s >= left_s else "batches",
        )
        self._follower, self._submitter = Follower(desk), Submitter(desk)
        self._reading = anyio.CancelScope()
        cast("BatchIntake", work.intake).on_known = self._known
        if work.journal is None:
            stack.push_async_callback(self._stop)
        self._opened = True

    def leave(self) -> None:
        """Allow a batch that is being made, and that nobody would find again, a moment."""
        if (making := self._submitter.making) is not None:
            making.deadline = anyio.current_time() + _STOPPED_WITHIN_S

    async def _stop(self) -> None:
        """Stop what nobody could collect."""
        self._desk.remote.deadline_at = math.inf
        with anyio.move_on_after(_STOPPED_WITHIN_S):
            await self.stop_all()

    async def work(self) -> None:
        """Do it all."""
        desk = self._desk
        async with anyio.create_task_group() as helpers:
            if self._live_at < math.inf:
                helpers.start_soon(self._watch_clock)
            self._to_live, live = anyio.create_memory_object_stream[int](desk.plan.concurrency)
            async with anyio.create_task_group() as others:
                others.start_soon(self._ask_live, live)
                with self._to_live:
                    await self._use_batches()
            if desk.overdue or desk.stage == "cancelled":
                await desk.sweep()
            helpers.cancel_scope.cancel()

    async def _use_batches(self) -> None:
        restored = self._desk.ledger.earlier
        async with anyio.create_task_group() as self._group:
            for batch in restored:
                self._group.start_soon(self._in_time, self._restore, batch)
            try:
                await self._read()
            finally:
                for batch in restored:
                    batch.complete.set()

    async def _in_time(self, work: Callable[[Batch], Awaitable[None]], batch: Batch) -> None:
        """Work on a batch; what isn't done when the time is over is swept up."""
        with suppress(TimeoutError):
            await work(batch)

    # Reading

    async def _read(self) -> None:
        number = 0
        while self._desk.stage != "cancelled" and (found := await self._next()) is not None:
            if isinstance(found, FanOutResult):
                await self._desk.give(found)
            else:
                await self._put(found)
            number += 1
            if number % AT_A_STRETCH == 0:
                await anyio.lowlevel.checkpoint()
        await self._flush()

    async def _next(self) -> Ready | None:
        """Wait for the input, but not beyond the deadline, nor once all is cancelled."""
        work = self._desk.work
        # An input that never waits is told of to its end.
        with anyio.CancelScope(deadline=self._desk.remote.deadline_at if work.intake.waits else math.inf) as reading:
            self._reading = reading
            return await work.next()
        return None

    async def _put(self, item: Item) -> None:
        """Give a request to the batch that it is with already, or to the next one."""
        desk = self._desk
        try:
            place, wire, length = desk.take(item)
        except (TypeError, ValueError) as error:
            result = FanOutResult(custom_id=item.custom_id, index=item.index, error=error)
            desk.work.tally.add(result)
            await desk.give(result)
            return
        batch = desk.ledger.restored(wire)
        if batch is not None:
            desk.assign(wire, place, batch.number)
            batch.places.append(place)
            self._met(batch)
        elif desk.stage != "batches":
            await self._leave((place,))
        else:
            size_bytes = _LONGEST_WIRE_ID + length + _AROUND_BYTES
            if self._chunk.size_bytes + size_bytes > desk.plan.batch_bytes:
                await self._flush()
            self._chunk.add(place, size_bytes)
            if len(self._chunk.places) == desk.plan.batch_size:
                await self._flush()

    def _known(self, wire: str) -> None:
        """Take note of a request that the journal answers."""
        batch = self._desk.ledger.restored(wire)
        if batch is not None:
            batch.answered += 1
            self._met(batch)

    def _met(self, batch: Batch) -> None:
        if batch.accounted:
            batch.complete.set()

    # Batches

    async def _flush(self) -> None:
        chunk, self._chunk = self._chunk, _Chunk()
        with suppress(TimeoutError):
            await self._submit(chunk.places, 1)

    async def _submit(self, places: array[int], attempt: int) -> None:
        if not places:
            return
        batch = None
        if self._desk.stage == "batches":
            batch = await self._submitter.submit(places, attempt=attempt)
        if batch is None:
            await self._leave(places)
        else:
            self._group.start_soon(self._in_time, self._follow, batch)

    async def _restore(self, batch: Batch) -> None:
        """Go on with a batch of an earlier run, once it is known what belongs to it."""
        await batch.complete.wait()
        if batch.places:
            await self._follow(batch)
        elif batch.accounted:
            await self._over(batch)

    async def _follow(self, batch: Batch) -> None:
        """See a batch through; one without an id is looked for, as often as what is found is another's."""
        while batch.id is not None or await self._submitter.locate(batch):
            again = await self._follower.follow(batch)
            if again is not None:
                await self._submit(again, batch.attempt + 1)
                if batch.accounted:
                    await self._over(batch)
                return
            if batch.id is not None:
                return
        # It was never submitted.
        places = array("Q", [place async for place, _ in self._desk.with_batch(batch)])
        await self._submit(places, batch.attempt)
        await self._over(batch)

    async def _over(self, batch: Batch) -> None:
        """Note that a batch is over; not before its results are on the disk as well."""
        if self._desk.work.journal is not None:
            await self._desk.work.journal.sync()
        self._desk.ledger.over(batch)

    async def _leave(self, places: Iterable[int]) -> None:
        """Have requests asked live, or leave them to be swept up."""
        # Nobody asks live once the time is over.
        with suppress(anyio.BrokenResourceError):
            for place in places:
                if self._desk.stage == "live":
                    await self._to_live.send(place)

    # What batches don't get done

    async def _watch_clock(self) -> None:
        await anyio.sleep_until(self._live_at)
        if self._desk.stage == "batches":
            if self._chunk.places:
                # Whoever reads may wait for long.
                self._group.start_soon(self._flush)
            await self.turn("live")

    async def turn(self, stage: Stage) -> None:
        """Ask what remains live, or not at all, and have the batches stopped."""
        self._desk.turn(stage)
        if stage == "cancelled":
            self._reading.cancel()
        await self.stop_all()

    async def stop_all(self) -> None:
        """Have the batches under way cancelled."""
        async with anyio.create_task_group() as group:
            for batch in self._desk.ledger.batches.values():
                group.start_soon(self._follower.stop, batch)

    async def _ask_live(self, live: MemoryObjectReceiveStream[int]) -> None:
        asked, desk = array("Q"), self._desk
        requests = self._live_requests(live, asked)
        with live:
            async with FanOut(self._sdk, requests, concurrency=desk.plan.concurrency, **desk.plan.sending) as results:
                while (result := await self._next_live(results)) is not None:
                    place = asked[result.index]
                    head = desk.spool.head(place)
                    await desk.deliver(place, head, replace(result, index=head.index, labels=head.labels))

    async def _next_live(self, results: FanOut) -> FanOutResult | None:
        """Wait for an answer, but not beyond the deadline."""
        with anyio.CancelScope(deadline=self._desk.remote.deadline_at):
            return await anext(results, None)
        return None

    async def _live_requests(
        self, live: MemoryObjectReceiveStream[int], asked: array[int]
    ) -> AsyncGenerator[Request, None]:
        async for place in live:
            if self._desk.stage == "cancelled":
                continue
            asked.append(place)
            head, params = self._desk.spool.head(place), self._desk.spool.params(place)
            more = {name: params.pop(name) for name in list(params) if name not in KNOWN_PARAMS}
            if more:
                params["extra_body"] = more
            yield {"custom_id": head.custom_id, "params": params, "labels": head.labels}
