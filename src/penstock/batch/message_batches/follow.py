"""From a submitted batch to a result for each of its requests.

The rule here: a results file may be read as often as need be, because each request takes one result from it and no
more. What the service failed to do is asked again a few times; what is wrong with a request is final.
"""

from __future__ import annotations

import json
from array import array
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import anthropic
import anyio
import httpx2

from penstock.batch.message_batches.desk import NO_BATCH, result_of
from penstock.batch.message_batches.remote import failure_of
from penstock.core.context import Pin
from penstock.core.failure import failure_of_error_event
from penstock.errors import ItemFailed, NoKeyAvailable

if TYPE_CHECKING:
    from anthropic.types.messages import MessageBatch, MessageBatchIndividualResponse
    from anthropic.types.messages.message_batch_result import MessageBatchResult

    from penstock.batch.message_batches.desk import Desk
    from penstock.batch.message_batches.ledger import Batch
    from penstock.batch.message_batches.spool import Head

__all__ = ["Again", "Follower"]

_MOST_BREAKS: Final = 5
# The API ends a batch within a day; whoever can't be reached for longer than that is not waited for.
_LONGEST_S: Final = 25 * 3600.0
_BROKEN: Final = (httpx2.TransportError, httpx2.DecodingError, json.JSONDecodeError)


class _NotOurs(Exception):
    """A batch that was taken for a lost one holds other requests."""


@dataclass(frozen=True, slots=True)
class Again:
    """Requests of a batch that are to be asked once more.

    Attributes:
        places: In the spool.
        attempt: How often they will have been submitted then.
    """

    places: array[int]
    attempt: int


