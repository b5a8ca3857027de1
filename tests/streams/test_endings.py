"""How streams end: the last event ends the answer, and what comes before it decides how a break is told.

Before content a break is retried unseen; after it, it is a `StreamInterrupted` with what had come. Content is text,
thinking, a tool's arguments, a block that arrives whole, or the reason why the message stopped.
"""

from __future__ import annotations

import json
import threading
from typing import TYPE_CHECKING, Any

import anthropic
import anyio
import httpx2
import pytest

from penstock import StreamInterrupted
from penstock.errors import InvalidStream

if TYPE_CHECKING:
    from collections.abc import Callable

Events = list[dict[str, Any]]
OURS = ["text", "events", "final"]
EVERY = [*OURS, "sdk stream", "sdk events"]
TRANSPORTS = ["aiohttp", "httpx2"]

# After the last event

STAYS: dict[str, dict[str, Any]] = {
    "silent": {"then": "stay"},
    "silent, no length": {"then": "stay", "framing": "close"},
    "silent, more announced": {"then": "stay", "framing": "length"},
    "pings for ever": {"then": "ping"},
    "pings for ever, no length": {"then": "ping", "framing": "close"},
}


@pytest.mark.lengthy
@pytest.mark.in_turn(ending=STAYS, transport=TRANSPORTS)
async def test_the_last_event_ends_the_answer_though_the_connection_stays(
    wire: Any, server: Any, ending: dict[str, Any], transport: str
) -> None:
    """Every reader has the whole answer, the attempt has ended well and its slot is free; then the connection goes."""
    outcomes: dict[str, Any] = {}

    async def read(how: str) -> None:
        outcomes[how] = await wire.read(claude, how)

    async with wire.connected(server, transport=transport) as claude:
        server.answer(wire.Answer((wire.sse(*wire.hello),), **ending))
        async with anyio.create_task_group() as group:
            for how in EVERY:
                group.start_soon(read, how)
        told = wire.told(claude)
        for how, outcome in outcomes.items():
            assert (outcome.text, outcome.error) == ("Hello, world", None), how
        assert (told.successes, told.attempts, told.slots_used) == (5, 5, 0)
        assert told.tokens == (125, 15, 75)
        assert await server.all_left()
    assert len(server.requests) == 5


async def test_the_attempt_ends_with_the_last_event_not_with_the_reader(wire: Any, server: Any) -> None:
    """While the block is still open and the connection too, the slot is free and the outcome is known."""
    async with wire.connected(server) as claude:
        server.answer(wire.Answer((wire.sse(*wire.hello),), then="stay"))
        with anyio.fail_after(wire.watchdog_s):
            async with claude.stream(**wire.ask) as answer:
                await answer.get_final_message()
                assert await wire.until(lambda: wire.told(claude).slots_used == 0)
                assert wire.told(claude).successes == 1


LAST: dict[str, dict[str, Any]] = {
    "reset": {"then": "reset"},
    "closed without an end": {"then": "cut"},
    "less than announced": {"then": "cut", "framing": "length"},
    "closed": {"framing": "close"},
    "ended": {},
}


@pytest.mark.lengthy
@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_how_the_connection_ends_after_the_last_event_is_nobodys_matter(
    wire: Any, server: Any, transport: str
) -> None:
    """Once `message_stop` is received, a reset or a cut takes nothing from a whole answer.

    One that comes with it is the transport's matter: aiohttp drops what it has not handed over by then.
    """
    wrong: list[str] = []
    parts = (wire.sse(*wire.hello[:4]), wire.sse(*wire.hello[4:]))
    async with wire.connected(server, transport=transport) as claude:

        async def break_once_received() -> None:
            await wire.until(lambda: wire.told(claude).since(before).successes == 1)
            received.set()

        for name, ending in LAST.items():
            for how in EVERY:
                received, before = threading.Event(), wire.told(claude)
                server.answer(wire.Answer(parts, **ending, after=received))
                async with anyio.create_task_group() as group:
                    group.start_soon(break_once_received)
                    outcome = await wire.read(claude, how)
                told = wire.told(claude).since(before)
                found = (outcome.text, outcome.error, told.successes, told.failures, len(server.requests))
                if found != ("Hello, world", None, 1, {}, 1):
                    wrong.append(f"{name}, {how}: {found}")
        assert not wrong, "\n".join(wrong)
        # One that has come to its own end may be used again.
        assert await wire.until(lambda: server.open_connections <= 1)


