from __future__ import annotations

import contextlib
import json
import traceback
from typing import TYPE_CHECKING, Any

import anthropic
import anyio
import httpx2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from penstock._core.usage import Usage
from penstock.errors import InvalidStream, StreamInterrupted
from penstock.streaming import Stream, stream
from penstock.streaming.inbox import DELTA
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
# It sends nothing; making one takes long.
SDK = anthropic.AsyncAnthropic(api_key="sk-ant-test")


def over(response: httpx2.Response, *, beta: bool = False, idle_timeout_s: float | None = None) -> Stream:
    """A stream over an answer that is there already."""
    return Stream(SDK, response, Source(response, idle_timeout_s=idle_timeout_s), beta=beta)


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


KINDS = ["text", "thinking", "tool_use", "server_tool_use", "redacted_thinking", "result", "new"]
PARTS = st.lists(st.text(max_size=6), max_size=4)


@st.composite
def blocks(draw: st.DrawFn) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The start of a block, and its deltas."""
    kind = draw(
        st.sampled_from(["text", "thinking", "tool_use", "server_tool_use", "redacted_thinking", "result", "new"])
    )
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


@pytest.mark.lengthy
@settings(max_examples=60)
@given(events=streams(), size=st.integers(1, 400), crlf=st.booleans(), operations=OPERATIONS)
async def test_any_use_of_any_stream_is_as_with_the_sdk(
    wire: Any, events: list[dict[str, Any]], size: int, crlf: bool, operations: list[tuple[str, int]]
) -> None:
    """Text, events and message of generated streams are the SDK's, in any mixture and whatever the chunks."""
    body = wire.sse(wire.start(), *events, *wire.end(), end="\r\n" if crlf else "\n")
    claude = wire.client(*[body[at : at + size] for at in range(0, len(body), size)])
    async with claude.messages.stream(**PARAMS) as theirs, stream(claude, **PARAMS) as ours:
        wanted = await use(theirs, operations)
        seen = await use(ours, operations)
    assert len(seen) == len(wanted)
    assert all(same(one, other) for one, other in zip(seen, wanted, strict=True))


# Where bytes end and how they are cut


@pytest.mark.lengthy
async def test_no_split_of_the_bytes_shows(wire: Any) -> None:
    """Wherever the bytes are cut in two, and byte by byte, the text and the message are the same."""
    body = wire.sse(*wire.recorded)
    message = await over(wire.response(body)).get_final_message()
    cuts = [[body[:at], body[at:]] for at in range(1, len(body))]
    for chunks in [*cuts, [body[at : at + 1] for at in range(len(body))]]:
        answer = over(wire.response(*chunks))
        assert await texts_of(answer) == (wire.texts, None)
        if len(chunks) != 2:
            assert same(await answer.get_final_message(), message)


def ends_of_texts(wire: Any) -> list[int]:
    """Where in the recorded stream each delta of text is complete."""
    ends, at = [], 0
    for event in wire.recorded:
        at += len(wire.sse(event))
        if event.get("delta", {}).get("type") == "text_delta":
            ends.append(at)
    return ends


