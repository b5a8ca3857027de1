"""What is no proper stream ends in a typed error with what had come, never in a bare error of Python's.

A compatible server that leaves something out is understood; one that sends nonsense is told as one that did. Neither a
`RuntimeError`, `TypeError`, `AttributeError`, `ValueError` nor a `DecodingError` reaches the reader, and no error
quotes what came.
"""

from __future__ import annotations

import gzip
import json
import zlib
from typing import TYPE_CHECKING, Any

import anthropic
import pytest

from penstock import StreamInterrupted

if TYPE_CHECKING:
    from collections.abc import Callable

Events = list[dict[str, Any]]
OURS = ["text", "events", "final"]


def check_typed(error: Exception | None) -> None:
    """An error that `except anthropic.AnthropicError` catches, and that quotes nothing."""
    assert isinstance(error, anthropic.AnthropicError), repr(error)
    assert "secret" not in f"{error}{getattr(error, '__notes__', [])}"


def after_hello(*events: dict[str, Any]) -> Callable[[Any], Events]:
    """A stream that has begun well, and goes on with these."""
    return lambda wire: [wire.start(), *wire.words(0, "Hello")[:2], *events, *wire.words(0)[1:], *wire.end()]


def instead_of_start(event: dict[str, Any] | None) -> Callable[[Any], Events]:
    """A stream that begins otherwise."""
    return lambda wire: [*([] if event is None else [event]), *wire.words(0, "secret"), *wire.end()]


def deltas(**delta: object) -> dict[str, Any]:
    """A delta of the first block."""
    return {"type": "content_block_delta", "index": 0, "delta": delta}


