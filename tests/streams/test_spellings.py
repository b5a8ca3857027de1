"""Every valid spelling of server-sent events is one stream: the same text, usage, begun and complete.

The oracle of what a stream says is the SDK's own decoder. It hands on the name of the `event:` line, and the SDK skips
events without one; so for those the oracle is the `type` that stands in their data. It takes no byte order mark off
(which costs it the first line) and drops an event whose blank line is missing at the end; there, and for usage and
completeness, the oracle is what the stream was made of.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from anthropic._streaming import SSEDecoder

from penstock import BreakerOptions

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

Events = list[dict[str, Any]]

# What looks like the grammar, or like an event, inside a text.
TRICKY = (
    "Hello",
    ", ",
    "wörld ✓ 🎉",
    "event: message_stop",
    "data: {}\n\nevent: error\n\n",
    '{"type":"message_stop"}',
    '"type": "message_start"',
    "\r\n\r\n",
    "\u2028\u2029\x85",
    ": a comment",
    "\ufeff",
    " ",
    "\\u000a",
    '"usage":{"output_tokens":9999}',
    "x" * 300,
)
ENDS = ("\n", "\r\n", "\r")


@dataclass
class Spelling:
    """How a stream is written; each field is a choice that the grammar leaves open."""

    space: str = "always"  # after the colon: always, never, mixed
    name: str = "first"  # the event line: first, last, missing, mixed, or `message` for all
    ends: str = "\n"  # of lines; or mixed
    extras: bool = False  # comments, id, retry, unknown fields, fields without a colon
    pings: bool = False  # of every shape
    lines: bool = False  # JSON over several data lines
    blank: bool = False  # further blank lines
    mark: bool = False  # a byte order mark
    ascii: bool = True  # JSON escapes what is beyond ASCII
    dense: bool = False  # JSON without spaces
    last: str = "whole"  # the end: whole, without its blank line, or without its line end as well

    @classmethod
    def picked(cls, chance: random.Random) -> Spelling:
        """One that chance picks."""
        choices: dict[str, Sequence[Any]] = {
            "space": ("always", "never", "mixed"),
            "name": ("first", "last", "missing", "mixed", "message"),
            "ends": (*ENDS, "mixed"),
            "last": ("whole", "whole", "no blank line", "no line end"),
        }
        return cls(**{one.name: chance.choice(choices.get(one.name, (False, True))) for one in fields(cls)})


class Speller:
    """Writes events in one spelling."""

    def __init__(self, spelling: Spelling, chance: random.Random) -> None:
        self._how = spelling
        self._chance = chance
        self._text = ""

    def stream(self, events: Events) -> bytes:
        """The whole stream."""
        self._text = "\ufeff" if self._how.mark else ""
        for event in events:
            if self._how.pings:
                self._ping()
            self._event(event)
        if self._how.last != "whole":
            self._text = self._text.rstrip("\r\n")
            if self._how.last == "no blank line":
                self._line("", only_end=True)
        elif self._how.pings:
            self._ping()
        return self._text.encode()

    def _event(self, event: dict[str, Any]) -> None:
        how, pick = self._how, self._chance.choice
        place = pick(("first", "last", "missing", "message")) if how.name == "mixed" else how.name
        separators = (",", ":") if how.dense else None
        text = json.dumps(
            event, ensure_ascii=how.ascii, separators=separators, indent=pick((1, 4)) if how.lines else None
        )
        lines = [self._field("data", part) for part in text.split("\n")]
        if place != "missing":
            name = "message" if place == "message" else str(event["type"])
            lines.insert(len(lines) if place == "last" else 0, self._field("event", name))
        if how.extras:
            for _ in range(pick((0, 1, 2))):
                lines.insert(self._chance.randint(0, len(lines)), self._extra())
        for line in lines:
            self._line(line)
        for _ in range(pick((1, 2, 3)) if how.blank else 1):
            self._line("")

    def _ping(self) -> None:
        pick = self._chance.choice
        name = [self._field("event", "ping")]
        shapes = (
            [*name, self._field("data", '{"type": "ping"}')],
            [*name, self._field("data", "{}")],
            [*name, self._field("data", "no json at all")],
            [*name, "data"],
            name,
            [self._field("data", '{"type": "ping"}')],
            [": keep-alive"],
        )
        for line in pick(shapes):
            self._line(line)
        self._line("")

    def _extra(self) -> str:
        return self._chance.choice(
            (
                ":",
                ": a comment",
                ":data: {}",
                self._field("id", "7"),
                self._field("retry", "3000"),
                self._field("retry", "soon"),
                self._field("x-of-a-gateway", "yes"),
                "a line without a colon",
            )
        )

    def _field(self, name: str, value: str) -> str:
        space = self._chance.choice(("always", "never")) if self._how.space == "mixed" else self._how.space
        return f"{name}:{' ' if space == 'always' or value.startswith(' ') else ''}{value}"

    def _line(self, line: str, *, only_end: bool = False) -> None:
        end = self._chance.choice(ENDS) if self._how.ends == "mixed" else self._how.ends
        if end == "\n" and not line and not only_end and self._text.endswith("\r"):
            # Together with the line before, it would be one end of a line.
            end = "\r\n"
        self._text += line + end


def told(wire: Any, chance: random.Random) -> tuple[Events, str, tuple[int, int, int], str]:
    """A message: its events, its text, its tokens, why it stopped."""
    tokens = (chance.randint(1, 9_999), chance.randint(0, 9_999), chance.randint(2, 9_999))
    events: Events = [wire.start(input_tokens=tokens[0], cache_read_input_tokens=tokens[1])]
    text, index = "", 0
    if chance.random() < 0.3:
        events += [
            wire.opening(0, type="thinking", thinking="", signature=""),
            wire.delta(0, type="thinking_delta", thinking="Let me see"),
            wire.delta(0, type="signature_delta", signature="c2ln"),
            {"type": "content_block_stop", "index": 0},
        ]
        index = 1
    for _ in range(chance.choice((1, 1, 2))):
        parts = ["Hi", *chance.choices(TRICKY, k=chance.randint(0, 3))]
        chance.shuffle(parts)
        events += wire.words(index, *parts)
        text, index = text + "".join(parts), index + 1
    stop_reason = "end_turn"
    if chance.random() < 0.3:
        stop_reason = "tool_use"
        events += [
            wire.opening(index, type="tool_use", id="toolu_1", name="look", input={}),
            wire.delta(index, type="input_json_delta", partial_json=""),
            wire.delta(index, type="input_json_delta", partial_json='{"city": "Par'),
            wire.delta(index, type="input_json_delta", partial_json='is"}'),
            {"type": "content_block_stop", "index": index},
        ]
    events += wire.end(stop_reason, output_tokens=tokens[2])
    return events, text, tokens, stop_reason


def in_chunks(body: bytes, chance: random.Random, *, bytewise: bool) -> tuple[bytes, ...]:
    """The same bytes, cut by chance."""
    if bytewise:
        return tuple(body[place : place + 1] for place in range(len(body)))
    places = sorted(chance.sample(range(1, len(body)), k=min(len(body) - 1, chance.choice((0, 1, 3, 20)))))
    return tuple(body[first:last] for first, last in zip((0, *places), (*places, len(body)), strict=True))


async def text_by_the_sdk(chunks: Sequence[bytes]) -> str:
    """What the SDK's own decoder finds in a stream."""

    async def body() -> AsyncIterator[bytes]:
        for chunk in chunks:
            yield chunk

    text = ""
    async for event in SSEDecoder().aiter_bytes(body()):
        data = event.json() if event.data.startswith(("{\n", '{"')) else {}
        if data.get("type") == "content_block_delta" and data["delta"]["type"] == "text_delta":
            text += data["delta"]["text"]
    return text


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
async def test_a_thousand_streams_in_any_valid_spelling_say_the_same(wire: Any, seed: int) -> None:
    """Text equals that of the SDK's decoder; usage, begun, complete and the breaker are right; 100 streams a seed."""
    chance = random.Random(seed)
    wrong: list[str] = []
    async with wire.governed(max_attempts=1, breaker=BreakerOptions()) as claude:
        counted = [0, 0, 0]
        for number in range(100):
            spelling = Spelling.picked(chance)
            events, text, tokens, stop_reason = told(wire, chance)
            body = Speller(spelling, chance).stream(events)
            encoding = chance.choice(("identity", "identity", "gzip", "deflate"))
            chunks = wire.compressed(encoding, in_chunks(body, chance, bytewise=(number + seed) % 50 == 0))
            assert number % 2 or await text_by_the_sdk((body,)) == text
            wire.answer(chunks, content_encoding=encoding)
            outcome = await wire.read(claude, wire.ours[number % 3])
            counted = [before + now for before, now in zip(counted, tokens, strict=True)]
            message = outcome.message
            is_so = {
                "no error": outcome.error is None,
                "text": outcome.text == text,
                "complete": outcome.complete is True,
                "stop reason": message is not None and message.stop_reason == stop_reason,
                "usage": (u := outcome.usage) is not None
                and (u.input_tokens, u.cache_read_input_tokens, u.output_tokens, u.estimated) == (*tokens, False),
            }
            if not all(is_so.values()):
                wrong.append(
                    f"{[name for name, so in is_so.items() if not so]} {encoding} {spelling} {outcome.error!r}"
                )
        now = wire.told(claude)
    assert not wrong, f"{len(wrong)} of 100 streams, such as:\n" + "\n".join(wrong[:8])
    assert (now.successes, now.first_tokens, now.failures, now.tokens) == (100, 100, {}, tuple(counted))
    assert now.breakers == {"closed"}


