"""The clients of clouds, governed: in-process endpoints speak each cloud's dialect in front of a simulator."""

from __future__ import annotations

import base64
import json
import struct
import zlib
from typing import TYPE_CHECKING, Any

import anthropic
import httpx2
import pytest

from penstock import Client, RetryOptions
from penstock._core.body.sse import Splitter, decode
from penstock.events import CallEnded, Event
from penstock.simulator import Simulator

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

MODEL = "claude-sonnet-5-5"
ASK: Any = {"model": MODEL, "max_tokens": 100, "messages": [{"role": "user", "content": "Hello there"}]}
ANTHROPIC_KEYS = ("sk-from-penstock", "sk-from-environment")


class Cloud(httpx2.AsyncBaseTransport):
    """Takes what a cloud's client sends, notes its headers, and has the simulator answer it."""

    def __init__(self, simulator: Simulator) -> None:
        self.requests: list[httpx2.Request] = []
        self._api = simulator.transport()

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        await request.aread()
        self.requests.append(request)
        path = request.url.path
        body = json.loads(request.content)
        for name in ("anthropic_version", "user_profile_id"):
            body.pop(name, None)
        frames = path.endswith("invoke-with-response-stream")
        for mark in ("/model/", "/models/"):
            if mark in path:
                body["model"] = path.partition(mark)[2].partition("/")[0].partition(":")[0]
        body["stream"] = frames or body.get("stream", False)
        response = await self._api.handle_async_request(
            httpx2.Request(
                "POST",
                "http://simulator.invalid/v1/messages",
                headers={"x-api-key": "sk-sim", "anthropic-version": "2023-06-01", "content-type": "application/json"},
                json=body,
                extensions=request.extensions,
            )
        )
        if frames and response.status_code == 200:
            response.headers["content-type"] = "application/vnd.amazon.eventstream"
            assert isinstance(response.stream, httpx2.AsyncByteStream)
            response.stream = Frames(response.stream)
        return response


class Frames(httpx2.AsyncByteStream):
    """Server-sent events as AWS event frames."""

    def __init__(self, events: httpx2.AsyncByteStream) -> None:
        self._events = events

    async def __aiter__(self) -> AsyncIterator[bytes]:
        splitter = Splitter()
        async for chunk in self._events:
            for event in map(decode, splitter.feed(chunk)):
                assert event is not None
                encoded = base64.b64encode(event.data.encode()).decode()
                yield _frame(json.dumps({"bytes": encoded}).encode())

    async def aclose(self) -> None:
        await self._events.aclose()


def _frame(payload: bytes) -> bytes:
    headers = b""
    for name, value in (
        (b":event-type", b"chunk"),
        (b":message-type", b"event"),
    ):
        headers += struct.pack("!B", len(name)) + name + struct.pack("!BH", 7, len(value)) + value
    prelude = struct.pack("!II", 16 + len(headers) + len(payload), len(headers))
    message = prelude + struct.pack("!I", zlib.crc32(prelude)) + headers + payload
    return message + struct.pack("!I", zlib.crc32(message))


AWS: Any = {"aws_access_key": "AKIAEXAMPLE", "aws_secret_key": "aws-secret", "aws_region": "us-east-1"}


async def google_token() -> str:
    """What a user's own token provider gives."""
    return "google-token"


CLIENTS: dict[str, tuple[Callable[..., Any], str]] = {
    "bedrock": (
        lambda http: anthropic.AsyncAnthropicBedrock(**AWS, http_client=http),
        "AWS4-HMAC-SHA256 Credential=AKIAEXAMPLE",
    ),
    "bedrock with a token": (
        lambda http: anthropic.AsyncAnthropicBedrock(api_key="bedrock-token", aws_region="us-east-1", http_client=http),
        "Bearer bedrock-token",
    ),
    "bedrock mantle": (
        lambda http: anthropic.AsyncAnthropicBedrockMantle(**AWS, http_client=http),
        "AWS4-HMAC-SHA256 Credential=AKIAEXAMPLE",
    ),
    "aws": (
        lambda http: anthropic.AsyncAnthropicAWS(**AWS, workspace_id="wrkspc_1", http_client=http),
        "AWS4-HMAC-SHA256 Credential=AKIAEXAMPLE",
    ),
    "vertex": (
        lambda http: anthropic.AsyncAnthropicVertex(
            region="us-east5", project_id="p", access_token="google-token", http_client=http
        ),
        "Bearer google-token",
    ),
    "foundry": (
        lambda http: anthropic.AsyncAnthropicFoundry(api_key="azure-key", resource="r", http_client=http),
        "azure-key",
    ),
    "google cloud": (
        lambda http: anthropic.AsyncAnthropicGoogleCloud(
            project="p", location="us-east5", workspace_id="wrkspc_1", token_provider=google_token, http_client=http
        ),
        "Bearer google-token",
    ),
}


@pytest.fixture(autouse=True)
def anthropic_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Anthropic keys stand in the environment, where they must stay."""
    monkeypatch.setenv("PENSTOCK_API_KEYS", ANTHROPIC_KEYS[0])
    monkeypatch.setenv("ANTHROPIC_API_KEY", ANTHROPIC_KEYS[1])


@pytest.fixture(params=CLIENTS)
def cloud(request: pytest.FixtureRequest) -> tuple[Simulator, Cloud, Any, str]:
    """A simulator, the cloud in front of it, the cloud's client, and the credentials that it should send."""
    simulator = Simulator()
    endpoint = Cloud(simulator)
    make, credentials = CLIENTS[request.param]
    return simulator, endpoint, make(httpx2.AsyncClient(transport=endpoint)), credentials


