"""When a client may be used, and how it ends.

The rule here: whatever outlives a call runs in one supervised task, so that a client may be entered and left in
different tasks, which no task group allows. Closing is that task's work: it finishes even if the one who closes is
cancelled.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import anyio

from penstock.errors import ClientClosed

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from penstock._core.background import Background
    from penstock.guards.record import Record

__all__ = ["Lifetime"]

# How long what is left in the background may take once every call has ended, or been cancelled.
_DRAIN_S = 5.0
_CANCELLED_WITHIN_S = 1.0


class Lifetime:
    """The life of one client, in one event loop.

    Args:
        background: Does the work that outlives calls.
        close_timeout_s: Seconds that calls under way may take before they are cancelled.

    Attributes:
        state: `not entered`, `open` or `closed`.
    """

    def __init__(self, background: Background, *, close_timeout_s: float) -> None:
        self.state = "not entered"
        self._background = background
        self._close_timeout_s = close_timeout_s
        self._loop: asyncio.AbstractEventLoop | None = None
        self._supervisor: asyncio.Task[None] | None = None
        self._stop = anyio.Event()
        self._finished = anyio.Event()

    def __repr__(self) -> str:
        return f"<Lifetime {self.state}>"

    def check_open(self) -> None:
        """Let a request through only while the client is open, in its own event loop.

        Raises:
            ClientClosed: It is not.
        """
        if self.state != "open":
            raise ClientClosed(f"the client is {self.state}; use it inside `async with Client(…) as claude:`")
        self._check_loop()

    def check_new(self) -> None:
        """Let a client be entered once.

        Raises:
            ClientClosed: It was.
        """
        if self.state != "not entered":
            raise ClientClosed(f"this client is {self.state}; make a new one")

    async def begin(self, record: Record, *, close: Callable[[], Awaitable[object]] | None) -> None:
        """Open the client, in the running event loop.

        Args:
            record: Knows the calls under way.
            close: Closes what the client opened itself, at the end.
        """
        self.check_new()
        self._loop = asyncio.get_running_loop()
        started = anyio.Event()
        # The one task that is in no task group: entry and exit may happen in different tasks.
        self._supervisor = self._loop.create_task(self._supervise(record, close, started), name="penstock-client")
        self.state = "open"
        try:
            await started.wait()
        except BaseException:
            # Whoever is cancelled while entering never leaves.
            self._end()
            raise

    async def close(self) -> None:
        """Refuse new calls, let those under way end, cancel the rest, write what is left; then return.

        Raises:
            ClientClosed: It is called in another event loop than the client's.
        """
        if self.state == "not entered":
            self.state = "closed"
            return
        if self.state == "closed" and self._finished.is_set():
            return
        self._check_loop()
        self._end()
        await self._finished.wait()

    def _end(self) -> None:
        self.state = "closed"
        self._stop.set()

    async def _supervise(
        self, record: Record, close: Callable[[], Awaitable[object]] | None, started: anyio.Event
    ) -> None:
        try:
            async with anyio.create_task_group() as group:
                drained = anyio.Event()
                group.start_soon(lambda: self._background.run(drained, started=started, grace_s=_DRAIN_S))
                await self._stop.wait()
                await self._end_calls(record)
                drained.set()
        finally:
            self.state = "closed"
            try:
                # Also when the event loop cancels all its tasks because it ends.
                if close is not None:
                    await close()
            finally:
                self._finished.set()

    async def _end_calls(self, record: Record) -> None:
        if await record.idle(within_s=self._close_timeout_s):
            return
        for call in record.live:
            call.close()
        await record.idle(within_s=_CANCELLED_WITHIN_S)

    def _check_loop(self) -> None:
        if self._loop is not _running_loop():
            raise ClientClosed("this client belongs to another event loop; make one client for each loop")


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
