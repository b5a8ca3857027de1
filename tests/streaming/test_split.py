from __future__ import annotations

import json
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock._core.body.sse import SSEDecoder
from penstock.errors import InvalidStream
from penstock.streaming import split
from penstock.streaming.split import Splitter, data_of, name_of, text_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from penstock.streaming.split import Raw

LINES = st.sampled_from([
    b"event: ping", b"event: content_block_delta", b"event:x", b'data: {"type": "ping"}', b'data: {"a":', b"data: 1}",
    b"data", b": a comment", b"id: 3", b"retry: 5", b"nonsense", "data: wörld".encode(), b"", b"\xef\xbb\xbfevent: y",
])  # fmt: skip
ENDS = st.sampled_from([b"\n", b"\n", b"\n", b"\r\n", b"\r"])


def cut(body: bytes, places: Sequence[int]) -> list[bytes]:
    """The body in chunks."""
    edges = [0, *sorted(place % (len(body) + 1) for place in places), len(body)]
    return [body[a:b] for a, b in pairwise(edges)]


def split_all(chunks: Sequence[bytes]) -> list[Raw]:
    """All events of a body."""
    splitter = Splitter()
    events = [raw for chunk in chunks for raw in splitter.feed(chunk)]
    return [*events, *splitter.finish()]


def told(events: Sequence[Raw]) -> list[tuple[str, str]]:
    """Names and data, without what neither has."""
    named = [(name_of(raw), text_of(raw)) for raw in events]
    return [(name, data) for name, data in named if (name, data) != ("message", "")]


@given(lines=st.lists(st.tuples(LINES, ENDS), max_size=20), places=st.lists(st.integers(0, 500), max_size=6))
def test_it_finds_what_the_decoder_finds(lines: list[tuple[bytes, bytes]], places: list[int]) -> None:
    """Whatever the lines, their ends and the chunks, names and data are those of the decoder that knows the grammar."""
    body = b"".join(line + end for line, end in lines)
    decoder = SSEDecoder()
    wanted = [*decoder.feed(body), *decoder.finish()]
    expected = [(event.name, event.data) for event in wanted if (event.name, event.data) != ("message", "")]
    assert told(split_all(cut(body, places))) == expected


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64])
def test_chunks_never_show(wire: Any, size: int) -> None:
    """A stream in chunks of any size gives the same events."""
    body = wire.sse(*wire.recorded)
    chunks = [body[at : at + size] for at in range(0, len(body), size)]
    assert split_all(chunks) == split_all([body])
    assert len(split_all([body])) == len(wire.recorded)


@pytest.mark.parametrize("end", ["\r\n", "\r"])
def test_other_line_ends_give_the_same_data(wire: Any, end: str) -> None:
    """From a carriage return on, the decoder takes over, also in the middle of a stream."""
    first, rest = wire.sse(*wire.recorded[:3]), wire.sse(*wire.recorded[3:], end=end)
    splitter = Splitter()
    events = [*splitter.feed(first), *splitter.feed(rest), *splitter.finish()]
    assert [data_of(raw) for raw in events] == wire.recorded
    assert [name_of(raw) for raw in events] == [event["type"] for event in wire.recorded]
    assert not splitter.clean
    assert splitter.position == len(first + rest)


def test_it_knows_where_it_stands() -> None:
    """Position and cleanness follow what was given."""
    splitter = Splitter()
    assert list(splitter.feed(b"event: a\ndata: 1\n\nevent")) == [b"event: a\ndata: 1"]
    assert (splitter.position, splitter.clean) == (18, False)
    assert repr(splitter) == "Splitter(position=18, pending_bytes=5)"
    assert list(splitter.feed(b": b\n")) == []
    assert list(splitter.feed(b"\n")) == [b"event: b"]
    assert (splitter.position, splitter.clean) == (28, True)
    assert list(splitter.finish()) == []


def test_a_last_event_without_its_blank_line_is_given() -> None:
    """As the decoder does it, because the stream says all the same what it says."""
    splitter = Splitter()
    splitter.feed(b"event: a\ndata: {}")
    assert list(splitter.finish()) == [b"event: a\ndata: {}"]


def test_an_event_that_never_ends_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is held is bounded, in both ways of working."""
    monkeypatch.setattr(split, "_MOST_BYTES", 100)
    splitter = Splitter()
    splitter.feed(b"event: a\n\nevent: " + b"x" * 50)
    with pytest.raises(InvalidStream, match="longer than 100 bytes") as caught:
        splitter.feed(b"x" * 50)
    assert caught.value.position == 10
    splitter = Splitter()
    splitter.feed(b"event: a\n\n")
    splitter.feed(b"event: b\r\n\r\n")
    with pytest.raises(InvalidStream, match="longer than 100 bytes") as caught:
        splitter.feed(b"x" * 120)
    assert caught.value.position == 22


def test_data_that_is_no_json_object_is_told() -> None:
    """Bad JSON, another type and invalid UTF-8 raise without quoting; no data is nothing."""
    for body, reason in [
        (b"event: a\ndata: {secret", "not valid JSON"),
        (b"event: a\ndata: [1]", "not a JSON object"),
        (b'event: a\ndata: {"a": "\xff"}', "not valid UTF-8"),
    ]:
        with pytest.raises(InvalidStream, match=reason) as caught:
            data_of(body)
        assert "secret" not in str(caught.value)
    assert data_of(b"event: a") is None
    assert data_of(b": comment") is None
    assert name_of(b": comment") == "message"


def test_unusual_but_valid_data_is_decoded() -> None:
    """Several data lines, other fields and lone surrogates are what the grammar and JSON allow."""
    assert data_of(b'event: a\ndata: {"a":\ndata: 1}') == {"a": 1}
    assert data_of(b'id: 7\nevent: a\ndata: {"a": 1}\nretry: 3') == {"a": 1}
    assert name_of(b'id: 7\nevent: a\ndata: {"a": 1}\nretry: 3') == "a"
    assert data_of(b'event: a\ndata: {"a": "\\ud83d"}') == {"a": json.loads('"\\ud83d"')}
    assert text_of(b"event: a\ndata: x") == "x"
    assert text_of(SSEDecoder().feed(b"event: a\ndata: x\n\n")[0]) == "x"