def sent_with(endpoint: Cloud, credentials: str) -> None:
    """Every request carried the client's own credentials, and no Anthropic key."""
    assert endpoint.requests
    for request in endpoint.requests:
        values = [value for _, value in request.headers.multi_items()]
        assert any(value.startswith(credentials) for value in values)
        everything = f"{values} {request.url} {request.content!r}"
        assert not any(key in everything for key in (*ANTHROPIC_KEYS, "set-by-penstock"))


async def read(sdk: Any) -> tuple[str, int]:
    """Read a stream, by the means that every client has."""
    text, output_tokens = "", 0
    async for event in await sdk.messages.create(**ASK, stream=True):
        if event.type == "content_block_delta" and event.delta.type == "text_delta":
            text += event.delta.text
        if event.type == "message_delta":
            output_tokens = event.usage.output_tokens
    return text, output_tokens


@pytest.mark.lengthy
async def test_a_cloud_client_is_governed_with_its_own_credentials(cloud: tuple[Simulator, Cloud, Any, str]) -> None:
    """Plain and streamed, retried and counted like our own; no Anthropic key reaches a third party."""
    simulator, endpoint, sdk, credentials = cloud
    simulator.inject("overloaded")
    events: list[Event] = []
    options: Any = {"log": False, "retry": RetryOptions(base_s=0.001), "observers": [events.append]}
    async with Client(sdk=sdk, **options) as claude:
        assert type(claude.sdk) is type(sdk)
        message = await claude.messages.create(**ASK)
        text, output_tokens = await read(claude.sdk)
        statistics = claude.statistics()
    assert text == message.content[0].text == "Summary: Hello there"
    sent_with(endpoint, credentials)
    assert len(endpoint.requests) == 3
    assert (statistics.calls.calls, statistics.calls.successes, statistics.retry.retries) == (2, 2, 1)
    assert statistics.admission.admitted == 3
    assert [key.name for key in statistics.admission.keys] == ["sdk"]
    assert statistics.attempts.total.attempts == 3
    assert statistics.attempts.total.estimated == 0
    ended = [event for event in events if isinstance(event, CallEnded)]
    assert [event.usage.output_tokens for event in ended] == [message.usage.output_tokens, output_tokens]
    assert [event.stop_reason for event in ended] == ["end_turn"] * 2
    assert ended[1].first_token_s is not None
    assert all(event.usage.input_tokens > 0 for event in ended)


@pytest.mark.lengthy
async def test_the_user_profile_is_named_in_each_attempt(cloud: tuple[Simulator, Cloud, Any, str]) -> None:
    """Whether the cloud's client names it in the header or moves it into the body, once, and on a retry too."""
    simulator, endpoint, sdk, _ = cloud
    simulator.inject("overloaded")
    async with Client(sdk=sdk, log=False, retry=RetryOptions(base_s=0.001)) as claude:
        await claude.messages.create(**ASK, user_profile_id="uprof_1")
    assert len(endpoint.requests) == 2
    for request in endpoint.requests:
        named = [request.headers.get("anthropic-user-profile-id"), json.loads(request.content).get("user_profile_id")]
        assert sorted(named, key=str) == [None, "uprof_1"]


async def test_api_keys_are_refused(cloud: tuple[Simulator, Cloud, Any, str]) -> None:
    """They are Anthropic's, and none of a third party's business."""
    _, endpoint, sdk, _ = cloud
    with pytest.raises(TypeError, match="brings credentials of its own"):
        Client(sdk=sdk, api_keys="sk-1", log=False)
    assert endpoint.requests == []


async def test_the_original_is_neither_changed_nor_closed(cloud: tuple[Simulator, Cloud, Any, str]) -> None:
    """A copy is governed, over the same http client."""
    _, endpoint, sdk, credentials = cloud
    retries = sdk.max_retries
    async with Client(sdk=sdk, log=False) as claude:
        assert claude.sdk is not sdk
        assert vars(claude.sdk._client) is vars(sdk._client)
        assert isinstance(claude.sdk._client, type(sdk._client))
        assert claude.sdk.max_retries == 0
    assert (sdk.middleware, sdk.max_retries) == ((), retries)
    await sdk.messages.create(**ASK)
    sent_with(endpoint, credentials)


async def test_refused_credentials_are_told(cloud: tuple[Simulator, Cloud, Any, str]) -> None:
    """A 401 of the cloud's comes back as it is; nothing else is tried."""
    simulator, endpoint, sdk, credentials = cloud
    simulator.inject("authentication")
    async with Client(sdk=sdk, log=False) as claude:
        with pytest.raises(anthropic.AuthenticationError):
            await claude.messages.create(**ASK)
    assert len(endpoint.requests) == 1
    sent_with(endpoint, credentials)


async def test_a_stream_of_frames_that_is_left_is_estimated() -> None:
    """Bedrock's frames are decoded as they pass: what was seen of a stream that its reader leaves is counted."""
    simulator = Simulator(output_tokens=50)
    endpoint = Cloud(simulator)
    sdk: Any = anthropic.AsyncAnthropicBedrock(**AWS, http_client=httpx2.AsyncClient(transport=endpoint))
    async with Client(sdk=sdk, log=False) as claude:
        stream = await claude.messages.create(**ASK, stream=True)
        async for event in stream:
            if event.type == "content_block_delta":
                break
        await stream.close()
        total = claude.statistics().attempts.total
        assert claude.statistics().admission.slots_used == 0
    assert (total.estimated, total.input_tokens > 0) == (1, True)
    assert simulator.in_flight == 0
