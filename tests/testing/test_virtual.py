from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel
import pytest
from aiolimiter import AsyncLimiter
from hypothesis import given
from hypothesis import strategies as st

from penstock.testing import Deadlock, VirtualLoop

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


def run(main: Callable[[], Awaitable[Any]]) -> Any:
    """Run `main` in virtual time."""
    return anyio.run(main, backend_options={"loop_factory": VirtualLoop})


def test_hours_pass_in_an_instant() -> None:
    """A long sleep takes its virtual time and hardly any real one."""

    async def main() -> float:
        await anyio.sleep(3600)
        return anyio.current_time()

    before = time.perf_counter()
    assert 3600 <= run(main) < 3600.1
    assert time.perf_counter() - before < 1


@given(st.lists(st.floats(0, 1000), min_size=1, max_size=20))
def test_timers_fire_in_order_and_at_their_times(delays: list[float]) -> None:
    """Whatever sleeps together wakes in order, each when it should, give or take the turns of the loop."""
    woken: list[tuple[float, float]] = []

    async def sleeper(delay: float) -> None:
        await anyio.sleep(delay)
        woken.append((delay, anyio.current_time()))

    async def main() -> None:
        async with anyio.create_task_group() as group:
            for delay in delays:
                group.start_soon(sleeper, delay)

    run(main)
    assert [delay for delay, _ in woken] == pytest.approx(sorted(delays), abs=1e-3)
    assert all(-1e-9 <= at - delay < 1e-3 for delay, at in woken)


@pytest.mark.lengthy
def test_a_rate_limiter_runs_for_99_minutes_at_once() -> None:
    """6,000 acquisitions at one a second, with a burst of 60, take 99 virtual minutes and little real time."""

    async def main() -> float:
        limiter = AsyncLimiter(60, 60)
        async with anyio.create_task_group() as group:
            for _ in range(6000):
                group.start_soon(limiter.acquire)
        return anyio.current_time()

    before = time.perf_counter()
    assert 99 * 60 - 1 <= run(main) <= 99 * 60 + 1
    assert time.perf_counter() - before < 10


def test_a_timeout_fires_at_its_virtual_time() -> None:
    """Cancel scopes with deadlines follow the virtual clock."""

    async def main() -> float:
        with anyio.move_on_after(50):
            await anyio.sleep_forever()
        return anyio.current_time()

    assert 50 <= run(main) < 50.1


def test_a_deadlock_is_reported_with_who_waits() -> None:
    """When nothing can happen any more, an error names the tasks and what they wait in."""

    async def waits_for_nothing() -> None:
        await anyio.Event().wait()

    with pytest.raises(Deadlock, match="virtual time stands still") as caught:
        run(waits_for_nothing)
    assert len(caught.value.waiting) == 1
    assert "waits_for_nothing > Event.wait" in caught.value.waiting[0]
    assert "nothing" in str(Deadlock([]))


def test_an_executor_runs_inline() -> None:
    """A function given to an executor runs at once, its result and its error arrive, and the clock doesn't jump."""

    async def main() -> tuple[int, float]:
        loop = asyncio.get_running_loop()
        group = anyio.create_task_group()
        async with group:
            group.start_soon(anyio.sleep, 1000)
            result = await loop.run_in_executor(None, lambda x: x + 1, 1)
            with pytest.raises(ZeroDivisionError):
                await loop.run_in_executor(None, lambda: 1 // 0)
            seen = anyio.current_time()
        return result, seen

    result, seen = run(main)
    assert result == 2
    assert seen < 1


def test_real_events_are_waited_for() -> None:
    """Without a timer, something that arrives in real time still wakes the loop."""

    async def main() -> str:
        import threading

        loop = asyncio.get_running_loop()
        future: asyncio.Future[str] = loop.create_future()
        threading.Timer(0.02, loop.call_soon_threadsafe, [future.set_result, "arrived"]).start()
        return await future

    assert run(main) == "arrived"


def test_callbacks_from_elsewhere_come_before_the_next_timer() -> None:
    """What is ready is done first; the clock jumps only when nothing is."""

    async def main() -> float:
        loop = asyncio.get_running_loop()
        seen: list[float] = []
        loop.call_soon_threadsafe(lambda: seen.append(loop.time()))
        await anyio.sleep(100)
        return seen[0]

    assert run(main) < 0.1


def test_a_timer_that_rearms_itself_for_now_does_not_spin() -> None:
    """The clock moves a little each turn, so that what waits for the present moment gets past it."""

    async def main() -> int:
        loop = asyncio.get_running_loop()
        start = loop.time()
        turns = 0
        while loop.time() - start < 0.001:
            await anyio.lowlevel.checkpoint()
            turns += 1
        return turns

    assert 10 < run(main) <= 1100