@pytest.mark.slow
@pytest.mark.parametrize("drop", [None, httpx2.RemoteProtocolError("dropped"), httpx2.ReadTimeout("silent")])
async def test_a_stream_cut_anywhere_gives_what_came_and_then_fails(wire: Any, drop: Exception | None) -> None:
    """At every truncation point, all text that came is given first, then the SDK's error, or after content ours."""
    body = wire.sse(*wire.recorded)
    ends = ends_of_texts(wire)
    last = body.index(b"event: message_stop") + len(b"event: message_stop")
    # Where lines end every byte may matter; within one, and for a break, which tells less of where it was, some do.
    lines = {end + near for end, byte in enumerate(body) if byte == ord("\n") for near in range(-3, 4)}
    every = lines & set(range(len(body))) if drop is None else set[int]()
    for at in sorted(every | set(range(0, len(body), 5))):
        answer = over(wire.response(body[:at], *([drop] if drop else [])))
        texts, error = await texts_of(answer)
        complete = wire.texts[: sum(end <= at for end in ends)]
        # A body that ends in order may lack no more than the last line ends.
        assert texts == complete or (drop is None and texts == wire.texts[: sum(end - 2 <= at for end in ends)])
        if answer.complete:
            assert error is None
            assert at >= last
            continue
        assert answer.stop_reason in {None, "tool_use"}
        assert error is not None
        with pytest.raises(type(error)):
            await answer.get_final_message()
        if not isinstance(error, StreamInterrupted):
            assert isinstance(error, anthropic.APIConnectionError | InvalidStream)
            assert not any(texts)
            assert isinstance(error, anthropic.APITimeoutError) == isinstance(drop, httpx2.ReadTimeout)
            continue
        partial = error.partial
        assert isinstance(partial, anthropic.types.Message)
        assert partial.stop_reason is None
        assert "".join(block.text for block in partial.content if block.type == "text") == "".join(texts)
        assert error.usage.estimated
        assert error.usage.input_tokens == 25
        if drop is not None:
            assert error.cause is drop is error.__cause__


async def test_what_stands_between_events_does_no_harm(wire: Any) -> None:
    """Comments, unknown fields, nameless and unknown events, and events without data, change nothing."""
    garbage = (
        b": a comment\n\n\n\nid: 1\nretry: 5\n\nnonsense\n\nevent: nothing\n\ndata: {}\n\ndata: no json\n\n"
        b'event: a_new_event\ndata: {"type": "a_new_event"}\n\nid: 4\nevent: ping\ndata: {"type": "ping"}\n\n'
        b'data: {"type": "ping"}\n\n'
    )
    body = b"".join(wire.sse(event) + garbage for event in wire.recorded)
    answer = over(wire.response(body))
    assert await texts_of(answer) == (wire.texts, None)
    assert same(
        await answer.get_final_message(), await over(wire.response(wire.sse(*wire.recorded))).get_final_message()
    )


async def test_events_whose_names_were_dropped_are_read_all_the_same(wire: Any) -> None:
    """Some proxies drop the `event` lines; the data has the type too."""
    body = b"".join(line + b"\n" for line in wire.sse(*wire.recorded).split(b"\n") if not line.startswith(b"event"))
    answer = over(wire.response(body))
    assert await texts_of(answer) == (wire.texts, None)
    assert (await answer.get_final_message()).stop_reason == "tool_use"


async def test_what_only_speaks_of_text_is_none(wire: Any) -> None:
    """A delta of another type, with the words of one in it, is left alone; so is one whose text is no text."""
    odd = [{"type": "a_new_delta", "text": "text_delta", "of": "text_delta"}, {"type": "text_delta", "text": None}]
    events = [wire.start(), *wire.text(0, "a")[:-1]]
    events += [{"type": "content_block_delta", "index": 0, "delta": delta} for delta in odd]
    events += [*wire.text(0, "b")[1:], *wire.end()]
    for end in ("\n", "\r\n"):
        assert await texts_of(over(wire.response(wire.sse(*events, end=end)))) == (["a", "b"], None)
        each = over(wire.response(*[wire.sse(event, end=end) for event in events]))
        assert await texts_of(each) == (["a", "b"], None)


async def test_text_goes_on_after_events(wire: Any) -> None:
    """What an event loop left ungiven of an event is past, once the text has gone on."""
    answer = over(wire.response(wire.sse(wire.start(), *wire.text(0, "a", "b", "c"), *wire.end())))
    kinds = [(await anext(answer)).type for _ in range(3)]
    assert kinds == ["message_start", "content_block_start", "content_block_delta"]
    assert await anext(answer.text_stream) == "b"
    event = await anext(answer)
    assert event.type == "content_block_delta"
    assert (await anext(answer)).snapshot == "abc"  # type: ignore[union-attr]


