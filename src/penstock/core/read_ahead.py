"""Reading ahead in an event stream: far enough to know whether its answer begins or fails, before anybody has seen any of it.

The rule here: whoever reads the body later gets every byte, in order, in the chunks it came in. A read is never cut short to
hand the body on, because a cut read kills the stream; nothing is read that nobody waits for, but for that one read.
"""

from __future__ import annotations

import contextlib
import math
import warnings
import zlib
from collections import deque
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import anthropic
import anyio
import httpx2

from penstock.core.failure import INCOMPLETE, failure_of_error_event, failure_of_exception
from penstock.core.sse import SSEDecoder
from penstock.errors import ClientClosed, InvalidStream

if TYPE_CHECKING:
    import datetime
    from collections.abc import AsyncIterator

    from penstock.core.attempt import Attempt
    from penstock.core.failure import Failure
    from penstock.core.sse import ServerSentEvent

__all__ = ["Ahead", "Lookout", "can_read_ahead", "read_ahead"]

_MOST_BYTES: Final = 1024 * 1024
_COMPRESSED: Final = frozenset({"gzip", "deflate"})
# What comes in deltas: the field that holds it. Anything else comes whole, and so is content as soon as it comes.
_FIELD_OF_BLOCK: Final = {"text": "text", "thinking": "thinking"}
_FIELD_OF_DELTA: Final = {"text_delta": "text", "input_json_delta": "partial_json", "thinking_delta": "thinking"}
_EMPTY_BLOCKS: Final = frozenset({"tool_use", "server_tool_use", "mcp_tool_use", "compaction"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Ahead:
    """What reading ahead has found.

    Attributes:
        failure: How the stream failed before its first content; `None` if it is to be handed on.
        error: What to raise for it where it isn't retried; `None` if the stream itself tells its reader.
    """

    failure: Failure | None = None
    error: Exception | None = None


class Lookout:
    """Watches the bytes of an event stream until they tell whether the answer begins or fails.

    Content is text, tool input or thinking that isn't empty, a block that arrives complete, and what comes after all blocks. Starts of
    blocks, pings and signatures are none. More than a megabyte without content counts as content, to bound what is held.

    Args:
        encoding: Content encoding of the bytes: `identity`, `gzip` or `deflate`.

    Attributes:
        decided: Whether the bytes have told.
        failure: How the stream fails; `None` if its answer begins.
        error: Set if the bytes are no valid event stream.

    Example:
        >>> lookout = Lookout()
        >>> lookout.see(b'event: ping\\ndata: {"type": "ping"}\\n\\n')
        >>> lookout.decided
        False
        >>> lookout.see(b'event: error\\ndata: {"type": "error", "error": {"type": "overloaded_error"}}\\n\\n')
        >>> lookout.decided, lookout.failure.kind.value
        (True, 'overloaded')
    """

    __slots__ = ("_decoder", "_inflate", "_left", "decided", "error", "failure")

    def __init__(self, encoding: str = "identity") -> None:
        self.decided = False
        self.failure: Failure | None = None
        self.error: InvalidStream | None = None
        self._decoder = SSEDecoder()
        # 32: zlib tells gzip and deflate apart itself.
        self._inflate = zlib.decompressobj(32 + zlib.MAX_WBITS) if encoding in _COMPRESSED else None
        self._left = _MOST_BYTES

    def see(self, chunk: bytes) -> None:
        """Look at the next bytes; needs no more of them once `decided`."""
        try:
            if self._inflate is not None:
                chunk = self._inflate.decompress(chunk)
            self._left -= len(chunk)
            self.decided = any(self._decides(event) for event in self._decoder.feed(chunk)) or self._left < 0
        except InvalidStream as error:
            self.decided, self.error, self.failure = True, error, failure_of_exception(error)
        except zlib.error:
            # A kind of deflate that only the reader's own decoder knows, or damage that it will report.
            self.decided = True

    def _decides(self, event: ServerSentEvent) -> bool:
        if event.name == "error":
            self.failure = failure_of_error_event(_data_of_any(event))
            return True
        if event.name == "ping" or not event.data:
            return False
        if event.name == "message":
            # Some proxies drop the event's name; its data has it too.
            data = _data_of_any(event)
            return self._tells(data.get("type"), data)
        return self._tells(event.name, event.json())

    def _tells(self, name: object, data: dict[str, object]) -> bool:
        if name == "error":
            self.failure = failure_of_error_event(data)
            return True
        if name == "content_block_start":
            return _is_whole(data.get("content_block"))
        if name == "content_block_delta":
            return _is_content(data.get("delta"))
        return name in {"message_delta", "message_stop"}


def _data_of_any(event: ServerSentEvent) -> dict[str, object]:
    try:
        return event.json()
    except InvalidStream:
        return {}


def _is_whole(block: object) -> bool:
    """Whether a block's start brings content: server-side results, redacted thinking and the like have no deltas."""
    if not isinstance(block, dict) or block.get("type") in _EMPTY_BLOCKS:
        return False
    field = _FIELD_OF_BLOCK.get(block.get("type"))
    return field is None or bool(block.get(field))


def _is_content(delta: object) -> bool:
    if not isinstance(delta, dict) or delta.get("type") == "signature_delta":
        return False
    field = _FIELD_OF_DELTA.get(delta.get("type"))
    return field is None or bool(delta.get(field))


def can_read_ahead(http: httpx2.Response) -> bool:
    """Whether a response is an event stream, not yet read, in an encoding that can be looked into."""
    return (
        http.is_success
        and not (http.is_closed or http.is_stream_consumed)
        and http.headers.get("content-type", "").startswith("text/event-stream")
        and http.headers.get("content-encoding", "identity") in {"identity", *_COMPRESSED}
    )


async def read_ahead(http: httpx2.Response, attempt: Attempt, *, hold_s: float = math.inf) -> Ahead:
    """Read the event stream of `http` up to its first content, and put back what was read.

    Args:
        http: A response for which `can_read_ahead` holds.
        attempt: The attempt that it answers.
        hold_s: Seconds after which it is handed on whatever has come, 0 or more. Where the client has a background task, that
            finishes the read under way and hands on at once; else the time is looked at between two chunks only.

    Returns:
        What was found. With a failure, the body is left open for the caller to close, or to hand on if no `error` comes with it.
    """
    reader = _Reader(http, attempt)
    http.stream = _Body(reader)
    try:
        await reader.read_ahead(hold_s)
    except BaseException as error:
        attempt.note_exception(error)
        # A transport that fails at closing has closed; the error that led here must get out.
        with contextlib.suppress(httpx2.HTTPError):
            await http.aclose()
        raise
    return reader.found(http.request)


class _Reader:
    """Reads one body: ahead, at first, and then for whoever reads on.

    Attributes:
        inner: The body.
        source: Its chunks not yet read.
        chunks: Its chunks read and not yet handed on.
        over: Whether no more will come.
        error: What broke it.
        idle: Set when no read is under way here.
    """

    __slots__ = ("_attempt", "_busy", "_held", "_lookout", "_scope", "chunks", "error", "idle", "inner", "over", "source")

    def __init__(self, http: httpx2.Response, attempt: Attempt) -> None:
        if not isinstance(http.stream, httpx2.AsyncByteStream):
            raise TypeError("only an asynchronous body can be read ahead")
        self.inner = http.stream
        self.source: AsyncIterator[bytes] = aiter(self.inner)
        self.chunks: deque[bytes] = deque()
        self.over = False
        self.error: Exception | None = None
        self.idle = anyio.Event()
        self._attempt = attempt
        self._lookout = Lookout(http.headers.get("content-encoding", "identity"))
        self._held = False
        self._busy = False
        self._scope = anyio.CancelScope()

    async def read_ahead(self, hold_s: float) -> None:
        """Read until it is known how the answer begins, the body is over, or `hold_s` seconds have passed."""
        if hold_s < math.inf and self._attempt.call.put(self._read_in_background):
            self._attempt.push(self._stop)
            with anyio.move_on_after(hold_s):
                await self.idle.wait()
            self._held = not self.idle.is_set()
        else:
            await self._read_on(anyio.current_time() + hold_s)
            self.idle.set()

    def found(self, request: httpx2.Request) -> Ahead:
        """Say what reading ahead has found."""
        if self._lookout.decided:
            return Ahead(failure=self._lookout.failure, error=self._lookout.error)
        if not self.over:
            return Ahead()
        if self.error is None:
            error = anthropic.APIConnectionError(message="The stream ended before its first content.", request=request)
            return Ahead(failure=INCOMPLETE, error=error)
        return Ahead(failure=failure_of_exception(self.error), error=_as_sdk_error(self.error, request))

    def hand_back(self) -> None:
        """Have the body closed, because who should have read it has dropped it."""
        if not self.idle.is_set():
            warnings.warn("a response body was dropped without being closed", ResourceWarning, stacklevel=3)
            self._attempt.call.put(self.inner.aclose)

    async def aclose(self) -> None:
        """Close the body; a read under way ends with the attempt."""
        try:
            await self.inner.aclose()
        finally:
            await self.close_source()

    async def close_source(self) -> None:
        """Finish the iterator, unless a read is still under way in it, which then ends it."""
        if isinstance(self.source, AsyncGenerator) and not self._busy:
            await self.source.aclose()

    async def _read_in_background(self) -> None:
        self._busy = True
        try:
            with self._scope:
                await self._read_on(math.inf)
        finally:
            self._busy = False
            self.idle.set()

    async def _read_on(self, until: float) -> None:
        while not (self._lookout.decided or self.over or self._held):
            await self._read_chunk()
            self._held = self._held or anyio.current_time() >= until

    async def _read_chunk(self) -> None:
        try:
            chunk = await anext(self.source)
        except StopAsyncIteration:
            self.over, self.error = True, None
        except Exception as error:  # noqa: BLE001 - raised to whoever reads, unless the attempt is retried
            self.over, self.error = True, error
        except BaseException:
            self._cut()
            raise
        else:
            self.chunks.append(chunk)
            if not self._held:
                self._lookout.see(chunk)

    def _stop(self, _attempt: Attempt) -> None:
        """Give up the read under way, because the attempt has ended."""
        if not self.idle.is_set():
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
    def elapsed(self) -> datetime.timedelta | None:
        """How long the exchange took, once it is over (httpx2 reads it off the stream)."""
        elapsed: datetime.timedelta | None = getattr(self._reader.inner, "elapsed", None)
        return elapsed

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Hand on the bytes as they came, and come."""
        reader = self._reader
        try:
            while reader.chunks or not reader.idle.is_set():
                while reader.chunks:
                    yield reader.chunks.popleft()
                await reader.idle.wait()
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
    """Return what the SDK raises for a transport that failed before it gave an answer; other errors stay as they are."""
    if not isinstance(error, httpx2.TransportError):
        return error
    if isinstance(error, httpx2.TimeoutException):
        mapped: anthropic.APIConnectionError = anthropic.APITimeoutError(request=request)
    else:
        mapped = anthropic.APIConnectionError(request=request)
    mapped.__cause__ = error
    return mapped