@pytest.mark.lengthy
@pytest.mark.parametrize("seed", range(100, 103))
async def test_the_sdks_own_streams_are_counted_right_in_any_spelling(wire: Any, seed: int) -> None:
    """Through the guards, the SDK's own stream gives what it gives without them, and is counted as what it is.

    What it can't read without them, it can't with them; and then the attempt may count as left.
    """
    chance = random.Random(seed)
    wrong: list[str] = []
    unread = 0
    async with wire.governed(max_attempts=1) as claude:
        for number in range(20):
            spelling = Spelling.picked(chance)
            events, _, tokens, _ = told(wire, chance)
            body = Speller(spelling, chance).stream(events)
            wire.answer(in_chunks(body, chance, bytewise=False))
            how = "sdk events" if spelling.name == "missing" or spelling.mark or number % 2 else "sdk stream"
            before = wire.told(claude)
            bare, governed = await wire.read(wire.bare, how), await wire.read(claude, how)
            now = wire.told(claude).since(before)
            readable = bare.error is None
            is_so = {
                "text": governed.text == bare.text,
                "error": type(governed.error) is type(bare.error),
                "counted as a success": now.successes == 1 or not readable,
                "tokens": now.tokens == tokens or not readable,
                "begun": now.first_tokens == 1,
            }
            unread += not readable
            if not all(is_so.values()):
                wrong.append(f"{[name for name, so in is_so.items() if not so]} {how} {spelling} {governed.error!r}")
    assert unread < 5
    assert not wrong, f"{len(wrong)} of 20 streams, such as:\n" + "\n".join(wrong[:8])


