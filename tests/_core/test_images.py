from __future__ import annotations

import base64
import struct
from math import ceil

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from penstock._core.images import image_size, image_tokens, pdf_tokens, seen_size, seen_tokens
from penstock._core.models import HIGH_RESOLUTION, STANDARD, Tier

NEW, OLD = "claude-opus-5-5", "claude-haiku-4-5"
sides = st.integers(min_value=1, max_value=16_000)


def encoded(raw: bytes) -> str:
    """As a request body holds it."""
    return base64.b64encode(raw.ljust(64, b"\0")).decode()


def png(width: int, height: int) -> bytes:
    """A PNG's beginning."""
    return b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + struct.pack(">II", width, height)


def gif(width: int, height: int) -> bytes:
    """A GIF's beginning."""
    return b"GIF89a" + struct.pack("<HH", width, height)


def jpeg(width: int, height: int, *, marker: int = 0xC0, segments: int = 1) -> bytes:
    """A frame header behind segments of 300 bytes and a table."""
    start = b"\xff\xd8" + (b"\xff\xe0" + struct.pack(">H", 302) + b"\0" * 300) * segments
    tables = b"\xff\xc4" + struct.pack(">H", 4) + b"\0\0"
    return start + tables + b"\xff" + bytes([marker]) + struct.pack(">HBHHB", 17, 8, height, width, 3)


def webp_simple(width: int, height: int) -> bytes:
    """A lossy WebP's beginning."""
    return b"RIFF\0\0\0\0WEBPVP8 \0\0\0\0\0\0\0\x9d\x01\x2a" + struct.pack("<HH", width & 0x3FFF, height & 0x3FFF)


def webp_lossless(width: int, height: int) -> bytes:
    """A lossless WebP's beginning."""
    bits = (width - 1) | (height - 1) << 14
    return b"RIFF\0\0\0\0WEBPVP8L\0\0\0\0\x2f" + struct.pack("<I", bits)


def webp_extended(width: int, height: int) -> bytes:
    """An extended WebP's beginning."""
    sizes = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return b"RIFF\0\0\0\0WEBPVP8X\0\0\0\0\0\0\0\0" + sizes


@pytest.mark.parametrize("make", [png, gif, jpeg, webp_simple, webp_lossless, webp_extended])
@given(width=sides, height=sides)
def test_the_size_is_read_off_every_format(make: object, width: int, height: int) -> None:
    """PNG, GIF, JPEG, and the three kinds of WebP."""
    assert image_size(encoded(make(width, height))) == (width, height)  # type: ignore[operator]


@pytest.mark.parametrize("marker", [0xC0, 0xC1, 0xC2, 0xCF])
def test_every_frame_header_of_jpeg_counts(marker: int) -> None:
    """Progressive ones too; tables before it are skipped."""
    assert image_size(encoded(jpeg(640, 480, marker=marker))) == (640, 480)


@pytest.mark.parametrize(
    "data",
    ["", "A", "????", encoded(b"BM"), encoded(b"\xff\xd8"), encoded(png(0, 5)), "iVBORw0KGgo=", "\u00e9" * 8],
)
def test_what_cant_be_read_has_no_size(data: str) -> None:
    """No known image, a truncated one, or no base64 at all."""
    assert image_size(data) is None


def test_a_jpeg_whose_frame_is_out_of_reach_has_no_size() -> None:
    """Only the beginning is looked at."""
    assert image_size(encoded(jpeg(640, 480, segments=1000))) is None


@given(st.text(max_size=400))
def test_no_data_raises(data: str) -> None:
    """Whatever a caller sends as an image; the API will say what is wrong with it."""
    image_size(data)
    assert image_tokens(data, NEW) > 0
    assert pdf_tokens(data) >= 0


@given(width=sides, height=sides)
def test_an_image_costs_by_its_area_up_to_a_cap(width: int, height: int) -> None:
    """More for newer models, which see larger ones; never nothing."""
    old, new = (image_tokens(encoded(png(width, height)), model) for model in (OLD, NEW))
    assert 1 <= old <= new
    assert old <= 1_600
    assert new <= 6_000


def test_an_image_of_unknown_size_costs_the_most_that_one_can() -> None:
    """To be too careful costs time, to be too bold a refusal."""
    assert image_tokens("????", OLD) == image_tokens(encoded(png(9000, 9000)), OLD)
    assert image_tokens("????", "some-new-model") == image_tokens("????", NEW)


@pytest.mark.lengthy
def test_a_document_costs_by_its_size() -> None:
    """More for a longer one, up to the largest that is allowed."""
    assert pdf_tokens("A" * 1_000) < pdf_tokens("A" * 1_000_000) <= pdf_tokens("A" * 100_000_000)
    assert pdf_tokens("A" * 100_000_000) == pdf_tokens("A" * 200_000_000)


# As the API documents them: size, seen by older models, seen by newer ones, tokens of both.
DOCUMENTED = [
    ((200, 200), (200, 200), (200, 200), 64, 64),
    ((1000, 1000), (1000, 1000), (1000, 1000), 1296, 1296),
    ((1092, 1092), (1092, 1092), (1092, 1092), 1521, 1521),
    ((1920, 1080), (1456, 819), (1920, 1080), 1560, 2691),
    ((2000, 1500), (1270, 952), (2000, 1500), 1564, 3888),
    ((3840, 2160), (1456, 819), (2576, 1449), 1560, 4784),
    ((1075, 1520), (924, 1307), (1075, 1520), 1551, 2145),
]
tiers = st.sampled_from([STANDARD, HIGH_RESOLUTION])


def documented(width: int, height: int, edge: int, cap: int) -> tuple[int, int]:
    """The documented search, without a shortcut."""

    def tokens(w: int, h: int) -> int:
        return ceil(w / 28) * ceil(h / 28)

    def fits(w: int, h: int) -> bool:
        return max(ceil(w / 28), ceil(h / 28)) * 28 <= edge and tokens(w, h) <= cap

    if height > width:
        return documented(height, width, edge, cap)[::-1]
    if fits(width, height):
        return width, height
    sizes = ((a, max(round(a / (width / height)), 1)) for a in range(min(width, edge), 0, -1))
    return next(size for size in sizes if fits(*size))


@pytest.mark.parametrize(("size", "old", "new", "old_tokens", "new_tokens"), DOCUMENTED)
def test_sizes_and_tokens_are_those_of_the_documentation(
    size: tuple[int, int], old: tuple[int, int], new: tuple[int, int], old_tokens: int, new_tokens: int
) -> None:
    """To the pixel."""
    assert (seen_size(*size, STANDARD), seen_size(*size, HIGH_RESOLUTION)) == (old, new)
    assert (seen_tokens(*size, STANDARD), seen_tokens(*size, HIGH_RESOLUTION)) == (old_tokens, new_tokens)


@given(st.integers(1, 20_000), st.integers(1, 20_000), tiers)
@example(20_000, 1, STANDARD)
@example(1, 1, HIGH_RESOLUTION)
def test_any_size_is_that_of_the_documented_search(width: int, height: int, tier: Tier) -> None:
    """The shortcut to where the search starts misses nothing."""
    assert seen_size(width, height, tier) == documented(width, height, *tier)
