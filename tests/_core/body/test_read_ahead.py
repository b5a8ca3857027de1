from __future__ import annotations

import contextlib
import gc
import json
import math
import zlib
from datetime import timedelta
from typing import TYPE_CHECKING, Any, get_args

import anthropic
import anyio
import anyio.lowlevel
import httpx2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock._core.attempt import Attempt, CallNext, Response, open_attempt
from penstock._core.background import Background
from penstock._core.body.read_ahead import Ahead, can_read_ahead, read_ahead
from penstock._core.call import Call, open_call
from penstock._core.failure import FailureKind
from penstock.errors import ClientClosed, InvalidStream
from penstock.events import Observers
from penstock.testing import Cancelled, VirtualLoop, cancel_at_every_await
from penstock.testing.cancellation import How

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator

    from anthropic import APIRequest

    from penstock.testing.plugin import VirtualTime

pytestmark = pytest.mark.usefixtures("virtual_time")

MESSAGE: dict[str, Any] = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": "claude-sonnet-5-5",
    "content": [],
    "stop_reason": None,
    "stop_sequence": None,
    "usage": {"input_tokens": 5, "output_tokens": 1},
}


def sse(event: dict[str, Any]) -> bytes:
    """The bytes of an event."""
    return f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode()


START = sse({"type": "message_start", "message": MESSAGE}) + sse(
    {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
)
PING = sse({"type": "ping"})
TEXT = sse({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Hi"}})
END = (
    sse({"type": "content_block_stop", "index": 0})
    + sse({"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 2}})
    + sse({"type": "message_stop"})
)
OVERLOADED = sse({"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}})


class Body(httpx2.AsyncByteStream):
    """Bytes, seconds to wait, and errors to raise, in turn."""

    elapsed = timedelta(seconds=3)

    def __init__(self, *parts: bytes | float | Exception) -> None:
        self.parts = list(parts)
        self.cut = False
        self.closing = False
        self.closed = 0

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while self.parts:
            part = self.parts.pop(0)
            if isinstance(part, bytes):
                yield part
            elif isinstance(part, Exception):
                raise part
            else:
                try:
                    await anyio.sleep(part)
                except BaseException:
                    self.cut = True
                    raise

    async def aclose(self) -> None:
        self.closing = True
        await anyio.lowlevel.checkpoint()
        self.closed += 1


class Server(httpx2.AsyncBaseTransport):
    """Answers every request with one body."""

    def __init__(self, body: Body, **headers: str) -> None:
        self.body = body
        self.headers = {"content-type": "text/event-stream; charset=utf-8"} | {
            name.replace("_", "-"): value for name, value in headers.items()
        }

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(200, headers=self.headers, stream=self.body)


class Reads(anthropic.Middleware):
    """A guard that does nothing but read ahead, in a call that may have a background task."""

    def __init__(self, hold_s: float, background: Background | None = None) -> None:
        self.hold_s = hold_s
        self.background = background
        self.ahead: Ahead | None = None
        self.held_until = math.nan
        self.call: Call | None = None
        self.attempt: Attempt | None = None
        self.given_back = 0

    async def handle_async(self, request: APIRequest, call_next: CallNext) -> Response:
        with open_call(request, background=self.background) as self.call, open_attempt(request) as self.attempt:
            self.attempt.push(self._give_back)
            response = await self.attempt.send(request, call_next)
            self.ahead = await read_ahead(response.http_response, self.attempt, hold_s=self.hold_s)
            self.held_until = anyio.current_time()
            return response

    def _give_back(self, attempt: Attempt) -> None:
        self.given_back += 1


def client_of(server: Server, *middleware: anthropic.Middleware) -> anthropic.AsyncAnthropic:
    """A client of the server that retries nothing."""
    return anthropic.AsyncAnthropic(
        api_key="sk-example",
        base_url="http://api.example",
        max_retries=0,
        middleware=list(middleware),
        http_client=httpx2.AsyncClient(transport=server),
    )


async def open_stream(client: anthropic.AsyncAnthropic) -> anthropic.AsyncStream[Any]:
    """Ask for a stream."""
    return await client.messages.create(
        model="claude-sonnet-5-5", max_tokens=10, messages=[{"role": "user", "content": "Hello"}], stream=True
    )


async def rest_of(stream: anthropic.AsyncStream[Any]) -> list[bytes]:
    """Read a body as it comes."""
    return [chunk async for chunk in stream.response.aiter_raw()]


@contextlib.asynccontextmanager
async def running_background(grace_s: float = 1.0) -> AsyncGenerator[Background, None]:
    """The background task of a client."""
    background, stop, started = Background(Observers()), anyio.Event(), anyio.Event()

    async def run() -> None:
        await background.run(stop, started=started, grace_s=grace_s)

    async with anyio.create_task_group() as group:
        group.start_soon(run)
        await started.wait()
        yield background
        stop.set()


@contextlib.asynccontextmanager
async def maybe_background(background: bool) -> AsyncGenerator[Background | None, None]:
    """The background task of a client, or none."""
    async with running_background() if background else contextlib.nullcontext() as given:
        yield given


both_ways = pytest.mark.parametrize("background", [False, True], ids=["in the foreground", "in the background"])


# Handing on.


@both_ways
async def test_the_body_is_handed_on_at_its_first_content(background: bool) -> None:
    """It reads up to the content and no further; then everything is there, in the chunks it came in."""
    parts: list[bytes | float | Exception] = [START, PING, 0.5, PING, TEXT, 5.0, TEXT, END]
    chunks = [part for part in parts if isinstance(part, bytes)]
    body = Body(*parts)
    async with maybe_background(background) as given:
        guard = Reads(10.0, given)

        stream = await open_stream(client_of(Server(body), guard))

        assert guard.ahead == Ahead()
        assert guard.held_until == pytest.approx(0.5, abs=0.01)
        assert body.parts == [5.0, TEXT, END]
        assert await rest_of(stream) == chunks
        assert (body.closed, body.cut, guard.given_back) == (1, False, 1)
        assert guard.attempt is not None
        assert guard.attempt.ok
        assert guard.attempt.usage is not None
        assert guard.attempt.usage.output_tokens == 2


@pytest.mark.lengthy
@both_ways
@settings(max_examples=40)
@given(data=st.data())
def test_any_body_in_any_chunks_is_handed_on_byte_for_byte(data: st.DataObject, background: bool) -> None:
    """Neither the bytes, nor their order, nor their chunks show that somebody looked first."""
    encoding = data.draw(st.sampled_from(["identity", "gzip", "deflate", "br"]))
    whole = b"".join(
        data.draw(st.lists(st.sampled_from([START, PING, TEXT, OVERLOADED, END, b"\r\n", b": hi\n"]), max_size=8))
    )
    whole = (START + whole + TEXT + END) if data.draw(st.booleans()) else whole + TEXT
    if encoding in {"gzip", "deflate"}:
        packer = zlib.compressobj(wbits=31 if encoding == "gzip" else 15)
        whole = packer.compress(whole) + packer.flush()
    cuts = sorted(data.draw(st.sets(st.integers(1, len(whole) - 1), max_size=8)))
    chunks = [whole[start:end] for start, end in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    waits = data.draw(st.lists(st.sampled_from([0.0, 0.1, 3.0]), min_size=len(chunks), max_size=len(chunks)))
    body = Body(*(part for chunk, wait in zip(chunks, waits, strict=True) for part in (wait, chunk)))

    async def main() -> None:
        async with maybe_background(background) as given:
            stream = await open_stream(client_of(Server(body, content_encoding=encoding), Reads(1.0, given)))
            assert await rest_of(stream) == chunks

    if encoding == "br":
        assert not can_read_ahead(httpx2.Response(200, headers={"content-encoding": "br"}, stream=body))
    else:
        anyio.run(main, backend_options={"loop_factory": VirtualLoop})


def test_only_unread_event_streams_in_known_encodings_can_be_read_ahead() -> None:
    """JSON, AWS frames, unknown encodings, errors, and bodies already read or closed are left alone."""
    events = {"content-type": "text/event-stream; charset=utf-8"}

    assert can_read_ahead(httpx2.Response(200, headers=events, stream=Body()))
    assert can_read_ahead(httpx2.Response(200, headers=events | {"content-encoding": "gzip"}, stream=Body()))
    assert not can_read_ahead(httpx2.Response(200, headers=events | {"content-encoding": "br"}, stream=Body()))
    assert not can_read_ahead(httpx2.Response(200, headers={"content-type": "application/json"}, stream=Body()))
    assert not can_read_ahead(
        httpx2.Response(200, headers={"content-type": "application/vnd.amazon.eventstream"}, stream=Body())
    )
    assert not can_read_ahead(httpx2.Response(529, headers=events, stream=Body()))
    assert not can_read_ahead(httpx2.Response(200, headers=events, content=b"data: x\n\n"))


async def test_the_elapsed_time_of_the_body_shows_through() -> None:
    """What httpx2 reads off a body, it still finds."""
    body = Body(START, TEXT, END)
    stream = await open_stream(client_of(Server(body), Reads(10.0)))

    await rest_of(stream)

    assert stream.response.elapsed >= timedelta(0)


# Failing before content.


@both_ways
@pytest.mark.parametrize(
    ("fault", "kind", "error_type"),
    [
        (httpx2.RemoteProtocolError("peer closed connection"), FailureKind.CONNECTION, anthropic.APIConnectionError),
        (httpx2.ReadTimeout("too slow"), FailureKind.TIMEOUT, anthropic.APITimeoutError),
        (None, FailureKind.CONNECTION, anthropic.APIConnectionError),
        (b"event: message_start\ndata: {\n\n", FailureKind.INVALID, InvalidStream),
        (OSError("odd"), FailureKind.OTHER, OSError),
    ],
)
async def test_a_body_that_breaks_before_content_is_told_as_the_error_to_raise(
    fault: bytes | Exception | None, kind: FailureKind, error_type: type[Exception], background: bool
) -> None:
    """Transport failures become the SDK's connection errors, with what happened as their cause."""
    body = Body(START, *([] if fault is None else [fault]))
    async with maybe_background(background) as given:
        guard = Reads(10.0, given)

        stream = await open_stream(client_of(Server(body), guard))

        assert guard.ahead is not None
        assert guard.ahead.failure is not None
        assert guard.ahead.failure.kind is kind
        assert type(guard.ahead.error) is error_type
        if isinstance(fault, httpx2.TransportError):
            assert guard.ahead.error.__cause__ is fault
        await stream.close()
        assert (body.closed, guard.given_back) == (1, 1)


@both_ways
async def test_an_error_event_before_content_stays_in_the_body(background: bool) -> None:
    """Who reads on gets the SDK's own error for it."""
    async with maybe_background(background) as given:
        guard = Reads(10.0, given)
        stream = await open_stream(client_of(Server(Body(START, OVERLOADED)), guard))
        assert guard.ahead is not None
        assert guard.ahead.failure is not None
        assert guard.ahead.failure.kind is FailureKind.OVERLOADED
        assert guard.ahead.error is None

        with pytest.raises(anthropic.APIStatusError, match="Overloaded"):
            _ = [event async for event in stream]


# Holding.


async def test_without_a_background_the_time_is_looked_at_between_chunks() -> None:
    """A read that is pending when the time is up is waited for, because to cut it would kill the stream."""
    body = Body(START, 4.0, PING, 8.0, PING, 1.0, TEXT, END)
    guard = Reads(10.0)

    stream = await open_stream(client_of(Server(body), guard))

    assert guard.held_until == pytest.approx(12.0, abs=0.01)
    assert guard.ahead == Ahead()
    assert await rest_of(stream) == [START, PING, PING, TEXT, END]


async def test_with_a_background_the_body_is_handed_on_when_the_time_is_up() -> None:
    """The pending read goes on in the background, and who reads the body gets what it brings."""
    body = Body(START, 4.0, PING, 8.0, TEXT, 1.0, END)
    async with running_background() as background:
        guard = Reads(10.0, background)

        stream = await open_stream(client_of(Server(body), guard))

        assert guard.held_until == pytest.approx(10.0, abs=0.01)
        assert guard.ahead == Ahead()
        assert await rest_of(stream) == [START, PING, TEXT, END]
        assert anyio.current_time() == pytest.approx(13.0, abs=0.01)
        assert (body.closed, body.cut, guard.given_back) == (1, False, 1)


async def test_nothing_but_the_pending_read_goes_on_while_nobody_reads() -> None:
    """The background holds one chunk at most for a reader that is slow to come."""
    body = Body(START, 12.0, PING, PING, PING, TEXT, END)
    async with running_background() as background:
        stream = await open_stream(client_of(Server(body), Reads(10.0, background)))

        await anyio.sleep(60)

        assert body.parts == [PING, PING, TEXT, END]
        assert await rest_of(stream) == [START, PING, PING, PING, TEXT, END]


@pytest.mark.parametrize(
    "fault", [httpx2.ReadError("reset"), httpx2.ReadTimeout("too slow")], ids=["reset", "time-out"]
)
async def test_a_pending_read_that_fails_after_the_hand_over_reaches_the_reader(fault: Exception) -> None:
    """As with any stream, the transport's own error comes after what came before it."""
    body = Body(START, 12.0, fault)
    seen: list[bytes] = []

    async def read(stream: anthropic.AsyncStream[Any]) -> None:
        async for chunk in stream.response.aiter_raw():
            seen.append(chunk)  # noqa: PERF401 - what came before the error counts

    async with running_background() as background:
        guard = Reads(10.0, background)
        stream = await open_stream(client_of(Server(body), guard))

        with pytest.raises(type(fault)):
            await read(stream)

        assert seen == [START]
        assert guard.attempt is not None
        assert guard.attempt.failure is not None
        assert body.closed == 1


async def test_a_body_that_ends_with_the_pending_read_just_ends() -> None:
    """The end of a body handed on is no error."""
    async with running_background() as background:
        stream = await open_stream(client_of(Server(Body(START, 12.0)), Reads(10.0, background)))

        assert await rest_of(stream) == [START]


async def test_closing_a_body_ends_its_pending_read() -> None:
    """Nothing stays behind in the background."""
    body = Body(START, 600.0, TEXT)
    async with running_background() as background:
        guard = Reads(10.0, background)
        stream = await open_stream(client_of(Server(body), guard))

        await stream.close()
        await anyio.wait_all_tasks_blocked()

        assert (body.closed, body.cut, guard.given_back) == (1, True, 1)
        assert "0 pending" in repr(background)
        assert anyio.current_time() < 11


async def test_a_body_closed_while_somebody_waits_for_its_pending_read_fails_for_him() -> None:
    """He isn't left waiting."""
    async with running_background() as background, anyio.create_task_group() as group:
        stream = await open_stream(client_of(Server(Body(START, 600.0)), Reads(10.0, background)))

        async def close_later() -> None:
            await anyio.sleep(1)
            await stream.response.aclose()

        group.start_soon(close_later)
        with pytest.raises(httpx2.ReadError, match="closed while it was being read"):
            await rest_of(stream)


async def test_closing_the_client_ends_a_pending_read() -> None:
    """Its reader is told that the client was closed."""
    body = Body(START, 600.0)
    async with running_background() as background:
        guard = Reads(10.0, background)
        stream = await open_stream(client_of(Server(body), guard))
        assert guard.call is not None

        guard.call.close()

        with pytest.raises(ClientClosed):
            await rest_of(stream)
        assert (body.closed >= 1, body.cut, guard.given_back) == (True, True, 1)


async def test_a_background_that_is_stopped_lets_nobody_wait() -> None:
    """A pending read cut by the end of the background task fails for who waits for it, and the body is closed."""
    body = Body(START, 600.0)
    raised: list[Exception] = []

    async def read(stream: anthropic.AsyncStream[Any]) -> None:
        try:
            await rest_of(stream)
        except Exception as error:  # noqa: BLE001 - compared below
            raised.append(error)

    async with anyio.create_task_group() as group:
        async with running_background(grace_s=5.0) as background:
            stream = await open_stream(client_of(Server(body), Reads(10.0, background)))
            group.start_soon(read, stream)
        assert anyio.current_time() == pytest.approx(15.0, abs=0.1)

    assert [type(error) for error in raised] == [httpx2.ReadError]
    assert body.closed == 1


async def test_a_dropped_body_with_a_pending_read_is_closed() -> None:
    """The garbage collector finds it although the background still reads; a warning tells."""
    body = Body(START, 600.0)
    async with running_background() as background:
        guard = Reads(10.0, background)
        stream = await open_stream(client_of(Server(body), guard))

        # The loop lets go of what it did last.
        await anyio.sleep(1)

        with pytest.warns(ResourceWarning, match="dropped without being closed"):  # noqa: PT031 - the last reference
            del stream
            gc.collect()
        await anyio.wait_all_tasks_blocked()

        assert (body.closed, body.cut, guard.given_back) == (1, True, 1)


# Cancellation.


async def test_the_deadline_bounds_reading_ahead(virtual_time: VirtualTime) -> None:
    """Pings defeat read time-outs, not the deadline; the attempt counts as timed out and its body is closed."""
    pings: list[bytes | float] = [5.0, PING]
    body = Body(START, *pings * 200)

    class Sent(anthropic.Middleware):
        async def handle_async(self, request: APIRequest, call_next: CallNext) -> Response:
            with open_call(request, deadline_s=60.0) as call, open_attempt(request) as attempt:
                attempt.sent = True
                try:
                    return await call_next(request)
                finally:
                    self.failure = call.failure or attempt.failure

    sent, guard = Sent(), Reads(math.inf)
    with pytest.raises(anthropic.APITimeoutError):
        await open_stream(client_of(Server(body), sent, guard))

    assert virtual_time.now() == pytest.approx(60.0, abs=0.01)
    assert sent.failure is not None
    assert sent.failure.kind is FailureKind.TIMEOUT
    assert (body.cut, guard.given_back) == (True, 1)


@both_ways
@pytest.mark.parametrize("how", get_args(How))
@pytest.mark.parametrize(
    "parts",
    [
        (START, 1.0, PING, 1.0, TEXT, 1.0, END),
        (START, 12.0, TEXT, 1.0, END),
        (START, 1.0, OVERLOADED),
        (1.0, START, 1.0, httpx2.ReadError("reset")),
    ],
    ids=["content", "held", "error", "reset"],
)
async def test_cancelled_at_any_await_nothing_stays_open(
    parts: tuple[bytes | float | Exception, ...], how: How, background: bool
) -> None:
    """Wherever its caller is cancelled, the body is closed, and what was taken is given back once."""

    async def scenario(cancelled: Cancelled) -> None:
        body = Body(*parts)
        async with maybe_background(background) as given:
            guard = Reads(10.0, given)

            async def main() -> None:
                stream = await open_stream(client_of(Server(body), guard))
                with contextlib.suppress(anthropic.APIError, httpx2.TransportError):
                    async with stream:
                        _ = [event async for event in stream]

            await cancelled(main())
            await anyio.sleep(1)
            assert given is None or "0 pending" in repr(given)
        if guard.attempt is not None:
            assert guard.given_back == 1
            # Without a background, a close that is itself cut short is the transport's to finish.
            assert body.closed if background else body.closing

    assert await cancel_at_every_await(scenario, how=how) > 1