# Events that are objects of JSON, and yet nothing that can be understood.
NONSENSE: dict[str, dict[str, Any]] = {
    "delta null": {"type": "content_block_delta", "index": 0, "delta": None},
    "no delta": {"type": "content_block_delta", "index": 0},
    "delta a text": {"type": "content_block_delta", "index": 0, "delta": "secret"},
    "delta a list": {"type": "content_block_delta", "index": 0, "delta": [{"type": "text_delta", "text": "secret"}]},
    "delta a number": {"type": "content_block_delta", "index": 0, "delta": 7},
    "text a number": deltas(type="text_delta", text=7),
    "text null": deltas(type="text_delta", text=None),
    "text true": deltas(type="text_delta", text=True),
    "text a list": deltas(type="text_delta", text=["secret"]),
    "text an object": deltas(type="text_delta", text={"secret": 1}),
    "no text": deltas(type="text_delta"),
    "arguments a number": deltas(type="input_json_delta", partial_json=7),
    "arguments an object": deltas(type="input_json_delta", partial_json={"secret": 1}),
    "a thought that is a number": deltas(type="thinking_delta", thinking=7),
    "a citation that is null": deltas(type="citations_delta", citation=None),
    "a delta without its type": deltas(text="secret"),
    "a delta whose type is a number": deltas(type=7, text="secret"),
    "no index": {"type": "content_block_delta", "delta": {"type": "text_delta", "text": "secret"}},
    "index null": {"type": "content_block_delta", "index": None, "delta": {"type": "text_delta", "text": "secret"}},
    "index a text": {"type": "content_block_delta", "index": "0", "delta": {"type": "text_delta", "text": "secret"}},
    "index a fraction": {
        "type": "content_block_delta",
        "index": 0.5,
        "delta": {"type": "text_delta", "text": "secret"},
    },
    "index too high": {"type": "content_block_delta", "index": 9, "delta": {"type": "text_delta", "text": "secret"}},
    "index too low": {"type": "content_block_delta", "index": -2, "delta": {"type": "text_delta", "text": "secret"}},
    "an end without its block": {"type": "content_block_stop", "index": 9},
    "an end without an index": {"type": "content_block_stop"},
    "a block null": {"type": "content_block_start", "index": 1, "content_block": None},
    "no block": {"type": "content_block_start", "index": 1},
    "a block that is a text": {"type": "content_block_start", "index": 1, "content_block": "secret"},
    "a block without its type": {"type": "content_block_start", "index": 1, "content_block": {"text": "secret"}},
    "a block at a place that is taken": {
        "type": "content_block_start",
        "index": 0,
        "content_block": {"type": "text", "text": ""},
    },
    "a block far away": {"type": "content_block_start", "index": 10**9, "content_block": {"type": "text", "text": ""}},
    "a message again": {
        "type": "message_start",
        "message": {"id": "msg_2", "type": "message", "role": "assistant", "content": [], "model": "m", "usage": {}},
    },
    "a start without its message": {"type": "message_start"},
    "message_delta null": {"type": "message_delta", "delta": None, "usage": {"output_tokens": 15}},
    "message_delta without delta": {"type": "message_delta", "usage": {"output_tokens": 15}},
    "a stop reason that is a number": {"type": "message_delta", "delta": {"stop_reason": 7}, "usage": {}},
    "usage a text": {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": "secret"},
    "usage a list": {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": ["secret"]},
    "counts that are texts": {
        "type": "message_delta",
        "delta": {"stop_reason": "end_turn"},
        "usage": {"output_tokens": "15", "input_tokens": [1], "cache_read_input_tokens": {}},
    },
    "counts below zero": {"type": "message_delta", "delta": {}, "usage": {"output_tokens": -7, "input_tokens": -1}},
    "counts that are no whole numbers": {"type": "message_delta", "delta": {}, "usage": {"output_tokens": 1.5}},
    "counts beyond measure": {"type": "message_delta", "delta": {}, "usage": {"output_tokens": 10**30}},
    "an error that is null": {"type": "error", "error": None},
    "an error that is a text": {"type": "error", "error": "upstream"},
    "an error without anything": {"type": "error"},
    "an event without a type": {"index": 0},
    "a type that is a number": {"type": 7},
    "a type that is null": {"type": None},
}
# What compatible servers leave out, or null, and is understood all the same.
GAPS: dict[str, Callable[[Any], Events]] = {
    "no usage at the end": lambda wire: [
        wire.start(),
        *wire.words(0, "Hello"),
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}},
        {"type": "message_stop"},
    ],
    "usage null at the end": lambda wire: [
        wire.start(),
        *wire.words(0, "Hello"),
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": None},
        {"type": "message_stop"},
    ],
    "counts null at the end": lambda wire: [
        wire.start(),
        *wire.words(0, "Hello"),
        *wire.end(input_tokens=None, cache_read_input_tokens=None, cache_creation_input_tokens=None),
    ],
    "no end but the last event": lambda wire: [wire.start(), *wire.words(0, "Hello"), {"type": "message_stop"}],
    "an end in two parts": lambda wire: [
        wire.start(),
        *wire.words(0, "Hello"),
        *wire.end()[:1],
        {"type": "message_delta", "delta": {}, "usage": {"output_tokens": 15}},
        {"type": "message_stop"},
    ],
    "all counts at the end": lambda wire: [
        wire.start(input_tokens=0, cache_read_input_tokens=0, output_tokens=0),
        *wire.words(0, "Hello"),
        *wire.end(input_tokens=25, cache_read_input_tokens=3),
    ],
    "no end of the block": lambda wire: [wire.start(), *wire.words(0, "Hello")[:2], *wire.end()],
    "a text block without text": lambda wire: [
        wire.start(),
        wire.opening(0, type="text"),
        *wire.words(0, "Hello")[1:],
        wire.opening(1, type="text"),
        {"type": "content_block_stop", "index": 1},
        *wire.end(),
    ],
    "no event after the last block's end": lambda wire: [wire.start(), *wire.words(0, "Hello"), *wire.end()],
}
UNREADABLE = {"no usage at the end", "usage null at the end", "a text block without text"}


def spelled(events: Events) -> bytes:
    """The events, each named by its own type where it has one."""
    return b"".join(
        f"event: {event.get('type') or 'message'}\ndata: {json.dumps(event)}\n\n".encode() for event in events
    )


@pytest.mark.lengthy
@pytest.mark.in_turn(event=NONSENSE, how=OURS)
async def test_nonsense_after_content_is_told_with_what_had_come(wire: Any, event: dict[str, Any], how: str) -> None:
    """Either it does no harm, and the text is whole; or it is an interruption that holds the text before it."""
    async with wire.governed() as claude:
        wire.answer(spelled(after_hello(event)(wire)))
        outcome = await wire.read(claude, how)
    assert wire.canned.asked == 1
    if outcome.error is None:
        assert outcome.text.startswith("Hello")
        assert outcome.text == "".join(block.text for block in outcome.message.content if block.type == "text")
        return
    check_typed(outcome.error)
    assert isinstance(outcome.error, StreamInterrupted), repr(outcome.error)
    assert "".join(outcome.partial).startswith("Hello")
    assert (outcome.error.usage.input_tokens, outcome.error.usage.estimated) == (25, True)


