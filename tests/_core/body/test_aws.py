from __future__ import annotations

import base64
import json
import struct
import sys
import zlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock._core.body import aws
from penstock._core.body.aws import AWS_STREAM, AWSStreamScanner, scanner_of
from penstock._core.body.scan import StreamScanner
from penstock._core.failure import FailureKind

START = {"type": "message_start", "message": {"usage": {"input_tokens": 12, "output_tokens": 1}}}
TEXT = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Grüße"}}
SIGNATURE = {"type": "content_block_delta", "index": 0, "delta": {"type": "signature_delta", "signature": "x"}}
END = {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 9}}
STOP = {"type": "message_stop"}


def frame(payload: bytes, **headers: str) -> bytes:
    """An AWS event frame: lengths, checksum, headers, payload, checksum."""
    packed = b"".join(
        struct.pack("!B", len(name)) + name + struct.pack("!BH", 7, len(value)) + value
        for name, value in (
            (f":{name.replace('_', '-')}".encode(), value.encode())
            for name, value in {"message_type": "event", **headers}.items()
        )
    )
    prelude = struct.pack("!II", 16 + len(packed) + len(payload), len(packed))
    message = prelude + struct.pack("!I", zlib.crc32(prelude)) + packed + payload
    return message + struct.pack("!I", zlib.crc32(message))


def chunk(event: object) -> bytes:
    """The frame of an event of the Messages API."""
    encoded = base64.b64encode(json.dumps(event).encode()).decode()
    return frame(json.dumps({"bytes": encoded, "p": "abc"}).encode(), event_type="chunk")


def scanned(*parts: bytes) -> AWSStreamScanner:
    """A scanner that has seen everything."""
    scanner = AWSStreamScanner()
    for part in parts:
        scanner.see(part)
    scanner.finish()
    return scanner


@given(size=st.integers(1, 300))
def test_a_stream_tells_its_usage_however_it_is_cut(size: int) -> None:
    """Usage, stop reason, content and end are found in any chunking."""
    body = b"".join(map(chunk, (START, SIGNATURE, TEXT, END, STOP)))
    scanner = scanned(*(body[at : at + size] for at in range(0, len(body), size)))
    assert scanner.usage is not None
    assert (scanner.usage.input_tokens, scanner.usage.output_tokens) == (12, 9)
    assert (scanner.stop_reason, scanner.has_content, scanner.complete) == ("end_turn", True, True)
    assert scanner.failure is None


def test_content_is_seen_when_it_comes() -> None:
    """A start and a signature are none."""
    scanner = AWSStreamScanner()
    seen = []
    for event in (START, SIGNATURE, TEXT, SIGNATURE):
        scanner.see(chunk(event))
        seen.append(scanner.has_content)
    assert seen == [False, False, True, True]


def test_a_stream_that_breaks_off_is_not_complete() -> None:
    """What was seen until then is known."""
    scanner = scanned(chunk(START), chunk(TEXT), chunk(END)[:-3])
    assert scanner.usage is not None
    assert (scanner.usage.output_tokens, scanner.complete, scanner.stop_reason) == (1, False, None)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("throttlingException", FailureKind.RATE_LIMITED),
        ("serviceUnavailableException", FailureKind.OVERLOADED),
        ("internalServerException", FailureKind.SERVER),
        ("modelStreamErrorException", FailureKind.SERVER),
        ("modelTimeoutException", FailureKind.SERVER),
        ("validationException", FailureKind.REQUEST),
        ("someNewException", FailureKind.SERVER),
    ],
)
def test_an_exception_frame_is_a_failure(name: str, kind: FailureKind) -> None:
    """AWS's names count as what they mean."""
    payload = b'{"message": "no"}'
    for headers in (
        {"message_type": "exception", "exception_type": name},
        {"message_type": "error", "error_code": name},
    ):
        failure = scanned(chunk(START), frame(payload, **headers)).failure
        assert failure is not None
        assert failure.kind is kind


@pytest.mark.parametrize(
    "body",
    [
        b"no frame at all, but long enough",
        chunk(START)[:-1] + b"x",
        frame(b"no JSON"),
        frame(b"[]"),
        frame(b'{"other": 1}'),
        frame(b'{"bytes": "%%%"}'),
        frame(b'{"bytes": 7}'),
        chunk([]),
        chunk({"no": "type"}),
        chunk({"type": 7}),
        chunk({"type": "content_block_delta"}),
    ],
)
def test_what_cannot_be_understood_is_left_unknown(body: bytes) -> None:
    """Nothing raises, and what came before stays known."""
    scanner = scanned(chunk(START), body, chunk(END))
    assert scanner.usage is not None
    assert scanner.usage.output_tokens in {1, 9}
    assert scanner.failure is None


@given(st.binary(max_size=200))
def test_any_bytes_are_survived(body: bytes) -> None:
    """The tap never breaks a call."""
    assert not scanned(body).complete


def test_a_scanner_is_chosen_by_content_type() -> None:
    """Frames for Bedrock, server-sent events else."""
    assert type(scanner_of(AWS_STREAM)) is AWSStreamScanner
    assert type(scanner_of("text/event-stream; charset=utf-8")) is StreamScanner


def test_without_botocore_nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is no dependency: where it is missing, frames go by unseen."""
    imported: dict[str, Any] = {"botocore.eventstream": None}
    for name, module in imported.items():
        monkeypatch.setitem(sys.modules, name, module)
    aws._botocore.cache_clear()
    try:
        assert scanner_of(AWS_STREAM) is None
        assert type(scanner_of("text/event-stream")) is StreamScanner
    finally:
        aws._botocore.cache_clear()
