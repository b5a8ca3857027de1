"""Cutting the bytes of an event stream into events without decoding them.

The rule here: an event that nobody asks for is never decoded. What looks like every event of the API, an `event` line
and a `data` line that end with line feeds, stays the bytes that it was; anything else goes through `SSEDecoder`, which
knows the whole grammar. How the bytes were cut into chunks never shows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeAlias, cast

from pydantic_core import from_json

from penstock.core.sse import ServerSentEvent, SSEDecoder
from penstock.errors import InvalidStream

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Raw", "Splitter", "data_of", "name_of"]

Raw: TypeAlias = bytes | ServerSentEvent
"""An event: its two lines as they came, or, where it looked otherwise, what the grammar makes of it."""

_BOM: Final = b"\xef\xbb\xbf"
_EVENT: Final = b"event: "
_DATA: Final = b"\ndata: "
_MOST_BYTES: Final = 64 * 1024 * 1024


def name_of(raw: Raw) -> str:
    """Return the name of an event."""
    if isinstance(raw, ServerSentEvent):
        return raw.name
    return raw[len(_EVENT) : raw.index(b"\n")].decode()


def data_of(raw: Raw, position: int = 0) -> dict[str, object]:
    """Decode the data of an event.

    Args:
        raw: The event.
        position: Where it begins, in bytes from the start of the stream.

    Raises:
        InvalidStream: It isn't UTF-8, or not a JSON object.
    """
    if isinstance(raw, ServerSentEvent):
        return raw.json()
    try:
        value: object = from_json(raw[raw.index(_DATA) + len(_DATA) :])
    except ValueError:
        return _decoded(raw, position).json()
    if not isinstance(value, dict):
        raise InvalidStream("the data of an event is not a JSON object", position=position)
    return cast("dict[str, object]", value)


def _decoded(raw: bytes, position: int) -> ServerSentEvent:
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        raise InvalidStream("an event is not valid UTF-8", position=position) from None
    first, _, rest = text.partition("\n")
    return ServerSentEvent(first[len(_EVENT) :], rest[len(_DATA) - 1 :], position)


def _is_plain(block: bytes) -> bool:
    """Whether a block is an `event` line and a `data` line, as the API sends them."""
    if not block.startswith(_EVENT):
        return False
    end = block.find(b"\n")
    return end > len(_EVENT) and block.startswith(_DATA, end) and block.find(b"\n", end + 1) < 0


class Splitter:
    r"""Cuts one stream into its events; feed it the body's chunks in order, then finish it.

    Attributes:
        position: Bytes of the events that were given so far.

    Example:
        >>> splitter = Splitter()
        >>> splitter.feed(b'event: ping\ndata: {"type"')
        []
        >>> splitter.feed(b': "ping"}\n\n')
        [b'event: ping\ndata: {"type": "ping"}']
    """

    __slots__ = ("_decoder", "_decoding", "_pending", "_skipped", "position")

    def __init__(self) -> None:
        self.position = 0
        self._pending = bytearray()
        self._decoder = SSEDecoder()
        self._decoding = False
        self._skipped = 0

    def feed(self, chunk: bytes) -> Iterable[Raw]:
        """Take the next bytes of the body, cut anywhere, and return the events that are complete now.

        Raises:
            InvalidStream: The next event is longer than allowed, or no valid UTF-8.
        """
        if self._decoding or b"\r" in chunk:
            return self._decode(chunk)
        pending = self._pending
        if pending:
            if b"\n\n" not in chunk and not (pending.endswith(b"\n") and chunk.startswith(b"\n")):
                pending += chunk
                if len(pending) > _MOST_BYTES:
                    raise InvalidStream(f"an event is longer than {_MOST_BYTES} bytes", position=self.position)
                return ()
            pending += chunk
            chunk = bytes(pending)
            pending.clear()
        ...
        return ()
