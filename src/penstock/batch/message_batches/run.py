"""A run through message batches: reads, submits, follows, and asks live for what batches don't get done in time.

The rule here: one chunk of the input is in memory at a time. Whoever has a request passes it on or delivers its result,
so that the run is over when the input has been read and nobody has one.
"""

from __future__ import annotations

import json
import math
from array import array
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

import anyio
import anyio.lowlevel

from penstock.batch.fan_out import FanOut
from penstock.batch.message_batches.follow import Follower
from penstock.batch.message_batches.spool import wire_request
from penstock.batch.message_batches.submit import Submitter
from penstock.batch.result import FanOutResult
from penstock.core.context import deadline
from penstock.errors import ItemFailed

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterable

    from anthropic import AsyncAnthropic
    from anyio.abc import TaskGroup
    from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

    from penstock.batch.items import Item, Request
    from penstock.batch.message_batches.desk import Desk, Stage
    from penstock.batch.message_batches.intake import BatchIntake
    from penstock.batch.message_batches.ledger import Batch

__all__ = ["Plan", "Run"]

# What surrounds a request in the body.
_AROUND_BYTES: Final = 32
_LONGEST_WIRE_ID: Final = 64
_AT_A_STRETCH: Final = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How a run goes.

    Attributes:
        batch_size: Requests in a batch at most.
        batch_bytes: Bytes in a batch at most.
        max_attempts: How often a request is submitted at most.
        live_at: Time of the event loop from when on what remains is asked live.
        concurrency: Of what is asked live.
    """

    batch_size: int
    batch_bytes: int
    max_attempts: int
    live_at: float
    concurrency: int


@dataclass(slots=True)
class _Chunk:
    """Requests for the next batch."""

    requests: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    places: list[int] = field(default_factory=list[int])
    size_bytes: int = 0

    def add(self, wire: str, place: int, params: bytes) -> None:
        self.requests.append(wire_request(wire, json.loads(params)))
        self.places.append(place)
        self.size_bytes += len(wire) + len(params) + _AROUND_BYTES

    def has_room(self, params: bytes, plan: Plan) -> bool:
        return self.size_bytes + _LONGEST_WIRE_ID + len(params) + _AROUND_BYTES <= plan.batch_bytes


class Run:
    """The work behind one `async with claude.batch(…)`.

    Args:
        sdk: Asks live.
        desk: What its parts share.
        intake: The input.
        plan: How it goes.
    """

    def __init__(self, sdk: AsyncAnthropic, desk: Desk, intake: BatchIntake, plan: Plan) -> None:
        self._sdk = sdk
        self._desk = desk
        self._intake = intake
        self._plan = plan
        self._follower = Follower(desk, max_attempts=plan.max_attempts)
        self.submitter = Submitter(desk)
        # Made when the work begins: it may never do so.
        self._to_live: MemoryObjectSendStream[int]
        intake.on_known = self._known

    def __repr__(self) -> str:
        return f"<Run {self._desk.stage}, {self._intake!r}, {self._desk.ledger!r}>"

    async def work(self) -> None:
        """Do it all.

        Raises:
            Exception: What went wrong.
        """
        async with anyio.create_task_group() as helpers:
            if self._desk.journal is not None:
                helpers.start_soon(self._desk.journal.keep_synced)
            helpers.start_soon(self._watch_clock)
            self._to_live, live = anyio.create_memory_object_stream[int](self._plan.concurrency)
            with live, self._to_live:
                async with anyio.create_task_group() as others:
                    others.start_soon(self._ask_live, live)
                    await self._use_batches()
                    self._to_live.close()
            helpers.cancel_scope.cancel()

    async def _use_batches(self) -> None:
        restored = self._desk.ledger.earlier
        async with anyio.create_task_group() as group:
            for batch in restored:
                group.start_soon(self._restore, group, batch)
            try:
                await self._read(group)
            finally:
                for batch in restored:
                    batch.complete.set()

    # Reading

    async def _read(self, group: TaskGroup) -> None:
        chunk = _Chunk()
        while self._desk.stage != "cancelled" and (found := await self._intake.next()) is not None:
            if isinstance(found, FanOutResult):
                await self._desk.pass_on(found)
            else:
                chunk = await self._put(found, chunk, group)
            if self._desk.tally is not None:
                self._desk.tally.resumed = self._intake.resumed
            if self._intake.read % _AT_A_STRETCH == 0:
                await anyio.lowlevel.checkpoint()
        await self._submit(chunk, 1, group)

    async def _put(self, item: Item, chunk: _Chunk, group: TaskGroup) -> _Chunk:
        """Give a request to the batch that it is with already, or to the next one; return the next one."""
        desk = self._desk
        if desk.stage != "batches":
            await self._leave(chunk.places)
            chunk = _Chunk()
        try:
            place, wire, params = desk.take(item, most_bytes=self._plan.batch_bytes)
        except (TypeError, ValueError) as error:
            await desk.pass_on(FanOutResult(custom_id=item.custom_id, index=item.index, error=error))
            return chunk
        batch = desk.ledger.restored(wire)
        if batch is not None:
            desk.assign(wire, place, batch.number)
            batch.places.append(place)
            self._met(batch)
        elif desk.stage == "live":
            await self._to_live.send(place)
        else:
            if not chunk.has_room(params, self._plan):
                await self._submit(chunk, 1, group)
                chunk = _Chunk()
            chunk.add(wire, place, params)
            if len(chunk.places) == self._plan.batch_size:
                await self._submit(chunk, 1, group)
                chunk = _Chunk()
        return chunk

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

    async def _submit(self, chunk: _Chunk, attempt: int, group: TaskGroup) -> None:
        if not chunk.places:
            return
        batch = await self.submitter.submit(chunk.requests, chunk.places, attempt=attempt)
        if batch is None:
            await self._leave(chunk.places)
        else:
            group.start_soon(self._follow, group, batch)

    async def _restore(self, group: TaskGroup, batch: Batch) -> None:
        """Go on with a batch of an earlier run, once it is known what belongs to it."""
        await batch.complete.wait()
        if not batch.places:
            if batch.accounted:
                self._desk.ledger.over(batch)
        elif batch.id is not None or await self.submitter.locate(batch):
            await self._follow(group, batch)
        else:
            # It was never submitted.
            await self._submit(await self._read_back(batch.places), batch.attempt, group)
            self._desk.ledger.over(batch)

    async def _follow(self, group: TaskGroup, batch: Batch) -> None:
        again = await self._follower.follow(batch)
        if again is None:
            return
        if self._desk.stage == "batches":
            await self._submit(await self._read_back(again.places), again.attempt, group)
        else:
            await self._leave(again.places)
        if batch.accounted:
            self._desk.ledger.over(batch)

    async def _read_back(self, places: Iterable[int]) -> _Chunk:
        chunk = _Chunk()
        for place in places:
            chunk.places.append(place)
            chunk.requests.append(self._desk.spool.request(place))
            if len(chunk.places) % _AT_A_STRETCH == 0:
                await anyio.lowlevel.checkpoint()
        return chunk

    async def _leave(self, places: Iterable[int]) -> None:
        """Have requests asked live, or not at all."""
        for place in places:
            if self._desk.stage == "live":
                await self._to_live.send(place)
            else:
                await self._desk.fail(place, self._desk.spool.head(place), ItemFailed("canceled"))

    # What batches don't get done

    async def _watch_clock(self) -> None:
        if self._plan.live_at < math.inf:
            await anyio.sleep_until(self._plan.live_at)
            if self._desk.stage == "batches":
                await self.turn("live")

    async def turn(self, stage: Stage) -> None:
        """Ask what remains live, or not at all, and have the batches stopped."""
        self._desk.turn(stage)
        await self.stop_all()

    async def stop_all(self) -> None:
        """Have the batches under way cancelled."""
        for batch in list(self._desk.ledger.batches.values()):
            await self._follower.stop(batch)

    async def _ask_live(self, live: MemoryObjectReceiveStream[int]) -> None:
        asked = array("Q")
        desk, left_s = self._desk, self._desk.deadline_at - anyio.current_time()
        with deadline(left_s) if left_s < math.inf else nullcontext():
            async with FanOut(
                self._sdk, self._live_requests(live, asked), concurrency=self._plan.concurrency
            ) as results:
                async for result in results:
                    place = asked[result.index]
                    head = desk.spool.head(place)
                    await desk.deliver(place, head, replace(result, index=head.index, labels=head.labels))

    async def _live_requests(
        self, live: MemoryObjectReceiveStream[int], asked: array[int]
    ) -> AsyncGenerator[Request, None]:
        async for place in live:
            head = self._desk.spool.head(place)
            if self._desk.stage == "cancelled":
                await self._desk.fail(place, head, ItemFailed("canceled"))
                continue
            asked.append(place)
            yield {"custom_id": head.custom_id, "params": self._desk.spool.params(place), "labels": head.labels}
