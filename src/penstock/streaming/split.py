"""Cutting the bytes of an event stream into events without decoding them.

The rule here: an event that nobody asks for is never decoded. While every line ends with a line feed, as the API's do,
an event is the bytes of its lines; from the first carriage return on, `SSEDecoder` does the work. How the bytes were
cut into chunks never shows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeAlias, cast

from pydantic_core import from_json

from penstock._core.body.sse import ServerSentEvent, SSEDecoder
from penstock.errors import InvalidStream

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Raw", "Splitter", "data_of", "name_of", "text_of"]

Raw: TypeAlias = "bytes | ServerSentEvent"

_BOM: Final = b"\xef\xbb\xbf"
_EVENT: Final = b"event: "
_DATA: Final = b"\ndata: "
_MOST_BYTES: Final = 64 * 1024 * 1024


def name_of(raw: Raw) -> str:
    """Return the name of an event: that of its `event` line, else `message`, as the specification has it.

    Raises:
        InvalidStream: It is no valid UTF-8.
    """
    if isinstance(raw, bytes):
        end = raw.find(b"\n")
        if raw.startswith(_EVENT) and raw.startswith(_DATA, end) and raw.find(b"\n", end + 1) < 0:
            return raw[len(_EVENT) : end].decode(errors="replace")
        raw = _decoded(raw)
    return raw.name


def data_of(raw: Raw) -> dict[str, object] | None:
    """Decode the data of an event; `None` if it has none.

    Raises:
        InvalidStream: It is no valid UTF-8, or no JSON object.
    """
    if isinstance(raw, bytes):
        start = raw.find(_DATA)
        try:
            value: object = from_json(raw[start + len(_DATA) :])
        except ValueError:
            # More than two lines, lone surrogates, or what is really no JSON.
            raw = _decoded(raw)
        else:
            if start > 0 and isinstance(value, dict):
                return cast("dict[str, object]", value)
            raw = _decoded(raw)
    return raw.json() if raw.data else None


def text_of(raw: Raw) -> str:
    """Return the data of an event as it is."""
    return (_decoded(raw) if isinstance(raw, bytes) else raw).data


def _decoded(block: bytes) -> ServerSentEvent:
    """Decode the lines of one event by the grammar."""
    # A byte order mark is one at the start of a stream only.
    decoder = SSEDecoder(position=1)
    events = decoder.feed(block + b"\n\n")
    return events[0] if events else ServerSentEvent("message", "")


class Splitter:
    r"""Cuts one stream into its events; feed it the body's chunks in order, then finish it.

    Attributes:
        clean: Whether the next byte begins an event, and all lines so far ended with line feeds.
        position: Offset in bytes, from the start of the stream, of the first byte that no given event covers.

    Example:
        >>> splitter = Splitter()
        >>> splitter.feed(b'event: ping\ndata: {"type"')
        []
        >>> splitter.feed(b': "ping"}\n\n')
        [b'event: ping\ndata: {"type": "ping"}']
    """

    __slots__ = ("_decoder", "_pending", "clean", "position")

    def __init__(self) -> None:
        self.clean = True
        self.position = 0
        self._pending = bytearray()
        self._decoder: SSEDecoder | None = None

    def __repr__(self) -> str:
        return f"Splitter(position={self.position}, pending_bytes={len(self._pending)})"

    def feed(self, chunk: bytes) -> Sequence[Raw]:
        """Take the next bytes of the body, cut anywhere, and return the events that are complete now.

        Raises:
            InvalidStream: The next event is longer than allowed, or, where lines end otherwise, no valid UTF-8.
        """
        if self._decoder is not None or b"\r" in chunk:
            return self._decode(chunk)
        pending = self._pending
        if pending:
            ends = b"\n\n" in chunk or (pending.endswith(b"\n") and chunk.startswith(b"\n"))
            pending += chunk
            if not ends:
                self._bound()
                return []
            chunk = bytes(pending)
            pending.clear()
        events = chunk.split(b"\n\n")
        rest = events.pop()
        pending += rest
        self.clean = not rest
        if events and not self.position:
            events[0] = events[0].removeprefix(_BOM)
        self.position += len(chunk) - len(rest)
        return events

    def finish(self) -> Sequence[Raw]:
        """Take note that the body has ended; returns the last event, if its blank line is missing.

        Raises:
            InvalidStream: As `feed` does.
        """
        if self._decoder is not None:
            return self._decoder.finish()
        rest = bytes(self._pending if self.position else self._pending.removeprefix(_BOM))
        self._pending.clear()
        return [rest] if rest.strip(b"\n") else []

    def _bound(self) -> None:
        if len(self._pending) > _MOST_BYTES:
            raise InvalidStream(f"an event is longer than {_MOST_BYTES} bytes", position=self.position)

    def _decode(self, chunk: bytes) -> Sequence[Raw]:
        decoder = self._decoder
        if decoder is None:
            self.clean = False
            decoder = self._decoder = SSEDecoder(max_event_bytes=_MOST_BYTES, position=self.position)
            chunk = bytes(self._pending) + chunk
            self._pending.clear()
        events = decoder.feed(chunk)
        self.position = decoder.position
        return events
