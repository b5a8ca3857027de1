"""AWS event frames are read by the same definitions as server-sent events: begun, usage, complete, failure."""

from __future__ import annotations

import base64
import json
import struct
import zlib
from typing import TYPE_CHECKING, Any

import anthropic
import anyio
import httpx2
import pytest

from penstock import BreakerOptions, StreamInterrupted

if TYPE_CHECKING:
    from collections.abc import Callable

FRAMES = "application/vnd.amazon.eventstream"
OURS = ["text", "events", "final"]
EVERY = [*OURS, "sdk events"]


def frame(payload: bytes, **headers: str) -> bytes:
    """One frame, with its headers and checksums."""
    head = b""
    for name, value in headers.items():
        key, text = (":" + name.replace("_", "-")).encode(), value.encode()
        head += struct.pack("!B", len(key)) + key + struct.pack("!BH", 7, len(text)) + text
    prelude = struct.pack("!II", 16 + len(head) + len(payload), len(head))
    body = prelude + struct.pack("!I", zlib.crc32(prelude)) + head + payload
    return body + struct.pack("!I", zlib.crc32(body))


def chunk(event: dict[str, Any], **more: str) -> bytes:
    """An event as a frame."""
    encoded = base64.b64encode(json.dumps(event).encode()).decode()
    payload = json.dumps({"bytes": encoded, **more}).encode()
    return frame(payload, event_type="chunk", content_type="application/json", message_type="event")


def chunks(events: list[dict[str, Any]]) -> bytes:
    """Events as frames."""
    return b"".join(chunk(event, p="abcdefghij") for event in events)


def exception(kind: str) -> bytes:
    """What the service sends when it fails in the middle of an answer."""
    return frame(
        b'{"message": "secret"}', exception_type=kind, content_type="application/json", message_type="exception"
    )


def error(code: str) -> bytes:
    """The other form, without a payload."""
    return frame(b"", error_code=code, error_message="secret", message_type="error")


# Each with what it may be counted as.
PASSING: dict[str, tuple[bytes, set[str]]] = {
    "throttlingException": (exception("throttlingException"), {"rate_limited"}),
    "internalServerException": (exception("internalServerException"), {"server"}),
    "modelStreamErrorException": (exception("modelStreamErrorException"), {"server"}),
    "serviceUnavailableException": (exception("serviceUnavailableException"), {"server", "overloaded"}),
    "modelTimeoutException": (exception("modelTimeoutException"), {"server", "timeout"}),
    "ThrottlingException in capitals": (exception("ThrottlingException"), {"rate_limited"}),
    "an exception of no known name": (exception("someNewException"), {"server", "other"}),
    "an error frame": (error("InternalServerError"), {"server", "other"}),
    "an error event in a chunk": (
        chunk({"type": "error", "error": {"type": "overloaded_error", "message": "secret"}}),
        {"overloaded"},
    ),
}
BEFORE: dict[str, Callable[[Any], list[dict[str, Any]]]] = {
    "nothing": lambda wire: [],
    "the start": lambda wire: [wire.start()],
    "an empty block": lambda wire: [wire.start(), wire.opening(0, type="text", text="")],
}


@pytest.fixture
def bedrock(wire: Any) -> anthropic.AsyncAnthropicBedrock:
    """The SDK's client of Bedrock, whose answers are the wire's."""
    return anthropic.AsyncAnthropicBedrock(
        api_key="bedrock-token",
        aws_region="us-east-1",
        max_retries=0,
        http_client=httpx2.AsyncClient(transport=wire.canned),
    )


def cuts(body: bytes) -> dict[str, tuple[bytes, ...]]:
    """The same bytes in different chunks."""
    return {
        "at once": (body,),
        "byte by byte": tuple(body[place : place + 1] for place in range(len(body))),
        "in sevens": tuple(body[place : place + 7] for place in range(0, len(body), 7)),
    }


