from __future__ import annotations

import asyncio
import contextlib
import gc
import gzip
import json
import math
import sys
import threading
import warnings
import weakref
import zlib
from contextlib import asynccontextmanager
from datetime import timedelta
from itertools import pairwise
from typing import TYPE_CHECKING, Any, get_args

import anthropic
import anyio
import anyio.lowlevel
import httpx2
import pytest
from anthropic._models import FinalRequestOptions
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock._core.attempt import Attempt, CallNext, Response, open_attempt
from penstock._core.background import Background
from penstock._core.body import body as body_module
from penstock._core.body.answer_errors import as_sdk_error, request_of
from penstock._core.body.aws import AWS_STREAM, AWSScanner
from penstock._core.body.body import Beginning, read_out, scanner_for
from penstock._core.body.scanner import NOT_A_MESSAGE, NOT_A_STREAM, Scanner
from penstock._core.call import MAX_RESPONSE_BYTES, Call, open_call
from penstock._core.failure import FailureKind
from penstock._core.usage import Usage
from penstock.errors import ClientClosed, InvalidStream, QueueFull, ResponseTooLarge
from penstock.events import Observers
from penstock.testing import Cancelled, ScriptedTransport, VirtualLoop, cancel_at_every_await
from penstock.testing.cancellation import How

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable

    from anthropic import APIRequest

    from penstock.testing.plugin import VirtualTime

MESSAGE: dict[str, Any] = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": "claude-sonnet-5-5",
    "content": [],
    "stop_reason": "end_turn",
    "stop_sequence": None,
    "usage": {"input_tokens": 3, "output_tokens": 4},
}
DOCUMENT = json.dumps(MESSAGE).encode()
PLAIN = [DOCUMENT[:20], DOCUMENT[20:]]
WHOLE = Usage(input_tokens=3, output_tokens=4)
EVENTS = {"content-type": "text/event-stream; charset=utf-8"}
JSON = {"content-type": "application/json"}


def sse(event: dict[str, Any]) -> bytes:
    """The bytes of an event."""
    return f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode()


