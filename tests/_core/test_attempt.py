from __future__ import annotations

import contextlib
import gzip
import json
import math
import sys
import zlib
from typing import TYPE_CHECKING, Any

import anthropic
import anyio
import httpx2
import pytest
from anthropic import AsyncAnthropic
from anthropic._models import FinalRequestOptions

from penstock._core.attempt import Attempt, http_response_of, open_attempt, read_whole
from penstock._core.background import Background
from penstock._core.body import aws
from penstock._core.body.body import Beginning
from penstock._core.call import open_call
from penstock._core.failure import FailureKind
from penstock._core.usage import Usage
from penstock.errors import InvalidStream, ResponseTooLarge
from penstock.events import Event, GiveBackFailed, Observers
from penstock.simulator import Simulator

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from penstock._core.attempt import CallNext, Response
    from penstock.testing.plugin import VirtualTime

HELLO: Any = {"model": "claude-sonnet-5-5", "max_tokens": 100, "messages": [{"role": "user", "content": "Hello"}]}
MESSAGE = {
    "type": "message",
    "content": [],
    "usage": {"input_tokens": 3, "output_tokens": 4},
    "stop_reason": "end_turn",
}


def api_request(url: str = "/v1/messages", *, stream: bool = False) -> anthropic.APIRequest:
    """A request as the SDK's chain hands it on."""
    options = FinalRequestOptions.construct(method="post", url=url, json_data={"model": "claude-sonnet-5-5"})
    return anthropic.APIRequest(options=options, cast_to=object, stream=stream)


def answering(response: Response) -> CallNext:
    """The rest of a chain that answers."""

    async def call_next(_request: anthropic.APIRequest) -> Response:
        return response

    return call_next


async def sent(response: Response, url: str = "/v1/messages") -> Attempt:
    """An attempt that was sent and answered."""
    with open_attempt(api_request(url)) as attempt:
        attempt.sent = True
        await attempt.send(api_request(url), answering(response))
    return attempt


class Watching(anthropic.Middleware):
    """A guard that takes something for every attempt, and notes when it is given back."""

    def __init__(self, background: Background | None = None) -> None:
        self.taken = 0
        self.background = background
        self.given_back = list[Attempt]()

    async def handle_async(self, request: anthropic.APIRequest, call_next: CallNext) -> Response:
        with open_call(request, background=self.background), open_attempt(request) as attempt:
            self.taken += 1
            attempt.push(self.given_back.append)
            attempt.sent = True
            return await attempt.send(request, call_next)


# Give-backs.


async def test_give_backs_run_last_in_first_out_exactly_once() -> None:
    """However often an attempt is ended."""
    given_back = list[int]()
    with open_attempt(api_request()) as attempt:
        for number in range(3):
            attempt.push(lambda _attempt, number=number: given_back.append(number))  # type: ignore[misc]
    attempt.end()
    attempt.call.end()
    assert given_back == [2, 1, 0]


async def test_a_give_back_that_raises_is_reported_and_stops_none() -> None:
    """The others run, the caller sees nothing, observers hear its class."""
    events, given_back = list[Event](), list[Attempt]()

    def broken(_attempt: Attempt) -> None:
        raise OSError("secret")

    request = api_request()
    with open_call(request, observers=Observers((events.append,))) as call, open_attempt(request) as attempt:
        attempt.push(given_back.append)
        attempt.push(broken)
        attempt.push(broken)
    assert given_back == [attempt]
    assert events == [GiveBackFailed(call_id=call.id, error_type="OSError")] * 2


async def test_what_is_pushed_after_the_end_is_given_back_at_once() -> None:
    """Nobody can come too late to give back."""
    given_back = list[Attempt]()
    with open_attempt(api_request()) as attempt:
        pass
    attempt.push(given_back.append)
    assert given_back == [attempt]


