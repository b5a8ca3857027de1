"""What can be told of a PDF without reading it: whether it is encrypted, and how many pages it has.

The rule here: a PDF is refused only for what is certain. It is looked through in steps, so that the interpreter's lock
is never held for long; what is unpacked of it, and read for that, is bounded, whether it can be unpacked or not.
Everything here blocks: it belongs in a worker thread.
"""

from __future__ import annotations

import re
import zlib
from bisect import bisect_right
from itertools import islice
from typing import TYPE_CHECKING, Final

from penstock.errors import InvalidImage

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["check_pdf", "is_encrypted", "pages_of"]

_PAGE: Final = re.compile(rb"/Type\s{0,8}/Page(?![A-Za-z])")
_OBJECTS: Final = re.compile(rb"/Type\s{0,8}/ObjStm(?![A-Za-z])")
_ENCRYPT: Final = re.compile(rb"/Encrypt\s{0,8}(?:\d{1,10}\s{1,8}\d{1,5}\s{1,8}R|<<)")
_START: Final = re.compile(rb"startxref\s{1,8}(\d{1,12})")
_NUMBER: Final = re.compile(rb"(\d{1,10})\s{1,8}\d{1,5}\s{1,8}$")
_FIRST: Final = re.compile(rb"/First\s{1,8}(\d{1,10})")
_BODY: Final = re.compile(rb"stream\r?\n")
_STEP: Final = 512 * 1024
_OVERLAP: Final = 64
# An object's dictionary, as far as it is looked at.
_DICTIONARY: Final = 4_096
_TAIL: Final = 2_048
# Bounds against what is made to cost: no PDF that fits into a request comes near them.
_PIECE: Final = 16 * 1024
_TABLE: Final = 64 * 1024
_MOST_TABLES: Final = 2 * 1024 * 1024
_MOST_WORK: Final = 64 * 1024 * 1024
_MOST_PLACES: Final = 50_000
_MOST_STREAMS: Final = 10_000


def check_pdf(data: bytes, *, max_pages: int) -> None:
    """Raise where the API would refuse a PDF.

    Args:
        data: The PDF.
        max_pages: Pages that it may have.

    Raises:
        InvalidImage: It is encrypted, or has more pages.
    """
    if is_encrypted(data):
        raise InvalidImage("the PDF is encrypted, which the API can't read; save it without a password")
    pages = pages_of(data)
    if pages > max_pages:
        raise InvalidImage(f"the PDF has {pages} pages, more than the {max_pages} of max_pages; split it")


def is_encrypted(data: bytes) -> bool:
    """Whether a PDF is encrypted, with or without a password: its trailer says so.

    Example:
        >>> is_encrypted(b"%PDF-1.7 trailer << /Encrypt 5 0 R >> startxref 9 %%EOF")
        True
    """
    tail = data[-_TAIL:]
    starts = [int(found.group(1)) for found in _START.finditer(tail)]
    # The trailer stands where the last cross-reference begins: before its stream, or behind its table.
    places = [tail, *(data[at : at + _DICTIONARY].partition(b"stream")[0] for at in starts)]
    return any(_ENCRYPT.search(place) for place in places)


def pages_of(data: bytes) -> int:
    """Return how many pages a PDF has, each counted once however often it was changed; 0 where that can't be told.

    Example:
        >>> pages_of(b"%PDF-1.4 4 0 obj << /Type /Page >> endobj 5 0 obj << /Type/Page /Parent 1 0 R >> endobj")
        2
    """
    numbers = {_number_before(data, at) for at in islice(_places(_PAGE, data), _MOST_PLACES)}
    work, tables = _MOST_WORK, _MOST_TABLES
    for at in islice(_places(_OBJECTS, data), _MOST_STREAMS):
        unpacked, done = _unpacked(data, at, work)
        pages = list(islice(_places(_PAGE, unpacked), _MOST_PLACES))
        if pages:
            first = _first(data, at)
            table = unpacked[: min(first, _TABLE, tables)]
            numbers.update(_packed_numbers(pages, first, table))
            tables -= len(table)
        work -= done
        if work <= 0 or len(numbers) > _MOST_PLACES:
            break
    return len(numbers)


def _places(pattern: re.Pattern[bytes], data: bytes) -> Iterator[int]:
    """Give where `pattern` stands, looked for in steps; a place on the border of two may come twice."""
    for start in range(0, len(data), _STEP):
        for found in pattern.finditer(data[start : start + _STEP + _OVERLAP]):
            yield start + found.start()


def _number_before(data: bytes, at: int) -> int:
    """Return the number of the object that `at` is in; a number of its own if there is none in reach."""
    begun = data.rfind(b"obj", max(at - _DICTIONARY, 0), at)
    found = _NUMBER.search(data[max(begun - _OVERLAP, 0) : begun]) if begun >= 0 else None
    return -at if found is None else int(found.group(1))


def _first(data: bytes, at: int) -> int:
    """Return where the first object begins in a stream of objects: behind the table of their numbers."""
    begun = data.rfind(b"obj", max(at - _DICTIONARY, 0), at)
    found = _FIRST.search(data[max(begun, 0) : at + _DICTIONARY].partition(b"stream")[0])
    return 0 if found is None else int(found.group(1))


def _unpacked(data: bytes, at: int, most: int) -> tuple[bytes, int]:
    """Return a stream of objects, and how many bytes were read and made for it, whatever came of that."""
    body = _BODY.search(data, at, at + _DICTIONARY)
    pieces: list[bytes] = []
    packed = zlib.decompressobj()
    place = len(data) if body is None else body.end()
    done = _DICTIONARY
    try:
        while place < len(data) and done < most and not packed.eof:
            done += _PIECE
            pieces.append(packed.decompress(data[place : place + _PIECE], most))
            done += len(pieces[-1])
            place += _PIECE
        done -= len(packed.unused_data)
    except zlib.error:
        # Packed by another method, or nonsense: its pages can't be counted.
        return b"", done
    return b"".join(pieces), done


def _packed_numbers(pages: list[int], first: int, table: bytes) -> Iterator[int]:
    """Give the numbers of the objects that pages stand in, by the table that a stream of objects begins with."""
    words = [int(number) for number in table.split() if number.isdigit() and len(number) < 11]
    numbers, starts = words[::2], words[1::2]
    for at in pages:
        index = bisect_right(starts, at - first) - 1
        yield numbers[index] if index >= 0 else -at
