from __future__ import annotations

import json
import sys
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from penstock._core.body.scanner import NOT_A_MESSAGE, NOT_A_STREAM, Scanner, brings_content, is_message
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
ERROR = event("error", error={"type": "overloaded_error", "message": "Overloaded"})
RECORDED = START + OPEN + PING + text("Hello") + text(WORDS) + text(" world") + CLOSE + DELTA + STOP
WHOLE_USAGE = Usage(input_tokens=25, cache_read_input_tokens=7, output_tokens=15)


def scanned(*chunks: bytes, stream: bool = True) -> Scanner:
    """A scanner, after a body of these chunks."""
    scanner = seen(*chunks, stream=stream)
    scanner.finish()
    return scanner


def seen(*chunks: bytes, stream: bool = True) -> Scanner:
    """A scanner, after these chunks, of a body that goes on."""
    scanner = Scanner(stream=stream)
    for chunk in chunks:
        scanner.see(chunk)
    return scanner


def told(scanner: Scanner) -> tuple[object, ...]:
    """All that a scanner tells."""
    return scanner.usage, scanner.stop_reason, scanner.begun, scanner.complete, scanner.failure


def otherwise(
    body: bytes, *, newline: bytes = b"\n", space: bytes = b" ", named: bool = True, swap: bool = False
) -> bytes:
    """The same events, spelled otherwise."""
    blocks = []
    for block in body.removesuffix(b"\n\n").split(b"\n\n"):
        lines = block.split(b"\n")[0 if named else 1 :]
        lines = [line.replace(b": ", b":" + space, 1) for line in (reversed(lines) if swap else lines)]
        blocks.append(newline.join([*lines, b"", b""]))
    return b"".join(blocks)


# What counts as content.


def block(**fields: Any) -> dict[str, Any]:
    """The start of a content block."""
    return {"type": "content_block_start", "index": 0, "content_block": fields}


def delta(**fields: Any) -> dict[str, Any]:
    """A delta of a content block."""
    return {"type": "content_block_delta", "index": 0, "delta": fields}


NO_CONTENT: list[dict[str, Any]] = [
    {"type": "message_start", "message": {"content": [], "usage": {"input_tokens": 5, "output_tokens": 1}}},
    {"type": "ping"},
    block(type="text", text=""),
    block(type="thinking", thinking="", signature=""),
    block(type="tool_use", id="toolu_1", name="f", input={}),
    block(type="server_tool_use", id="srvtoolu_1", name="web_search", input={}),
    block(type="mcp_tool_use", id="mcptoolu_1", name="f", input={}),
    block(type="compaction", content=None),
    delta(type="text_delta", text=""),
    delta(type="thinking_delta", thinking=""),
    delta(type="input_json_delta", partial_json=""),
    delta(type="signature_delta", signature="c2ln"),
    {"type": "content_block_start", "index": 0, "content_block": None},
    {"type": "content_block_delta", "index": 0},
    {"type": "content_block_stop", "index": 0},
    {"type": "an_event_of_next_year"},
]
CONTENT = [
    delta(type="text_delta", text=" "),
    delta(type="thinking_delta", thinking="Hm"),
    delta(type="input_json_delta", partial_json='{"a'),
    delta(type="citations_delta", citation={}),
    delta(type="compaction_delta", content="So far"),
    delta(type="a_delta_of_next_year"),
    delta(type=["odd"]),
    block(type="text", text="Hi"),
    block(type="redacted_thinking", data="eA=="),
    block(type="web_search_tool_result", tool_use_id="srvtoolu_1", content=[]),
    block(type="fallback"),
    block(type="a_block_of_next_year"),
    {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 1}},
    {"type": "message_stop"},
]


