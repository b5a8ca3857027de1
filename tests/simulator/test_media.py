from __future__ import annotations

import base64
import struct
from math import ceil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.simulator.media import HIGH_RESOLUTION, STANDARD, pdf_pages, picture, seen_size


@pytest.mark.parametrize(
    ("size", "standard", "high"),
    [
        ((200, 200), (200, 200), (200, 200)),
        ((1000, 1000), (1000, 1000), (1000, 1000)),
        ((1920, 1080), (1456, 819), (1920, 1080)),
        ((2000, 1500), (1270, 952), (2000, 1500)),
        ((3840, 2160), (1456, 819), (2576, 1449)),
        ((1075, 1520), (924, 1307), (1075, 1520)),
    ],
)
def test_images_are_seen_as_documented(size: tuple[int, int], standard: tuple[int, int], high: tuple[int, int]) -> None:
    """The sizes of the documentation's table come out, for both tiers."""
    assert seen_size(*size, *STANDARD) == standard
    assert seen_size(*size, *HIGH_RESOLUTION) == high


@given(st.integers(1, 8000), st.integers(1, 8000), st.sampled_from([STANDARD, HIGH_RESOLUTION]))
def test_what_is_seen_always_fits(width: int, height: int, tier: tuple[int, int]) -> None:
    """No size is seen that is larger than edge or tokens allow, or than the image."""
    edge, cap = tier
    seen_width, seen_height = seen_size(width, height, edge, cap)
    assert 1 <= seen_width <= min(width, edge)
    assert 1 <= seen_height <= min(height, edge)
    assert ceil(seen_width / 28) * ceil(seen_height / 28) <= cap


JPEG = b"\xff\xd8\xff\xe0\x00\x04ab\xff\xc4\x00\x03x\xff\xc0\x00\x11\x08" + struct.pack(">HH", 30, 40)
VP8L = b"RIFF\0\0\0\0WEBPVP8L\0\0\0\0\x2f" + struct.pack("<I", 39 | 29 << 14)
PICTURES = {
    "png": (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + struct.pack(">II", 40, 30), "image/png"),
    "gif": (b"GIF89a" + struct.pack("<HH", 40, 30), "image/gif"),
    "jpeg": (JPEG, "image/jpeg"),
    "lossy webp": (b"RIFF\0\0\0\0WEBPVP8 " + bytes(10) + struct.pack("<HH", 40, 30), "image/webp"),
    "lossless webp": (VP8L, "image/webp"),
    "extended webp": (b"RIFF\0\0\0\0WEBPVP8X" + bytes(8) + b"\x27\0\0\x1d\0\0", "image/webp"),
}


@pytest.mark.parametrize("name", sorted(PICTURES))
def test_the_size_is_read_from_the_header(name: str) -> None:
    """Every image format that the API takes is recognised, with its size."""
    data, kind = PICTURES[name]
    assert picture(base64.b64encode(data).decode()) == (kind, 40, 30)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"hello",
        b"\x89PNG\r\n\x1a\n",
        b"\xff\xd8\xff",
        b"\xff\xd8\x00\x00",
        b"RIFF\0\0\0\0WEBPxxxx",
        b"GIF89a" + bytes(4),
    ],
)
def test_what_is_no_picture_is_none(data: bytes) -> None:
    """Broken, unknown and empty images have no size."""
    assert picture(base64.b64encode(data).decode()) is None
    assert picture("no base64!") is None


def test_pages_are_counted() -> None:
    """Page objects count, the page tree doesn't."""
    data = b"%PDF-1.7 /Type /Pages /Kids /Type /Page x /Type/Page>>"
    assert pdf_pages(base64.b64encode(data).decode()) == 2
