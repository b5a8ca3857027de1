from __future__ import annotations

import json
import pickle
import sys
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
from anthropic._streaming import SSEDecoder as SdkDecoder
from hypothesis import example, given, settings
from hypothesis import strategies as st

from penstock._core.body import sse
from penstock._core.body.sse import ServerSentEvent, Splitter, data_of, decode, field_of, kind_of, name_of
from penstock.errors import InvalidStream

if TYPE_CHECKING:
    import re
    from collections.abc import Callable, Iterable, Iterator

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


def _decode(chunks: Iterable[bytes], splitter: Splitter | None = None) -> tuple[list[tuple[str, str, int]], object]:
    """Everything that a reader makes of chunks: the events with their positions, and the error that ended them."""
    splitter = splitter or Splitter()
    events: list[tuple[str, str, int]] = []
    error: object = None
    cuts: list[Callable[[], list[bytes]]] = [*(partial(splitter.feed, chunk) for chunk in chunks), splitter.finish]
    try:
        for cut in cuts:
            raws = cut()
            for raw, start in zip(raws, splitter.starts, strict=True):
                event = decode(raw, start)
                events += [] if event is None else [(event.name, event.data, event.position)]
    except InvalidStream as failure:
        error = (failure.reason, failure.position)
    return events, error


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
    whole = _decode([body], Splitter(max_event_bytes=limit))
    assert _decode(_cut(body, places), Splitter(max_event_bytes=limit)) == whole
    assert _decode(_cut(body, range(len(body))), Splitter(max_event_bytes=limit)) == whole


@pytest.mark.parametrize("newline", [b"\n", b"\r\n", b"\r"])
def test_raw_events_hold_nothing_of_their_blank_line(newline: bytes) -> None:
    """However it is cut: a line end that comes in two chunks is one."""
    body, raw = GOOD.replace(b"\n", newline), GOOD[:-2].replace(b"\n", newline)
    splitter = Splitter()
    assert [raw for at in range(2 * len(body)) for raw in splitter.feed((body * 2)[at : at + 1])] == [raw, raw]


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
    splitter = Splitter()
    assert splitter.feed(b"data: a\r\n\r") == [b"data: a"]
    assert splitter.feed(b"\ndata: b\r\r") == [b"data: b"]
    assert splitter.feed(b"") == []
    assert splitter.feed(b"data: c\n\n") == [b"data: c"]
    assert splitter.position == len(b"data: a\r\n\r\ndata: b\r\rdata: c\n\n")


def test_events_before_one_that_is_too_long_are_delivered_before_it_is_reported() -> None:
    """Nothing cut is lost: good events come out first, then every further call raises."""
    splitter = Splitter(max_event_bytes=50)
    assert splitter.feed(GOOD + GOOD + b"x" * 51 + b"\n\n" + GOOD) == [GOOD[:-2], GOOD[:-2]]
    for call in (partial(splitter.feed, GOOD), splitter.finish, partial(splitter.feed, b"")):
        with pytest.raises(InvalidStream, match="longer than 50 bytes") as failure:
            call()
        assert failure.value.position == 2 * len(GOOD)
    assert splitter.pending_bytes == 0


@pytest.mark.parametrize("before", [b"", GOOD, GOOD.replace(b"\n", b"\r\n"), GOOD.replace(b"\n", b"\r")])
def test_an_event_that_is_no_utf8_is_reported_with_its_place(before: bytes) -> None:
    """Whoever looks into it is told where it stands; the events around it are whole."""
    splitter = Splitter()
    raws = splitter.feed(before + BAD + GOOD)
    bad = raws.index(BAD[:-2])
    assert splitter.starts[bad] == len(before)
    with pytest.raises(InvalidStream, match="not valid UTF-8") as failure:
        decode(raws[bad], splitter.starts[bad])
    assert failure.value.position == len(before)
    assert raws[bad + 1 :] == [GOOD[:-2]]


def test_a_character_cut_off_by_the_end_is_no_utf8() -> None:
    """A body that ends within a character is invalid."""
    splitter = Splitter()
    assert splitter.feed(GOOD + b"data: \xc3") == [GOOD[:-2]]
    (raw,) = splitter.finish()
    with pytest.raises(InvalidStream, match="UTF-8"):
        decode(raw)


