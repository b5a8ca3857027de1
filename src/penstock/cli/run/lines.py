r"""Lines of an input: UTF-8 text, wherever it comes from.

The rule here: memory holds one line and never more than `LONGEST`; what is wrong with the input is told by the number
of its line, counted from 1, and never quoted.
"""

from __future__ import annotations

import os
import stat
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

from penstock.cli.run.pipes import Patient

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["BadInput", "Input", "read_lines"]

# What the API takes as a request.
LONGEST: Final = 32 * 1024 * 1024
_PIECE: Final = 65_536
_BOM: Final = b"\xef\xbb\xbf"
_UTF_16: Final = (b"\xff\xfe", b"\xfe\xff")
_STANDARD: Final = "-"


class Reader(Protocol):
    """What lines are read from: a file without a buffer, which waits until something is there."""

    def read(self, size: int, /) -> bytes:
        """Return some bytes, `size` or fewer; none at the end only."""
        ...


class BadInput(Exception):
    """The input can't be used.

    Attributes:
        reason: What is wrong, and what to do.
        line: Number of the line, from 1; `None` if it is not about one.
        source: Name of the input; empty as long as nobody has told.
    """

    def __init__(self, reason: str, *, line: int | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.line = line
        self.source = ""

    def __str__(self) -> str:
        """Tell the place and the reason."""
        place = ", ".join(part for part in (self.source, "" if self.line is None else f"line {self.line}") if part)
        return f"{place}: {self.reason}" if place else self.reason


@dataclass(slots=True, kw_only=True)
class Input:
    """Where lines come from.

    Attributes:
        name: What messages call it.
        suffix: The end of its name, which tells its format; empty if it has none.
        file: What is read, without a buffer, so that no lock is held where a thread waits for a pipe.
        again: Whether it can be read more than once.
    """

    name: str
    suffix: str
    file: Patient = field(repr=False)
    again: bool

    @classmethod
    def open(cls, path: str) -> Input:
        """Open a file, or the standard input for `-`.

        Raises:
            OSError: It can't be opened.
        """
        if path != _STANDARD:
            file, name, suffix = Patient(path), path, Path(path).suffix.lower()
        elif sys.stdin is None:
            raise OSError("there is none")
        else:
            file, name, suffix = Patient(sys.stdin.fileno(), closefd=False), "standard input", ""
        return cls(name=name, suffix=suffix, file=file, again=stat.S_ISREG(os.fstat(file.fileno()).st_mode))

    def lines(self) -> Iterator[tuple[int, str]]:
        """Give each line and its number; a file is read from its beginning each time.

        Raises:
            BadInput: A line is not UTF-8, or too long; or reading failed.
        """
        if self.again:
            self.file.seek(0)
        return read_lines(self.file)

    def close(self) -> None:
        """Close it; the standard input stays open."""
        self.file.close()


def read_lines(file: Reader) -> Iterator[tuple[int, str]]:
    r"""Give each line of a binary file, without the line feed at its end, and its number.

    Raises:
        BadInput: A line is not UTF-8, or too long; or reading failed.

    Example:
        >>> import io
        >>> list(read_lines(io.BytesIO(b"one\ntwo")))
        [(1, 'one'), (2, 'two')]
    """
    for number, raw in enumerate(_raw_lines(file), 1):
        if number == 1 and raw.startswith(_UTF_16):
            raise BadInput("UTF-16, not UTF-8: save it as UTF-8, or put `iconv -f UTF-16 -t UTF-8` before", line=1)
        # Every file begins with one that was saved so, and `cat` puts the second's into the middle.
        yield number, _decoded(raw.removeprefix(_BOM), number)


def _raw_lines(file: Reader) -> Iterator[bytes]:
    parts: list[bytes] = []
    size = number = 0
    while piece := _piece(file, number + 1):
        *ends, beginning = piece.split(b"\n")
        for end in ends:
            number += 1
            _check(size + len(end), number)
            yield b"".join((*parts, end))
            parts.clear()
            size = 0
        parts.append(beginning)
        size += len(beginning)
        _check(size, number + 1)
    if size:
        yield b"".join(parts)


def _piece(file: Reader, line: int) -> bytes:
    try:
        return file.read(_PIECE)
    except OSError as error:
        raise BadInput(f"can't be read: {error.strerror or error}", line=line) from None


def _check(size: int, number: int) -> None:
    if size > LONGEST:
        raise BadInput("longer than the 32 MB that the API takes for a request", line=number)


def _decoded(raw: bytes, number: int) -> str:
    if b"\0" in raw:
        raise BadInput("holds zero bytes: it is UTF-16 or no text at all; save it as UTF-8", line=number)
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise BadInput(
            f"not UTF-8: byte 0x{raw[error.start]:02x} at place {error.start + 1}; save the whole as UTF-8", line=number
        ) from None
