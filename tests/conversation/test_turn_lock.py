from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING

import anyio
import pytest

from penstock.conversation.turn_lock import TurnLock

if TYPE_CHECKING:
    from penstock.testing.plugin import VirtualTime


async def test_everyone_has_his_turn_in_order(virtual_time: VirtualTime) -> None:
    """The first to come is the first to go in; one who leaves the line holds up nobody."""
    turn_lock, seen = TurnLock(), list[int]()

    async def visit(number: int) -> None:
        with anyio.move_on_after(1.5 if number == 1 else 100):
            await turn_lock.enter()
            assert turn_lock.busy
            seen.append(number)
            await anyio.sleep(2)
            turn_lock.leave()

    async with anyio.create_task_group() as group:
        for number in range(5):
            group.start_soon(visit, number)
            await anyio.sleep(0.01)
    assert seen == [0, 2, 3, 4]
    assert repr(turn_lock) == "<TurnLock free>"


async def test_a_task_does_not_wait_for_itself() -> None:
    """It is told, because it would wait for ever."""
    turn_lock = TurnLock()
    await turn_lock.enter()
    assert repr(turn_lock) == "<TurnLock busy>"
    with pytest.raises(RuntimeError, match="leave its block first"):
        await turn_lock.enter()
    turn_lock.leave()
    await turn_lock.enter()


async def test_another_task_may_leave() -> None:
    """A stream can be closed where it was not opened."""
    turn_lock = TurnLock()
    async with anyio.create_task_group() as group:
        group.start_soon(turn_lock.enter)
    turn_lock.leave()
    await turn_lock.enter()
    assert turn_lock.busy


async def test_who_waits_for_a_tool_keeps_it_out() -> None:
    """It would wait for ever, in whatever task it runs; elsewhere, and afterwards, anyone waits for his turn."""
    turn_lock, other = TurnLock(), TurnLock()
    await turn_lock.enter()
    with turn_lock.awaiting():
        async with anyio.create_task_group() as group:
            group.start_soon(other.enter)
            with pytest.raises(RuntimeError, match="fork it first"):
                await turn_lock.enter()
    turn_lock.leave()
    await turn_lock.enter()


def test_another_event_loop_does_not_wait() -> None:
    """Nothing would wake it up: it is told at once, while the first is inside; afterwards it may enter."""
    turn_lock = TurnLock()
    told: list[str] = []

    async def elsewhere() -> None:
        try:
            with anyio.fail_after(5):
                await turn_lock.enter()
        except RuntimeError as error:
            told.append(str(error))
        else:
            turn_lock.leave()
            told.append("entered")

    async def here() -> None:
        await turn_lock.enter()
        async with anyio.create_task_group() as group:
            group.start_soon(turn_lock.enter)
            await anyio.lowlevel.checkpoint()
            group.cancel_scope.cancel()
        await anyio.to_thread.run_sync(run_elsewhere)
        turn_lock.leave()

    def run_elsewhere() -> None:
        thread = threading.Thread(target=lambda: asyncio.run(elsewhere()))
        thread.start()
        thread.join()

    asyncio.run(here())
    run_elsewhere()
    assert told == ["a conversation is being used in another event loop; one at a time can use it", "entered"]