@pytest.mark.parametrize("newline", [b"\n", b"\r\n", b"\r"])
def test_finish_gives_the_pending_event_once(newline: bytes) -> None:
    """The last event is delivered though its blank line is missing, and only once."""
    splitter, body = Splitter(), GOOD.replace(b"\n", newline).removesuffix(newline)
    assert splitter.feed(body) == []
    assert splitter.pending_bytes == len(body)
    assert [name_of(raw) for raw in splitter.finish()] == ["ping"]
    assert (splitter.finish(), splitter.starts) == ([], [])
    assert splitter.position == len(body)


@pytest.mark.parametrize("before", [GOOD, GOOD.replace(b"\n", b"\r\n")], ids=["LF", "CRLF"])
def test_a_line_that_never_ends_cannot_eat_memory(before: bytes) -> None:
    """Input without an event's end is refused once it is longer than allowed, whatever has been fed before."""
    splitter = Splitter(max_event_bytes=1000)
    splitter.feed(before)
    while splitter.pending_bytes < 1000:
        splitter.feed(b"x" * 100)
    with pytest.raises(InvalidStream, match="longer than 1000 bytes") as failure:
        splitter.feed(b"x" * 100)
    assert failure.value.position == len(before)
    assert splitter.pending_bytes == 0


@pytest.mark.parametrize("terminator", [b"\n\n", b"\r\n\r\n", b""])
def test_the_longest_event_that_is_allowed_passes(terminator: bytes) -> None:
    """An event of exactly the limit is decoded, and one byte more is refused, complete or not."""
    event = b"data: " + b"x" * 94
    assert _decode([GOOD, event + terminator], Splitter(max_event_bytes=100))[1] is None
    error = _decode([GOOD, event + b"x" + terminator], Splitter(max_event_bytes=100))[1]
    assert error == ("an event is longer than 100 bytes", len(GOOD))


def test_it_knows_where_it_stands() -> None:
    """Position and cleanness follow what was given, and what was passed over counts."""
    splitter = Splitter()
    assert splitter.feed(b"event: a\ndata: 1\n\nevent") == [b"event: a\ndata: 1"]
    assert (splitter.starts, splitter.position, splitter.clean) == ([0], 18, False)
    assert splitter.feed(b": b\n") == []
    assert splitter.starts == []
    assert splitter.feed(b"\n") == [b"event: b"]
    assert (splitter.starts, splitter.position, splitter.clean) == ([18], 28, True)
    splitter.position += len(GOOD)
    assert splitter.feed(GOOD + GOOD) == [GOOD[:-2]] * 2
    assert splitter.starts == [28 + len(GOOD), 28 + 2 * len(GOOD)]


@pytest.mark.parametrize("newline", [b"\r\n", b"\r"])
def test_other_line_ends_may_come_in_the_middle(newline: bytes) -> None:
    """From the first carriage return on they are looked for everywhere."""
    splitter, later = Splitter(), GOOD.replace(b"\n", newline)
    raws = [*splitter.feed(GOOD), *splitter.feed(later), *splitter.feed(later + GOOD)]
    assert [(name_of(raw), data_of(raw)) for raw in raws] == [("ping", {"type": "ping"})] * 4
    assert not splitter.clean
    assert splitter.position == 2 * len(GOOD) + 2 * len(later)


@given(STREAM_BYTES, CUTS)
@example(b"\n\nevent: a\n\n" + BOM + b"data\n\n\nevent: a\n\n\n\xc3\xa9\n\ndata", [11, 12, 13, 25])
def test_only_events_without_a_word_are_passed_over(body: bytes, places: list[int]) -> None:
    """However it is cut and whatever its line ends, each event that has one of the words is given, and its place."""
    words = (b"event", b"\xc3")
    plain, passing = Splitter(), Splitter()
    expected: list[tuple[int, bytes]] = []
    given_: list[tuple[int, bytes]] = []
    for chunk in _cut(body, places):
        raws = plain.feed(chunk)
        expected += zip(plain.starts, raws, strict=True)
        rest = passing.pass_over(chunk, words)
        raws = passing.feed(rest) if rest else []
        given_ += zip(passing.starts if rest else [], raws, strict=True)
        assert passing.position + passing.pending_bytes == plain.position + plain.pending_bytes
        assert not (passing.clean and passing.pending_bytes)
    assert set(given_) <= set(expected)
    assert [each for each in given_ if any(word in each[1] for word in words)] == [
        each for each in expected if any(word in each[1] for word in words)
    ]
    assert [raw for raw in passing.finish() if b"event" in raw] == [raw for raw in plain.finish() if b"event" in raw]


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
    """Neither an event nor a splitter shows what it holds, because it may be a completion."""
    splitter = Splitter()
    (raw,) = splitter.feed(b"event: x\ndata: secret\n\ndata: secret")
    event = decode(raw)
    assert "secret" not in repr(event) + repr(splitter)
    assert repr(event) == "ServerSentEvent('x', 6 characters, position=0)"
    assert repr(splitter) == "Splitter(position=23, pending_bytes=12)"


