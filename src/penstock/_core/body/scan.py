"""What a response body tells about itself as it flows by: usage, stop reason, whether it is whole, an error inside it.

The rule here: look, never hold up. A chunk costs a few substring searches; only the first event and the last ones are
ever decoded, because `message_delta` usage is cumulative. Nothing here raises on any bytes: what can't be understood is
left unknown.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Protocol, cast

from pydantic_core import from_json

from penstock._core.body.sse import ServerSentEvent, SSEDecoder, two_lines
from penstock._core.failure import Failure, failure_of_error_event
from penstock._core.usage import Usage
from penstock.errors import InvalidStream

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["JSONScanner", "Scanner", "StreamScanner"]

_LARGEST_JSON = 32 * 1024 * 1024
_OVERLAP = 32
_LONGEST_START = 64 * 1024
_MESSAGE = b"event: message_"
_START = b"event: message_start"
_ERROR = b"event: error"
_CONTINUATION = bytes(range(0x80, 0xC0))
# What all of the next have in common.
_DELTA = b'_delta"'
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

    __slots__ = (
        "_has_start",
        "_kept",
        "_overlap",
        "_start",
        "complete",
        "failure",
        "has_content",
        "stop_reason",
        "usage",
    )

    def __init__(self) -> None:
        self.usage: Usage | None = None
        self.stop_reason: str | None = None
        self.has_content = False
        self.complete = False
        self.failure: Failure | None = None
        self._start = b""
        self._has_start = False
        self._kept: list[bytes] | None = None
        self._overlap = b""

    def see(self, chunk: bytes) -> None:
        """Look for the start, the first content, and what the end is told by."""
        # The overlap finds a mark that two chunks share. The names of events can't occur as lines in data, where line
        # breaks are escaped, but their words can: then more is kept than needed, and decoding sorts it out.
        probe = self._overlap + chunk if self._overlap else chunk
        if not self.has_content:
            self.has_content = _DELTA in probe and any(mark in probe for mark in _CONTENT)
            if not self._has_start:
                self._see_start(chunk)
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

    def _see_start(self, chunk: bytes) -> None:
        """Look at the bytes up to the end of the first event that counts: the chunk may be the whole stream."""
        start = self._start + chunk if self._start else chunk
        end = start.find(b"\n\n") + 2 if start.startswith(_START) else 0
        # Where something comes before it, or lines end otherwise, its end isn't looked for; content comes after it.
        if end >= 2 or self.has_content or len(start) > _LONGEST_START:
            self._has_start = True
            # Decoded at once, because what it tells is small, and thousands of streams are open at once.
            self._take_start(start[: end if end >= 2 else _LONGEST_START])
            start = b""
        self._start = start

    def _take_start(self, start: bytes) -> None:
        for event in _events_in(start):
            if event.name == "message_start":
                self._take(event)
                break

    def finish(self) -> None:
        """Decode the last events."""
        self._take_start(self._start)
        if self._kept is not None:
            for event in _events_in(b"".join(self._kept)):
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


def _events_in(body: bytes) -> Iterator[ServerSentEvent]:
    """Decode what was kept of a stream, up to the first event that can't be."""
    plain = [two_lines(block) for block in body.removesuffix(b"\n\n").split(b"\n\n")]
    if all(plain):
        for name, data in cast("list[tuple[bytes, bytes]]", plain):
            yield ServerSentEvent(name.decode(errors="replace"), data.decode(errors="replace"))
        return
    decoder = SSEDecoder()
    with contextlib.suppress(InvalidStream):
        yield from decoder.feed(body)
        yield from decoder.finish()


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