@pytest.mark.lengthy
async def test_large_tiny_and_odd_deltas_arrive_as_they_are(wire: Any) -> None:
    """A megabyte in one delta, 10,000 tiny ones, NUL, other line ends, and nothing."""
    texts = ["x" * 1_000_000, *["y"] * 10_000, "\0", "a\r\nb\u2028c", ""]
    body = wire.sse(wire.start(), *wire.text(0, *texts), *wire.end())
    for size in (1 << 14, 1 << 20):
        answer = over(wire.response(*[body[at : at + size] for at in range(0, len(body), size)]))
        assert await texts_of(answer) == (texts, None)
        assert await answer.get_final_text() == "".join(texts)


async def test_halves_of_a_character_become_the_character(wire: Any) -> None:
    """A surrogate pair that two deltas share is put together; a half that stays alone becomes U+FFFD."""
    for parts, whole in [
        (["a\ud83d", "\ude00b"], ["a", "\U0001f600b"]),
        (["\ud83d", "x"], ["", "\ufffdx"]),
        (["\ude00"], ["\ufffd"]),
        (["x\ud83d"], ["x", "\ufffd"]),
        (["\ud83d", "\ud83d", "\ude00"], ["", "\ufffd", "\U0001f600"]),
    ]:
        events = [wire.start(), *wire.text(0, *parts), *wire.end()]
        for chunks in ([wire.sse(*events)], [wire.sse(event) for event in events]):
            answer = over(wire.response(*chunks))
            texts, raised = await texts_of(answer)
            assert raised is None
            assert "".join(texts) == "".join(whole) == await answer.get_final_text()
            "".join(texts).encode()


# Failing


async def test_an_error_after_content_comes_after_all_text(wire: Any) -> None:
    """An `error` event in the same chunk as text: the text first, then `StreamInterrupted` with what is known."""
    error = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}, "request_id": "req_1"}
    body = wire.sse(wire.start(), *wire.text(0, "Hel", "lo")[:-1], error, *wire.text(1, "never"))
    answer = over(wire.response(body, wire.sse(*wire.text(2, "never"))))
    texts, raised = await texts_of(answer)
    assert texts == ["Hel", "lo"]
    assert isinstance(raised, StreamInterrupted)
    assert isinstance(raised.cause, anthropic.APIStatusError)
    assert raised.cause.type == "overloaded_error"
    assert raised.cause.status_code == 200
    assert raised.cause.request_id == "req_1"
    # What came, "Hello", is estimated.
    assert raised.usage == Usage(input_tokens=25, cache_read_input_tokens=3, output_tokens=2, estimated=True)
    assert "overloaded_error" in str(raised)
    assert "Hel" not in str(raised) + repr(raised)
    assert answer.response.is_closed
    assert "APIStatusError" in repr(answer)
    assert not answer.complete
    for read in (answer.get_final_message, answer.get_final_text, answer.until_done):
        with pytest.raises(StreamInterrupted):
            await read()
    assert [text async for text in answer.text_stream] == []
    with pytest.raises(StreamInterrupted):
        await anext(answer)


async def test_an_error_before_content_is_the_sdks_own(wire: Any) -> None:
    """Nothing came, so there is nothing partial: what any request may raise is raised."""
    for data in (b'{"type": "error", "error": {"type": "api_error", "message": "m"}}', b"no json", b""):
        answer = over(wire.response(wire.sse(wire.start()), b"event: error\ndata: " + data + b"\n\n"))
        texts, raised = await texts_of(answer)
        assert texts == []
        assert isinstance(raised, anthropic.APIStatusError)
    answer = over(wire.response(wire.sse(wire.start(), {"type": "error"}).replace(b"event: error\n", b"")))
    assert isinstance((await texts_of(answer))[1], anthropic.APIStatusError)


