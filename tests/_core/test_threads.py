from __future__ import annotations

import asyncio
import contextlib
import gc
import threading
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from penstock._core.threads import Threads

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine


class Work:
    """Work that goes on until it is told, and how much of it is under way."""

    def __init__(self) -> None:
        self.go_on = threading.Event()
        self.begun = 0
        self.under_way = 0
        self.most = 0
        self._lock = threading.Lock()

    def __call__(self) -> int:
        with self._lock:
            self.begun += 1
            self.under_way += 1
            self.most = max(self.most, self.under_way)
        self.go_on.wait(10)
        with self._lock:
            self.under_way -= 1
        return threading.get_ident()


async def at_once(number: int, function: Callable[..., Coroutine[Any, Any, object]], *args: object) -> None:
    """Call it so many times at the same time."""
    with anyio.fail_after(5):
        async with anyio.create_task_group() as group:
            for _ in range(number):
                group.start_soon(function, *args)


async def turns(number: int = 20) -> None:
    """Let everything go on that can."""
    for _ in range(number):
        await anyio.sleep(0.001)


async def test_what_it_returns_and_raises_is_handed_on() -> None:
    """From a thread that is not the event loop's."""
    threads = Threads("test", 2)
    assert await threads.run(threading.get_ident) != threading.get_ident()
    with pytest.raises(ZeroDivisionError):
        await threads.run(lambda: 1 // 0)
    assert repr(threads) == "<Threads 'test', 2 at once>"


@pytest.mark.parametrize("natively", [True, False])
async def test_time_outs_never_make_more_threads(natively: bool) -> None:
    """Whoever is cancelled goes on at once, and what it leaves keeps its place until it has ended."""
    threads, work = Threads("test", 2), Work()

    async def give_up() -> None:
        if natively:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(threads.run(work), 0.005)
        else:
            with anyio.move_on_after(0.005):
                await threads.run(work)

    for _ in range(4):
        await at_once(8, give_up)
    assert (work.begun, work.under_way) == (2, 2)
    work.go_on.set()
    await at_once(8, threads.run, work)
    assert (work.begun, work.most) == (10, 2)


async def test_what_is_given_up_while_it_waits_is_never_begun() -> None:
    """And costs nobody a place."""
    threads, first, second = Threads("test", 1), Work(), Work()
    async with anyio.create_task_group() as group:
        group.start_soon(threads.run, first)
        await turns()
        with anyio.move_on_after(0.005):
            await threads.run(second)
        first.go_on.set()
    second.go_on.set()
    await threads.run(second)
    assert (first.begun, second.begun) == (1, 1)


class Late(asyncio.SelectorEventLoop):
    """An event loop whose threads begin when the test says."""

    def run_in_executor(self, executor: Any, func: Any, *args: Any) -> Any:  # type: ignore[override]
        del executor, args
        self.func = func
        return self.create_future()


def test_one_that_is_given_up_before_its_thread_begins_gives_its_place_back() -> None:
    """Once: the thread that comes late does nothing."""
    threads, work = Threads("test", 1), Work()

    async def main() -> None:
        loop: Any = asyncio.get_running_loop()
        with anyio.move_on_after(0.01):
            await threads.run(work)
        with pytest.raises(RuntimeError, match="given up"):
            loop.func()
        late = loop.func
        with anyio.move_on_after(0.01):
            await threads.run(lambda: 1)
        assert loop.func is not late

    with asyncio.Runner(loop_factory=Late) as runner:
        runner.run(main())
    assert work.begun == 0


def test_a_thread_may_outlive_its_event_loop() -> None:
    """Nobody waits for its place any more; and no thread is left once it has ended."""
    threads, work = Threads("outliving", 1), Work()

    async def main() -> None:
        with anyio.move_on_after(0.02):
            await threads.run(work)

    asyncio.run(main())
    (thread,) = (each for each in threading.enumerate() if each.name.startswith("outliving"))
    assert work.under_way == 1
    assert asyncio.run(threads.run(lambda: 7)) == 7
    work.go_on.set()
    gc.collect()
    thread.join(5)
    assert not thread.is_alive()