async def test_guards_share_one_attempt_and_its_opener_ends_it() -> None:
    """An inner guard finds the attempt of an outer one; after its end, the next is a new one of the same call."""
    with open_call(api_request()) as call:
        with open_attempt(api_request()) as outer:
            with open_attempt(api_request()) as inner:
                assert inner is outer
            states = [outer.ended]
        assert [*states, outer.ended] == [False, True]
        with open_attempt(api_request()) as second:
            assert second is not outer
            assert (second.number, call.attempts) == (2, 2)


async def test_its_repr_shows_how_it_went() -> None:
    """Number, state, status and kind of failure, no content."""
    attempt = await sent(httpx2.Response(529, json={"error": {"type": "overloaded_error", "message": "secret"}}))
    assert repr(attempt) == f"<Attempt 1 of {attempt.call.id}, ended, status=529, failure=overloaded>"
    with open_attempt(api_request()) as attempt:
        assert "open, status=None, failure=None" in repr(attempt)


# What it notes.


async def test_an_answer_already_read_is_noted() -> None:
    """Status, request id, usage and stop reason of a plain answer."""
    attempt = await sent(httpx2.Response(200, json=MESSAGE, headers={"request-id": "req_1"}))
    assert (attempt.ok, attempt.status, attempt.request_id) == (True, 200, "req_1")
    assert (attempt.usage, attempt.stop_reason) == (Usage(input_tokens=3, output_tokens=4), "end_turn")


@pytest.mark.parametrize("content", [b"{}", b"nonsense", b""])
async def test_an_answer_without_usage_is_an_estimate(content: bytes) -> None:
    """It was sent and may be billed, so nothing known is not nothing used."""
    assert (await sent(httpx2.Response(200, content=content))).usage == Usage(estimated=True)


async def test_only_messages_have_usage() -> None:
    """A token count is free, and has none."""
    attempt = await sent(httpx2.Response(200, json={"input_tokens": 12}), "/v1/messages/count_tokens")
    assert attempt.usage is None


async def test_what_was_never_sent_used_nothing() -> None:
    """A guard that answered by itself costs no tokens."""
    with open_attempt(api_request()) as attempt:
        await attempt.send(api_request(), answering(httpx2.Response(200, content=b"{}")))
    assert (attempt.may_be_billed, attempt.usage) == (False, None)


@pytest.mark.parametrize("answer", [None, "a cached message", object()])
async def test_an_answer_that_is_no_response_is_handed_on(answer: object) -> None:
    """A user's middleware may answer with what it likes."""
    assert http_response_of(answer) is None
    attempt = await sent(answer)
    assert (attempt.ok, attempt.status, attempt.ended) == (True, None, True)


async def test_the_innermost_guard_notes_and_the_others_find_it_done() -> None:
    """An outer guard that sees another response, made by a middleware between, doesn't overrule the real one."""
    real, made_up = httpx2.Response(200, json=MESSAGE), httpx2.Response(500)

    async def middle(request: anthropic.APIRequest) -> Response:
        with open_attempt(request) as attempt:
            await attempt.send(request, answering(real))
        return made_up

    with open_attempt(api_request()) as attempt:
        assert await attempt.send(api_request(), middle) is made_up
    assert (attempt.status, attempt.failure) == (200, None)


async def test_a_guard_that_looks_at_no_answer_leaves_it_to_one_further_out() -> None:
    """Alone it notes the answer itself; inside another that sends, nothing is done twice."""
    request, response = api_request(), httpx2.Response(200, json=MESSAGE)
    with open_attempt(request) as alone:
        assert await alone.hand_on(request, answering(response)) is response
    assert (alone.status, alone.ended) == (200, True)

    async def inner(request: anthropic.APIRequest) -> Response:
        with open_attempt(request) as attempt:
            handed_on = await attempt.hand_on(request, answering(response))
            assert attempt.status is None
            return handed_on

    with open_attempt(request) as attempt:
        assert await attempt.send(request, inner) is response
    assert (attempt.status, attempt.ended) == (200, True)


