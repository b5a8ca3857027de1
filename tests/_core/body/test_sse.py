from __future__ import annotations

import json
import pickle
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
from anthropic._streaming import SSEDecoder as SdkDecoder
from hypothesis import example, given
from hypothesis import strategies as st

from penstock._core.body.sse import ServerSentEvent, SSEDecoder, two_lines
from penstock.errors import InvalidStream

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

BOM = b"\xef\xbb\xbf"
GOOD = b'event: ping\ndata: {"type": "ping"}\n\n'
BAD = b"event: ping\ndata: \xff\n\n"

LINE = st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), max_size=8)
NAME = st.sampled_from(["message_start", "content_block_delta", "ping", "é", "x y"])
NOISE = st.builds(":{}".format, LINE) | st.sampled_from(["retry: 10", "unknown: 1", "unknown", ": data: x"])
STREAM_BYTES = st.lists(
    st.sampled_from(
        [
            b"event: a",
            b"event:",
            b"data: {}",
            b"data",
            b":c",
            b"\r",
            b"\n",
            b"\r\n",
            b"\n\n",
            b"\xc3\xa9",
            b"\xff",
            b"\xc3",
            BOM,
        ]
    ),
    max_size=30,
).map(b"".join)
CUTS = st.lists(st.integers(0, 400), max_size=12)


@dataclass(frozen=True)
class Sent:
    """An event as it was sent: the lines on the wire, and what they mean."""

    lines: tuple[str, ...]
    name: str | None
    data: tuple[str, ...]


@st.composite
def _sent_events(draw: st.DrawFn) -> Sent:
    name = draw(st.none() | NAME)
    data = tuple(draw(st.lists(LINE, min_size=0 if name else 1, max_size=3)))
    lines = [f"data: {line}" for line in data]
    if name is not None:
        lines.insert(draw(st.integers(0, len(lines))), f"event: {name}")
    for extra in draw(st.lists(NOISE, max_size=2)):
        lines.insert(draw(st.integers(0, len(lines))), extra)
    return Sent(tuple(lines), name, data)


def _wire(events: Iterable[Sent], newline: str) -> bytes:
    return "".join(line + newline for event in events for line in (*event.lines, "")).encode()


def _cut(body: bytes, places: Iterable[int]) -> Iterator[bytes]:
    ends = sorted({0, len(body), *(place for place in places if place < len(body))})
    return (body[start:end] for start, end in pairwise(ends))


def _decode(chunks: Iterable[bytes], decoder: SSEDecoder | None = None) -> tuple[list[tuple[str, str, int]], object]:
    """Everything that a decoder makes of chunks: the events with their positions, and the error that ended them."""
    decoder = decoder or SSEDecoder()
    events: list[ServerSentEvent] = []
    error: object = None
    try:
        for chunk in chunks:
            events += decoder.feed(chunk)
        events += decoder.finish()
    except InvalidStream as failure:
        error = (failure.reason, failure.position)
    return [(event.name, event.data, event.position) for event in events], error


def _names_and_data(chunks: Iterable[bytes]) -> list[tuple[str, str]]:
    events, error = _decode(chunks)
    assert error is None
    return [(name, data) for name, data, _ in events]


@given(st.lists(_sent_events(), max_size=5), st.sampled_from(["\n", "\r", "\r\n"]), st.booleans(), st.booleans(), CUTS)
def test_what_was_sent_is_what_is_decoded(
    events: list[Sent], newline: str, bom: bool, complete: bool, places: list[int]
) -> None:
    """Any events, with any line ends, with or without byte order mark and last blank line, cut anywhere, come out."""
    body = BOM * bom + _wire(events, newline)
    if not complete:
        body = body.removesuffix(newline.encode())
    expected = [(event.name or "message", "\n".join(event.data)) for event in events]
    assert _names_and_data(_cut(body, places)) == expected


@given(STREAM_BYTES, CUTS, st.sampled_from([3, 12, 1 << 20]))
@example(b"data: a\r\r\ndata: b\r\r", [8, 9, 10, 17], 1 << 20)
@example(b"data: a\r\n\r\ndata: b\r\n\r\n", [8, 9, 10, 11], 1 << 20)
def test_how_bytes_are_cut_never_shows(body: bytes, places: list[int], limit: int) -> None:
    """Any bytes give the same events, positions and error whether they come at once, in pieces or one by one."""
    whole = _decode([body], SSEDecoder(max_event_bytes=limit))
    assert _decode(_cut(body, places), SSEDecoder(max_event_bytes=limit)) == whole
    assert _decode(_cut(body, range(len(body))), SSEDecoder(max_event_bytes=limit)) == whole


