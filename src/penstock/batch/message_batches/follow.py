"""From a submitted batch to a result for each of its requests.

The rule here: a results file may be read as often as need be, because each request takes one result from it and no
more. What the service failed to do is asked again a few times; what is wrong with a request is final.
"""

from __future__ import annotations

import logging
from array import array
from typing import TYPE_CHECKING, Any, Final, NoReturn

import anthropic
import anyio
import httpx2

from penstock._core.body.scanner import is_message
from penstock._core.context import Pin
from penstock._core.failure import failure_of_error_event
from penstock.batch.message_batches.desk import NO_BATCH, result_of
from penstock.batch.message_batches.ledger import member
from penstock.batch.message_batches.remote import NoResults, failure_of
from penstock.batch.message_batches.results_file import ResultLines
from penstock.batch.result import FanOutResult
from penstock.errors import ItemFailed, NoKeyAvailable, PenstockError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from anthropic.types.messages import MessageBatch

    from penstock.batch.message_batches.desk import Desk
    from penstock.batch.message_batches.ledger import Batch
    from penstock.batch.message_batches.requests import Head

__all__ = ["Follower"]

_MOST_BREAKS: Final = 5
# A proxy's word that there is no such batch would cost a batch.
_MOST_MISSES: Final = 2
# The API ends a batch within a day; whoever can't be reached for longer than that is not waited for.
_LONGEST_S: Final = 25 * 3600.0
# How often a file may say the same.
_MOST_TIMES: Final = 10
_BROKEN: Final = (httpx2.TransportError, httpx2.DecodingError, anthropic.APIError, NoResults)

_logger: Final = logging.getLogger("penstock")


class _NotOurs(Exception):
    """A batch that was taken for a lost one holds other requests."""


class _Gone(Exception):
    """A batch is no more."""