def spelled(value: dict[str, Any], *, named: bool) -> bytes:
    """An event with or without its name."""
    return otherwise(event(**{"name": value["type"], **value}), named=named)


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("value", NO_CONTENT, ids=json.dumps)
def test_starts_pings_signatures_and_empty_deltas_are_no_content(value: dict[str, Any], named: bool) -> None:
    """What brings nothing to read begins nothing, whether or not the event has its name."""
    scanner = seen(spelled(NO_CONTENT[0], named=named) + spelled(value, named=named))
    assert (scanner.begun, scanner.over) == (False, False)
    assert not brings_content(value["type"], value)


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("value", CONTENT, ids=json.dumps)
def test_content_begins_the_answer(value: dict[str, Any], named: bool) -> None:
    """Content, a block that comes whole, an unknown kind of either, and the message's end."""
    scanner = seen(START + PING + spelled(value, named=named))
    assert (scanner.begun, scanner.failure, scanner.error) == (True, None, None)
    assert brings_content(value["type"], value)


@given(data=st.data(), fails=st.booleans())
def test_it_begins_with_the_same_byte_however_it_is_cut(data: st.DataObject, fails: bool) -> None:
    """The same event decides, and not before it is complete."""
    before = b"".join(
        spelled(value, named=True) for value in data.draw(st.lists(st.sampled_from(NO_CONTENT), max_size=4))
    )
    body = START + before + (ERROR if fails else spelled(data.draw(st.sampled_from(CONTENT)), named=True))
    edges = [0, *sorted(data.draw(st.sets(st.integers(0, len(body)), max_size=8))), len(body)]
    scanner, size = Scanner(), 0
    for start, end in pairwise(edges):
        scanner.see(body[start:end])
        size += end - start
        assert (scanner.begun or scanner.failure is not None) == (size >= len(body))
    assert (scanner.failure is not None) is fails


@pytest.mark.parametrize(
    "body", [b"data: [DONE]\n\n", b"event: ping\ndata: oops\n\n", b"event: message_start\n\n", b": hi\n\n", b"\n\n\n"]
)
def test_what_the_sdk_skips_is_skipped(body: bytes) -> None:
    """Unnamed events that aren't JSON, pings, and events without data begin nothing and end nothing."""
    scanner = seen(body)
    assert (scanner.begun, scanner.over) == (False, False)


def test_a_megabyte_without_content_counts_as_content() -> None:
    """What is held of a stream of pings is bounded."""
    scanner, pings, count = Scanner(), PING * 1000, 0
    while not scanner.begun:
        scanner.see(pings)
        count += len(pings)
    assert scanner.failure is None
    assert 1024 * 1024 < count <= 1024 * 1024 + len(pings)


# Streams.


def test_a_whole_stream_tells_everything() -> None:
    """Usage of the last event, stop reason, content, and that it is complete."""
    assert told(scanned(RECORDED)) == (WHOLE_USAGE, "end_turn", True, True, None)


def test_every_split_in_two_tells_the_same() -> None:
    """Where the bytes are cut never shows, not inside a name, a number or a character either."""
    expected = told(scanned(RECORDED))
    for cut in range(len(RECORDED) + 1):
        assert told(scanned(RECORDED[:cut], RECORDED[cut:])) == expected, cut


@pytest.mark.parametrize("size", [1, 2, 3, 7, 31, 32, 33])
def test_pieces_of_any_size_tell_the_same(size: int) -> None:
    """The same holds for a body that comes in crumbs."""
    chunks = [RECORDED[at : at + size] for at in range(0, len(RECORDED), size)]
    assert told(scanned(*chunks)) == told(scanned(RECORDED))


@pytest.mark.lengthy
@pytest.mark.parametrize("newline", [b"\n", b"\r\n", b"\r"], ids=repr)
@pytest.mark.parametrize("space", [b" ", b""], ids=["space", "no space"])
@pytest.mark.parametrize(("named", "swap"), [(True, False), (False, False), (True, True)])
def test_however_it_is_spelled_it_tells_the_same(newline: bytes, space: bytes, named: bool, swap: bool) -> None:
    """A gateway may leave out names and spaces, put the data first, end lines otherwise, and comment."""
    again = otherwise(RECORDED, newline=newline, space=space, named=named, swap=swap)
    body = b"\xef\xbb\xbf: hello" + newline * 2 + again
    expected = told(scanned(RECORDED))
    assert told(scanned(body)) == expected
    for size in (1, 5, 64):
        assert told(scanned(*(body[at : at + size] for at in range(0, len(body), size)))) == expected


