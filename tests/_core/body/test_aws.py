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
from penstock._core.body.aws import AWSScanner, can_decode_aws
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


def scanned(*parts: bytes) -> AWSScanner:
    """A scanner that has seen everything."""
    scanner = AWSScanner()
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
    assert (scanner.stop_reason, scanner.begun, scanner.complete) == ("end_turn", True, True)
    assert scanner.failure is None


def test_content_is_seen_when_it_comes() -> None:
    """A start and a signature are none."""
    scanner = AWSScanner()
    seen = []
    for event in (START, SIGNATURE, TEXT, SIGNATURE):
        scanner.see(chunk(event))
        seen.append(scanner.begun)
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
        scanner = scanned(chunk(START), frame(payload, **headers))
        assert scanner.failure is not None
        assert scanner.failure.kind is kind
        assert (scanner.begun, scanner.unheard) == (False, True)


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
    """Nothing raises, what came before stays known, and damage is left to the reader."""
    scanner = scanned(chunk(START), body, chunk(END))
    assert scanner.usage is not None
    assert scanner.usage.output_tokens in {1, 9}
    assert scanner.failure is None


@given(st.binary(max_size=200))
def test_any_bytes_are_survived(body: bytes) -> None:
    """The tap never breaks a call."""
    assert not scanned(body).complete


def test_more_cache_writes_are_kept_as_long_as_the_request_asked() -> None:
    """As in a stream of server-sent events."""
    scanner = AWSScanner(writes_for_an_hour=lambda: True)
    scanner.see(chunk(START))
    scanner.see(chunk({"type": "message_delta", "usage": {"cache_creation_input_tokens": 30}}))
    assert scanner.usage is not None
    assert scanner.usage.cache_creation_1h_input_tokens == 30


def test_an_error_event_in_a_frame_is_a_failure() -> None:
    """The API's own error, in the wrapping of an event; the SDK hears it."""
    scanner = scanned(chunk(START), chunk({"type": "error", "error": {"type": "overloaded_error"}}))
    assert scanner.failure is not None
    assert scanner.failure.kind is FailureKind.OVERLOADED
    assert not scanner.unheard


@pytest.mark.parametrize("last", [chunk(STOP), frame(b"{}", message_type="exception", exception_type="x")])
def test_what_comes_after_the_end_changes_nothing(last: bytes) -> None:
    """In the same bytes or later ones."""
    later = {"type": "message_delta", "usage": {"output_tokens": 99}}
    for parts in ((chunk(START), last + chunk(later)), (chunk(START), last, chunk(later))):
        scanner = scanned(*parts)
        assert scanner.over
        assert scanner.usage is not None
        assert scanner.usage.output_tokens == 1


def test_without_botocore_nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is no dependency: where it is missing, frames can't be decoded."""
    assert can_decode_aws()
    imported: dict[str, Any] = {"botocore.eventstream": None}
    for name, module in imported.items():
        monkeypatch.setitem(sys.modules, name, module)
    aws._botocore.cache_clear()
    try:
        assert not can_decode_aws()
    finally:
        aws._botocore.cache_clear()