async def test_an_error_raised_below_is_noted_and_raised_again() -> None:
    """The first failure noted stays: what follows from it is no news."""

    async def fail(_request: anthropic.APIRequest) -> Response:
        raise httpx2.ReadError("reset")

    with pytest.raises(httpx2.ReadError), open_attempt(api_request()) as attempt:
        await attempt.send(api_request(), fail)
    assert attempt.failure is not None
    assert attempt.failure.kind is FailureKind.CONNECTION
    attempt.note_exception(ValueError())
    assert attempt.failure.kind is FailureKind.CONNECTION


class ErrorBody(httpx2.AsyncByteStream):
    """The body of an error, which may itself go wrong."""

    def __init__(self, *chunks: bytes, error: Exception | None = None) -> None:
        self.chunks = chunks
        self.error = error
        self.closed = 0

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for chunk in self.chunks:
            await anyio.sleep(1)
            yield chunk
        if self.error is not None:
            raise self.error

    async def aclose(self) -> None:
        self.closed += 1


class Instant(httpx2.AsyncByteStream):
    """A body that is there at once."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield self.data


def error_response(body: ErrorBody, status: int = 429, headers: dict[str, str] | None = None) -> httpx2.Response:
    """An error whose body is still to be read."""
    return httpx2.Response(status, headers=headers, stream=body, request=httpx2.Request("POST", "http://x"))


async def test_the_body_of_an_error_is_read_and_classified(virtual_time: VirtualTime) -> None:
    """A streamed request gets its error unread; the error code inside decides."""
    error = {"error": {"type": "rate_limit_error", "details": {"error_code": "enforced_spend_limit_reached"}}}
    body = ErrorBody(json.dumps(error).encode())
    attempt = await sent(error_response(body))
    assert attempt.failure is not None
    assert attempt.failure.kind is FailureKind.SPEND_CAP
    assert body.closed == 1


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (ErrorBody(b"{", error=httpx2.ReadError("reset")), {}),
        (ErrorBody(b"not gzip"), {"content-encoding": "gzip"}),
    ],
    ids=["broken", "undecodable"],
)
async def test_an_error_whose_body_goes_wrong_is_its_status(
    body: ErrorBody, headers: dict[str, str], virtual_time: VirtualTime
) -> None:
    """The status is known and says enough; the body is closed."""
    attempt = await sent(error_response(body, headers=headers))
    assert attempt.failure is not None
    assert (attempt.failure.kind, attempt.failure.status) == (FailureKind.RATE_LIMITED, 429)
    assert body.closed >= 1


async def test_an_error_whose_body_somebody_read_is_its_status(virtual_time: VirtualTime) -> None:
    """A middleware that consumed the raw bytes leaves nothing to read."""
    response = error_response(ErrorBody(b"{}"))
    async for _ in response.aiter_raw():
        pass
    attempt = await sent(response)
    assert attempt.failure is not None
    assert attempt.failure.kind is FailureKind.RATE_LIMITED


async def test_cancelled_while_an_error_is_read_it_is_its_status(virtual_time: VirtualTime) -> None:
    """A 429 is never billed, whether or not there was time to read why; its body is closed all the same."""
    body, stop, started = ErrorBody(b"{", b"}"), anyio.Event(), anyio.Event()
    background = Background(Observers())
    async with anyio.create_task_group() as group:
        group.start_soon(lambda: background.run(stop, started=started, grace_s=1))
        await started.wait()
        opened = open_call(api_request(), background=background)
        with anyio.move_on_after(1.5), opened, open_attempt(api_request()) as attempt:
            attempt.sent = True
            await attempt.send(api_request(), answering(error_response(body)))
        assert attempt.failure is not None
        assert attempt.failure.kind is FailureKind.RATE_LIMITED
        assert (attempt.ended, attempt.may_be_billed) == (True, False)
        await anyio.sleep(1)
        assert body.closed == 1
        stop.set()


async def test_an_answer_left_behind_by_an_error_is_closed(virtual_time: VirtualTime) -> None:
    """A middleware that raises after the answer came doesn't keep its connection."""
    body, stop, started = ErrorBody(b"{}"), anyio.Event(), anyio.Event()
    background = Background(Observers())
    async with anyio.create_task_group() as group:
        group.start_soon(lambda: background.run(stop, started=started, grace_s=1))
        await started.wait()
        raises, opened = pytest.raises(ValueError, match="mine"), open_call(api_request(), background=background)
        with raises, opened, open_attempt(api_request()) as attempt:
            response = await attempt.send(api_request(), answering(error_response(body, 200)))
            raise ValueError(f"mine: I don't like a {response.status_code}")
        await anyio.sleep(1)
        assert body.closed == 1
        stop.set()


