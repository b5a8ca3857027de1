"""What a response body tells about itself as it flows by: usage, stop reason, whether it is whole, an error inside it.

The rule here: look, never hold up. A chunk costs a few substring searches; only the first event and the last ones are
ever decoded, because `message_delta` usage is cumulative. Nothing here raises on any bytes: what can't be understood is
left unknown.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Protocol, cast

from pydantic_core import from_json

from penstock.core.failure import Failure, failure_of_error_event
from penstock.core.sse import ServerSentEvent, SSEDecoder
from penstock.core.usage import Usage
from penstock.errors import InvalidStream

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["JSONScanner", "Scanner", "StreamScanner"]

_LARGEST_JSON = 32 * 1024 * 1024
_OVERLAP = 32
_MESSAGE = b"event: message_"
_START = b"event: message_start"
_ERROR = b"event: error"
_CONTINUATION = bytes(range(0x80, 0xC0))
_CONTENT = (b'"text_delta"', b'"input_json_delta"', b'"thinking_delta"', b'"compaction_delta"')


class Scanner(Protocol):
    """Watches one body.

    Attributes:
        usage: Tokens as far as known; `None` before any were seen.
        stop_reason: As the API gave it.
        has_content: Whether a stream's first content went by.
        complete: Whether the body said that it is whole.
        failure: The error that a stream reported inside an HTTP 200.
    """

    usage: Usage | None
    stop_reason: str | None
    has_content: bool
    complete: bool
    failure: Failure | None

    def see(self, chunk: bytes) -> None:
        """Look at the next bytes of the body, decoded from any content encoding."""

    def finish(self) -> None:
        """Take in what was seen; called once, at the end, however the body ended."""


class JSONScanner:
    """Watches a body that is one JSON message."""

    __slots__ = ("_body", "_size", "complete", "failure", "has_content", "stop_reason", "usage")

    def __init__(self) -> None:
        self.usage: Usage | None = None
        self.stop_reason: str | None = None
        self.has_content = False
        self.complete = False
        self.failure: Failure | None = None
        self._body: list[bytes] = []
        self._size = 0

    def see(self, chunk: bytes) -> None:
        """Keep the bytes, up to the largest message the API sends."""
        self._size += len(chunk)
        if self._size <= _LARGEST_JSON:
            self._body.append(chunk)

    def finish(self) -> None:
        """Decode the message."""
        try:
            message: object = from_json(b"".join(self._body))
        except ValueError:
            return
        if isinstance(message, dict):
            self.complete = True
            self._take(cast("Mapping[str, object]", message))

    def _take(self, message: Mapping[str, object]) -> None:
        usage, stop_reason = message.get("usage"), message.get("stop_reason")
        if isinstance(usage, dict):
            self.usage = Usage.from_mapping(cast("Mapping[str, object]", usage))
        if isinstance(stop_reason, str):
            self.stop_reason = stop_reason


class StreamScanner:
    """Watches a body of server-sent events of the Messages API."""

    __slots__ = ("_head", "_kept", "_overlap", "complete", "failure", "has_content", "stop_reason", "usage")

    def __init__(self) -> None:
        self.usage: Usage | None = None
        self.stop_reason: str | None = None
        self.has_content = False
        self.complete = False
        self.failure: Failure | None = None
        self._head: SSEDecoder | None = SSEDecoder()
        self._kept: list[bytes] | None = None
        self._overlap = b""

    def see(self, chunk: bytes) -> None:
        """Look for the start, the first content, and what the end is told by."""
        if self._head is not None:
            self._see_head(chunk)
        # The overlap finds a mark that two chunks share. The names of events can't occur as lines in data, where line
        # breaks are escaped, but their words can: then more is kept than needed, and decoding sorts it out.
        probe = self._overlap + chunk if self._overlap else chunk
        if not self.has_content:
            self.has_content = any(mark in probe for mark in _CONTENT)
        if self._kept is not None:
            self._kept.append(chunk)
            return
        at = _last_events_in(probe)
        if at >= 0:
            self._kept = [probe[at:]]
        elif probe.endswith(b"\n\n"):
            self._overlap = b""
        else:
            # Never from the middle of a character, or it would be no valid text.
            self._overlap = probe[-_OVERLAP:].lstrip(_CONTINUATION)

    def _see_head(self, chunk: bytes) -> None:
        """Decode one event after the other up to the first that counts: the chunk may be the whole stream."""
        while chunk and self._head is not None:
            end = chunk.find(b"\n\n") + 2
            first, chunk = (chunk, b"") if end < 2 else (chunk[:end], chunk[end:])
            try:
                events = self._head.feed(first)
            except InvalidStream:
                events, self._head = [], None
            for event in events:
                self._take(event)
                if event.name == "message_start":
                    self._head = None

    def finish(self) -> None:
        """Decode the last events."""
        if self._kept is None:
            return
        decoder = SSEDecoder()
        with contextlib.suppress(InvalidStream):
            for event in decoder.feed(b"".join(self._kept)):
                self._take(event)
            for event in decoder.finish():
                self._take(event)

    def _take(self, event: ServerSentEvent) -> None:
        if event.name not in {"message_start", "message_delta", "message_stop", "error"}:
            return
        try:
            data = event.json()
        except InvalidStream:
            return
        if event.name == "message_stop":
            self.complete = True
        elif event.name == "error":
            self.failure = failure_of_error_event(data)
        elif event.name == "message_start":
            self._count(_field(data.get("message"), "usage"))
        else:
            self._count(data.get("usage"))
            reason = _field(data.get("delta"), "stop_reason")
            if isinstance(reason, str):
                self.stop_reason = reason

    def _count(self, usage: object) -> None:
        if isinstance(usage, dict):
            self.usage = (self.usage or Usage()).updated(cast("Mapping[str, object]", usage))


def _last_events_in(probe: bytes) -> int:
    """Return where the first event begins that tells of the end; -1 if there is none."""
    at = probe.find(_MESSAGE)
    if at >= 0 and probe.startswith(_START, at):
        at = probe.find(_MESSAGE, at + 1)
    if at > len(probe) - len(_START):
        # Its name is not all there; it is in the overlap.
        at = -1
    error = probe.find(_ERROR) if at < 0 else probe.find(_ERROR, 0, at)
    return at if error < 0 else error


def _field(value: object, name: str) -> object:
    return cast("Mapping[str, object]", value).get(name) if isinstance(value, dict) else None
