"""What an image costs: the size that a model sees of it, and the tokens of that; read off its bytes where need be.

The rule here: the API's own arithmetic, to the pixel, as documented under "Vision". An image is scaled down to the
largest size of the same shape whose edges, padded to patches of 28 pixels, and number of patches both fit the model.
Of bytes, only the header is decoded, never the image.
"""

from __future__ import annotations

import base64
import binascii
import struct
from functools import lru_cache
from math import ceil, sqrt
from typing import TYPE_CHECKING, Final

from penstock._core.models import Tier, known

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["image_size", "image_tokens", "pdf_tokens", "seen_size", "seen_tokens"]

_PATCH: Final = 28
# EXIF data and colour profiles stand before the size of a JPEG; this holds the usual ones.
_HEAD_CHARACTERS: Final = 4 * 32 * 1024
# A page of 80 kB costs some 4,000 tokens; a request holds 600 pages at most.
_CHARACTERS_PER_PDF_TOKEN: Final = 27
_LARGEST_PDF: Final = 600 * 4_000


def seen_tokens(width: int, height: int, tier: Tier) -> int:
    """Return what an image of that size costs, in tokens.

    Args:
        width: In pixels, 1 or more.
        height: In pixels, 1 or more.
        tier: Of the model.

    Example:
        >>> (
        ...     seen_tokens(1920, 1080, known("claude-haiku-4-5").tier),
        ...     seen_tokens(1920, 1080, known("claude-opus-5").tier),
        ... )
        (1560, 2691)
    """
    return _tokens(*seen_size(width, height, tier))


@lru_cache(maxsize=1024)
def seen_size(width: int, height: int, tier: Tier) -> tuple[int, int]:
    """Return the size that an image is scaled down to before the model sees it.

    Args:
        width: In pixels, 1 or more.
        height: In pixels, 1 or more.
        tier: Of the model.

    Example:
        >>> seen_size(1920, 1080, known("claude-haiku-4-5").tier)
        (1456, 819)
    """
    if height > width:
        turned = seen_size(height, width, tier)
        return turned[1], turned[0]
    if _fits(width, height, tier):
        return width, height
    return next(size for size in _smaller(width, height, tier) if _fits(*size, tier))


def _smaller(width: int, height: int, tier: Tier) -> Iterator[tuple[int, int]]:
    """Give the sizes of the same shape, from one that is too large or just fits."""
    edge, cap = tier
    shape = width / height
    # The most that a width can be: its height is shorter than its share by half a pixel at most, through rounding.
    most = shape / 2 * (0.5 + sqrt(0.25 + 4 * cap * _PATCH * _PATCH / shape))
    return ((each, max(round(each / shape), 1)) for each in range(min(width, edge, ceil(most)), 0, -1))


def _fits(width: int, height: int, tier: Tier) -> bool:
    edge, cap = tier
    return max(ceil(width / _PATCH), ceil(height / _PATCH)) * _PATCH <= edge and _tokens(width, height) <= cap


def _tokens(width: int, height: int) -> int:
    return ceil(width / _PATCH) * ceil(height / _PATCH)


def image_tokens(data: str, model: str) -> int:
    """Return the tokens of a base64 image; the most that one can cost where its size can't be read.

    Args:
        data: The image in base64.
        model: Newer models (4.7 and up) see larger images.

    Example:
        >>> image_tokens("R0lGODlhyADIAA==", "claude-haiku-4-5")
        64
    """
    edge, cap = known(model).tier
    size = image_size(data)
    if size is None:
        return cap
    width, height = size
    # Close to the API's own search for the largest size that fits, and hardly ever below it.
    scale = min(1.0, edge / max(width, height), sqrt(cap * _PATCH * _PATCH / (width * height)))
    return max(1, min(ceil(width * scale / _PATCH) * ceil(height * scale / _PATCH), cap))


def pdf_tokens(data: str) -> int:
    """Return about what a base64 PDF costs, text and image of each page; told by its size, not by its pages."""
    return min(len(data) // _CHARACTERS_PER_PDF_TOKEN, _LARGEST_PDF)


def image_size(data: str) -> tuple[int, int] | None:
    """Return width and height of a base64 PNG, GIF, WebP or JPEG; `None` if they can't be read off its beginning."""
    head = data[:_HEAD_CHARACTERS]
    try:
        raw = base64.b64decode(head[: len(head) // 4 * 4])
    except (binascii.Error, ValueError):
        return None
    try:
        width, height = _read(raw)
    except (struct.error, TypeError):
        return None
    return (width, height) if width > 0 and height > 0 else None


def _read(raw: bytes) -> tuple[int, int]:
    if raw.startswith(b"\x89PNG"):
        return struct.unpack(">II", raw[16:24])
    if raw.startswith(b"GIF8"):
        return struct.unpack("<HH", raw[6:10])
    if raw.startswith(b"RIFF") and raw[8:12] == b"WEBP":
        return _read_webp(raw)
    if raw.startswith(b"\xff\xd8"):
        return _read_jpeg(raw)
    raise TypeError("no known image")


def _read_webp(raw: bytes) -> tuple[int, int]:
    form = raw[12:16]
    if form == b"VP8X":
        return int.from_bytes(raw[24:27], "little") + 1, int.from_bytes(raw[27:30], "little") + 1
    if form == b"VP8L":
        bits = int.from_bytes(raw[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    width, height = struct.unpack("<HH", raw[26:30])
    return width & 0x3FFF, height & 0x3FFF


def _read_jpeg(raw: bytes) -> tuple[int, int]:
    place = 2
    while place + 9 < len(raw):
        marker, length = struct.unpack(">BH", raw[place + 1 : place + 4])
        # The frame headers, less those markers of their range that are none: DHT, JPG, DAC.
        if 0xC0 <= marker <= 0xCF and marker not in {0xC4, 0xC8, 0xCC}:
            height, width = struct.unpack(">HH", raw[place + 5 : place + 9])
            return width, height
        place += 2 + length
    raise TypeError("no frame header in reach")
