"""Pipes and terminals that don't wait."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import threading
from typing import TYPE_CHECKING

import pytest

from penstock import FanOutResult
from penstock.cli.run.lines import read_lines
from penstock.cli.run.output import Output
from penstock.cli.run.pipes import Patient, patient_stderr

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="pipes always wait there")


@pytest.fixture
def impatient() -> Iterator[tuple[int, int]]:
    """A pipe that doesn't wait at either end: the descriptors to read and to write."""
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    os.set_blocking(writer, False)
    yield reader, writer
    for each in (reader, writer):
        with contextlib.suppress(OSError):
            os.close(each)


class Elsewhere:
    """Something done in a thread; leaving waits for it to end."""

    def __init__(self, work: Callable[[], object]) -> None:
        self._thread = threading.Thread(target=work)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._thread.join(10)
        assert not self._thread.is_alive()


def read_slowly(reader: int, found: list[bytes]) -> None:
    """Read to the end, a little at a time; nothing as long as nothing is there."""
    while True:
        threading.Event().wait(0.001)
        try:
            piece = os.read(reader, 50_000)
        except BlockingIOError:
            continue
        if not piece:
            return
        found.append(piece)


def test_nothing_yet_is_not_the_end(impatient: tuple[int, int]) -> None:
    """A slow writer's lines come one after the other, to the last; whether the pipe waits is left as it is."""
    reader, writer = impatient

    def write_slowly() -> None:
        for piece in (b"one\ntw", b"o\n", b"three"):
            threading.Event().wait(0.02)
            os.write(writer, piece)
        threading.Event().wait(0.02)
        os.close(writer)

    with Elsewhere(write_slowly), Patient(reader, closefd=False) as file:
        assert [line for _, line in read_lines(file)] == ["one", "two", "three"]
    assert not os.get_blocking(reader)


async def test_a_result_is_whole_whoever_reads_it(impatient: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is larger than a pipe goes through it in pieces, each as soon as there is room."""
    reader, writer = impatient
    found: list[bytes] = []
    with Elsewhere(lambda: read_slowly(reader, found)), os.fdopen(writer, "w") as sink:
        monkeypatch.setattr(sys, "stdout", sink)
        output = Output()
        for custom_id in "ab":
            await output.write(FanOutResult(custom_id=custom_id, index=0, error=ValueError("no" * 200_000)))
        output.close()
    lines = b"".join(found).splitlines()
    assert [(line[:16], line[-1:]) for line in lines] == [(b'{"custom_id":"a"', b"}"), (b'{"custom_id":"b"', b"}")]


@pytest.mark.parametrize("buffered", [True, False])
def test_what_is_told_is_told_whole(
    impatient: tuple[int, int], monkeypatch: pytest.MonkeyPatch, buffered: bool
) -> None:
    """Progress and the summary wait for a slow reader, too; afterwards the standard error is the one that it was."""
    reader, writer = impatient
    found: list[bytes] = []
    text = "".join(f"{number} ż\n" for number in range(30_000))
    file = io.FileIO(writer, "w")
    with (
        Elsewhere(lambda: read_slowly(reader, found)),
        io.TextIOWrapper(io.BufferedWriter(file) if buffered else file, encoding="utf-8") as sink,
    ):
        monkeypatch.setattr(sys, "stderr", sink)
        with patient_stderr():
            assert sys.stderr is not sink
            assert sys.stderr.encoding == "utf-8"
            sys.stderr.write(text)
        assert sys.stderr is sink
    assert b"".join(found).decode() == text


def test_that_nobody_listens_is_no_failure(impatient: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """A standard error whose reader has left takes whatever it is told."""
    reader, writer = impatient
    os.close(reader)
    with os.fdopen(writer, "w") as sink:
        monkeypatch.setattr(sys, "stderr", sink)
        with patient_stderr():
            for _ in range(3):
                sys.stderr.write("Anybody?\n" * 10_000)
                sys.stderr.flush()


@pytest.mark.parametrize("stand_in", [None, io.StringIO()])
def test_what_is_no_file_stays(stand_in: io.StringIO | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program without a standard error, or with a stand-in, keeps it."""
    monkeypatch.setattr(sys, "stderr", stand_in)
    with patient_stderr():
        assert sys.stderr is stand_in


def test_a_terminal_that_another_program_made_impatient_is_waited_for() -> None:
    """Its other holders share the property; it is the terminal's, so it may come and go between two lines."""
    ours, theirs = os.openpty()

    def type_slowly() -> None:
        for piece in (b"one\n", b"two\n", b"\x04"):
            threading.Event().wait(0.02)
            os.set_blocking(theirs, False)
            os.write(ours, piece)

    with Elsewhere(type_slowly), Patient(theirs, closefd=False) as file:
        assert [line for _, line in read_lines(file)] == ["one", "two"]
    os.close(ours)
    os.close(theirs)
