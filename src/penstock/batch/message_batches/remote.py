"""The requests that message batches take: made, looked at, cancelled, collected.

The rule here: everything that concerns one batch is asked with a key of the quota that made it, and nothing is waited
for beyond the deadline: then there is a `TimeoutError`. Only the making is never repeated unseen: where its answer was
lost, a batch may exist, and would be paid for twice.
"""

from __future__ import annotations

import math
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

import anthropic
import anyio
import httpx2
from anthropic.pagination import AsyncPage
from anthropic.types.messages import MessageBatch

from penstock._core.context import Patience, labels, patience, pinned
from penstock._core.failure import Failure, FailureKind, failure_of_exception
from penstock.batch.message_batches.ledger import Mark

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Generator, Mapping

    from penstock._core.context import Pin
    from penstock.batch.message_batches.results_file import ResultLines

__all__ = ["NoResults", "Remote", "failure_of"]

T = TypeVar("T")

_PATIENT: Final = Patience(max_attempts=10)
_ONCE: Final = Patience(max_attempts=1)
_PAGE: Final = 100


class NoResults(anthropic.AnthropicError):
    """A batch has ended, and its results are not to be had: not yet, or no longer."""


def failure_of(error: Exception) -> Failure:
    """Classify what a request about a batch raised, for those who go on where its own retries have ended."""
    if isinstance(error, NoResults):
        return Failure(kind=FailureKind.INVALID, error_type=type(error).__name__)
    # The guards say of each final answer that it is not to be tried again.
    return replace(failure_of_exception(error), should_retry=None)


class Remote:
    """Asks the API about batches.

    Args:
        sdk: The client that sends the requests, governed or not.
        deadline_at: Time of the event loop beyond which nothing is waited for.
        sending: What the SDK is to send with each submission (`extra_headers`, `extra_query`).

    Attributes:
        deadline_at: As given.
    """

    def __init__(
        self,
        sdk: anthropic.AsyncAnthropic,
        *,
        deadline_at: float = math.inf,
        sending: Mapping[str, Any] | None = None,
    ) -> None:
        self.deadline_at = deadline_at
        self._batches = sdk.messages.batches
        # The SDK's own retries would repeat a submission as well.
        self._once = self._batches if sdk.max_retries == 0 else sdk.with_options(max_retries=0).messages.batches
        self._sending = dict(sending or {})

    def __repr__(self) -> str:
        return f"<Remote {self._batches}>"

    @contextmanager
    def _block(self, pin: Pin, patient: Patience = _PATIENT) -> Generator[None]:
        with (
            pinned(pin),
            patience(patient),
            labels(priority="batch"),
            anyio.fail_after(self.deadline_at - anyio.current_time()),
        ):
            yield

    async def make(self, requests: list[dict[str, Any]], pin: Pin) -> MessageBatch:
        """Submit a batch; tried once."""
        with self._block(pin, _ONCE):
            raw = await self._once.with_raw_response.create(requests=cast("Any", requests), **self._sending)
            return await _parsed(raw, MessageBatch, proof="id")

    async def look(self, identity: str, pin: Pin) -> MessageBatch:
        """Return a batch as it is now."""
        with self._block(pin):
            return await _parsed(await self._batches.with_raw_response.retrieve(identity), MessageBatch, proof="id")

    async def stop(self, identity: str, pin: Pin) -> MessageBatch:
        """Have a batch cancelled."""
        with self._block(pin):
            return await _parsed(await self._batches.with_raw_response.cancel(identity), MessageBatch, proof="id")

    async def newest(self, pin: Pin) -> Mark:
        """Return which batch is the newest of all, and whose they are."""
        with self._block(pin):
            raw = await self._batches.with_raw_response.list(limit=1)
            page = await _parsed(raw, AsyncPage[MessageBatch], proof="data")
        first = page.data[0] if page.data else None
        return Mark(
            id=None if first is None else first.id,
            created_at=None if first is None else first.created_at,
            organization=raw.headers.get("anthropic-organization-id"),
        )

    async def since(self, mark: Mark, pin: Pin) -> list[MessageBatch]:
        """Return the batches made since a mark, the newest first."""
        found: list[MessageBatch] = []
        after: dict[str, Any] = {}
        while True:
            with self._block(pin):
                raw = await self._batches.with_raw_response.list(limit=_PAGE, **after)
                page = await _parsed(raw, AsyncPage[MessageBatch], proof="data")
            for batch in page.data:
                # The marked batch itself may have been deleted since; times have whole seconds.
                if batch.id == mark.id or (mark.created_at is not None and batch.created_at < mark.created_at):
                    return found
                found.append(batch)
            if not page.has_more:
                return found
            after = {"after_id": page.last_id}

    @asynccontextmanager
    async def results(
        self, identity: str, pin: Pin, lines: ResultLines
    ) -> AsyncGenerator[AsyncIterator[Mapping[str, Any]]]:
        """Open a results file, which `lines` takes apart; it is read as its results are asked for.

        Raises:
            NoResults: There is none, or what says where it is says something else.
        """
        response = None
        with self._block(pin), suppress(AttributeError, ValueError, RecursionError):
            # The SDK looks at the batch first: what it raises where that is no object or no JSON quotes it.
            try:
                response = await self._batches.with_streaming_response.results(identity).__aenter__()
            except anthropic.AnthropicError as error:
                # The SDK's own word for a batch without `results_url`.
                if type(error) is not anthropic.AnthropicError:
                    raise
        if response is None:
            raise NoResults(f"{identity} has ended and has no results file")
        try:
            yield self._read(response.iter_bytes(), lines)
        finally:
            await response.close()

    async def _read(self, chunks: AsyncIterator[bytes], lines: ResultLines) -> AsyncGenerator[Mapping[str, Any]]:
        broken = None
        while not lines.over:
            try:
                with anyio.fail_after(self.deadline_at - anyio.current_time()):
                    chunk = await anext(chunks, None)
            except (httpx2.TransportError, httpx2.DecodingError) as error:
                broken = error
                break
            if chunk is None:
                break
            for line in lines.feed(chunk):
                yield line
        for line in lines.end():
            yield line
        if broken is not None:
            raise broken


async def _parsed(raw: anthropic.AsyncAPIResponse[T], kind: type[T], *, proof: str) -> T:
    """Return what an answer says.

    Raises:
        anthropic.APIResponseValidationError: It is something else; a page of a proxy, say.
    """
    found: object = None
    # Raised by the SDK where an answer is no object, no JSON, or nests too deep; the second one quotes it.
    with suppress(AttributeError, ValueError, RecursionError):
        found = await raw.parse()
    if not isinstance(found, kind) or getattr(found, proof) is None:
        raise anthropic.APIResponseValidationError(raw.http_response, body=None)
    return found