@pytest.mark.parametrize("ending", ["closed", "consumed", "sync", "ended"])
async def test_only_a_body_that_is_still_to_be_read_is_watched(ending: str, virtual_time: VirtualTime) -> None:
    """There is nothing to watch in one that was read or closed, or that isn't asynchronous."""
    body = httpx2.ByteStream(b"") if ending == "sync" else ErrorBody()
    response = httpx2.Response(200, stream=body, request=httpx2.Request("POST", "http://x"))
    with open_attempt(api_request()) as attempt:
        if ending == "closed":
            await response.aclose()
        elif ending == "consumed":
            response.is_stream_consumed = True
        elif ending == "sync":
            response.stream = object()  # type: ignore[assignment]
        else:
            attempt.end()
        attempt.watch(response)
        assert attempt.body is None


async def test_the_body_is_held_weakly() -> None:
    """Whoever has the response holds it; the attempt doesn't, so that what is dropped is gone at once."""
    body = ErrorBody()
    with open_attempt(api_request()) as attempt:
        response = await attempt.send(api_request(), answering(error_response(body, 200)))
        assert attempt.body is response.stream
        attempt.watch(response)
        assert attempt.body is response.stream
    await response.aclose()
    del response
    assert attempt.body is None


# Bounds of what is read whole.


@pytest.mark.parametrize("encoding", ["identity", "gzip", "deflate"])
async def test_an_error_with_an_endless_body_is_its_status(encoding: str) -> None:
    """What an error may say is bounded as well, after decompression; the status says enough."""
    data = b" " * 200_000
    packed = {"identity": data, "gzip": gzip.compress(data), "deflate": zlib.compress(data)}[encoding]
    http = httpx2.Response(529, headers={"content-encoding": encoding}, stream=Instant(packed))
    with open_call(api_request(), max_response_bytes=100_000), open_attempt(api_request()) as attempt:
        await attempt.send(api_request(), answering(http))
    assert attempt.failure is not None
    assert attempt.failure.kind is FailureKind.OVERLOADED
    with pytest.raises(httpx2.ResponseNotRead):
        _ = http.content


@pytest.mark.parametrize(("url", "bounded"), [("/v1/messages", True), ("/v1/models", False)])
async def test_an_answer_that_is_read_whole_is_bounded(url: str, bounded: bool) -> None:
    """What the SDK reads before the chain sees it: messages; a list or a file may be as long as it is."""
    for size, allowed in ((100, True), (101, not bounded)):
        http = httpx2.Response(200, stream=Instant(bytes(size)))
        with open_call(api_request(url), max_response_bytes=100):
            if allowed:
                await read_whole(http)
                assert http.content == bytes(size)
            else:
                with pytest.raises(ResponseTooLarge):
                    await read_whole(http)


async def test_an_answer_outside_a_call_is_just_read() -> None:
    """The same HTTP client may be used for something else."""
    http = httpx2.Response(200, stream=Instant(b"x"))
    await read_whole(http)
    assert http.content == b"x"
    with open_call(api_request(), max_response_bytes=1):
        await read_whole(http)
    assert http.content == b"x"


