"""What a stream has used that did not come to its end is estimated from what came, and is the same wherever it is told.

The rule here: the answers are exact bytes, so that what came is known to the character.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

import anyio
import httpx2
import pytest

from penstock import Client, Conversation, StreamInterrupted
from penstock._core.body.scanner import Scanner
from penstock._core.usage import Usage
from penstock.events import CallEnded
from penstock.streaming import FinalFrame, relay, stream

if TYPE_CHECKING:
    from penstock.streaming.stream import Stream
    from penstock.testing.plugin import VirtualTime

MESSAGES: Final[Any] = [{"role": "user", "content": "Hello"}]
PARAMS: Final[Any] = {"model": "claude-sonnet-5-5", "max_tokens": 1000, "messages": MESSAGES}
SAID: Final = [
    "Let me think about it, slowly. " * 4,
    "It is a river, I suppose. " * 4,
    '{"city": "Rome", "x": "' + "y" * 90,
]
TOKENS: Final = round(sum(map(len, SAID)) / 3.2)
BROKEN: Final = httpx2.ReadError("lost")


def said(wire: Any) -> list[dict[str, Any]]:
    """Thinking, with a signature that nobody pays for, text, and half the input of a tool."""
    thinking = [{"type": "thinking_delta", "thinking": SAID[0]}, {"type": "signature_delta", "signature": "s" * 4000}]
    call = {"type": "tool_use", "id": "toolu_1", "name": "get_weather", "input": {}}
    halves = [{"type": "input_json_delta", "partial_json": part} for part in (SAID[2][:20], SAID[2][20:])]
    return [
        wire.start(),
        *wire.block(0, {"type": "thinking", "thinking": "", "signature": ""}, *thinking),
        *wire.text(1, SAID[1][:9], SAID[1][9:]),
        *wire.block(2, call, *halves)[:-1],
    ]


async def read_all(answer: Stream) -> None:
    """Read until nothing more comes; it never ends by itself."""
    with anyio.move_on_after(5):
        await answer.until_done()


async def told(claude: Any, calls: list[CallEnded], how: str) -> list[Usage]:
    """Leave a stream early, or have it break off; returns what is told of it in all places."""
    if how == "conversation":
        chat = Conversation(claude, model="claude-sonnet-5-5")
        async with chat.stream("Hello") as answer:
            await read_all(answer)
        return [answer.usage, chat.usage, calls[-1].usage]
    if how == "sdk":
        async with claude.messages.stream(**PARAMS) as theirs:
            with anyio.move_on_after(5):
                async for _ in theirs:
                    pass
        return [calls[-1].usage]
    async with claude.stream(**PARAMS) as answer:
        if how == "relay":
            sent: list[Any] = []

            async def send(frame: object) -> None:
                sent.append(frame)

            async with anyio.create_task_group() as group:
                group.start_soon(relay, answer, send)
                await anyio.sleep(5)
                await answer.close()
            assert isinstance(sent[-1], FinalFrame)
            return [sent[-1].usage, answer.usage, calls[-1].usage]
        if how == "breaks":
            with pytest.raises(StreamInterrupted) as caught:
                await answer.get_final_message()
            return [caught.value.usage, answer.usage, calls[-1].usage]
        await read_all(answer)
    return [answer.usage, calls[-1].usage]


@pytest.mark.parametrize("how", ["left", "breaks", "conversation", "relay", "sdk"])
async def test_everybody_is_told_the_same(wire: Any, virtual_time: VirtualTime, how: str) -> None:
    """The stream, the error, the event of the call, the meter and the conversation: from the text that came."""
    sdk = wire.client(wire.sse(*said(wire)), *([BROKEN] if how == "breaks" else [3600.0]))
    calls: list[CallEnded] = []

    def note(event: object) -> None:
        if isinstance(event, CallEnded):
            calls.append(event)

    async with Client(sdk=sdk, observers=[note]) as claude:
        usages = await told(claude, calls, how)
        metered = claude.statistics().attempts.total
        assert (metered.output_tokens, metered.estimated) == (usages[0].output_tokens, 1)
    wanted = Usage(input_tokens=25, cache_read_input_tokens=3, output_tokens=TOKENS, estimated=True)
    assert usages == [wanted] * len(usages)


async def test_without_guards_it_is_estimated_as_well(wire: Any, virtual_time: VirtualTime) -> None:
    """A bare client of the SDK tells nothing; the stream itself knows what it has read."""
    async with stream(wire.client(wire.sse(*said(wire)), 3600.0), **PARAMS) as answer:
        await read_all(answer)
    assert (answer.usage.estimated, answer.usage.output_tokens) == (True, TOKENS)


async def test_a_count_that_was_told_is_no_guess(wire: Any, virtual_time: VirtualTime) -> None:
    """Who leaves between the last count and the last event is told that count, here and by the event of the call."""
    parts = (wire.sse(wire.start(), *wire.text(0, "word " * 400), *wire.end()[:1]), 3600.0)
    calls: list[CallEnded] = []

    def note(event: object) -> None:
        if isinstance(event, CallEnded):
            calls.append(event)

    async with Client(sdk=wire.client(*parts), observers=[note]) as claude, claude.stream(**PARAMS) as governed:
        await read_all(governed)
    async with stream(wire.client(*parts), **PARAMS) as alone:
        await read_all(alone)
    assert [governed.usage.output_tokens, alone.usage.output_tokens, calls[0].usage.output_tokens] == [15, 15, 15]


async def test_a_drained_stream_has_its_exact_count_once_it_is_drained(wire: Any, virtual_time: VirtualTime) -> None:
    """Before that, an estimate by what has come."""
    sdk = wire.client(wire.sse(wire.start(), *wire.text(0, "word " * 64)[:2]), 5.0, wire.sse(*wire.end()))
    async with Client(sdk=sdk) as claude:
        async with claude.stream(**PARAMS, on_abandon="drain") as answer:
            await anext(answer.text_stream)
        assert answer.usage == Usage(input_tokens=25, cache_read_input_tokens=3, output_tokens=100, estimated=True)
        await anyio.sleep(10)
        assert (answer.usage.output_tokens, answer.usage.estimated) == (15, False)


# What came, however long and however cut


def long_answer(wire: Any, deltas: int, *, line_end: str = "\n") -> tuple[bytes, int]:
    """Text in deltas of uneven length, with a long result of a search in between; and how long the text is."""
    texts = [("word " * (1 + number * 7 % 23)) for number in range(deltas)]
    result = {"type": "web_search_tool_result", "tool_use_id": "s", "content": [{"encrypted_content": "x" * 60_000}]}
    events = [wire.start(), *wire.text(0, *texts), *wire.block(1, result), *wire.text(2, *texts)[:-1]]
    return wire.sse(*events, end=line_end), 2 * sum(map(len, texts))


def seen(body: bytes, size: int) -> Scanner:
    """What watched a body that came in chunks of `size`, settled as a body settles it."""
    scanner, since = Scanner(), 0
    for at in range(0, len(body), size):
        scanner.see(body[at : at + size])
        since += 1
        if since == 64 or since * size >= 16 * 1024:
            scanner.settle()
            since = 0
    return scanner


@pytest.mark.parametrize(("line_end", "size"), [("\n", 130), ("\n", 4096), ("\n", 16_384), ("\r\n", 900)])
@pytest.mark.lengthy
async def test_a_long_stream_is_estimated_within_a_tenth(wire: Any, line_end: str, size: int) -> None:
    """However it was cut; and little of it is kept."""
    body, length = long_answer(wire, 1500, line_end=line_end)
    scanner = seen(body, size)
    assert scanner.written == pytest.approx(length, rel=0.1)
    assert len(scanner._passed) < 200_000
    scanner.see(wire.sse(*wire.end()))
    assert not scanner._passed


@pytest.mark.parametrize("size", [1, 50, 700, 100_000])
async def test_a_short_stream_is_counted_to_the_character(wire: Any, size: int) -> None:
    """Also where its first chunk has all of it, or it is cut in the middle of events."""
    body = wire.sse(*said(wire))
    assert seen(body, size).written == (
        sum(map(len, SAID)) if size > 1 else pytest.approx(sum(map(len, SAID)), rel=0.1)
    )


async def test_documents_and_streams_that_can_not_be_read_bring_no_text() -> None:
    """An answer that is no stream was not written in parts."""
    document = Scanner()
    document.see(json.dumps({"type": "message", "content": [{"type": "text", "text": "x" * 99}]}).encode())
    damaged = Scanner()
    damaged.see(b'event: content_block_delta\ndata: {"delta": {"type": "text_delta", "text": "Hi"}}\n\n')
    damaged.see(b"event: content_block_delta\ndata: {nonsense\n\n")
    assert (document.written, damaged.written) == (0, 2)
