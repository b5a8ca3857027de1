"""Work that would hold the event loop for too long, in threads of our own.

The rule here: a place is taken until the thread has done its work, also where whoever asked for it is cancelled
meanwhile, because a thread can't be stopped. So there are never more threads at work, nor more of what they hold, than
places.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

import anyio
from anyio.lowlevel import RunVar

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Threads"]

T = TypeVar("T")


class Threads:
    """A few threads for each event loop, for one kind of work.

    Args:
        name: Of the threads.
        most: How many work at once, 1 or more.

    Example:
        >>> anyio.run(Threads("adding", 2).run, lambda: 1 + 1)
        2
    """

    __slots__ = ("_most", "_name", "_pools")

    def __init__(self, name: str, most: int) -> None:
        self._name = name
        self._most = most
        self._pools: RunVar[tuple[anyio.Semaphore, ThreadPoolExecutor]] = RunVar(name)

    def __repr__(self) -> str:
        return f"<Threads {self._name!r}, {self._most} at once>"

    async def run(self, work: Callable[[], T]) -> T:
        """Do `work` in a thread, once one is free, and return what it returns or raise what it raises.

        Who is cancelled while it waits has nothing done; who is cancelled later leaves the thread to end its work.
        """
        places, pool = self._pool()
        loop = asyncio.get_running_loop()
        # Whoever has it first: the thread that begins, or the caller who gives up before.
        begin = threading.Lock()

        def begun() -> T:
            if not begin.acquire(blocking=False):
                raise RuntimeError("given up before it began")
            try:
                return work()
            finally:
                # The loop may be closed by now; then nobody waits for the place.
                with contextlib.suppress(RuntimeError):
                    loop.call_soon_threadsafe(places.release)

        await places.acquire()
        try:
            return await loop.run_in_executor(pool, begun)
        finally:
            if begin.acquire(blocking=False):
                places.release()

    def _pool(self) -> tuple[anyio.Semaphore, ThreadPoolExecutor]:
        found = self._pools.get(None)
        if found is None:
            found = anyio.Semaphore(self._most), ThreadPoolExecutor(self._most, thread_name_prefix=self._name)
            self._pools.set(found)
        return found
