from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock import InvalidImage
from penstock.content.sources import forgiving_base64, read

DATA = b"penstock drives a turbine"
TEXT = base64.b64encode(DATA).decode()


@pytest.mark.parametrize(
    "url",
    [
        f"data:text/plain;base64,{TEXT}",
        f"DATA:text/plain;charset=utf-8;BASE64,{TEXT}",
        f" \ndata:text/plain; base64 ,{TEXT}\n",
        f"data:text/plain;base64,{TEXT.rstrip('=')}",
        "data:text/plain;base64," + "\r\n".join(TEXT[at : at + 8] for at in range(0, len(TEXT), 8)),
        "data:text/plain;base64,\t" + " ".join(TEXT),
        f"data:text/plain;base64,{TEXT.replace('=', '%3D')}",
        f"data:text/plain;base64,{TEXT[:8]}%0A{TEXT[8:]}",
    ],
)
def test_data_urls_are_read_as_browsers_do(url: str) -> None:
    """With line breaks, spaces and percent signs, without padding, in any case."""
    assert read(url, most=1000, what="a text") == DATA


@pytest.mark.parametrize("text", ["A", "AAAAA", "QQ=", "QQ===", "A===", "QQ=A", "=", "QÄ==", "QQ-_", "QQ!="])
def test_what_is_no_base64_is_refused(text: str) -> None:
    """Padding is whole or not there; nothing but the alphabet."""
    with pytest.raises(ValueError, match=r".*"):
        forgiving_base64(text)
    with pytest.raises(InvalidImage, match="no valid base64"):
        read(f"data:image/png;base64,{text}", most=1000, what="an image")


def test_what_is_too_large_is_refused_however_it_is_written() -> None:
    """By what it holds, and before it is decoded where that is plain."""
    assert len(forgiving_base64("A" * 8)) == 6
    for text in ("A" * 12, "A" * 4000, "A\n" * 12):
        with pytest.raises(InvalidImage, match="are more than"):
            read(f"data:image/png;base64,{text}", most=8, what="an image")


@given(st.binary(), st.sampled_from(["", "\n", "\r\n", " \t"]), st.integers(1, 80), st.booleans())
def test_any_bytes_come_back(data: bytes, between: str, size: int, padded: bool) -> None:
    """However they are wrapped."""
    text = base64.b64encode(data).decode()
    text = text if padded else text.rstrip("=")
    assert forgiving_base64(between.join(text[at : at + size] for at in range(0, len(text), size))) == data
