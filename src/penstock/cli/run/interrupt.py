"""Ctrl-C and SIGTERM while a run is under way.

The rule here: the first one stops the run in order, a second one ends the process at once. What is in a journal is in
the file already, so that neither can lose it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import threading
from typing import TYPE_CHECKING, Final, Self

import anyio

if TYPE_CHECKING:
    from types import FrameType, TracebackType

__all__ = ["Interruptible"]

# Programs that start others pass on a signal that came from the terminal to both.
_SAME_WITHIN_S: Final = 0.5
_SHOW_CURSOR: Final = b"\x1b[?25h"


class Interruptible:
    """Cancels its block at the first signal, from which the block leaves without an exception.

    Attributes:
        code: The exit code that the signal stands for, 130 or 143; 0 if none has come.
    """

    def __init__(self) -> None:
        self.code = 0
        self._first_at = 0.0
        self._scope = anyio.CancelScope()
        self._loop = asyncio.get_running_loop()
        self._before: dict[signal.Signals, object] = {}

    def __repr__(self) -> str:
        return f"<Interruptible, {f'ending with {self.code}' if self.code else 'running'}>"

    def __enter__(self) -> Self:
        """Take the signals over; only the main thread gets any."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.getsignal(number)
                # Has the loop wake up at a signal, whichever thread the system gives it to; on Windows it always does.
                with contextlib.suppress(NotImplementedError):
                    self._loop.add_signal_handler(number, _nothing)
                # Not as a callback of the loop, which may be busy.
                signal.signal(number, self._signalled)
        self._scope.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        """Give the signals back."""
        try:
            return self._scope.__exit__(kind, error, trace)
        finally:
            for number, handler in self._before.items():
                with contextlib.suppress(NotImplementedError):
                    self._loop.remove_signal_handler(number)
                signal.signal(number, handler)  # type: ignore[arg-type]

    def _signalled(self, number: int, _frame: FrameType | None) -> None:
        now = self._loop.time()
        if self.code:
            if now >= self._first_at + _SAME_WITHIN_S:
                _leave(128 + number)
            return
        self.code, self._first_at = 128 + number, now
        self._loop.call_soon_threadsafe(self._scope.cancel)


def _nothing() -> None:
    """Be called."""


def _leave(code: int) -> None:
    """End the process here and now."""
    if sys.stderr is not None and sys.stderr.isatty():
        # A bar has hidden it.
        os.write(sys.stderr.fileno(), _SHOW_CURSOR)
    os._exit(code)
