"""PDFs that are made to cost: looked through in a fraction of a second, and never wrongly refused for it."""

from __future__ import annotations

import random
import time
import zlib
from functools import cache

import pytest

from penstock.content.pdf import is_encrypted, pages_of

HEAD = b"%PDF-1.7\n"
MARK = b"1 0 obj << /Type/ObjStm /N 1 /First 64000 /Filter/FlateDecode >> "
EMPTY_BLOCK = b"\0\0\0\xff\xff"


@cache
def bomb() -> bytes:
    """47 kB, of which 48 MB come."""
    return zlib.compress(b"\0" * 48_000_000, 9)


def streams(body: bytes, number: int) -> bytes:
    """So many streams of objects."""
    return HEAD + (MARK + b"stream\n" + body + b"\nendstream endobj\n") * number


KINDS = {
    "many marks of one stream": lambda: HEAD + MARK * 20 + b"stream\n" + bomb(),
    "many marks of one that is broken": lambda: HEAD + MARK * 20 + b"stream\n" + bomb()[:-10] + b"no zlib!!!",
    "many that are broken": lambda: streams(bomb()[:-10] + b"no zlib!!!", 380),
    "pages without end": lambda: HEAD + MARK * 20 + b"stream\n" + zlib.compress(b"/Type/Page " * 4_000_000, 9),
    "blocks of nothing": lambda: HEAD + MARK * 60 + b"stream\n\x78\x9c" + EMPTY_BLOCK * 3_500_000,
    "tables": lambda: streams(zlib.compress(b"1 0 " * 16_000 + b"/Type/Page ", 9), 10_000),
    "stored": lambda: HEAD + MARK * 60 + b"stream\n" + zlib.compress(random.Random(1).randbytes(17_000_000), 0),
    "nothing but marks": lambda: HEAD + b"/Type/ObjStm " * 1_400_000,
    "nothing but pages": lambda: HEAD + b"/Type/Page " * 1_650_000,
    "numbers": lambda: HEAD + (b"1234567890 12345   " * 100 + b"obj /Type/Page ") * 9_000,
    "nested": lambda: HEAD + b"<<" * 9_000_000,
    "types": lambda: HEAD + b"/Type" * 3_600_000,
    "spaces": lambda: HEAD + b"/Type" + b" " * 18_000_000,
    "encryption": lambda: HEAD + b"/Encrypt 123 " * 1_300_000 + b" startxref 5 ",
    "starts": lambda: HEAD + b"startxref 12 " * 1_300_000,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_any_pdf_takes_less_than_a_second_and_a_half(name: str) -> None:
    """Up to 18 MB, of processor time; most take a quarter of one."""
    data = KINDS[name]()
    began = time.thread_time()
    is_encrypted(data)
    pages_of(data)
    assert time.thread_time() - began < 1.5


def test_small_streams_are_counted_by_the_thousand() -> None:
    """What is read behind the end of a stream costs nothing of what may be unpacked."""
    pages = [
        b"%d 0 obj << /Type/ObjStm /N 1 /First %d >> stream\n" % (9_000 + number, len(table))
        + zlib.compress(table + b"<< /Type /Page >>")
        + b"\nendstream endobj\n"
        for number in range(4_000)
        for table in [b"%d 0 " % number]
    ]
    assert pages_of(HEAD + b"".join(pages)) == 4_000


def test_what_follows_a_broken_stream_is_counted() -> None:
    """Unless there is too much of it."""
    page = zlib.compress(b"7 0 << /Type /Page >>")
    broken = MARK + b"stream\nno zlib\nendstream endobj\n"
    assert pages_of(HEAD + broken * 50 + MARK.replace(b"64000", b"4") + b"stream\n" + page) == 1