def test_events_are_equal_wherever_they_stand() -> None:
    """Name and data make an event; its position in the stream doesn't."""
    assert ServerSentEvent("a", "b", 1) == ServerSentEvent("a", "b", 2) != ServerSentEvent("a", "c", 1)


# Looking into a raw event: the short cuts say what the grammar says.

LINES = st.sampled_from([
    b"event: ping", b"event: content_block_delta", b"event:x", b"event: message", b"event", b'data: {"type": "ping"}',
    b'data: {"a":', b"data: 1}", b'data:{"type":"y"}', b"data", b"data: ", b": a comment", b"id: 3", b"retry: 5",
    b"nonsense", '"wörld": 1}'.encode(), b"data: {", "data: wörld".encode(), b'data: {"a": "\\ud83d"}', b"data: [1]",
    b"data: \xff", b"event: \xff", b" data: x",
])  # fmt: skip


def _plainly(raw: bytes) -> tuple[object, ...]:
    """Name and data of a raw event by the grammar alone, read off an event of lines; errors by what they say."""
    try:
        event = decode(b": no short cut\n" + raw)
    except InvalidStream as error:
        return (error.reason,)
    if event is None:
        return "", None
    try:
        data = event.json() if event.data else None
    except InvalidStream as error:
        return kind_of(event.name, None), error.reason
    return kind_of(event.name, data), data


def _quickly(raw: bytes) -> tuple[object, ...]:
    """The same by the short cuts."""
    try:
        decode(raw)
    except InvalidStream as error:
        return (error.reason,)
    try:
        return name_of(raw), data_of(raw)
    except InvalidStream as error:
        return name_of(raw), error.reason


@pytest.mark.lengthy
@settings(max_examples=400)
@given(lines=st.lists(LINES, min_size=1, max_size=4), newline=st.sampled_from([b"\n", b"\n", b"\r\n", b"\r"]))
@example(lines=[b'data: {"type": "ping"}', b'data: {"type": "ping"}'], newline=b"\n")
@example(lines=[b"event:x", b"data: {", '"wörld": 1}'.encode()], newline=b"\n")
@example(lines=[b"event: ping", b"data: {", '"wörld": 1}'.encode()], newline=b"\n")
def test_the_short_cuts_say_what_the_grammar_says(lines: list[bytes], newline: bytes) -> None:
    """Whatever the lines and their ends, name and data are those that the specification gives them."""
    raw = newline.join(lines)
    assert _quickly(raw) == _plainly(raw)


@given(name=NAME, data=LINE)
def test_an_event_of_two_lines_reads_like_one_spelled_otherwise(name: str, data: str) -> None:
    """The API's own spelling takes another path to the same event."""
    quick = decode(f"event: {name}\ndata: {data}".encode())
    assert quick == decode(f": \nevent: {name}\ndata: {data}".encode()) == ServerSentEvent(name, data)


SAYS_PING = [
    b'event: ping\ndata: {"type": "ping"}',
    b'event:ping\ndata:{"type":"ping"}',
    b'data: {"type": "ping"}\nevent: ping',
    b'data:{"type": "ping"}',
    b'data: {"type":\ndata: "ping"}',
    b': hi\nevent: ping\nid: 4\ndata: {"type": "ping"}\nretry: 10',
    b'event: message\ndata: {"type": "ping"}',
    b'event: \ndata: {"type": "ping"}',
]


