"""Cancellation at every await: what a test needs to show that code leaves nothing behind, wherever it is cut off.

The rule here: a cancellation comes as the event loop itself delivers it, by `task.cancel()`, at one suspension of the
code under test after the other, until the code has run to its end without one. Nothing else of the code is touched.
"""

from __future__ import annotations

import asyncio
import contextlib
import types
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import anyio

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Generator

__all__ = ["Cancelled", "How", "cancel_at_every_await"]

How: TypeAlias = Literal["waiting", "done", "repeatedly"]


class Cancelled:
    """Runs a coroutine, and cancels it at one of its suspensions.

    Args:
        moment: At which suspension, from 1.
        how: See `cancel_at_every_await`.

    Attributes:
        moment: At which suspension, from 1.
        suspensions: How often the coroutine was suspended.
    """

    def __init__(self, moment: int, how: How) -> None:
        self.moment = moment
        self.suspensions = 0
        self._how = how

    def __repr__(self) -> str:
        return f"<Cancelled at suspension {self.moment}, {self._how}; {self.suspensions} so far>"

    @property
    def reached(self) -> bool:
        """Whether the coroutine was suspended often enough to be cancelled."""
        return self.suspensions >= self.moment

    async def __call__(self, main: Coroutine[Any, Any, object]) -> None:
        """Run `main` in a task of its own, and wait until that has ended.

        Args:
            main: The code under test.

        Raises:
            Exception: What `main` raises, other than its cancellation.
        """
        raised: list[Exception] = []

        async def run() -> None:
            driven: Awaitable[None] = self._drive(main)
            try:
                with contextlib.suppress(asyncio.CancelledError):
                    await driven
            except Exception as error:  # noqa: BLE001 - raised below, because a task group would wrap it
                raised.append(error)

        async with anyio.create_task_group() as group:
            group.start_soon(run)
        if raised:
            raise raised.pop()

    @types.coroutine
    def _drive(self, main: Coroutine[Any, Any, object]) -> Generator[Any, Any, None]:
        value: Any = None
        step: Callable[[Any], Any] = main.send
        while True:
            try:
                waited_for: asyncio.Future[Any] | None = step(value)
            except StopIteration:
                return
            self.suspensions += 1
            self._cancel(waited_for)
            try:
                value, step = (yield waited_for), main.send
            except BaseException as error:  # noqa: BLE001 - handed to where it belongs
                value, step = error, main.throw

    def _cancel(self, waited_for: asyncio.Future[Any] | None) -> None:
        task = asyncio.current_task()
        if task is None or self.suspensions < self.moment:
            return
        if self.suspensions > self.moment:
            if self._how == "repeatedly":
                task.cancel()
        elif self._how == "done" and waited_for is not None:
            # Before the task's own callback, which is added once it has been given the future.
            waited_for.add_done_callback(lambda _: task.cancel())
        else:
            task.cancel()


async def cancel_at_every_await(
    scenario: Callable[[Cancelled], Awaitable[None]], *, how: How = "waiting", first: int = 1, every: int = 1
) -> int:
    """Run a scenario again and again, each time with its code under test cancelled one suspension later.

    Args:
        scenario: Sets up, gives the code under test to what it is called with, and checks what that has left behind.
        how: `"waiting"`: cancelled as soon as it waits; `"done"`: cancelled when what it waits for is there, before it
            runs on; `"repeatedly"`: cancelled as soon as it waits, and again at each suspension that follows.
        first: The first suspension to be cancelled at, 1 or more.
        every: Cancel at every so many suspensions only, 1 or more, where a scenario takes long.

    Returns:
        How often the code is suspended when it runs to its end.

    Raises:
        Exception: What the scenario raises; a note says at which suspension.

    Example:
        >>> import anyio
        >>> from penstock.testing import Cancelled, cancel_at_every_await
        >>> async def use(semaphore: anyio.Semaphore) -> None:
        ...     async with semaphore:
        ...         await anyio.sleep(0)
        >>> async def scenario(cancelled: Cancelled) -> None:
        ...     semaphore = anyio.Semaphore(1)
        ...     await cancelled(use(semaphore))
        ...     assert semaphore.value == 1
        >>> async def main() -> int:
        ...     return await cancel_at_every_await(scenario)
        >>> anyio.run(main)
        2
    """
    moment = first
    while True:
        cancelled = Cancelled(moment, how)
        try:
            await scenario(cancelled)
        except Exception as error:
            error.add_note(f"cancelled ({how}) at suspension {moment}")
            raise
        if not cancelled.reached:
            return cancelled.suspensions
        moment += every