@pytest.mark.parametrize(
    "bad",
    [
        DELTA + b'{"type": "content_block_delta", "delta": {"type": "text_delta", "text": "\n\n',
        DELTA + b'{"type": "content_block_delta", "delta": {"type": "text_delta", "text": "\xff"}}\n\n',
        b"event: \xff\nid: 1\ndata: {}\n\n",
        b"event: x\r\ndata: \xff\r\n\r\n",
    ],
)
async def test_bytes_that_are_no_event_break_the_stream_off(wire: Any, bad: bytes) -> None:
    """Bad JSON and invalid UTF-8 are an `InvalidStream` behind a `StreamInterrupted`, after all good text."""
    body = wire.sse(wire.start(), *wire.text(0, "good")[:2]) + bad + wire.sse(*wire.text(1, "never"))
    for read_on, chunks in [(texts_of, [body]), (_events_of, [body]), (texts_of, body.split(bad))]:
        answer = over(wire.response(chunks[0], *([bad, chunks[1]] if len(chunks) > 1 else [])))
        seen, raised = await read_on(answer)
        assert seen == ["good"]
        assert isinstance(raised, StreamInterrupted)
        assert isinstance(raised.cause, InvalidStream)
        assert raised.partial is not None
        assert raised.partial.content[0].type == "text"
        assert raised.partial.content[0].text == "good"
        assert answer.response.is_closed


async def _events_of(answer: Stream) -> tuple[list[str], Exception | None]:
    texts: list[str] = []
    try:
        async for event in answer:
            if event.type == "text":
                texts.append(event.text)  # noqa: PERF401 - what came before an error is wanted
    except Exception as error:  # noqa: BLE001 - returned
        with contextlib.suppress(StreamInterrupted):
            await answer.until_done()
        return texts, error
    return texts, None


async def test_events_that_the_sdk_cannot_understand_break_the_stream_off(wire: Any) -> None:
    """A delta of a block that there is not, text that is a number, no delta: their content stays out of the message."""
    delta = {"type": "content_block_delta", "index": 7, "delta": {"type": "text_delta", "text": "secret"}}
    number = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": 5}}
    nothing = {"type": "content_block_delta", "index": 0, "delta": None}
    for bad in ([delta], [number], [nothing]):
        answer = over(wire.response(wire.sse(wire.start(), *wire.text(0, "good"), *bad, *wire.end())))
        with pytest.raises(StreamInterrupted) as caught:
            await answer.get_final_message()
        assert isinstance(caught.value.cause, InvalidStream)
        assert "secret" not in "".join(traceback.format_exception(caught.value))
        assert caught.value.partial is not None
        with pytest.raises(StreamInterrupted):
            await answer.get_final_message()
        assert answer.stop_reason == "end_turn"


async def test_tool_input_that_is_no_json_is_kept_as_the_api_asks_for(wire: Any) -> None:
    """It is told as `INVALID_JSON`, and the rest of the message is whole; half a character in it becomes U+FFFD."""
    for parts, whole in [
        (['{"city": ', "x}"], {"INVALID_JSON": '{"city": x}'}),
        (['{"city": "\\ud83d"}'], {"INVALID_JSON": '{"city": "\\ud83d"}'}),
        (['{"city": "\ud83d"}'], {"city": "\ufffd"}),
        (['{"a": 1} x'], {"INVALID_JSON": '{"a": 1} x'}),
        (['{"a": "Ro'], {"INVALID_JSON": '{"a": "Ro'}),
        (['{"city": "\\ud83d', '\\ude00"}'], {"city": "\U0001f600"}),
        (['{"a": 1}'], {"a": 1}),
        ([], {}),
    ]:
        deltas = [{"type": "input_json_delta", "partial_json": part} for part in parts]
        tool = wire.block(0, {"type": "tool_use", "id": "toolu_1", "name": "n", "input": {}}, *deltas)
        for read in ("events", "message"):
            answer = over(wire.response(wire.sse(wire.start(), *tool, *wire.text(1, "good"), *wire.end())))
            events = [event async for event in answer] if read == "events" else []
            message: Any = await answer.get_final_message()
            assert message.content[0].input == whole
            assert message.content[1].text == "good"
            stops: list[Any] = [event.content_block for event in events if event.type == "content_block_stop"]
            assert not stops or stops[0].input == whole


