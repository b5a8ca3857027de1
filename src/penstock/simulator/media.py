"""Images and PDFs: what they are, how large, and how many tokens the API counts for them.

An image costs one token for each patch of 28 × 28 pixels, after it was scaled down to what the model sees.
Source: the API's documentation on vision; the sizes below agree with its tables.
"""

from __future__ import annotations

import base64
import binascii
import re
import struct
from functools import lru_cache
from math import ceil
from typing import TYPE_CHECKING

from penstock.simulator.wire import Json, is_object

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["HIGH_RESOLUTION", "STANDARD", "Picture", "image_tokens", "pdf_pages", "pdf_tokens", "picture", "seen_size"]

PATCH = 28
STANDARD = (1568, 1568)
"""(longest edge in pixels, most tokens) of models before 4.7."""
HIGH_RESOLUTION = (2576, 4784)
"""(longest edge in pixels, most tokens) of models from 4.7 on."""
_UNKNOWN_IMAGE = 1_568
_PAGE_TOKENS = 2_000
_HEAD = 256 * 1024
_PDF_PAGE = re.compile(rb"/Type\s*/Page(?![A-Za-z])")

Picture = tuple[str, int, int]
"""(media type, width, height)."""


def image_tokens(block: Json, tier: tuple[int, int]) -> int:
    """Tokens of an image block; images that only have a URL or file id count as a full standard image."""
    found = picture(_data(block))
    return _UNKNOWN_IMAGE if found is None else _tokens(*seen_size(found[1], found[2], *tier))


def pdf_tokens(block: Json) -> int:
    """Tokens of a document block: its text, or a fixed number for each page."""
    source = block.get("source")
    if is_object(source) and source.get("type") == "text":
        return ceil(len(str(source.get("data", ""))) / 4)
    return _PAGE_TOKENS * max(1, pdf_pages(_data(block)))


def pdf_pages(data: str) -> int:
    """Pages of a base64 PDF, as far as they are not in compressed objects."""
    return len(_PDF_PAGE.findall(_decoded(data)))


def _data(block: Json) -> str:
    source = block.get("source")
    return str(source.get("data", "")) if is_object(source) else ""


def _decoded(data: str) -> bytes:
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        return b""


def _tokens(width: int, height: int) -> int:
    return ceil(width / PATCH) * ceil(height / PATCH)


@lru_cache(maxsize=1024)
def seen_size(width: int, height: int, edge: int, cap: int) -> tuple[int, int]:
    """The largest size of the same shape whose padded edges and tokens fit.

    Example:
        >>> seen_size(1920, 1080, *STANDARD)
        (1456, 819)
    """
    if height > width:
        turned = seen_size(height, width, edge, cap)
        return turned[1], turned[0]
    sizes = ((each, max(round(each / (width / height)), 1)) for each in range(min(width, edge), 0, -1))
    if _fits(width, height, edge, cap):
        return width, height
    return next(size for size in sizes if _fits(*size, edge, cap))


def _fits(width: int, height: int, edge: int, cap: int) -> bool:
    return max(ceil(width / PATCH), ceil(height / PATCH)) * PATCH <= edge and _tokens(width, height) <= cap


def picture(data: str) -> Picture | None:
    """Type and size of a base64 image; None where it is none that the API takes."""
    head = _decoded(data[: _HEAD - _HEAD % 4])
    for reader in (_png, _gif, _webp, _jpeg):
        try:
            found = reader(head)
        except (struct.error, IndexError):
            continue
        if found is not None and found[1] > 0 and found[2] > 0:
            return found
    return None


def _png(head: bytes) -> Picture | None:
    if not head.startswith(b"\x89PNG\r\n\x1a\n"):
        return None
    width, height = struct.unpack_from(">II", head, 16)
    return "image/png", width, height


def _gif(head: bytes) -> Picture | None:
    if head[:6] not in (b"GIF87a", b"GIF89a"):
        return None
    width, height = struct.unpack_from("<HH", head, 6)
    return "image/gif", width, height


def _webp(head: bytes) -> Picture | None:
    if head[:4] != b"RIFF" or head[8:12] != b"WEBP":
        return None
    match head[12:16]:
        case b"VP8 ":
            width, height = struct.unpack_from("<HH", head, 26)
            return "image/webp", width & 0x3FFF, height & 0x3FFF
        case b"VP8L":
            (bits,) = struct.unpack_from("<I", head, 21)
            return "image/webp", (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
        case b"VP8X":
            width, height = head[24:27], head[27:30]
            return "image/webp", int.from_bytes(width, "little") + 1, int.from_bytes(height, "little") + 1
        case _:
            return None


def _jpeg(head: bytes) -> Picture | None:
    if not head.startswith(b"\xff\xd8"):
        return None
    for marker, at in _jpeg_segments(head):
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack_from(">HH", head, at + 3)
            return "image/jpeg", width, height
    return None


def _jpeg_segments(head: bytes) -> Iterator[tuple[int, int]]:
    at = 2
    while head[at] == 0xFF:
        marker = head[at + 1]
        yield marker, at + 2
        (length,) = struct.unpack_from(">H", head, at + 2)
        at += 2 + length