@pytest.mark.lengthy
@pytest.mark.parametrize("way", list(cuts(b"")))
async def test_a_stream_of_frames_is_a_stream(wire: Any, bedrock: Any, way: str) -> None:
    """However the frames are cut: its text, its usage, begun, complete, and a success for all readers."""
    async with wire.governed(sdk=bedrock) as claude:
        wire.answer(cuts(chunks(wire.hello))[way], content_type=FRAMES)
        for number, how in enumerate(EVERY, start=1):
            outcome = await wire.read(claude, how)
            told = wire.told(claude)
            assert (outcome.text, outcome.error) == ("Hello, world", None), how
            assert (told.successes, told.first_tokens, told.slots_used) == (number, number, 0), how
            assert told.tokens == (25 * number, 3 * number, 15 * number), how
    assert wire.canned.asked == 4


@pytest.mark.lengthy
@pytest.mark.parametrize(("failed", "counted"), PASSING.values(), ids=PASSING.keys())
async def test_an_exception_before_content_is_retried(
    wire: Any, bedrock: Any, failed: bytes, counted: set[str]
) -> None:
    """As under server-sent events: unseen by the reader, and counted as what it is."""
    async with wire.governed(sdk=bedrock) as claude:
        for how, (name, came) in zip(("text", "sdk events", "final"), BEFORE.items(), strict=True):
            wire.answer((chunks(came(wire)) + failed,), chunks(wire.hello), content_type=FRAMES)
            outcome = await wire.read(claude, how)
            assert (outcome.text, outcome.error, wire.canned.asked) == ("Hello, world", None, 2), name
        told = wire.told(claude)
    assert sum(told.failures.values()) == 3
    assert set(told.failures) <= counted


@pytest.mark.parametrize("kind", ["validationException", "accessDeniedException", "resourceNotFoundException"])
async def test_an_exception_that_lasts_is_raised_at_once(wire: Any, bedrock: Any, kind: str) -> None:
    """What the request is to blame for is asked once."""
    async with wire.governed(sdk=bedrock) as claude:
        wire.answer(exception(kind), content_type=FRAMES)
        for number, how in enumerate(EVERY, start=1):
            outcome = await wire.read(claude, how)
            assert isinstance(outcome.error, anthropic.APIStatusError), repr(outcome.error)
            assert wire.canned.asked == number
        assert wire.told(claude).failures == {"request": 4}


@pytest.mark.lengthy
@pytest.mark.parametrize(("failed", "counted"), PASSING.values(), ids=PASSING.keys())
async def test_an_exception_after_content_is_an_interruption(
    wire: Any, bedrock: Any, failed: bytes, counted: set[str]
) -> None:
    """It is asked once, and told with what had come and its usage."""
    async with wire.governed(sdk=bedrock) as claude:
        wire.answer(chunks(wire.hello[:3]) + failed, content_type=FRAMES)
        for how in OURS:
            outcome = await wire.read(claude, how)
            assert isinstance(outcome.error, StreamInterrupted), repr(outcome.error)
            assert outcome.partial == ["Hello"]
            assert (outcome.error.usage.input_tokens, outcome.error.usage.estimated) == (25, True)
        told = wire.told(claude)
    assert wire.canned.asked == sum(told.failures.values()) == 3
    assert set(told.failures) <= counted


@pytest.mark.parametrize("how", OURS)
async def test_a_cut_in_a_tools_first_arguments_is_an_interruption(wire: Any, bedrock: Any, how: str) -> None:
    """Begun is begun, in frames too."""
    tool = wire.opening(0, type="tool_use", id="toolu_1", name="look", input={})
    events = [wire.start(), tool, wire.delta(0, type="input_json_delta", partial_json='{"ci')]
    async with wire.governed(sdk=bedrock) as claude:
        wire.answer((chunks(events), httpx2.ReadError("gone")), content_type=FRAMES)
        outcome = await wire.read(claude, how)
    assert isinstance(outcome.error, StreamInterrupted), repr(outcome.error)
    assert wire.canned.asked == 1