@pytest.mark.lengthy
async def test_statistics_survive_nonsense(wire: Any) -> None:
    """The attempt ends once, its slot is free, and its counts are neither negative nor beyond measure."""
    async with wire.governed() as claude:
        for number, (name, event) in enumerate(NONSENSE.items()):
            wire.answer(spelled(after_hello(event)(wire)))
            before = wire.told(claude)
            await wire.read(claude, ("text", "sdk events")[number % 2])
            told = wire.told(claude).since(before)
            assert (told.attempts, told.slots_used) == (1, 0), name
            assert all(0 <= tokens < 10**12 for tokens in told.tokens), name


@pytest.mark.lengthy
async def test_nonsense_in_place_of_a_start_is_a_typed_error(wire: Any) -> None:
    """Where nothing begins a message, there is no message: an error, whatever followed."""
    async with wire.governed() as claude:
        for number, (name, event) in enumerate(NONSENSE.items()):
            wire.answer(spelled(instead_of_start(event)(wire)))
            outcome = await wire.read(claude, OURS[number % len(OURS)])
            if outcome.error is not None or name != "a message again":
                check_typed(outcome.error)


STARTS: dict[str, dict[str, Any] | None] = {
    "none": None,
    "message null": {"type": "message_start", "message": None},
    "message a text": {"type": "message_start", "message": "secret"},
    "message a list": {"type": "message_start", "message": []},
    "message empty": {"type": "message_start", "message": {}},
    "an error as its message": {"type": "message_start", "message": {"type": "error", "error": {}}},
    "content null": {"type": "message_start", "message": {"id": "msg_1", "type": "message", "content": None}},
    "content a text": {"type": "message_start", "message": {"id": "msg_1", "type": "message", "content": "secret"}},
    "usage null": {"type": "message_start", "message": {"type": "message", "content": [], "usage": None}},
    "usage a text": {"type": "message_start", "message": {"type": "message", "content": [], "usage": "secret"}},
}


@pytest.mark.lengthy
@pytest.mark.in_turn(start=STARTS, how=[*OURS, "sdk events"])
async def test_a_start_that_is_none_is_no_bare_error(wire: Any, start: dict[str, Any] | None, how: str) -> None:
    """Without a proper `message_start`: the text, or a typed error; never an error of Python's."""
    async with wire.governed() as claude:
        wire.answer(spelled(instead_of_start(start)(wire)))
        outcome = await wire.read(claude, how)
        told = wire.told(claude)
    assert told.slots_used == 0
    if outcome.error is not None and how != "sdk events":
        check_typed(outcome.error)
    elif how != "sdk events":
        assert outcome.text == "secret"


@pytest.mark.parametrize("how", OURS)
async def test_without_a_start_there_is_no_message(wire: Any, how: str) -> None:
    """Deltas alone make no message: a failure, told after their text, with all of it."""
    async with wire.governed(max_attempts=1) as claude:
        wire.answer(spelled(instead_of_start(None)(wire)))
        outcome = await wire.read(claude, how)
        told = wire.told(claude)
    assert isinstance(outcome.error, StreamInterrupted), repr(outcome.error)
    assert outcome.partial == ["secret"]
    assert how != "text" or outcome.text == "secret"
    check_typed(outcome.error)
    assert told.successes == 0


@pytest.mark.lengthy
@pytest.mark.parametrize("name", GAPS)
async def test_gaps_of_compatible_servers_are_understood(wire: Any, name: str) -> None:
    """Whatever of the end is missing or null, a stream with its last event is a success with its text and input."""
    async with wire.governed() as claude:
        wire.answer(spelled(GAPS[name](wire)))
        # The SDK's own helper can't read all of these.
        readers = [*OURS, "sdk events"] if name in UNREADABLE else [*OURS, "sdk stream", "sdk events"]
        for how in readers:
            before = wire.told(claude)
            outcome = await wire.read(claude, how)
            told = wire.told(claude).since(before)
            assert (outcome.text, outcome.error) == ("Hello", None), how
            assert (told.successes, told.attempts) == (1, 1), how
            assert told.tokens[:2] == (25, 3), how


