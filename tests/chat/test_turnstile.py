from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING

import anyio
import pytest

from penstock.chat.turnstile import Turnstile

if TYPE_CHECKING:
    from penstock.testing.plugin import VirtualTime


async def test_everyone_has_his_turn_in_order(virtual_time: VirtualTime) -> None:
    """The first to come is the first to go in; one who leaves the line holds up nobody."""
    turnstile, seen = Turnstile(), list[int]()

    async def visit(number: int) -> None:
        with anyio.move_on_after(1.5 if number == 1 else 100):
            await turnstile.enter()
            assert turnstile.busy
            seen.append(number)
            await anyio.sleep(2)
            turnstile.leave()

    async with anyio.create_task_group() as group:
        for number in range(5):
            group.start_soon(visit, number)
            await anyio.sleep(0.01)
    assert seen == [0, 2, 3, 4]
    assert repr(turnstile) == "<Turnstile free>"


async def test_a_task_does_not_wait_for_itself() -> None:
    """It is told, because it would wait for ever."""
    turnstile = Turnstile()
    await turnstile.enter()
    assert repr(turnstile) == "<Turnstile busy>"
    with pytest.raises(RuntimeError, match="leave its block first"):
        await turnstile.enter()
    turnstile.leave()
    await turnstile.enter()


async def test_another_task_may_leave() -> None:
    """A stream can be closed where it was not opened."""
    turnstile = Turnstile()
    async with anyio.create_task_group() as group:
        group.start_soon(turnstile.enter)
    turnstile.leave()
    await turnstile.enter()
    assert turnstile.busy


async def test_who_waits_for_a_tool_keeps_it_out() -> None:
    """It would wait for ever, in whatever task it runs; elsewhere, and afterwards, anyone waits for his turn."""
    turnstile, other = Turnstile(), Turnstile()
    await turnstile.enter()
    with turnstile.awaiting():
        async with anyio.create_task_group() as group:
            group.start_soon(other.enter)
            with pytest.raises(RuntimeError, match="fork it first"):
                await turnstile.enter()
    turnstile.leave()
    await turnstile.enter()


def test_another_event_loop_does_not_wait() -> None:
    """Nothing would wake it up: it is told at once, while the first is inside; afterwards it may enter."""
    turnstile = Turnstile()
    told: list[str] = []

    async def elsewhere() -> None:
        try:
            with anyio.fail_after(5):
                await turnstile.enter()
        except RuntimeError as error:
            told.append(str(error))
        else:
            turnstile.leave()
            told.append("entered")

    async def here() -> None:
        await turnstile.enter()
        async with anyio.create_task_group() as group:
            group.start_soon(turnstile.enter)
            await anyio.lowlevel.checkpoint()
            group.cancel_scope.cancel()
        await anyio.to_thread.run_sync(run_elsewhere)
        turnstile.leave()

    def run_elsewhere() -> None:
        thread = threading.Thread(target=lambda: asyncio.run(elsewhere()))
        thread.start()
        thread.join()

    asyncio.run(here())
    run_elsewhere()
    assert told == ["a conversation is being used in another event loop; one at a time can use it", "entered"]
