"""The requests that message batches take: made, looked at, cancelled, collected.

The rule here: everything that concerns one batch is asked with a key of the quota that made it. Only the making is
never repeated unseen: where its answer was lost, a batch may exist, and would be paid for twice.
"""

from __future__ import annotations

import json
from contextlib import ExitStack, asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import anthropic

from penstock.batch.message_batches.ledger import Mark
from penstock.core.context import Patience, labels, patience, pinned
from penstock.core.failure import Failure, FailureKind, failure_of_exception

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator

    from anthropic import AsyncAnthropic
    from anthropic.types.messages import MessageBatch, MessageBatchIndividualResponse

    from penstock.core.context import Pin

__all__ = ["Remote", "failure_of"]

_PATIENT: Final = Patience(max_attempts=10)
_ONCE: Final = Patience(max_attempts=1)
_PAGE: Final = 100


def failure_of(error: Exception) -> Failure:
    """Classify what a request about a batch raised, for those who go on where its own retries have ended."""
    if isinstance(error, anthropic.APIResponseValidationError | json.JSONDecodeError):
        return Failure(kind=FailureKind.INVALID, error_type=type(error).__name__)
    # The guards say of each final answer that it is not to be tried again.
    return replace(failure_of_exception(error), should_retry=None)


class Remote:
    """Asks the API about batches.

    Args:
        sdk: The client that sends the requests, governed or not.
    """

    def __init__(self, sdk: AsyncAnthropic) -> None:
        self._batches = sdk.messages.batches
        # The SDK's own retries would repeat a submission as well.
        self._once = self._batches if sdk.max_retries == 0 else sdk.with_options(max_retries=0).messages.batches

    def __repr__(self) -> str:
        return f"<Remote {self._batches}>"

    def _block(self, pin: Pin, patient: Patience = _PATIENT) -> ExitStack:
        stack = ExitStack()
        stack.enter_context(pinned(pin))
        stack.enter_context(patience(patient))
        stack.enter_context(labels(priority="batch"))
        return stack

    async def make(self, requests: list[dict[str, Any]], pin: Pin) -> MessageBatch:
        """Submit a batch; tried once."""
        with self._block(pin, _ONCE):
            return await self._once.create(requests=requests)  # type: ignore[arg-type]

    async def look(self, identity: str, pin: Pin) -> MessageBatch:
        """Return a batch as it is now."""
        with self._block(pin):
            return await self._batches.retrieve(identity)

    async def stop(self, identity: str, pin: Pin) -> MessageBatch:
        """Have a batch cancelled."""
        with self._block(pin):
            return await self._batches.cancel(identity)

    async def newest(self, pin: Pin) -> Mark:
        """Return which batch is the newest of all."""
        with self._block(pin):
            page = await self._batches.list(limit=1)
        return Mark(id=page.data[0].id, created_at=page.data[0].created_at) if page.data else Mark()

    async def since(self, mark: Mark, pin: Pin) -> list[MessageBatch]:
        """Return the batches made since a mark, the newest first."""
        found: list[MessageBatch] = []
        with self._block(pin):
            async for batch in self._batches.list(limit=_PAGE):
                # The marked batch itself may have been deleted since; times have whole seconds.
                if batch.id == mark.id or (mark.created_at is not None and batch.created_at < mark.created_at):
                    break
                found.append(batch)
        return found

    @asynccontextmanager
    async def results(
        self, identity: str, pin: Pin
    ) -> AsyncGenerator[AsyncIterator[MessageBatchIndividualResponse], None]:
        """Open a results file; its lines are read as they are asked for."""
        with self._block(pin):
            lines = await self._batches.results(identity)
        try:
            yield aiter(lines)
        finally:
            await lines.close()
