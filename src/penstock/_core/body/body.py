"""The body of an answer: hands its bytes on, watches them, and ends the attempt when they end, however they end.

The rule here: the attempt is ended before anything is awaited, so that no cancellation can come between. Whoever reads
gets every byte of the answer, in order, in the chunks it came in; compression is undone on the way.

Theory. A body has up to four lives, one after the other.

1. *Begin.* `begin` reads ahead until the scanner knows whether the answer begins or fails, so that a failure before the
   first content can be retried unseen. Nobody sees any of it until then. It waits no longer than `hold_s`; but a read
   is never cut short to hand the body on, because a cut read kills the stream: so where there is a background task, it
   does the reading, and finishes its one read while nobody waits.
2. *Flow.* The reader gets what was read ahead, then each chunk as it comes. Chunks that are there already come without
   the event loop getting a turn; so every so often it is given one.
3. *End.* The last event ends the answer, whatever the connection does. What comes after it is cut off.
4. *Close.* A connection can be used again only if it has come to its own end, which usually follows at once: so that is
   waited for, but not for long; then it is closed in the background.

A body that is dropped ends too: nothing that lives as long as the client holds it, neither its attempt nor a timer.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import warnings
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NoReturn, cast

import anyio
import httpx2
from anyio.lowlevel import checkpoint

from penstock._core.body.answer_errors import as_sdk_error, ended_early, error_of_answer, request_of
from penstock._core.body.aws import AWS_STREAM, AWSScanner, can_decode_aws
from penstock._core.body.inflate import inflated, take_encodings
from penstock._core.body.scanner import Scanner
from penstock._core.failure import ABANDONED, CLOSED, INCOMPLETE, failure_of_exception
from penstock._core.kind import RequestKind
from penstock._core.secret import clean_error
from penstock.errors import ClientClosed, ResponseTooLarge

if TYPE_CHECKING:
    import datetime as dt
    from collections.abc import AsyncIterator

    from penstock._core.attempt import Attempt
    from penstock._core.call import Call
    from penstock._core.failure import Failure

__all__ = ["Beginning", "Body", "read_out", "scanner_for"]

GRACE_S: Final = 0.5
"""Seconds that a connection has for its own end, after the last event."""

# Usually that has come with the last event, and the connection is free again before the reader goes on.
_READER_WAITS_S: Final = 0.02

# After so many chunks, or bytes, the event loop gets a turn. An event of a few bytes takes a few microseconds.
_CHUNKS_A_TURN: Final = 64
_BYTES_A_TURN: Final = 16 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Beginning:
    """How an answer begins.

    Attributes:
        failure: How it failed before its first content; `None` if it is to be handed on.
        error: What to raise for it where it isn't retried; `None` if the answer itself tells its reader.
    """

    failure: Failure | None = None
    error: Exception | None = None


def scanner_for(content_type: str, call: Call) -> Scanner | None:
    """Return what watches an answer to a call; `None` where nothing here can decode it."""
    if not content_type.strip().lower().startswith(AWS_STREAM):
        return Scanner(stream=call.stream, writes_for_an_hour=call.writes_for_an_hour)
    return AWSScanner(writes_for_an_hour=call.writes_for_an_hour) if can_decode_aws() else None


async def read_out(chunks: AsyncIterator[bytes]) -> bool:
    """Read a body whose answer is over to its own end; returns whether that came in time."""
    number = 0
    with anyio.move_on_after(GRACE_S), contextlib.suppress(httpx2.HTTPError, httpx2.StreamError):
        async for _ in chunks:
            number += 1
            if not number % _CHUNKS_A_TURN:
                await checkpoint()
        return True
    return False


class Body(httpx2.AsyncByteStream):
    """Stands in for a response's byte stream.

    Args:
        http: The response, not yet read.
        attempt: Ended when the body ends, is closed early, breaks, is cancelled, or is dropped.
    """

    def __init__(self, http: httpx2.Response, attempt: Attempt) -> None:
        self._flow = _Flow(http, attempt)
        self._loop = asyncio.get_running_loop()

    @property
    def elapsed(self) -> dt.timedelta | None:
        """How long the exchange took, once it is over (httpx2 reads it off the stream)."""
        elapsed: dt.timedelta | None = getattr(self._flow.inner, "elapsed", None)
        return elapsed

    @property
    def scanner(self) -> Scanner | None:
        """What watches it, if anything can."""
        return self._flow.scanner

    async def begin(self, http: httpx2.Response, *, hold_s: float = math.inf) -> Beginning:
        """Read an event stream up to its first content, and put back what was read.

        Args:
            http: The response that it is the body of.
            hold_s: Seconds after which it is handed on whatever has come, 0 or more. Where the call has a background
                task, that finishes a read under way; else the time is looked at between two chunks only.

        Returns:
            How the answer begins. With a failure, the body is left for the caller to close, or, without an `error`, to
            hand on.
        """
        flow = self._flow
        if flow.scanner is None:
            return Beginning()
        try:
            await flow.read_ahead(flow.scanner, hold_s)
        except BaseException as error:
            flow.attempt.note_exception(error)
            # A transport that fails at closing has closed; the error that led here must get out.
            with contextlib.suppress(httpx2.HTTPError):
                await http.aclose()
            raise
        return flow.beginning(http, flow.scanner)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Hand on the bytes as they came, and come."""
        flow = self._flow
        try:
            while flow.ahead or flow.reading:
                if flow.ahead:
                    chunks, flow.ahead = flow.ahead, []
                    for chunk in chunks:
                        yield chunk
                        await flow.pass_on(len(chunk))
                else:
                    await flow.finish_read()
            flow.check()
            while not (flow.last or flow.over):
                if piece := await flow.next():
                    yield piece
            if not flow.over:
                await flow.let_end()
        except GeneratorExit:
            flow.end()
            flow.abandon()
            raise
        except BaseException as error:
            flow.fail(error)
            clean_error(error)
            raise
        finally:
            await flow.close_chunks()

    async def aclose(self) -> None:
        """Close the body; the attempt ends at once, the connection soon after even if this is cancelled."""
        await self._flow.aclose()

    def __del__(self) -> None:
        """End the attempt of a body that was dropped unread, and have its connection closed."""
        flow = self._flow
        flow.abandon()
        if flow.attempt.ended:
            return
        # The garbage collector runs in any thread, and the state of guards belongs to the event loop's.
        if self._loop.is_closed() or _is_running(self._loop):
            flow.end()
        else:
            self._loop.call_soon_threadsafe(flow.end)
        # Last, because it raises where warnings are errors.
        message = f"a response body was dropped without being closed ({flow.attempt.call.id})"
        warnings.warn(message, ResourceWarning, stacklevel=2, source=self)