@given(words=st.text(), cuts=st.lists(st.integers(min_value=0, max_value=2000)))
@example(words="event: error", cuts=[])
@example(words="message_stop", cuts=[400])
@pytest.mark.lengthy
def test_no_text_fools_it(words: str, cuts: list[int]) -> None:
    """Whatever the model writes, and however it is cut, only real events count."""
    body = START + OPEN + text(words) + text(words) + CLOSE + DELTA + STOP
    edges = [0, *sorted(cut % len(body) for cut in cuts), len(body)]
    chunks = [body[a:b] for a, b in pairwise(edges)]
    assert told(scanned(*chunks)) == (WHOLE_USAGE, "end_turn", True, True, None)


@pytest.mark.parametrize("words", ["message_stop", "event: error", "event: message_delta", WORDS])
def test_words_of_the_protocol_in_a_truncated_text_are_no_events(words: str) -> None:
    """A stream that broke off after such text is neither complete nor failed, and used what its start said."""
    usage = Usage(input_tokens=25, output_tokens=1)
    assert told(scanned(START + OPEN + text(words))) == (usage, None, bool(words), False, None)
    assert told(scanned(START + OPEN + text("a"), text(words), text(words)[:-9])) == (usage, None, True, False, None)


def test_every_truncation_is_incomplete() -> None:
    """Cut anywhere before its last event begins to be readable, a stream is not complete, and no error is made up."""
    for cut in range(len(RECORDED) - len(STOP)):
        scanner = scanned(RECORDED[:cut])
        assert not scanner.complete, cut
        assert scanner.failure is None, cut


def test_the_last_event_needs_no_blank_line() -> None:
    """A stream whose very last line end is missing is complete, once it has ended."""
    body = RECORDED.rstrip(b"\n")
    assert not seen(body).complete
    assert scanned(body).complete


def test_what_comes_before_the_start_costs_nothing() -> None:
    """Pings and comments may precede the first event that counts, in its chunk or in one of their own."""
    before = b": hello\n\nevent: ping\ndata: {}\n\n"
    for chunks in ([before + START], [before, START], [before, START[:20], START[20:]]):
        assert scanned(*chunks, OPEN, text("Hi")).usage == Usage(input_tokens=25, output_tokens=1)


def test_usage_is_cumulative_not_added() -> None:
    """Of several `message_delta` events the last one counts."""
    early = event("message_delta", delta={}, usage={"output_tokens": 5})
    scanner = scanned(START, early, DELTA, STOP)
    assert (scanner.usage, scanner.stop_reason) == (WHOLE_USAGE, "end_turn")


def test_more_cache_writes_at_the_end_are_kept_as_long_as_the_request_asked() -> None:
    """The last event has more of them than the first, and does not say for how long."""
    first = event("message_start", message={"usage": {"input_tokens": 5, "cache_creation_input_tokens": 10}})
    last = event("message_delta", delta={}, usage={"output_tokens": 5, "cache_creation_input_tokens": 30})
    for hour, expected in ((True, 30), (False, 0)):
        scanner = Scanner(writes_for_an_hour=lambda hour=hour: hour)  # type: ignore[misc]
        scanner.see(first + text("Hi") + last)
        assert scanner.usage is not None
        assert scanner.usage.cache_creation_input_tokens == 30
        assert scanner.usage.cache_creation_1h_input_tokens == expected


