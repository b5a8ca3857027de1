"""Results on the standard output, a line each.

The rule here: a line is out before the next result is taken, so that a slow reader slows the run down; nobody else
waits for it, because a thread does.
"""

from __future__ import annotations

import os
import selectors
import sys
from typing import TYPE_CHECKING

from penstock.batch.journal.lines import write_line
from penstock.cli.run.pipes import wait_for
from penstock.cli.run.thread import OneThread

if TYPE_CHECKING:
    from penstock.batch.result import FanOutResult

__all__ = ["Output", "OutputFailed"]


class OutputFailed(Exception):
    """The standard output can't be written.

    Attributes:
        left: Whether that is because whoever read it has left.
    """

    def __init__(self, error: OSError) -> None:
        super().__init__(f"the standard output can't be written: {error.strerror or error}")
        self.left = isinstance(error, BrokenPipeError)


class Output:
    """The standard output, without a buffer, so that no lock is held where a thread waits for its reader."""

    def __init__(self) -> None:
        self._descriptor = sys.stdout.fileno()
        self._thread = OneThread("penstock-output")

    def __repr__(self) -> str:
        return f"<Output to {self._descriptor}>"

    def close(self) -> None:
        """Let go of the thread."""
        self._thread.close()

    async def write(self, result: FanOutResult) -> None:
        """Write a result as a line of a result file.

        Raises:
            OutputFailed: It can't be written.
        """
        line = write_line(result, request=None, params=None)
        await self._thread.run(lambda: self._write(line))

    def _write(self, line: bytes) -> None:
        left = memoryview(line)
        while left:
            try:
                left = left[os.write(self._descriptor, left) :]
            except BlockingIOError:
                wait_for(self._descriptor, selectors.EVENT_WRITE)
            except OSError as error:
                raise OutputFailed(error) from None
