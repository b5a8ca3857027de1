"""What has come of a stream: its events in order, and what is read off them at once.

The rule here: events are received once and kept as they came. Only their names are looked at: pings are dropped, an
error or the last event ends the stream, and what tells of usage is remembered until it is asked for.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final, cast

from penstock._core.body.scanner import brings_content
from penstock._core.body.sse import Splitter, data_of, decode, field_of, name_of
from penstock._core.usage import Usage
from penstock.errors import InvalidStream
from penstock.streaming.failure import ended_early, error_of_event

if TYPE_CHECKING:
    from collections.abc import Callable

    import httpx2

__all__ = ["DELTA", "Inbox"]

DELTA: Final = b"event: content_block_delta\ndata: "
"""How a delta begins."""


class Inbox:
    """Receives one stream.

    Args:
        response: The answer that it is the body of.
        for_an_hour: Tells whether the request asked the prompt cache to keep what it writes for an hour.

    Attributes:
        events: What was received and not yet taken, oldest last, for `pop`; more is received only when there is none.
        splitter: Cuts the bytes into events.
        over: Whether nothing more will come.
        begun: Whether content has come.
        complete: Whether the last event has come.
        cause: What has ended the stream otherwise.
    """

    __slots__ = (
        "_for_an_hour",
        "_notes",
        "_response",
        "_started",
        "_stop_reason",
        "_usage",
        "begun",
        "cause",
        "complete",
        "events",
        "over",
        "splitter",
    )

    def __init__(self, response: httpx2.Response, *, for_an_hour: Callable[[], bool] = bool) -> None:
        self.events: list[bytes] = []
        self.splitter = Splitter()
        self.over = False
        self.begun = False
        self.complete = False
        self.cause: Exception | None = None
        self._response = response
        self._notes: list[bytes] = []
        self._for_an_hour = for_an_hour
        self._started = False
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
                if self.begun and raw.startswith(DELTA):
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

    def _receive_other(self, raw: bytes) -> None:
        name = name_of(raw)
        if name == "error":
            event = decode(raw)
            self.end(error_of_event("" if event is None else event.data, self._response))
        elif name not in {"ping", ""}:
            # One that can't be decoded ends it here, as it does for a scanner.
            self.begun = self.begun or brings_content(name, data_of(raw))
            if name in {"message_start", "message_delta"}:
                self._notes.append(raw)
            self.events.append(raw)
            self._started = self._started or name == "message_start"
            if name == "message_stop":
                self._end_whole()

    def _end_whole(self) -> None:
        if self._started:
            self.complete = self.over = True
        else:
            self.end(InvalidStream("it does not begin with message_start", position=0))

    def _take_notes(self) -> None:
        notes, self._notes = self._notes, []
        for raw in notes:
            # One that can't be decoded is told of where it is taken.
            with contextlib.suppress(InvalidStream):
                data = data_of(raw)
                usage = field_of(data, "usage") or field_of(field_of(data, "message"), "usage")
                if isinstance(usage, Mapping):
                    counts = cast("Mapping[str, object]", usage)
                    self._usage = self._usage.updated(counts, for_an_hour=self._for_an_hour)
                reason = field_of(field_of(data, "delta"), "stop_reason")
                self._stop_reason = reason if isinstance(reason, str) else self._stop_reason