SPELLINGS: dict[str, Spelling] = {
    "as the API writes it": Spelling(),
    "no space after the colon": Spelling(space="never"),
    "no space, no spaces in the JSON": Spelling(space="never", dense=True),
    "some spaces": Spelling(space="mixed"),
    "no event lines": Spelling(name="missing"),
    "no event lines, no space": Spelling(name="missing", space="never"),
    "data before event": Spelling(name="last"),
    "data before event, no space": Spelling(name="last", space="never"),
    "every event is named message": Spelling(name="message"),
    "names here and there": Spelling(name="mixed"),
    "CRLF": Spelling(ends="\r\n"),
    "CRLF, no space": Spelling(ends="\r\n", space="never"),
    "CR": Spelling(ends="\r"),
    "CR, no event lines": Spelling(ends="\r", name="missing"),
    "mixed line ends": Spelling(ends="mixed"),
    "byte order mark": Spelling(mark=True),
    "byte order mark, data first": Spelling(mark=True, name="last"),
    "comments and other fields": Spelling(extras=True),
    "pings of every shape": Spelling(pings=True),
    "JSON over several data lines": Spelling(lines=True),
    "JSON over several data lines, CRLF, no space": Spelling(lines=True, ends="\r\n", space="never"),
    "further blank lines": Spelling(blank=True),
    "UTF-8 unescaped": Spelling(ascii=False),
    "no blank line at the end": Spelling(last="no blank line"),
    "no line end at the end": Spelling(last="no line end"),
    "no blank line at the end, no event lines": Spelling(last="no blank line", name="missing"),
}


