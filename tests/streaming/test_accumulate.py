from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, get_args

import anthropic
import pytest
from anthropic import AsyncStream
from anthropic.lib.streaming import AsyncMessageStream, BetaMessageStream, MessageStream
from anthropic.types import RawMessageStreamEvent
from anthropic.types.beta import BetaRawMessageStreamEvent

from penstock.errors import InvalidStream
from penstock.streaming.accumulate import Accumulator, Run, merged, run_of

if TYPE_CHECKING:
    from collections.abc import Iterator

SDK = anthropic.AsyncAnthropic(api_key="sk-ant-test")


def test_the_sdks_helpers_are_made_as_ever() -> None:
    """Canary: the accumulator makes them of a stream and an output format, and feeds them by iteration."""
    for helper in (MessageStream, BetaMessageStream, AsyncMessageStream):
        assert list(inspect.signature(helper).parameters) == ["raw_stream", "output_format"]
    source = inspect.getsource(MessageStream.__stream__)
    assert "in self._raw_stream" in source


def test_the_sdks_stream_makes_its_events_as_ever() -> None:
    """Canary: the accumulator makes each event of its data by the same method with the same arguments."""
    assert "process_data(data=sse.json(), cast_to=cast_to, response=response)" in inspect.getsource(
        AsyncStream.__stream__
    )
    parameters = inspect.signature(SDK._process_response_data).parameters
    assert list(parameters) == ["data", "cast_to", "response"]
    for union in (RawMessageStreamEvent, BetaRawMessageStreamEvent):
        kinds = {get_args(kind.model_fields["type"].annotation)[0] for kind in get_args(get_args(union)[0])}
        assert {"message_start", "content_block_delta", "message_stop"} < kinds


def test_events_go_through_one_by_one(wire: Any) -> None:
    """Each event gives what belongs to it at once, before and after the start; the mark stays inside."""
    accumulator = Accumulator(SDK, wire.response(), beta=False)
    assert [event.type for event in accumulator.feed({"type": "a_new_event"})] == ["a_new_event"]
    assert not accumulator.snapshot
    events = [wire.start(), *wire.text(0, "Hi"), *wire.end()]
    kinds = [[event.type for event in accumulator.feed(data)] for data in events]
    assert kinds == [
        ["message_start"],
        ["content_block_start"],
        ["content_block_delta", "text"],
        ["content_block_stop"],
        ["message_delta"],
        ["message_stop"],
    ]
    message = accumulator.snapshot
    assert message
    assert message.stop_reason == "end_turn"


def test_an_sdk_that_swallows_the_mark_is_noticed(wire: Any) -> None:
    """No endless loop, should the SDK one day hand on only events that it knows."""
    accumulator = Accumulator(SDK, wire.response(), beta=False)

    def swallowing() -> Iterator[object]:
        yield from (event for event in accumulator._feed if getattr(event, "type", "") != "penstock_mark")

    class Helper:
        __next__ = swallowing().__next__
        current_message_snapshot = None

    accumulator._helper = Helper()
    with pytest.raises(RuntimeError, match="anthropic"):
        accumulator.feed({"type": "message_start", "message": {}})


def test_deltas_are_joined_only_where_that_changes_nothing(wire: Any) -> None:
    """Text, thinking and tool input within one block; another block, kind or event between them parts them."""
    run = Run(0, "text_delta")
    run.parts += ["a", "b"]
    other = wire.text(1, "d", "e")[1:3]
    deltas = [
        run,
        wire.sse(*wire.text(0, "c")[1:2]).strip(),
        b": a comment",
        *[wire.sse(event).strip() for event in other],
        wire.sse({"type": "content_block_delta", "index": 1, "delta": {"type": "x_delta", "text": "f"}}).strip(),
        wire.sse({"type": "ping"}).strip(),
        *[
            wire.sse({"type": "content_block_delta", "index": 1, "delta": delta}).strip()
            for delta in [{"type": "signature_delta", "signature": "x"}] * 2
        ],
    ]
    assert [data.get("delta", data["type"]) for data in merged(deltas)] == [
        {"type": "text_delta", "text": "abc"},
        {"type": "text_delta", "text": "de"},
        {"type": "x_delta", "text": "f"},
        "ping",
        {"type": "signature_delta", "signature": "x"},
        {"type": "signature_delta", "signature": "x"},
    ]
    assert run.parts == ["a", "b"]


def test_what_came_before_a_bad_event_is_given_first() -> None:
    """A run that waits for more is not lost."""
    run = Run(0, "text_delta")
    run.parts.append("a")
    events = merged([run, b"event: x\ndata: {"])
    assert next(events)["delta"] == {"type": "text_delta", "text": "a"}
    with pytest.raises(InvalidStream):
        next(events)
    with pytest.raises(InvalidStream):
        next(merged([b"event: x\ndata: {"]))


@pytest.mark.parametrize(
    "data",
    [
        {"type": "ping"},
        {"type": "content_block_delta"},
        {"type": "content_block_delta", "delta": {"type": "text_delta", "text": 1}},
        {"type": "content_block_delta", "delta": {"type": "a_new_delta", "text": "x"}},
    ],
)
def test_other_events_are_no_deltas_to_join(data: dict[str, object]) -> None:
    """They go to the SDK as they are."""
    assert run_of(data) is None
