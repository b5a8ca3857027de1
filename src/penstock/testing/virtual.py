"""Virtual time: the clock moves only when nothing else can happen, and then straight to the next timer.

Run something on it with `anyio.run(main, backend_options={"loop_factory": VirtualLoop})`, or ask for the pytest fixture
`virtual_time`. It has no use for threads or real sockets to other processes: they take real time, of which this
loop knows nothing.
"""

from __future__ import annotations

import asyncio
import selectors
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from concurrent.futures import Executor

__all__ = ["Deadlock", "VirtualLoop"]

T = TypeVar("T")
TURN_S = 1e-6
DEADLOCK_AFTER_S = 1.0


class Deadlock(RuntimeError):
    """Every task waits for something that nothing left in the loop can bring about.

    Attributes:
        waiting: names of the tasks that wait.
    """

    def __init__(self, waiting: list[str]) -> None:
        self.waiting = waiting
        super().__init__(
            f"virtual time stands still: no timer is set and nothing arrived for {DEADLOCK_AFTER_S:g} s of real time; "
            f"waiting: {', '.join(waiting) or 'nothing'}"
        )


class _JumpingSelector(selectors.DefaultSelector):
    """Never sleeps: asked to wait, it moves `now` instead."""

    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self.now = 0.0
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        # A little time passes each turn, or a timer that re-arms itself for the present instant would spin for ever.
        self.now += TURN_S
        ready = super().select(0)
        if ready:
            return ready
        if timeout is None:
            return self._wait_for_real()
        self.now += max(timeout, 0.0)
        return ready

    def _wait_for_real(self) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(DEADLOCK_AFTER_S)
        if not ready:
            raise Deadlock(sorted(_name(task) for task in asyncio.all_tasks(self._loop)))
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """An asyncio event loop whose clock starts at 0 and jumps to the next timer whenever nothing is ready.

    Timers fire in order and at their times, so that hours pass in milliseconds. `run_in_executor` runs inline, because
    the clock would jump ahead of a thread. When no timer is left and nothing arrives for a second of real time,
    `Deadlock` is raised, naming what waits.

    Example:
        >>> import anyio
        >>> from penstock.testing import VirtualLoop
        >>> async def main() -> float:
        ...     await anyio.sleep(3600)
        ...     return round(anyio.current_time(), 3)
        >>> anyio.run(main, backend_options={"loop_factory": VirtualLoop})
        3600.0
    """

    def __init__(self) -> None:
        self._jumping = _JumpingSelector(self)
        super().__init__(self._jumping)

    def time(self) -> float:
        """The virtual time in seconds since the loop was made."""
        return self._jumping.now

    def run_in_executor(self, executor: Executor | None, func: Callable[..., T], *args: object) -> asyncio.Future[T]:
        """Run `func(*args)` at once, in this thread; its result or exception is in the returned future."""
        del executor
        future: asyncio.Future[T] = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:  # noqa: BLE001 - whatever it raises belongs to the future
            future.set_exception(error)
        return future


def _name(task: asyncio.Task[object]) -> str:
    return f"{task.get_name()} in {' > '.join(_awaited(task.get_coro()))}"


def _awaited(coroutine: object) -> Iterator[str]:
    """What the task runs, down to the coroutine that waits."""
    while coroutine is not None:
        name = getattr(coroutine, "__qualname__", None)
        if name is not None:
            yield name
        coroutine = getattr(coroutine, "cr_await", None)
