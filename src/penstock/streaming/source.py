"""Reading a body chunk by chunk, and noticing when it falls silent.

The rule here: one timer for each stream, none for each chunk: it looks at the clock only when it fires, and wakes a
reader that has waited too long as `asyncio.timeout` does. Whoever closes a body ends its attempt before he awaits.
"""

from __future__ import annotations

import asyncio
import contextlib
import weakref
from collections import deque
from types import AsyncGeneratorType
from typing import TYPE_CHECKING, Final, cast

import anyio
import httpx2

from penstock._core.body.body import read_out
from penstock._core.failure import Failure, FailureKind

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator

    from pydantic import BaseModel

    from penstock._core.attempt import Attempt

__all__ = ["DrainedSource", "Source", "as_sse", "close_generator"]

_STALLED: Final = Failure(kind=FailureKind.TIMEOUT, error_type="StreamStalled")
# What a timer may come too early by.
_EARLY_S: Final = 0.001


class Source:
    """The body of a streamed answer, read by whoever wants the next chunk.

    Args:
        response: The answer, not yet read.
        idle_timeout_s: Seconds that a reader waits for anything but pings, above 0; `None` for no bound.
        chunks: Its bytes, where they are not those of its body.

    Attributes:
        closed: Whether it was closed.
    """

    __slots__ = (
        "__weakref__",
        "_cancelling",
        "_chunks",
        "_http",
        "_idle_s",
        "_loop",
        "_reader",
        "_since",
        "_timer",
        "_why",
        "closed",
    )

    def __init__(
        self,
        response: httpx2.Response,
        *,
        idle_timeout_s: float | None,
        chunks: AsyncIterator[bytes] | None = None,
    ) -> None:
        self.closed = False
        self._http = response
        self._idle_s = idle_timeout_s
        self._loop = asyncio.get_running_loop()
        self._chunks = chunks or _chunks(response)
        self._since = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._reader: asyncio.Task[object] | None = None
        self._cancelling = 0
        self._why: Exception | None = None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {'closed' if self.closed else 'open'}>"

    async def read(self, *, anything: bool) -> bytes | None:
        """Return the next bytes; `None` at the end.

        Args:
            anything: Whether the last bytes were anything but pings, so that the silence is counted from now on.

        Raises:
            httpx2.ReadTimeout: The silence lasted too long.
            httpx2.StreamClosed: It is closed, or was closed meanwhile.
            Exception: What the transport raises.
        """
        if anything:
            # As `_wait_from_now`, but for the call, because this is done for each delta.
            self._since = self._loop.time()
            if self._timer is None:
                self._wait_from_now()
        self._reader = task = asyncio.current_task()
        try:
            if self._why is None:
                return await anext(self._chunks)
        except StopAsyncIteration:
            return None
        except asyncio.CancelledError:
            if self._why is None or task is None or task.uncancel() > self._cancelling:
                # A read that was cut short has killed the body.
                self._why = self._why or httpx2.ReadError("a read of this stream was cancelled")
                raise
        except Exception:
            # A body that was closed meanwhile may fail in any way.
            if not self.closed:
                raise
        finally:
            self._reader = None
        raise self._why or httpx2.StreamClosed()

    def _wait_from_now(self) -> None:
        self._since = self._loop.time()
        if self._timer is None and self._idle_s is not None:
            self._look_at(self._since + self._idle_s)

    def _look_at(self, when: float) -> None:
        # Weakly: the timer of a stream that was dropped must not keep it open.
        this: weakref.ref[Source] = weakref.ref(self)
        self._timer = self._loop.call_at(when, _look, this)

    async def finish(self) -> None:
        """Close the body after the last event; its connection has a moment to end by itself, and be used again."""
        if not self.closed and self._why is None:
            await read_out(self._chunks)
        await self.close()

    async def close(self) -> None:
        """Close the body; a read that waits in another task finds itself at the end."""
        if self.closed:
            return
        self.closed = True
        self._why = self._why or httpx2.StreamClosed()
        if self._timer is not None:
            self._timer.cancel()
        self._wake()
        await self._close()

    async def abandon(self) -> None:
        """Leave the rest unread."""
        await self.close()

    async def _close(self) -> None:
        try:
            # A transport that fails at closing has closed.
            with contextlib.suppress(httpx2.HTTPError):
                await self._http.aclose()
        finally:
            await close_generator(self._chunks)

    def look(self) -> None:
        """See whether a reader has waited too long; the timer runs on only while one waits."""
        self._timer = None
        if self._reader is None or self._idle_s is None:
            return
        due = self._since + self._idle_s
        if due - self._loop.time() > _EARLY_S:
            self._look_at(due)
            return
        attempt: Attempt | None = self._http.extensions.get("penstock_attempt")
        if attempt is not None and attempt.failure is None:
            attempt.failure = _STALLED
        self._why = httpx2.ReadTimeout(f"nothing but pings for {self._idle_s:g} s")
        self._wake()

    def _wake(self) -> None:
        """Have a read that waits return."""
        task = self._reader
        if task is not None:
            self._cancelling = task.cancelling()
            task.cancel()


