"""What pictures and documents are given as, and how their bytes are had.

The rule here: what stays where it is (a URL, a file of the Files API) is never fetched; what is read is read once, in
a worker thread, and never further than its bound. Errors show paths, never content.
"""

from __future__ import annotations

import base64
import re
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeAlias, cast
from urllib.parse import unquote

from penstock.errors import InvalidImage

if TYPE_CHECKING:
    import os

__all__ = ["Remote", "encoded", "forgiving_base64", "mebibytes", "read", "remote_source"]

Remote: TypeAlias = "dict[str, str]"

_URL: Final = re.compile(r"https?://", re.IGNORECASE)
_FILE_ID: Final = re.compile(r"file_[A-Za-z0-9_-]+")
_DATA_URL: Final = re.compile(r"\s{0,100}data:[^,]{0,200};[ ]{0,10}base64[ ]{0,10},", re.IGNORECASE)
_SPACE: Final = re.compile(r"[\t\n\f\r ]+")
# No system takes longer paths; longer text is content that was given in the wrong place.
_LONGEST_PATH: Final = 4_096
_NO_PATH: Final = re.compile(r"[\0\r\n]")
# A multiple of 3, so that the pieces join; small, because encoding one holds the interpreter's lock.
_PIECE: Final = 3 * 256 * 1024
_MEBIBYTE: Final = 1024 * 1024


def remote_source(given: object) -> Remote | None:
    """Return the source of what the API fetches by itself, a URL or a file id; `None` for anything else.

    Example:
        >>> remote_source("https://example.com/cat.png")
        {'type': 'url', 'url': 'https://example.com/cat.png'}
        >>> remote_source("file_011CNha8iCJcU1wXNR6q4V8w")
        {'type': 'file', 'file_id': 'file_011CNha8iCJcU1wXNR6q4V8w'}
        >>> remote_source("cat.png")
    """
    if not isinstance(given, str):
        return None
    if _URL.match(given):
        return {"type": "url", "url": given}
    if _FILE_ID.fullmatch(given):
        return {"type": "file", "file_id": given}
    return None


def read(given: object, *, most: int, what: str) -> bytes:
    """Return the bytes of a path, of a `data:` URL, or of bytes; blocks, so it belongs in a worker thread.

    Args:
        given: A path, text or bytes.
        most: Bytes that it may have.
        what: What it should be, for the message of an error.

    Raises:
        OSError: A file can't be read, e.g. because there is none.
        InvalidImage: It is too large, or is no path that could hold a file.
        TypeError: It is something else.
    """
    if isinstance(given, bytes | bytearray | memoryview):
        view = memoryview(cast("bytes", given))
        if view.nbytes > most:
            raise InvalidImage(_too_large(view.nbytes, most))
        return given if isinstance(given, bytes) else view.tobytes()
    if isinstance(given, str):
        if found := _DATA_URL.match(given):
            return _decoded(given, found.end(), most)
        if len(given) > _LONGEST_PATH or _NO_PATH.search(given):
            raise InvalidImage(f"text of {len(given)} characters is no path, URL or file id of {what}")
    return _read_file(Path(cast("str | os.PathLike[str]", given)), most)


def _read_file(path: Path, most: int) -> bytes:
    # Looked at before it is opened: a pipe could be waited for without end.
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        kind = "a directory" if stat.S_ISDIR(found.st_mode) else "no regular file"
        raise InvalidImage(f"{path} is {kind}")
    if found.st_size > most:
        raise InvalidImage(f"{path}: {_too_large(found.st_size, most)}")
    with path.open("rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise InvalidImage(f"{path} grew while it was read, beyond {mebibytes(most)}")
    return data


def _decoded(url: str, start: int, most: int) -> bytes:
    size = (len(url) - start) // 4 * 3
    # Percent signs and line breaks make it longer than what it holds, but hardly ever by more than a third.
    if size > 2 * most + 2:
        raise InvalidImage(_too_large(size, most))
    try:
        data = forgiving_base64(url[start:])
    except ValueError:
        raise InvalidImage("the data URL holds no valid base64") from None
    if len(data) > most:
        raise InvalidImage(_too_large(len(data), most))
    return data


def forgiving_base64(text: str) -> bytes:
    r"""Decode base64 as browsers do: with line breaks, percent signs of a URL, and without padding.

    Source: https://infra.spec.whatwg.org/#forgiving-base64-decode

    Raises:
        ValueError: It is none.

    Example:
        >>> forgiving_base64("cGVu\r\n c3RvY2s"), forgiving_base64("cGVuc3RvY2s%3D")
        (b'penstock', b'penstock')
    """
    found = _SPACE.sub("", unquote(text) if "%" in text else text)
    if len(found) % 4 == 0 and found.endswith("="):
        found = found[:-2] if found.endswith("==") else found[:-1]
    if "=" in found:
        raise ValueError("no base64")
    return base64.b64decode(found + "=" * (-len(found) % 4), validate=True)


def _too_large(size: int, most: int) -> str:
    return f"{mebibytes(size)} are more than the {mebibytes(most)} that are read"


def mebibytes(size: int) -> str:
    """Return a number of bytes for people to read.

    Example:
        >>> mebibytes(5_000_000), mebibytes(312)
        ('4.8 MiB', '312 bytes')
    """
    return f"{size} bytes" if size < _MEBIBYTE // 10 else f"{size / _MEBIBYTE:.1f} MiB"


def encoded(data: bytes) -> str:
    """Return `data` in base64, in steps between which other threads may run.

    Example:
        >>> encoded(b"penstock")
        'cGVuc3RvY2s='
    """
    view = memoryview(data)
    pieces = (base64.b64encode(view[at : at + _PIECE]).decode("ascii") for at in range(0, len(view), _PIECE))
    return "".join(pieces)