@given(st.lists(_sent_events(), max_size=5), st.sampled_from(["\n", "\r", "\r\n"]), CUTS)
def test_the_sdk_decodes_the_same(events: list[Sent], newline: str, places: list[int]) -> None:
    """Events that end properly are decoded as the SDK's own decoder does."""
    body = _wire([event for event in events if "retry: 10" not in event.lines], newline)
    theirs = [(event.event or "message", event.data) for event in SdkDecoder().iter_bytes(_cut(body, places))]
    assert _names_and_data(_cut(body, places)) == theirs


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"event: error\n\n", [("error", "")]),
        (b"data\n\n", [("message", "")]),
        (b"data: a\ndata:  b\ndata:c\n\n", [("message", "a\n b\nc")]),
        (b"event: a\nevent: b\ndata: x\n\n", [("b", "x")]),
        (b"event: a\nevent:\ndata: x\n\n", [("message", "x")]),
        (b"event: \ndata: x\n\n", [("message", "x")]),
        (b": nothing\n\nid: 3\n\n\n\n\n", []),
        (b"\n" + BOM + b"data: x\n\n", []),
        (b"DATA: x\n\n data: y\n\n", []),
        ("data: \x85\u2028\x0b\x0c\n\n".encode(), [("message", "\x85\u2028\x0b\x0c")]),
        (b"", []),
        (BOM, []),
    ],
)
def test_corners_of_the_grammar(body: bytes, expected: list[tuple[str, str]]) -> None:
    """Fields repeat, lack values, spaces or colons as the specification says; only its line ends end lines."""
    assert _names_and_data([body]) == expected
    # The first event of a stream and a later one take different paths.
    assert _names_and_data([GOOD, body.removeprefix(BOM)])[1:] == expected


def test_an_event_ended_by_carriage_returns_is_delivered_at_once() -> None:
    """An event isn't held back to see whether a line feed follows its last carriage return."""
    decoder = SSEDecoder()
    assert decoder.feed(b"data: a\r\n\r") == [ServerSentEvent("message", "a")]
    assert decoder.feed(b"\ndata: b\r\r") == [ServerSentEvent("message", "b")]
    assert decoder.feed(b"") == []
    assert decoder.feed(b"data: c\n\n") == [ServerSentEvent("message", "c")]
    assert decoder.position == len(b"data: a\r\n\r\ndata: b\r\rdata: c\n\n")


def test_events_before_a_bad_one_are_delivered_before_it_is_reported() -> None:
    """Nothing decoded is lost: good events come out first, then every further call raises."""
    decoder = SSEDecoder()
    assert [event.name for event in decoder.feed(GOOD + GOOD + BAD + GOOD)] == ["ping", "ping"]
    for call in (partial(decoder.feed, GOOD), decoder.finish, partial(decoder.feed, b"")):
        with pytest.raises(InvalidStream, match="not valid UTF-8") as failure:
            call()
        assert failure.value.position == 2 * len(GOOD)
    assert decoder.pending_bytes == 0
    assert "failed" in repr(decoder)


@pytest.mark.parametrize("before", [b"", GOOD, GOOD.replace(b"\n", b"\r\n")])
def test_a_bad_event_alone_raises_at_once(before: bytes) -> None:
    """Where nothing good would be returned, the call that met the bad event raises."""
    decoder = SSEDecoder()
    decoder.feed(before)
    with pytest.raises(InvalidStream) as failure:
        decoder.feed(BAD)
    assert failure.value.position == len(before)


def test_a_character_cut_off_by_the_end_is_reported_by_finish() -> None:
    """A body that ends within a character is invalid, and stays so."""
    decoder = SSEDecoder()
    assert decoder.feed(GOOD + b"data: \xc3") == [ServerSentEvent("ping", '{"type": "ping"}')]
    for _ in range(2):
        with pytest.raises(InvalidStream, match="UTF-8"):
            decoder.finish()


def test_finish_gives_the_pending_event_once() -> None:
    """The last event is delivered though its blank line is missing, and only once."""
    decoder = SSEDecoder()
    assert decoder.feed(GOOD[:-1]) == []
    assert decoder.pending_bytes == len(GOOD) - 1
    assert [event.name for event in decoder.finish()] == ["ping"]
    assert decoder.finish() == []
    assert decoder.position == len(GOOD) - 1