@pytest.mark.parametrize("newline", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("raw", SAYS_PING)
def test_these_all_say_the_same(raw: bytes, newline: bytes) -> None:
    """With or without a space or a name, in any order, with comments and other fields, after a byte order mark."""
    body = BOM + raw.replace(b"\n", newline) + newline * 2
    for cut in range(len(body) + 1):
        splitter = Splitter()
        raws = [*splitter.feed(body[:cut]), *splitter.feed(body[cut:]), *splitter.finish()]
        assert [(name_of(raw), data_of(raw)) for raw in raws] == [("ping", {"type": "ping"})]


@pytest.mark.parametrize(
    ("raw", "name", "data"),
    [
        (b": comment", "", None),
        (b": comment on data", "", None),
        (b"id: 3\nretry: 10", "", None),
        (b"event: error", "error", None),
        (b"event: error\ndata", "error", None),
        (b"data: {}", "", {}),
        (b'data: {"type": 3}', "", {"type": 3}),
        (b'id: 7\nevent: a\ndata: {"a": 1}\nretry: 3', "a", {"a": 1}),
        (b'event: a\ndata: {"a":\ndata: 1}', "a", {"a": 1}),
        (b'event: a\ndata: {"a": "\\ud83d"}', "a", {"a": "\ud83d"}),
        (b'data: {"type": "a", "b": "\\ud83d"}', "a", {"type": "a", "b": "\ud83d"}),
    ],
)
def test_unusual_but_valid_events(raw: bytes, name: str, data: object) -> None:
    """Comments, other fields, missing data, several lines of it and lone surrogates are what grammar and JSON allow."""
    assert (name_of(raw), data_of(raw)) == (name, data)


def test_data_that_is_no_json_object_is_told() -> None:
    """Bad JSON, another type and invalid UTF-8 raise without quoting; an unnamed event of bad data is nothing known."""
    for body, reason in [
        (b"event: a\ndata: {secret", "not valid JSON"),
        (b"event: a\ndata: [1]", "not a JSON object"),
        (b'event: a\ndata: {"a": "\xff"}', "not valid UTF-8"),
    ]:
        with pytest.raises(InvalidStream, match=reason) as caught:
            data_of(body)
        assert "secret" not in str(caught.value)
    assert name_of(b"data: [DONE]") == ""
    with pytest.raises(InvalidStream, match="UTF-8"):
        name_of(b"data: \xff")


def test_a_field_of_what_is_no_object_is_none() -> None:
    """Whatever was decoded may be asked."""
    assert field_of({"a": 1}, "a") == 1
    others: list[object] = [{}, None, [], "a", 3]
    assert [field_of(value, "a") for value in others] == [None] * 5


# Linear time.


def _calls(piece: bytes, times: int) -> int:
    """How many functions are called for single bytes."""
    splitter, calls, body = Splitter(), 0, piece * times

    def count(_frame: object, event: str, _argument: object) -> None:
        nonlocal calls
        calls += event in {"call", "c_call"}

    sys.setprofile(count)
    try:
        for at in range(len(body)):
            splitter.feed(body[at : at + 1])
    finally:
        sys.setprofile(None)
    return calls


@pytest.mark.lengthy
@pytest.mark.parametrize("piece", [GOOD, b"x", b"\n", b"\r", b"\r\n", b":\r\n"], ids=repr)
def test_twice_the_bytes_are_twice_the_work(piece: bytes) -> None:
    """One byte at a time, whatever the bytes: events, a line without end, blank lines."""
    times = 1000 // len(piece)
    assert _calls(piece, 2 * times) <= 2.05 * _calls(piece, times)


def test_only_new_bytes_are_searched_for_other_line_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """A line without end in single bytes is not looked through again for each."""
    searched = 0

    class Counting:
        def search(self, pending: bytearray, start: int) -> re.Match[bytes] | None:
            nonlocal searched
            searched += len(pending) - start
            return pattern.search(pending, start)

    pattern = sse._BLANK_LINES
    monkeypatch.setattr(sse, "_BLANK_LINES", Counting())
    splitter = Splitter()
    splitter.feed(b"\r")
    for _ in range(1000):
        splitter.feed(b"x")
    assert searched <= 3 * 1001
