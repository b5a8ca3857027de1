from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING, Any

import anthropic
import anyio
import httpx2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from penstock.core.usage import Usage
from penstock.errors import InvalidStream, StreamInterrupted
from penstock.streaming import Stream, stream
from penstock.streaming.source import Source

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anthropic import AsyncAnthropic

    from penstock.simulator import Simulator
    from penstock.testing.plugin import VirtualTime

PARAMS: dict[str, Any] = {
    "model": "claude-sonnet-5-5",
    "max_tokens": 100,
    "messages": [{"role": "user", "content": "Hello, how are you today?"}],
}
BETAS: dict[str, Any] = {**PARAMS, "betas": ["compact-2026-01-12"]}


def over(response: httpx2.Response, *, beta: bool = False, idle_timeout_s: float | None = None) -> Stream:
    """A stream over an answer that is there already."""
    sdk = anthropic.AsyncAnthropic(api_key="sk-ant-test")
    return Stream(sdk, response, Source(response, idle_timeout_s=idle_timeout_s), beta=beta)


async def texts_of(answer: Stream) -> tuple[list[str], Exception | None]:
    """All texts, and what ended them."""
    texts: list[str] = []
    try:
        async for text in answer.text_stream:
            texts.append(text)  # noqa: PERF401 - what came before an error is wanted
    except Exception as error:  # noqa: BLE001 - returned
        return texts, error
    return texts, None


def same(one: Any, other: Any) -> bool:
    """Whether two of the SDK's models are equal, field by field and in their types."""
    return type(one) is type(other) and one == other and repr(one) == repr(other)


# Equal to the SDK


@pytest.mark.parametrize("of", ["recorded", "beta"])
async def test_events_and_message_are_the_sdks(wire: Any, of: str) -> None:
    """Every event and the final message equal, field by field, those of the SDK's own helper."""
    params = BETAS if of == "beta" else PARAMS
    claude = wire.client(wire.sse(*getattr(wire, of)))
    messages = claude.beta.messages if of == "beta" else claude.messages
    async with messages.stream(**params) as theirs:
        wanted = [event async for event in theirs]
        message = await theirs.get_final_message()
    async with stream(claude, **params) as ours:
        events = [event async for event in ours]
        assert all(same(event, want) for event, want in zip(events, wanted, strict=True))
        assert same(await ours.get_final_message(), message)
        assert same(ours.current_message_snapshot, message)
        assert await ours.get_final_text() == await theirs.get_final_text()
    async with stream(claude, **params) as ours:
        assert same(await ours.get_final_message(), message)


async def test_text_is_the_sdks_and_the_message_too(wire: Any) -> None:
    """The text deltas are the SDK's, each as it came, and a message asked for afterwards misses nothing."""
    claude = wire.client(wire.sse(*wire.recorded))
    async with claude.messages.stream(**PARAMS) as theirs:
        message = await theirs.get_final_message()
    async with stream(claude, **PARAMS) as ours:
        assert [text async for text in ours.text_stream] == wire.texts
        assert same(await ours.get_final_message(), message)
    assert same(await ours.get_final_message(), message)


PARTS = st.lists(st.text(max_size=6), max_size=4)


@st.composite
def blocks(draw: st.DrawFn) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The start of a block, and its deltas."""
    kind = draw(st.sampled_from(["text", "thinking", "tool_use", "server_tool_use", "redacted_thinking", "result", "new"]))
    if kind == "text":
        deltas = [{"type": "text_delta", "text": part} for part in draw(PARTS)]
        return {"type": "text", "text": draw(st.text(max_size=3))}, deltas
    if kind == "thinking":
        deltas = [{"type": "thinking_delta", "thinking": part} for part in draw(PARTS)]
        signature = {"type": "signature_delta", "signature": "c2ln"}
        return {"type": "thinking", "thinking": "", "signature": ""}, [*deltas, signature]
    if kind in {"tool_use", "server_tool_use"}:
        value = draw(st.dictionaries(st.text(max_size=3), st.integers() | st.text(max_size=3) | st.none(), max_size=3))
        whole = json.dumps(value, ensure_ascii=draw(st.booleans()))
        at = draw(st.integers(0, len(whole)))
        deltas = [{"type": "input_json_delta", "partial_json": part} for part in ("", whole[:at], whole[at:])]
        return {"type": kind, "id": "toolu_1", "name": "web_search", "input": {}}, deltas
    if kind == "redacted_thinking":
        return {"type": kind, "data": draw(st.text(max_size=5))}, []
    if kind == "result":
        error = {"type": "web_search_tool_result_error", "error_code": "unavailable"}
        return {"type": "web_search_tool_result", "tool_use_id": "srvtoolu_1", "content": error}, []
    return {"type": "a_new_block", "x": 1}, [{"type": "a_new_delta", "x": 1}]


@st.composite
def streams(draw: st.DrawFn) -> list[dict[str, Any]]:
    """The events of a whole stream, between its start and its end."""
    events: list[dict[str, Any]] = []
    for index, (content, deltas) in enumerate(draw(st.lists(blocks(), max_size=5))):
        events.append({"type": "content_block_start", "index": index, "content_block": content})
        for delta in deltas:
            events.append({"type": "content_block_delta", "index": index, "delta": delta})
            events += draw(st.sampled_from([[], [], [], [{"type": "ping"}], [{"type": "a_new_event"}]]))
        events.append({"type": "content_block_stop", "index": index})
    return events


OPERATIONS = st.lists(st.tuples(st.sampled_from(["text", "event"]), st.integers(1, 4)), max_size=6)


async def use(answer: Any, operations: Sequence[tuple[str, int]]) -> list[Any]:
    """Read a stream by text and by events in turn, then ask for its message."""
    seen: list[Any] = []
    after_text = False
    for kind, times in operations:
        for _ in range(times):
            try:
                item = await anext(answer.text_stream if kind == "text" else answer)
                # The SDK gives the text once more, as the event that belongs to the same delta.
                if kind == "event" and after_text and item.type == "text" and item.text == seen[-1]:
                    item = await anext(answer)
            except StopAsyncIteration:
                item = "end"
            seen.append(item)
            after_text = kind == "text" and item != "end"
    return [*seen, await answer.get_final_message()]


@settings(max_examples=60)
@given(events=streams(), size=st.integers(1, 400), crlf=st.booleans(), operations=OPERATIONS)
async def test_any_use_of_any_stream_is_as_with_the_sdk(
    events: list[dict[str, Any]], size: int, crlf: bool, operations: list[tuple[str, int]]
) -> None:
    """Text, events and message of generated streams are the SDK's, in any mixture and whatever the chunks."""
    from tests_streaming_conftest import Wire  # type: ignore[import-not-found]

    wire = Wire()
    body = wire.sse(wire.start(), *events, *wire.end(), end="\r\n" if crlf else "\n")
    claude = wire.client(*[body[at : at + size] for at in range(0, len(body), size)])
    async with claude.messages.stream(**PARAMS) as theirs, stream(claude, **PARAMS) as ours:
        wanted = await use(theirs, operations)
        seen = await use(ours, operations)
    assert len(seen) == len(wanted)
    assert all(same(one, other) for one, other in zip(seen, wanted, strict=True))
