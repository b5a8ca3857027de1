from __future__ import annotations

import base64
import random
import time
import zlib
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import penstock
from penstock import InvalidImage
from penstock.content.pdf import is_encrypted, pages_of

if TYPE_CHECKING:
    from pathlib import Path

    from penstock.simulator import Simulator

SECRET = "sesame"


def pdf(pages: int, *, trailer: bytes = b"", filling: bytes = b"", first: int = 3) -> bytes:
    """A PDF as the first ones were: a table at its end, all objects in the open."""
    objects = [b"1 0 obj\n<< /Type /Catalog /Pages 2 0 R >>\nendobj\n", b"2 0 obj\n<< /Type /Pages >>\nendobj\n"]
    objects += [
        b"%d 0 obj\n<< /Parent 2 0 R\n/Type/Page >>\nendobj\n" % number for number in range(first, first + pages)
    ]
    body = b"%PDF-1.4\n" + filling + b"".join(objects)
    return body + b"xref\n0 1\ntrailer\n<< /Root 1 0 R " + trailer + b">>\nstartxref\n%d\n%%%%EOF\n" % len(body)


def packed_pdf(pages: int, *, trailer: bytes = b"", packed: bool = True) -> bytes:
    """A PDF as today's are: pages packed into streams of objects, and the table of objects a stream itself."""
    entries = [b"<< /Type /Page /Parent 2 0 R >>" for _ in range(pages)]
    places = [sum(len(entry) + 1 for entry in entries[:number]) for number in range(pages)]
    table = b" ".join(b"%d %d" % (number + 10, place) for number, place in enumerate(places)) + b" "
    plain = table + b" ".join(entries)
    stream = zlib.compress(plain) if packed else plain
    body = b"%%PDF-1.7\n5 0 obj\n<< /Type /ObjStm /N %d /First %d /Length %d >>\nstream\r\n" % (
        pages,
        len(table),
        len(stream),
    )
    body += stream + b"\nendstream\nendobj\n"
    reference = b"6 0 obj\n<< /Type /XRef /Root 1 0 R " + trailer + b">>\nstream\n\0\0\0\nendstream\nendobj\n"
    return body + reference + b"startxref\n%d\n%%%%EOF" % len(body)