async def test_the_reason_to_stop_is_not_lost_by_a_second_delta(wire: Any) -> None:
    """A later `message_delta` that names no reason leaves the one that came, and the usage is its own."""
    async with wire.governed() as claude:
        wire.answer(spelled(GAPS["an end in two parts"](wire)))
        for how in OURS:
            outcome = await wire.read(claude, how)
            assert outcome.error is None, how
            assert outcome.usage.output_tokens == 15, how


# Bytes that are no events

DEEP = b"[" * 100_000
BYTES: dict[str, bytes] = {
    "no JSON": b"event: content_block_delta\ndata: {secret}\n\n",
    "half of JSON": b'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,"delta":{"ty\n\n',
    "a list": b"event: content_block_delta\ndata: []\n\n",
    "a number": b"event: content_block_delta\ndata: 7\n\n",
    "a text": b'event: content_block_delta\ndata: "secret"\n\n',
    "null": b"event: content_block_delta\ndata: null\n\n",
    "not a number": b"event: content_block_delta\ndata: NaN\n\n",
    "two objects": b"event: content_block_delta\ndata: {}{}\n\n",
    "no UTF-8": b'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,'
    b'"delta":{"type":"text_delta","text":"\xff\xfe"}}\n\n',
    "UTF-8 cut short": b'event: content_block_delta\ndata: {"x":"\xe2\x9c"}\n\n',
    "UTF-16": 'event: content_block_delta\ndata: {"x": 1}\n\n'.encode("utf-16"),
    "a name that is no UTF-8": b"event: \xff\xfe\ndata: {}\n\n",
    "zeros": b"\x00" * 64 + b"\n\n",
    "a surrogate alone": b'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,'
    b'"delta":{"type":"text_delta","text":"\\ud800"}}\n\n',
    "deeply nested": b"event: content_block_delta\ndata: " + DEEP + b"\n\n",
    "deeply nested in a delta": b'event: content_block_delta\ndata: {"type":"content_block_delta","delta":'
    + DEEP
    + b"\n\n",
    "a number without end": b"event: content_block_delta\ndata: " + b"9" * 10_000 + b"\n\n",
    "a page": b"<html><body>secret</body></html>\n\n",
    "events of another API": b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk",'
    b'"choices":[{"index":0,"delta":{"content":"secret"}}]}\n\n',
    "no data": b"event: content_block_delta\n\n",
    "empty data": b"event: content_block_delta\ndata:\n\n",
}
NO_STREAM = {
    **{name: body for name, body in BYTES.items() if name != "a surrogate alone"},
    "chat chunks to the end": BYTES["events of another API"] * 3 + b"data: [DONE]\n\n",
}


@pytest.mark.lengthy
@pytest.mark.in_turn(body=BYTES, how=OURS)
async def test_bytes_that_are_no_event_are_told_with_what_had_come(wire: Any, body: bytes, how: str) -> None:
    """In the middle of a stream: they do no harm, or interrupt it, with the text before them."""
    first, last = wire.hello[:3], [*wire.words(0)[1:], *wire.end()]
    async with wire.governed() as claude:
        wire.answer((spelled(first), body, spelled(last)))
        outcome = await wire.read(claude, how)
        told = wire.told(claude)
    assert (wire.canned.asked, told.slots_used) == (1, 0)
    if outcome.error is None:
        assert outcome.text.startswith("Hello")
        return
    check_typed(outcome.error)
    assert isinstance(outcome.error, StreamInterrupted), repr(outcome.error)
    assert "".join(outcome.partial).startswith("Hello")


@pytest.mark.lengthy
@pytest.mark.in_turn(body=NO_STREAM, how=OURS)
async def test_bytes_that_are_no_stream_are_a_typed_error(wire: Any, body: bytes, how: str) -> None:
    """As all that there is: a failed attempt, retried like any answer that can't be understood, then raised."""
    async with wire.governed() as claude:
        wire.answer(body, spelled(wire.hello))
        retried = await wire.read(claude, how)
        wire.answer(body)
        outcome = await wire.read(claude, how)
        told = wire.told(claude)
    assert (retried.text, retried.error) == ("Hello, world", None)
    check_typed(outcome.error)
    assert (told.successes, told.slots_used) == (1, 0)


