"""What has come of a stream: its events in order, and what is read off them at once.

The rule here: events are received once and kept as they came. Only their names are looked at: pings are dropped, an
error or the last event ends the stream, and what tells of usage is remembered until it is asked for.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final, cast

from penstock._core.usage import Usage
from penstock.errors import InvalidStream
from penstock.streaming.failure import ended_early, error_of_event
from penstock.streaming.split import Splitter, data_of, name_of, text_of

if TYPE_CHECKING:
    import httpx2

    from penstock.streaming.split import Raw

__all__ = ["DELTA", "Inbox"]

DELTA: Final = b"event: content_block_delta\ndata: "
"""How a delta begins."""


class Inbox:
    """Receives one stream.

    Args:
        response: The answer that it is the body of.

    Attributes:
        events: What was received and not yet taken, oldest last, for `pop`; more is received only when there is none.
        splitter: Cuts the bytes into events.
        over: Whether nothing more will come.
        complete: Whether the last event has come.
        cause: What has ended the stream otherwise.
    """

    __slots__ = ("_notes", "_response", "_stop_reason", "_usage", "cause", "complete", "events", "over", "splitter")

    def __init__(self, response: httpx2.Response) -> None:
        self.events: list[Raw] = []
        self.splitter = Splitter()
        self.over = False
        self.complete = False
        self.cause: Exception | None = None
        self._response = response
        self._notes: list[Raw] = []
        self._usage = Usage()
        self._stop_reason: str | None = None

    def __repr__(self) -> str:
        return f"<Inbox {len(self.events)} events, {'over' if self.over else 'open'}, complete={self.complete}>"

    @property
    def usage(self) -> Usage:
        """Tokens as far as they are known."""
        self._take_notes()
        return self._usage

    @property
    def stop_reason(self) -> str | None:
        """As the API gave it."""
        self._take_notes()
        return self._stop_reason

    def receive(self, chunk: bytes | None) -> None:
        """Take the next bytes of the body; `None` is its end."""
        events = self.events
        try:
            for raw in self.splitter.finish() if chunk is None else self.splitter.feed(chunk):
                if isinstance(raw, bytes) and raw.startswith(DELTA):
                    events.append(raw)
                    continue
                self._receive_other(raw)
                if self.over:
                    return
        except InvalidStream as error:
            self.end(error)
        finally:
            events.reverse()
        if chunk is None:
            self.end(ended_early(self._response))

    def end(self, cause: Exception) -> None:
        """Note that nothing more will come; what came is still to be taken."""
        if not (self.complete or self.over):
            self.cause = cause
        self.over = True

    def _receive_other(self, raw: Raw) -> None:
        name = name_of(raw)
        if name == "message":
            # Without a name, the SDK skips an event; some proxies drop the names, but the data has them too.
            name = _type_in(raw)
        if name == "error":
            self.end(error_of_event(text_of(raw), self._response))
        elif name not in {"ping", ""}:
            self.complete = self.complete or name == "message_stop"
            if name in {"message_start", "message_delta"}:
                self._notes.append(raw)
            self.events.append(raw)

    def _take_notes(self) -> None:
        notes, self._notes = self._notes, []
        for raw in notes:
            # One that can't be decoded is told of where it is taken.
            with contextlib.suppress(InvalidStream):
                data = data_of(raw)
                usage = _field(data, "usage") or _field(_field(data, "message"), "usage")
                if isinstance(usage, Mapping):
                    self._usage = self._usage.updated(cast("Mapping[str, object]", usage))
                reason = _field(_field(data, "delta"), "stop_reason")
                self._stop_reason = reason if isinstance(reason, str) else self._stop_reason


def _type_in(raw: Raw) -> str:
    with contextlib.suppress(InvalidStream):
        kind = _field(data_of(raw), "type")
        return kind if isinstance(kind, str) else ""
    return ""


def _field(value: object, name: str) -> object:
    return cast("Mapping[str, object]", value).get(name) if isinstance(value, Mapping) else None
