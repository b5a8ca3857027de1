from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from penstock._core.body.scan import JSONScanner, Scanner, StreamScanner
from penstock._core.failure import FailureKind
from penstock._core.usage import Usage

# Words of the protocol, as a model may write them, and characters of one to four bytes.
WORDS = 'event: error\nevent: message_delta\ndata: {"usage": {"output_tokens": 9999}} message_stop "text_delta" é—🌊'


def event(name: str, **data: Any) -> bytes:
    """One event as the API writes it."""
    return f"event: {name}\ndata: {json.dumps({'type': name, **data}, ensure_ascii=False)}\n\n".encode()


def text(words: str) -> bytes:
    """One delta of text."""
    return event("content_block_delta", index=0, delta={"type": "text_delta", "text": words})


START = event(
    "message_start",
    message={"id": "msg_1", "role": "assistant", "usage": {"input_tokens": 25, "output_tokens": 1}, "content": []},
)
OPEN = event("content_block_start", index=0, content_block={"type": "text", "text": ""})
PING = event("ping")
CLOSE = event("content_block_stop", index=0)
DELTA = event(
    "message_delta",
    delta={"stop_reason": "end_turn", "stop_sequence": None},
    usage={"input_tokens": 25, "cache_read_input_tokens": 7, "output_tokens": 15},
)
STOP = event("message_stop")
RECORDED = START + OPEN + PING + text("Hello") + text(WORDS) + text(" world") + CLOSE + DELTA + STOP
WHOLE_USAGE = Usage(input_tokens=25, cache_read_input_tokens=7, output_tokens=15)


def scanned(scanner: Scanner, *chunks: bytes) -> Scanner:
    """The scanner, after a body of these chunks."""
    for chunk in chunks:
        scanner.see(chunk)
    scanner.finish()
    return scanner


def told(scanner: Scanner) -> tuple[object, ...]:
    """All that a scanner tells."""
    return scanner.usage, scanner.stop_reason, scanner.has_content, scanner.complete, scanner.failure


# Streams.


def test_a_whole_stream_tells_everything() -> None:
    """Usage of the last event, stop reason, content, and that it is complete."""
    assert told(scanned(StreamScanner(), RECORDED)) == (WHOLE_USAGE, "end_turn", True, True, None)


@pytest.mark.lengthy
def test_every_split_in_two_tells_the_same() -> None:
    """Where the bytes are cut never shows, not inside a name, a number or a character either."""
    expected = told(scanned(StreamScanner(), RECORDED))
    for cut in range(len(RECORDED) + 1):
        assert told(scanned(StreamScanner(), RECORDED[:cut], RECORDED[cut:])) == expected, cut


@pytest.mark.parametrize("size", [1, 2, 3, 7, 31, 32, 33])
def test_pieces_of_any_size_tell_the_same(size: int) -> None:
    """The same holds for a body that comes in crumbs."""
    chunks = [RECORDED[at : at + size] for at in range(0, len(RECORDED), size)]
    assert told(scanned(StreamScanner(), *chunks)) == told(scanned(StreamScanner(), RECORDED))


@given(words=st.text(), cuts=st.lists(st.integers(min_value=0, max_value=2000)))
@example(words="event: error", cuts=[])
@example(words="message_stop", cuts=[400])
def test_no_text_fools_it(words: str, cuts: list[int]) -> None:
    """Whatever the model writes, and however it is cut, only real events count."""
    body = START + OPEN + text(words) + text(words) + CLOSE + DELTA + STOP
    edges = [0, *sorted(cut % len(body) for cut in cuts), len(body)]
    chunks = [body[a:b] for a, b in itertools.pairwise(edges)]
    assert told(scanned(StreamScanner(), *chunks)) == (WHOLE_USAGE, "end_turn", True, True, None)


@pytest.mark.parametrize("words", ["message_stop", "event: error", "event: message_delta", WORDS])
def test_words_of_the_protocol_in_a_truncated_text_are_no_events(words: str) -> None:
    """A stream that broke off after such text is neither complete nor failed, and used what its start said."""
    usage = Usage(input_tokens=25, output_tokens=1)
    assert told(scanned(StreamScanner(), START + OPEN + text(words))) == (usage, None, True, False, None)


def test_every_truncation_is_incomplete() -> None:
    """Cut anywhere before its last event begins to be readable, a stream is not complete, and no error is made up."""
    for cut in range(len(RECORDED) - len(STOP)):
        scanner = scanned(StreamScanner(), RECORDED[:cut])
        assert not scanner.complete, cut
        assert scanner.failure is None, cut


def test_the_last_event_needs_no_blank_line() -> None:
    """A stream whose very last line end is missing is complete."""
    assert scanned(StreamScanner(), RECORDED.rstrip(b"\n")).complete


