from __future__ import annotations

import gc
import gzip
import json
import sys
import threading
import warnings
import zlib
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import anthropic
import anyio
import anyio.lowlevel
import httpx2
import pytest
from anthropic._models import FinalRequestOptions

from penstock._core.attempt import Attempt, open_attempt
from penstock._core.background import Background
from penstock._core.call import open_call
from penstock._core.failure import FailureKind
from penstock._core.usage import Usage
from penstock.errors import ClientClosed
from penstock.events import Observers

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from penstock.testing.plugin import VirtualTime

MESSAGE = json.dumps({"type": "message", "usage": {"input_tokens": 3, "output_tokens": 4}, "stop_reason": "end_turn"})
PLAIN = [MESSAGE[:20].encode(), MESSAGE[20:].encode()]
STREAM = [
    b'event: message_start\ndata: {"message": {"usage": {"input_tokens": 3, "output_tokens": 1}}}\n\n',
    b'event: content_block_delta\ndata: {"delta": {"type": "text_delta", "text": "Hi"}}\n\n',
    b'event: content_block_delta\ndata: {"delta": {"type": "text_delta", "text": " there"}}\n\n',
    b'event: message_delta\ndata: {"delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 4}}\n\n',
    b'event: message_stop\ndata: {"type": "message_stop"}\n\n',
]
WHOLE = Usage(input_tokens=3, output_tokens=4)
SSE = {"content-type": "text/event-stream; charset=utf-8"}
JSON = {"content-type": "application/json"}


class Body(httpx2.AsyncByteStream):
    """A body that comes a chunk a second, and may break."""

    def __init__(self, chunks: list[bytes], error: BaseException | None = None, *, closing_s: float = 0.0) -> None:
        self.chunks = chunks
        self.error = error
        self.closing_s = closing_s
        self.closed = 0
        self.elapsed = 7

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for chunk in self.chunks:
            await anyio.sleep(1)
            yield chunk
        if self.error is not None:
            raise self.error

    async def aclose(self) -> None:
        await anyio.sleep(self.closing_s)
        self.closed += 1


def api_request(url: str = "/v1/messages") -> anthropic.APIRequest:
    """A request as the SDK's chain hands it on."""
    options = FinalRequestOptions.construct(method="post", url=url, json_data={"model": "claude-sonnet-5-5"})
    return anthropic.APIRequest(options=options, cast_to=object, stream=True)


class Exchange:
    """An attempt that was answered with a body, which is still to be read."""

    def __init__(self, body: Body) -> None:
        self.body = body
        self.given_back = list[Attempt]()
        self.attempt: Attempt
        self.response: httpx2.Response

    async def send(self, headers: dict[str, str], url: str, background: Background | None) -> None:
        request = api_request(url)

        async def call_next(_request: anthropic.APIRequest) -> httpx2.Response:
            return httpx2.Response(200, headers=headers, stream=self.body, request=httpx2.Request("POST", "http://x"))

        with open_call(request, background=background), open_attempt(request) as self.attempt:
            self.attempt.sent = True
            self.attempt.push(self.given_back.append)
            self.response = await self.attempt.send(request, call_next)


async def answered(
    body: Body,
    headers: dict[str, str] = SSE,
    *,
    url: str = "/v1/messages",
    background: Background | None = None,
) -> Exchange:
    """An exchange whose headers have come."""
    exchange = Exchange(body)
    await exchange.send(headers, url, background)
    return exchange


@asynccontextmanager
async def running_background() -> AsyncIterator[Background]:
    """A client's background task."""
    background, stop, started = Background(Observers()), anyio.Event(), anyio.Event()
    async with anyio.create_task_group() as group:
        group.start_soon(lambda: background.run(stop, started=started, grace_s=5))
        await started.wait()
        yield background
        stop.set()