@pytest.mark.lengthy
def test_a_long_stream_is_not_kept() -> None:
    """Memory for a stream of ordinary text is a few bytes, however long it is."""
    scanner = seen(START)
    for _ in range(10_000):
        scanner.see(text("word ")[:30])
        scanner.see(text("word ")[30:])
        assert scanner._splitter.pending_bytes == 0
    assert scanner._parts is None


# The end of a stream, and what comes after.


@pytest.mark.lengthy
@pytest.mark.parametrize("last", [STOP, ERROR], ids=["message_stop", "error"])
@pytest.mark.parametrize("newline", [b"\n", b"\r\n", b"\r"], ids=repr)
@pytest.mark.parametrize("after", [b"", b"x", b"event: ping", b"data: [DONE]\n\n", PING * 3 + b"data", b"\n"], ids=repr)
def test_what_comes_after_the_last_event_is_counted(last: bytes, newline: bytes, after: bytes) -> None:
    """So that it can be cut off, wherever the chunk began that brought the last event."""
    body = otherwise(START + text("Hi") + DELTA + last, newline=newline)
    for cut in (0, 10, len(body) - 3, len(body) - 1):
        scanner, kept = Scanner(), b""
        for chunk in (body[:cut], body[cut:] + after):
            scanner.see(chunk)
            kept += chunk[: len(chunk) - scanner.trailing]
        assert scanner.over
        # The line feed of a last line end is part of it, or isn't: nobody misses it.
        assert (body + after).startswith(kept)
        assert len(body) - 1 <= len(kept) <= len(body) + (after == b"\n")
        scanner.see(b"more" + PING)
        assert scanner.trailing == len(b"more" + PING)


def test_what_comes_after_an_early_error_is_counted_however_much_it_is() -> None:
    """The beginning of a chunk is looked at in pieces; that does not show."""
    for more in (b"", PING, PING * 100, b"x" * 10_000):
        assert seen(START + ERROR + more).trailing == len(more)


def test_after_the_end_nothing_changes() -> None:
    """Neither an error nor another answer, in the same chunk or a later one."""
    expected = told(scanned(RECORDED))
    assert told(scanned(RECORDED + ERROR + START)) == expected
    assert told(scanned(RECORDED, ERROR, START, b"\xff\n\n")) == expected


def test_an_end_without_a_beginning_is_a_failure() -> None:
    """Of an answer whose start is missing nobody can make a message; another may be whole."""
    for body in (STOP, text("Hi") + DELTA + STOP):
        scanner = seen(body)
        assert (scanner.complete, scanner.over) == (False, True)
        assert scanner.failure is not None
        assert (scanner.failure.kind, scanner.failure.retryable) == (FailureKind.INVALID, True)


# Errors in a stream.


def test_an_error_event_is_what_it_is() -> None:
    """Inside an HTTP 200, the event's type says what failed; what was counted before stays."""
    for chunks in (
        [START + OPEN + text("Hi") + ERROR],
        [START, OPEN, text("Hi"), ERROR[:9], ERROR[9:]],
        [START, ERROR],
    ):
        scanner = scanned(*chunks)
        assert scanner.failure is not None
        assert scanner.failure.kind is FailureKind.OVERLOADED
        assert (scanner.complete, scanner.unheard) == (False, False)
        assert scanner.usage == Usage(input_tokens=25, output_tokens=1)


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize(
    ("error_type", "kind", "retryable"),
    [
        ("overloaded_error", FailureKind.OVERLOADED, True),
        ("api_error", FailureKind.SERVER, True),
        ("rate_limit_error", FailureKind.RATE_LIMITED, True),
        ("timeout_error", FailureKind.SERVER, True),
        ("invalid_request_error", FailureKind.REQUEST, False),
        ("an_error_of_next_year", FailureKind.SERVER, True),
    ],
)
def test_an_error_before_content_counts_as_what_it_is(
    error_type: str, kind: FailureKind, retryable: bool, named: bool
) -> None:
    """It is classified by its own type; where it has no name, the SDK's reader won't hear it, and that is told."""
    scanner = seen(START + otherwise(event("error", error={"type": error_type}), named=named))
    assert (scanner.begun, scanner.over, scanner.error) == (False, True, None)
    assert scanner.failure is not None
    assert (scanner.failure.kind, scanner.failure.retryable) == (kind, retryable)
    assert scanner.unheard is not named
    assert scanner.document == {"type": "error", "error": {"type": error_type}}


