"""What a broken or hostile gateway sends holds neither the loop nor the memory.

No clock here: how long it takes is measured by `benchmarks/hostile.py`. Here it is counted how often the loop turns
while a stream is read whose bytes are all there already, and what is allocated at most.
"""

from __future__ import annotations

import base64
import json
import struct
import zlib
from typing import TYPE_CHECKING, Any

import anthropic
import httpx2
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

MIB = 1024 * 1024
BLOCK = 16_384
FRAMES = "application/vnd.amazon.eventstream"
OURS = ["text", "events", "final"]
EVERY = [*OURS, "sdk stream", "sdk events"]


def filled(filling: bytes, size: int) -> tuple[bytes, ...]:
    """About `size` bytes of whole fillings, in blocks that are one object in memory."""
    block = filling * max(1, BLOCK // len(filling))
    return (block,) * max(1, size // len(block))


# What says nothing and may come at any length: fillings between whole events.
NOTHING: dict[str, bytes] = {
    "pings": b'event: ping\ndata: {"type": "ping"}\n\n',
    "pings without a space": b'event:ping\ndata:{"type":"ping"}\n\n',
    "pings without a name": b'data: {"type":"ping"}\n\n',
    "pings, CRLF": b'event: ping\r\ndata: {"type": "ping"}\r\n\r\n',
    "pings, CR": b'event: ping\rdata: {"type": "ping"}\r\r',
    "pings without data": b"event: ping\n\n",
    "comments": b": keep-alive\n\n",
    "comments without a blank line": b": keep-alive\n",
    "comments, CR": b": keep-alive\r",
    "blank lines": b"\n",
    "blank lines, CRLF": b"\r\n",
    "identifiers": b"id: 7\n\n",
    "unknown fields": b"x-of-a-gateway: yes\n\n",
    "lines without a colon": b"nonsense\n",
}
# What no blank line ends could be part of an event, and is dropped only when there is much of it.
UNENDED = {"comments without a blank line", "comments, CR", "lines without a colon"}


def around(wire: Any, place: str, blocks: Sequence[bytes]) -> tuple[bytes, ...]:
    """The stream of `Hello, world`, with blocks in one place of it."""
    after = {"before the start": 0, "before content": 2, "in the text": 4, "before the last event": -1}[place]
    return (wire.sse(*wire.hello[:after]), *blocks, wire.sse(*wire.hello[after:]))


PLACES = ["before the start", "before content", "in the text", "before the last event"]


async def check_memory(wire: Any, filling: bytes, place: str, how: str) -> None:
    """Read some of a filling and much of it: no more is held."""
    async with wire.governed(max_attempts=1) as claude:
        wire.answer(around(wire, place, [filling]))
        await wire.read(claude, how)
        peaks: list[int] = []
        for size in (BLOCK // 2, 5 * BLOCK // 2):
            wire.answer(around(wire, place, filled(filling, size)))
            outcome, peak = await wire.peak_of(wire.read(claude, how))
            peaks.append(peak)
            assert (outcome.text, outcome.error) == ("Hello, world", None)
    assert peaks[1] - peaks[0] < BLOCK, peaks


@pytest.mark.lengthy
@pytest.mark.in_turn(name=[name for name in NOTHING if name not in UNENDED], place=PLACES, how=EVERY)
async def test_what_says_nothing_takes_no_memory(wire: Any, name: str, place: str, how: str) -> None:
    """Five times as much of it takes no more: of 40 kB, less than 16 kB are held more than of 8 kB.

    Before the start, while the guard reads ahead, in the text, and after the usage; whoever reads.
    """
    await check_memory(wire, NOTHING[name], place, how)


@pytest.mark.lengthy
@pytest.mark.parametrize("name", sorted(UNENDED))
async def test_lines_that_say_nothing_take_little_memory(wire: Any, name: str) -> None:
    """Without a blank line among them, 2 MB of them hold less than half of one."""
    async with wire.governed(max_attempts=1) as claude:
        await wire.read(claude)
        line = NOTHING[name][:-1] * 20 + NOTHING[name][-1:]
        wire.answer(around(wire, "before the last event", [*filled(line, 2 * MIB), b"\n\n"]))
        outcome, peak = await wire.peak_of(wire.read(claude))
    assert (outcome.text, outcome.error) == ("Hello, world", None)
    assert peak < MIB // 2, peak


@pytest.mark.lengthy
@pytest.mark.in_turn(
    place=[*PLACES, *PLACES[:1]], name=["pings", "comments without a blank line", "comments without a blank line"]
)
async def test_much_that_is_there_at_once_leaves_others_their_turn(wire: Any, name: str, place: str) -> None:
    """1 MB in blocks that need no waiting: the loop turns once more than for 16 kB, at least."""
    async with wire.governed(max_attempts=1) as claude:
        turns: list[int] = []
        for size in (BLOCK, BLOCK, MIB):
            wire.answer(around(wire, place, filled(NOTHING[name], size)))
            outcome, turned = await wire.turns_while(wire.read(claude))
            turns.append(turned)
            assert (outcome.text, outcome.error) == ("Hello, world", None)
    assert turns[2] > turns[1], turns


@pytest.mark.lengthy
@pytest.mark.parametrize(("how", "encoding"), [("text", "gzip"), ("sdk events", "gzip"), ("final", "deflate")])
async def test_one_small_chunk_that_inflates_leaves_others_their_turn(wire: Any, how: str, encoding: str) -> None:
    """1.5 kB that are 512 kB of pings, in one chunk: the loop turns once more, and they are not all held."""
    async with wire.governed(max_attempts=1) as claude:
        turns: list[int] = []
        for size in (BLOCK, BLOCK, MIB // 2):
            body = wire.bomb(around(wire, "before the last event", filled(NOTHING["pings"], size)), encoding)
            wire.answer(body, content_encoding=encoding)
            outcome, turned = await wire.turns_while(wire.read(claude, how))
            turns.append(turned)
            assert (outcome.text, outcome.error) == ("Hello, world", None)
        assert turns[2] > turns[1], turns
        _, peak = await wire.peak_of(wire.read(claude, how))
    assert peak < MIB // 2, peak


@pytest.mark.lengthy
@pytest.mark.parametrize("how", EVERY)
async def test_single_bytes_leave_others_their_turn(wire: Any, how: str) -> None:
    """170 pings in one-byte chunks that need no waiting: the loop turns at least once in 6,000 chunks."""
    pings = NOTHING["pings"] * 170
    single = [pings[place : place + 1] for place in range(len(pings))]
    async with wire.governed(max_attempts=1) as claude:
        wire.answer(around(wire, "in the text", [pings]))
        _, base = await wire.turns_while(wire.read(claude, how))
        wire.answer(around(wire, "in the text", single))
        outcome, turned = await wire.turns_while(wire.read(claude, how))
    assert (outcome.text, outcome.error) == ("Hello, world", None)
    assert turned - base >= len(single) // 6_000, (turned, base)


@pytest.mark.lengthy
async def test_text_by_single_bytes_leaves_others_their_turn(wire: Any) -> None:
    """So does the text itself: 200 deltas, byte by byte."""
    body = wire.sse(wire.start(), *wire.words(0, *["word "] * 200), *wire.end())
    single = tuple(body[place : place + 1] for place in range(len(body)))
    async with wire.governed(max_attempts=1) as claude:
        wire.answer(body)
        _, base = await wire.turns_while(wire.read(claude))
        wire.answer(single)
        outcome, turned = await wire.turns_while(wire.read(claude))
    assert (outcome.text, outcome.error) == ("word " * 200, None)
    assert turned - base >= len(single) // 6_000, (turned, base)


# More than any answer

LIMIT = 65_536


def frame(event: dict[str, Any]) -> bytes:
    """An event as an AWS frame."""
    payload = json.dumps({"bytes": base64.b64encode(json.dumps(event).encode()).decode()}).encode()
    head = b""
    for name, value in ((b":event-type", b"chunk"), (b":message-type", b"event")):
        head += struct.pack("!B", len(name)) + name + struct.pack("!BH", 7, len(value)) + value
    prelude = struct.pack("!II", 16 + len(head) + len(payload), len(head))
    body = prelude + struct.pack("!I", zlib.crc32(prelude)) + head + payload
    return body + struct.pack("!I", zlib.crc32(body))


# What has no end: the beginning, and what is repeated.
ENDLESS: dict[str, Callable[[Any], tuple[bytes, bytes]]] = {
    "pings before content": lambda wire: (wire.sse(wire.start()), NOTHING["pings"]),
    "pings after content": lambda wire: (wire.sse(*wire.hello[:3]), NOTHING["pings"]),
    "pings after the end": lambda wire: (wire.sse(*wire.hello[:-1]), NOTHING["pings"]),
    "comments": lambda wire: (wire.sse(*wire.hello[:3]), NOTHING["comments"]),
    "comments without a blank line": lambda wire: (b"", NOTHING["comments without a blank line"]),
    "blank lines": lambda wire: (wire.sse(*wire.hello[:3]), b"\n"),
    "a line": lambda wire: (b"data: ", b"x" * 1_000),
    "a line after content": lambda wire: (wire.sse(*wire.hello[:3]) + b"data: ", b"x" * 1_000),
    "a name": lambda wire: (b"event: ", b"x" * 1_000),
    "data lines": lambda wire: (b"", b"data: x\n"),
    "data lines, CR": lambda wire: (b"", b"data: x\r"),
    "text": lambda wire: (wire.sse(*wire.hello[:2]), wire.sse(wire.delta(0, type="text_delta", text="word " * 200))),
    "thoughts": lambda wire: (
        wire.sse(wire.start(), wire.opening(0, type="thinking", thinking="", signature="")),
        wire.sse(wire.delta(0, type="thinking_delta", thinking="word " * 200)),
    ),
    "arguments": lambda wire: (
        wire.sse(wire.start(), wire.opening(0, type="tool_use", id="toolu_1", name="look", input={}))
        + wire.sse(wire.delta(0, type="input_json_delta", partial_json='{"a": "')),
        wire.sse(wire.delta(0, type="input_json_delta", partial_json="word " * 200)),
    ),
    "empty deltas": lambda wire: (
        wire.sse(*wire.hello[:3]),
        wire.sse(wire.delta(0, type="text_delta", text="")),
    ),
    "events of a later API": lambda wire: (wire.sse(*wire.hello[:3]), wire.sse({"type": "a_new_event"})),
    "a page": lambda wire: (b"<html>", b"<p>secret</p>"),
}


@pytest.mark.lengthy
@pytest.mark.in_turn(endless=ENDLESS, encoding=["identity", "gzip"])
async def test_a_stream_without_end_is_a_typed_error(
    wire: Any, endless: Callable[[Any], tuple[bytes, bytes]], encoding: str
) -> None:
    """Beyond `max_response_bytes`, measured after decompression, it is given up; what is held stays near the limit."""
    first, filling = endless(wire)
    blocks: tuple[bytes, ...] = (first, *filled(filling, 2 * MIB))
    if encoding != "identity":
        blocks = (wire.bomb(blocks),)
    async with wire.governed(max_attempts=1, max_response_bytes=LIMIT) as claude:
        wire.answer(blocks, content_encoding=encoding)
        outcome, peak = await wire.peak_of(wire.read(claude))
        told = wire.told(claude)
    assert isinstance(outcome.error, anthropic.AnthropicError), repr(outcome.error)
    assert "secret" not in str(outcome.error)
    assert peak < MIB, peak
    assert (told.successes, told.slots_used) == (0, 0)
    assert wire.canned.left


ANSWERS: dict[str, tuple[bytes, bytes]] = {
    "a text": (b'{"type": "message", "content": [{"type": "text", "text": "', b"secret " * 100),
    "blanks": (b"{", b" " * 1_000),
    "blocks": (b'{"type": "message", "content": [', b'{"type": "text", "text": "secret"},' * 20),
    "a page": (b"<html>", b"<p>secret</p>"),
    "zeros": (b"", b"\x00" * 1_000),
}


@pytest.mark.lengthy
@pytest.mark.in_turn(endless=ANSWERS, encoding=["identity", "gzip", "deflate", "gzip, gzip"])
async def test_an_answer_without_end_is_a_typed_error(wire: Any, endless: tuple[bytes, bytes], encoding: str) -> None:
    """Whole answers too, packed once or twice: 4 MB of an answer are never held when 64 kB are allowed."""
    first, filling = endless
    blocks: tuple[bytes, ...] = (first, *filled(filling, 4 * MIB))
    if encoding != "identity":
        blocks = (wire.bomb(blocks, encoding.partition(",")[0]),)
    if encoding == "gzip, gzip":
        blocks = (wire.bomb(blocks),)
    async with wire.governed(max_attempts=1, max_response_bytes=LIMIT) as claude:
        wire.answer(blocks, content_type="application/json", content_encoding=encoding)
        outcome, peak = await wire.peak_of(wire.create(claude))
        told = wire.told(claude)
    assert isinstance(outcome.error, anthropic.AnthropicError), repr(outcome.error)
    assert "secret" not in str(outcome.error)
    assert peak < MIB, peak
    assert (told.successes, told.slots_used) == (0, 0)


async def test_frames_without_end_are_a_typed_error(wire: Any) -> None:
    """AWS frames are bounded like events."""
    first = b"".join(frame(event) for event in wire.hello[:3])
    blocks = (first, *filled(frame({"type": "ping"}), 2 * MIB))
    sdk = anthropic.AsyncAnthropicBedrock(
        api_key="bedrock-token",
        aws_region="us-east-1",
        max_retries=0,
        http_client=httpx2.AsyncClient(transport=wire.canned),
    )
    async with wire.governed(sdk=sdk, max_attempts=1, max_response_bytes=LIMIT) as claude:
        wire.answer(blocks, content_type=FRAMES)
        outcome = await wire.read(claude)
        assert wire.told(claude).slots_used == 0
    assert isinstance(outcome.error, anthropic.AnthropicError), repr(outcome.error)


@pytest.mark.lengthy
@pytest.mark.in_turn(how=["create", "text", "sdk stream", "create"], encoding=["identity", "gzip", "gzip"])
async def test_the_limit_is_what_may_be_had(wire: Any, how: str, encoding: str) -> None:
    """An answer of exactly `max_response_bytes` is one; a byte more is an error."""
    limit = LIMIT
    body = json.dumps(wire.message()).encode() if how == "create" else wire.sse(*wire.hello[:-1])
    last = b"" if how == "create" else wire.sse(wire.hello[-1])
    kind = "application/json" if how == "create" else wire.event_stream
    async with wire.governed(max_attempts=1, max_response_bytes=limit) as claude:
        for more in (0, 1):
            padding = b" " if how == "create" else b"\n"
            whole = body + padding * (limit + more - len(body) - len(last)) + last
            sent = (wire.bomb([whole]),) if encoding == "gzip" else wire.cut(whole, 1_000, limit - 5)
            wire.answer(sent, content_type=kind, content_encoding=encoding)
            outcome = await (wire.create(claude) if how == "create" else wire.read(claude, how))
            if more:
                assert isinstance(outcome.error, anthropic.AnthropicError), repr(outcome.error)
            else:
                assert outcome.error is None


@pytest.mark.lengthy
async def test_sixty_four_mebibytes_are_the_limit_by_default(wire: Any) -> None:
    """65 MiB in a gzip of 64 kB are given up without a setting."""
    body = wire.bomb((b"{", *(b" " * MIB,) * 65, b"}"))
    async with wire.governed(max_attempts=1) as claude:
        assert claude.settings.max_response_bytes == 64 * MIB
        wire.answer(body, content_type="application/json", content_encoding="gzip")
        outcome = await wire.create(claude)
    assert isinstance(outcome.error, anthropic.AnthropicError), repr(outcome.error)


@pytest.mark.parametrize("given", [0, -1, 65_535, 1.5, "much"])
def test_a_limit_that_is_none_is_refused(wire: Any, given: Any) -> None:
    """A limit under 64 kB would refuse good answers; one that is no number is a mistake."""
    with pytest.raises(ValueError, match="max_response_bytes"):
        wire.governed(max_response_bytes=given)