async def test_the_bytes_pass_unchanged_in_the_chunks_they_came_in(virtual_time: VirtualTime) -> None:
    """The tap adds no byte, no boundary and no time."""
    exchange = await answered(Body(STREAM))
    began = virtual_time.now()
    assert [chunk async for chunk in exchange.response.stream] == STREAM  # type: ignore[union-attr]
    assert virtual_time.now() - began == pytest.approx(len(STREAM), abs=0.01)


async def test_httpx_reads_the_elapsed_time_through_it(virtual_time: VirtualTime) -> None:
    """What the transport's stream knows stays visible; a stream without it has none."""
    body = Body([])
    exchange = await answered(body)
    assert exchange.response.stream.elapsed == 7  # type: ignore[union-attr]
    del body.elapsed
    assert exchange.response.stream.elapsed is None  # type: ignore[union-attr]
    await exchange.response.aclose()


@pytest.mark.parametrize(("chunks", "headers"), [(PLAIN, JSON), (STREAM, SSE)], ids=["plain", "streamed"])
async def test_a_body_read_to_its_end_ends_the_attempt(
    chunks: list[bytes], headers: dict[str, str], virtual_time: VirtualTime
) -> None:
    """Its usage is known, nothing has failed, and what was taken is given back once."""
    exchange = await answered(Body(chunks), headers)
    assert not exchange.attempt.ended
    await exchange.response.aread()
    attempt = exchange.attempt
    assert (attempt.ended, attempt.failure, attempt.usage, attempt.stop_reason) == (True, None, WHOLE, "end_turn")
    assert exchange.given_back == [attempt]
    assert exchange.body.closed == 1


async def test_the_first_content_of_a_stream_is_timed(virtual_time: VirtualTime) -> None:
    """The time of the chunk that brought it, not of the start before it or the text after it."""
    exchange = await answered(Body(STREAM))
    began = virtual_time.now()
    await exchange.response.aread()
    assert exchange.attempt.first_content_at == pytest.approx(began + 2, abs=0.01)


async def test_a_stream_that_ends_without_its_last_event_has_failed(virtual_time: VirtualTime) -> None:
    """A clean end of the connection is no clean end of the stream: it counts as a connection that failed."""
    exchange = await answered(Body(STREAM[:-1]))
    await exchange.response.aread()
    failure, usage = exchange.attempt.failure, exchange.attempt.usage
    assert failure is not None
    assert (failure.kind, failure.retryable, failure.of_service) == (FailureKind.CONNECTION, True, True)
    assert usage == Usage(input_tokens=3, output_tokens=4, estimated=True)


async def test_an_error_inside_a_stream_is_the_attempts_failure(virtual_time: VirtualTime) -> None:
    """Even though the body then ends cleanly."""
    error = b'event: error\ndata: {"error": {"type": "overloaded_error"}}\n\n'
    exchange = await answered(Body([*STREAM[:2], error]))
    await exchange.response.aread()
    assert exchange.attempt.failure is not None
    assert exchange.attempt.failure.kind is FailureKind.OVERLOADED


@pytest.mark.parametrize("read", range(len(STREAM) + 1))
async def test_closed_early_the_attempt_ends_at_once(read: int, virtual_time: VirtualTime) -> None:
    """After any number of chunks, closing gives back before it waits, and what was seen is settled as an estimate."""
    exchange = await answered(Body(STREAM, closing_s=100))
    chunks = aiter(exchange.response.stream)  # type: ignore[arg-type]
    for _ in range(read):
        await anext(chunks)
    with anyio.move_on_after(1):
        await exchange.response.aclose()
    attempt = exchange.attempt
    assert exchange.given_back == [attempt]
    if read == len(STREAM):
        assert (attempt.failure, attempt.usage) == (None, WHOLE)
    else:
        assert attempt.failure is not None
        assert attempt.failure.kind is FailureKind.ABANDONED
        assert attempt.usage is not None
        assert attempt.usage.estimated
        assert attempt.usage.input_tokens == (3 if read else 0)
    await chunks.aclose()  # type: ignore[attr-defined]
    assert len(exchange.given_back) == 1


