"""How an answer begins: told from the first bytes of its event stream. Pure: no I/O, no clock.

The rule here: once content has come, that is said at once; what isn't known to be none counts as content.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Final, cast

from pydantic_core import from_json

from penstock._core.body.sse import SSEDecoder, two_lines
from penstock._core.failure import failure_of_error_event, failure_of_exception
from penstock.errors import InvalidStream

if TYPE_CHECKING:
    from penstock._core.body.sse import ServerSentEvent
    from penstock._core.failure import Failure

__all__ = ["ENCODINGS", "Lookout"]

_MOST_BYTES: Final = 1024 * 1024
ENCODINGS: Final = frozenset({"identity", "gzip", "deflate"})
"""The content encodings that can be looked into."""
# What comes in deltas: the field that holds it. Anything else comes whole, and so is content as soon as it comes.
_FIELD_OF_BLOCK: Final = {"text": "text", "thinking": "thinking"}
_FIELD_OF_DELTA: Final = {"text_delta": "text", "input_json_delta": "partial_json", "thinking_delta": "thinking"}
# How the names of events begin that are looked at without the decoder.
_PLAIN: Final = (b"message_", b"content_block_")
_EMPTY_BLOCKS: Final = frozenset({"tool_use", "server_tool_use", "mcp_tool_use", "compaction"})


class Lookout:
    r"""Watches the bytes of an event stream until they tell whether the answer begins or fails.

    Content is text, tool input or thinking that isn't empty, a block that arrives complete, and what comes after all
    blocks. Starts of blocks, pings and signatures are none. More than a megabyte without content counts as content,
    to bound what is held.

    Args:
        encoding: Content encoding of the bytes, one of `ENCODINGS`.

    Attributes:
        decided: Whether the bytes have told.
        failure: How the stream fails; `None` if its answer begins.
        error: Set if the bytes are no valid event stream.

    Example:
        >>> lookout = Lookout()
        >>> lookout.see(b'event: ping\ndata: {"type": "ping"}\n\n')
        >>> lookout.decided
        False
        >>> lookout.see(b'event: error\ndata: {"error": {"type": "overloaded_error"}}\n\n')
        >>> lookout.decided, lookout.failure.kind.value
        (True, 'overloaded')
    """

    __slots__ = ("_decoder", "_inflate", "_left", "_position", "decided", "error", "failure")

    def __init__(self, encoding: str = "identity") -> None:
        self.decided = False
        self.failure: Failure | None = None
        self.error: InvalidStream | None = None
        self._decoder: SSEDecoder | None = None
        self._position = 0
        # 32: zlib tells gzip and deflate apart itself.
        self._inflate = zlib.decompressobj(32 + zlib.MAX_WBITS) if encoding != "identity" else None
        self._left = _MOST_BYTES

    def see(self, chunk: bytes) -> None:
        """Look at the next bytes; those that come once it is `decided` change nothing."""
        if self.decided:
            return
        try:
            if self._inflate is not None:
                chunk = self._inflate.decompress(chunk)
            self._left -= len(chunk)
            self.decided = self._decided_by(chunk) or self._left < 0
        except InvalidStream as error:
            self.decided, self.error, self.failure = True, error, failure_of_exception(error)
        except zlib.error:
            # A kind of deflate that only the reader's own decoder knows, or damage that it will report.
            self.decided = True

    def _decided_by(self, chunk: bytes) -> bool:
        """Look at one event after the other, because the rest of a chunk may be the whole answer."""
        while chunk:
            end = chunk.find(b"\n\n") + 2
            first, chunk = (chunk, b"") if end < 2 else (chunk[:end], chunk[end:])
            if self._decided_by_plain(first) if self._decoder is None else self._decided_by_any(first, self._decoder):
                return True
        return False

    def _decided_by_plain(self, block: bytes) -> bool:
        """Look at an event as the API writes it; at the first that is any other, the decoder takes over."""
        lines = two_lines(block[:-2]) if block.endswith(b"\n\n") else None
        if lines is not None:
            name, text = lines
            if name == b"ping" and text.isascii():
                self._position += len(block)
                return False
            if name.startswith(_PLAIN) and (data := _object_in(text)) is not None:
                self._position += len(block)
                return self._tells(name.decode(errors="replace"), data)
        self._decoder = SSEDecoder(position=self._position)
        return self._decided_by_any(block, self._decoder)

    def _decided_by_any(self, block: bytes, decoder: SSEDecoder) -> bool:
        return any(self._decides(event) for event in decoder.feed(block))

    def _decides(self, event: ServerSentEvent) -> bool:
        if event.name == "error":
            self.failure = failure_of_error_event(_data_of_any(event))
            return True
        if event.name == "ping" or not event.data:
            return False
        if event.name == "message":
            # Some proxies drop the event's name; its data has it too.
            data = _data_of_any(event)
            return self._tells(str(data.get("type")), data)
        return self._tells(event.name, event.json())

    def _tells(self, name: str, data: dict[str, object]) -> bool:
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


def _object_in(text: bytes) -> dict[str, object] | None:
    try:
        value: object = from_json(text)
    except ValueError:
        return None
    return cast("dict[str, object]", value) if isinstance(value, dict) else None


def _is_whole(block: object) -> bool:
    """Whether a block's start brings content: server-side results, redacted thinking and the like have no deltas."""
    fields = _object(block)
    kind = str(fields.get("type"))
    if not fields or kind in _EMPTY_BLOCKS:
        return False
    field = _FIELD_OF_BLOCK.get(kind)
    return field is None or bool(fields.get(field))


def _is_content(delta: object) -> bool:
    fields = _object(delta)
    kind = str(fields.get("type"))
    if not fields or kind == "signature_delta":
        return False
    field = _FIELD_OF_DELTA.get(kind)
    return field is None or bool(fields.get(field))


def _object(value: object) -> dict[str, object]:
    return cast("dict[str, object]", value) if isinstance(value, dict) else {}