async def test_a_stream_without_its_start_is_no_whole_one(wire: Any) -> None:
    """The text is given as it comes; what came is told by a typed error."""
    for end in (wire.end(), ()):
        answer = over(wire.response(wire.sse(*wire.text(0, "Hi"), *end)))
        texts, raised = await texts_of(answer)
        assert texts == ["Hi"]
        assert isinstance(raised, StreamInterrupted)
        with pytest.raises(StreamInterrupted) as caught:
            await answer.get_final_message()
        partial: Any = caught.value.partial
        assert partial.content[0].text == "Hi"
        assert caught.value.usage.estimated


async def test_what_comes_after_the_last_event_does_not_matter(wire: Any) -> None:
    """A message that is complete stays so, whatever becomes of the connection."""
    broken = httpx2.RemoteProtocolError("dropped")
    answer = over(wire.response(wire.sse(*wire.recorded), wire.sse({"type": "error"}), broken))
    assert await texts_of(answer) == (wire.texts, None)
    assert answer.complete
    assert (await answer.get_final_message()).stop_reason == "tool_use"


# Facts on the way


async def test_usage_and_reason_are_known_as_they_come(wire: Any) -> None:
    """Input tokens from the start on, output tokens and the stop reason at the end; ids from the headers."""
    head, tail = wire.sse(wire.start(), *wire.text(0, "Hi")), wire.sse(*wire.end())
    answer = over(wire.response(head, tail))
    assert (answer.request_id, answer.workspace_id) == ("req_1", "ws_1")
    assert answer.usage == Usage()
    assert repr(answer) == "<Stream req_1, open>"
    with pytest.raises(RuntimeError, match="nothing of the message"):
        _ = answer.current_message_snapshot
    assert await anext(answer.text_stream) == "Hi"
    assert answer.current_message_snapshot.content[0].text == "Hi"  # type: ignore[union-attr]
    assert (answer.usage.input_tokens, answer.usage.output_tokens, answer.stop_reason) == (25, 1, None)
    await answer.until_done()
    assert (answer.usage.output_tokens, answer.usage.thinking_tokens, answer.stop_reason) == (15, 4, "end_turn")
    assert not answer.usage.estimated
    assert repr(answer) == "<Stream req_1, complete>"


async def test_a_message_without_text_says_which_blocks_it_has(wire: Any) -> None:
    """As in the SDK, asking for text where there is none is an error."""
    tool = wire.block(0, {"type": "tool_use", "id": "toolu_1", "name": "n", "input": {}})
    with pytest.raises(RuntimeError, match="tool_use"):
        await over(wire.response(wire.sse(wire.start(), *tool, *wire.end()))).get_final_text()
    with pytest.raises(RuntimeError, match="none"):
        await over(wire.response(wire.sse(wire.start(), *wire.end()))).get_final_text()


class City(BaseModel):
    name: str


async def test_structured_output_is_parsed_as_the_sdk_does(wire: Any) -> None:
    """`output_format` gives `parsed_output`, in the message and in the events."""
    claude = wire.client(wire.sse(wire.start(), *wire.text(0, '{"name": ', '"Bern"}'), *wire.end()))
    async with claude.messages.stream(**PARAMS, output_format=City) as theirs:
        wanted = [event async for event in theirs]
    async with stream(claude, **PARAMS, output_format=City) as ours:
        events = [event async for event in ours]
        message = await ours.get_final_message()
    assert message.parsed_output == City(name="Bern")
    assert all(same(event, want) for event, want in zip(events, wanted, strict=True))