@pytest.mark.lengthy
@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_break_that_comes_with_the_last_event_loses_nothing_unsaid(
    wire: Any, server: Any, transport: str
) -> None:
    """Whatever the transport drops: the text is whole, or one has a typed error; and it is counted accordingly."""
    parts = (wire.sse(*wire.hello[:4]), wire.sse(*wire.hello[4:]))
    async with wire.connected(server, transport=transport) as claude:
        for how, ending in zip(EVERY, LAST.values(), strict=True):
            server.answer(wire.Answer(parts, **ending))
            before = wire.told(claude)
            outcome = await wire.read(claude, how)
            told = wire.told(claude).since(before)
            if outcome.error is None:
                assert (outcome.text, told.successes) == ("Hello, world", 1)
            else:
                assert isinstance(outcome.error, anthropic.AnthropicError | httpx2.TransportError)
                assert told.successes == 0


AFTERWARDS: dict[str, bytes] = {
    "the sentinel of another API": b"data: [DONE]\n\n",
    "the sentinel, named": b"event: done\ndata: [DONE]\n\n",
    "pings": b"event: ping\ndata: {}\n\n" * 3,
    "comments": b": bye\n\n",
    "half an event": b"event: content_block_de",
    "no UTF-8": b"\xff\xfe\n\n",
    "no JSON": b"event: content_block_delta\ndata: {no json}\n\n",
    "an error": b'event: error\ndata: {"type":"error","error":{"type":"overloaded_error","message":"secret"}}\n\n',
    "another last event": b'event: message_stop\ndata: {"type": "message_stop"}\n\n',
    "more text": b'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,'
    b'"delta":{"type":"text_delta","text":"secret"}}\n\n',
    "another end": b'event: message_delta\ndata: {"type":"message_delta","delta":{"stop_reason":"max_tokens"},'
    b'"usage":{"output_tokens":9999}}\n\n',
    "another message": b'event: message_start\ndata: {"type":"message_start","message":{"id":"msg_2",'
    b'"type":"message","role":"assistant","content":[],"model":"m","usage":{"input_tokens":9,"output_tokens":9}}}\n\n',
    "a page": b"<html>secret</html>",
    "a break": b"",
}


@pytest.mark.lengthy
@pytest.mark.parametrize("more", AFTERWARDS.values(), ids=AFTERWARDS.keys())
async def test_what_follows_the_last_event_is_not_part_of_the_answer(wire: Any, more: bytes) -> None:
    """Neither the message nor the usage nor the outcome changes by it, in whatever chunk; and nothing is raised."""
    body = wire.sse(*wire.hello)
    own: tuple[Any, ...] = (body, more or httpx2.ReadError("gone"))
    async with wire.governed() as claude:
        for how, chunks in zip(OURS, [own, (body + more,), own], strict=True):
            wire.answer(chunks)
            outcome = await wire.read(claude, how)
            assert (outcome.text, outcome.error) == ("Hello, world", None), how
            assert outcome.message.stop_reason == "end_turn"
            assert outcome.usage.output_tokens == 15
        told = wire.told(claude)
    assert (told.successes, told.failures, told.tokens) == (3, {}, (75, 9, 45))


# Before the last event


def text_block(wire: Any, *parts: str, **fields: object) -> Events:
    """The start of a message, and a block of text that has not ended."""
    deltas = [wire.delta(0, type="text_delta", text=part) for part in parts]
    return [wire.start(), wire.opening(0, type="text", text="", **fields), *deltas]


def thought(wire: Any, **delta: object) -> Events:
    """The start of a message, and a block of thinking that has not ended."""
    return [wire.start(), wire.opening(0, type="thinking", thinking="", signature=""), wire.delta(0, **delta)]


def call(wire: Any, *parts: str, kind: str = "tool_use", index: int = 0) -> Events:
    """The start of a message, and a call whose arguments have not ended."""
    deltas = [wire.delta(index, type="input_json_delta", partial_json=part) for part in parts]
    return [wire.start(), wire.opening(index, type=kind, id="toolu_1", name="look", input={}), *deltas]


def whole(wire: Any, **block: object) -> Events:
    """The start of a message, and a block that came whole."""
    return [wire.start(), wire.opening(0, **block)]