@pytest.mark.parametrize("botocore", [True, False])
async def test_frames_that_were_read_whole_are_looked_at_as_frames(
    botocore: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where they can be decoded; else nothing is known of them."""
    if not botocore:
        monkeypatch.setitem(sys.modules, "botocore.eventstream", None)
    aws._botocore.cache_clear()
    try:
        http = httpx2.Response(200, content=b"", headers={"content-type": aws.AWS_STREAM})
        attempt, begins = await begun(http, stream=True)
        assert (attempt.failure is None) is not botocore
        assert (begins.failure is None) is not botocore
    finally:
        aws._botocore.cache_clear()


# How an answer begins that was read whole before anybody asked.

START = b'event: message_start\ndata: {"message": {}}\n\n'
CONTENT = START + b'event: content_block_delta\ndata: {"delta": {"type": "text_delta", "text": "Hi"}}\n\n'
STOP = b"event: message_stop\ndata: {}\n\n"
OVERLOADED = b'{"type": "error", "error": {"type": "overloaded_error"}}'


async def begun(http: httpx2.Response, *, stream: bool) -> tuple[Attempt, Beginning]:
    """An attempt that was answered, and how the answer begins."""
    request = api_request(stream=stream)
    with open_attempt(request) as attempt:
        attempt.sent = True
        await attempt.send(request, answering(http))
        return attempt, await attempt.begin(http, hold_s=math.inf)


@pytest.mark.parametrize(
    ("content", "stream", "kind"),
    [
        (json.dumps(MESSAGE).encode(), False, None),
        (CONTENT + STOP, True, None),
        (CONTENT, True, FailureKind.CONNECTION),
        (CONTENT + b"event: error\ndata: " + OVERLOADED + b"\n\n", True, FailureKind.OVERLOADED),
    ],
    ids=["message", "stream", "broken off", "failed"],
)
async def test_an_answer_with_content_is_handed_on(content: bytes, stream: bool, kind: FailureKind | None) -> None:
    """Whatever has become of it after that."""
    attempt, begins = await begun(httpx2.Response(200, content=content), stream=stream)
    assert begins == Beginning()
    assert (attempt.failure and attempt.failure.kind) is kind


@pytest.mark.parametrize(
    ("content", "stream", "kind", "retryable", "error_type"),
    [
        (b"", True, FailureKind.CONNECTION, True, anthropic.APIConnectionError),
        (b"event: ping\n\n", True, FailureKind.CONNECTION, True, anthropic.APIConnectionError),
        (json.dumps(MESSAGE).encode(), True, FailureKind.INVALID, False, anthropic.APIResponseValidationError),
        (b"{}", False, FailureKind.INVALID, True, anthropic.APIResponseValidationError),
        (b"<html>", False, FailureKind.INVALID, True, anthropic.APIResponseValidationError),
        (OVERLOADED, False, FailureKind.OVERLOADED, True, anthropic.APIStatusError),
        (b"event: x\ndata: {\n\n", True, FailureKind.INVALID, True, InvalidStream),
        (b"event: error\ndata: " + OVERLOADED + b"\n\n", True, FailureKind.OVERLOADED, True, type(None)),
    ],
)
async def test_an_answer_without_content_is_a_failure(
    content: bytes, stream: bool, kind: FailureKind, retryable: bool, error_type: type
) -> None:
    """With what to raise for it, unless the SDK does."""
    attempt, begins = await begun(httpx2.Response(200, content=content), stream=stream)
    assert begins.failure is not None
    assert attempt.failure == begins.failure
    assert (begins.failure.kind, begins.failure.retryable) == (kind, retryable)
    assert type(begins.error) is error_type


async def test_of_an_answer_that_somebody_else_has_read_nothing_is_known() -> None:
    """A middleware that consumed the raw bytes leaves nothing to look at; what came was an answer."""
    http = httpx2.Response(200, stream=Instant(OVERLOADED))
    async for _ in http.aiter_raw():
        pass
    attempt, begins = await begun(http, stream=True)
    assert (attempt.failure, begins, attempt.usage) == (None, Beginning(), Usage(estimated=True))


async def test_an_error_status_begins_as_the_failure_that_it_is() -> None:
    """The SDK raises for it."""
    attempt, begins = await begun(httpx2.Response(529, content=OVERLOADED), stream=True)
    assert begins == Beginning(failure=attempt.failure)
    assert begins.failure is not None


@pytest.mark.parametrize("content", [b"{}", b"<html>", OVERLOADED, b'{"type": "message", "content": null}'])
async def test_what_the_sdk_would_take_for_a_message_is_none(content: bytes) -> None:
    """Of what its client has read and could parse, only a message counts as one."""
    noting = Noting()

    def answer(_request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(200, content=content, headers={"content-type": "application/json"})

    http_client = httpx2.AsyncClient(transport=httpx2.MockTransport(answer))
    claude = AsyncAnthropic(api_key="sk-example", max_retries=0, middleware=[noting], http_client=http_client)
    with contextlib.suppress(Exception):
        await claude.messages.create(**HELLO)
    (attempt,) = noting.attempts
    assert attempt.failure is not None
    assert attempt.failure.kind in {FailureKind.INVALID, FailureKind.OVERLOADED}


class Noting(anthropic.Middleware):
    """A guard that keeps its attempts."""

    def __init__(self) -> None:
        self.attempts = list[Attempt]()

    async def handle_async(self, request: anthropic.APIRequest, call_next: CallNext) -> Response:
        with open_attempt(request) as attempt:
            self.attempts.append(attempt)
            return await attempt.send(request, call_next)


# On all surfaces of the SDK.


async def plain(claude: AsyncAnthropic) -> None:
    """A message, whole."""
    await claude.messages.create(**HELLO)


async def streamed(claude: AsyncAnthropic) -> None:
    """A message, event by event."""
    async for _ in await claude.messages.create(**HELLO, stream=True):
        pass


async def helper(claude: AsyncAnthropic) -> None:
    """The helper that gathers a stream."""
    async with claude.messages.stream(**HELLO) as stream:
        await stream.get_final_message()


async def raw(claude: AsyncAnthropic) -> None:
    """The HTTP response of a whole message."""
    response = await claude.messages.with_raw_response.create(**HELLO)
    assert (await response.parse()).usage.output_tokens


async def raw_stream(claude: AsyncAnthropic) -> None:
    """The HTTP response of a stream, parsed."""
    response = await claude.messages.with_raw_response.create(**HELLO, stream=True)
    async for _ in await response.parse():
        pass


async def streaming_parse(claude: AsyncAnthropic) -> None:
    """A response whose body is read later, parsed."""
    async with claude.messages.with_streaming_response.create(**HELLO) as response:
        await response.parse()


async def streaming_bytes(claude: AsyncAnthropic) -> None:
    """A response whose body is read later, by the byte."""
    async with claude.messages.with_streaming_response.create(**HELLO) as response:
        async for _ in response.iter_bytes():
            pass


async def streaming_events(claude: AsyncAnthropic) -> None:
    """A stream whose body is read later, by the line."""
    async with claude.messages.with_streaming_response.create(**HELLO, stream=True) as response:
        async for _ in response.iter_lines():
            pass


async def beta(claude: AsyncAnthropic) -> None:
    """A stream of the beta API."""
    async with claude.beta.messages.stream(**HELLO) as stream:
        async for _ in stream:
            pass


SURFACES = [plain, streamed, helper, raw, raw_stream, streaming_parse, streaming_bytes, streaming_events, beta]


@pytest.mark.lengthy
@pytest.mark.parametrize("ask", SURFACES)
async def test_every_surface_gives_back_once_and_knows_its_usage(
    ask: Callable[[AsyncAnthropic], Awaitable[None]], virtual_time: VirtualTime
) -> None:
    """Plain, streamed, raw and streaming responses end their attempt, with the same usage."""
    simulator, watching = Simulator(latency_s=1, tokens_per_s=10, output_tokens=20), Watching()
    await ask(simulator.client(max_retries=0, middleware=[watching]))
    (attempt,) = watching.given_back
    assert attempt.failure is None
    assert attempt.usage is not None
    assert (attempt.usage.output_tokens, attempt.usage.estimated) == (20, False)
    assert simulator.in_flight == 0


@pytest.mark.lengthy
@pytest.mark.parametrize("ask", SURFACES)
async def test_every_surface_gives_back_once_when_cancelled_at_any_time(
    ask: Callable[[AsyncAnthropic], Awaitable[None]], virtual_time: VirtualTime
) -> None:
    """Before the answer, at its start and in its middle."""
    for tenths in range(2, 28):
        simulator, watching = Simulator(latency_s=1, tokens_per_s=10, output_tokens=20), Watching()
        claude = simulator.client(max_retries=0, middleware=[watching])
        with anyio.move_on_after(tenths / 10) as scope:
            await ask(claude)
        await anyio.sleep(0.01)
        assert scope.cancelled_caught
        (attempt,) = watching.given_back
        assert attempt.failure is not None, tenths
        assert attempt.failure.kind in {FailureKind.CANCELLED, FailureKind.ABANDONED}
        assert attempt.usage is not None
        assert attempt.usage.estimated
        assert simulator.in_flight == 0


@pytest.mark.lengthy
@pytest.mark.parametrize("ask", [streamed, helper, raw_stream, streaming_events])
@pytest.mark.parametrize("fault", ["stream_drop_before_content", "stream_drop_after_content", "no_message_stop"])
async def test_a_stream_that_breaks_is_a_failed_connection(
    ask: Callable[[AsyncAnthropic], Awaitable[None]], fault: str, virtual_time: VirtualTime
) -> None:
    """Cut before or after content, or cleanly too early, it gives back once and is not taken for an answer."""
    simulator, watching = Simulator(output_tokens=20), Watching()
    simulator.inject(fault)
    # Some surfaces raise and some read on quietly: what matters is the attempt.
    with contextlib.suppress(anthropic.APIError, httpx2.TransportError, RuntimeError):
        await ask(simulator.client(max_retries=0, middleware=[watching]))
    (attempt,) = watching.given_back
    assert attempt.failure is not None
    assert attempt.failure.kind is FailureKind.CONNECTION
    assert attempt.usage is not None
    assert attempt.usage.estimated
    assert simulator.in_flight == 0


@pytest.mark.lengthy
@pytest.mark.parametrize("ask", SURFACES)
@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        ("overloaded", FailureKind.OVERLOADED),
        ("bad_gateway", FailureKind.SERVER),
        ("rate_limited", FailureKind.RATE_LIMITED),
        ("spend_cap", FailureKind.SPEND_CAP),
        ("authentication", FailureKind.AUTHENTICATION),
        ("reset", FailureKind.CONNECTION),
        ("stall_before_headers", FailureKind.TIMEOUT),
    ],
)
async def test_every_fault_is_the_attempts_failure_on_every_surface(
    ask: Callable[[AsyncAnthropic], Awaitable[None]], fault: str, kind: FailureKind, virtual_time: VirtualTime
) -> None:
    """The SDK raises its own error, and the attempt knows why."""
    simulator, watching = Simulator(), Watching()
    simulator.inject(fault)
    with pytest.raises(anthropic.APIError):
        await ask(simulator.client(max_retries=0, middleware=[watching]))
    (attempt,) = watching.given_back
    assert attempt.failure is not None
    assert attempt.failure.kind is kind
    assert attempt.ended


async def test_a_stream_dropped_in_a_loop_gives_back_at_once(virtual_time: VirtualTime) -> None:
    """Leaving the loop over a stream, and the stream, frees what it held without a collection."""
    simulator, watching = Simulator(output_tokens=20, tokens_per_s=10), Watching()
    claude = simulator.client(max_retries=0, middleware=[watching])

    async def leave_early() -> None:
        async for event in await claude.messages.create(**HELLO, stream=True):
            if event.type == "content_block_delta":
                break

    await leave_early()
    await anyio.sleep(0.01)
    (attempt,) = watching.given_back
    assert attempt.failure is not None
    assert attempt.failure.kind is FailureKind.ABANDONED
    assert simulator.in_flight == 0
