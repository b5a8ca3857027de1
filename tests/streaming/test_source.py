from __future__ import annotations

import asyncio
import gzip
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import anthropic
import anyio
import httpx2
import pytest
from anthropic import AsyncAnthropic, DefaultAioHttpClient

import penstock
from penstock._core.background import Background
from penstock._core.failure import FailureKind
from penstock.errors import StreamInterrupted
from penstock.events import Observers
from penstock.streaming import Stream, stream
from penstock.streaming.source import DrainedSource, Source, as_sse

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from anthropic import APIRequest

    from penstock._core.attempt import Attempt
    from penstock.simulator import Simulator
    from penstock.testing.plugin import VirtualTime

PARAMS: dict[str, Any] = {
    "model": "claude-sonnet-5-5",
    "max_tokens": 200,
    "messages": [{"role": "user", "content": "Tell me of rivers, of many of them, and of how they come to the sea."}],
}


@asynccontextmanager
async def running_background() -> AsyncIterator[Background]:
    """A client's background, and what is left in it done at the end."""
    background = Background(Observers())
    stop, started = anyio.Event(), anyio.Event()
    async with anyio.create_task_group() as group:
        group.start_soon(lambda: background.run(stop, started=started, grace_s=60))
        await started.wait()
        try:
            yield background
        finally:
            stop.set()


# Silence


async def _all_text(answer: Stream) -> None:
    texts = answer.text_stream
    assert await anext(texts) == "Hi"
    await anext(texts)


async def _all_events(answer: Stream) -> None:
    async for event in answer:
        assert event.type in {"message_start", "content_block_start", "content_block_delta", "text"}


async def test_pings_alone_are_silence(wire: Any, virtual_time: VirtualTime) -> None:
    """A stream that brings nothing but pings fails after `idle_timeout_s`; all that came is given."""
    ping = [wire.sse({"type": "ping"}), 5.0] * 100
    claude = wire.client(wire.sse(wire.start(), *wire.text(0, "Hi")[:2]), *ping)
    for read in (_all_text, _all_events, Stream.get_final_message):
        began = virtual_time.now()
        async with stream(claude, **PARAMS, stream_idle_timeout_s=60) as answer:
            with pytest.raises(StreamInterrupted, match="fell silent") as caught:
                await read(answer)
        assert isinstance(caught.value.cause, httpx2.ReadTimeout)
        assert virtual_time.now() - began == pytest.approx(60, abs=0.1)
        assert wire.transport.bodies[-1].closed


async def test_silence_before_content_is_a_timeout_of_the_sdk(wire: Any, virtual_time: VirtualTime) -> None:
    """There is nothing partial then."""
    claude = wire.client(wire.sse(wire.start()), 1000.0)
    async with stream(claude, **PARAMS, stream_idle_timeout_s=60) as answer:
        with pytest.raises(anthropic.APITimeoutError):
            await answer.get_final_message()


async def test_a_slow_stream_and_a_slow_reader_are_not_silence(wire: Any, virtual_time: VirtualTime) -> None:
    """The silence is counted from the last event, and only while somebody waits; `None` waits for ever."""
    parts: list[Any] = []
    for event in [wire.start(), *wire.text(0, *"abcdefgh"), *wire.end()]:
        parts += [wire.sse(event), 50.0]
    claude = wire.client(*parts)
    async with stream(claude, **PARAMS, stream_idle_timeout_s=60) as answer:
        async for _ in answer.text_stream:
            await anyio.sleep(500)
        assert await answer.get_final_text() == "abcdefgh"
    claude = wire.client(wire.sse(wire.start(), *wire.text(0, "a")), 100_000.0, wire.sse(*wire.end()))
    async with stream(claude, **PARAMS, stream_idle_timeout_s=None) as answer:
        assert await answer.get_final_text() == "a"


async def test_a_stall_does_not_swallow_a_cancellation(wire: Any, virtual_time: VirtualTime) -> None:
    """Cancelled at the moment at which the timer fires, the task is cancelled."""
    claude = wire.client(wire.sse(wire.start(), *wire.text(0, "a")), 1000.0)
    async with stream(claude, **PARAMS, stream_idle_timeout_s=60) as answer:
        task: asyncio.Task[Any] | None = None

        async def read() -> None:
            nonlocal task
            task = asyncio.current_task()
            with pytest.raises(asyncio.CancelledError):
                await answer.get_final_message()
            assert task is not None
            task.uncancel()

        def cancel_too() -> None:
            answer._source.look()
            assert task is not None
            task.cancel()

        async with anyio.create_task_group() as group:
            group.start_soon(read)
            await anyio.sleep(59.999)
            answer._source._since -= 1
            asyncio.get_running_loop().call_soon(cancel_too)


@asynccontextmanager
async def pinging_server(head: bytes) -> AsyncIterator[str]:
    """A server on a real socket that begins an answer, and sends pings for ever; gives its address."""
    stop, done = anyio.Event(), anyio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n" + head)
            while not (writer.is_closing() or stop.is_set()):
                writer.write(b'event: ping\ndata: {"type": "ping"}\n\n')
                await anyio.sleep(0.005)
        finally:
            writer.close()
            done.set()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        stop.set()
        await done.wait()