BEGUN = {**MESSAGE, "stop_reason": None, "usage": {"input_tokens": 3, "output_tokens": 1}}
START = sse({"type": "message_start", "message": BEGUN}) + sse(
    {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
)
PING = sse({"type": "ping"})
TEXT = sse({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Hi"}})
DELTA = sse({"type": "content_block_stop", "index": 0}) + sse(
    {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 4}}
)
STOP = sse({"type": "message_stop"})
END = DELTA + STOP
STREAM = [START, TEXT, TEXT, DELTA, STOP]
OVERLOADED = sse({"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}})


class Source(httpx2.AsyncByteStream):
    """A transport's stream: bytes, seconds to wait, and errors to raise, in turn."""

    def __init__(self, *parts: bytes | float | Exception, closing_s: float = 0.0) -> None:
        self.parts = list(parts)
        self.closing_s = closing_s
        self.elapsed = timedelta(seconds=3)
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
        await anyio.sleep(self.closing_s)
        self.closed += 1


def slowly(chunks: list[bytes], error: Exception | None = None, *, closing_s: float = 0.0) -> Source:
    """A stream of a chunk a second, which may break in the end."""
    parts: list[bytes | float | Exception] = [part for chunk in chunks for part in (1.0, chunk)]
    return Source(*parts, *([] if error is None else [error]), closing_s=closing_s)


def api_request(url: str = "/v1/messages", *, stream: bool = True) -> anthropic.APIRequest:
    """A request as the SDK's chain hands it on."""
    options = FinalRequestOptions.construct(method="post", url=url, json_data={"model": "claude-sonnet-5-5"})
    return anthropic.APIRequest(options=options, cast_to=object, stream=stream)


class Exchange:
    """An attempt that was answered with a body, which is still to be read."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.given_back = list[Attempt]()
        self.attempt: Attempt
        self.response: httpx2.Response
        self.begins = Beginning()

    @property
    def failure(self) -> FailureKind | None:
        """How it failed."""
        return None if self.attempt.failure is None else self.attempt.failure.kind

    def chunks(self) -> Any:
        """The raw bytes, as they come."""
        return aiter(self.response.stream)  # type: ignore[arg-type]

    async def raw(self) -> list[bytes]:
        """All raw bytes, in their chunks."""
        return [chunk async for chunk in self.chunks()]

    async def send(
        self,
        headers: dict[str, str],
        request: anthropic.APIRequest,
        background: Background | None,
        max_response_bytes: int,
        hold_s: float | None,
    ) -> None:
        async def call_next(_request: anthropic.APIRequest) -> httpx2.Response:
            return httpx2.Response(200, headers=headers, stream=self.source)

        opened = open_call(request, background=background, max_response_bytes=max_response_bytes)
        with opened, open_attempt(request) as self.attempt:
            self.attempt.sent = True
            self.attempt.push(self.given_back.append)
            self.response = await self.attempt.send(request, call_next)
            if hold_s is not None:
                self.begins = await self.attempt.begin(self.response, hold_s=hold_s)


async def answered(
    source: Source,
    headers: dict[str, str] = EVENTS,
    *,
    url: str = "/v1/messages",
    stream: bool = True,
    background: Background | None = None,
    max_response_bytes: int = MAX_RESPONSE_BYTES,
    hold_s: float | None = None,
) -> Exchange:
    """An exchange whose headers have come, and, with `hold_s`, its first content."""
    exchange = Exchange(source)
    await exchange.send(headers, api_request(url, stream=stream), background, max_response_bytes, hold_s)
    return exchange


def server(source: Source, **headers: str) -> ScriptedTransport:
    """Answers every request with one body."""
    given = EVENTS | {name.replace("_", "-"): value for name, value in headers.items()}
    return ScriptedTransport(lambda _: httpx2.Response(200, headers=given, stream=source))


class Reads(anthropic.Middleware):
    """A guard that does nothing but read ahead, in a call that may have a background task."""

    def __init__(self, hold_s: float, background: Background | None = None) -> None:
        self.hold_s = hold_s
        self.background = background
        self.begins: Beginning | None = None
        self.held_until = math.nan
        self.call: Call | None = None
        self.attempt: Attempt | None = None
        self.given_back = 0

    async def handle_async(self, request: APIRequest, call_next: CallNext) -> Response:
        with open_call(request, background=self.background) as self.call, open_attempt(request) as self.attempt:
            self.attempt.push(self._give_back)
            response = await self.attempt.send(request, call_next)
            self.begins = await self.attempt.begin(response.http_response, hold_s=self.hold_s)
            self.held_until = anyio.current_time()
            return response

    def _give_back(self, attempt: Attempt) -> None:
        self.given_back += 1


def client_of(transport: ScriptedTransport, *middleware: anthropic.Middleware) -> anthropic.AsyncAnthropic:
    """A client of the server that retries nothing."""
    return transport.client(middleware=list(middleware))


async def open_stream(client: anthropic.AsyncAnthropic) -> anthropic.AsyncStream[Any]:
    """Ask for a stream."""
    return await client.messages.create(
        model="claude-sonnet-5-5", max_tokens=10, messages=[{"role": "user", "content": "Hello"}], stream=True
    )


async def rest_of(stream: anthropic.AsyncStream[Any]) -> list[bytes]:
    """Read a body as it comes."""
    return [chunk async for chunk in stream.response.aiter_raw()]


@asynccontextmanager
async def running_background(grace_s: float = 5.0) -> AsyncGenerator[Background, None]:
    """The background task of a client."""
    background, stop, started = Background(Observers()), anyio.Event(), anyio.Event()

    async def run() -> None:
        await background.run(stop, started=started, grace_s=grace_s)

    async with anyio.create_task_group() as group:
        group.start_soon(run)
        await started.wait()
        yield background
        stop.set()


@asynccontextmanager
async def maybe_background(background: bool) -> AsyncGenerator[Background | None, None]:
    """The background task of a client, or none."""
    async with running_background() if background else contextlib.nullcontext() as given:
        yield given


virtual = pytest.mark.usefixtures("virtual_time")
both_ways = pytest.mark.parametrize("background", [False, True], ids=["in the foreground", "in the background"])


# Flow.


async def test_the_bytes_pass_unchanged_in_the_chunks_they_came_in(virtual_time: VirtualTime) -> None:
    """Looking adds no byte, no boundary and no time."""
    exchange = await answered(slowly(STREAM))
    began = virtual_time.now()
    assert await exchange.raw() == STREAM
    assert virtual_time.now() - began == pytest.approx(len(STREAM), abs=0.01)


async def test_httpx_reads_the_elapsed_time_through_it(virtual_time: VirtualTime) -> None:
    """What the transport's stream knows stays visible; a stream without it has none."""
    source = Source()
    exchange = await answered(source)
    assert exchange.response.stream.elapsed == timedelta(seconds=3)  # type: ignore[union-attr]
    del source.elapsed
    assert exchange.response.stream.elapsed is None  # type: ignore[union-attr]
    await exchange.response.aclose()


@pytest.mark.parametrize(("chunks", "headers"), [(PLAIN, JSON), (STREAM, EVENTS)], ids=["plain", "streamed"])
async def test_a_body_read_to_its_end_ends_the_attempt(
    chunks: list[bytes], headers: dict[str, str], virtual_time: VirtualTime
) -> None:
    """Its usage is known, nothing has failed, and what was taken is given back once."""
    exchange = await answered(slowly(chunks), headers, stream=headers is EVENTS)
    assert not exchange.attempt.ended
    await exchange.response.aread()
    attempt = exchange.attempt
    assert (attempt.ended, attempt.failure, attempt.usage, attempt.stop_reason) == (True, None, WHOLE, "end_turn")
    assert exchange.given_back == [attempt]
    assert exchange.source.closed == 1


async def test_the_first_content_of_a_stream_is_timed(virtual_time: VirtualTime) -> None:
    """The time of the chunk that brought it, not of the start before it or the text after it."""
    exchange = await answered(slowly(STREAM))
    began = virtual_time.now()
    await exchange.response.aread()
    assert exchange.attempt.first_content_at == pytest.approx(began + 2, abs=0.01)


async def test_a_stream_that_ends_without_its_last_event_has_failed(virtual_time: VirtualTime) -> None:
    """A clean end of the connection is no clean end of the stream: it counts as a connection that failed."""
    exchange = await answered(slowly(STREAM[:-1]))
    await exchange.response.aread()
    failure, usage = exchange.attempt.failure, exchange.attempt.usage
    assert failure is not None
    assert (failure.kind, failure.retryable, failure.of_service) == (FailureKind.CONNECTION, True, True)
    assert usage == Usage(input_tokens=3, output_tokens=4, estimated=True)


async def test_an_error_inside_a_stream_is_the_attempts_failure(virtual_time: VirtualTime) -> None:
    """Even though the body then ends cleanly."""
    exchange = await answered(slowly([*STREAM[:2], OVERLOADED]))
    await exchange.response.aread()
    assert exchange.failure is FailureKind.OVERLOADED


@pytest.mark.parametrize("read", range(len(STREAM) + 1))
async def test_closed_early_the_attempt_ends_at_once(read: int, virtual_time: VirtualTime) -> None:
    """After any number of chunks, closing gives back before it waits, and what was seen is settled as an estimate."""
    exchange = await answered(slowly(STREAM, closing_s=100))
    chunks = exchange.chunks()
    for _ in range(read):
        await anext(chunks)
    with anyio.move_on_after(1):
        await exchange.response.aclose()
    attempt = exchange.attempt
    assert exchange.given_back == [attempt]
    if read == len(STREAM):
        assert (attempt.failure, attempt.usage) == (None, WHOLE)
    else:
        assert exchange.failure is FailureKind.ABANDONED
        assert attempt.usage is not None
        assert attempt.usage.estimated
        assert attempt.usage.input_tokens == (3 if read else 0)
    await chunks.aclose()
    assert len(exchange.given_back) == 1


@pytest.mark.parametrize("sent", range(len(STREAM)))
async def test_a_body_that_breaks_raises_as_it_is_and_ends_the_attempt(sent: int, virtual_time: VirtualTime) -> None:
    """After any number of chunks, the transport's own error reaches the reader, and the attempt has failed by it."""
    broken = httpx2.ReadError("reset")
    exchange = await answered(slowly(STREAM[:sent], broken))
    with pytest.raises(httpx2.ReadError) as raised:
        await exchange.response.aread()
    assert raised.value is broken
    assert exchange.failure is FailureKind.CONNECTION
    assert exchange.given_back == [exchange.attempt]
    await exchange.response.aclose()


@pytest.mark.parametrize("read", range(len(STREAM)))
async def test_cancelled_while_reading_the_attempt_has_ended(read: int, virtual_time: VirtualTime) -> None:
    """At any chunk, cancellation gives back once, and closing afterwards changes nothing."""
    exchange = await answered(slowly(STREAM))
    with anyio.move_on_after(read + 0.5) as scope:
        await exchange.response.aread()
    assert scope.cancelled_caught
    assert exchange.given_back == [exchange.attempt]
    assert exchange.failure is FailureKind.CANCELLED
    await exchange.response.aclose()
    assert exchange.given_back == [exchange.attempt]


async def test_a_close_that_is_cancelled_is_finished_in_the_background(virtual_time: VirtualTime) -> None:
    """The connection is closed even if whoever closes it has no time left."""
    async with running_background() as background:
        exchange = await answered(slowly(STREAM, closing_s=2), background=background)
        with anyio.move_on_after(1):
            await exchange.response.aclose()
        assert exchange.source.closed == 0
        await anyio.sleep(3)
        assert exchange.source.closed == 1


async def test_an_iterator_that_is_closed_has_its_connection_closed(virtual_time: VirtualTime) -> None:
    """Whoever reads the raw bytes and leaves closes nothing else; the background does."""
    async with running_background() as background:
        exchange = await answered(slowly(STREAM), background=background)
        chunks = exchange.chunks()
        await anext(chunks)
        await chunks.aclose()
        assert exchange.given_back == [exchange.attempt]
        assert exchange.failure is FailureKind.ABANDONED
        await anyio.sleep(1)
        assert exchange.source.closed == 1


async def test_a_dropped_iterator_ends_the_attempt_at_once(virtual_time: VirtualTime) -> None:
    """Leaving a loop is enough: nobody has to wait for the garbage collector."""
    exchange = await answered(slowly(STREAM))
    async for _ in exchange.chunks():
        break
    for _ in range(3):
        await anyio.lowlevel.checkpoint()
    assert exchange.given_back == [exchange.attempt]
    await exchange.response.aclose()


async def test_a_dropped_body_is_reported_and_closed(virtual_time: VirtualTime) -> None:
    """A response that nobody reads or closes gives back at its end, is closed, and its owner is warned."""
    async with running_background() as background:
        exchange = await answered(slowly(STREAM), background=background)
        with pytest.warns(ResourceWarning, match="dropped without being closed"):
            del exchange.response
        attempt = exchange.attempt
        assert exchange.given_back == [attempt]
        assert exchange.failure is FailureKind.ABANDONED
        assert attempt.usage == Usage(estimated=True)
        await anyio.sleep(1)
        assert exchange.source.closed == 1


async def test_a_dropped_body_in_a_cycle_is_found_by_the_collector(virtual_time: VirtualTime) -> None:
    """The same, a collection later."""
    exchange = await answered(slowly(STREAM))
    exchange.response.extensions["self"] = exchange.response
    with pytest.warns(ResourceWarning, match="dropped without being closed"):  # noqa: PT031 - the last reference
        del exchange.response
        gc.collect()
    assert exchange.given_back == [exchange.attempt]


async def test_where_warnings_are_errors_a_dropped_body_still_gives_back(
    virtual_time: VirtualTime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A warning that raises must not keep the slot."""
    raised = list[object]()
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: raised.append(type(unraisable.exc_value)))
    exchange = await answered(slowly(STREAM))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        del exchange.response
    assert raised == [ResourceWarning]
    assert exchange.given_back == [exchange.attempt]


async def test_a_body_that_was_read_and_not_closed_is_closed_without_a_warning(virtual_time: VirtualTime) -> None:
    """Its attempt is over, so nothing was lost; only the connection is still to be given back."""
    async with running_background() as background:
        exchange = await answered(slowly(STREAM), background=background)
        async for _ in exchange.chunks():
            pass
        del exchange.response
        await anyio.sleep(1)
        assert exchange.source.closed == 1


async def test_collected_in_another_thread_it_gives_back_in_its_own() -> None:
    """The state of guards belongs to the event loop's thread, wherever the garbage collector runs."""
    exchange, threads = await answered(slowly(STREAM)), list[int]()
    exchange.attempt.push(lambda _attempt: threads.append(threading.get_ident()))
    drop: list[Any] = [exchange.response.stream]
    del exchange.response

    def collect() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            drop.clear()

    thread = threading.Thread(target=collect)
    thread.start()
    thread.join()
    assert threads == []
    await anyio.lowlevel.checkpoint()
    await anyio.lowlevel.checkpoint()
    assert threads == [threading.get_ident()]


def test_collected_after_its_loop_was_closed_it_still_gives_back() -> None:
    """What is not on the event loop, such as a log line, is still told."""
    kept = list[Exchange]()

    async def main() -> None:
        kept.append(await answered(slowly(STREAM)))

    anyio.run(main)
    (exchange,) = kept
    with pytest.warns(ResourceWarning, match="dropped without being closed"):
        del exchange.response
    assert exchange.given_back == [exchange.attempt]


# Freed by reference counting alone.


@contextlib.contextmanager
def without_collector() -> Any:
    """A block in which no garbage collection happens."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@virtual
@pytest.mark.parametrize("read", [None, 0, 1, 3])
async def test_a_dropped_body_is_gone_at_once(read: int | None) -> None:
    """Unread, read ahead or half read: with the last reference to the response, without the garbage collector."""
    async with running_background() as background:
        exchange = await answered(slowly(STREAM), background=background, hold_s=None if read is None else math.inf)
        body = weakref.ref(exchange.response.stream)
        with without_collector(), warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            chunks = exchange.chunks()
            for _ in range(read or 0):
                await anext(chunks)
            await chunks.aclose()
            del chunks, exchange.response
            assert body() is None
            assert exchange.attempt.body is None
            assert exchange.given_back == [exchange.attempt]
        await anyio.sleep(1)
        assert exchange.source.closed == 1


@virtual
async def test_a_body_dropped_under_a_background_read_is_gone_at_once() -> None:
    """The read holds the connection, not the body; it is cut, and a warning tells."""
    async with running_background() as background:
        exchange = await answered(Source(START, 600.0, TEXT), background=background, hold_s=1.0)
        body = weakref.ref(exchange.response.stream)
        # The loop lets go of what it did last.
        await anyio.lowlevel.checkpoint()
        with without_collector():
            with pytest.warns(ResourceWarning, match="dropped without being closed"):
                del exchange.response
            assert body() is None
            assert exchange.given_back == [exchange.attempt]
            assert exchange.failure is FailureKind.ABANDONED
        await anyio.wait_all_tasks_blocked()
        assert (exchange.source.closed, exchange.source.cut) == (1, True)
        assert "0 pending" in repr(background)


# The end of an answer.


@virtual
@both_ways
@pytest.mark.parametrize("last", [STOP, OVERLOADED], ids=["message_stop", "error"])
@pytest.mark.parametrize(
    "after", [b"", b"data: [DONE]\n\n", PING, TEXT + STOP], ids=["nothing", "done", "ping", "more"]
)
async def test_the_last_event_ends_the_answer(last: bytes, after: bytes, background: bool) -> None:
    """The attempt is over with it, before the reader has it; what comes after is read out, and cut off."""
    async with maybe_background(background) as given:
        source = Source(START, TEXT, 1.0, DELTA + last + after, 0.1, after or b"\n", 0.1)
        exchange = await answered(source, background=given, hold_s=math.inf)
        assert not exchange.attempt.ended
        seen = [(chunk, exchange.attempt.ended) async for chunk in exchange.chunks()]
        assert seen == [(START, False), (TEXT, False), (DELTA + last, True)]
        if background:
            # Longer than a reader waits.
            await anyio.sleep(1)
        assert source.parts == []
        assert exchange.failure is (None if last is STOP else FailureKind.OVERLOADED)
        assert exchange.given_back == [exchange.attempt]
        assert (source.cut, source.closed) == (False, int(background))
        await exchange.response.aclose()


@virtual
async def test_a_reader_cancelled_within_what_was_read_ahead_ends_the_attempt() -> None:
    """The event loop gets its turns there too, and at each of them a cancellation may come."""
    exchange = await answered(Source(START, *[PING] * 100, TEXT, 600.0), hold_s=math.inf)
    with anyio.CancelScope() as scope:
        async for _ in exchange.chunks():
            scope.cancel()
    assert scope.cancelled_caught
    assert exchange.failure is FailureKind.CANCELLED
    await exchange.response.aclose()


@virtual
async def test_an_answer_whose_first_chunk_ends_it_is_handed_on() -> None:
    """What was read ahead is all there is; the trailing bytes are cut off there as well."""
    exchange = await answered(Source(START + TEXT + END + b"junk", b"more junk"), hold_s=math.inf)
    assert exchange.begins == Beginning()
    assert exchange.given_back == [exchange.attempt]
    assert await exchange.raw() == [START + TEXT + END]
    await exchange.response.aclose()


@virtual
async def test_a_connection_that_stays_open_is_closed_in_the_background(virtual_time: VirtualTime) -> None:
    """It gets half a second for its own end, no more, for which its reader does not wait; the answer is whole."""
    async with running_background() as background:
        exchange = await answered(Source(*STREAM, 600.0), background=background)
        began = virtual_time.now()
        assert await exchange.raw() == STREAM
        assert virtual_time.now() - began <= 0.03
        await anyio.sleep(body_module.GRACE_S - 0.1)
        assert (exchange.source.cut, exchange.source.closed) == (False, 0)
        await exchange.response.aclose()
        assert (exchange.source.cut, exchange.source.closed) == (False, 0)
        await anyio.sleep(0.2)
        assert (exchange.source.cut, exchange.source.closed) == (True, 1)
        assert (exchange.attempt.failure, exchange.attempt.usage) == (None, WHOLE)
        await exchange.response.aclose()


@virtual
async def test_a_connection_that_ends_soon_is_waited_for(virtual_time: VirtualTime) -> None:
    """So that it can be used again."""
    exchange = await answered(Source(*STREAM, 0.4))
    began = virtual_time.now()
    assert await exchange.raw() == STREAM
    assert virtual_time.now() - began == pytest.approx(0.4, abs=0.01)
    assert not exchange.source.cut
    await exchange.response.aclose()


@virtual
@both_ways
@pytest.mark.parametrize("fault", [httpx2.ReadError("reset"), httpx2.ReadTimeout("slow"), httpx2.StreamClosed()])
async def test_a_reset_after_the_last_event_is_no_failure(fault: Exception, background: bool) -> None:
    """What matters has come; a server may end a connection as it likes."""
    async with maybe_background(background) as given:
        exchange = await answered(Source(*STREAM, fault), background=given)
        assert await exchange.raw() == STREAM
        assert (exchange.attempt.failure, exchange.attempt.usage) == (None, WHOLE)
        await exchange.response.aclose()


async def test_a_connection_that_never_stops_sending_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks that are there already can't hold the event loop."""
    monkeypatch.setattr(body_module, "GRACE_S", 0.01)

    async def forever() -> AsyncIterator[bytes]:
        while True:
            yield PING

    assert not await read_out(forever())


@virtual
async def test_a_reader_cancelled_while_the_connection_ends_has_the_whole_answer() -> None:
    """The attempt is over; the connection is closed with the response."""
    exchange = await answered(Source(*STREAM, 600.0))
    with anyio.move_on_after(0.1) as scope:
        await exchange.response.aread()
    assert scope.cancelled_caught
    assert (exchange.attempt.failure, exchange.attempt.usage) == (None, WHOLE)
    await exchange.response.aclose()


# The event loop's turns.


class Ticker:
    """Counts the turns of the event loop."""

    def __init__(self) -> None:
        self.turns = 0
        self._loop = asyncio.get_running_loop()
        self._tick()

    def _tick(self) -> None:
        self.turns += 1
        self._handle = self._loop.call_soon(self._tick)

    def stop(self) -> int:
        """Stop counting; returns how many there were."""
        self._handle.cancel()
        return self.turns


@pytest.mark.lengthy
@pytest.mark.parametrize("hold_s", [None, math.inf], ids=["flow", "begin"])
@pytest.mark.parametrize(
    ("chunks", "turns"),
    [
        ([PING] * 6400, 100),
        ([b": " + b"x" * 4094] * 200, 50),
        ([b": " + b"x" * 1024 * 1024], 64),
        ([b": " + b"x" * 32 * 1024] * 8, 24),
    ],
    ids=["many small", "fewer large", "one huge", "some of two turns each"],
)
async def test_others_get_their_turn_while_chunks_are_there(
    chunks: list[bytes], turns: int, hold_s: float | None
) -> None:
    """After 64 chunks or 16 KiB, and not for each chunk."""
    end = [] if hold_s else [START + TEXT]
    exchange, ticker = Exchange(Source(*end, *chunks, *STREAM)), Ticker()
    await exchange.send(EVENTS, api_request(), None, MAX_RESPONSE_BYTES, hold_s)
    if hold_s is None:
        await exchange.raw()
    assert turns <= ticker.stop() <= turns * 1.3 + 10
    await exchange.response.aclose()


@pytest.mark.parametrize("last", [0, 5, 40], ids="the end in piece {}".format)
async def test_a_huge_chunk_is_cut_at_the_end_of_the_answer(last: int) -> None:
    """However it is looked at in turns, what comes after its last event counts as that."""
    answer = START + TEXT + (b": " + b"x" * 16 * 1024 + b"\n\n") * last + END
    exchange = await answered(Source(answer + b"y" * 100_000))
    assert b"".join(await exchange.raw()) == answer
    await exchange.response.aclose()


# Bounds.


@virtual
@both_ways
@pytest.mark.parametrize("encoding", ["identity", "gzip"])
async def test_a_stream_beyond_its_bound_is_refused(encoding: str, background: bool) -> None:
    """After decompression, before content and after it; it may have been billed, and is not asked for again."""
    flood = PING * 1000
    for before in (START, START + TEXT):
        data = before + flood
        parts = [before, flood] if encoding == "identity" else [gzip.compress(data)]
        async with maybe_background(background) as given:
            exchange = await answered(
                Source(*parts),
                {**EVENTS, "content-encoding": encoding},
                background=given,
                max_response_bytes=len(data) - 1,
                hold_s=math.inf if not background else 10.0,
            )
            # Of what was compressed, content and too much come out in one piece.
            is_told = encoding == "gzip" or TEXT not in before
            assert isinstance(exchange.begins.error, ResponseTooLarge) is is_told
            with pytest.raises(ResponseTooLarge) as raised:
                await exchange.response.aread()
            assert raised.value.limit_bytes == len(data) - 1
            failure = exchange.attempt.failure
            assert failure is not None
            assert (failure.kind, failure.retryable, failure.may_be_billed) == (FailureKind.INVALID, False, True)
            assert exchange.given_back == [exchange.attempt]
            await exchange.response.aclose()


@virtual
async def test_a_body_of_just_its_bound_is_read() -> None:
    """So many bytes are allowed."""
    exchange = await answered(Source(*STREAM), max_response_bytes=len(b"".join(STREAM)))
    assert await exchange.raw() == STREAM
    assert exchange.attempt.ok
    await exchange.response.aclose()


@virtual
async def test_a_document_beyond_its_bound_is_refused() -> None:
    """A message that is read by its reader is bounded as well."""
    exchange = await answered(Source(*PLAIN), JSON, stream=False, max_response_bytes=len(DOCUMENT) - 1)
    with pytest.raises(ResponseTooLarge):
        await exchange.response.aread()
    await exchange.response.aclose()


@virtual
async def test_what_is_no_message_has_no_bound() -> None:
    """A file may be as large as it is."""
    exchange = await answered(Source(*PLAIN), JSON, url="/v1/files", max_response_bytes=1)
    assert await exchange.response.aread() == DOCUMENT
    assert (exchange.attempt.failure, exchange.attempt.usage) == (None, None)


@pytest.mark.lengthy
@virtual
async def test_a_bomb_is_never_held() -> None:
    """64 MB of zeros in 64 kB are refused after a few pieces, none above 64 KiB."""
    packer = zlib.compressobj(wbits=31)
    bomb = packer.compress(bytes(64 * 1024 * 1024)) + packer.flush()
    headers = {"content-type": "application/json", "content-encoding": "gzip"}
    exchange = await answered(Source(bomb), headers, stream=False, max_response_bytes=1024 * 1024)
    seen: list[int] = []

    async def read() -> None:
        async for chunk in exchange.chunks():
            seen.append(len(chunk))  # noqa: PERF401 - what came before the error counts

    with pytest.raises(ResponseTooLarge):
        await read()
    assert max(seen) <= 64 * 1024
    assert sum(seen) <= 1024 * 1024
    await exchange.response.aclose()


# Encodings.


@virtual
@pytest.mark.parametrize("size", [1, 10, 10_000])
@pytest.mark.parametrize(
    ("encoding", "encode"),
    [
        ("gzip", gzip.compress),
        (" GZIP", gzip.compress),
        ("deflate", zlib.compress),
        ("gzip", lambda data: gzip.compress(data[:100]) + gzip.compress(data[100:])),
    ],
    ids=["gzip", "GZIP", "deflate", "members"],
)
async def test_compression_is_undone_on_the_way(encoding: str, encode: Callable[[bytes], bytes], size: int) -> None:
    """Once, for the body and its reader alike; the headers no longer tell of it."""
    data = encode(b"".join(STREAM))
    parts = [data[at : at + size] for at in range(0, len(data), size)]
    exchange = await answered(Source(*parts), {**EVENTS, "content-encoding": encoding, "content-length": "7"})
    assert await exchange.response.aread() == b"".join(STREAM)
    assert (exchange.attempt.failure, exchange.attempt.usage) == (None, WHOLE)
    assert not {"content-encoding", "content-length"} & set(exchange.response.headers)


@virtual
@pytest.mark.parametrize("encoding", ["br", "zstd", "gzip, br"])
async def test_a_body_that_cant_be_looked_into_is_trusted(encoding: str) -> None:
    """With an unknown encoding, a whole body is a success of unknown usage, and its bytes stay as they are."""
    exchange = await answered(Source(b"\x00\x01", b"\x02"), {**EVENTS, "content-encoding": encoding}, hold_s=math.inf)
    assert exchange.begins == Beginning()
    assert await exchange.raw() == [b"\x00\x01", b"\x02"]
    assert (exchange.attempt.failure, exchange.attempt.usage) == (None, Usage(estimated=True))
    assert exchange.response.headers["content-encoding"] == encoding
    await exchange.response.aclose()


@virtual
@both_ways
@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
async def test_compression_that_cant_be_undone_is_a_failure(encoding: str, background: bool) -> None:
    """A typed error, before the first content and without it, which may be asked for again."""
    headers = {**EVENTS, "content-encoding": encoding}
    async with maybe_background(background) as given:
        for hold_s in (None, 10.0):
            exchange = await answered(Source(b"\xff\xff no", b"\x02"), headers, background=given, hold_s=hold_s)
            if hold_s is not None:
                assert isinstance(exchange.begins.error, InvalidStream)
            with pytest.raises(InvalidStream, match="compression can't be undone"):
                await exchange.response.aread()
            failure = exchange.attempt.failure
            assert failure is not None
            assert (failure.kind, failure.retryable) == (FailureKind.INVALID, True)
            assert exchange.given_back == [exchange.attempt]


# Documents where a stream was asked for, and errors that nobody would hear.


@virtual
@pytest.mark.parametrize(
    ("body", "failure", "error_type", "says"),
    [
        (DOCUMENT, NOT_A_STREAM, anthropic.APIResponseValidationError, "one whole message where a stream was asked"),
        (b"{}", NOT_A_MESSAGE, anthropic.APIResponseValidationError, "is no message"),
        (b'{"content": null}', NOT_A_MESSAGE, anthropic.APIResponseValidationError, "is no message"),
        (b'{"choices": [{}]}', NOT_A_MESSAGE, anthropic.APIResponseValidationError, "is no message"),
        (b"<html>502</html>", NOT_A_MESSAGE, anthropic.APIResponseValidationError, "is no message"),
    ],
)
async def test_a_document_before_content_is_a_failure(
    body: bytes, failure: object, error_type: type[Exception], says: str
) -> None:
    """Whatever its type is said to be; a whole message is not asked for again."""
    for headers in (EVENTS, JSON):
        exchange = await answered(Source(body[:5], body[5:]), headers, hold_s=math.inf)
        assert exchange.begins.failure == failure == exchange.attempt.failure
        assert type(exchange.begins.error) is error_type
        assert says in str(exchange.begins.error)
        assert await exchange.response.aread() == body


@virtual
@pytest.mark.parametrize("body", [b'{"type": "error", "error": {"type": "overloaded_error"}}', b'{"type": "error"}'])
@pytest.mark.parametrize("spelling", [b"%s", b"data: %s\n\n"], ids=["document", "unnamed event"])
async def test_an_error_that_the_sdk_would_not_hear_is_raised_for_it(body: bytes, spelling: bytes) -> None:
    """As a document, or as an event without a name, it has the status and the words that came."""
    exchange = await answered(Source(spelling % body), hold_s=math.inf)
    error = exchange.begins.error
    assert exchange.begins.failure is not None
    assert exchange.begins.failure.retryable
    assert type(error) is anthropic.APIStatusError
    assert (error.status_code, error.body) == (200, json.loads(body))
    await exchange.response.aclose()


@virtual
async def test_what_breaks_off_before_content_without_a_request_has_one_made_up() -> None:
    """A middleware may answer with a response that has none; the SDK's errors need one."""
    exchange = await answered(Source(START), hold_s=math.inf)
    assert isinstance(exchange.begins.error, anthropic.APIConnectionError)
    assert exchange.begins.error.request.method == "POST"
    request = httpx2.Request("GET", "http://x")
    assert request_of(httpx2.Response(200, request=request)) is request
    await exchange.response.aclose()


@virtual
async def test_only_a_stream_of_a_message_is_read_ahead() -> None:
    """A plain answer, another kind of call, and one that has failed are left alone."""
    for url, stream in (("/v1/messages", False), ("/v1/messages/count_tokens", True)):
        source = Source(*PLAIN)
        exchange = await answered(source, JSON, url=url, stream=stream, hold_s=math.inf)
        assert (exchange.begins, source.parts) == (Beginning(), PLAIN)
        await exchange.response.aclose()


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (httpx2.ReadTimeout("slow"), anthropic.APITimeoutError),
        (httpx2.ReadError("reset"), anthropic.APIConnectionError),
        (QueueFull("full"), QueueFull),
        (ResponseTooLarge(3), ResponseTooLarge),
        (httpx2.StreamClosed(), httpx2.StreamClosed),
        (httpx2.DecodingError("secret"), InvalidStream),
        (ValueError("secret"), InvalidStream),
    ],
)
def test_what_breaks_a_body_is_told_in_the_sdks_terms(error: Exception, expected: type[Exception]) -> None:
    """With its cause, unless that may hold what was answered; errors of the SDK and of this package stay themselves."""
    mapped = as_sdk_error(error, httpx2.Request("POST", "http://x"))
    assert type(mapped) is expected
    if expected is InvalidStream:
        assert "secret" not in str(mapped)
        assert (mapped.__cause__, mapped.__suppress_context__) == (None, True)
    else:
        assert mapped is error or mapped.__cause__ is error


async def test_a_scanner_is_chosen_by_content_type_and_call() -> None:
    """Frames for Bedrock; else server-sent events, or a document where none were asked for."""
    for stream in (True, False):
        with open_call(api_request(stream=stream)) as call:
            assert type(scanner_for(AWS_STREAM, call)) is AWSScanner
            scanner = scanner_for("text/event-stream; charset=utf-8", call)
            assert type(scanner) is Scanner
            assert scanner.is_document is not stream


async def test_frames_are_watched_where_a_stream_of_them_comes() -> None:
    """With usage, the beginning and the end, as for events."""
    exchange = await answered(Source(b"\0\0\0"), {"content-type": AWS_STREAM}, hold_s=math.inf)
    assert exchange.begins.failure is not None
    assert exchange.begins.failure.kind is FailureKind.CONNECTION
    await exchange.response.aclose()


@pytest.mark.lengthy
@settings(max_examples=60)
@given(data=st.data(), background=st.booleans())
def test_any_body_in_any_chunks_is_handed_on_byte_for_byte(data: st.DataObject, background: bool) -> None:
    """Neither the bytes, nor their order, nor their chunks show that somebody looked first; only the end is cut."""
    encoding = data.draw(st.sampled_from(["identity", "gzip", "deflate"]))
    middle = data.draw(st.lists(st.sampled_from([START, PING, TEXT, b"\r\n\r\n", b": hi\n"]), max_size=8))
    answer = START + b"".join(middle) + TEXT + data.draw(st.sampled_from([b"", END, OVERLOADED]))
    whole = answer + (data.draw(st.sampled_from([b"", b"junk", PING + END])) if answer[-9:] != TEXT[-9:] else b"")
    if encoding != "identity":
        packer = zlib.compressobj(wbits=31 if encoding == "gzip" else 15)
        whole = packer.compress(whole) + packer.flush()
    edges = [0, *sorted(data.draw(st.sets(st.integers(1, len(whole) - 1), max_size=8))), len(whole)]
    waits = data.draw(st.lists(st.sampled_from([0.0, 0.1, 3.0]), min_size=len(edges), max_size=len(edges)))
    chunks = [whole[start:end] for start, end in pairwise(edges)]
    sent = [answer[start : min(end, len(answer))] for start, end in pairwise(edges)]

    async def main() -> None:
        source = Source(*(part for chunk, wait in zip(chunks, waits, strict=False) for part in (wait, chunk)))
        async with maybe_background(background) as given:
            answering = server(source, content_encoding=encoding)
            seen = await rest_of(await open_stream(client_of(answering, Reads(1.0, given))))
        assert b"".join(seen) == answer
        if encoding == "identity":
            assert seen == [chunk for chunk in sent if chunk]

    anyio.run(main, backend_options={"loop_factory": VirtualLoop})


async def test_a_body_that_is_no_message_is_not_looked_into(virtual_time: VirtualTime) -> None:
    """Token counts and models have no usage, so there is none, not an unknown one."""
    exchange = await answered(slowly(PLAIN), JSON, url="/v1/messages/count_tokens")
    await exchange.response.aread()
    assert (exchange.attempt.failure, exchange.attempt.usage) == (None, None)


# The client's close.


async def test_a_reader_is_told_when_the_client_closes(virtual_time: VirtualTime) -> None:
    """The next chunk, though it came, is not handed on: the answer has been cut off, and says so."""
    async with running_background() as background:
        exchange = await answered(slowly(STREAM), background=background)
        chunks = exchange.chunks()
        await anext(chunks)
        exchange.attempt.call.close()
        assert exchange.given_back == [exchange.attempt]
        with pytest.raises(ClientClosed, match="while this answer was being read"):
            await anext(chunks)
        assert exchange.attempt.failure is not None
        assert exchange.attempt.failure.error_type == "ClientClosed"
        assert exchange.source.closed == 1


async def test_a_body_that_the_close_breaks_says_why(virtual_time: VirtualTime) -> None:
    """The transport's error is the cause, not the message."""
    broken = httpx2.ReadError("closed")
    exchange = await answered(slowly(STREAM[:1], broken))
    chunks = exchange.chunks()
    await anext(chunks)
    exchange.attempt.call.close()
    with pytest.raises(ClientClosed) as raised:
        await anext(chunks)
    assert raised.value.__cause__ is broken


async def test_a_body_that_the_close_ends_is_not_taken_for_whole(virtual_time: VirtualTime) -> None:
    """A transport that ends a closed body cleanly doesn't make half an answer look like one."""
    exchange = await answered(slowly(PLAIN[:1]), JSON, stream=False)
    chunks = exchange.chunks()
    await anext(chunks)
    exchange.attempt.call.close()
    with pytest.raises(ClientClosed):
        await anext(chunks)


async def test_a_cancelled_reader_of_a_closing_client_is_cancelled(virtual_time: VirtualTime) -> None:
    """Cancellation is the caller's own, and is never turned into an error."""
    exchange = await answered(slowly(STREAM))
    with anyio.CancelScope() as scope:
        exchange.attempt.call.closing = True
        scope.cancel()
        await exchange.response.aread()
    assert scope.cancelled_caught
    assert exchange.failure is FailureKind.CANCELLED


async def test_a_body_closing_under_a_read_ahead_is_the_clients_doing(virtual_time: VirtualTime) -> None:
    """A chunk that comes while the client closes counts as cancelled, and may have been billed."""
    exchange = await answered(slowly(STREAM))
    exchange.attempt.call.closing = True
    with pytest.raises(ClientClosed):
        await exchange.response.aread()
    assert exchange.failure is FailureKind.CANCELLED
    assert exchange.attempt.may_be_billed


async def test_any_asynchronous_iterator_may_be_a_body(virtual_time: VirtualTime) -> None:
    """A transport's stream need not be made of generators."""

    class Chunks(Source):
        def __aiter__(self) -> AsyncIterator[bytes]:
            return self

        async def __anext__(self) -> bytes:
            if not self.parts:
                raise StopAsyncIteration
            return bytes(self.parts.pop(0))  # type: ignore[arg-type]

    exchange = await answered(Chunks(*STREAM))
    await exchange.response.aread()
    assert (exchange.attempt.failure, exchange.attempt.usage) == (None, WHOLE)


async def test_a_body_is_watched_once() -> None:
    """Every guard watches the answer; the first one stays."""
    exchange = await answered(slowly(PLAIN), JSON, stream=False)
    tap = exchange.attempt.body
    exchange.attempt.watch(exchange.response)
    assert exchange.attempt.body is tap is exchange.response.stream
    await exchange.response.aclose()


# Begin: handing on.


@both_ways
@virtual
async def test_the_body_is_handed_on_at_its_first_content(background: bool) -> None:
    """It reads up to the content and no further; then everything is there, in the chunks it came in."""
    parts: list[bytes | float | Exception] = [START, PING, 0.5, PING, TEXT, 5.0, TEXT, END]
    chunks = [part for part in parts if isinstance(part, bytes)]
    source = Source(*parts)
    async with maybe_background(background) as given:
        guard = Reads(10.0, given)

        stream = await open_stream(client_of(server(source), guard))

        assert guard.begins == Beginning()
        assert guard.held_until == pytest.approx(0.5, abs=0.01)
        assert source.parts == [5.0, TEXT, END]
        assert await rest_of(stream) == chunks
        assert (source.closed, source.cut, guard.given_back) == (1, False, 1)
        assert guard.attempt is not None
        assert guard.attempt.ok
        assert guard.attempt.usage is not None
        assert guard.attempt.usage.output_tokens == 4


# Begin: failing before content.


@both_ways
@pytest.mark.parametrize(
    ("fault", "kind", "error_type"),
    [
        (httpx2.RemoteProtocolError("peer closed connection"), FailureKind.CONNECTION, anthropic.APIConnectionError),
        (httpx2.ReadTimeout("too slow"), FailureKind.TIMEOUT, anthropic.APITimeoutError),
        (None, FailureKind.CONNECTION, anthropic.APIConnectionError),
        (b"event: message_start\ndata: {\n\n", FailureKind.INVALID, InvalidStream),
        (OSError("odd"), FailureKind.OTHER, InvalidStream),
    ],
)
@virtual
async def test_a_body_that_breaks_before_content_is_told_as_the_error_to_raise(
    fault: bytes | Exception | None, kind: FailureKind, error_type: type[Exception], background: bool
) -> None:
    """Transport failures become the SDK's connection errors, with what happened as their cause."""
    source = Source(START, *([] if fault is None else [fault]))
    async with maybe_background(background) as given:
        guard = Reads(10.0, given)

        stream = await open_stream(client_of(server(source), guard))

        assert guard.begins is not None
        assert guard.begins.failure is not None
        assert guard.begins.failure.kind is kind
        assert type(guard.begins.error) is error_type
        if isinstance(fault, httpx2.TransportError):
            assert guard.begins.error.__cause__ is fault
        await stream.close()
        assert (source.closed, guard.given_back) == (1, 1)


@both_ways
@virtual
async def test_an_error_event_before_content_stays_in_the_body(background: bool) -> None:
    """Who reads on gets the SDK's own error for it."""
    async with maybe_background(background) as given:
        guard = Reads(10.0, given)
        stream = await open_stream(client_of(server(Source(START, OVERLOADED)), guard))
        assert guard.begins is not None
        assert guard.begins.failure is not None
        assert guard.begins.failure.kind is FailureKind.OVERLOADED
        assert guard.begins.error is None

        with pytest.raises(anthropic.APIStatusError, match="Overloaded"):
            _ = [event async for event in stream]


# Begin: holding.


@virtual
async def test_without_a_background_the_time_is_looked_at_between_chunks() -> None:
    """A read that is pending when the time is up is waited for, because to cut it would kill the stream."""
    source = Source(START, 4.0, PING, 8.0, PING, 1.0, TEXT, END)
    guard = Reads(10.0)

    stream = await open_stream(client_of(server(source), guard))

    assert guard.held_until == pytest.approx(12.0, abs=0.01)
    assert guard.begins == Beginning()
    assert await rest_of(stream) == [START, PING, PING, TEXT, END]


@virtual
async def test_with_a_background_the_body_is_handed_on_when_the_time_is_up() -> None:
    """The pending read goes on in the background, and who reads the body gets what it brings."""
    source = Source(START, 4.0, PING, 8.0, TEXT, 1.0, END)
    async with running_background() as background:
        guard = Reads(10.0, background)

        stream = await open_stream(client_of(server(source), guard))

        assert guard.held_until == pytest.approx(10.0, abs=0.01)
        assert guard.begins == Beginning()
        assert await rest_of(stream) == [START, PING, TEXT, END]
        assert anyio.current_time() == pytest.approx(13.0, abs=0.01)
        assert (source.closed, source.cut, guard.given_back) == (1, False, 1)


@virtual
async def test_nothing_but_the_pending_read_goes_on_while_nobody_reads() -> None:
    """The background holds one chunk at most for a reader that is slow to come."""
    source = Source(START, 12.0, PING, PING, PING, TEXT, END)
    async with running_background() as background:
        stream = await open_stream(client_of(server(source), Reads(10.0, background)))

        await anyio.sleep(60)

        assert source.parts == [PING, PING, TEXT, END]
        assert await rest_of(stream) == [START, PING, PING, PING, TEXT, END]


@pytest.mark.parametrize(
    "fault", [httpx2.ReadError("reset"), httpx2.ReadTimeout("too slow")], ids=["reset", "time-out"]
)
@virtual
async def test_a_pending_read_that_fails_after_the_hand_over_reaches_the_reader(fault: Exception) -> None:
    """As with any stream, the transport's own error comes after what came before it."""
    source = Source(START, 12.0, fault)
    seen: list[bytes] = []

    async def read(stream: anthropic.AsyncStream[Any]) -> None:
        async for chunk in stream.response.aiter_raw():
            seen.append(chunk)  # noqa: PERF401 - what came before the error counts

    async with running_background() as background:
        guard = Reads(10.0, background)
        stream = await open_stream(client_of(server(source), guard))

        with pytest.raises(type(fault)):
            await read(stream)

        assert seen == [START]
        assert guard.attempt is not None
        assert guard.attempt.failure is not None
        assert source.closed == 1


@virtual
async def test_a_body_that_ends_with_the_pending_read_just_ends() -> None:
    """The end of a body handed on is no error."""
    async with running_background() as background:
        stream = await open_stream(client_of(server(Source(START, 12.0)), Reads(10.0, background)))

        assert await rest_of(stream) == [START]


@virtual
async def test_closing_a_body_ends_its_pending_read() -> None:
    """Nothing stays behind in the background."""
    source = Source(START, 600.0, TEXT)
    async with running_background() as background:
        guard = Reads(10.0, background)
        stream = await open_stream(client_of(server(source), guard))

        await stream.close()
        await anyio.wait_all_tasks_blocked()

        assert (source.closed, source.cut, guard.given_back) == (1, True, 1)
        assert "0 pending" in repr(background)
        assert anyio.current_time() < 11


@virtual
async def test_a_body_closed_while_somebody_waits_for_its_pending_read_fails_for_him() -> None:
    """He isn't left waiting."""
    async with running_background() as background, anyio.create_task_group() as group:
        stream = await open_stream(client_of(server(Source(START, 600.0)), Reads(10.0, background)))

        async def close_later() -> None:
            await anyio.sleep(1)
            await stream.response.aclose()

        group.start_soon(close_later)
        with pytest.raises(httpx2.ReadError, match="closed while it was being read"):
            await rest_of(stream)


@virtual
async def test_closing_the_client_ends_a_pending_read() -> None:
    """Its reader is told that the client was closed."""
    source = Source(START, 600.0)
    async with running_background() as background:
        guard = Reads(10.0, background)
        stream = await open_stream(client_of(server(source), guard))
        assert guard.call is not None

        guard.call.close()

        with pytest.raises(ClientClosed):
            await rest_of(stream)
        assert (source.closed >= 1, source.cut, guard.given_back) == (True, True, 1)


@virtual
async def test_a_background_that_is_stopped_lets_nobody_wait() -> None:
    """A pending read cut by the end of the background task fails for who waits for it, and the body is closed."""
    source = Source(START, 600.0)
    raised: list[Exception] = []

    async def read(stream: anthropic.AsyncStream[Any]) -> None:
        try:
            await rest_of(stream)
        except Exception as error:  # noqa: BLE001 - compared below
            raised.append(error)

    async with anyio.create_task_group() as group:
        async with running_background(grace_s=5.0) as background:
            stream = await open_stream(client_of(server(source), Reads(10.0, background)))
            group.start_soon(read, stream)
        assert anyio.current_time() == pytest.approx(15.0, abs=0.1)

    assert [type(error) for error in raised] == [httpx2.ReadError]
    assert source.closed == 1


@virtual
async def test_a_dropped_body_with_a_pending_read_is_closed() -> None:
    """The garbage collector finds it although the background still reads; a warning tells."""
    source = Source(START, 600.0)
    async with running_background() as background:
        guard = Reads(10.0, background)
        stream = await open_stream(client_of(server(source), guard))

        # The loop lets go of what it did last.
        await anyio.sleep(1)

        with pytest.warns(ResourceWarning, match="dropped without being closed"):  # noqa: PT031 - the last reference
            del stream
            gc.collect()
        await anyio.wait_all_tasks_blocked()

        assert (source.closed, source.cut, guard.given_back) == (1, True, 1)


# Cancellation.


@virtual
async def test_the_deadline_bounds_reading_ahead(virtual_time: VirtualTime) -> None:
    """Pings defeat read time-outs, not the deadline; the attempt counts as timed out and its body is closed."""
    pings: list[bytes | float] = [5.0, PING]
    source = Source(START, *pings * 200)

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
        await open_stream(client_of(server(source), sent, guard))

    assert virtual_time.now() == pytest.approx(60.0, abs=0.01)
    assert sent.failure is not None
    assert sent.failure.kind is FailureKind.TIMEOUT
    assert (source.cut, guard.given_back) == (True, 1)


@pytest.mark.lengthy
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
@virtual
async def test_cancelled_at_any_await_nothing_stays_open(
    parts: tuple[bytes | float | Exception, ...], how: How, background: bool
) -> None:
    """Wherever its caller is cancelled, the body is closed, and what was taken is given back once."""

    async def scenario(cancelled: Cancelled) -> None:
        source = Source(*parts)
        async with maybe_background(background) as given:
            guard = Reads(10.0, given)

            async def main() -> None:
                stream = await open_stream(client_of(server(source), guard))
                with contextlib.suppress(anthropic.APIError, httpx2.TransportError):
                    async with stream:
                        _ = [event async for event in stream]

            await cancelled(main())
            await anyio.sleep(1)
            assert given is None or "0 pending" in repr(given)
        if guard.attempt is not None:
            assert guard.given_back == 1
            # Without a background, a close that is itself cut short is the transport's to finish.
            assert source.closed if background else source.closing

    assert await cancel_at_every_await(scenario, how=how) > 1


async def test_a_body_that_nothing_watches_is_read_in_turns_too(virtual_time: VirtualTime) -> None:
    """There is nothing to keep short of it."""
    exchange = await answered(slowly([b" "] * 200), JSON, url="/v1/messages/count_tokens")
    assert await exchange.response.aread() == b" " * 200
