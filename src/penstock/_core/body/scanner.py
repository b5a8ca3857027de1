"""What an answer tells about itself as it goes by: usage, stop reason, whether it has begun, is whole, or has failed.

The rule here: look, never hold up, and raise on no bytes. This is the only place that says what "begun", "complete" and
"failed" mean, for event streams, AWS frames and documents alike; retry, breaker, time to first token and
`StreamInterrupted` ask here.

An answer has *begun* once content has come: text, tool input or thinking that isn't empty, a block that arrives whole,
or what comes after all blocks. Starts of blocks, pings and signatures are none; what isn't known to be none counts as
content. It is *complete* with the `message_stop` of what a `message_start` began, or as a document that is a message.
It has *failed* with an `error`, or as a document that is none.

Up to its beginning every event of a stream is decoded. From then on nearly all are plain deltas, and a chunk costs two
searches: every event that matters has one of two words in it, however it is spelled, because JSON strings can't be
broken. The words may stand in a text as well: then the events from there on are looked at, and their names tell.

How much was written is asked only of an answer that did not come to its end. So what goes by is kept for a while, not
looked at; now and then it is replaced by its length times what a few of its bytes are for: drawn evenly by bytes, long
events as often as they weigh, so that the estimate leans to neither side.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final, cast

from pydantic import BaseModel
from pydantic_core import from_json

from penstock._core.body.sse import Splitter, data_of, decode, field_of, name_of
from penstock._core.failure import Failure, FailureKind, failure_of_error_event, failure_of_exception
from penstock._core.usage import Usage
from penstock.errors import InvalidStream

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["NOT_A_MESSAGE", "NOT_A_STREAM", "Scanner", "brings_content", "is_message", "written_in"]

NOT_A_MESSAGE: Final = Failure(kind=FailureKind.INVALID, error_type="NotAMessage")
"""The failure of an answer that is a document, but neither a message nor an error."""
NOT_A_STREAM: Final = Failure(kind=FailureKind.INVALID, error_type="NotAStream", should_retry=False)
"""The failure of a whole message where a stream was asked for: who doesn't stream won't stream the next time."""
_NO_START: Final = Failure(kind=FailureKind.INVALID, error_type="NoMessageStart")

_MOST_UNDECIDED: Final = 1024 * 1024
# Few bytes, because the rest of a chunk may be the whole answer, and need not be split.
_AT_ONCE: Final = 1024
_MESSAGE: Final = b"message_"
_ERROR: Final = b"error"
_DOCUMENTS: Final = (b"{", b"[", b"<")
_CONTENT: Final = b"content_block"
_EVENT_END: Final = re.compile(rb"\n\n|\r\r|\r\n\r\n")
_LEAST_BYTES: Final = 32 * 1024
_LOOKED_AT: Final = 24
_BOM: Final = b"\xef\xbb\xbf"
_BLANK: Final = _BOM + b" \t\r\n"
# What comes in deltas: the field that holds it. Anything else comes whole, and so is content as soon as it comes.
_FIELD_OF_BLOCK: Final = {"text": "text", "thinking": "thinking"}
_FIELD_OF_DELTA: Final = {"text_delta": "text", "input_json_delta": "partial_json", "thinking_delta": "thinking"}
_EMPTY_BLOCKS: Final = frozenset({"tool_use", "server_tool_use", "mcp_tool_use", "compaction"})


def brings_content(name: str, data: object) -> bool:
    """Return whether an event brings content, so that the answer has begun.

    Args:
        name: What the event is.
        data: Its data, decoded.

    Example:
        >>> brings_content("content_block_delta", {"delta": {"type": "text_delta", "text": ""}})
        False
    """
    if name == "content_block_delta":
        return _is_content(field_of(data, "delta"), _FIELD_OF_DELTA, frozenset({"signature_delta"}))
    if name == "content_block_start":
        return _is_content(field_of(data, "content_block"), _FIELD_OF_BLOCK, _EMPTY_BLOCKS)
    return name in {"message_delta", "message_stop"}


def _is_content(part: object, field_of_kind: Mapping[str, str], empty: frozenset[str]) -> bool:
    kind = str(field_of(part, "type"))
    if not part or kind in empty:
        return False
    name = field_of_kind.get(kind)
    return name is None or bool(field_of(part, name))


def written_in(name: str, data: object) -> int:
    """Return how many characters of text, thinking or tool input an event brings.

    Example:
        >>> written_in("content_block_delta", {"delta": {"type": "text_delta", "text": "Hello"}})
        5
    """
    if name == "content_block_delta":
        part, field_of_kind = field_of(data, "delta"), _FIELD_OF_DELTA
    elif name == "content_block_start":
        part, field_of_kind = field_of(data, "content_block"), _FIELD_OF_BLOCK
    else:
        return 0
    text = field_of(part, field_of_kind.get(str(field_of(part, "type")), ""))
    return len(text) if isinstance(text, str) else 0


def is_message(value: object) -> bool:
    """Return whether a document is a message: an object with a list of blocks as its content, and of no other type.

    Example:
        >>> is_message({"type": "message", "content": []}), is_message({"choices": []}), is_message({"content": None})
        (True, False, False)
    """
    content = field_of(value, "content")
    if field_of(value, "type") not in {"message", None} or not isinstance(content, list):
        return False
    return all(isinstance(block, Mapping | BaseModel) for block in cast("list[object]", content))


def _decoded(body: bytes) -> object:
    try:
        return from_json(body)
    except ValueError:
        # Half a character ("\ud83d" alone) is valid JSON to the SDK, and so to us.
        return json.loads(body)


class Scanner:
    r"""Watches one answer.

    Args:
        stream: Whether an event stream is expected. What begins like a document is taken for one all the same.
        writes_for_an_hour: Tells whether the request asked the prompt cache to keep what it writes for an hour.

    Attributes:
        usage: Tokens as far as known; `None` before any were seen.
        stop_reason: As the API gave it.
        begun: Whether content has come.
        complete: Whether the answer said that it is whole.
        failure: How it failed; `None` if it has not.
        over: Whether nothing that comes after counts: the last event has come, or an error.
        error: Set if the bytes are no valid event stream.
        document: What a document says, once finished, or the event by which a stream failed; `None` if it isn't JSON.
        unheard: Whether the event by which it failed has no name, so that the SDK's own reader passes it over.
        trailing: How many of the bytes seen last come after the end.

    Example:
        >>> scanner = Scanner()
        >>> scanner.see(b'data:{"type":"ping"}\n\n')
        >>> scanner.begun
        False
        >>> scanner.see(b'data:{"type":"error","error":{"type":"overloaded_error"}}\n\n')
        >>> scanner.over, scanner.failure.kind.value
        (True, 'overloaded')
    """

    __slots__ = (
        "_bytes",
        "_hour",
        "_parts",
        "_passed",
        "_splitter",
        "_started",
        "_stream",
        "_written",
        "begun",
        "complete",
        "document",
        "error",
        "failure",
        "over",
        "stop_reason",
        "trailing",
        "unheard",
        "usage",
    )

    def __init__(self, *, stream: bool = True, writes_for_an_hour: Callable[[], bool] = bool) -> None:
        self.usage: Usage | None = None
        self.stop_reason: str | None = None
        self.begun = False
        self.complete = False
        self.failure: Failure | None = None
        self.over = False
        self.error: InvalidStream | None = None
        self.document: object = None
        self.unheard = False
        self.trailing = 0
        self._started = False
        self._stream = stream
        self._hour = writes_for_an_hour
        self._bytes = 0
        self._splitter = Splitter()
        self._parts: list[bytes] | None = None if stream else []
        self._passed = bytearray()
        self._written = 0.0

    @property
    def is_document(self) -> bool:
        """Whether it is no stream of events."""
        return self._parts is not None

    def see(self, chunk: bytes) -> None:
        """Look at the next bytes, decoded from any content encoding."""
        if self.over:
            self.trailing = len(chunk)
        elif self._parts is not None:
            self._parts.append(chunk)
        elif self.begun:
            self._passed += chunk
            # The hot path: whole events, and none that matters. `pass_over` says the same of parts.
            plain = self._splitter.clean and chunk.endswith(b"\n\n") and chunk.find(_MESSAGE) < 0
            if not plain or chunk.find(_ERROR) >= 0:
                self._see_more(chunk)
        else:
            self._see_beginning(chunk)

    @property
    def written(self) -> float:
        """Characters of text, thinking and tool input that came; 0 where the last count of tokens has come.

        Exact up to about thirty kilobytes of a stream, an estimate beyond.
        """
        return 0.0 if self.stop_reason is not None else self._written + _written_in_bytes(bytes(self._passed))

    def settle(self) -> None:
        """Keep little of what has gone by; called after some chunks, or some kilobytes."""
        passed = self._passed
        if len(passed) >= _LEAST_BYTES:
            self._written += _about_written(bytes(passed))
            passed.clear()
            return
        # What says nothing goes at once, but for its end, which may begin something.
        last = passed.rfind(_CONTENT)
        after = _EVENT_END.search(passed, last) if last >= 0 else None
        if last < 0 or after is not None:
            start = 0 if after is None else after.end()
            del passed[start : max(passed.rfind(b"\n"), passed.rfind(b"\r"), start - 1) + 1]

    def forget(self) -> None:
        """Keep nothing of what has gone by: how much was written is not asked any more."""
        self._passed.clear()

    def finish(self) -> None:
        """Take note that the body has come to its own end."""
        if self.over:
            return
        if self._parts is not None:
            self._take_document(b"".join(self._parts))
            self._parts = []
            self.over = self.complete or self.failure is not None
            return
        # An event that the end has cut off is none.
        with contextlib.suppress(InvalidStream):
            for raw in self._splitter.finish():
                self._take_raw(raw)

    # A stream

    def _see_beginning(self, chunk: bytes) -> None:
        if not self._bytes:
            text = chunk.lstrip(_BLANK)
            if text.startswith(_DOCUMENTS):
                self._parts = [chunk]
                return
            self._bytes = len(text)
        else:
            self._bytes += len(chunk)
        self._passed += chunk
        for start in range(0, len(chunk), _AT_ONCE):
            if self.begun:
                self._see_more(chunk[start:])
                return
            end = start + _AT_ONCE
            self._feed(chunk[start:end])
            if self._bytes > _MOST_UNDECIDED:
                self.begun = True
            if self.over:
                self.trailing += max(len(chunk) - end, 0)
                return

    def _see_more(self, chunk: bytes) -> None:
        if rest := self._splitter.pass_over(chunk, (_MESSAGE, _ERROR)):
            self._feed(rest)

    def _feed(self, chunk: bytes) -> None:
        splitter = self._splitter
        try:
            events = splitter.feed(chunk)
        except InvalidStream as error:
            self._fail(error)
            return
        for number, raw in enumerate(events):
            if self.begun and raw.find(_MESSAGE) < 0 and raw.find(_ERROR) < 0:
                continue
            try:
                self._take_raw(raw)
            except InvalidStream as error:
                self._fail(InvalidStream(error.reason, position=splitter.starts[number]))
            if self.over:
                later = splitter.starts[number + 1 :]
                end = later[0] if later else splitter.position
                self.trailing = splitter.position + splitter.pending_bytes - end
                return

    def _take_raw(self, raw: bytes) -> None:
        name = name_of(raw)
        if name in {"ping", ""}:
            return
        try:
            data = data_of(raw)
        except InvalidStream:
            # An error that says nothing is an error still.
            if name != "error":
                raise
            data = None
        self.take(name, data)
        if self.failure is not None:
            event = decode(raw)
            self.unheard = event is not None and event.name == "message"

    def _fail(self, error: InvalidStream) -> None:
        # Once the answer has begun, its reader is told when he comes to it.
        if not self.begun:
            self.error, self.failure, self.over = error, failure_of_exception(error), True

    def take(self, name: str, data: object) -> None:
        """Take in an event that is decoded."""
        self.begun = self.begun or brings_content(name, data)
        if name == "error":
            self.failure, self.document = failure_of_error_event(data), data
        elif name == "message_start":
            self._started = True
            self._count(field_of(field_of(data, "message"), "usage"))
        elif name == "message_delta":
            self._count(field_of(data, "usage"))
            reason = field_of(field_of(data, "delta"), "stop_reason")
            self.stop_reason = reason if isinstance(reason, str) else self.stop_reason
        elif name == "message_stop":
            self.complete = self._started
            self.forget()
            self.failure = None if self._started else _NO_START
        self.over = self.complete or self.failure is not None

    def _count(self, usage: object) -> None:
        if isinstance(usage, dict):
            before = self.usage or Usage()
            self.usage = before.updated(cast("Mapping[str, object]", usage), for_an_hour=self._hour)

    # A document

    def _take_document(self, body: bytes) -> None:
        try:
            self.document = _decoded(body.removeprefix(_BOM))
        except (ValueError, RecursionError):
            self.failure = NOT_A_MESSAGE
            return
        self._count(field_of(self.document, "usage"))
        reason = field_of(self.document, "stop_reason")
        self.stop_reason = reason if isinstance(reason, str) else None
        if is_message(self.document):
            self.complete = not self._stream
            self.failure = NOT_A_STREAM if self._stream else None
        elif field_of(self.document, "error") is not None or field_of(self.document, "type") == "error":
            self.failure = failure_of_error_event(self.document)
        else:
            self.failure = NOT_A_MESSAGE


# How much was written


def _written_in_bytes(stream: bytes) -> int:
    """Return how many characters came in events; those that are cut off or can't be decoded bring none."""
    splitter, written = Splitter(), 0
    with contextlib.suppress(InvalidStream):
        for raw in splitter.feed(stream):
            written += _written_in_event(raw)
    return written


def _written_in_event(raw: bytes) -> int:
    try:
        return written_in(name_of(raw), data_of(raw))
    except InvalidStream:
        return 0


def _about_written(stream: bytes) -> float:
    """Return about how many characters came: the length, times the mean share of text in events drawn by bytes."""
    if stream.find(b"\n\n") < 0:
        # Other line ends.
        return _written_in_bytes(stream)
    share = 0.0
    for number in range(_LOOKED_AT):
        start = stream.rfind(b"\n\n", 0, len(stream) * (2 * number + 1) // (2 * _LOOKED_AT)) + 2
        end = stream.find(b"\n\n", start)
        # What is cut off at either end counts as nothing: it is little, or so long that it is no text.
        if start >= len(b"\n\n") and end >= 0:
            share += _written_in_event(stream[start:end]) / (end + 2 - start)
    return len(stream) * share / _LOOKED_AT