class Follower:
    """Waits for batches and collects their results.

    Args:
        desk: Of the run.
    """

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    def __repr__(self) -> str:
        return f"<Follower of {self._desk.ledger!r}>"

    async def follow(self, batch: Batch) -> array[int] | None:
        """Wait for a batch whose id is known, and deliver what came of it.

        Returns:
            The places of what must be asked again; `None` if it turned out to be another's, which takes its id away
            from it, or may be another's and is waited for no longer.

        Raises:
            NoKeyAvailable: No key here may see it.
            anthropic.APIError: The API can't be asked.
            TimeoutError: The time is over.
        """
        again = array("Q")
        try:
            ended = await self._until_ended(batch)
            if ended is None:
                return None
            if ended.archived_at is not None:
                await self._give_up(batch, ended)
            else:
                await self._collect(batch, again)
        except _NotOurs:
            self._desk.ledger.lost(batch)
            return None
        except _Gone:
            # Nothing can be had of it.
            pass
        if batch.settled < len(batch.places):
            async for place, head in self._desk.with_batch(batch):
                message = f"no result of it could be had from {batch.id}; it may be paid for (retry_failed)"
                await self._once_more(batch, place, head, _failed("missing_result", message), again)
        return again

    # Waiting for its end

    async def _until_ended(self, batch: Batch) -> MessageBatch | None:
        """Look at a batch now and then until it has ended; `None` if it may be another's, and all is cancelled."""
        desk, delays, stage = self._desk, self._desk.delays(), self._desk.stage
        reached_at, misses = anyio.current_time(), 0
        wait_s = 0.0 if batch.submitted_at is None else delays.next_s()
        while desk.stage != "cancelled" or not batch.adopted:
            await desk.pause(wait_s)
            if desk.stage != "batches":
                await self.stop(batch)
            if desk.stage != stage:
                delays, stage = desk.delays(), desk.stage
            try:
                found = await desk.remote.look(str(batch.id), batch.pin)
            except anthropic.NotFoundError:
                misses += 1
                if misses == _MOST_MISSES:
                    await self._check_key(batch)
            except Exception as error:
                if not _passes(error, since=reached_at):
                    raise
            else:
                reached_at, misses = anyio.current_time(), 0
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
        over, batch.stopped = False, True
        try:
            await self._desk.remote.stop(batch.id, batch.pin)
            over = True
        except (anthropic.APIError, PenstockError, TimeoutError) as error:
            # It may have ended, or be gone; a stop that failed for a while, or was not sent, is tried again.
            over = isinstance(error, anthropic.APIError) and not failure_of(error).retryable
        else:
            self._desk.ledger.stopped(batch)
        finally:
            batch.stopped = over

    async def _check_key(self, batch: Batch) -> NoReturn:
        """Raise that a batch is gone, or that the keys here can't see it: to them, it doesn't exist."""
        made_with, asked_with = batch.pin, Pin(key=batch.pin.key, quota=batch.pin.quota)
        here = (await self._desk.remote.newest(asked_with)).organization
        if made_with.quota is None:
            # Nobody governs the client: what the API calls itself the owner of its answers is all there is.
            made_with, asked_with = Pin(quota=batch.mark.organization), Pin(quota=here)
        if asked_with.quota == made_with.quota or (made_with.key is not None and asked_with.key == made_with.key):
            raise _Gone
        raise NoKeyAvailable(
            f"{batch.id} was made with {made_with.key or 'a key'} of {made_with.quota}, and can be seen with keys of "
            f"that only; there is none here ({asked_with.key or 'the key'} is of {asked_with.quota}). Add one."
        )

    async def _give_up(self, batch: Batch, ended: MessageBatch) -> None:
        message = f"the results of {batch.id} were dropped by the API at {ended.archived_at}; ask again (retry_failed)"
        async for place, head in self._desk.with_batch(batch):
            await self._desk.fail(place, head, _failed("results_archived", message), batch)

    # Collecting

    async def _collect(self, batch: Batch, again: array[int]) -> None:
        """Deliver a batch's results; a file that is short in spite of all is left so."""
        breaks, delays, reached_at = 0, self._desk.delays(), anyio.current_time()
        told = False
        while True:
            settled = batch.settled
            broken = await self._read(batch, again)
            if batch.settled >= len(batch.places):
                return
            if batch.settled > settled:
                breaks, told, reached_at = 0, False, anyio.current_time()
            elif broken is None or isinstance(broken, anthropic.NotFoundError):
                breaks += 1
                if breaks == _MOST_BREAKS:
                    if broken is not None and _is_of_results(broken):
                        raise broken
                    break
            elif not _passes(broken, since=reached_at):
                raise broken
            if not told:
                told = True
                why = "they are not whole" if broken is None else type(broken).__name__
                _logger.warning("the results of %s can't be read to the end (%s); they are read again", batch.id, why)
            await self._desk.pause(delays.next_s())
        missing = len(batch.places) - batch.settled
        _logger.warning("%d results of %s are missing; they are asked again, or fail", missing, batch.id)

    async def _read(self, batch: Batch, again: array[int]) -> Exception | None:
        """Read a results file as far as it goes.

        Returns:
            Why there is nothing that could be one; `None` for a file, be it whole, short, damaged or broken off.
        """
        desk, lines = self._desk, ResultLines(most=_MOST_TIMES * batch.size)
        try:
            async with desk.remote.results(str(batch.id), batch.pin, lines) as results:
                async for line in results:
                    place, number = desk.places.get(line["custom_id"]) or (0, None)
                    if number == batch.number:
                        await self._settle(batch, place, line, again)
                    elif number is None and batch.adopted and not batch.holds(member(line["custom_id"])):
                        raise _NotOurs
        except _BROKEN as error:
            return None if lines.begun else error
        if lines.begun or not lines.other:
            return None
        return NoResults(
            f"{batch.id} has ended, and what comes for its results is something else (of a proxy, say). Nothing is "
            "paid for again: mend that, and run this once more"
        )

    async def _settle(self, batch: Batch, place: int, line: Mapping[str, Any], again: array[int]) -> None:
        head = self._desk.spool.head(place)
        batch.settled += 1
        read = _understood(line)
        if read is None:
            # Of a later API, say; asked again, it would be paid for again.
            message = f"what {batch.id} says of it can't be understood; it may be paid for (retry_failed)"
            await self._desk.fail(place, head, _failed("unknown_result", message), batch)
        elif isinstance(read.error, ItemFailed) and self._is_worth_another(read.error, batch):
            await self._once_more(batch, place, head, read.error, again)
        else:
            await self._desk.deliver(place, head, result_of(head, batch, message=read.message, error=read.error))

    def _is_worth_another(self, error: ItemFailed, batch: Batch) -> bool:
        match error.result:
            case "errored":
                return failure_of_error_event(error.body).retryable
            case "canceled":
                # Stopped by us, to ask the rest otherwise; or by somebody else, who meant it.
                return batch.stopped
            case _:
                return True

    async def _once_more(self, batch: Batch, place: int, head: Head, error: ItemFailed, again: array[int]) -> None:
        if batch.attempt >= self._desk.plan.max_attempts and self._desk.stage != "live":
            await self._desk.fail(place, head, error, batch)
        else:
            self._desk.assign(head.wire_id, place, NO_BATCH)
            again.append(place)


def _understood(line: Mapping[str, Any]) -> FanOutResult | None:
    """Return what a line says; `None` if nobody understands it."""
    try:
        read = FanOutResult.from_line(line, index=0)
    except Exception:  # noqa: BLE001 - whatever a line is made of, it spoils one item's result and no more
        return None
    return read if read.message is None or is_message(read.message.__dict__) else None


def _passes(error: Exception, *, since: float) -> bool:
    """Whether a failure is worth being sat out."""
    return failure_of(error).retryable and anyio.current_time() - since <= _LONGEST_S


def _is_of_results(error: anthropic.NotFoundError) -> bool:
    """Whether it is the results that aren't found, so that the batch is: it was paid for, and they may be had yet."""
    return error.request.url.path.endswith("/results")


def _failed(kind: str, message: str) -> ItemFailed:
    """Return a failure that only we know of, with a body as the API's own have it."""
    body = {"type": "error", "error": {"type": kind, "message": message}}
    return ItemFailed("errored", error_type=kind, body=body)
