"""What a run must remember besides its results, in a file beside the journal's.

The rule here: a note is on the disk when it is made. It is JSON of any kind, one object a line, with a checksum of
itself; notes are rare. The first line says whose file it is: one that is somebody else's is never touched.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, Final, cast

from penstock.batch.journal.checksum import CHECKSUM, is_checked, with_checksum
from penstock.batch.journal.file import JournalFile
from penstock.errors import JournalError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = ["JournalNotes"]

_HEADER: Final = with_checksum('{"penstock":"notes of a journal",', "}")
# What notes of before begin with, which have no header.
_BEFORE: Final = b'{"message_batch"'
# Something else in the place of the newline.
_MORE: Final = re.compile(rb'"crc32":"[0-9a-f]{8}"}[^\0]')


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
            self._open()

    def __repr__(self) -> str:
        return f"<JournalNotes {self._path.name}, {len(self.all)} notes>"

    def _exists(self) -> bool:
        try:
            return self._path.exists()
        except OSError as error:
            raise JournalError(str(self._path), f"{error.strerror or error}") from error

    def _open(self) -> JournalFile:
        self._file = JournalFile(self._path)
        try:
            self._load(self._file)
        except BaseException:
            self.close()
            raise
        return self._file

    def _load(self, file: JournalFile) -> None:
        lines = [*file.lines()]
        first = lines[0][1] if lines else b""
        if not first.startswith((_HEADER, _BEFORE)) and not _begins(first):
            reason = "it is there, and not ours: give the journal another name, or move that file"
            raise JournalError(str(self._path), reason)
        checked = first == _HEADER
        for number, (start, raw) in enumerate(lines, 1):
            if not raw.endswith(b"\n") and not _MORE.search(raw):
                # It was never acknowledged.
                file.cut(start)
            elif raw != _HEADER:
                note = self._read(raw, number, checked=checked)
                # Lines of before stand before those with a checksum.
                checked = checked or CHECKSUM in note
                note.pop(CHECKSUM, None)
                self.all.append(note)

    def _read(self, raw: bytes, number: int, *, checked: bool) -> dict[str, Any]:
        try:
            sound = is_checked(raw) or not checked
            note: object = json.loads(raw)
        except ValueError:
            sound, note = False, None
        if not isinstance(note, dict) or not sound:
            reason = f"line {number} is damaged. Mend or remove that line: a batch that it tells of is paid"
            raise JournalError(str(self._path), reason)
        return cast("dict[str, Any]", note)

    def add(self, note: Mapping[str, Any]) -> None:
        """Remember something; it is on the disk when this returns.

        Raises:
            JournalError: It can't be written, or the file is not ours.
        """
        encoded = json.dumps(dict(note))
        line = with_checksum(f"{encoded.removesuffix('}')}{',' if note else ''}", "}")
        file = self._file or self._open()
        file.append(line if file.size else _HEADER + line)
        file.sync()
        self.all.append(json.loads(encoded))

    def close(self) -> None:
        """Close their file."""
        if self._file is not None:
            self._file.close()
            self._file = None


def _begins(first: bytes) -> bool:
    """Whether a first line is what is left of one that was never written to its end."""
    return any(line.startswith(first.rstrip(b"\0")) for line in (_HEADER, _BEFORE))
