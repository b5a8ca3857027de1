"""Lines that tell themselves whether they are as they were written.

The rule here: a checksum stands last in its line and is of all that stands before it, so that a line needs no other to
be checked. It finds what disks and copies do to a file, and says nothing of who has written it.
"""

from __future__ import annotations

import re
from typing import Final
from zlib import crc32

__all__ = ["CHECKSUM", "is_checked", "with_checksum"]

CHECKSUM: Final = "crc32"
"""The key that it stands under: 8 hex digits of the CRC-32 that gzip and PNG have."""

_END: Final = re.compile(rb'"crc32":"([0-9a-f]{8})"}{1,2}\s*\Z')
_LONGEST: Final = 40


def with_checksum(line: str, end: str) -> bytes:
    r"""Return a line with its checksum and its newline.

    Args:
        line: A JSON object up to where the checksum goes: what is before it ends with a comma, or with a brace.
        end: The braces that close it.

    Example:
        >>> with_checksum('{"a":1,', "}")
        b'{"a":1,"crc32":"4a77cdcd"}\n'
    """
    raw = line.encode()
    return b'%b"crc32":"%08x"%b\n' % (raw, crc32(raw), end.encode())


def is_checked(raw: bytes) -> bool:
    """Return whether a line has a checksum.

    Raises:
        ValueError: It doesn't fit.
    """
    found = _END.search(raw, max(0, len(raw) - _LONGEST))
    if found is None:
        return False
    if int(found[1], 16) != crc32(memoryview(raw)[: found.start()]):
        raise ValueError("is damaged: its checksum doesn't fit")
    return True
