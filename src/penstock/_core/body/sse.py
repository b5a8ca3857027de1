"""An incremental decoder of server-sent events: bytes in any chunking become events. Pure: no I/O, no clock.

The rule here: how the bytes were cut into chunks never shows. The same bytes give the same events, and where they break
the protocol the same error at the same position, after every event that came before it was delivered.

Unlike a browser's decoder this one delivers a named event without data, because an `error` without data is an error
still, and an event at the end of the body whose blank line is missing. `id` and `retry`, which the API doesn't send,
are ignored.
Source of the grammar: https://html.spec.whatwg.org/multipage/server-sent-events.html#parsing-an-event-stream
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import cast

from pydantic_core import from_json

from penstock.errors import InvalidStream

__all__ = ["SSEDecoder", "ServerSentEvent", "two_lines"]

_BOM = b"\xef\xbb\xbf"
# The second line end takes no \n after its \r: that \n may come with the next chunk, and is skipped in either case.
_BLANK_LINE = re.compile(rb"(?:\r\n|\n|\r(?!\n))[\r\n]")
_LINE_END = re.compile(r"\r\n|\r|\n")
_LONGEST_LINE_ENDS = 4
_EVENT = b"event: "
_DATA = b"\ndata: "


@dataclass(slots=True)  # not frozen: that would make a third of the decoder's cost
class ServerSentEvent:
    """One event of a stream.

    Args:
        name: Its type, from the field `event`; `message` where the stream names none, as the specification has it.
        data: Its `data` lines, joined by newlines.
        position: Offset in bytes of the event from the start of the stream. Two events are equal wherever they stand.
    """

    name: str
    data: str
    position: int = field(default=0, compare=False)

    def __repr__(self) -> str:
        return f"ServerSentEvent({self.name!r}, {len(self.data)} characters, position={self.position})"

    def json(self) -> dict[str, object]:
        """Decode the data.

        Returns:
            The JSON object that the data is.

        Raises:
            InvalidStream: The data isn't JSON, or not an object.

        Example:
            >>> ServerSentEvent("ping", '{"type": "ping"}').json()
            {'type': 'ping'}
        """
        try:
            value: object = from_json(self.data)
        except ValueError:
            value = self._json_with_lone_surrogates()
        if not isinstance(value, dict):
            raise InvalidStream("the data of an event is not a JSON object", position=self.position)
        return cast("dict[str, object]", value)

    def _json_with_lone_surrogates(self) -> object:
        # The quick decoder (a quarter of json's time on small objects) refuses "\ud83d" alone, which is valid JSON.
        try:
            return json.loads(self.data)
        except (ValueError, RecursionError):
            # The decoder's own error holds the whole text, so it must not travel along as the cause.
            raise InvalidStream("the data of an event is not valid JSON", position=self.position) from None


def two_lines(block: bytes) -> tuple[bytes, bytes] | None:
    r"""Return name and data of an event of two lines, as the API writes them, without decoding any of it.

    Args:
        block: The lines of one event, less the blank one that ends it.

    Returns:
        What its lines say; `None` for any other event, which needs an `SSEDecoder`.

    Example:
        >>> two_lines(b'event: ping\ndata: {"type": "ping"}')
        (b'ping', b'{"type": "ping"}')
    """
    end = block.find(b"\n")
    if not (block.startswith(_EVENT) and block.startswith(_DATA, end)) or block.find(b"\n", end + 1) >= 0:
        return None
    return None if b"\r" in block else (block[len(_EVENT) : end], block[end + len(_DATA) :])


class SSEDecoder:
    r"""Decodes one stream; feed it the body's chunks in order, then finish it.

    Args:
        max_event_bytes: The longest event that is accepted, in bytes without its closing blank line. It bounds what
            a line that never ends can take of memory.
        position: Offset of the first byte that it is fed, for a stream whose beginning was decoded elsewhere.

    Example:
        >>> decoder = SSEDecoder()
        >>> decoder.feed(b'event: ping\ndata: {"type"')
        []
        >>> [event.name for event in decoder.feed(b': "ping"}\n\n')]
        ['ping']
        >>> decoder.finish()
        []
    """

    __slots__ = ("_after_cr", "_failure", "_max_event_bytes", "_pending", "_position")

    def __init__(self, *, max_event_bytes: int = 64 * 1024 * 1024, position: int = 0) -> None:
        self._max_event_bytes = max_event_bytes
        self._pending = bytearray()
        self._position = position
        self._after_cr = False
        self._failure: tuple[str, int] | None = None

    @property
    def position(self) -> int:
        """Offset in bytes, from the start of the stream, of the first byte that no delivered event covers."""
        return self._position

    @property
    def pending_bytes(self) -> int:
        """How many bytes of an unfinished event are held."""
        return len(self._pending)

    def __repr__(self) -> str:
        failed = f", failed: {self._failure[0]}" if self._failure else ""
        return f"SSEDecoder(position={self._position}, pending_bytes={len(self._pending)}{failed})"

    def feed(self, chunk: bytes) -> list[ServerSentEvent]:
        """Take the next bytes of the body.

        Args:
            chunk: Any number of bytes, cut anywhere.

        Returns:
            The events that are complete now, oldest first. Where a bad event follows good ones, the good ones are
            returned, and the next call raises.

        Raises:
            InvalidStream: The next event isn't UTF-8, or is longer than allowed. Every later call raises it again.
        """
        self._raise_failure()
        events: list[ServerSentEvent] = []
        try:
            if self._pending or self._after_cr or not self._position or b"\r" in chunk:
                self._take(chunk, events)
            else:
                self._take_lines_of_lf(chunk, events)
        except InvalidStream as failure:
            self._failure = (failure.reason, failure.position)
            self._pending.clear()
            if not events:
                raise
        return events

    def finish(self) -> list[ServerSentEvent]:
        """Take note that the body has ended.

        Returns:
            The last event, if its closing blank line is missing; else nothing.

        Raises:
            InvalidStream: As `feed` does.
        """
        self._raise_failure()
        block = bytes(self._pending)
        self._pending.clear()
        try:
            event = self._event(block, self._position)
        except InvalidStream as failure:
            self._failure = (failure.reason, failure.position)
            raise
        self._position += len(block)
        return [] if event is None else [event]

    def _take_lines_of_lf(self, chunk: bytes, events: list[ServerSentEvent]) -> None:
        """The hot path: nothing is pending, and every line ends with a line feed."""
        blocks = chunk.split(b"\n\n")
        self._pending += blocks.pop()
        for block in blocks:
            event = self._event(block, self._position)
            if event is not None:
                events.append(event)
            self._position += len(block) + 2
        self._bound_pending()

    def _take(self, chunk: bytes, events: list[ServerSentEvent]) -> None:
        """Any line ends, after any chunk. Only new bytes are searched, so that tiny chunks stay linear in time."""
        pending = self._pending
        searched = max(0, len(pending) - 2)
        pending += chunk
        start = self._skip_lf_after_cr(0)
        while blank_line := _BLANK_LINE.search(pending, max(start, searched)):
            event = self._event(bytes(pending[start : blank_line.start()]), self._position)
            if event is not None:
                events.append(event)
            self._position += blank_line.end() - start
            self._after_cr = pending[blank_line.end() - 1] == ord("\r")
            start = self._skip_lf_after_cr(blank_line.end())
        del pending[:start]
        self._bound_pending()

    def _skip_lf_after_cr(self, start: int) -> int:
        if not self._after_cr or start == len(self._pending):
            return start
        self._after_cr = False
        is_lf = self._pending[start] == ord("\n")
        self._position += is_lf
        return start + is_lf

    def _bound_pending(self) -> None:
        if len(self._pending) > self._max_event_bytes + _LONGEST_LINE_ENDS:
            raise self._too_long(self._position)

    def _event(self, block: bytes, position: int) -> ServerSentEvent | None:
        """Decode one event from its lines; `None` if they hold only comments and unknown fields."""
        if len(block) > self._max_event_bytes:
            raise self._too_long(position)
        if not position:
            block = block.removeprefix(_BOM)
        try:
            text = block.decode()
        except UnicodeDecodeError:
            raise InvalidStream("an event is not valid UTF-8", position=position) from None
        first, _, rest = text.partition("\n")
        if first.startswith("event: ") and rest.startswith("data: ") and "\n" not in rest and "\r" not in text:
            return ServerSentEvent(first[7:] or "message", rest[6:], position)
        return _event_of_lines(_LINE_END.split(text), position)

    def _too_long(self, position: int) -> InvalidStream:
        return InvalidStream(f"an event is longer than {self._max_event_bytes} bytes", position=position)

    def _raise_failure(self) -> None:
        if self._failure is not None:
            reason, position = self._failure
            raise InvalidStream(reason, position=position)


def _event_of_lines(lines: list[str], position: int) -> ServerSentEvent | None:
    """Interpret lines field by field, as the specification says."""
    name = ""
    data: list[str] = []
    for line in lines:
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "event":
            name = value
        elif field == "data":
            data.append(value)
    return ServerSentEvent(name or "message", "\n".join(data), position) if name or data else None