async def test_text_that_is_no_structured_output_raises_as_in_the_sdk(wire: Any) -> None:
    """The answer came whole, so it is no interruption: pydantic's error comes, as often as it is asked."""
    claude = wire.client(wire.sse(wire.start(), *wire.text(0, "no city"), *wire.end()))
    async with stream(claude, **PARAMS, output_format=City) as ours:
        for _ in range(2):
            with pytest.raises(ValidationError):
                await ours.get_final_message()


# Leaving


async def test_leaving_early_closes_the_answer(wire: Any) -> None:
    """A loop that breaks, and the end of the block, end the request; what was read is a message still."""
    claude = wire.client(wire.sse(*wire.recorded[:-1]), 3600.0)
    async with stream(claude, **PARAMS) as answer:
        async for _ in answer.text_stream:
            break
    assert wire.transport.bodies[0].closed
    assert repr(answer) == "<Stream req_1, closed>"
    assert [text async for text in answer.text_stream] == []
    assert answer.current_message_snapshot.content[2].text == "Hello"  # type: ignore[union-attr]
    with pytest.raises(StreamInterrupted, match="was closed"):
        await answer.get_final_message()


@pytest.mark.parametrize("end", ["left", "whole"])
async def test_usage_of_a_stream_left_early_is_an_estimate(wire: Any, end: str) -> None:
    """What was generated until it was closed, nobody tells; a stream that was read to its end has told."""
    tail = wire.sse(*wire.end()) if end == "whole" else b""
    answer = over(wire.response(wire.sse(wire.start(), *wire.text(0, "Hi")) + tail))
    assert await anext(answer.text_stream) == "Hi"
    assert not answer.usage.estimated
    await answer.close()
    assert answer.usage.estimated == (end == "left")
    assert answer.usage.input_tokens == 25


async def test_another_task_may_close_it(wire: Any, virtual_time: VirtualTime) -> None:
    """Whoever reads then finds the stream at its end, at once; asking for the message says that it is not whole."""
    claude = wire.client(wire.sse(wire.start(), *wire.text(0, "Hi")), 3600.0)
    async with stream(claude, **PARAMS) as answer, anyio.create_task_group() as group:

        async def stop() -> None:
            await anyio.sleep(5)
            await answer.close()

        group.start_soon(stop)
        assert await texts_of(answer) == (["Hi"], None)
        assert virtual_time.now() < 6
        with pytest.raises(StreamInterrupted, match="was closed") as caught:
            await answer.get_final_message()
    assert isinstance(caught.value.cause, httpx2.StreamClosed)


async def test_a_read_that_is_cancelled_ends_the_stream(wire: Any, virtual_time: VirtualTime) -> None:
    """The body can't be read on; that is said, and nothing is mistaken for the end."""
    claude = wire.client(wire.sse(wire.start(), *wire.text(0, "Hi")), 3600.0)
    async with stream(claude, **PARAMS) as answer:
        with anyio.move_on_after(1) as scope:
            await answer.until_done()
        assert scope.cancelled_caught
        with pytest.raises(StreamInterrupted, match="the connection broke off"):
            await answer.get_final_message()


async def test_a_simulated_drop_and_its_retry(simulator: Simulator, virtual_time: VirtualTime) -> None:
    """Without a guard, each fault of a stream is told by its error; nothing stays open."""
    claude: AsyncAnthropic = simulator.client(max_retries=0)
    for fault, before in [
        ("stream_error_before_content", True),
        ("stream_drop_before_content", True),
        ("stream_error_after_content", False),
        ("stream_drop_after_content", False),
        ("no_message_stop", False),
        ("stall", False),
    ]:
        simulator.inject(fault)
        async with stream(claude, **PARAMS) as answer:
            _, error = await texts_of(answer)
        assert isinstance(error, StreamInterrupted) != before, fault
        assert isinstance(error, StreamInterrupted | anthropic.APIError)
        assert simulator.in_flight == 0
