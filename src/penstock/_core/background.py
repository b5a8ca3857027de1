"""Work that outlives the call that caused it: closing bodies, reading on, writing out.

The rule here: `put` is synchronous, because give-backs are; the work itself runs in the one supervised task of a
client, and its errors become events and never reach a caller.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

import anyio

from penstock.events import BackgroundFailed, Observers

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from anyio.abc import TaskGroup

__all__ = ["Background"]


class Background:
    """A task group that a client keeps in a task of its own, so that different tasks may enter and leave the client.

    Args:
        observers: Told of work that raised.
    """

    __slots__ = ("_loop", "_news", "_observers", "_pending", "_put", "_running")

    def __init__(self, observers: Observers) -> None:
        self._observers = observers
        self._loop: asyncio.AbstractEventLoop | None = None
        self._news = asyncio.Event()
        self._put: deque[Callable[[], Awaitable[object]]] = deque()
        self._pending = 0
        self._running = False

    def __repr__(self) -> str:
        return f"<Background {'running' if self._running else 'idle'}, {self._pending} pending>"

    @property
    def running(self) -> bool:
        """Whether work that is put now will be done."""
        return self._running

    async def run(self, stop: anyio.Event, *, started: anyio.Event, grace_s: float) -> None:
        """Do the work until `stop`, then what is left of it for at most `grace_s` seconds."""
        async with anyio.create_task_group() as group:
            self._loop = asyncio.get_running_loop()
            self._running = True
            group.start_soon(self._start_what_is_put, group)
            started.set()
            try:
                await stop.wait()
            finally:
                self._running = False
            self._news.set()
            group.cancel_scope.deadline = anyio.current_time() + grace_s

    async def _start_what_is_put(self, group: TaskGroup) -> None:
        """Start work from a task, because tasks can't be started from everywhere that the garbage collector runs."""
        while self._running or self._put:
            await self._news.wait()
            self._news.clear()
            while self._put:
                group.start_soon(self._do, self._put.popleft())

    def put(self, work: Callable[[], Awaitable[object]]) -> bool:
        """Have `work` done soon; safe from any thread, because the garbage collector may call it from any.

        Returns:
            False if the client is closed, so that the work won't be done.
        """
        loop = self._loop
        if not self._running or loop is None or loop.is_closed():
            return False
        try:
            here = asyncio.get_running_loop() is loop
        except RuntimeError:
            here = False
        if here:
            self._take(work)
        else:
            loop.call_soon_threadsafe(self._take, work)
        return True

    def _take(self, work: Callable[[], Awaitable[object]]) -> None:
        if not self._running:
            # It stopped before the loop came round to what another thread had put.
            self._observers.emit(BackgroundFailed(error_type="ClientClosed"))
            return
        self._pending += 1
        self._put.append(work)
        self._news.set()

    async def _do(self, work: Callable[[], Awaitable[object]]) -> None:
        try:
            await work()
        except Exception as error:  # noqa: BLE001 - reported; background work must not end the client
            self._observers.emit(BackgroundFailed(error_type=type(error).__name__))
        finally:
            self._pending -= 1
