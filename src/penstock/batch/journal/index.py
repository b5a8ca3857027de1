"""What a journal holds, in memory: where the line of each item begins, and what it says.

The rule here: an item has one line that counts. It is the last one, except that no later failure replaces an answer.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from penstock.batch.journal.digests import DigestMap
from penstock.batch.journal.lines import Line, State, is_ours, is_torn, read_line
from penstock.errors import JournalError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from penstock.batch.journal.file import JournalFile

__all__ = ["Entry", "JournalIndex"]

_logger: Final = logging.getLogger("penstock")
_STATE_BITS: Final = 2
_STATE_MASK: Final = (1 << _STATE_BITS) - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """What a journal holds of an item.

    Attributes:
        state: What became of it.
        start: Where its line begins, in bytes.
        request: Digest of its request as a number; 0 if the line tells none.
    """

    state: State
    start: int
    request: int

    @property
    def ok(self) -> bool:
        """Whether it was answered."""
        return self.state is State.ANSWERED


class JournalIndex:
    """The items of a journal, at about 36 bytes each.

    Attributes:
        answered: Items that are answered.
        failed: Items that failed.
        superseded: Lines that no longer count.
        damaged: Where the lines begin that can't be read; whose they were, nobody knows.
    """

    def __init__(self) -> None:
        self.answered = self.failed = self.superseded = 0
        self.damaged: set[int] = set()
        self._places = DigestMap()
        self._any = False

    def __repr__(self) -> str:
        return f"<JournalIndex {self.answered} answered, {self.failed} failed, {self.superseded} lines superseded>"

    def load(self, file: JournalFile) -> int:
        """Take in every line of a file; a torn last one is cut off, and in a journal damaged ones are passed over.

        Returns:
            Length of what was cut off, in bytes.

        Raises:
            JournalError: A line is no result, in a file of which nothing shows that it is a journal; it is as it was.
        """
        end, raw, ours, first = 0, b"\n", False, ""
        for number, (start, raw) in enumerate(file.lines(), 1):
            ours = ours or is_ours(raw)
            try:
                line = read_line(raw)
            except ValueError as error:
                if not raw.endswith(b"\n") and is_torn(raw):
                    break
                line, first = None, first or f"line {number} {error}"
                self.damaged.add(start)
            if line is not None:
                self.take(line, start)
            end = start + len(raw)
        if self.damaged and not ours:
            raise JournalError(str(file.path), f"{first}. Nothing was changed; mend or remove that line")
        if self.damaged:
            _logger.warning(
                "journal %s: %s. What can't be read (%d lines) is asked again", file.path, first, len(self.damaged)
            )
        return self._mended(file, end, raw)

    def _mended(self, file: JournalFile, end: int, last: bytes) -> int:
        """Have the file end with a whole line; return what is cut off for that, in bytes."""
        if end < file.size:
            file.cut(end)
            _logger.warning("journal %s: cut off a torn last line of %d bytes", file.path, len(last))
            return len(last)
        if not last.endswith(b"\n"):
            file.append(b"\n")
        return 0

    def take(self, line: Line, start: int) -> None:
        """Take in a line that begins at `start`."""
        known = self.get(line.custom_id)
        if known is not None:
            self.superseded += 1
            if known.ok and line.state is not State.ANSWERED:
                return
            self._count(known.state, -1)
        self._any = True
        self._count(line.state, 1)
        self._places.put(line.custom_id, line.request, start << _STATE_BITS | line.state)

    def take_new(self, line: Line, start: int) -> None:
        """Take in a line that was written now; of items that had none before, only the number is kept."""
        if self._any and self._places.get(line.custom_id) is not None:
            self.take(line, start)
        else:
            self._count(line.state, 1)

    def _count(self, state: State, by: int) -> None:
        self.answered += by * (state is State.ANSWERED)
        self.failed += by * (state is State.FAILED)

    def get(self, custom_id: str) -> Entry | None:
        """Return what is known of an item."""
        known = self._places.get(custom_id) if self._any else None
        if known is None:
            return None
        request, place = known
        return Entry(state=State(place & _STATE_MASK), start=place >> _STATE_BITS, request=request)

    def current(self, file: JournalFile) -> Iterator[bytes]:
        """Return the lines that count.

        Raises:
            JournalError: One was changed since it was read, or can't be.
        """
        for start, raw in file.lines():
            if start in self.damaged:
                continue
            try:
                line = read_line(raw)
            except ValueError as error:
                raise file.changed(f"the line at byte {start} {error}") from None
            known = None if line is None else self.get(line.custom_id)
            if line is not None and (known is None or known.start == start):
                yield raw
