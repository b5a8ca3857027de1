from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import anyio
import anyio.lowlevel
import pytest

from penstock.testing import Cancelled, cancel_at_every_await

if TYPE_CHECKING:
    from collections.abc import Callable

    from penstock.testing.cancellation import How


class Leaky:
    """Takes something, and gives it back in one of three ways."""

    def __init__(self) -> None:
        self.held = 0

    async def straight(self) -> None:
        """Gives back only if nothing happens."""
        self.held += 1
        await anyio.lowlevel.checkpoint()
        self.held -= 1

    async def awaiting(self) -> None:
        """Awaits before it gives back."""
        self.held += 1
        try:
            await anyio.lowlevel.checkpoint()
        finally:
            await anyio.lowlevel.checkpoint()
            self.held -= 1

    async def synchronous(self) -> None:
        """Gives back without awaiting."""
        self.held += 1
        try:
            await anyio.lowlevel.checkpoint()
        finally:
            self.held -= 1


async def leaks(main: Callable[[Leaky], object], how: How) -> int:
    """At how many suspensions something is left."""
    left = 0

    async def scenario(cancelled: Cancelled) -> None:
        nonlocal left
        leaky = Leaky()
        await cancelled(main(leaky))  # type: ignore[arg-type]
        left += leaky.held

    await cancel_at_every_await(scenario, how=how)
    return left


@pytest.mark.parametrize(
    ("main", "how", "left"),
    [
        (Leaky.straight, "waiting", 1),
        (Leaky.awaiting, "waiting", 1),
        (Leaky.awaiting, "repeatedly", 2),
        (Leaky.synchronous, "waiting", 0),
        (Leaky.synchronous, "repeatedly", 0),
        (Leaky.synchronous, "done", 0),
    ],
)
async def test_what_leaks_is_found(main: Callable[[Leaky], object], how: How, left: int) -> None:
    """A cancellation at each suspension, or at each that follows, shows what code leaves behind."""
    assert await leaks(main, how) == left


async def test_a_result_that_came_first_can_be_lost() -> None:
    """With `done`, what was waited for is there, and is lost on whoever was cancelled at that very moment."""
    given: list[asyncio.Future[str]] = []

    async def main() -> str:
        future = asyncio.get_running_loop().create_future()
        given.append(future)
        asyncio.get_running_loop().call_soon(future.set_result, "grant")
        return str(await future)

    async def scenario(cancelled: Cancelled) -> None:
        await cancelled(main())

    assert await cancel_at_every_await(scenario, how="done") == 1
    assert [future.result() for future in given] == ["grant", "grant"]


async def test_the_count_is_that_of_the_whole_run() -> None:
    """The last run is cut off nowhere, and its suspensions are returned; some can be left out."""
    moments: list[int] = []

    async def main() -> None:
        for _ in range(10):
            await anyio.lowlevel.checkpoint()

    async def scenario(cancelled: Cancelled) -> None:
        moments.append(cancelled.moment)
        await cancelled(main())

    assert await cancel_at_every_await(scenario, first=2, every=4) == 10
    assert moments == [2, 6, 10, 14]


async def test_other_errors_leave_with_a_note() -> None:
    """What the code raises besides is raised as it is, and a note says where it was cancelled."""

    async def main() -> None:
        try:
            await anyio.lowlevel.checkpoint()
        except asyncio.CancelledError:
            raise ValueError("mine") from None

    async def scenario(cancelled: Cancelled) -> None:
        assert repr(cancelled) == "<Cancelled at suspension 1, waiting; 0 so far>"
        await cancelled(main())

    with pytest.raises(ValueError, match="mine") as raised:
        await cancel_at_every_await(scenario)
    assert raised.value.__notes__ == ["cancelled (waiting) at suspension 1"]
