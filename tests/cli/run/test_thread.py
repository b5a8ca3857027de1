"""A thread for calls that may block for good."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING

import anyio
import pytest

from penstock.cli.run.thread import OneThread

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def thread() -> Iterator[OneThread]:
    """A thread that is ended after the test."""
    thread = OneThread("a-thread")
    yield thread
    thread.close()
    thread._thread.join(5)
    assert not thread._thread.is_alive()


async def test_calls_run_there_one_after_the_other(thread: OneThread) -> None:
    """What a call returns comes back; every call runs in that one thread, in the order given."""
    order: list[int] = []
    names: list[str] = []

    def note(number: int) -> int:
        order.append(number)
        names.append(threading.current_thread().name)
        return number * 2

    assert [await thread.run(lambda: note(1)), await thread.run(lambda: note(2))] == [2, 4]
    assert order == [1, 2]
    assert names == ["a-thread", "a-thread"]
    assert repr(thread) == "<OneThread a-thread>"


async def test_what_a_call_raises_is_raised_to_its_caller(thread: OneThread) -> None:
    """An exception of a call is that of the one who waits, and the thread goes on."""

    def fail() -> None:
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        await thread.run(fail)
    assert await thread.run(lambda: 1) == 1


async def test_nobody_has_to_wait(thread: OneThread) -> None:
    """Whoever waits can be cancelled while the call still blocks; what comes of it then goes nowhere."""
    release = threading.Event()
    with anyio.move_on_after(0.01) as scope:
        await thread.run(release.wait)
    assert scope.cancelled_caught
    release.set()
    assert await thread.run(lambda: 1) == 1


def test_a_loop_that_is_gone_is_not_told(thread: OneThread) -> None:
    """A call that ends after the event loop has, ends quietly."""
    release = threading.Event()

    async def leave() -> None:
        with anyio.move_on_after(0.01):
            await thread.run(release.wait)

    asyncio.run(leave())
    release.set()

    async def again() -> int:
        return await thread.run(lambda: 1)

    assert asyncio.run(again()) == 1


def test_the_process_does_not_wait_for_it(thread: OneThread) -> None:
    """It is a daemon thread."""
    assert thread._thread.daemon
