from __future__ import annotations

import asyncio
import contextvars
import threading
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest

from penstock._core.background import Background
from penstock.events import BackgroundFailed, Event, Observers

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from penstock.testing.plugin import VirtualTime


@asynccontextmanager
async def running(background: Background, *, grace_s: float = 5.0) -> AsyncIterator[None]:
    """Run it for the block, in a task of its own."""
    stop, started = anyio.Event(), anyio.Event()
    async with anyio.create_task_group() as group:
        group.start_soon(lambda: background.run(stop, started=started, grace_s=grace_s))
        await started.wait()
        yield
        stop.set()


def note(done: list[str], name: str, *, after_s: float = 0.0) -> Callable[[], Awaitable[None]]:
    """Work that takes a while and leaves its name."""

    async def work() -> None:
        await anyio.sleep(after_s)
        done.append(name)

    return work


async def test_work_outlives_the_task_that_put_it(virtual_time: VirtualTime) -> None:
    """What a cancelled task has put is done all the same."""
    background, done = Background(Observers()), list[str]()
    async with running(background):
        async with anyio.create_task_group() as group:

            async def put_and_hang() -> None:
                assert background.put(note(done, "work", after_s=1))
                await anyio.sleep_forever()

            group.start_soon(put_and_hang)
            await anyio.sleep(0.5)
            group.cancel_scope.cancel()
        assert repr(background) == "<Background running, 1 pending>"
        await anyio.sleep(1)
        assert done == ["work"]
    assert repr(background) == "<Background idle, 0 pending>"


async def test_stopping_finishes_what_was_put(virtual_time: VirtualTime) -> None:
    """Work under way at the stop is done, within the grace."""
    background, done = Background(Observers()), list[str]()
    async with running(background, grace_s=5):
        background.put(note(done, "soon", after_s=4))
        background.put(note(done, "late", after_s=6))
    assert done == ["soon"]
    assert virtual_time.now() == pytest.approx(5, abs=0.1)
    assert repr(background) == "<Background idle, 0 pending>"


async def test_work_that_raises_is_reported_and_ends_nothing(virtual_time: VirtualTime) -> None:
    """Its error becomes an event, by name, and other work goes on."""
    events, done = list[Event](), list[str]()
    background = Background(Observers((events.append,)))

    async def fail() -> None:
        raise OSError("the key was sk-1")

    async with running(background):
        background.put(fail)
        background.put(note(done, "work", after_s=1))
    assert events == [BackgroundFailed(error_type="OSError")]
    assert done == ["work"]


async def test_before_it_runs_and_after_it_stopped_nothing_is_taken(virtual_time: VirtualTime) -> None:
    """Whoever puts work is told that it won't be done."""
    background, done = Background(Observers()), list[str]()
    states = [background.running]
    assert not background.put(note(done, "before"))
    async with running(background):
        states.append(background.running)
    states.append(background.running)
    assert states == [False, True, False]
    assert not background.put(note(done, "after"))
    assert done == []


async def test_cancelled_it_takes_no_more(virtual_time: VirtualTime) -> None:
    """When its own task is cancelled, work is refused rather than put where nobody does it."""
    background = Background(Observers())
    started = anyio.Event()
    async with anyio.create_task_group() as group:
        group.start_soon(lambda: background.run(anyio.Event(), started=started, grace_s=1))
        await started.wait()
        group.cancel_scope.cancel()
    assert not background.put(note([], "work"))


async def test_work_may_be_put_from_any_thread() -> None:
    """The garbage collector runs in any thread, and work that it puts is done in the loop's."""
    background, threads = Background(Observers()), list[int]()
    done = anyio.Event()

    async def work() -> None:
        threads.append(threading.get_ident())
        done.set()

    async with running(background):
        assert await anyio.to_thread.run_sync(background.put, work)
        with anyio.fail_after(5):
            await done.wait()
    assert threads == [threading.get_ident()]


async def test_what_a_thread_puts_too_late_is_reported() -> None:
    """Work that the loop comes round to after the stop is an event, not a task in a group that is gone."""
    events = list[Event]()
    background = Background(Observers((events.append,)))
    stop, started = anyio.Event(), anyio.Event()
    async with anyio.create_task_group() as group:
        group.start_soon(lambda: background.run(stop, started=started, grace_s=5))
        await started.wait()
        stop.set()
        await anyio.lowlevel.checkpoint()
        thread = threading.Thread(target=background._take, args=(note([], "late"),))
        thread.start()
        thread.join()
    assert events == [BackgroundFailed(error_type="ClientClosed")]


async def test_work_may_be_put_from_a_callback() -> None:
    """The garbage collector may run in a callback of the loop, where no task is current."""
    background, done = Background(Observers()), anyio.Event()

    async def work() -> None:
        await anyio.lowlevel.checkpoint()
        done.set()

    async with running(background):
        asyncio.get_running_loop().call_soon(background.put, work, context=contextvars.Context())
        with anyio.fail_after(5):
            await done.wait()


def test_a_loop_that_is_closed_takes_nothing() -> None:
    """What outlives an event loop that was closed under way is told that no work will be done any more."""
    background = Background(Observers())

    async def main() -> None:
        async with running(background):
            pass

    anyio.run(main)
    background._running = True
    assert not background.put(note([], "work"))
