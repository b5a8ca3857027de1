"""Submitting batches, so that none is paid for twice.

The rule here: a submission whose answer was lost is looked for among the batches made since, before it is repeated.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING, Any, Final, TypeVar

import anthropic
import anyio
import anyio.lowlevel

from penstock._core.context import Pin
from penstock._core.failure import MOST_BELIEVED_S, FailureKind
from penstock.batch.message_batches.desk import AT_A_STRETCH
from penstock.batch.message_batches.remote import failure_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from penstock.batch.message_batches.desk import Desk
    from penstock.batch.message_batches.ledger import Batch

__all__ = ["Submitter"]

T = TypeVar("T")

_MOST_ATTEMPTS: Final = 10


class Submitter:
    """Submits batches, one at a time: only the requests of one are in memory.

    Args:
        desk: Of the run.

    Attributes:
        making: Holds off a cancellation while a batch is being made that nobody would find again; `None` otherwise.
    """

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._turn = anyio.Lock()
        self.making: anyio.CancelScope | None = None

    def __repr__(self) -> str:
        return f"<Submitter, {'making a batch' if self.making is not None else 'idle'}>"

    async def submit(self, places: Sequence[int], *, attempt: int) -> Batch | None:
        """Submit requests.

        Args:
            places: Of the requests, in the spool.
            attempt: How often they have been submitted, this time included.

        Returns:
            Their batch; `None` if the run went on otherwise before there was one.

        Raises:
            anthropic.APIError: The API won't have them.
            TimeoutError: The time is over.
        """
        desk = self._desk
        async with self._turn:
            refused: dict[str | None, Exception] = {}
            while desk.stage == "batches":
                batch, requests = await self._plan(places, attempt)
                if batch.pin.key in refused:
                    desk.ledger.over(batch)
                    raise refused[batch.pin.key]
                try:
                    if await self._make(requests, batch):
                        return batch
                except anthropic.APIStatusError as error:
                    # For its key's sake, and nothing was made: another's organization may.
                    if not failure_of(error).of_account:
                        raise
                    refused[batch.pin.key] = error
                else:
                    desk.ledger.over(batch)
            return None

    async def _plan(self, places: Sequence[int], attempt: int) -> tuple[Batch, list[dict[str, Any]]]:
        """Note a batch that is going to be made, with the key that shows what the newest one is."""
        desk, pin = self._desk, Pin()
        mark = await self._patiently(lambda: desk.remote.newest(pin))
        requests = await self._read_back(places)
        wires = [request["custom_id"] for request in requests]
        batch = desk.ledger.plan(wires, array("Q", places), attempt=attempt, mark=mark, pin=pin)
        for wire, place in zip(wires, places, strict=True):
            desk.assign(wire, place, batch.number)
        batch.submitted_at = anyio.current_time()
        return batch, requests

    async def _read_back(self, places: Sequence[int]) -> list[dict[str, Any]]:
        requests: list[dict[str, Any]] = []
        for place in places:
            requests.append(self._desk.spool.request(place))
            if len(requests) % AT_A_STRETCH == 0:
                await anyio.lowlevel.checkpoint()
        return requests

    async def _make(self, requests: list[dict[str, Any]], batch: Batch) -> bool:
        desk, delays, attempts = self._desk, self._desk.delays(), 0
        while desk.stage == "batches":
            try:
                await self._ask(requests, batch)
            except Exception as error:
                failure = failure_of(error)
                # Where there is no room for it, that is a matter of time.
                attempts += failure.kind is not FailureKind.RATE_LIMITED
                if not failure.retryable or attempts == _MOST_ATTEMPTS:
                    if not failure.may_be_billed:
                        desk.ledger.over(batch)
                    raise
            else:
                return True
            await desk.pause(max(delays.next_s(), min(failure.retry_after_s or 0.0, MOST_BELIEVED_S)))
            if failure.may_be_billed and await self.locate(batch):
                return True
        return False

    async def _ask(self, requests: list[dict[str, Any]], batch: Batch) -> None:
        desk = self._desk
        try:
            with anyio.CancelScope(shield=desk.work.journal is None) as self.making:
                made = await desk.remote.make(requests, batch.pin)
                desk.ledger.made(batch, made.id)
        finally:
            self.making = None

    async def _patiently(self, ask: Callable[[], Awaitable[T]]) -> T:
        """Ask what costs nothing, again and again."""
        delays = self._desk.delays()
        for _ in range(_MOST_ATTEMPTS - 1):
            try:
                return await ask()
            except Exception as error:
                if not failure_of(error).retryable:
                    raise
            await self._desk.pause(delays.next_s())
        return await ask()

    async def locate(self, batch: Batch) -> bool:
        """Look for a batch that was submitted, perhaps; the first of its size that was made since is taken for it."""
        desk = self._desk
        for found in reversed(await self._patiently(lambda: desk.remote.since(batch.mark, batch.pin))):
            counts = found.request_counts
            size = counts.processing + counts.succeeded + counts.errored + counts.canceled + counts.expired
            if size == batch.size and found.id not in desk.ledger.ids:
                desk.ledger.made(batch, found.id, adopted=True)
                return True
        return False