CITED = {
    "type": "char_location",
    "cited_text": "a river",
    "document_index": 0,
    "document_title": None,
    "start_char_index": 0,
    "end_char_index": 7,
}
FOUND = {"type": "web_search_result", "url": "https://a.example", "title": "A", "encrypted_content": "x"}
BEFORE: dict[str, Callable[[Any], Events]] = {
    "nothing": lambda wire: [],
    "a ping": lambda wire: [{"type": "ping"}],
    "the start": lambda wire: [wire.start()],
    "the start and pings": lambda wire: [wire.start(), {"type": "ping"}, {"type": "ping"}],
    "an empty block of text": text_block,
    "an empty delta": lambda wire: text_block(wire, ""),
    "a tool's name": call,
    "a tool's empty arguments": lambda wire: call(wire, ""),
    "an empty thought": lambda wire: thought(wire, type="thinking_delta", thinking=""),
    "a signature": lambda wire: thought(wire, type="signature_delta", signature="c2ln"),
    "an event of a later API": lambda wire: [wire.start(), {"type": "a_new_event"}],
}
BEGUN: dict[str, Callable[[Any], Events]] = {
    "a text": lambda wire: text_block(wire, "Hello"),
    "a blank": lambda wire: text_block(wire, " "),
    "a text after an empty one": lambda wire: text_block(wire, "", "Hello"),
    "a text that came with its block": lambda wire: whole(wire, type="text", text="Hello"),
    "a thought": lambda wire: thought(wire, type="thinking_delta", thinking="Hm"),
    "half of a tool's first name": lambda wire: call(wire, "", '{"ci'),
    "half of a tool's first value": lambda wire: call(wire, '{"city": "Par'),
    "one bracket of a tool's arguments": lambda wire: call(wire, "{"),
    "a tool's whole arguments": lambda wire: call(wire, "{}"),
    "half of a server tool's arguments": lambda wire: call(wire, '{"q', kind="server_tool_use"),
    "half of a second tool's arguments": lambda wire: [
        *call(wire, "{}"),
        {"type": "content_block_stop", "index": 0},
        *call(wire, '{"ci', index=1)[1:],
    ],
    "a citation": lambda wire: [
        *text_block(wire, citations=[]),
        wire.delta(0, type="citations_delta", citation=CITED),
    ],
    "a redacted thought": lambda wire: whole(wire, type="redacted_thinking", data="ZGF0YQ=="),
    "a result": lambda wire: whole(wire, type="web_search_tool_result", tool_use_id="srvtoolu_1", content=[FOUND]),
    "a reason to stop": lambda wire: [wire.start(), *wire.end()[:1]],
    "all but the last event": lambda wire: [wire.start(), *wire.words(0, "Hello"), *wire.end()[:1]],
}
# Arguments of a call, as they come, that are no JSON when their block ends; and the text that is told.
NO_JSON: dict[str, tuple[tuple[str, ...], str]] = {
    "no JSON": (("{city: ", "Paris}"), "{city: Paris}"),
    "no JSON at all": (("Paris",), "Paris"),
    "an early end": (('{"city": ', '"Par'), '{"city": "Par'),
    "two objects": (("{}", "{}"), "{}{}"),
    "half a character, escaped": (('{"city": "\\ud83d"}',), '{"city": "\\ud83d"}'),
}


def error_event(kind: str) -> bytes:
    """An error in a stream."""
    body = {"type": "error", "error": {"type": kind, "message": "secret"}, "request_id": "req_1"}
    return f"event: error\ndata: {json.dumps(body)}\n\n".encode()


# Each with what it is counted as.
BREAKS: dict[str, tuple[tuple[Any, ...], str]] = {
    "an end": ((), "connection"),
    "a broken connection": ((httpx2.ReadError("gone"),), "connection"),
    "a broken protocol": ((httpx2.RemoteProtocolError("gone"),), "connection"),
    "a time-out": ((httpx2.ReadTimeout("slow"),), "timeout"),
    "half an event": ((b'event: content_block_delta\ndata: {"type":"conte',), "connection"),
    "half a character": ((b'event: content_block_delta\ndata: {"x":"\xe2\x9c',), "connection"),
    "an overload": ((error_event("overloaded_error"),), "overloaded"),
    "a fault of the service": ((error_event("api_error"),), "server"),
}