@pytest.mark.parametrize("sent", range(len(STREAM)))
async def test_a_body_that_breaks_raises_as_it_is_and_ends_the_attempt(sent: int, virtual_time: VirtualTime) -> None:
    """After any number of chunks, the transport's own error reaches the reader, and the attempt has failed by it."""
    broken = httpx2.ReadError("reset")
    exchange = await answered(Body(STREAM[:sent], broken))
    with pytest.raises(httpx2.ReadError) as raised:
        await exchange.response.aread()
    assert raised.value is broken
    assert exchange.attempt.failure is not None
    assert exchange.attempt.failure.kind is FailureKind.CONNECTION
    assert exchange.given_back == [exchange.attempt]
    await exchange.response.aclose()


@pytest.mark.parametrize("read", range(len(STREAM)))
async def test_cancelled_while_reading_the_attempt_has_ended(read: int, virtual_time: VirtualTime) -> None:
    """At any chunk, cancellation gives back once, and closing afterwards changes nothing."""
    exchange = await answered(Body(STREAM))
    with anyio.move_on_after(read + 0.5) as scope:
        await exchange.response.aread()
    assert scope.cancelled_caught
    assert exchange.given_back == [exchange.attempt]
    assert exchange.attempt.failure is not None
    assert exchange.attempt.failure.kind is FailureKind.CANCELLED
    await exchange.response.aclose()
    assert exchange.given_back == [exchange.attempt]


async def test_a_close_that_is_cancelled_is_finished_in_the_background(virtual_time: VirtualTime) -> None:
    """The connection is closed even if whoever closes it has no time left."""
    async with running_background() as background:
        exchange = await answered(Body(STREAM, closing_s=2), background=background)
        with anyio.move_on_after(1):
            await exchange.response.aclose()
        assert exchange.body.closed == 0
        await anyio.sleep(3)
        assert exchange.body.closed == 1


async def test_an_iterator_that_is_closed_has_its_connection_closed(virtual_time: VirtualTime) -> None:
    """Whoever reads the raw bytes and leaves closes nothing else; the background does."""
    async with running_background() as background:
        exchange = await answered(Body(STREAM), background=background)
        chunks = aiter(exchange.response.stream)  # type: ignore[arg-type]
        await anext(chunks)
        await chunks.aclose()  # type: ignore[attr-defined]
        assert exchange.given_back == [exchange.attempt]
        assert exchange.attempt.failure is not None
        assert exchange.attempt.failure.kind is FailureKind.ABANDONED
        await anyio.sleep(1)
        assert exchange.body.closed == 1


async def test_a_dropped_iterator_ends_the_attempt_at_once(virtual_time: VirtualTime) -> None:
    """Leaving a loop is enough: nobody has to wait for the garbage collector."""
    exchange = await answered(Body(STREAM))
    async for _ in exchange.response.stream:  # type: ignore[union-attr]
        break
    for _ in range(3):
        await anyio.lowlevel.checkpoint()
    assert exchange.given_back == [exchange.attempt]
    await exchange.response.aclose()


async def test_a_dropped_body_is_reported_and_closed(virtual_time: VirtualTime) -> None:
    """A response that nobody reads or closes gives back at its end, is closed, and its owner is warned."""
    async with running_background() as background:
        exchange = await answered(Body(STREAM), background=background)
        with pytest.warns(ResourceWarning, match="dropped without being closed"):
            del exchange.response, exchange.attempt.tap
        attempt = exchange.attempt
        assert exchange.given_back == [attempt]
        assert attempt.failure is not None
        assert attempt.failure.kind is FailureKind.ABANDONED
        assert attempt.usage == Usage(estimated=True)
        await anyio.sleep(1)
        assert exchange.body.closed == 1