def test_a_line_that_never_ends_cannot_eat_memory() -> None:
    """Input without an event's end is refused once it is longer than allowed, whatever has been fed before."""
    decoder = SSEDecoder(max_event_bytes=1000)
    decoder.feed(GOOD)
    while decoder.pending_bytes < 1000:
        decoder.feed(b"x" * 100)
    with pytest.raises(InvalidStream, match="longer than 1000 bytes") as failure:
        decoder.feed(b"x" * 100)
    assert failure.value.position == len(GOOD)
    assert decoder.pending_bytes == 0


@pytest.mark.parametrize("terminator", [b"\n\n", b"\r\n\r\n", b""])
def test_the_longest_event_that_is_allowed_passes(terminator: bytes) -> None:
    """An event of exactly the limit is decoded, and one byte more is refused, complete or not."""
    event = b"data: " + b"x" * 94
    assert _decode([GOOD, event + terminator], SSEDecoder(max_event_bytes=100))[1] is None
    error = _decode([GOOD, event + b"x" + terminator], SSEDecoder(max_event_bytes=100))[1]
    assert error == ("an event is longer than 100 bytes", len(GOOD))


@given(st.dictionaries(st.text(), st.none() | st.integers() | st.text() | st.lists(st.integers())))
def test_the_data_of_an_event_is_decoded_as_json(value: dict[str, object]) -> None:
    """A JSON object in the data comes out as it is, lone surrogates (which JSON allows) included."""
    assert ServerSentEvent("x", json.dumps(value)).json() == value
    assert ServerSentEvent("x", '{"text": "\\ud83d"}').json() == {"text": "\ud83d"}


@pytest.mark.parametrize("data", ["", "{", "[1]", "3", '"text"', "null", "[" * 100_000])
def test_data_that_is_no_json_object_is_reported_with_its_place(data: str) -> None:
    """Bad JSON, no object, or nesting without end raise `InvalidStream`, which doesn't hold the data."""
    with pytest.raises(InvalidStream) as failure:
        ServerSentEvent("x", data, position=42).json()
    assert failure.value.position == 42
    assert failure.value.__cause__ is None
    copied = pickle.loads(pickle.dumps(failure.value))
    assert (str(copied), copied.position) == (str(failure.value), 42)


def test_no_repr_shows_content() -> None:
    """Neither an event nor a decoder shows what it holds, because it may be a completion."""
    decoder = SSEDecoder()
    events = decoder.feed(b"event: x\ndata: secret\n\ndata: secret")
    assert "secret" not in repr(events) + repr(decoder)
    assert repr(events[0]) == "ServerSentEvent('x', 6 characters, position=0)"
    assert repr(decoder) == "SSEDecoder(position=23, pending_bytes=12)"


def test_events_are_equal_wherever_they_stand() -> None:
    """Name and data make an event; its position in the stream doesn't."""
    assert ServerSentEvent("a", "b", 1) == ServerSentEvent("a", "b", 2) != ServerSentEvent("a", "c", 1)


def test_a_stream_decoded_from_its_middle_counts_on() -> None:
    """Positions go on from where it began, and what would be a byte order mark at a start is none."""
    decoder = SSEDecoder(position=100)
    assert [(event.name, event.position) for event in decoder.feed(BOM + GOOD)] == [("message", 100)]
    assert [event.position for event in decoder.feed(GOOD)] == [100 + len(BOM + GOOD)]
    with pytest.raises(InvalidStream) as failure:
        decoder.feed(BAD)
    assert failure.value.position == 100 + len(BOM + GOOD + GOOD)


@given(name=NAME, data=LINE)
def test_an_event_of_two_lines_reads_as_the_decoder_reads_it(name: str, data: str) -> None:
    """Its lines say the same undecoded."""
    block = f"event: {name}\ndata: {data}".encode()
    lines = two_lines(block)
    assert lines is not None
    assert SSEDecoder().feed(block + b"\n\n") == [ServerSentEvent(lines[0].decode(), lines[1].decode())]


@pytest.mark.parametrize(
    "block",
    [
        b"event: ping",
        b"data: {}",
        b"event: ping\ndata: {}\ndata: {}",
        b"event: ping\r\ndata: {}",
        b"event: ping\ndata: {}\r",
        b"event: ping\nid: 1\ndata: {}",
        b"event:ping\ndata: {}",
        b"event: ping\ndata:{}",
        BOM + b"event: ping\ndata: {}",
        b"",
    ],
)
def test_any_other_event_is_left_to_the_decoder(block: bytes) -> None:
    """One that has more or fewer lines, other line ends, or is written in another way."""
    assert two_lines(block) is None
