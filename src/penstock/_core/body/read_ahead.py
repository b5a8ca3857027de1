"""Reading ahead in an event stream until it is known whether its answer begins or fails, before anybody sees any of it.

The rule here: whoever reads the body later gets every byte, in order, in the chunks it came in. A read is never cut
short to hand the body on, because a cut read kills the stream; nothing but that one read goes on while nobody waits.
"""

from __future__ import annotations

import contextlib
import math
import warnings
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, cast

import anthropic
import anyio
import httpx2

from penstock._core.body.lookout import ENCODINGS, Lookout
from penstock._core.failure import INCOMPLETE, failure_of_exception
from penstock.errors import ClientClosed

if TYPE_CHECKING:
    import datetime as dt
    from collections.abc import AsyncIterator

    from penstock._core.attempt import Attempt
    from penstock._core.failure import Failure

__all__ = ["Ahead", "can_read_ahead", "read_ahead"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ahead:
    """What reading ahead has found.

    Attributes:
        failure: How the stream failed before its first content; `None` if it is to be handed on.
        error: What to raise for it where it isn't retried; `None` if the stream itself tells its reader.
    """

    failure: Failure | None = None
    error: Exception | None = None


def can_read_ahead(http: httpx2.Response) -> bool:
    """Whether a response is an event stream, not yet read, in an encoding that can be looked into."""
    return (
        http.is_success
        and isinstance(http.stream, httpx2.AsyncByteStream)
        and not (http.is_closed or http.is_stream_consumed)
        and http.headers.get("content-type", "").startswith("text/event-stream")
        and http.headers.get("content-encoding", "identity") in ENCODINGS
    )


async def read_ahead(http: httpx2.Response, attempt: Attempt, *, hold_s: float = math.inf) -> Ahead:
    """Read the event stream of `http` up to its first content, and put back what was read.

    Args:
        http: A response for which `can_read_ahead` holds.
        attempt: The attempt that it answers.
        hold_s: Seconds after which it is handed on whatever has come, 0 or more. Where the call has a background task,
            that finishes a read under way; else the time is looked at between two chunks only.

    Returns:
        What was found. With a failure, the body is left for the caller to close, or, without an `error`, to hand on.
    """
    reader = _Reader(cast("httpx2.AsyncByteStream", http.stream), attempt)
    # Thousands of streams are open at once: what looks out is kept no longer than it does.
    lookout = Lookout(http.headers.get("content-encoding", "identity"))
    http.stream = _Body(reader)
    try:
        await reader.read_ahead(lookout, hold_s)
    except BaseException as error:
        attempt.note_exception(error)
        # A transport that fails at closing has closed; the error that led here must get out.
        with contextlib.suppress(httpx2.HTTPError):
            await http.aclose()
        raise
    return reader.found(lookout, http.request)


class _Reader:
    """Reads one body: ahead, at first, and then for whoever reads on.

    Attributes:
        inner: The body.
        source: Its chunks not yet read.
        chunks: Its chunks read and not yet handed on.
        over: Whether no more will come.
        error: What broke it.
        idle: Set when the read in the background is over; `None` if there was none.
    """

    __slots__ = (
        "_attempt",
        "_busy",
        "_held",
        "_scope",
        "chunks",
        "error",
        "idle",
        "inner",
        "over",
        "source",
    )

    def __init__(self, inner: httpx2.AsyncByteStream, attempt: Attempt) -> None:
        self.inner = inner
        self.source: AsyncIterator[bytes] = aiter(inner)
        # A list, and nothing made that isn't needed: thousands of streams are open at once, and a deque is 760 bytes.
        self.chunks: list[bytes] = []
        self.over = False
        self.error: Exception | None = None
        self.idle: anyio.Event | None = None
        self._attempt = attempt
        self._held = False
        self._busy = False
        self._scope: anyio.CancelScope | None = None

    async def read_ahead(self, lookout: Lookout, hold_s: float) -> None:
        """Read until it is known how the answer begins, the body is over, or `hold_s` seconds have passed."""
        background = self._attempt.call.background
        if hold_s < math.inf and background is not None and background.running:
            self.idle, self._scope = anyio.Event(), anyio.CancelScope()
            background.put(partial(self._read_in_background, lookout))
            self._attempt.push(self._stop)
            with anyio.move_on_after(hold_s):
                await self.idle.wait()
            self._held = self.reading
        else:
            await self._read_on(lookout, anyio.current_time() + hold_s)

    @property
    def reading(self) -> bool:
        """Whether a read is under way in the background."""
        return self.idle is not None and not self.idle.is_set()

    def found(self, lookout: Lookout, request: httpx2.Request) -> Ahead:
        """Say what reading ahead has found."""
        if lookout.decided:
            return Ahead(failure=lookout.failure, error=lookout.error)
        if not self.over:
            return Ahead()
        if self.error is None:
            error = anthropic.APIConnectionError(message="The stream ended before its first content.", request=request)
            return Ahead(failure=INCOMPLETE, error=error)
        return Ahead(failure=failure_of_exception(self.error), error=_as_sdk_error(self.error, request))

    def hand_back(self) -> None:
        """Have the body closed, because who should have read it has dropped it."""
        if self.reading and not self._attempt.ended:
            self._attempt.call.put(self.inner.aclose)
            # Last, because it raises where warnings are errors.
            warnings.warn("a response body was dropped without being closed", ResourceWarning, stacklevel=3)

    async def finish_read(self) -> None:
        """Wait for the read under way."""
        try:
            await cast("anyio.Event", self.idle).wait()
        except BaseException as error:
            self._attempt.note_exception(error)
            raise

    async def aclose(self) -> None:
        """Close the body; a read under way ends with the attempt."""
        try:
            await self.inner.aclose()
        finally:
            await self.close_source()

    async def close_source(self) -> None:
        """Finish the iterator, unless a read is still under way in it, which then ends it."""
        aclose = getattr(self.source, "aclose", None)
        # One who closes from another task (a stop button) finds the reader's own read under way, which ends it as well.
        if aclose is not None and not self._busy and not getattr(self.source, "ag_running", False):
            await aclose()

    async def _read_in_background(self, lookout: Lookout) -> None:
        self._busy = True
        try:
            with cast("anyio.CancelScope", self._scope):
                await self._read_on(lookout, math.inf)
        finally:
            self._busy = False
            cast("anyio.Event", self.idle).set()

    async def _read_on(self, lookout: Lookout, until: float) -> None:
        chunks, source = self.chunks, self.source
        try:
            while not (lookout.decided or self.over or self._held):
                chunk = await anext(source)
                chunks.append(chunk)
                if not self._held:
                    lookout.see(chunk)
                    self._held = until < math.inf and anyio.current_time() >= until
        except StopAsyncIteration:
            self.over, self.error = True, None
        except Exception as error:  # noqa: BLE001 - raised to whoever reads, unless the attempt is retried
            self.over, self.error = True, error
        except BaseException:
            self._cut()
            raise

    def _stop(self, _attempt: Attempt) -> None:
        """Give up the read under way, because the attempt has ended."""
        if self.idle is not None and self._scope is not None and self.reading:
            self._cut()
            self._scope.cancel()
            self.idle.set()

    def _cut(self) -> None:
        self.over = True
        self.error = (
            ClientClosed("the client was closed while this answer was being read")
            if self._attempt.call.closing
            else httpx2.ReadError("the body was closed while it was being read")
        )


class _Body(httpx2.AsyncByteStream):
    """Stands in for the body: first what was read ahead, then the rest as it comes."""

    def __init__(self, reader: _Reader) -> None:
        self._reader = reader

    @property
    def elapsed(self) -> dt.timedelta | None:
        """How long the exchange took, once it is over (httpx2 reads it off the stream)."""
        elapsed: dt.timedelta | None = getattr(self._reader.inner, "elapsed", None)
        return elapsed

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Hand on the bytes as they came, and come."""
        reader = self._reader
        try:
            while reader.chunks or reader.reading:
                if reader.chunks:
                    yield reader.chunks.pop(0)
                else:
                    await reader.finish_read()
            if reader.error is not None:
                raise reader.error
            if not reader.over:
                async for chunk in reader.source:
                    yield chunk
        finally:
            await reader.close_source()

    async def aclose(self) -> None:
        """Close the body."""
        await self._reader.aclose()

    def __del__(self) -> None:
        """Have a body closed that was dropped with a read under way, which would otherwise keep it open."""
        self._reader.hand_back()


def _as_sdk_error(error: Exception, request: httpx2.Request) -> Exception:
    """Return what the SDK raises for a transport that fails before it answers; other errors stay as they are."""
    if not isinstance(error, httpx2.TransportError):
        return error
    if isinstance(error, httpx2.TimeoutException):
        mapped: anthropic.APIConnectionError = anthropic.APITimeoutError(request=request)
    else:
        mapped = anthropic.APIConnectionError(request=request)
    mapped.__cause__ = error
    return mapped