class Follower:
    """Waits for batches and collects their results.

    Args:
        desk: Of the run.
        max_attempts: How often a request is submitted at most.
    """

    def __init__(self, desk: Desk, *, max_attempts: int) -> None:
        self._desk = desk
        self._max_attempts = max_attempts

    def __repr__(self) -> str:
        return f"<Follower, up to {self._max_attempts} attempts>"

    async def follow(self, batch: Batch) -> Again | None:
        """Wait for a batch whose id is known, and deliver what came of it.

        Returns:
            What must be asked again; `None` if time ran out before the batch had ended.

        Raises:
            NoKeyAvailable: No key here may see it.
            anthropic.APIError: The API can't be asked.
        """
        ended = await self._until_ended(batch)
        if ended is None and self._left(batch):
            await self._abandon(batch)
            return None
        # Of one that is gone, nothing can be had.
        again = Again(array("Q"), batch.attempt + 1)
        if ended is not None and ended.archived_at is not None:
            await self._give_up(batch, ended)
        elif ended is not None and not await self._collect(batch, again):
            # It was never submitted.
            return Again(array("Q", (place for place, _ in self._desk.with_batch(batch))), batch.attempt)
        if batch.settled < len(batch.places):
            for place, head in self._desk.with_batch(batch):
                await self._once_more(batch, place, head, ItemFailed("errored", error_type="MissingResult"), again)
        return again

    def _left(self, batch: Batch) -> bool:
        """Whether a batch is to be waited for no longer; one that may be another's is not cancelled, so just left."""
        return self._desk.overdue or (self._desk.stage == "cancelled" and batch.adopted)

    async def _abandon(self, batch: Batch) -> None:
        error = ItemFailed("expired", error_type="DeadlineExceeded") if self._desk.overdue else ItemFailed("canceled")
        for place, head in self._desk.with_batch(batch):
            await self._desk.fail(place, head, error, batch)

    # Waiting for its end

    async def _until_ended(self, batch: Batch) -> MessageBatch | None:
        """Look at a batch now and then until it has ended; `None` if it is gone, or no time is left."""
        desk, delays, stage = self._desk, self._desk.delays(), self._desk.stage
        give_up_at = anyio.current_time() + _LONGEST_S
        wait_s = 0.0 if batch.submitted_at is None else delays.next_s()
        while not self._left(batch):
            await desk.pause(wait_s)
            if desk.stage != "batches":
                await self.stop(batch)
            if desk.stage != stage:
                delays, stage = desk.delays(), desk.stage
            try:
                found = await desk.remote.look(str(batch.id), batch.pin)
            except anthropic.NotFoundError:
                await self._check_key(batch)
                return None
            except Exception as error:
                if not failure_of(error).retryable or anyio.current_time() > give_up_at:
                    raise
            else:
                if found.processing_status == "ended":
                    return found
            wait_s = delays.next_s()
        return None

    async def stop(self, batch: Batch) -> None:
        """Have a batch cancelled, once; whether that helps is seen when it is looked at.

        One that was taken for a lost one may be somebody else's, and is left alone.
        """
        if batch.id is None or batch.stopped or batch.adopted:
            return
        batch.stopped = True
        try:
            await self._desk.remote.stop(batch.id, batch.pin)
        except anthropic.APIError as error:
            # It may have ended, or be gone; a stop that failed for a while is tried again.
            batch.stopped = not failure_of(error).retryable
        else:
            self._desk.ledger.stopped(batch)

    async def _check_key(self, batch: Batch) -> None:
        """Raise if the keys here are not those of the quota that made the batch: to them, it doesn't exist."""
        made_with, asked_with = batch.pin, Pin(key=batch.pin.key, quota=batch.pin.quota)
        if made_with.quota is None:
            return
        await self._desk.remote.newest(asked_with)
        if asked_with.key != made_with.key and asked_with.quota != made_with.quota:
            raise NoKeyAvailable(
                f"{batch.id} was made with {made_with.key} of {made_with.quota}, and can be seen with keys of that "
                f"only; there is none here ({asked_with.key} is of {asked_with.quota}). Add one."
            )

    async def _give_up(self, batch: Batch, ended: MessageBatch) -> None:
        message = f"the results of {batch.id} were dropped by the API at {ended.archived_at}; ask again (retry_failed)"
        body = {"type": "error", "error": {"type": "results_archived", "message": message}}
        for place, head in self._desk.with_batch(batch):
            error = ItemFailed("errored", error_type="results_archived", body=body)
            await self._desk.fail(place, head, error, batch)

    # Collecting

    async def _collect(self, batch: Batch, again: Again) -> bool:
        """Deliver a batch's results; False if they are not those of its requests."""
        breaks, delays = 0, self._desk.delays()
        while breaks < _MOST_BREAKS:
            settled = batch.settled
            try:
                await self._read(batch, again)
            except _NotOurs:
                self._desk.ledger.lost(batch)
                return False
            except (*_BROKEN, anthropic.APIError) as error:
                final = isinstance(error, anthropic.APIError) and not failure_of(error).retryable
                if final or (breaks == _MOST_BREAKS - 1 and batch.settled == settled):
                    raise
            if batch.settled >= len(batch.places):
                return True
            # A file may be short without looking broken.
            breaks = breaks + 1 if batch.settled == settled else 0
            await self._desk.pause(delays.next_s())
        return True

    async def _read(self, batch: Batch, again: Again) -> None:
        desk = self._desk
        async with desk.remote.results(str(batch.id), batch.pin) as lines:
            async for line in lines:
                place, number = desk.places.get(line.custom_id) or (0, None)
                if number == batch.number:
                    await self._settle(batch, place, line, again)
                elif number is None and batch.adopted:
                    raise _NotOurs

    async def _settle(self, batch: Batch, place: int, line: MessageBatchIndividualResponse, again: Again) -> None:
        head = self._desk.spool.head(place)
        batch.settled += 1
        if line.result.type == "succeeded":
            await self._desk.deliver(place, head, result_of(head, batch, message=line.result.message))
            return
        error = _error_of(line.result)
        if self._is_worth_another(line.result, batch):
            await self._once_more(batch, place, head, error, again)
        else:
            await self._desk.fail(place, head, error, batch)

    def _is_worth_another(self, result: MessageBatchResult, batch: Batch) -> bool:
        match result.type:
            case "errored":
                return failure_of_error_event(result.error.to_dict()).retryable
            case "canceled":
                # Stopped by us, to ask the rest otherwise; or by somebody else, who meant it.
                return batch.stopped
            case _:
                return True

    async def _once_more(self, batch: Batch, place: int, head: Head, error: ItemFailed, again: Again) -> None:
        live = self._desk.stage == "live"
        if self._desk.stage == "cancelled" or (batch.attempt >= self._max_attempts and not live):
            await self._desk.fail(place, head, error, batch)
        else:
            self._desk.assign(head.wire_id, place, NO_BATCH)
            again.places.append(place)


def _error_of(result: MessageBatchResult) -> ItemFailed:
    if result.type != "errored":
        return ItemFailed(result.type)
    return ItemFailed("errored", error_type=result.error.error.type, body=result.error.to_dict())
