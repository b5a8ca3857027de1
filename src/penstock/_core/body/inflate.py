"""Undoing a body's compression, a bounded piece at a time.

The rule here: what a small body grows to is never held at once, and what can't be undone is a typed error.
"""

from __future__ import annotations

import zlib
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING, Any, Final, cast

import httpx2
from anyio.lowlevel import checkpoint

from penstock.errors import InvalidStream, ResponseTooLarge

if TYPE_CHECKING:
    import datetime as dt
    from collections.abc import AsyncIterator, Iterator, Sequence

__all__ = ["PIECE_BYTES", "Bounded", "inflated", "take_encodings"]

PIECE_BYTES: Final = 64 * 1024
"""What is handed on at once, at most."""

_KNOWN: Final = frozenset({"gzip", "x-gzip", "deflate"})
# zlib tells gzip and its own format apart itself.
_EITHER: Final = 32 + zlib.MAX_WBITS
_GZIP: Final = b"\x1f\x8b"
_HEAD_BYTES: Final = 2


def take_encodings(headers: httpx2.Headers) -> tuple[str, ...] | None:
    """Take the compression off a response's headers, because whoever asks for it here undoes it.

    Returns:
        What is to be undone, in order; empty if there is none; `None` if one of them is not known here: then all stays.
    """
    names = [name.strip().lower() for name in headers.get("content-encoding", "").split(",")]
    encodings = tuple(name for name in reversed(names) if name not in {"", "identity"})
    if not _KNOWN.issuperset(encodings):
        return None
    if encodings:
        del headers["content-encoding"]
        headers.pop("content-length", None)
    return encodings


async def inflated(chunks: AsyncIterator[bytes], encodings: Sequence[str]) -> AsyncGenerator[bytes, None]:
    """Undo the compression of a body. Chunks that bring nothing come as empty ones, so that turns can be counted.

    Args:
        chunks: The body. It is left for the caller to close.
        encodings: As `take_encodings` named them.

    Raises:
        InvalidStream: It can't be undone.
    """
    layers = [_Inflate(raw=name == "deflate") for name in encodings]
    async for chunk in chunks:
        for piece in _through(layers, chunk):
            yield piece
        yield b""


def _through(layers: Sequence[_Inflate], data: bytes) -> Iterator[bytes]:
    if not layers:
        yield data
        return
    for piece in layers[0].pieces(data):
        yield from _through(layers[1:], piece)


class Bounded(httpx2.AsyncByteStream):
    """Stands in for a body that is read whole: undoes its compression, and bounds what it grows to.

    Args:
        http: The response; its compression is taken off its headers.
        limit: Bytes that it may have, above 0.
    """

    def __init__(self, http: httpx2.Response, limit: float) -> None:
        self._inner = cast("httpx2.AsyncByteStream", http.stream)
        self._encodings = take_encodings(http.headers)
        self._limit = limit

    @property
    def elapsed(self) -> dt.timedelta | None:
        """How long the exchange took, once it is over (httpx2 reads it off the stream)."""
        elapsed: dt.timedelta | None = getattr(self._inner, "elapsed", None)
        return elapsed

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Hand on the bytes.

        Raises:
            ResponseTooLarge: There are more of them than allowed.
            InvalidStream: Their compression can't be undone.
        """
        left = self._limit
        chunks = aiter(self._inner)
        source = inflated(chunks, self._encodings) if self._encodings else chunks
        try:
            async for piece in source:
                left -= len(piece)
                if left < 0:
                    raise ResponseTooLarge(int(self._limit))
                yield piece
                if self._encodings:
                    await checkpoint()
        finally:
            for each in (source, chunks):
                if isinstance(each, AsyncGenerator):
                    await each.aclose()

    async def aclose(self) -> None:
        """Close the body."""
        await self._inner.aclose()


class _Inflate:
    """Undoes the compression of one body."""

    def __init__(self, *, raw: bool) -> None:
        # Some servers call it deflate, and leave out the wrapping that the standard asks for.
        self._may_be_raw = raw
        self._object: Any = None
        self._head = b""
        self._begun = False
        self._padding = False
        self._seen = 0

    def pieces(self, data: bytes) -> Iterator[bytes]:
        while data and not self._padding:
            if self._object is None:
                data, self._head = self._head + data, b""
                if len(data) < _HEAD_BYTES:
                    self._head = data
                    return
                self._object = self._object_for(data)
                continue
            piece = self._decompressed(data)
            rest = self._object.unused_data or self._object.unconsumed_tail
            self._seen += len(data) - len(rest)
            if piece:
                yield piece
            if self._object.eof:
                self._object = None
            elif not rest and len(piece) == PIECE_BYTES:
                yield from self._held_back()
            data = rest

    def _object_for(self, head: bytes) -> Any:
        """Return what undoes what begins like that."""
        first, self._begun = not self._begun, True
        # One compressed file may follow another; anything else after the end is padding.
        self._padding = not (first or head.startswith(_GZIP))
        raw = first and self._may_be_raw and not _has_zlib_head(head)
        return zlib.decompressobj(-zlib.MAX_WBITS if raw else _EITHER)

    def _held_back(self) -> Iterator[bytes]:
        """What zlib still has when it has taken all its input, but not given all its output."""
        while piece := self._decompressed(b""):
            yield piece

    def _decompressed(self, data: bytes) -> bytes:
        try:
            piece: bytes = self._object.decompress(data, PIECE_BYTES)
        except zlib.error:
            raise InvalidStream("its compression can't be undone", position=self._seen) from None
        return piece


def _has_zlib_head(data: bytes) -> bool:
    """Whether data has the wrapping of RFC 1950, or is gzip after all."""
    return data.startswith(_GZIP) or (data[0] & 0x0F == 8 and int.from_bytes(data[:2]) % 31 == 0)
