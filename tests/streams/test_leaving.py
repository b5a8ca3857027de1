"""What a stream leaves behind: nothing. Its slot and its connection are free once nobody reads it any more."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING, Any

import anthropic
import anyio
import pytest

from penstock import StreamInterrupted, deadline

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

# A stream that is dropped without being closed may say so; what counts here is that it holds nothing.
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
BOTH = ["aiohttp", "httpx2"]
TRANSPORTS = pytest.mark.parametrize("transport", BOTH)


def begun(wire: Any, then: str = "stay") -> Any:
    """An answer that gives its first word, and then nothing for ever."""
    return wire.Answer((wire.sse(*wire.hello[:3]),), then=then)


async def entered(wire: Any, claude: Any) -> None:
    """Open a stream, and forget it."""
    await claude.stream(**wire.ask).__aenter__()


async def read_a_text(wire: Any, claude: Any) -> None:
    """Read one text, and forget the stream."""
    stream = await claude.stream(**wire.ask).__aenter__()
    assert await anext(stream.text_stream) == "Hello"


async def read_an_event(wire: Any, claude: Any) -> None:
    """Read one event, and forget the stream."""
    stream = await claude.stream(**wire.ask).__aenter__()
    assert (await anext(stream)).type == "message_start"


async def in_a_circle(wire: Any, claude: Any) -> None:
    """Forget a stream that is part of a circle of references."""
    stream = await claude.stream(**wire.ask).__aenter__()
    circle: list[Any] = [stream]
    circle.append(circle)


async def with_a_snapshot(wire: Any, claude: Any) -> None:
    """Forget a stream whose message was looked at."""
    stream = await claude.stream(**wire.ask).__aenter__()
    await anext(stream.text_stream)
    assert stream.current_message_snapshot.content


async def without_an_idle_limit(wire: Any, claude: Any) -> None:
    """Forget a stream that may be silent for ever."""
    stream = await claude.stream(**wire.ask, stream_idle_timeout_s=None).__aenter__()
    await anext(stream.text_stream)


async def cancelled_while_it_waits(wire: Any, claude: Any) -> None:
    """Cancel the reader while it waits, and forget the stream."""
    stream = await claude.stream(**wire.ask).__aenter__()
    await anext(stream.text_stream)
    with anyio.move_on_after(0.01):
        await anext(stream.text_stream)


async def events_of_the_sdk(wire: Any, claude: Any) -> None:
    """Forget the SDK's own stream."""
    stream = await claude.messages.create(**wire.ask, stream=True)
    assert (await anext(aiter(stream))).type == "message_start"


async def helper_of_the_sdk(wire: Any, claude: Any) -> None:
    """Forget the SDK's own helper."""
    stream = await claude.messages.stream(**wire.ask).__aenter__()
    assert (await anext(aiter(stream))).type == "message_start"


DROPS: dict[str, Callable[[Any, Any], Awaitable[None]]] = {
    "entered only": entered,
    "a text read": read_a_text,
    "an event read": read_an_event,
    "in a circle": in_a_circle,
    "its message looked at": with_a_snapshot,
    "without an idle limit": without_an_idle_limit,
    "its reader cancelled": cancelled_while_it_waits,
    "the SDK's own stream": events_of_the_sdk,
    "the SDK's own helper": helper_of_the_sdk,
}


@pytest.mark.lengthy
@pytest.mark.in_turn(drop=DROPS, transport=BOTH)
async def test_a_stream_that_is_dropped_gives_everything_back(
    wire: Any, server: Any, drop: Callable[[Any, Any], Awaitable[None]], transport: str
) -> None:
    """Nobody has closed it, and no timer holds it: its slot and its connection are free at the next collection.

    What the SDK's own generators hold is found by a later one: the loop closes them in turns of its own.
    """

    def free() -> bool:
        if wire.told(claude).slots_used:
            gc.collect()
        return bool(wire.told(claude).slots_used == 0)

    async with wire.connected(server, transport=transport, concurrency=2) as claude:
        server.answer(begun(wire))
        with anyio.fail_after(wire.watchdog_s):
            await drop(wire, claude)
            assert await wire.until(free, 1.0)
            assert await server.all_left(1.0)
        assert wire.told(claude).attempts == 1


@pytest.mark.lengthy
async def test_fifty_dropped_streams_do_not_block_a_client_of_fifty_slots(wire: Any, server: Any) -> None:
    """The request after them is sent at once and answered, and only its own connection is still open."""
    async with wire.connected(server, concurrency=50) as claude:
        server.answer(*[begun(wire)] * 50, wire.Answer((wire.sse(*wire.hello),)))
        for _ in range(50):
            await read_a_text(wire, claude)
        gc.collect()
        outcome = await wire.read(claude)
        assert (outcome.text, outcome.error) == ("Hello, world", None)
        assert await wire.until(lambda: server.open_connections <= 1)
        assert wire.told(claude).slots_used == 0