@pytest.mark.lengthy
@pytest.mark.parametrize("spelling", SPELLINGS.values(), ids=SPELLINGS.keys())
async def test_a_spelling_read_in_each_of_our_ways(wire: Any, spelling: Spelling) -> None:
    """By text, by events or at once: the text is whole, the usage exact, and the attempt a success that began.

    However it is written, a good stream is no failure of the service: the breaker, told of four, stays closed.
    """
    body = Speller(spelling, random.Random(1)).stream(wire.hello)
    async with wire.governed(breaker=BreakerOptions(minimum=4, window=8)) as claude:
        wire.answer(body)
        for how in (*wire.ours, "text"):
            outcome = await wire.read(claude, how)
            assert outcome.error is None, how
            assert (outcome.text, outcome.complete) == ("Hello, world", True), how
            assert not outcome.usage.estimated, how
        told = wire.told(claude)
    assert wire.canned.asked == 4
    assert (told.attempts, told.successes, told.first_tokens, told.failures) == (4, 4, 4, {})
    assert told.tokens == (100, 12, 60)
    assert told.breakers == {"closed"}


@pytest.mark.lengthy
@pytest.mark.parametrize("transport", ["aiohttp", "httpx2"])
async def test_every_spelling_over_a_connection(wire: Any, server: Any, transport: str) -> None:
    """Through a real transport, in every framing and encoding, each spelling gives its text and counts as a success."""
    wrong: list[str] = []
    async with wire.connected(server, transport=transport) as claude:
        for number, (name, spelling) in enumerate(SPELLINGS.items()):
            chance = random.Random(number)
            body = Speller(spelling, chance).stream(wire.hello)
            encoding = ("identity", "gzip", "deflate")[number % 3]
            framing = ("chunked", "length", "close")[number // 3 % 3]
            parts = wire.compressed(encoding, in_chunks(body, chance, bytewise=False))
            server.answer(wire.Answer(parts, headers={"content-encoding": encoding}, framing=framing))
            before = wire.told(claude)
            outcome = await wire.read(claude)
            now = wire.told(claude).since(before)
            found = (outcome.text, outcome.error, now.successes, now.tokens, len(server.requests))
            if found != ("Hello, world", None, 1, (25, 3, 15), 1):
                wrong.append(f"{name}, {encoding}, {framing}: {found}")
    assert not wrong, "\n".join(wrong)


SPLIT: dict[str, Spelling] = {
    "LF": Spelling(),
    "CRLF, no space": Spelling(ends="\r\n", space="never"),
    "CR, no event lines": Spelling(ends="\r", name="missing"),
    "byte order mark, several data lines": Spelling(mark=True, lines=True, ascii=False),
}


@pytest.mark.lengthy
@pytest.mark.parametrize("spelling", SPLIT.values(), ids=SPLIT.keys())
async def test_where_a_stream_is_cut_never_shows(wire: Any, spelling: Spelling) -> None:
    """Cut at any byte, in a character, in a line end or in a name, it is the same stream."""
    events = [wire.start(), *wire.words(0, "Héllo 🎉"), *wire.end()]
    body = Speller(spelling, random.Random(3)).stream(events)
    wrong: list[tuple[int, ...]] = []
    # Far from each other, so that each cut is tried nearly alone.
    apart = 47
    async with wire.governed(max_attempts=1) as claude:
        for place in range(1, apart + 1):
            places = tuple(range(place, len(body), apart))
            wire.answer(wire.cut(body, *places))
            outcome = await wire.read(claude)
            if (outcome.text, outcome.error) != ("Héllo 🎉", None):
                wrong.append(places)
        told = wire.told(claude)
    assert not wrong
    assert (told.failures, told.first_tokens) == ({}, told.attempts)
    assert told.tokens == (25 * told.attempts, 3 * told.attempts, 15 * told.attempts)


CONTENT_TYPES = [
    "text/event-stream",
    "text/event-stream;charset=utf-8",
    "Text/Event-Stream; Charset=UTF-8",
    "TEXT/EVENT-STREAM",
    "text/event-stream ; charset=utf-8",
    "text/event-stream;",
    'text/event-stream; charset="utf-8"; boundary=x',
    None,
    "",
    "text/plain; charset=utf-8",
    "application/octet-stream",
    "application/x-ndjson",
]


@pytest.mark.lengthy
@pytest.mark.parametrize("content_type", CONTENT_TYPES)
async def test_a_stream_is_one_under_any_spelling_of_its_content_type(wire: Any, content_type: str | None) -> None:
    """Capitals, parameters, a missing type or that of a careless gateway: text, usage and outcome are the same."""
    async with wire.governed() as claude:
        wire.answer(wire.sse(*wire.hello), content_type=content_type)
        for how in (*wire.ours, "sdk stream", "sdk events"):
            outcome = await wire.read(claude, how)
            assert (outcome.text, outcome.error) == ("Hello, world", None), how
        told = wire.told(claude)
    assert wire.canned.asked == 5
    assert (told.successes, told.failures, told.first_tokens) == (5, {}, 5)
    assert told.tokens == (125, 15, 75)


@pytest.mark.lengthy
@pytest.mark.in_turn(content_type=CONTENT_TYPES[:7], how=["text", "sdk stream"])
async def test_a_failure_before_content_is_retried_under_any_content_type(
    wire: Any, content_type: str | None, how: str
) -> None:
    """Reading ahead doesn't hang on the letters of the content type."""
    failed = b'event: error\ndata: {"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}\n\n'
    async with wire.governed() as claude:
        wire.answer(failed, wire.sse(*wire.hello), content_type=content_type)
        outcome = await wire.read(claude, how)
        told = wire.told(claude)
    assert (outcome.text, outcome.error) == ("Hello, world", None)
    assert (told.attempts, told.failures) == (2, {"overloaded": 1})


ERRORS: dict[str, bytes] = {
    "no space": b'event:error\ndata:{"type":"error","error":{"type":"%b","message":"secret"}}\n\n',
    "no event line": b'data: {"type":"error","error":{"type":"%b","message":"secret"}}\n\n',
    "data before event": b'data: {"type":"error","error":{"type":"%b","message":"secret"}}\nevent: error\n\n',
    "CRLF": b'event: error\r\ndata: {"type":"error","error":{"type":"%b","message":"secret"}}\r\n\r\n',
    "CR": b'event: error\rdata: {"type":"error","error":{"type":"%b","message":"secret"}}\r\r',
    "several data lines": b'event: error\ndata: {"type":"error",\ndata: "error":{"type":"%b","message":"secret"}}\n\n',
    "comments around": b': a\nevent: error\n: b\ndata: {"type":"error","error":{"type":"%b","message":"secret"}}\n\n',
    "named message": b'event: message\ndata: {"type":"error","error":{"type":"%b","message":"secret"}}\n\n',
    "no blank line": b'event: error\ndata: {"type":"error","error":{"type":"%b","message":"secret"}}\n',
    "byte order mark": b'\xef\xbb\xbfevent: error\ndata: {"type":"error","error":{"type":"%b","message":"secret"}}\n\n',
    "after pings": b'event:ping\ndata:{}\n\n: x\n\nevent: error\ndata: {"type":"error","error":{"type":"%b"}}\n\n',
}


@pytest.mark.lengthy
@pytest.mark.parametrize("error", ERRORS.values(), ids=ERRORS.keys())
async def test_an_error_in_a_stream_is_sorted_in_any_spelling(wire: Any, error: bytes) -> None:
    """An overload before content is retried; a fault of the request is not, and is told as what it is."""
    async with wire.governed() as claude:
        wire.answer(error % b"overloaded_error", wire.sse(*wire.hello))
        retried = await wire.read(claude)
        assert (retried.text, retried.error, wire.canned.asked) == ("Hello, world", None, 2)
        wire.answer(error % b"invalid_request_error", wire.sse(*wire.hello))
        refused = await wire.read(claude)
        told = wire.told(claude)
    assert wire.canned.asked == 1
    assert getattr(refused.error, "type", None) == "invalid_request_error"
    assert told.failures == {"overloaded": 1, "request": 1}


LIVE: dict[str, tuple[Spelling, str]] = {
    "LF": (Spelling(), "identity"),
    "CRLF": (Spelling(ends="\r\n"), "identity"),
    "CR": (Spelling(ends="\r"), "identity"),
    "no event lines": (Spelling(name="missing"), "identity"),
    "data before event": (Spelling(name="last", space="never"), "identity"),
    "several data lines": (Spelling(lines=True), "identity"),
    "gzip, flushed": (Spelling(), "gzip"),
    "deflate, flushed": (Spelling(space="never"), "deflate"),
}


@pytest.mark.lengthy
@pytest.mark.in_turn(sent=LIVE, how=["text", "text", "sdk events"])
async def test_text_is_given_when_its_event_has_come(wire: Any, sent: tuple[Spelling, str], how: str) -> None:
    """What is whole is handed on at once, before any byte that follows; then it is counted as begun."""
    spelling, encoding = sent
    if how == "sdk events" and spelling.name == "missing":
        spelling = Spelling(name="first", ends=spelling.ends)
    events = wire.hello
    bodies = [Speller(spelling, random.Random(4)).stream(part) for part in (events[:3], events[3:])]
    first, *rest = wire.compressed(encoding, bodies)
    goes_on = anyio.Event()
    async with wire.governed() as claude:
        wire.answer((first, goes_on, *rest), content_encoding=encoding)
        with anyio.fail_after(wire.watchdog_s):
            texts = texts_of(claude, how, wire.ask)
            assert await anext(texts) == "Hello"
            goes_on.set()
            assert [text async for text in texts] == [", ", "world"]
        assert wire.told(claude).first_tokens == 1


async def texts_of(claude: Any, how: str, ask: dict[str, Any]) -> AsyncIterator[str]:
    """The texts of a stream, one by one."""
    if how == "text":
        async with claude.stream(**ask) as answer:
            async for text in answer.text_stream:
                yield text
        return
    async for event in await claude.messages.create(**ask, stream=True):
        if event.type == "content_block_delta":
            yield event.delta.text


NAMED: dict[str, Callable[[Any], Events]] = {
    "an unknown event": lambda wire: [{"type": "a_new_event", "with": {"a": "field"}}],
    "an unknown delta": lambda wire: [wire.delta(0, type="a_new_delta", value=2)],
    "an unknown block": lambda wire: [
        wire.opening(1, type="a_new_block", value=1),
        {"type": "content_block_stop", "index": 1},
    ],
    "unknown fields": lambda wire: [{"type": "content_block_stop", "index": 0, "extra": [1]}],
    "a second message_delta": lambda wire: wire.end()[:1],
}


@pytest.mark.parametrize("more", NAMED.values(), ids=NAMED.keys())
async def test_what_the_api_may_add_disturbs_nothing(wire: Any, more: Callable[[Any], Events]) -> None:
    """Events, blocks, deltas and fields of a later API are no failure."""
    events = [wire.start(), *wire.words(0, "Hello", ", ", "world"), *more(wire), *wire.end()]
    async with wire.governed() as claude:
        wire.answer(wire.sse(*events))
        for how in wire.ours:
            outcome = await wire.read(claude, how)
            assert (outcome.text, outcome.error) == ("Hello, world", None), how
        assert wire.told(claude).failures == {}
