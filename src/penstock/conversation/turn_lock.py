"""One at a time, in order: whoever asks in a conversation waits until those before him have their answers.

The rule here: it belongs to nobody, so that a stream may be left in another task than it was entered in; but whoever
waits for himself, or in another event loop, is told so instead of waiting for ever.
"""

from __future__ import annotations

import asyncio
import contextlib
from contextvars import ContextVar
from typing import TYPE_CHECKING

import anyio

if TYPE_CHECKING:
    from collections.abc import Generator

__all__ = ["TurnLock"]

# Whose answers wait for the tool that runs here.
_awaited: ContextVar[frozenset[TurnLock]] = ContextVar("penstock_awaited", default=frozenset())


class TurnLock:
    """Lets one in at a time, in the order in which they came."""

    __slots__ = ("_inside", "_loop", "_present", "_semaphore")

    def __init__(self) -> None:
        self._semaphore = anyio.Semaphore(1, max_value=1)
        # Those inside or waiting, and where they are.
        self._present = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        # The task itself: the id of one that is over may be another's by now.
        self._inside: asyncio.Task[object] | None = None

    def __repr__(self) -> str:
        return f"<TurnLock {'busy' if self.busy else 'free'}>"

    @property
    def busy(self) -> bool:
        """Whether somebody is inside."""
        return self._inside is not None

    async def enter(self) -> None:
        """Wait for one's turn.

        Raises:
            RuntimeError: This task is inside already, or a tool that is called by who is inside, or another event loop.
        """
        task = asyncio.current_task()
        if self in _awaited.get():
            raise RuntimeError("a tool can't ask in the conversation that waits for its result; fork it first")
        if self.busy and task is self._inside:
            raise RuntimeError("this task is still in a stream of the same conversation; leave its block first")
        loop = asyncio.get_running_loop()
        if self._present and loop is not self._loop:
            raise RuntimeError("a conversation is being used in another event loop; one at a time can use it")
        self._loop = loop
        self._present += 1
        try:
            await self._semaphore.acquire()
        except BaseException:
            self._present -= 1
            raise
        self._inside = task

    def leave(self) -> None:
        """Let the next one in."""
        self._inside = None
        self._present -= 1
        self._semaphore.release()

    @contextlib.contextmanager
    def awaiting(self) -> Generator[None]:
        """Have what runs inside the block refused entrance, because whoever is inside waits for it."""
        token = _awaited.set(_awaited.get() | {self})
        try:
            yield
        finally:
            _awaited.reset(token)
