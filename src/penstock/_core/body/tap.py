"""The tap on a response body: sees the bytes go by, and ends the attempt when the body ends, however it ends.

The rule here: the attempt is ended before anything is awaited, so that no cancellation can come between. The tap
changes no byte, adds no chunk boundary and holds nothing up.
"""

from __future__ import annotations

import asyncio
import warnings
import zlib
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING

import httpx2

from penstock._core.body.aws import AWS_STREAM, scanner_of
from penstock._core.body.scan import JSONScanner
from penstock._core.failure import ABANDONED, CLOSED, INCOMPLETE
from penstock._core.kind import RequestKind
from penstock.errors import ClientClosed

if TYPE_CHECKING:
    import datetime as dt
    from collections.abc import AsyncIterator

    from penstock._core.attempt import Attempt
    from penstock._core.body.scan import Scanner

__all__ = ["BodyTap"]


class BodyTap(httpx2.AsyncByteStream):
    """Stands in for a response's byte stream.

    Args:
        inner: The stream that it stands for.
        headers: Of the response; they tell what the body is and how it is encoded.
        attempt: Ended when the body ends, is closed early, breaks, is cancelled, or is dropped.
    """

    def __init__(self, inner: httpx2.AsyncByteStream, headers: httpx2.Headers, attempt: Attempt) -> None:
        self._inner = inner
        self._attempt = attempt
        self._loop = asyncio.get_running_loop()
        self._closed = False
        content_type = headers.get("content-type", "")
        self._is_stream = content_type.startswith(("text/event-stream", AWS_STREAM))
        self._scanner: Scanner | None = None
        if attempt.call.kind is RequestKind.MESSAGES:
            self._scanner = scanner_of(content_type) if self._is_stream else JSONScanner()
        self._inflate = None
        encoding = headers.get("content-encoding", "identity").strip().lower()
        if encoding in {"gzip", "deflate"}:
            # 32: zlib tells gzip and deflate apart itself.
            self._inflate = zlib.decompressobj(32 + zlib.MAX_WBITS)
        elif encoding != "identity":
            self._scanner = None

    @property
    def elapsed(self) -> dt.timedelta | None:
        """How long the exchange took, once it is over (httpx2 reads it off the stream)."""
        elapsed: dt.timedelta | None = getattr(self._inner, "elapsed", None)
        return elapsed

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Hand on the bytes as they come."""
        attempt = self._attempt
        inner = aiter(self._inner)
        try:
            async for chunk in inner:
                if attempt.call.closing:
                    self._raise_if_closing()
                if (scanner := self._scanner) is not None:
                    self._see(scanner, chunk)
                yield chunk
            self._raise_if_closing()
        except GeneratorExit:
            self._end()
            self._abandon()
            raise
        except BaseException as error:
            attempt.note_exception(error)
            self._end()
            if isinstance(error, Exception):
                self._raise_if_closing(error)
            raise
        else:
            self._end(whole=True)
        finally:
            # Else the event loop would finish it some time, in a task of its own.
            if isinstance(inner, AsyncGenerator):
                await inner.aclose()

    def _raise_if_closing(self, cause: Exception | None = None) -> None:
        """Never let an answer that the client's close has cut off look like one that has ended."""
        attempt = self._attempt
        if attempt.call.closing and not isinstance(cause, ClientClosed):
            if attempt.failure is None:
                attempt.failure = CLOSED
            raise ClientClosed("the client was closed while this answer was being read") from cause

    async def aclose(self) -> None:
        """Close the body; the attempt ends at once, the connection soon after even if this is cancelled."""
        self._end()
        try:
            await self._inner.aclose()
        except BaseException:
            self._abandon()
            raise
        self._closed = True

    def _abandon(self) -> None:
        """Have the connection closed in the background, unless it is."""
        if not self._closed:
            self._closed = True
            self._attempt.call.put(self._inner.aclose)

    def __del__(self) -> None:
        """End the attempt of a body that was dropped unread, and have its connection closed."""
        self._abandon()
        attempt = self._attempt
        if attempt.ended:
            return
        # The garbage collector runs in any thread, and the state of guards belongs to the event loop's.
        if self._loop.is_closed() or _is_running(self._loop):
            self._end()
        else:
            self._loop.call_soon_threadsafe(self._end)
        # Last, because it raises where warnings are errors.
        message = f"a response body was dropped without being closed ({attempt.call.id})"
        warnings.warn(message, ResourceWarning, stacklevel=2, source=self)

    def _see(self, scanner: Scanner, chunk: bytes) -> None:
        if self._inflate is not None:
            try:
                chunk = self._inflate.decompress(chunk)
            except zlib.error:
                self._scanner = None
                return
        scanner.see(chunk)
        if scanner.has_content and self._attempt.first_content_at is None:
            self._attempt.note_first_content()

    def _end(self, *, whole: bool = False) -> None:
        """End the attempt with what the scanner knows; `whole` if the transport delivered everything."""
        attempt = self._attempt
        if attempt.ended:
            return
        scanner = self._scanner
        if scanner is not None:
            scanner.finish()
            attempt.take(scanner)
        complete = scanner is not None and scanner.complete
        cannot_tell = scanner is None or not self._is_stream
        if attempt.failure is None and not (complete or (whole and cannot_tell)):
            attempt.failure = INCOMPLETE if whole else ABANDONED
        attempt.end()


def _is_running(loop: asyncio.AbstractEventLoop) -> bool:
    """Whether `loop` is the one that runs this very code."""
    try:
        return asyncio.get_running_loop() is loop
    except RuntimeError:
        return False