@pytest.mark.parametrize("data", ["", "data: \n", "data: not JSON\n", "data: [1]\n", "data: {}\n", "id: 3\n"])
@pytest.mark.parametrize("before", [b"", START + text("Hi")], ids=["before content", "after content"])
def test_an_error_without_readable_data_counts_as_a_server_error(data: str, before: bytes) -> None:
    """An error event fails the stream whatever its data is."""
    scanner = seen(before, f"event: error\n{data}\n".encode())
    assert scanner.failure is not None
    assert scanner.failure.kind is FailureKind.SERVER


@pytest.mark.parametrize(
    "bad", [b"event: message_start\ndata: {broken\n\n", b"event: x\ndata: \xff\n\n", b"event: x\ndata: []\n\n"]
)
@pytest.mark.parametrize("newline", [b"\n", b"\r\n"], ids=repr)
def test_bytes_that_break_the_protocol_before_content_fail_the_stream(bad: bytes, newline: bytes) -> None:
    """Invalid JSON and invalid UTF-8 are a retryable failure, with the error to raise for it, and its place."""
    before, bad = otherwise(START + PING, newline=newline), bad.replace(b"\n", newline)
    for chunks in ([before + bad + STOP], [before, bad]):
        scanner = seen(*chunks)
        assert (scanner.begun, scanner.over) == (False, True)
        assert scanner.failure is not None
        assert (scanner.failure.kind, scanner.failure.retryable) == (FailureKind.INVALID, True)
        assert scanner.error is not None
        assert scanner.error.position == len(before)


def test_an_event_without_end_before_content_fails_the_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """It can't be decoded, and is not held."""
    scanner = Scanner()
    scanner._splitter._max_event_bytes = 100
    scanner.see(b"event: x\n" * 50)
    assert (scanner.begun, scanner.over) == (False, True)
    assert scanner.error is not None


def test_after_content_bad_bytes_are_the_readers_matter() -> None:
    """He meets them where they stand; the end is still read."""
    bad = b"event: message_delta\ndata: \xff\n\n"
    scanner = scanned(START, text("Hi"), bad, DELTA + STOP)
    assert told(scanner) == (WHOLE_USAGE, "end_turn", True, True, None)
    scanner = seen(START, text("Hi"))
    scanner._splitter._max_event_bytes = 100
    scanner.see(b"x" * 200)
    scanner.see(b"x" * 200)
    assert (scanner.failure, scanner.error) == (None, None)


def test_an_event_that_the_end_has_cut_off_is_none() -> None:
    """Nothing is made of half an event."""
    for cut in (b"event: message_delta\ndata: {", b"event: message_delta", b"event: x\ndata: \xff"):
        scanner = scanned(START, text("Hi") + cut)
        assert told(scanner) == (Usage(input_tokens=25, output_tokens=1), None, True, False, None)


@pytest.mark.parametrize("usage", [[], 5, None, {"output_tokens": None}])
def test_counts_that_are_none_are_left_unknown(usage: object) -> None:
    """An event of another shape than expected raises nothing."""
    body = event("message_start", message=5) + event("message_delta", usage=usage, delta=3)
    scanner = scanned(body)
    assert (scanner.usage or Usage(), scanner.stop_reason, scanner.failure) == (Usage(), None, None)


@given(
    chunks=st.lists(st.binary(max_size=80) | st.sampled_from([START, DELTA, STOP, b"event: error\n", b"message_delta"]))
)
@pytest.mark.parametrize("stream", [True, False])
def test_no_bytes_raise(chunks: list[bytes], stream: bool) -> None:
    """Any mixture of bytes and events is looked at without an error."""
    scanned(*chunks, stream=stream)


