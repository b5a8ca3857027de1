"""What a run must remember besides its results, in a file beside the journal's.

The rule here: a note is on the disk when it is made. It is JSON of any kind, one object a line; notes are rare.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, cast

from penstock.batch.journal.file import JournalFile
from penstock.errors import JournalError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = ["JournalNotes"]


class JournalNotes:
    """The notes of a journal.

    Args:
        path: Of their file; made at the first note.

    Attributes:
        all: Every note, in order.

    Raises:
        JournalError: They can't be read.
    """

    def __init__(self, path: Path) -> None:
        self.all: list[dict[str, Any]] = []
        self._path = path
        self._file: JournalFile | None = None
        if self._exists():
            self._file = JournalFile(path)
            try:
                self._load(self._file)
            except BaseException:
                self.close()
                raise

    def __repr__(self) -> str:
        return f"<JournalNotes {self._path.name}, {len(self.all)} notes>"

    def _exists(self) -> bool:
        try:
            return self._path.exists()
        except OSError as error:
            raise JournalError(str(self._path), f"{error.strerror or error}") from error

    def _load(self, file: JournalFile) -> None:
        for number, (start, raw) in enumerate(file.lines(), 1):
            if not raw.endswith(b"\n"):
                # It was never acknowledged.
                file.cut(start)
                return
            try:
                note: object = json.loads(raw)
            except ValueError:
                note = None
            if not isinstance(note, dict):
                raise JournalError(str(self._path), f"line {number} is no JSON object. Mend or remove that line")
            self.all.append(cast("dict[str, Any]", note))

    def add(self, note: Mapping[str, Any]) -> None:
        """Remember something; it is on the disk when this returns.

        Raises:
            JournalError: It can't be written.
        """
        line = json.dumps(dict(note)).encode() + b"\n"
        if self._file is None:
            self._file = JournalFile(self._path)
        self._file.append(line)
        self._file.sync()
        self.all.append(json.loads(line))

    def close(self) -> None:
        """Close their file."""
        if self._file is not None:
            self._file.close()
            self._file = None
