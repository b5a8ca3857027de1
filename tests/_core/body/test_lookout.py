from __future__ import annotations

import json
import zlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock._core.body.lookout import ENCODINGS, Lookout
from penstock._core.failure import FailureKind

START = {"type": "message_start", "message": {"content": [], "usage": {"input_tokens": 5, "output_tokens": 1}}}
PING = {"type": "ping"}
OVERLOADED = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}


def block(**fields: Any) -> dict[str, Any]:
    """The start of a content block."""
    return {"type": "content_block_start", "index": 0, "content_block": fields}


def delta(**fields: Any) -> dict[str, Any]:
    """A delta of a content block."""
    return {"type": "content_block_delta", "index": 0, "delta": fields}


TEXT_START = block(type="text", text="")
STOP = {"type": "content_block_stop", "index": 0}


def sse(*events: dict[str, Any], named: bool = True) -> bytes:
    """The bytes of events, with or without their names."""
    lines = (f"event: {event['type']}\n" if named else "" for event in events)
    return b"".join(f"{name}data: {json.dumps(event)}\n\n".encode() for name, event in zip(lines, events, strict=True))


def compressed(data: bytes, encoding: str) -> bytes:
    """The bytes in a content encoding."""
    if encoding == "identity":
        return data
    packer = zlib.compressobj(wbits=31 if encoding == "gzip" else 15)
    return packer.compress(data) + packer.flush()


NO_CONTENT: list[dict[str, Any]] = [
    START,
    PING,
    TEXT_START,
    block(type="thinking", thinking="", signature=""),
    block(type="tool_use", id="toolu_1", name="f", input={}),
    block(type="server_tool_use", id="srvtoolu_1", name="web_search", input={}),
    block(type="compaction", content=None),
    delta(type="text_delta", text=""),
    delta(type="thinking_delta", thinking=""),
    delta(type="input_json_delta", partial_json=""),
    delta(type="signature_delta", signature="c2ln"),
    {"type": "content_block_start", "index": 0, "content_block": None},
    {"type": "content_block_delta", "index": 0},
    STOP,
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


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("event", NO_CONTENT, ids=json.dumps)
def test_starts_pings_signatures_and_empty_deltas_are_no_content(event: dict[str, Any], named: bool) -> None:
    """What brings nothing to read decides nothing, whether or not the event has its name."""
    lookout = Lookout()

    lookout.see(sse(START, event, named=named))

    assert not lookout.decided


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("event", CONTENT, ids=json.dumps)
def test_content_decides_that_the_answer_begins(event: dict[str, Any], named: bool) -> None:
    """Content, a block that comes whole, an unknown kind of either, and the message's end let the answer begin."""
    lookout = Lookout()

    lookout.see(sse(START, PING, event, named=named))

    assert lookout.decided
    assert lookout.failure is None
    assert lookout.error is None


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
    """An error inside the stream is classified by its own type."""
    lookout = Lookout()

    lookout.see(sse(START, {"type": "error", "error": {"type": error_type}}, named=named))

    assert lookout.decided
    assert lookout.failure is not None
    assert lookout.failure.kind is kind
    assert lookout.failure.retryable is retryable
    assert lookout.error is None


@pytest.mark.parametrize("data", ["", "data: \n", "data: not JSON\n", "data: [1]\n"])
def test_an_error_without_readable_data_counts_as_a_server_error(data: str) -> None:
    """An error event fails the stream whatever its data is."""
    lookout = Lookout()

    lookout.see(f"event: error\n{data}\n".encode())

    assert lookout.failure is not None
    assert lookout.failure.kind is FailureKind.SERVER


def test_what_comes_after_the_deciding_event_changes_nothing() -> None:
    """An error after content is not a failure before it."""
    lookout = Lookout()

    lookout.see(sse(START, TEXT_START, delta(type="text_delta", text="Hi"), OVERLOADED))

    assert lookout.failure is None


@pytest.mark.parametrize("stream", [b"event: message_start\ndata: {broken\n\n", b"event: ping\ndata: \xff\n\n"])
def test_bytes_that_break_the_protocol_fail_the_stream(stream: bytes) -> None:
    """Invalid JSON and invalid UTF-8 are a retryable failure, with the error to raise for it."""
    lookout = Lookout()

    lookout.see(stream)

    assert lookout.decided
    assert lookout.failure is not None
    assert lookout.failure.kind is FailureKind.INVALID
    assert lookout.failure.retryable
    assert lookout.error is not None


@pytest.mark.parametrize(
    "stream", [b"data: [DONE]\n\n", b"event: ping\ndata: oops\n\n", b"event: message_start\n\n", b": hi\n\n"]
)
def test_what_the_sdk_skips_is_skipped(stream: bytes) -> None:
    """Unnamed events that aren't JSON, pings, and events without data decide nothing."""
    lookout = Lookout()

    lookout.see(stream)

    assert not lookout.decided


def test_a_megabyte_without_content_counts_as_content() -> None:
    """What is held of a stream of pings is bounded."""
    lookout, ping = Lookout(), sse(PING)
    seen = 0

    while not lookout.decided:
        lookout.see(ping * 1000)
        seen += len(ping) * 1000

    assert lookout.failure is None
    assert 1024 * 1024 < seen <= 1024 * 1024 + len(ping) * 1000


def test_bytes_that_cannot_be_decompressed_are_left_to_the_reader() -> None:
    """A body whose compression only its reader knows, or that is damaged, is handed on."""
    lookout = Lookout("deflate")

    lookout.see(b"\xff\xff\xff\xff not deflate")

    assert lookout.decided
    assert lookout.failure is None


@given(data=st.data(), encoding=st.sampled_from(sorted(ENCODINGS)), fails=st.booleans())
def test_chunking_never_shows(data: st.DataObject, encoding: str, fails: bool) -> None:
    """However the bytes are cut and compressed, the same event decides, and not before it is complete."""
    before = sse(*data.draw(st.lists(st.sampled_from(NO_CONTENT), max_size=4)))
    deciding = sse(OVERLOADED if fails else data.draw(st.sampled_from(CONTENT)))
    body = compressed(before + deciding, encoding)
    cuts = sorted(data.draw(st.sets(st.integers(0, len(body)), max_size=8)))
    chunks = [body[start:end] for start, end in zip([0, *cuts], [*cuts, len(body)], strict=True)]
    lookout, plain, unpack = Lookout(encoding), b"", zlib.decompressobj(47)

    for chunk in chunks:
        lookout.see(chunk)
        plain += chunk if encoding == "identity" else unpack.decompress(chunk)
        assert lookout.decided == (len(plain) >= len(before + deciding))

    assert lookout.decided
    assert (lookout.failure is not None) is fails


def test_an_event_that_breaks_the_protocol_is_told_with_its_place() -> None:
    """Counted from the start of the stream, however the events before it were read."""
    lookout, before = Lookout(), sse(START, PING)
    lookout.see(before)
    lookout.see(b"event: ping\ndata: \xff\n\n")
    assert lookout.decided
    assert lookout.error is not None
    assert lookout.error.position == len(before)