@pytest.mark.lengthy
@pytest.mark.parametrize("transport", [DefaultAioHttpClient, anthropic.DefaultAsyncHttpxClient])
@pytest.mark.parametrize("how", ["stall", "close", "cancel"])
async def test_over_real_sockets_too(wire: Any, transport: Any, how: str) -> None:
    """Stall, close from another task, and cancellation end the read on both transports, and leave no connection."""
    http = transport()
    async with (
        pinging_server(wire.sse(wire.start(), *wire.text(0, "Hi")[:2])) as url,
        AsyncAnthropic(api_key="sk-ant-test", base_url=url, http_client=http, max_retries=0) as claude,
    ):
        idle_s = 0.04 if how == "stall" else 30
        async with (
            stream(claude, **PARAMS, stream_idle_timeout_s=idle_s) as answer,
            anyio.create_task_group() as group,
        ):
            texts = answer.text_stream
            assert await anext(texts) == "Hi"
            if how == "stall":
                with pytest.raises(StreamInterrupted, match="fell silent"):
                    await anext(texts)
            elif how == "cancel":
                with anyio.move_on_after(0.02):
                    await anext(texts)
            else:

                async def stop() -> None:
                    await anyio.sleep(0.02)
                    await answer.close()

                group.start_soon(stop)
                with pytest.raises(StopAsyncIteration):
                    await anext(texts)
        assert answer.response.is_closed


async def test_a_stall_counts_as_a_timeout_of_the_service(wire: Any, virtual_time: VirtualTime) -> None:
    """Its attempt has failed by a time-out, not by the caller's doing."""
    attempts: list[Attempt] = []

    class Watch(anthropic.Middleware):
        async def handle_async(self, request: APIRequest, call_next: Any) -> Any:
            from penstock._core.attempt import open_attempt

            with open_attempt(request) as attempt:
                attempts.append(attempt)
                response = await attempt.send(request, call_next)
                response.http_response.extensions["penstock_attempt"] = attempt
                return response

    claude = wire.client(wire.sse(wire.start(), *wire.text(0, "Hi")), 1000.0, middleware=[Watch()])
    async with stream(claude, **PARAMS) as answer:
        with pytest.raises(StreamInterrupted):
            await answer.get_final_message()
    assert attempts[0].ended
    assert attempts[0].failure is not None
    assert attempts[0].failure.kind is FailureKind.TIMEOUT


# Reading


async def test_it_reads_what_is_compressed(wire: Any) -> None:
    """An encoded body goes through the decoder; a plain one straight from the transport."""
    body = gzip.compress(wire.sse(*wire.recorded))
    claude = wire.client(body[:100], body[100:], headers={"content-encoding": "gzip"})
    async with stream(claude, **PARAMS) as answer:
        assert [text async for text in answer.text_stream] == wire.texts


async def test_an_answer_that_was_read_already_is_read_again(wire: Any) -> None:
    """A middleware may have made the answer up, or read it."""
    response = wire.response(b"ab", b"cd")
    await response.aread()
    source = Source(response, idle_timeout_s=None)
    assert [await source.read(anything=True), await source.read(anything=True)] == [b"abcd", None]
    made_up = httpx2.Response(200, stream=httpx2.SyncByteStream())
    with pytest.raises(RuntimeError, match="sync stream"):
        await Source(made_up, idle_timeout_s=None).read(anything=True)


async def test_a_closed_source_says_so(wire: Any) -> None:
    """Closing twice is closing once; reading then is an error; the timer is gone."""
    source = Source(wire.response(b"ab"), idle_timeout_s=60)
    assert await source.read(anything=True) == b"ab"
    assert repr(source) == "<Source open>"
    await source.close()
    await source.close()
    assert repr(source) == "<Source closed>"
    assert source._timer is not None
    assert source._timer.cancelled()
    with pytest.raises(httpx2.StreamClosed):
        await source.read(anything=True)


class Hung(httpx2.AsyncByteStream):
    """Sends nothing; fails in a way of its own when a read of it is cancelled. Its iterator is no generator."""

    def __aiter__(self) -> Hung:
        return self

    async def __anext__(self) -> bytes:
        try:
            await anyio.sleep(1000)
        except asyncio.CancelledError:
            raise httpx2.ReadError("cut") from None
        return b"never"


async def test_a_body_may_fail_in_its_own_way_when_it_is_closed(virtual_time: VirtualTime) -> None:
    """Whoever closed it hears nothing of that."""
    source = Source(httpx2.Response(200, stream=Hung()), idle_timeout_s=60)

    async def stop() -> None:
        await anyio.sleep(1)
        await source.close()

    async with anyio.create_task_group() as group:
        group.start_soon(stop)
        with pytest.raises(httpx2.StreamClosed):
            await source.read(anything=True)


