"""Ctrl-C and SIGTERM while a run is under way."""

from __future__ import annotations

import io
import os
import signal
import sys
import threading

import anyio
import anyio.lowlevel
import pytest

from penstock.cli.run import interrupt
from penstock.cli.run.interrupt import Interruptible


class Left(BaseException):
    """In place of the end of the process."""


@pytest.fixture
def left(monkeypatch: pytest.MonkeyPatch) -> None:
    """The end of the process is an exception."""

    def leave(code: int) -> None:
        raise Left(code)

    monkeypatch.setattr(os, "_exit", leave)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
async def test_a_signal_ends_the_block(number: signal.Signals, code: int) -> None:
    """The first signal cancels what the block waits for; the block is left without an exception, the code is known."""
    reached = False
    with Interruptible() as interruptible:
        assert repr(interruptible) == "<Interruptible, running>"
        signal.raise_signal(number)
        await anyio.sleep(10)
        reached = True
    assert not reached
    assert interruptible.code == code
    assert repr(interruptible) == f"<Interruptible, ending with {code}>"


async def test_a_signal_that_another_thread_gets_ends_it_as_soon() -> None:
    """The system may give a signal to any thread; the event loop wakes up all the same."""
    reader, writer = os.pipe()
    thread = threading.Thread(target=os.read, args=(reader, 1), daemon=True)
    thread.start()
    begun = anyio.current_time()

    def send() -> None:
        threading.Event().wait(0.05)
        signal.pthread_kill(thread.ident or 0, signal.SIGINT)

    sender = threading.Thread(target=send)
    sender.start()
    with Interruptible() as interruptible:
        await anyio.sleep(10)
    assert interruptible.code == 130
    assert anyio.current_time() - begun < 5
    os.write(writer, b"x")
    for each in (thread, sender):
        each.join()
    os.close(reader)
    os.close(writer)


async def test_without_a_signal_nothing_happens() -> None:
    """The block runs to its end, and the handlers are those from before."""
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with Interruptible() as interruptible:
        await anyio.lowlevel.checkpoint()
    assert interruptible.code == 0
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


async def test_an_exception_of_the_block_leaves_as_it_is() -> None:
    """What the block raises comes out, and the handlers are given back all the same."""
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(OSError, match="gone"), Interruptible():
        raise OSError("gone")
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.usefixtures("left")
async def test_a_second_signal_ends_the_process() -> None:
    """If stopping in order takes too long, a second signal ends it at once."""
    with Interruptible() as interruptible:
        signal.raise_signal(signal.SIGINT)
        interruptible._first_at -= 1
        with pytest.raises(Left, match="143"):
            signal.raise_signal(signal.SIGTERM)


@pytest.mark.usefixtures("left")
async def test_the_same_signal_twice_is_one() -> None:
    """A signal that comes from the terminal and from a program between, at the same moment, counts once."""
    with Interruptible() as interruptible:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
    assert interruptible.code == 130


@pytest.mark.usefixtures("left")
async def test_the_cursor_is_shown_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever ends at once in a terminal leaves it with its cursor, which a bar may have hidden."""
    reader, writer = os.pipe()

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

        def fileno(self) -> int:
            return writer

    monkeypatch.setattr(sys, "stderr", Terminal())
    with pytest.raises(Left, match="130"):
        interrupt._leave(130)
    assert os.read(reader, 100) == b"\x1b[?25h"
    os.close(reader)
    os.close(writer)


@pytest.mark.usefixtures("left")
async def test_without_a_standard_error_it_ends_at_once_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process may have none."""
    monkeypatch.setattr(sys, "stderr", None)
    with pytest.raises(Left, match="143"):
        interrupt._leave(143)


def test_in_another_thread_it_does_nothing() -> None:
    """Signals belong to the main thread; elsewhere the block runs without."""
    codes: list[int] = []
    before = signal.getsignal(signal.SIGINT)

    async def block() -> None:
        with Interruptible() as interruptible:
            assert signal.getsignal(signal.SIGINT) is before
        codes.append(interruptible.code)

    thread = threading.Thread(target=lambda: anyio.run(block))
    thread.start()
    thread.join()
    assert codes == [0]