@pytest.mark.lengthy
@pytest.mark.parametrize("came", BEFORE.values(), ids=BEFORE.keys())
async def test_before_content_a_break_is_retried_unseen(wire: Any, came: Callable[[Any], Events]) -> None:
    """Every reader gets the second answer and nothing of the first; the first counts as what it was."""
    async with wire.governed() as claude:
        for number, (name, (chunks, counted)) in enumerate(BREAKS.items()):
            wire.answer((wire.sse(*came(wire)), *chunks), wire.sse(*wire.hello))
            before = wire.told(claude)
            outcome = await wire.read(claude, EVERY[number % len(EVERY)])
            told = wire.told(claude).since(before)
            assert (outcome.text, outcome.error) == ("Hello, world", None), name
            assert (wire.canned.asked, told.failures, told.first_tokens) == (2, {counted: 1}, 1), name


@pytest.mark.lengthy
@pytest.mark.in_turn(broken=BREAKS, how=OURS)
async def test_a_break_before_content_on_the_last_attempt_is_the_sdks_error(
    wire: Any, broken: tuple[tuple[Any, ...], str], how: str
) -> None:
    """Nothing had come, so it is no interruption: what the SDK raises for such a request, after two of them."""
    chunks, counted = broken
    async with wire.governed() as claude:
        wire.answer((wire.sse(wire.start()), *chunks))
        outcome = await wire.read(claude, how)
        told = wire.told(claude)
    assert isinstance(outcome.error, anthropic.APIError | InvalidStream), repr(outcome.error)
    assert (told.attempts, told.failures, told.first_tokens) == (2, {counted: 2}, 0)


@pytest.mark.lengthy
@pytest.mark.parametrize("came", BEGUN.values(), ids=BEGUN.keys())
async def test_after_content_a_break_is_an_interruption(wire: Any, came: Callable[[Any], Events]) -> None:
    """It has begun: asked once, counted as begun, and told with the message so far and its usage."""
    events = came(wire)
    async with wire.governed() as claude:
        for number, (name, (chunks, counted)) in enumerate(BREAKS.items()):
            wire.answer((wire.sse(*events), *chunks))
            before = wire.told(claude)
            outcome = await wire.read(claude, OURS[number % len(OURS)])
            told = wire.told(claude).since(before)
            error = outcome.error
            assert isinstance(error, StreamInterrupted), f"{name}: {error!r}"
            assert wire.canned.asked == 1, name
            assert (told.failures, told.first_tokens) == ({counted: 1}, 1), name
            assert error.partial is not None, name
            assert error.partial.stop_reason is None, name
            assert len(error.partial.content) == sum(event["type"] == "content_block_start" for event in events), name
            assert (error.usage.input_tokens, error.usage.estimated) == (25, True), name
            assert outcome.complete is False, name
            assert "secret" not in str(error), name


@pytest.mark.lengthy
@pytest.mark.parametrize("came", BEGUN.values(), ids=BEGUN.keys())
async def test_an_interruption_is_the_same_for_every_reader(wire: Any, came: Callable[[Any], Events]) -> None:
    """By text, by events or at once: the same error, and what was given out is in it."""
    async with wire.governed() as claude:
        wire.answer((wire.sse(*came(wire)), httpx2.ReadError("gone")))
        for how in OURS:
            outcome = await wire.read(claude, how)
            error = outcome.error
            assert isinstance(error, StreamInterrupted), f"{how}: {error!r}"
            assert error.partial is not None, how
            assert how == "final" or outcome.text in {"".join(outcome.partial), ""}, how
            assert isinstance(error.cause, httpx2.ReadError), how


async def test_the_sdks_own_stream_is_not_retried_after_content(wire: Any) -> None:
    """Whatever it raises, nobody is asked twice, and the attempt counts as begun and broken."""
    async with wire.governed() as claude:
        for name, came in BEGUN.items():
            wire.answer((wire.sse(*came(wire)), httpx2.ReadError("gone")))
            before = wire.told(claude)
            outcome = await wire.read(claude, "sdk events")
            told = wire.told(claude).since(before)
            assert outcome.error is not None, name
            assert wire.canned.asked == 1, name
            assert (told.failures, told.first_tokens) == ({"connection": 1}, 1), name