# Encodings


def damaged(body: bytes) -> dict[str, tuple[bytes, str]]:
    """A body in encodings that can't be undone, or not to the end."""
    packed = gzip.compress(body, mtime=0)
    flushed = zlib.compressobj(wbits=31)
    begun = flushed.compress(body) + flushed.flush(zlib.Z_SYNC_FLUSH)
    return {
        "plain, called gzip": (body, "gzip"),
        "plain, called deflate": (body, "deflate"),
        "gzip, called deflate": (packed, "deflate"),
        "zeros": (b"\x00" * 512, "gzip"),
        "gzip, its head damaged": (b"\x1f\x8b\x07" + packed[3:], "gzip"),
        "gzip, its middle damaged": (packed[:40] + b"\xff" * 20 + packed[60:], "gzip"),
        "gzip, its sum damaged": (packed[:-8] + b"\x00" * 8, "gzip"),
        "gzip, half": (packed[: len(packed) // 2], "gzip"),
        "gzip, without its end": (begun, "gzip"),
        "gzip, nothing in it": (gzip.compress(b""), "gzip"),
        "nothing, called gzip": (b"", "gzip"),
        "gzip, not called so": (packed, "identity"),
    }


DAMAGED = list(damaged(b"x" * 200))
# Here all of the message has come before the damage shows, or what it really is can be undone.
COMPLETE = {"gzip, its sum damaged", "gzip, without its end", "gzip, called deflate"}


@pytest.mark.lengthy
@pytest.mark.in_turn(name=DAMAGED, how=OURS)
@pytest.mark.parametrize("streamed", [True, False], ids=["streamed", "whole"])
async def test_an_encoding_that_cannot_be_undone_is_a_typed_error(
    wire: Any, name: str, how: str, streamed: bool
) -> None:
    """Streamed or not, it is no `DecodingError`, and before content it is tried again."""
    plain = spelled(wire.hello) if streamed else json.dumps(wire.message("secret" * 20)).encode()
    kind = wire.event_stream if streamed else "application/json"
    body, encoding = damaged(plain)[name]
    async with wire.governed() as claude:
        wire.answer((body,), content_type=kind, content_encoding=encoding)
        outcome = await (wire.read(claude, how) if streamed else wire.create(claude))
        told = wire.told(claude)
    assert told.slots_used == 0
    if name in COMPLETE and outcome.error is None:
        return
    check_typed(outcome.error)
    assert told.successes == 0
    assert name in COMPLETE or wire.canned.asked == 2


@pytest.mark.parametrize("how", OURS)
async def test_a_stream_whose_encoding_breaks_in_the_middle_is_interrupted(wire: Any, how: str) -> None:
    """What was decoded before the damage is given out and held by the error."""
    packer = zlib.compressobj(wbits=31)
    first = packer.compress(spelled(wire.hello[:3])) + packer.flush(zlib.Z_SYNC_FLUSH)
    async with wire.governed() as claude:
        wire.answer((first, b"\xff" * 50), content_encoding="gzip")
        outcome = await wire.read(claude, how)
    assert isinstance(outcome.error, StreamInterrupted), repr(outcome.error)
    assert outcome.partial == ["Hello"]
    assert wire.canned.asked == 1


@pytest.mark.lengthy
@pytest.mark.parametrize("transport", ["aiohttp", "httpx2"])
async def test_damaged_encodings_over_a_connection_are_typed_errors(wire: Any, server: Any, transport: str) -> None:
    """Both transports undo encodings in their own ways; the errors are the same."""
    wrong: list[str] = []
    async with wire.connected(server, transport=transport) as claude:
        for name, (body, encoding) in damaged(spelled(wire.hello)).items():
            server.answer(wire.Answer((body,) if body else (), headers={"content-encoding": encoding}))
            outcome = await wire.read(claude)
            if name not in COMPLETE and not isinstance(outcome.error, anthropic.AnthropicError):
                wrong.append(f"{name}: {outcome.error!r}")
    assert not wrong, "\n".join(wrong)