class _Flow:
    """What goes on in a body. It is apart from `Body`, because a read in the background holds it.

    Attributes:
        inner: The stream that the body stands for.
        attempt: As for `Body`.
        scanner: Watches it; `None` where nothing can.
        ahead: What was read ahead and not yet handed on.
        error: What broke the reading ahead.
        last: Whether the answer is over, so that what follows does not count.
        over: Whether no more bytes will come.
    """

    __slots__ = (
        "_busy",
        "_chunks",
        "_closed",
        "_held",
        "_idle",
        "_inflated",
        "_left",
        "_limit",
        "_scope",
        "_turn_bytes",
        "_turn_chunks",
        "ahead",
        "attempt",
        "error",
        "inner",
        "last",
        "over",
        "scanner",
    )

    def __init__(self, http: httpx2.Response, attempt: Attempt) -> None:
        self.inner = cast("httpx2.AsyncByteStream", http.stream)
        self.attempt = attempt
        self.scanner: Scanner | None = None
        self.ahead: list[bytes] = []
        self.error: Exception | None = None
        self.last = self.over = False
        self._chunks: AsyncIterator[bytes] = aiter(self.inner)
        self._inflated: AsyncIterator[bytes] | None = None
        # How many bytes may come, and may still come.
        self._limit = self._left = math.inf
        self._turn_bytes = self._turn_chunks = 0
        self._closed = self._held = self._busy = False
        self._idle: anyio.Event | None = None
        self._scope: anyio.CancelScope | None = None
        if attempt.call.kind is RequestKind.MESSAGES:
            self._watch(http.headers, attempt.call)

    def _watch(self, headers: httpx2.Headers, call: Call) -> None:
        self._limit = self._left = call.max_response_bytes
        encodings = take_encodings(headers)
        if encodings is not None:
            self.scanner = scanner_for(headers.get("content-type", ""), call)
        if encodings:
            self._inflated = inflated(self._chunks, encodings)

    # Begin

    @property
    def reading(self) -> bool:
        """Whether a read is under way in the background."""
        return self._idle is not None and not self._idle.is_set()

    async def read_ahead(self, scanner: Scanner, hold_s: float) -> None:
        """Read until it is known how the answer begins, the body is over, or `hold_s` seconds have passed."""
        background = self.attempt.call.background
        if hold_s == math.inf or background is None or not background.running:
            await self._read_until_begun(scanner, anyio.current_time() + hold_s)
            return
        self._idle, self._scope = anyio.Event(), anyio.CancelScope()
        background.put(partial(self._read_in_background, scanner))
        self.attempt.push(self._stop)
        with anyio.move_on_after(hold_s):
            await self._idle.wait()
        self._held = self.reading

    def beginning(self, http: httpx2.Response, scanner: Scanner) -> Beginning:
        """Say what reading ahead has found."""
        if scanner.begun:
            return Beginning()
        if scanner.failure is not None:
            return Beginning(failure=scanner.failure, error=error_of_answer(http, scanner))
        if not self.over:
            return Beginning()
        if self.error is None:
            return Beginning(failure=INCOMPLETE, error=ended_early(http))
        return Beginning(failure=failure_of_exception(self.error), error=as_sdk_error(self.error, request_of(http)))

    def check(self) -> None:
        """Raise what broke the reading ahead, once all that came before has been handed on."""
        if self.error is not None:
            raise self.error

    async def finish_read(self) -> None:
        """Wait for the read under way."""
        await cast("anyio.Event", self._idle).wait()

    async def _read_in_background(self, scanner: Scanner) -> None:
        self._busy = True
        try:
            with cast("anyio.CancelScope", self._scope):
                await self._read_until_begun(scanner, math.inf)
        except BaseException:
            self.error = self.error or self._cut_off()
            raise
        finally:
            self._busy = False
            cast("anyio.Event", self._idle).set()

    async def _read_until_begun(self, scanner: Scanner, until: float) -> None:
        try:
            while not (scanner.begun or self.last or self.over or self._held):
                chunk = await self.next()
                if chunk:
                    self.ahead.append(chunk)
                if until < math.inf and anyio.current_time() >= until:
                    self._held = True
        except Exception as error:  # noqa: BLE001 - raised to whoever reads, unless the attempt is retried
            self.error = error

    def _stop(self, _attempt: Attempt) -> None:
        """Give up the read under way, because the attempt has ended otherwise than by it."""
        if self.reading and self._scope is not None and self._idle is not None and not (self.last or self.over):
            self.over = True
            self.error = self._cut_off()
            self._scope.cancel()
            self._idle.set()

    def _cut_off(self) -> Exception:
        if self.attempt.call.closing:
            return ClientClosed("the client was closed while this answer was being read")
        return httpx2.ReadError("the body was closed while it was being read")

    # Flow

    async def next(self) -> bytes | None:
        """Return the next bytes, looked at; `None` at the end."""
        attempt, scanner = self.attempt, self.scanner
        try:
            if self._turn_chunks >= _CHUNKS_A_TURN or self._turn_bytes >= _BYTES_A_TURN:
                await self._give_turn()
            chunk = await anext(self._chunks if self._inflated is None else self._inflated)
            size = len(chunk)
            self._turn_chunks += 1
            self._turn_bytes += size
            self._left -= size
            if attempt.call.closing or self._left < 0:
                self._refuse()
            if scanner is not None:
                if size <= _BYTES_A_TURN:
                    scanner.see(chunk)
                else:
                    await self._see_in_turns(scanner, chunk)
        except StopAsyncIteration:
            self.over = True
            self._raise_if_closing()
            self.end(whole=True)
            return None
        except BaseException as error:
            self.over = True
            attempt.note_exception(error)
            self.end()
            self._raise_if_closing(error)
            raise
        if scanner is None:
            return chunk
        if attempt.first_content_at is None and scanner.begun:
            attempt.note_first_content()
        if not scanner.over:
            return chunk
        self.last = True
        self.end()
        return chunk[: len(chunk) - scanner.trailing]

    async def _give_turn(self) -> None:
        self._turn_chunks = self._turn_bytes = 0
        if self.scanner is not None:
            self.scanner.settle()
        await checkpoint()

    async def pass_on(self, size: int) -> None:
        """Give the event loop its turns while what was read ahead is handed on."""
        self._turn_chunks += 1
        self._turn_bytes += size
        if self._turn_chunks >= _CHUNKS_A_TURN or self._turn_bytes >= _BYTES_A_TURN:
            await self._give_turn()

    async def _see_in_turns(self, scanner: Scanner, chunk: bytes) -> None:
        """Look at a large chunk without holding the event loop."""
        for start in range(0, len(chunk), _BYTES_A_TURN):
            end = start + _BYTES_A_TURN
            scanner.see(chunk[start:end])
            if scanner.over:
                scanner.trailing += max(len(chunk) - end, 0)
                return
            scanner.settle()
            await checkpoint()

    def _refuse(self) -> NoReturn:
        """Raise why no more is handed on."""
        self._raise_if_closing()
        raise ResponseTooLarge(int(self._limit))

    def _raise_if_closing(self, cause: BaseException | None = None) -> None:
        """Never let an answer that the client's close has cut off look like one that has ended.

        A cancellation goes on as one, and an error that says it already too.
        """
        attempt = self.attempt
        told = isinstance(cause, ClientClosed) or not isinstance(cause, Exception | None)
        if attempt.call.closing and not told:
            if attempt.failure is None:
                attempt.failure = CLOSED
            self.end()
            raise ClientClosed("the client was closed while this answer was being read") from cause

    # End and close

    def end(self, *, whole: bool = False) -> None:
        """End the attempt with what the scanner knows; `whole` if the transport delivered everything."""
        attempt = self.attempt
        if attempt.ended:
            return
        scanner = self.scanner
        if scanner is not None:
            if whole:
                scanner.finish()
            attempt.take(scanner)
        told_whole = whole if scanner is None else scanner.complete
        if attempt.failure is None and not told_whole:
            attempt.failure = INCOMPLETE if whole else ABANDONED
        attempt.end()

    def fail(self, error: BaseException) -> None:
        """End the attempt with what was raised where it was read, unless it is over."""
        if not self.attempt.ended:
            self.attempt.note_exception(error)
            self.end()

    async def let_end(self) -> None:
        """Let the connection come to its own end; an answer that has ended can't fail any more.

        That takes no time, or more than a reader should wait: the background does it, and closes the connection.
        """
        background = self.attempt.call.background
        if background is None or not background.running:
            if await read_out(self._chunks):
                self.over = True
            return
        self._closed = self._busy = True
        ended = asyncio.Event()
        background.put(partial(self._end_in_background, ended))
        # A timer that is no cancel scope, because every stream comes here.
        timer = asyncio.get_running_loop().call_later(_READER_WAITS_S, ended.set)
        try:
            await ended.wait()
        finally:
            timer.cancel()

    async def _end_in_background(self, ended: asyncio.Event) -> None:
        try:
            self.over = await read_out(self._chunks)
        finally:
            self._busy = False
            try:
                await self.inner.aclose()
                await self.close_chunks()
            finally:
                ended.set()

    async def aclose(self) -> None:
        """See `Body.aclose`."""
        self.end()
        if self._closed:
            return
        try:
            await self.inner.aclose()
        except BaseException:
            self.abandon()
            raise
        self._closed = True
        await self.close_chunks()

    async def close_chunks(self) -> None:
        """Finish the iterators, else the event loop would some time, in a task of its own; not one that is being read.

        One who closes from another task (a stop button) finds the reader's own read under way, which ends them as well.
        """
        if self._busy:
            return
        generators: tuple[Any, ...] = (self._inflated, self._chunks)
        for generator in generators:
            if hasattr(generator, "aclose") and not getattr(generator, "ag_running", False):
                await generator.aclose()

    def abandon(self) -> None:
        """Have the connection closed in the background, unless it is."""
        if not self._closed:
            self._closed = True
            self.attempt.call.put(self.inner.aclose)


def _is_running(loop: asyncio.AbstractEventLoop) -> bool:
    """Whether `loop` is the one that runs this very code."""
    try:
        return asyncio.get_running_loop() is loop
    except RuntimeError:
        return False