async def test_a_dropped_body_in_a_cycle_is_found_by_the_collector(virtual_time: VirtualTime) -> None:
    """The same, a collection later."""
    exchange = await answered(Body(STREAM))
    exchange.response.extensions["self"] = exchange.response
    with pytest.warns(ResourceWarning, match="dropped without being closed"):  # noqa: PT031 - the last reference
        del exchange.response, exchange.attempt.tap
        gc.collect()
    assert exchange.given_back == [exchange.attempt]


async def test_where_warnings_are_errors_a_dropped_body_still_gives_back(
    virtual_time: VirtualTime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A warning that raises must not keep the slot."""
    raised = list[object]()
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: raised.append(type(unraisable.exc_value)))
    exchange = await answered(Body(STREAM))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        del exchange.response, exchange.attempt.tap
    assert raised == [ResourceWarning]
    assert exchange.given_back == [exchange.attempt]


async def test_a_body_that_was_read_and_not_closed_is_closed_without_a_warning(virtual_time: VirtualTime) -> None:
    """Its attempt is over, so nothing was lost; only the connection is still to be given back."""
    async with running_background() as background:
        exchange = await answered(Body(STREAM), background=background)
        async for _ in exchange.response.stream:  # type: ignore[union-attr]
            pass
        assert exchange.body.closed == 0
        del exchange.response, exchange.attempt.tap
        await anyio.sleep(1)
        assert exchange.body.closed == 1


async def test_collected_in_another_thread_it_gives_back_in_its_own() -> None:
    """The state of guards belongs to the event loop's thread, wherever the garbage collector runs."""
    exchange, threads = await answered(Body(STREAM)), list[int]()
    exchange.attempt.push(lambda _attempt: threads.append(threading.get_ident()))
    drop: list[Any] = [exchange.response.stream]
    del exchange.response, exchange.attempt.tap

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
        kept.append(await answered(Body(STREAM)))

    anyio.run(main)
    (exchange,) = kept
    with pytest.warns(ResourceWarning, match="dropped without being closed"):
        del exchange.response, exchange.attempt.tap
    assert exchange.given_back == [exchange.attempt]


# Encodings.


@pytest.mark.parametrize(
    ("encoding", "encode"), [("gzip", gzip.compress), (" GZIP", gzip.compress), ("deflate", zlib.compress)]
)
async def test_a_compressed_body_is_looked_into(
    encoding: str, encode: Callable[[bytes], bytes], virtual_time: VirtualTime
) -> None:
    """The tap reads a decompressed copy, and the reader gets the bytes as they were sent."""
    data = encode(b"".join(STREAM))
    chunks = [data[at : at + 10] for at in range(0, len(data), 10)]
    exchange = await answered(Body(chunks), {**SSE, "content-encoding": encoding})
    assert [chunk async for chunk in exchange.response.stream] == chunks  # type: ignore[union-attr]
    assert (exchange.attempt.failure, exchange.attempt.usage) == (None, WHOLE)
    await exchange.response.aclose()


@pytest.mark.parametrize("encoding", ["br", "zstd", "gzip, br", "gzip"])
async def test_a_body_that_cant_be_looked_into_is_trusted(encoding: str, virtual_time: VirtualTime) -> None:
    """With an unknown encoding, or a wrong one, a whole body is a success of unknown usage."""
    exchange = await answered(Body([b"\x00\x01", b"\x02"]), {**SSE, "content-encoding": encoding})
    assert [chunk async for chunk in exchange.response.stream] == [b"\x00\x01", b"\x02"]  # type: ignore[union-attr]
    assert (exchange.attempt.failure, exchange.attempt.usage) == (None, Usage(estimated=True))
    await exchange.response.aclose()


async def test_a_body_that_is_no_message_is_not_looked_into(virtual_time: VirtualTime) -> None:
    """Token counts and models have no usage, so there is none, not an unknown one."""
    exchange = await answered(Body(PLAIN), JSON, url="/v1/messages/count_tokens")
    await exchange.response.aread()
    assert (exchange.attempt.failure, exchange.attempt.usage) == (None, None)


# The client's close.


async def test_a_reader_is_told_when_the_client_closes(virtual_time: VirtualTime) -> None:
    """The next chunk, though it came, is not handed on: the answer has been cut off, and says so."""
    async with running_background() as background:
        exchange = await answered(Body(STREAM), background=background)
        chunks = aiter(exchange.response.stream)  # type: ignore[arg-type]
        await anext(chunks)
        exchange.attempt.call.close()
        assert exchange.given_back == [exchange.attempt]
        with pytest.raises(ClientClosed, match="while this answer was being read"):
            await anext(chunks)
        assert exchange.attempt.failure is not None
        assert exchange.attempt.failure.error_type == "ClientClosed"
        assert exchange.body.closed == 1


async def test_a_body_that_the_close_breaks_says_why(virtual_time: VirtualTime) -> None:
    """The transport's error is the cause, not the message."""
    broken = httpx2.ReadError("closed")
    exchange = await answered(Body(STREAM[:1], broken))
    chunks = aiter(exchange.response.stream)  # type: ignore[arg-type]
    await anext(chunks)
    exchange.attempt.call.close()
    with pytest.raises(ClientClosed) as raised:
        await anext(chunks)
    assert raised.value.__cause__ is broken


async def test_a_body_that_the_close_ends_is_not_taken_for_whole(virtual_time: VirtualTime) -> None:
    """A transport that ends a closed body cleanly doesn't make half an answer look like one."""
    exchange = await answered(Body(PLAIN[:1]), JSON)
    chunks = aiter(exchange.response.stream)  # type: ignore[arg-type]
    await anext(chunks)
    exchange.attempt.call.close()
    with pytest.raises(ClientClosed):
        await anext(chunks)


async def test_a_cancelled_reader_of_a_closing_client_is_cancelled(virtual_time: VirtualTime) -> None:
    """Cancellation is the caller's own, and is never turned into an error."""
    exchange = await answered(Body(STREAM))
    with anyio.CancelScope() as scope:
        exchange.attempt.call.closing = True
        scope.cancel()
        await exchange.response.aread()
    assert scope.cancelled_caught
    assert exchange.attempt.failure is not None
    assert exchange.attempt.failure.kind is FailureKind.CANCELLED


async def test_a_body_closing_under_a_read_ahead_is_the_clients_doing(virtual_time: VirtualTime) -> None:
    """A chunk that comes while the client closes counts as cancelled, and may have been billed."""
    exchange = await answered(Body(STREAM))
    exchange.attempt.call.closing = True
    with pytest.raises(ClientClosed):
        await exchange.response.aread()
    assert exchange.attempt.failure is not None
    assert exchange.attempt.failure.kind is FailureKind.CANCELLED
    assert exchange.attempt.may_be_billed


async def test_any_asynchronous_iterator_may_be_a_body(virtual_time: VirtualTime) -> None:
    """A transport's stream need not be made of generators."""

    class Chunks(Body):
        def __aiter__(self) -> AsyncIterator[bytes]:
            self.left = iter(self.chunks)
            return self

        async def __anext__(self) -> bytes:
            try:
                return next(self.left)
            except StopIteration:
                raise StopAsyncIteration from None

    exchange = await answered(Chunks(STREAM))
    await exchange.response.aread()
    assert (exchange.attempt.failure, exchange.attempt.usage) == (None, WHOLE)


async def test_a_body_is_tapped_once() -> None:
    """Every guard watches the answer; the first tap stays."""
    exchange = await answered(Body(PLAIN), JSON)
    tap = exchange.attempt.tap
    exchange.attempt.watch(exchange.response)
    assert exchange.attempt.tap is tap is exchange.response.stream
    await exchange.response.aclose()
