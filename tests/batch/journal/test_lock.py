"""The lock of a journal, and what a forked process gets of it."""

from __future__ import annotations

import errno
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from penstock import JournalError
from penstock.batch.journal import lock
from penstock.batch.journal.file import JournalFile
from penstock.batch.journal.lock import LockedFile

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="nothing forks there, and locks are others")

# Holds the lock, starts workers that outlive it in every way there is, and tells their process ids.
PARENT = """
import multiprocessing, os, pathlib, signal, subprocess, sys
from penstock.batch.journal.file import JournalFile

def worker():
    print(os.getpid(), flush=True)
    signal.pause()

if __name__ == "__main__":
    file = JournalFile(pathlib.Path(sys.argv[1]))
    file.append(b"one\\n")
    if os.fork() == 0:
        worker()
    for how in ("fork", "forkserver"):
        multiprocessing.get_context(how).Process(target=worker).start()
    for early in (None, lambda: None):
        program = "import os, signal; print(os.getpid(), flush=True); signal.pause()"
        subprocess.Popen([sys.executable, "-c", program], close_fds=False, preexec_fn=early)
    sys.stdin.readline()
    file.close()
    print("closed", flush=True)
    signal.pause()
"""


@pytest.fixture
def family(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], list[int]]]:
    """A process that has a journal open, and its workers."""
    program = tmp_path / "parent.py"
    program.write_text(PARENT)
    with subprocess.Popen(
        [sys.executable, program, tmp_path / "a"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        workers = [int(parent.stdout.readline()) for _ in range(5)]
        try:
            yield parent, workers
        finally:
            for each in (*workers, parent.pid):
                os.kill(each, signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.parametrize("end", ["closed", "killed"])
def test_a_worker_keeps_no_lock(family: tuple[subprocess.Popen[str], list[int]], tmp_path: Path, end: str) -> None:
    """While its parent has the journal open nobody else can; then somebody can, though the worker lives on.

    Whether it was forked, by `multiprocessing` or by hand as servers do, or started as another program.
    """
    parent, workers = family
    with pytest.raises(JournalError, match="another journal of it is open"):
        JournalFile(tmp_path / "a")
    if end == "killed":
        parent.kill()
        os.waitid(os.P_PID, parent.pid, os.WEXITED | os.WNOWAIT)
    else:
        assert parent.stdin is not None
        assert parent.stdout is not None
        parent.stdin.write("\n")
        parent.stdin.flush()
        assert parent.stdout.readline() == "closed\n"
    for worker in workers:
        os.kill(worker, 0)
    file = JournalFile(tmp_path / "a")
    assert file.line_at(0) == b"one\n"
    file.close()


BY_C = """
import ctypes, os, pathlib, signal, sys
from penstock.batch.journal.file import JournalFile

path = pathlib.Path(sys.argv[1])
file = JournalFile(path)
pid = ctypes.PyDLL(None).fork()
if pid == 0:
    ctypes.CDLL(None).pause()
try:
    file.close()
    JournalFile(path).close()
finally:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
"""


@pytest.mark.slow
def test_one_that_forks_behind_python_s_back_keeps_no_lock_either(tmp_path: Path) -> None:
    """Such as a server written in C: its child closes nothing, but whoever closes the file in order has unlocked it."""
    subprocess.run([sys.executable, "-c", BY_C, tmp_path / "a"], check=True, timeout=60)


FORKED = """
import anyio, json, os, pathlib, sys
from penstock import FanOutResult, Journal, JournalError
from penstock.batch.journal.request import RequestDigest

def said(work):
    try:
        return repr(work())
    except JournalError as error:
        return error.reason

async def child(journal):
    result = FanOutResult(custom_id="b", index=0, error=ValueError("no"))
    entry = journal.find("a", None)
    told = [
        said(lambda: journal.write(result, request=None)),
        said(lambda: journal.note({"x": 1})),
        said(lambda: journal.read(entry, index=0)),
        said(lambda: list(journal.results())),
        said(lambda: list(journal.dead_letters())),
    ]
    try:
        await journal.sync()
    except JournalError as error:
        told.append(error.reason)
    return told

async def main():
    path = pathlib.Path(sys.argv[1])
    failed = FanOutResult(custom_id="a", index=0, error=ValueError("no"))
    async with Journal(path) as journal:
        journal.write(failed, request=None)
    async with Journal(path) as journal:
        journal.write(failed, request=None)
        journal.note({"n": 1})
        before = path.read_bytes()
        if sys.argv[2] == "busy":
            journal._busy.acquire()  # as a thread has it that syncs now
        pid = os.fork()
        if pid == 0:
            print(json.dumps(await child(journal)), flush=True)
            await journal.__aexit__(None, None, None)
            os._exit(7)  # an event loop that is closed in two processes wakes neither
        if sys.argv[2] == "busy":
            journal._busy.release()
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        print(json.dumps([code, path.read_bytes() == before]), flush=True)
        await journal.sync()
        journal.write(FanOutResult(custom_id="c", index=0, error=ValueError("no")), request=None)
    print(path.read_bytes().count(b"\\n"), len(pathlib.Path(f"{path}.state").read_bytes().splitlines()))

anyio.run(main)
"""


@pytest.mark.slow
@pytest.mark.parametrize("state", ["idle", "busy"])
def test_a_forked_process_touches_nothing_of_its_parent_s(tmp_path: Path, state: str) -> None:
    """Whatever it asks of the journal is an error that says what to do; leaving the block does nothing."""
    ran = subprocess.run(
        [sys.executable, "-c", FORKED, tmp_path / "a", state], capture_output=True, text=True, check=True, timeout=30
    )
    told, after, counts = ran.stdout.splitlines()
    said = f'"{lock._FORKED}"'
    assert told == f"[{', '.join([said] * 6)}]"
    assert after == "[7, true]"
    assert counts == "2 2", "notes have a first line that says whose they are"


READ_ON = """
import os, pathlib, sys
from penstock.batch.journal.file import JournalFile

file = JournalFile(pathlib.Path(sys.argv[1]))
for number in range(20_000):
    file.append(b"%d\\n" % number)
lines = file.lines()
read = [next(lines)[1] for _ in range(10)]
one = file.line_at(0)
pid = os.fork()
if pid == 0:
    try:
        next(lines)
    finally:
        sys.exit(0)
os.waitpid(pid, 0)
read += [raw for _, raw in lines]
print(one == b"0\\n", read == [b"%d\\n" % number for number in range(20_000)], file.line_at(10) == b"5\\n")
"""


@pytest.mark.slow
def test_a_forked_process_does_not_move_its_parent_s_place(tmp_path: Path) -> None:
    """A descriptor's place is shared; one that ends while a journal is read would have lines read twice."""
    ran = subprocess.run(
        [sys.executable, "-c", READ_ON, tmp_path / "a"], capture_output=True, text=True, check=True, timeout=30
    )
    assert ran.stdout == "True True True\n"


RACE = """
import os, pathlib, sys, threading, warnings
from penstock.batch.journal.file import JournalFile
warnings.simplefilter("ignore")
path = pathlib.Path(sys.argv[1])
stop = threading.Event()

def use():
    while not stop.is_set():
        file = JournalFile(path)
        file.append(b"x\\n")
        file.replace(iter([b"y\\n"]))
        file.close()

thread = threading.Thread(target=use)
thread.start()
leaks = 0
for _ in range(60):
    pid = os.fork()
    if pid == 0:
        held = 0
        for each in os.listdir("/proc/self/fd"):
            try:
                held += os.readlink(f"/proc/self/fd/{each}").startswith(str(path))
            except OSError:
                pass
        os._exit(held)
    leaks += os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
stop.set()
thread.join()
print(leaks)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="tells open files")
def test_no_fork_comes_between_opening_and_noting(tmp_path: Path) -> None:
    """Whenever a process is forked, it has no journal open: not one that another thread opens just then, either."""
    ran = subprocess.run(
        [sys.executable, "-c", RACE, tmp_path / "a"], capture_output=True, text=True, check=True, timeout=60
    )
    assert ran.stdout == "0\n"


def lock_fails(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Have every lock fail as a file system may."""

    def fails(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(lock, "_lock", fails)
    monkeypatch.setattr(lock, "_unlock", fails)
    monkeypatch.setattr(lock, "_told_of", set())


@pytest.mark.parametrize("name", ["ENOSYS", "ENOLCK", "ENOTSUP", "EOPNOTSUPP", "EINVAL"])
def test_without_locks_it_runs_and_says_so_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    """Not once a file: a run opens several. Within this process nobody opens it twice all the same."""
    lock_fails(monkeypatch, getattr(errno, name))
    with caplog.at_level(logging.WARNING, "penstock"):
        file = JournalFile(tmp_path / "a")
        file.append(b"one\ntwo\n")
        file.replace(iter([b"two\n"]))
        JournalFile(tmp_path / "b").close()
        with pytest.raises(JournalError, match="another journal of it is open"):
            JournalFile(tmp_path / "a")
        file.close()
        JournalFile(tmp_path / "a").close()
    assert (tmp_path / "a").read_bytes() == b"two\n"
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "has no locks" in record.getMessage()
    assert str(tmp_path / "a") in record.getMessage()


@pytest.mark.parametrize("name", ["EACCES", "EIO", "EBADF", "EPERM", "EINTR"])
def test_a_lock_that_fails_otherwise_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """With what the system says, not as if somebody else had it; and nothing stays open."""
    number = getattr(errno, name)
    with monkeypatch.context() as patch:
        lock_fails(patch, number)
        with pytest.raises(JournalError, match="it could not be locked") as raised:
            JournalFile(tmp_path / "a")
    assert os.strerror(number) in raised.value.reason
    assert raised.value.path == str(tmp_path / "a")
    JournalFile(tmp_path / "a").close()


def test_one_that_is_held_is_told(tmp_path: Path) -> None:
    """As held, whatever else the system could say; closing it twice is closing it once."""
    held = LockedFile(tmp_path / "a")
    with pytest.raises(JournalError, match="another journal of it is open"):
        LockedFile(tmp_path / "a")
    assert repr(held) == "<LockedFile a>"
    held.close()
    held.close()
    assert repr(held) == "<LockedFile a, it is closed>"
    with pytest.raises(JournalError, match="it is closed"):
        held.fileno()
    LockedFile(tmp_path / "a").close()
