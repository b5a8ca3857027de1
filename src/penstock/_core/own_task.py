"""Work in a task of its own, and what it hands to others.

The rule here: whoever begins the work, waits for what it gives, or ends it may be in different tasks, may be cancelled
at each of these, and may never come back; the work is none of theirs. So an `async with` that rests on this may stand
in a generator that is left, and a wait for it in `asyncio.wait_for`.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Generic, TypeVar

import anyio

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

__all__ = ["HandOver", "OwnTask"]

T = TypeVar("T")


class OwnTask:
    """A task that belongs to nobody's task group.

    Args:
        name: Of the task.

    Example:
        >>> async def main() -> str:
        ...     async def work() -> None:
        ...         results.give("done")
        ...
        ...     results: HandOver[str] = HandOver()
        ...     task = OwnTask("example")
        ...     task.begin(work)
        ...     await task.ended()
        ...     return await results.take()
        >>> anyio.run(main)
        'done'
    """

    __slots__ = ("_name", "_task")

    def __init__(self, name: str) -> None:
        self._name = name
        self._task: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        state = "not begun" if self._task is None else "ended" if self._task.done() else "running"
        return f"<OwnTask {self._name}, {state}>"

    @property
    def begun(self) -> bool:
        """Whether it has begun."""
        return self._task is not None

    def begin(self, work: Callable[[], Coroutine[object, object, None]]) -> None:
        """Begin the work, with the context of the caller."""
        self._task = asyncio.get_running_loop().create_task(work(), name=self._name)

    def cancel(self) -> None:
        """Cancel it, once: what it does to end itself is not cancelled again."""
        if self._task is not None:
            self._task.cancel()

    async def ended(self) -> None:
        """Wait until it has ended, also where the caller is cancelled meanwhile: then that is raised afterwards.

        Raises:
            Exception: What the work raised.
        """
        task, cancelled = self._task, None
        if task is None:
            return
        with anyio.CancelScope(shield=True):
            while not task.done():
                try:
                    await asyncio.wait((task,))
                except asyncio.CancelledError as error:  # not of a scope: the caller's task was cancelled
                    cancelled = error
        if cancelled is not None:
            raise cancelled
        if not task.cancelled():
            task.result()


class HandOver(Generic[T]):
    """What is given in one task and taken in others, in order: each thing once, whoever stops waiting."""

    __slots__ = ("_closed", "_given", "_waiting")

    def __init__(self) -> None:
        self._given: deque[T] = deque()
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._closed = False

    def __repr__(self) -> str:
        return f"<HandOver {len(self._given)} given{', closed' if self._closed else ''}>"

    def __len__(self) -> int:
        return len(self._given)

    def give(self, thing: T) -> None:
        """Hand something over."""
        self._given.append(thing)
        self._wake()

    def close(self) -> None:
        """Say that nothing more will come; what was given can still be taken."""
        self._closed = True
        while self._waiting:
            self._wake()

    def clear(self) -> None:
        """Forget what nobody will take."""
        self._given.clear()

    async def take(self) -> T:
        """Wait for the next thing; a wait that is given up takes nothing.

        Raises:
            EOFError: Nothing more will come.
        """
        while not self._given:
            if self._closed:
                raise EOFError
            await self._news()
        return self._given.popleft()

    async def _news(self) -> None:
        news = asyncio.get_running_loop().create_future()
        self._waiting.append(news)
        try:
            await news
        except BaseException:
            if news.done() and not news.cancelled():
                # It was told, and does not take: another may.
                self._wake()
            elif news in self._waiting:
                self._waiting.remove(news)
            raise

    def _wake(self) -> None:
        while self._waiting:
            news = self._waiting.popleft()
            if not news.done():
                news.set_result(None)
                return