def _look(source: weakref.ref[Source]) -> None:
    found = source()
    if found is not None:
        found.look()


class DrainedSource(Source):
    """The same, read in the background of a client, so that the rest is read too when whoever wanted it leaves.

    Args:
        response: As for `Source`.
        idle_timeout_s: As for `Source`.
        chunks: As for `Source`.
        drain_s: Seconds that the rest may take once it is left, above 0.
    """

    __slots__ = ("_buffer", "_drain_s", "_left", "_news", "_over", "_scope")

    def __init__(
        self,
        response: httpx2.Response,
        *,
        idle_timeout_s: float | None,
        drain_s: float,
        chunks: AsyncIterator[bytes] | None = None,
    ) -> None:
        super().__init__(response, idle_timeout_s=idle_timeout_s, chunks=chunks)
        self._drain_s = drain_s
        self._buffer: deque[bytes] = deque()
        self._news = asyncio.Event()
        self._scope = anyio.CancelScope()
        self._over = False
        self._left = False

    async def pump(self) -> None:
        """Read to the end; runs in the background."""
        try:
            with self._scope:
                async for chunk in self._chunks:
                    if not self._left:
                        self._buffer.append(chunk)
                        self._news.set()
        except Exception as error:  # noqa: BLE001 - raised to whoever reads
            self._why = self._why or error
        except BaseException:
            self._why = self._why or httpx2.ReadError("the client was closed")
            raise
        finally:
            self._over = True
            self._news.set()
            if self._timer is not None:
                self._timer.cancel()
            await self._close()

    async def read(self, *, anything: bool) -> bytes | None:
        """Return the next bytes, as `Source.read` does."""
        if anything:
            self._wait_from_now()
        while not (self._buffer or self._over or self.closed):
            self._news.clear()
            self._reader = asyncio.current_task()
            try:
                await self._news.wait()
            finally:
                self._reader = None
        if self._buffer and not self.closed:
            return self._buffer.popleft()
        if self._why is not None:
            raise self._why
        return None

    async def finish(self) -> None:
        """Leave the body to the background, which reads it to its end in any case."""
        await self.abandon()

    async def abandon(self) -> None:
        """Leave the rest to be read in the background, for a time."""
        if self._over or self.closed:
            await self.close()
            return
        self._left = self.closed = True
        self._why = httpx2.StreamClosed()
        self._buffer.clear()
        self._news.set()
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(self._drain_s, self._scope.cancel)

    def _wake(self) -> None:
        self._scope.cancel()
        self._over = True
        self._news.set()


async def close_generator(iterator: AsyncIterator[object]) -> None:
    """Close an iterator that is a generator, unless it runs, in another task: then that task does."""
    if isinstance(iterator, AsyncGeneratorType):
        generator = cast("AsyncGeneratorType[object, None]", iterator)
        if not generator.ag_running:
            await generator.aclose()


def _chunks(response: httpx2.Response) -> AsyncIterator[bytes]:
    """Return the chunks of a body, decoded; not through the layers of `httpx2` where there is nothing to decode."""
    plain = response.headers.get("content-encoding", "identity") == "identity"
    if not plain or response.is_closed or response.is_stream_consumed:
        return response.aiter_bytes()
    if not isinstance(response.stream, httpx2.AsyncByteStream):
        return response.aiter_bytes()
    response.is_stream_consumed = True
    return aiter(response.stream)


async def as_sse(events: AsyncIterable[BaseModel]) -> AsyncGenerator[bytes, None]:
    """Write events that the SDK has decoded from another format as server-sent events."""
    async for event in events:
        data = event.model_dump_json(by_alias=True, exclude_unset=True, warnings=False)
        yield f"event: {getattr(event, 'type', 'message')}\ndata: {data}\n\n".encode()