async def test_foreign_events_become_server_sent_events(wire: Any) -> None:
    """What the SDK has decoded from another format is written as it would have come."""
    claude = wire.client(wire.sse(*wire.recorded))
    events = await claude.messages.create(**PARAMS, stream=True)
    again = b"".join([chunk async for chunk in as_sse(events)])
    claude = wire.client(again)
    async with stream(claude, **PARAMS) as answer:
        assert [text async for text in answer.text_stream] == wire.texts
        assert (await answer.get_final_message()).stop_reason == "tool_use"


# Draining


async def test_a_drained_stream_is_read_to_its_end(simulator: Simulator, virtual_time: VirtualTime) -> None:
    """Left early, cancelled or not, its request goes on to the end in the background, and its usage is exact."""
    meter = penstock.Meter()
    async with running_background() as background, simulator.client(max_retries=0, middleware=[meter]) as claude:
        options: dict[str, Any] = {"on_abandon": "drain", "background": background}
        async with stream(claude, **PARAMS, **options) as answer:
            async for _ in answer.text_stream:
                break
        async with stream(claude, **PARAMS, **options, stream_idle_timeout_s=None) as answer:
            with anyio.CancelScope() as scope:
                async for _ in answer.text_stream:
                    scope.cancel()
            await answer.close()
        async with stream(claude, **PARAMS, **options) as answer:
            whole = await answer.get_final_message()
        assert repr(answer._source) == "<DrainedSource closed>"
    assert [entry.outcome for entry in simulator.journal] == ["complete"] * 3
    total = meter.statistics().total
    assert (total.estimated, total.output_tokens) == (0, 3 * whole.usage.output_tokens)
    assert simulator.in_flight == 0


async def test_without_a_background_a_stream_is_closed(simulator: Simulator) -> None:
    """Nobody is there to drain it: also where the client is closed already."""
    stopped = Background(Observers())
    async with simulator.client(max_retries=0) as claude:
        for background in (None, stopped):
            async with stream(claude, **PARAMS, on_abandon="drain", background=background) as answer:
                async for _ in answer.text_stream:
                    break
        with anyio.fail_after(10):
            while simulator.in_flight:  # noqa: ASYNC110 - nothing tells of it
                await anyio.sleep(0.001)
    assert [entry.outcome for entry in simulator.journal] == ["client closed"] * 2


@pytest.mark.parametrize("idle_s", [None, 300])
async def test_draining_is_bounded_by_time(wire: Any, virtual_time: VirtualTime, idle_s: float | None) -> None:
    """A stream that never ends is not drained for ever."""
    claude = wire.client(wire.sse(wire.start(), *wire.text(0, "Hi")), *[wire.sse({"type": "ping"}), 10.0] * 1000)
    async with running_background() as background:
        began = virtual_time.now()
        options: dict[str, Any] = {"background": background, "stream_idle_timeout_s": idle_s}
        async with stream(claude, **PARAMS, on_abandon="drain", **options) as answer:
            async for _ in answer.text_stream:
                break
        assert not answer.response.is_closed
        await answer.close()
        await anyio.sleep(began + 590 - virtual_time.now())
        assert not wire.transport.bodies[0].closed
        await anyio.sleep(20)
        assert wire.transport.bodies[0].closed


async def test_a_drained_stream_fails_as_any_other(wire: Any, virtual_time: VirtualTime) -> None:
    """Errors, silence and the end of the client reach whoever reads."""
    head = wire.sse(wire.start(), *wire.text(0, "Hi"))
    async with running_background() as background:
        options: dict[str, Any] = {"on_abandon": "drain", "background": background}
        for rest, match in [(httpx2.ReadError("broke"), "ReadError"), (1000.0, "fell silent")]:
            claude = wire.client(head, rest)
            async with stream(claude, **PARAMS, **options) as answer:
                with pytest.raises(StreamInterrupted, match=match):
                    await answer.get_final_message()
            await anyio.sleep(0.1)
            assert wire.transport.bodies[0].closed
        claude = wire.client(head, 1000.0)
        async with (
            stream(claude, **PARAMS, **options, stream_idle_timeout_s=None) as answer,
            anyio.create_task_group() as group,
        ):

            async def stop() -> None:
                await anyio.sleep(5)
                await answer._source.close()

            group.start_soon(stop)
            assert [text async for text in answer.text_stream] == ["Hi"]


async def test_a_client_that_ends_says_so_to_whoever_reads(wire: Any, virtual_time: VirtualTime) -> None:
    """What the background is cancelled in the middle of is no proper end."""
    source = DrainedSource(wire.response(b"ab", 1000.0), idle_timeout_s=None, drain_s=600)
    async with anyio.create_task_group() as group:
        group.start_soon(source.pump)
        assert await source.read(anything=True) == b"ab"
        group.cancel_scope.cancel()
    with pytest.raises(httpx2.ReadError, match="client was closed"):
        await source.read(anything=True)