def test_what_comes_before_the_start_costs_nothing() -> None:
    """Pings and comments may precede the first event that counts, in its chunk or in one of their own."""
    before = b": hello\n\nevent: ping\ndata: {}\n\n"
    for chunks in ([before + START], [before, START], [before, START[:20], START[20:]]):
        scanner = StreamScanner()
        for chunk in (*chunks, OPEN, text("Hi")):
            scanner.see(chunk)
        scanner.finish()
        assert scanner.usage == Usage(input_tokens=25, output_tokens=1)


def test_an_error_event_is_what_it_is() -> None:
    """Inside an HTTP 200, the event's type says what failed; what was counted before stays."""
    error = event("error", error={"type": "overloaded_error", "message": "Overloaded"})
    for chunks in ([START + OPEN + text("Hi") + error], [START, OPEN, text("Hi"), error[:9], error[9:]], [error]):
        scanner = scanned(StreamScanner(), *chunks)
        assert scanner.failure is not None
        assert scanner.failure.kind is FailureKind.OVERLOADED
        assert not scanner.complete


def test_usage_is_cumulative_not_added() -> None:
    """Of several `message_delta` events the last one counts."""
    early = event("message_delta", delta={}, usage={"output_tokens": 5})
    scanner = scanned(StreamScanner(), START, early, DELTA, STOP)
    assert scanner.usage == WHOLE_USAGE


@pytest.mark.parametrize(
    ("delta", "has_content"),
    [
        ({"type": "text_delta", "text": "a"}, True),
        ({"type": "input_json_delta", "partial_json": "{"}, True),
        ({"type": "thinking_delta", "thinking": "hm"}, True),
        ({"type": "signature_delta", "signature": "s"}, False),
    ],
)
def test_content_is_what_a_reader_would_see(delta: dict[str, str], has_content: bool) -> None:
    """Starts, pings and signatures are no content."""
    body = START + PING + OPEN + event("content_block_delta", index=0, delta=delta)
    assert scanned(StreamScanner(), body).has_content is has_content


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xff\xfe\xfd\n\n",
        b"event: message_start\ndata: nonsense\n\n",
        b"event: message_start\ndata: []\n\nevent: message_stop\ndata: {]\n\n",
        event("message_start", message=5) + event("message_delta", usage=[], delta=3),
        b"event: message_delta\ndata: \xff\n\n",
        b"event: message_delta",
    ],
)
def test_nonsense_is_left_unknown(body: bytes) -> None:
    """Nothing raises on any bytes."""
    scanner = scanned(StreamScanner(), body)
    assert (scanner.usage, scanner.complete, scanner.failure) == (None, False, None)


@given(st.lists(st.binary(max_size=80) | st.sampled_from([START, DELTA, STOP, b"event: error\n", b"message_delta"])))
def test_no_bytes_raise(chunks: list[bytes]) -> None:
    """Any mixture of bytes and events is looked at without an error."""
    scanned(StreamScanner(), *chunks)


def test_after_invalid_bytes_the_end_is_still_read() -> None:
    """A broken first event costs its usage, not that of the last one."""
    scanner = scanned(StreamScanner(), b"event: x\ndata: \xff\n\n", START, DELTA, STOP)
    assert (scanner.usage, scanner.complete) == (WHOLE_USAGE, True)


def test_a_long_stream_is_not_kept() -> None:
    """Memory for a stream of ordinary text is a few bytes, however long it is."""
    scanner = StreamScanner()
    scanner.see(START)
    for _ in range(10_000):
        scanner.see(text("word "))
    assert scanner._kept is None
    assert len(scanner._overlap) <= 32


# Plain bodies.


def test_a_message_tells_usage_and_stop_reason() -> None:
    """A plain body is decoded once it is whole, in however many chunks it came."""
    body = json.dumps({"type": "message", "usage": {"input_tokens": 3, "output_tokens": 4}, "stop_reason": "end_turn"})
    for cut in range(len(body)):
        scanner = scanned(JSONScanner(), body[:cut].encode(), body[cut:].encode())
        assert told(scanner) == (Usage(input_tokens=3, output_tokens=4), "end_turn", False, True, None)


@pytest.mark.parametrize("body", [b"", b"{", b"<html>", b"\xff", b"[" * 100_000, b"5", b"[]", b"null"])
def test_a_body_that_is_no_message_is_left_unknown(body: bytes) -> None:
    """Truncated, foreign or hostile bodies raise nothing."""
    assert told(scanned(JSONScanner(), body)) == (None, None, False, False, None)


@pytest.mark.parametrize("fields", [{}, {"usage": None, "stop_reason": None}, {"usage": [1], "stop_reason": 5}])
def test_a_message_without_usage_is_complete(fields: dict[str, object]) -> None:
    """A compatible server may leave them out."""
    assert told(scanned(JSONScanner(), json.dumps(fields).encode())) == (None, None, False, True, None)


def test_a_body_too_large_for_a_message_is_not_kept() -> None:
    """Beyond 32 MB nothing is held back for decoding, and nothing raises."""
    scanner = JSONScanner()
    for _ in range(40):
        scanner.see(b" " * 1024 * 1024)
    assert sum(map(len, scanner._body)) <= 32 * 1024 * 1024
    scanner.finish()
    assert not scanner.complete
