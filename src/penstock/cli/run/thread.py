"""A thread for calls that may block for good: reading from a pipe, writing into one.

The rule here: the process never waits for it to end, and no lock of the interpreter is held while it blocks.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from typing import TYPE_CHECKING, Any, TypeVar, cast

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["OneThread"]

T = TypeVar("T")


class OneThread:
    """Runs one call after the other, in the order in which they were given.

    Args:
        name: Of the thread.
    """

    def __init__(self, name: str) -> None:
        self._calls: queue.SimpleQueue[tuple[Callable[[], Any], asyncio.Future[Any]] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._serve, name=name, daemon=True)
        self._thread.start()

    def __repr__(self) -> str:
        return f"<OneThread {self._thread.name}>"

    async def run(self, call: Callable[[], T]) -> T:
        """Return what a call returns, or raise what it raises; a call that is no longer waited for goes on."""
        future = asyncio.get_running_loop().create_future()
        self._calls.put((call, future))
        return cast("T", await future)

    def close(self) -> None:
        """End the thread after the last call."""
        self._calls.put(None)

    def _serve(self) -> None:
        while (item := self._calls.get()) is not None:
            call, future = item
            try:
                value = call()
            except Exception as error:  # noqa: BLE001 - raised to the one who waits
                _settle(future, future.set_exception, error)
            else:
                _settle(future, future.set_result, value)


def _settle(future: asyncio.Future[Any], settle: Callable[[Any], None], outcome: object) -> None:
    def settle_if_awaited() -> None:
        if not future.done():
            settle(outcome)

    # A loop that is closed has nobody left who waits.
    with contextlib.suppress(RuntimeError):
        future.get_loop().call_soon_threadsafe(settle_if_awaited)