def damaged(wire: Any) -> dict[str, bytes]:
    """Frames that are none."""
    whole = chunks(wire.hello)
    first = len(chunk(wire.hello[0], p="abcdefghij"))
    return {
        "a damaged checksum": chunk(wire.hello[0])[:-4] + b"\x00" * 4 + whole,
        "a damaged prelude": b"\xff" * 12 + whole,
        "a length beyond measure": struct.pack("!II", 2**31, 0) + struct.pack("!I", zlib.crc32(b"")) + whole,
        "half a frame": whole[: first // 2],
        "no frames but a page": b"<html><body>secret</body></html>" * 8,
        "server-sent events": wire.sse(*wire.hello),
        "a payload that is no JSON": frame(b"{secret", event_type="chunk", message_type="event") + whole,
        "bytes that are no base64": frame(b'{"bytes": "%%%"}', event_type="chunk", message_type="event") + whole,
        "bytes that are no JSON": frame(
            json.dumps({"bytes": base64.b64encode(b"secret").decode()}).encode(),
            event_type="chunk",
            message_type="event",
        )
        + whole,
        "nothing": b"",
    }


async def test_damaged_frames_are_a_typed_error(wire: Any, bedrock: Any) -> None:
    """Neither an error of botocore's nor of Python's reaches the reader; what does no harm is passed over."""
    async with wire.governed(sdk=bedrock) as claude:
        for number, (name, body) in enumerate(damaged(wire).items()):
            wire.answer(body, content_type=FRAMES)
            outcome = await wire.read(claude, OURS[number % len(OURS)])
            if outcome.error is None:
                assert outcome.text == "Hello, world", name
            else:
                assert isinstance(outcome.error, anthropic.AnthropicError), f"{name}: {outcome.error!r}"
                assert "secret" not in str(outcome.error), name
            assert wire.told(claude).slots_used == 0, name


async def test_frames_that_are_read_already_are_a_stream(wire: Any) -> None:
    """Over httpx2's mock transport, as people test."""
    body = chunks(wire.hello)
    asked: list[int] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        asked.append(1)
        return httpx2.Response(200, headers={"content-type": FRAMES}, content=body)

    sdk = anthropic.AsyncAnthropicBedrock(
        api_key="bedrock-token",
        aws_region="us-east-1",
        max_retries=0,
        http_client=httpx2.AsyncClient(transport=httpx2.MockTransport(answer)),
    )
    async with wire.governed(sdk=sdk) as claude:
        for how in EVERY:
            outcome = await wire.read(claude, how)
            assert (outcome.text, outcome.error) == ("Hello, world", None), how
    assert len(asked) == 4


@pytest.mark.lengthy
@pytest.mark.parametrize("then", ["stay", "reset", "cut"])
async def test_the_last_event_ends_an_answer_of_frames(wire: Any, server: Any, then: str) -> None:
    """A connection that stays open, or breaks, after `message_stop` changes nothing."""
    http = httpx2.AsyncClient()
    sdk = anthropic.AsyncAnthropicBedrock(
        api_key="bedrock-token", aws_region="us-east-1", base_url=server.url, max_retries=0, http_client=http
    )
    async with http, wire.governed(sdk=sdk) as claude:
        body = chunks(wire.hello)
        server.answer(wire.Answer(wire.cut(body, len(body) // 2), content_type=FRAMES, then=then))
        outcomes: dict[str, Any] = {}

        async def read(how: str) -> None:
            outcomes[how] = await wire.read(claude, how)

        async with anyio.create_task_group() as group:
            for how in EVERY:
                group.start_soon(read, how)
        for how, outcome in outcomes.items():
            assert (outcome.text, outcome.error) == ("Hello, world", None), how
        assert (wire.told(claude).successes, wire.told(claude).slots_used) == (4, 0)
        assert await server.all_left()


async def test_good_frames_leave_the_breaker_closed_and_exceptions_open_it(wire: Any, bedrock: Any) -> None:
    """The breaker judges frames as it judges events."""
    async with wire.governed(
        sdk=bedrock, max_attempts=1, breaker=BreakerOptions(minimum=4, window=8, failure_share=0.5)
    ) as claude:
        wire.answer(chunks(wire.hello), content_type=FRAMES)
        for _ in range(4):
            await wire.read(claude)
        assert wire.told(claude).breakers == {"closed"}
        wire.answer(exception("internalServerException"), content_type=FRAMES)
        for _ in range(4):
            await wire.read(claude)
        assert wire.told(claude).breakers == {"open"}
