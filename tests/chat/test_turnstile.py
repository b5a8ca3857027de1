from __future__ import annotations

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