# Documents.

MESSAGE = {
    "type": "message",
    "content": [],
    "usage": {"input_tokens": 3, "output_tokens": 4},
    "stop_reason": "end_turn",
}
USED = Usage(input_tokens=3, output_tokens=4)
ERROR_DOCUMENT: dict[str, object] = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}
NONE_OF_OURS = [
    {},
    [],
    {"content": None},
    {"content": "Hello", "type": "message"},
    {"type": "message"},
    {"type": "completion", "content": []},
    {"object": "chat.completion", "choices": [{"message": {"role": "assistant", "content": "Hi"}}]},
    {"status": "ok"},
]


def test_a_message_tells_usage_and_stop_reason() -> None:
    """A plain body is decoded once it is whole, in however many chunks it came."""
    body = json.dumps(MESSAGE).encode()
    for cut in range(len(body)):
        scanner = scanned(body[:cut], body[cut:], stream=False)
        assert told(scanner) == (USED, "end_turn", False, True, None)
        assert (scanner.document, scanner.is_document) == (MESSAGE, True)
    assert not seen(body, stream=False).over


@pytest.mark.parametrize("fields", [{}, {"usage": None, "stop_reason": None}, {"usage": [1], "stop_reason": 5}])
def test_a_message_without_usage_is_complete(fields: dict[str, object]) -> None:
    """A compatible server may leave them out, and the type too."""
    documents: list[dict[str, object]] = [{"content": []}, {"content": [], "type": "message"}]
    for document in documents:
        body = json.dumps(document | fields).encode()
        assert told(scanned(body, stream=False)) == (None, None, False, True, None)
        assert is_message(json.loads(body))


@pytest.mark.parametrize("before", [b"", b"\n", b"\xef\xbb\xbf", b" \r\n\t"], ids=repr)
def test_a_message_where_a_stream_was_asked_for_is_a_failure_for_good(before: bytes) -> None:
    """What does not stream won't stream the next time; what it used was used."""
    body = before + json.dumps(MESSAGE).encode()
    for cut in range(0, len(body), 3):
        scanner = scanned(body[:cut], body[cut:])
        assert told(scanner) == (USED, "end_turn", False, False, NOT_A_STREAM)
        assert scanner.is_document
    assert not NOT_A_STREAM.retryable


@pytest.mark.parametrize("stream", [True, False])
def test_an_error_that_comes_as_a_document_is_that_error(stream: bool) -> None:
    """A gateway may answer 200 with what should have been a 529."""
    documents: list[dict[str, object]] = [ERROR_DOCUMENT, {"error": ERROR_DOCUMENT["error"]}]
    for document in documents:
        scanner = scanned(json.dumps(document).encode(), stream=stream)
        assert scanner.failure is not None
        assert (scanner.failure.kind, scanner.failure.retryable) == (FailureKind.OVERLOADED, True)
        assert (scanner.complete, scanner.begun, scanner.document) == (False, False, document)
    scanner = scanned(b'{"type": "error"}', stream=stream)
    assert scanner.failure is not None
    assert scanner.failure.kind is FailureKind.SERVER


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("document", NONE_OF_OURS, ids=json.dumps)
def test_another_document_is_no_message(document: object, stream: bool) -> None:
    """It may be another API's answer, or a proxy's; what it says is kept for whoever must tell."""
    scanner = scanned(json.dumps(document).encode(), stream=stream)
    assert (scanner.failure, scanner.document, scanner.complete) == (NOT_A_MESSAGE, document, False)
    assert not is_message(document)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    "body", [b"{", b"<html>502</html>", b"<!DOCTYPE html>\n\n<p>", b"[" * 100_000, b'{"a": "\xff"}']
)
def test_what_is_no_json_is_no_message(body: bytes, stream: bool) -> None:
    """Truncated, foreign or hostile bodies raise nothing."""
    assert told(scanned(body, stream=stream)) == (None, None, False, False, NOT_A_MESSAGE)
    assert scanned(body, stream=stream).is_document


