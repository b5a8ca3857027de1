"""The grammar of server-sent events: bytes in any chunking become events. Pure: no I/O, no clock.

The rule here: how the bytes were cut into chunks never shows, nor how an event was spelled. The same bytes give the
same events, and where they break the protocol the same error, after every event that came before it was delivered.

A stream is lines; a blank line ends an event. A line ends with LF, CR or CRLF, and is a field, a colon and a value,
with or without a space before the value. So these all say the same:

    event: ping                 data:{"type":"ping"}          : a comment
    data: {"type": "ping"}      event:ping                    data: {"type":
                                                              data: "ping"}

In the last there is no field `event`: then the specification calls the event `message`, and what it is stands in its
data (`kind_of`). The API itself writes the first; gateways write any. So work is done in two steps. `Splitter` cuts
the bytes into raw events, at blank lines and nowhere else: that is quick, and most events of a stream are never looked
into. What is looked into goes through `decode`, which knows the fields, or, for the API's own spelling, through short
cuts that say the same (a test compares them on generated streams). Time is linear in the bytes, whatever the chunks.
Bytes are searched with `find`: `in` asks first whether what is sought is a number, which costs ten times the search.

Unlike a browser's decoder this one delivers a named event without data, because an `error` without data is an error
still, and an event at the end of the body whose blank line is missing. `id` and `retry`, which the API doesn't send,
are ignored. Source: https://html.spec.whatwg.org/multipage/server-sent-events.html#parsing-an-event-stream
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import accumulate, count
from operator import add
from typing import TYPE_CHECKING, Final, cast

from pydantic_core import from_json

from penstock.errors import InvalidStream

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["ServerSentEvent", "Splitter", "data_of", "decode", "field_of", "kind_of", "name_of"]

_BOM: Final = b"\xef\xbb\xbf"
# A line end, and one or more blank lines. What is left of these in the next chunk is skipped there.
_BLANK_LINES: Final = re.compile(rb"(?:\r\n|\n|\r(?!\n))[\r\n]+")
_LINE_ENDS: Final = b"\r\n"
_LINE_END: Final = re.compile(r"\r\n|\r|\n")
_LONGEST_LINE_ENDS: Final = 4
_BLANK_LINE: Final = len(b"\n\n")
# A whole line that is neither data nor a name, and its end, where that can't be half of CRLF.
_SAYS_NOTHING: Final = re.compile(rb"(?:(?<=[\r\n])|\A)(?!data|event)[^\r\n]+(?:\r\n|\n|\r(?=[^\n]))")
_COMPACT_AT: Final = 16 * 1024
_EVENT: Final = b"event: "
_DATA: Final = b"\ndata: "
_MOST_BYTES: Final = 64 * 1024 * 1024
_UNNAMED: Final = "message"


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


# Looking into a raw event


def decode(raw: bytes, position: int = 0) -> ServerSentEvent | None:
    r"""Decode a raw event.

    Args:
        raw: Its lines, without the blank one that ends it.
        position: Where it stands, in bytes.

    Returns:
        The event; `None` if its lines hold only comments and unknown fields.

    Raises:
        InvalidStream: It is not UTF-8.

    Example:
        >>> decode(b"data:{}\n: a comment\nevent:ping").name
        'ping'
    """
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        raise InvalidStream("an event is not valid UTF-8", position=position) from None
    first, _, rest = text.partition("\n")
    if first.startswith("event: ") and rest.startswith("data: ") and "\n" not in rest and "\r" not in text:
        return ServerSentEvent(first[7:] or _UNNAMED, rest[6:], position)
    return _event_of_lines(_LINE_END.split(text), position)


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
    return ServerSentEvent(name or _UNNAMED, "\n".join(data), position) if name or data else None


def name_of(raw: bytes) -> str:
    """Return what a raw event is: by its name, else by the `type` in its data; `""` for a comment.

    Raises:
        InvalidStream: It is no valid UTF-8.

    Example:
        >>> name_of(b'data: {"type": "message_stop"}')
        'message_stop'
    """
    end = _end_of_name(raw)
    if end > 0:
        name = raw[len(_EVENT) : end].decode(errors="replace")
        if name and name != _UNNAMED:
            return name
    if b"data" not in raw and b"event" not in raw:
        return ""
    event = decode(raw)
    if event is None:
        return ""
    data: object = None
    if event.name == _UNNAMED:
        with contextlib.suppress(InvalidStream):
            data = event.json()
    return kind_of(event.name, data)


def _end_of_name(raw: bytes) -> int:
    """Return where the first line of an event ends that is spelled as the API spells it; 0 for any other."""
    end = raw.find(b"\n")
    plain = raw.startswith(_EVENT) and raw.startswith(_DATA, end) and raw.find(b"\n", end + 1) < 0
    return end if plain and raw.find(b"\r") < 0 else 0


def kind_of(name: str, data: object) -> str:
    """Return what an event is, given its name and its decoded data."""
    if name != _UNNAMED:
        return name
    kind = field_of(data, "type")
    return kind if isinstance(kind, str) else ""


def data_of(raw: bytes) -> dict[str, object] | None:
    """Decode the data of a raw event; `None` if it has none.

    Raises:
        InvalidStream: It is no valid UTF-8, or no JSON object.
    """
    end = _end_of_name(raw)
    if end > 0:
        try:
            value: object = from_json(raw[end + len(_DATA) :])
        except ValueError:
            # Lone surrogates, or what is really no JSON: `decode` tells.
            pass
        else:
            if isinstance(value, dict):
                return cast("dict[str, object]", value)
    event = decode(raw)
    return event.json() if event is not None and event.data else None


def field_of(value: object, name: str) -> object:
    """Return a field of what was decoded; `None` where there is no such field, or no object."""
    return cast("Mapping[str, object]", value).get(name) if isinstance(value, Mapping) else None


# Cutting a stream into raw events


class Splitter:
    r"""Cuts one stream into raw events; feed it the body's chunks in order, then finish it.

    Args:
        max_event_bytes: The longest event that is accepted, in bytes without its closing blank line. It bounds what
            a line that never ends can take of memory.

    Attributes:
        clean: Whether the next byte begins an event, and all lines so far ended with line feeds. Then whole events may
            be passed over by moving `position` past them.
        position: Offset in bytes, from the start of the stream, of the first byte that no returned event covers.
        starts: Where the events stand that were returned last, in bytes from the start of the stream.

    Example:
        >>> splitter = Splitter()
        >>> splitter.feed(b'event: ping\ndata: {"type"')
        []
        >>> splitter.feed(b': "ping"}\n\n'), splitter.starts
        ([b'event: ping\ndata: {"type": "ping"}'], [0])
    """

    __slots__ = (
        "_any_line_ends",
        "_compact_at",
        "_max_event_bytes",
        "_pending",
        "_too_long",
        "clean",
        "position",
        "starts",
    )

    def __init__(self, *, max_event_bytes: int = _MOST_BYTES) -> None:
        self._max_event_bytes = max_event_bytes
        self._pending = bytearray()
        self.position = 0
        self._any_line_ends = False
        self._too_long = False
        self._compact_at = _COMPACT_AT
        self.clean = True
        self.starts: list[int] = []

    def __repr__(self) -> str:
        return f"Splitter(position={self.position}, pending_bytes={len(self._pending)})"

    @property
    def pending_bytes(self) -> int:
        """How many bytes of an unfinished event are held."""
        return len(self._pending)

    def pass_over(self, chunk: bytes, words: Sequence[bytes]) -> bytes:
        """Take the whole events at the beginning of what has come, up to the first that has one of `words` in it.

        Nothing is split: it takes a search for each word. Where that doesn't do (line ends other than line feeds, no
        event that ends, much of one that does not), nothing is taken.

        Returns:
            What is still to be fed, even if it is nothing.
        """
        pending, whole = self._pending, chunk
        if pending or self._any_line_ends:
            if self._any_line_ends or len(pending) > len(chunk):
                return chunk
            whole = bytes(pending) + chunk
        # A carriage return before that changes nothing: two line feeds are a blank line in any case.
        end = whole.rfind(b"\n\n") + 2
        for word in words:
            at = whole.find(word, 0, end)
            if at >= 0:
                end = whole.rfind(b"\n\n", 0, at) + 2
        if end < _BLANK_LINE:
            return chunk
        self.position += end
        if pending:
            pending.clear()
            self.clean = True
        return whole[end:]

    def feed(self, chunk: bytes) -> list[bytes]:
        """Take the next bytes of the body, cut anywhere, and return the events that are complete now.

        Where one that is too long follows others, the others are returned, and the next call raises.

        Raises:
            InvalidStream: The next event is longer than allowed.
        """
        events: list[bytes] = []
        self.starts = []
        try:
            self._bound(0)
            self._any_line_ends = self._any_line_ends or chunk.find(b"\r") >= 0
            if self._any_line_ends or chunk.startswith(b"\n") or chunk.find(b"\n\n\n") >= 0:
                self._cut_at_any(chunk, events)
            else:
                self._cut_at_lf(chunk, events)
        except InvalidStream:
            if not events:
                raise
        finally:
            self.clean = not (self._pending or self._any_line_ends)
        return events

    def finish(self) -> list[bytes]:
        """Take note that the body has ended; returns the last event, if its blank line is missing."""
        events: list[bytes] = []
        self.starts = []
        rest = bytes(self._pending)
        self._pending.clear()
        self._take(rest, events)
        self.position += len(rest)
        return events

    def _cut_at_lf(self, chunk: bytes, events: list[bytes]) -> None:
        """The hot path: every line ends with a line feed, and no event with more than one blank line."""
        pending = self._pending
        if pending:
            unfinished = chunk.find(b"\n\n") < 0
            pending += chunk
            if unfinished:
                self._compact()
                return
            chunk = bytes(pending)
            pending.clear()
        blocks = chunk.split(b"\n\n")
        pending += blocks.pop()
        if len(chunk) <= self._max_event_bytes and (self.position or not chunk.startswith(_BOM)):
            # All at once, and no Python for any of them: there are hundreds of events in a chunk.
            events += blocks
            ends = map(add, accumulate(map(len, blocks), initial=self.position), count(0, _BLANK_LINE))
            *self.starts, self.position = ends
            return
        for block in blocks:
            self._take(block, events)
            self.position += len(block) + _BLANK_LINE
        self._bound(len(self._pending) - _LONGEST_LINE_ENDS)

    def _cut_at_any(self, chunk: bytes, events: list[bytes]) -> None:
        """Any line ends, after any chunk. Only new bytes are searched, so that tiny chunks stay linear in time."""
        pending = self._pending
        if not pending:
            size = len(chunk)
            chunk = chunk.lstrip(_LINE_ENDS)
            self.position += size - len(chunk)
        searched, start = max(0, len(pending) - 2), 0
        pending += chunk
        while blank_lines := _BLANK_LINES.search(pending, max(start, searched)):
            self._take(bytes(pending[start : blank_lines.start()]), events)
            self.position += blank_lines.end() - start
            start = blank_lines.end()
        del pending[:start]
        self._compact()

    def _take(self, block: bytes, events: list[bytes]) -> None:
        self._bound(len(block))
        if not self.position:
            block = block.removeprefix(_BOM)
        if block:
            events.append(block)
            self.starts.append(self.position)

    def _compact(self) -> None:
        """Drop lines that say nothing, should an event have very many of them, and bound what is left."""
        pending = self._pending
        if len(pending) > self._compact_at:
            if not self.position:
                del pending[: len(_BOM) if pending.startswith(_BOM) else 0]
            size = len(pending)
            pending[:] = _SAYS_NOTHING.sub(b"", pending)
            self.position += size - len(pending)
            self._compact_at = max(_COMPACT_AT, 2 * len(pending))
        self._bound(len(pending) - _LONGEST_LINE_ENDS)

    def _bound(self, size: int) -> None:
        self._too_long = self._too_long or size > self._max_event_bytes
        if self._too_long:
            self._pending.clear()
            raise InvalidStream(f"an event is longer than {self._max_event_bytes} bytes", position=self.position)
