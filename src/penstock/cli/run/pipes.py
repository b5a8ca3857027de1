"""Pipes and terminals that don't wait.

The rule here: a descriptor that answers 'not now' is waited for, and never changed. Whether it blocks (`O_NONBLOCK`) is
a property of what is open, not of who holds it: it is shared with the programs before and behind us, which set it or
rely on it, and it may change at any time.
"""

from __future__ import annotations

import io
import selectors
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Generator

    from _typeshed import ReadableBuffer

__all__ = ["Patient", "patient_stderr", "wait_for"]


def wait_for(descriptor: int, event: int) -> None:
    """Wait in this thread until a descriptor can be read or written, or its other end is gone.

    Args:
        descriptor: Which.
        event: `selectors.EVENT_READ` or `EVENT_WRITE`.
    """
    with selectors.DefaultSelector() as selector:
        selector.register(descriptor, event)
        selector.select()


class Patient(io.FileIO):
    """A file without a buffer that waits as if it blocked.

    A plain one gives `None` where it would have to wait, which looks like its end.
    """

    def read(self, size: int | None = -1, /) -> bytes:
        """Read what is there, up to `size` bytes, as soon as something is; nothing at the end."""
        while (data := super().read(size)) is None:  # pyright: ignore[reportUnnecessaryComparison] - it may be
            wait_for(self.fileno(), selectors.EVENT_READ)
        return data

    def write(self, data: ReadableBuffer, /) -> int:
        """Write some of the data, as soon as there is room; return how much."""
        while (written := super().write(data)) is None:  # pyright: ignore[reportUnnecessaryComparison] - it may be
            wait_for(self.fileno(), selectors.EVENT_WRITE)
        return written


class _Told(Patient):
    """A file for what is told on the side; that nobody reads it is no failure."""

    def write(self, data: ReadableBuffer, /) -> int:
        try:
            return super().write(data)
        except OSError:
            return memoryview(data).nbytes


@contextmanager
def patient_stderr() -> Generator[None]:
    """Have whatever is told on the standard error in the block be waited for, and harmless where nobody reads it."""
    given = sys.stderr
    # With PYTHONUNBUFFERED, the buffer is the file itself.
    buffer = getattr(given, "buffer", None)
    # What isn't a file (a console of Windows, a stand-in) waits by itself.
    if given is None or not isinstance(getattr(buffer, "raw", buffer), io.FileIO):
        yield
        return
    told = io.BufferedWriter(_Told(given.fileno(), "w", closefd=False))
    patient = io.TextIOWrapper(told, encoding=given.encoding, errors=given.errors, line_buffering=True)
    sys.stderr = patient
    try:
        yield
    finally:
        patient.flush()
        sys.stderr = given
