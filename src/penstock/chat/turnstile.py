"""One at a time, in order: whoever asks in a conversation waits until those before him have their answers.

The rule here: it belongs to nobody, so that a stream may be left in another task than it was entered in; but a task
that waits for itself is told so instead of waiting for ever.
"""

from __future__ import annotations

import anyio

__all__ = ["Turnstile"]


class Turnstile:
    """Lets one in at a time, in the order in which they came."""

    __slots__ = ("_inside", "_semaphore")

    def __init__(self) -> None:
        self._semaphore = anyio.Semaphore(1, max_value=1)
        self._inside: int | None = None

    def __repr__(self) -> str:
        return f"<Turnstile {'busy' if self.busy else 'free'}>"

    @property
    def busy(self) -> bool:
        """Whether somebody is inside."""
        return self._inside is not None

    async def enter(self) -> None:
        """Wait for one's turn.

        Raises:
            RuntimeError: This task is inside already.
        """
        task = anyio.get_current_task().id
        if task == self._inside:
            raise RuntimeError("this task is still in a stream of the same conversation; leave its block first")
        await self._semaphore.acquire()
        self._inside = task

    def leave(self) -> None:
        """Let the next one in."""
        self._inside = None
        self._semaphore.release()