class TestPdf:
    @pytest.mark.parametrize("make", [pdf, packed_pdf])
    async def test_a_pdf_is_sent_as_it_is(self, make: Any, tmp_path: Path) -> None:
        """Whatever its name says."""
        path = tmp_path / "report.txt"
        path.write_bytes(make(3))
        for given_ in (path, str(path), path.read_bytes(), memoryview(path.read_bytes())):
            block: Any = await penstock.document(given_)
            assert block["source"]["media_type"] == "application/pdf"
            assert base64.b64decode(block["source"]["data"]) == path.read_bytes()

    @pytest.mark.parametrize("make", [pdf, packed_pdf])
    @pytest.mark.parametrize("pages", [0, 1, 600, 601])
    def test_pages_are_counted(self, make: Any, pages: int) -> None:
        """In the open, and packed."""
        assert pages_of(make(pages)) == pages

    @pytest.mark.parametrize("make", [pdf, packed_pdf])
    async def test_too_many_pages_are_refused(self, make: Any) -> None:
        """600 by default; models with smaller windows take less."""
        await penstock.document(make(600))
        with pytest.raises(InvalidImage, match="601 pages, more than the 600"):
            await penstock.document(make(601))
        with pytest.raises(InvalidImage, match="7 pages, more than the 6"):
            await penstock.document(make(7), max_pages=6)

    def test_a_page_that_was_changed_counts_once(self) -> None:
        """Editors append what has changed, under the same numbers."""
        assert pages_of(pdf(400) + pdf(400)) == 400
        assert pages_of(pdf(400) + pdf(10, first=403)) == 410

    def test_pages_without_a_number_count_each(self) -> None:
        """As far as anything can be told of such a file."""
        assert pages_of(b"%PDF-1.4 << /Type /Page >> << /Type /Page >>") == 2
        assert pages_of(b"%PDF-1.4 x obj << /Type /Page >>") == 1

    @pytest.mark.parametrize(
        "stream", [b"/Type /ObjStm", b"5 0 obj << /Type /ObjStm /First 9 >> stream\nnonsense", packed_pdf(3)[:90]]
    )
    def test_what_can_not_be_unpacked_is_not_counted(self, stream: bytes) -> None:
        """A PDF is refused for what is certain only."""
        assert pages_of(b"%PDF-1.7 " + stream) == 0

    def test_packed_pages_without_a_table_count_each(self) -> None:
        """A stream whose table says nothing."""
        assert pages_of(packed_pdf(3).replace(b"/First", b"/Fxrst")) == 3

    def test_other_types_are_no_pages(self) -> None:
        """Their names begin alike."""
        assert pages_of(b"1 0 obj << /Type /Pages >> 2 0 obj << /Type /PageLabel >>") == 0

    def test_pages_across_steps_are_found_once(self) -> None:
        """Wherever a step of the search ends."""
        for shift in range(0, 40, 3):
            assert pages_of(pdf(3, filling=b"%" * (512 * 1024 - 130 + shift))) == 3

    @pytest.mark.parametrize("make", [pdf, packed_pdf])
    @pytest.mark.parametrize("trailer", [b"/Encrypt 5 0 R", b"/Encrypt << /Filter /Standard >>"])
    async def test_an_encrypted_one_is_refused(self, make: Any, trailer: bytes) -> None:
        """The API can't read it, with or without a password."""
        with pytest.raises(InvalidImage, match="encrypted"):
            await penstock.document(make(2, trailer=trailer))

    def test_a_text_about_encryption_is_not_encrypted(self) -> None:
        """Only the trailer counts."""
        assert not is_encrypted(pdf(1, filling=b"(see /Encrypt 5 0 R in the manual)" + b" " * 4_000))
        assert not is_encrypted(b"%PDF-1.4 startxref 999999 %%EOF")

    async def test_one_that_would_not_fit_a_request_is_refused(self, tmp_path: Path) -> None:
        """In base64 it takes a third more."""
        path = tmp_path / "large.pdf"
        with path.open("wb") as file:
            file.write(b"%PDF-1.4")
            file.truncate(24 * 1024 * 1024 + 1)
        with pytest.raises(InvalidImage, match=r"24\.0 MiB"):
            await penstock.document(path)

    @pytest.mark.slow
    @pytest.mark.parametrize(
        "piece", [b"/Type/Page ", b"/Type /ObjStm stream\n", b"9 0 obj/Type/Page", b"startxref 1 "]
    )
    def test_one_made_to_cost_costs_seconds_at_most(self, piece: bytes) -> None:
        """What is looked at is bounded."""
        data = piece * (8_000_000 // len(piece))
        began = time.process_time()
        pages_of(data)
        is_encrypted(data)
        assert time.process_time() - began < 5

    @pytest.mark.lengthy
    def test_a_stream_that_unpacks_to_gigabytes_is_cut(self) -> None:
        """A kilobyte can hold a megabyte; what comes after so many is not counted."""
        bomb = packed_pdf(1)
        packer = zlib.compressobj(9)
        stream = b"".join(packer.compress(bytes(1_000_000)) for _ in range(100)) + packer.flush()
        body = bomb.index(b"stream\r\n") + 8
        assert pages_of(bomb[:body] + stream + bomb) == 0

    @given(st.binary(max_size=300))
    def test_no_bytes_raise(self, data: bytes) -> None:
        """Whatever they are."""
        pages_of(b"%PDF-1.4 5 0 obj /Type /ObjStm /First 7 stream\n" + zlib.compress(data) + data)
        is_encrypted(data)


class TestText:
    @pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
    async def test_a_file_of_text_is_a_plain_text(self, encoding: str, tmp_path: Path) -> None:
        """In the encodings that say which they are."""
        path = tmp_path / "notes.pdf"
        path.write_bytes("Flüsse fließen.".encode(encoding))
        for given_ in (path, path.read_bytes()):
            assert await penstock.document(given_) == {
                "type": "document",
                "source": {"type": "text", "media_type": "text/plain", "data": "Flüsse fließen."},
            }

    async def test_text_is_given_by_name(self) -> None:
        """So that it is never taken for the name of a file."""
        assert await penstock.document(text=__file__, title="t", context="c", citations=True) == {
            "type": "document",
            "source": {"type": "text", "media_type": "text/plain", "data": __file__},
            "title": "t",
            "context": "c",
            "citations": {"enabled": True},
        }

    @pytest.mark.parametrize("arguments", [{}, {"source": "a.txt", "text": "b"}])
    async def test_it_is_one_or_the_other(self, arguments: Any) -> None:
        """Neither leaves nothing to send, both leave a question."""
        with pytest.raises(TypeError, match="either"):
            await penstock.document(**arguments)

    async def test_pages_are_one_or_more(self) -> None:
        """As every bound is checked."""
        with pytest.raises(ValueError, match="max_pages"):
            await penstock.document(text="x", max_pages=0)

    @pytest.mark.parametrize(
        ("data", "reason"),
        [
            (b"", "empty"),
            (b" \n", "empty"),
            (b"PK\x03\x04" + bytes(30), "office document"),
            (b"\xd0\xcf\x11\xe0", "old office document"),
            (b"\x89PNG\r\n", "a picture, which penstock.image takes"),
            (b"\xff\xd8\xff\xe0", "a picture, which penstock.image takes"),
            (SECRET.encode() + b"\xff", "no character at byte 6"),
            (SECRET.encode() + b"\0", "NUL"),
            (random.Random(7).randbytes(500), "neither a PDF nor text"),
        ],
    )
    async def test_what_is_neither_is_named(self, data: bytes, reason: str) -> None:
        """By its content, without quoting it."""
        with pytest.raises(InvalidImage, match=reason) as caught:
            await penstock.document(data)
        assert SECRET not in str(caught.value)

    async def test_empty_text_is_refused(self) -> None:
        """The API would."""
        for text in ("", " \n"):
            with pytest.raises(InvalidImage, match="empty"):
                await penstock.document(text=text)

    async def test_text_beyond_a_request_is_refused(self) -> None:
        """Before it is copied about."""
        with pytest.raises(InvalidImage, match=r"32\.0 MiB of text"):
            await penstock.document(text="x" * (32 * 1024 * 1024 + 1))


async def test_documents_stand_in_messages(simulator: Simulator) -> None:
    """The API takes them as they are."""
    content: Any = [await penstock.document(pdf(2)), {"type": "text", "text": "Summarise."}]
    message = await simulator.client().messages.create(
        model="claude-sonnet-5-5", max_tokens=50, messages=[{"role": "user", "content": content}]
    )
    assert message.usage.input_tokens > 2_000
