"""Lines of an input."""

from __future__ import annotations

import io
import os
import sys
import threading
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.cli.run.lines import LONGEST, BadInput, Input, read_lines

if TYPE_CHECKING:
    from pathlib import Path


class Pieces(io.RawIOBase):
    """A file that gives its content in pieces of its own."""

    def __init__(self, *pieces: bytes) -> None:
        self._pieces = list(pieces)

    def read(self, _size: int = -1, /) -> bytes:
        return self._pieces.pop(0) if self._pieces else b""


class Broken(io.RawIOBase):
    """A file that fails after its first line."""

    def __init__(self) -> None:
        self._left = [b"one\n"]

    def read(self, _size: int = -1, /) -> bytes:
        if self._left:
            return self._left.pop()
        raise OSError(5, "Input/output error")


def problem(*pieces: bytes) -> str:
    """What is said of a bad input."""
    with pytest.raises(BadInput) as bad:
        list(read_lines(Pieces(*pieces)))
    return str(bad.value)


@given(st.lists(st.binary().filter(bool)))
def test_lines_don_t_depend_on_how_they_arrive(pieces: list[bytes]) -> None:
    """However an input is cut into pieces, its lines are those between its line feeds."""
    whole = b"\n".join(part.hex().encode() for part in pieces)
    cut = [whole[place : place + 3] for place in range(0, len(whole), 3)]
    expected = whole.decode().split("\n") if whole else []
    assert [line for _, line in read_lines(Pieces(*cut))] == expected


def test_lines_are_numbered_from_1_and_the_last_needs_no_end() -> None:
    """Numbers are those that an editor shows; carriage returns and other separators stay part of the line."""
    lines = list(read_lines(Pieces("one\r\n\ntwo\x0b\u2028\nż".encode())))
    assert lines == [(1, "one\r"), (2, ""), (3, "two\x0b\u2028"), (4, "ż")]


def test_an_empty_input_has_no_lines() -> None:
    """Nothing gives nothing."""
    assert list(read_lines(Pieces())) == []


def test_a_byte_order_mark_is_no_content() -> None:
    """UTF-8 with a mark, as some editors write it, is read like any UTF-8, also where such files were joined."""
    mark = b"\xef\xbb\xbf"
    pieces = (mark + b"a\n", b"b\n" + mark[:1], mark[1:] + b"c\n", mark + b"\n", b"d" + mark)
    assert list(read_lines(Pieces(*pieces))) == [(1, "a"), (2, "b"), (3, "c"), (4, ""), (5, "d\ufeff")]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be"])
def test_utf_16_is_named(encoding: str) -> None:
    """UTF-16, with its mark or without, is refused with what to do."""
    text = problem("Hello\nthere".encode(encoding))
    assert text.startswith("line 1: ")
    assert "UTF-16" in text
    assert "UTF-8" in text


def test_another_encoding_is_named_by_line_and_place() -> None:
    """In an input of mixed encodings the first line that is not UTF-8 is named, with the byte."""
    assert problem("zażółć\n".encode(), "zażółć\n".encode("iso-8859-2")) == (
        "line 2: not UTF-8: byte 0xbf at place 3; save the whole as UTF-8"
    )


@pytest.mark.lengthy
def test_a_line_is_as_long_as_a_request_may_be() -> None:
    """A line of 32 MB is read."""
    assert [len(line) for _, line in read_lines(Pieces(b"\n", b"x" * LONGEST, b"\ny"))] == [0, LONGEST, 1]


@pytest.mark.lengthy
@pytest.mark.parametrize("end", [b"", b"\n"])
def test_a_line_that_no_request_can_be_is_refused(end: bytes) -> None:
    """Beyond 32 MB a line is refused by its number, with its end or without."""
    assert problem(b"one\n", b"x" * LONGEST, b"x" + end) == (
        "line 2: longer than the 32 MB that the API takes for a request"
    )


def test_an_endless_line_is_not_read_to_its_end() -> None:
    """Of 50 MB in one line no more is held in memory than a request may have."""
    pieces = Pieces(*[b"x" * 1_000_000] * 50)
    with pytest.raises(BadInput):
        list(read_lines(pieces))
    assert len(pieces._pieces) == 16


def test_what_fails_while_it_is_read_is_told() -> None:
    """An error of the system is told with the line that it keeps from coming."""
    lines = read_lines(Broken())
    assert next(lines) == (1, "one")
    with pytest.raises(BadInput, match="line 2: can't be read: Input/output error"):
        next(lines)


def test_an_error_tells_its_place() -> None:
    """A message begins with the input and the line, as far as they are known."""
    error = BadInput("why", line=3)
    assert str(error) == "line 3: why"
    error.source = "a.csv"
    assert str(error) == "a.csv, line 3: why"
    error.line = None
    assert str(error) == "a.csv: why"
    assert str(BadInput("why")) == "why"


def test_a_file_can_be_read_again(tmp_path: Path) -> None:
    """A regular file gives its lines as often as it is asked; its suffix is known in lower case."""
    (tmp_path / "A.CSV").write_text("one\ntwo")
    source = Input.open(str(tmp_path / "A.CSV"))
    assert (source.suffix, source.again, source.name) == (".csv", True, str(tmp_path / "A.CSV"))
    assert list(source.lines()) == list(source.lines()) == [(1, "one"), (2, "two")]
    source.close()
    assert source.file.closed


def test_a_pipe_can_t_be_read_again(tmp_path: Path) -> None:
    """A named pipe is read once, as it comes."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    writer = threading.Thread(target=path.write_text, args=("one\ntwo\n",))
    writer.start()
    source = Input.open(str(path))
    assert not source.again
    assert list(source.lines()) == [(1, "one"), (2, "two")]
    source.close()
    writer.join()


def test_the_standard_input_stays_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`-` is the standard input; redirected from a file it can be read again, and closing leaves it open."""
    (tmp_path / "a").write_text("one")
    with (tmp_path / "a").open() as file:
        monkeypatch.setattr(sys, "stdin", file)
        source = Input.open("-")
        assert (source.name, source.suffix, source.again) == ("standard input", "", True)
        assert list(source.lines()) == [(1, "one")]
        source.close()
        assert os.fstat(file.fileno())


def test_what_can_t_be_opened_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing file, a folder, and a missing standard input are errors of the system."""
    for path in (tmp_path / "missing", tmp_path):
        with pytest.raises(OSError, match="directory"):
            Input.open(str(path))
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(OSError, match="there is none"):
        Input.open("-")
