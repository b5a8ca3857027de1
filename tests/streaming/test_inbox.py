from __future__ import annotations

from typing import Any

import anthropic
import httpx2

from penstock._core.body.sse import name_of
from penstock._core.usage import Usage
from penstock.errors import InvalidStream
from penstock.streaming.inbox import Inbox


def test_it_keeps_events_in_order_and_drops_pings(wire: Any) -> None:
    """What is received is what was sent, but for pings; the last event completes it, the end of the body ends it."""
    inbox = Inbox(wire.response())
    assert repr(inbox) == "<Inbox 0 events, open, complete=False>"
    inbox.receive(wire.sse(*wire.recorded))
    names = [event["type"] for event in wire.recorded if event["type"] != "ping"]
    assert [name_of(raw) for raw in reversed(inbox.events)] == names
    assert (inbox.complete, inbox.over, inbox.cause) == (True, True, None)
    inbox.receive(None)
    assert (inbox.complete, inbox.over, inbox.cause) == (True, True, None)


def test_an_early_end_has_a_cause(wire: Any) -> None:
    """The first cause stays; a last event without its blank line counts."""
    inbox = Inbox(wire.response())
    inbox.receive(wire.sse(wire.start()))
    inbox.receive(None)
    assert isinstance(inbox.cause, anthropic.APIConnectionError)
    inbox.end(httpx2.ReadError("later"))
    assert isinstance(inbox.cause, anthropic.APIConnectionError)
    inbox = Inbox(wire.response())
    inbox.receive(wire.sse(wire.start(), *wire.end())[:-2])
    inbox.receive(None)
    assert (inbox.complete, inbox.cause) == (True, None)


def test_nothing_after_an_error_counts(wire: Any) -> None:
    """An error ends the stream, in the middle of a chunk too."""
    inbox = Inbox(wire.response())
    inbox.receive(wire.sse(wire.start(), {"type": "error", "error": {"type": "api_error"}}, *wire.text(0, "never")))
    assert len(inbox.events) == 1
    assert inbox.over
    assert isinstance(inbox.cause, anthropic.APIStatusError)


def test_invalid_bytes_end_it(wire: Any) -> None:
    """What came before them stays."""
    inbox = Inbox(wire.response())
    inbox.receive(wire.sse(wire.start()) + b"event: x\r\ndata: \xff\r\n\r\n")
    assert (len(inbox.events), inbox.over) == (1, True)
    assert isinstance(inbox.cause, InvalidStream)


def test_usage_is_read_only_where_it_stands(wire: Any) -> None:
    """From the start and the end; what can't be decoded there, or is none, changes nothing."""
    inbox = Inbox(wire.response())
    assert (inbox.usage, inbox.stop_reason) == (Usage(), None)
    inbox.receive(wire.sse(wire.start()))
    assert inbox.usage.input_tokens == 25
    inbox.receive(b"event: message_delta\ndata: {\n\n" + wire.sse({"type": "message_delta", "usage": 1, "delta": 2}))
    inbox.receive(b"event: message_delta\n\n")
    assert inbox.usage.output_tokens == 1
    inbox.receive(wire.sse(*wire.end("max_tokens")))
    assert (inbox.usage.output_tokens, inbox.stop_reason) == (15, "max_tokens")