async def test_tool_input_that_is_no_json_says_so(wire: Any) -> None:
    """A message that ends well has a call to answer: its input is `INVALID_JSON`, with the text as it came."""
    async with wire.governed() as claude:
        for name, (parts, text) in NO_JSON.items():
            events = [*call(wire, *parts), {"type": "content_block_stop", "index": 0}, *wire.end("tool_use")]
            wire.answer(wire.sse(*events))
            for how in OURS:
                outcome = await wire.read(claude, how)
                assert outcome.error is None, f"{name}, {how}: {outcome.error!r}"
                assert outcome.message.content[0].input == {"INVALID_JSON": text}, f"{name}, {how}"


async def test_half_a_character_is_told_as_one_that_is_missing(wire: Any) -> None:
    """As such, not as an escape within a tool's input: there is U+FFFD in its place, and an answer that can be sent."""
    async with wire.governed() as claude:
        for how in OURS:
            wire.answer(wire.sse(wire.start(), *wire.words(0, "Hi \ud83d", "!"), *wire.end()))
            assert (await wire.read(claude, how)).text == "Hi \ufffd!", how
            stop = {"type": "content_block_stop", "index": 0}
            wire.answer(wire.sse(*call(wire, '{"city": "\ud83d', '"}'), stop, *wire.end("tool_use")))
            outcome = await wire.read(claude, how)
            assert outcome.error is None, how
            assert outcome.message.content[0].input == {"city": "\ufffd"}, how


async def test_tool_input_that_the_limit_cut_off_stays_as_it_came(wire: Any) -> None:
    """With the stop reason `max_tokens` it is as the SDK makes it of what had come."""
    events = [*call(wire, '{"city": "Par'), {"type": "content_block_stop", "index": 0}, *wire.end("max_tokens")]
    async with wire.governed() as claude:
        wire.answer(wire.sse(*events))
        outcome = await wire.read(claude)
    assert outcome.error is None
    assert "INVALID_JSON" not in outcome.message.content[0].input


LASTING = ["invalid_request_error", "authentication_error", "permission_error", "not_found_error", "request_too_large"]


@pytest.mark.parametrize("kind", LASTING)
async def test_an_error_event_that_lasts_is_not_retried(wire: Any, kind: str) -> None:
    """Before content it is the SDK's status error, told by its type; after content the cause of the interruption."""
    async with wire.governed() as claude:
        wire.answer((wire.sse(wire.start()), error_event(kind)))
        refused = await wire.read(claude)
        assert isinstance(refused.error, anthropic.APIStatusError)
        assert (refused.error.type, wire.canned.asked) == (kind, 1)
        wire.answer((wire.sse(*text_block(wire, "Hello")), error_event(kind)))
        broken = await wire.read(claude)
    assert isinstance(broken.error, StreamInterrupted)
    assert isinstance(broken.error.cause, anthropic.APIStatusError)
    assert broken.error.cause.type == kind


# The same over a connection

ENDS: dict[str, dict[str, Any]] = {
    "reset": {"then": "reset"},
    "closed without an end": {"then": "cut"},
    "less than announced": {"then": "cut", "framing": "length"},
    "ended": {},
    "closed": {"framing": "close"},
}


@pytest.mark.lengthy
@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_breaks_of_a_real_connection_are_told_by_what_had_come(wire: Any, server: Any, transport: str) -> None:
    """Each way in which a connection ends, before and after content, by both transports: retried, or interrupted."""
    wrong: list[str] = []
    good = wire.Answer((wire.sse(*wire.hello),))
    async with wire.connected(server, transport=transport) as claude:
        for name, ending in ENDS.items():
            for came in (BEFORE["the start"], BEFORE["a tool's empty arguments"]):
                server.answer(wire.Answer((wire.sse(*came(wire)),), **ending), good)
                outcome = await wire.read(claude)
                if (outcome.text, outcome.error, len(server.requests)) != ("Hello, world", None, 2):
                    wrong.append(f"{name}, before content: {outcome}, {len(server.requests)} requests")
            for came in (BEGUN["a text"], BEGUN["half of a tool's first name"]):
                server.answer(wire.Answer((wire.sse(*came(wire)),), **ending), good)
                outcome = await wire.read(claude)
                interrupted = isinstance(outcome.error, StreamInterrupted) and len(server.requests) == 1
                # A reset may overtake what was sent before it; then nothing had come.
                if not interrupted and (name != "reset" or outcome.text != "Hello, world"):
                    wrong.append(f"{name}, after content: {outcome}, {len(server.requests)} requests")
    assert not wrong, "\n".join(wrong)