@pytest.mark.lengthy
@pytest.mark.in_turn(transport=BOTH, silence=["ping", "stay"])
async def test_a_stream_that_falls_silent_closes_its_connection(
    wire: Any, server: Any, transport: str, silence: str
) -> None:
    """After `stream_idle_timeout_s`, of silence or of pings: 20 of 20 connections are closed and 20 slots free."""
    async with wire.connected(server, transport=transport, concurrency=20) as claude:
        server.answer(begun(wire, silence))
        outcomes: list[Any] = []

        async def read(how: str) -> None:
            outcomes.append(await wire.read(claude, how, stream_idle_timeout_s=0.04))

        async with anyio.create_task_group() as group:
            for number in range(20):
                group.start_soon(read, wire.ours[number % 3])
        told = wire.told(claude)
        assert all(isinstance(outcome.error, StreamInterrupted) for outcome in outcomes), outcomes
        assert (told.slots_used, told.failures) == (0, {"timeout": 20})
        assert await server.all_left(1.0)


@TRANSPORTS
async def test_a_stream_that_is_silent_from_the_start_closes_its_connection(
    wire: Any, server: Any, transport: str
) -> None:
    """Content is waited for until the call's deadline; the SDK's own stream is handed on, and then left."""
    async with wire.connected(server, transport=transport, concurrency=2, max_attempts=1, hold_s=0.02) as claude:
        server.answer(wire.Answer((wire.sse(wire.start()),), then="ping"))
        with deadline(0.05):
            outcome = await wire.read(claude)
        assert isinstance(outcome.error, anthropic.APITimeoutError), repr(outcome.error)
        assert wire.told(claude).slots_used == 0
        assert await server.all_left(1.0)
        async with await claude.messages.create(**wire.ask, stream=True) as events:
            assert (await anext(aiter(events))).type == "message_start"
        assert wire.told(claude).slots_used == 0
        assert await server.all_left(1.0)


LEAVES = ["break", "an error of the reader", "closed", "cancelled", "closed by another task"]


@pytest.mark.lengthy
@pytest.mark.in_turn(leave=LEAVES, transport=BOTH)
async def test_a_stream_that_is_left_closes_its_connection(wire: Any, server: Any, transport: str, leave: str) -> None:
    """However its block is left before its end, slot and connection are free at once; nobody is blamed."""
    async with wire.connected(server, transport=transport, concurrency=2) as claude:
        server.answer(begun(wire))
        scope = anyio.CancelScope()

        async def read(answer: Any) -> None:
            async for _ in answer.text_stream:
                if leave == "break":
                    break
                if leave == "an error of the reader":
                    raise LookupError
                if leave == "closed":
                    await answer.close()
                if leave == "cancelled":
                    scope.cancel()
                if leave == "closed by another task":
                    group.start_soon(answer.close)

        with anyio.fail_after(wire.watchdog_s), scope:
            try:
                async with anyio.create_task_group() as group, claude.stream(**wire.ask) as answer:
                    await read(answer)
            except* LookupError:
                pass
        assert await wire.until(lambda: wire.told(claude).slots_used == 0, 1.0)
        assert await server.all_left(1.0)
        assert set(wire.told(claude).failures) <= {"abandoned", "cancelled"}


@TRANSPORTS
async def test_a_stream_that_is_left_to_be_drained_is_counted_whole(wire: Any, server: Any, transport: str) -> None:
    """With `on_abandon="drain"` the rest is read: exact usage, a success, and no slot kept by an open connection."""
    async with wire.connected(server, transport=transport) as claude:
        server.answer(wire.Answer(wire.cut(wire.sse(*wire.hello), 900), then="stay"))
        async with claude.stream(**wire.ask, on_abandon="drain") as answer:
            await anext(answer.text_stream)
        assert await wire.until(lambda: wire.told(claude).attempts == 1)
        told = wire.told(claude)
        assert (told.successes, told.slots_used, told.tokens) == (1, 0, (25, 3, 15))
        assert await server.all_left()


@TRANSPORTS
async def test_failed_attempts_leave_no_connection(wire: Any, server: Any, transport: str) -> None:
    """An answer that is given up before its end, such as one that is retried, keeps no connection of its own."""
    failed = b'event: error\ndata: {"type":"error","error":{"type":"overloaded_error","message":"x"}}\n\n'
    async with wire.connected(server, transport=transport, max_attempts=3) as claude:
        stays = wire.Answer((wire.sse(wire.start()) + failed,), then="stay")
        server.answer(stays, stays, wire.Answer((wire.sse(*wire.hello),), framing="close"))
        outcome = await wire.read(claude)
        assert (outcome.text, outcome.error) == ("Hello, world", None)
        assert await server.all_left(1.0)
        assert wire.told(claude).slots_used == 0


@TRANSPORTS
async def test_closing_the_client_closes_streams_that_are_read(wire: Any, server: Any, transport: str) -> None:
    """Who still reads is told, and the connection is gone."""
    claude = wire.connected(server, transport=transport)
    outcome = None
    async with anyio.create_task_group() as group:
        await claude.__aenter__()
        server.answer(begun(wire))

        async def read() -> None:
            nonlocal outcome
            outcome = await wire.read(claude)

        group.start_soon(read)
        assert await wire.until(lambda: wire.told(claude).slots_used == 1 and bool(server.requests))
        await claude.close()
    assert outcome is not None
    assert outcome.error is not None
    assert await server.all_left()