@pytest.mark.parametrize("body", [b"", b"\xff", b"5", b"null", b"event: ping\n\n"])
def test_anything_else_is_a_document_only_where_no_stream_was_asked_for(body: bytes) -> None:
    """Of a stream it is one that has not begun."""
    assert scanned(body, stream=False).failure == NOT_A_MESSAGE
    assert told(scanned(body)) == (None, None, False, False, None)


@pytest.mark.parametrize("stream", [True, False])
def test_valid_json_that_is_hard_to_read_is_a_document(stream: bool) -> None:
    """The SDK reads lone surrogates and a byte order mark, and so they must not make a paid message none."""
    body = b'\xef\xbb\xbf{"type": "message", "content": [{"type": "text", "text": "\\ud83d"}]}'
    for document in (body, body.removeprefix(b"\xef\xbb\xbf"), body.replace(b"\\ud83d", b"Hi")):
        scanner = scanned(document, stream=stream)
        assert (scanner.complete, scanner.failure) == (not stream, NOT_A_STREAM if stream else None)


def test_a_document_is_taken_in_once() -> None:
    """A second end changes nothing."""
    scanner = scanned(json.dumps(MESSAGE).encode(), stream=False)
    scanner.finish()
    assert told(scanner) == (USED, "end_turn", False, True, None)


# Linear time.


def calls(body: bytes) -> int:
    """How many functions are called for a body in single bytes."""
    scanner, count = Scanner(), 0

    def profile(_frame: object, event: str, _argument: object) -> None:
        nonlocal count
        count += event in {"call", "c_call"}

    sys.setprofile(profile)
    try:
        for at in range(len(body)):
            scanner.see(body[at : at + 1])
    finally:
        sys.setprofile(None)
    return count


@pytest.mark.lengthy
@pytest.mark.parametrize("piece", [text("word "), PING, b"x", b"\n", b"\r\n"], ids=repr)
def test_twice_the_bytes_are_twice_the_work(piece: bytes) -> None:
    """One byte at a time, before content and after."""
    few, start = 1000 // len(piece), START + text("Hi")
    for before in (b"", start):
        base = calls(before)
        assert calls(before + piece * (2 * few)) - base <= 2.1 * (calls(before + piece * few) - base)


def test_ordinary_text_is_not_looked_into() -> None:
    """A chunk of whole deltas costs the same few calls, however many they are."""
    scanner = seen(START, text("Hi"))
    splitter = scanner._splitter
    looked_into = splitter.starts
    scanner.see(text("word ") * 1000)
    assert splitter.pending_bytes == 0
    assert splitter.starts is looked_into


def functions(scanner: Scanner, chunk: bytes) -> list[str]:
    """The names of all functions that are called for a chunk."""
    names: list[str] = []

    def profile(frame: Any, event: str, function: Any) -> None:
        if event in {"call", "c_call"}:
            names.append(frame.f_code.co_name if event == "call" else function.__name__)

    sys.setprofile(profile)
    try:
        scanner.see(chunk)
    finally:
        sys.setprofile(None)
    return names[:-1]


def test_a_delta_costs_two_searches() -> None:
    """While text comes delta by delta, nothing else is done for one."""
    scanner = seen(START, text("Hi"))
    assert sorted(functions(scanner, text("word "))) == ["endswith", "find", "find", "see"]


def test_an_answer_in_one_chunk_is_split_only_where_it_begins_and_ends() -> None:
    """What lies between costs the same, however much it is."""
    short, long = (functions(Scanner(), START + text("Hi") + text("word ") * n + DELTA + STOP) for n in (50, 5000))
    assert len(long) == len(short) > 0
