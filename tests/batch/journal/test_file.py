from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest

from penstock import JournalError
from penstock.batch.journal.file import JournalFile

if TYPE_CHECKING:
    from pathlib import Path


def lines(file: JournalFile) -> list[bytes]:
    """All lines."""
    return [raw for _, raw in file.lines()]


def test_what_is_appended_stands_there(tmp_path: Path) -> None:
    """Each where it was said to begin, after what was there before."""
    path = tmp_path / "a"
    path.write_bytes(b"before\n")
    file = JournalFile(path)
    assert file.append(b"one\n") == 7
    assert file.append(b"two\n") == 11
    assert (file.size, path.read_bytes()) == (15, b"before\none\ntwo\n")
    assert list(file.lines()) == [(0, b"before\n"), (7, b"one\n"), (11, b"two\n")]
    assert (file.line_at(7), file.line_at(0)) == (b"one\n", b"before\n")
    assert repr(file) == "<JournalFile a, 15 bytes>"
    file.cut(7)
    file.sync()
    file.close()
    assert path.read_bytes() == b"before\n"


@pytest.mark.parametrize("umask", [0o000, 0o077])
def test_a_new_file_is_for_its_owner_alone(tmp_path: Path, umask: int) -> None:
    """It holds prompts' answers; an old file keeps its mode."""
    before = os.umask(umask)
    try:
        JournalFile(tmp_path / "a").close()
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o600
    (tmp_path / "a").chmod(0o644)
    JournalFile(tmp_path / "a").close()
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o644


def test_it_is_opened_once_at_a_time(tmp_path: Path) -> None:
    """In this process too, through whatever link; closing it lets others have it."""
    path, link = tmp_path / "a", tmp_path / "link"
    link.symlink_to(path)
    file = JournalFile(path)
    for other in (path, link):
        with pytest.raises(JournalError, match="another journal of it is open"):
            JournalFile(other)
    file.close()
    JournalFile(link).close()
    assert link.is_symlink()


ELSEWHERE = """
import os, pathlib, resource, sys
from penstock import JournalError
from penstock.batch.journal.file import JournalFile
locked, unwritable, full = map(pathlib.Path, sys.argv[1:])

def attempt(what):
    try:
        return what()
    except JournalError as error:
        print(error.reason)

attempt(lambda: JournalFile(locked))
file = JournalFile(full)
file.append(b"x" * 900 + b"\\n")
resource.setrlimit(resource.RLIMIT_FSIZE, (1024, 1024))
attempt(lambda: file.append(b"y" * 900 + b"\\n"))
print(full.stat().st_size, file.size)
attempt(lambda: file.append(b"z\\n"))
file.close()
if os.geteuid() == 0:
    os.seteuid(65534)  # to root everything is allowed
attempt(lambda: JournalFile(unwritable))
"""


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], Path]:
    """What another process says of three files: one that is open here, one that may not be written, a full one."""
    folder = tmp_path_factory.mktemp("files")
    for each in (folder, *folder.parents):
        if each.name.startswith("pytest") and each.owner() == folder.owner():
            each.chmod(0o755)
    folder.chmod(0o755)
    paths = [folder / name for name in ("locked", "unwritable", "full")]
    paths[1].touch(0o444)
    file = JournalFile(paths[0])
    ran = subprocess.run([sys.executable, "-c", ELSEWHERE, *paths], capture_output=True, text=True, check=True)
    file.close()
    return ran.stdout.splitlines(), paths[2]


@pytest.mark.slow
def test_another_process_cannot_open_it(elsewhere: tuple[list[str], Path]) -> None:
    """The lock is the system's."""
    assert elsewhere[0][0].startswith("another journal of it is open, in this process or another")


@pytest.mark.slow
def test_a_full_disk_leaves_no_half_line(elsewhere: tuple[list[str], Path]) -> None:
    """A line that finds no room is not there at all, and nothing is written after it."""
    said, path = elsewhere
    assert said[1].startswith("there is no room for more")
    assert said[2] == "901 901"
    assert said[3] == said[1]
    assert path.read_bytes() == b"x" * 900 + b"\n"


@pytest.mark.slow
def test_a_file_that_may_not_be_written_is_told(elsewhere: tuple[list[str], Path]) -> None:
    """Before anything is asked."""
    assert elsewhere[0][4].startswith("it may not be written to")


def test_where_no_file_can_be_is_told(tmp_path: Path) -> None:
    """What is wrong and what to do."""
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "pipe")
    for path, said in (
        (tmp_path, "it is a folder"),
        (tmp_path / "no" / "a", "its folder does not exist"),
        (tmp_path / "file" / "a", "its folder does not exist"),
        (tmp_path / "pipe", "it is no regular file"),
        (tmp_path / ("x" * 300), "File name too long"),
    ):
        with pytest.raises(JournalError, match=said) as raised:
            JournalFile(path)
        assert raised.value.path == str(path)


def test_what_interrupts_the_opening_leaves_nothing_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lock is given back."""

    def interrupted(self: JournalFile) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(JournalFile, "_sync_folder", interrupted)
        with pytest.raises(KeyboardInterrupt):
            JournalFile(tmp_path / "a")
    JournalFile(tmp_path / "a").close()


def test_a_signal_in_the_middle_leaves_no_half_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What interrupts a write takes it back, and the next one is whole."""
    file = JournalFile(tmp_path / "a")
    file.append(b"one\n")
    real = os.write

    def interrupted(descriptor: int, data: bytes) -> int:
        if len(data) == 3:
            raise KeyboardInterrupt
        return real(descriptor, data[:1])

    monkeypatch.setattr(os, "write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        file.append(b"four")
    monkeypatch.undo()
    file.append(b"two\n")
    assert lines(file) == [b"one\n", b"two\n"]
    file.close()


@pytest.mark.parametrize("what", ["moved", "deleted", "replaced"])
def test_a_file_that_is_taken_away_is_noticed(tmp_path: Path, what: str) -> None:
    """Else results would be written to where nobody looks."""
    path = tmp_path / "a"
    file = JournalFile(path)
    file.append(b"one\n")
    file.sync()
    if what == "deleted":
        path.unlink()
    else:
        path.rename(tmp_path / "b")
    if what == "replaced":
        path.write_bytes(b"other\n")
    with pytest.raises(JournalError, match="it was moved or deleted"):
        file.sync()
    with pytest.raises(JournalError, match="it was moved or deleted"):
        file.append(b"two\n")
    file.close()


def test_other_lines_take_its_place_all_at_once(tmp_path: Path) -> None:
    """It stays locked, keeps its mode, and can be written on."""
    path = tmp_path / "a"
    path.touch(0o640)
    file = JournalFile(path)
    file.append(b"one\ntwo\nthree\n")
    file.replace(raw for raw in lines(file) if raw != b"two\n")
    assert path.read_bytes() == b"one\nthree\n"
    assert path.stat().st_mode & 0o777 == 0o640
    with pytest.raises(JournalError):
        JournalFile(path)
    assert file.append(b"four\n") == 10
    assert file.line_at(4) == b"three\n"
    file.close()
    assert [each.name for each in tmp_path.iterdir()] == ["a"]


def test_lines_that_fail_replace_nothing(tmp_path: Path) -> None:
    """The file is as it was, and nothing is left beside it."""
    file = JournalFile(tmp_path / "a")
    file.append(b"one\n")

    def failing() -> object:
        yield b"two\n"
        raise OSError(28, "No space left on device")

    with pytest.raises(JournalError, match="no room"):
        file.replace(failing())  # type: ignore[arg-type]
    assert file.append(b"three\n") == 4
    file.close()
    assert (tmp_path / "a").read_bytes() == b"one\nthree\n"
    assert [each.name for each in tmp_path.iterdir()] == ["a"]


def test_a_file_that_was_replaced_while_it_was_opened_is_opened_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever had the lock may have put another file in its place before giving it back."""
    path = tmp_path / "a"
    path.write_bytes(b"old\n")
    real, opened = os.open, 0

    def slow(where: Path, flags: int, mode: int = 0o777) -> int:
        nonlocal opened
        descriptor = real(where, flags, mode)
        opened += where == path
        if opened == 1:
            (tmp_path / "b").write_bytes(b"new\n")
            (tmp_path / "b").rename(path)
        elif opened == 2 and where == path:
            path.unlink()
        return descriptor

    monkeypatch.setattr(os, "open", slow)
    file = JournalFile(path)
    assert opened == 3
    assert file.append(b"more\n") == 0
    file.close()
    assert path.read_bytes() == b"more\n"


@pytest.mark.slow
def test_a_killed_process_loses_nothing_it_wrote(tmp_path: Path) -> None:
    """What `append` has returned from is in the file, and the lock is gone with the process."""
    path = tmp_path / "a"
    program = (
        "import sys, pathlib, time\n"
        "from penstock.batch.journal.file import JournalFile\n"
        "file = JournalFile(pathlib.Path(sys.argv[1]))\n"
        "for number in range(1_000_000):\n"
        "    file.append(b'%d\\n' % number)\n"
        "    print(number, flush=True)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program, path], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        for line in child.stdout:
            if int(line) == 300:
                child.send_signal(signal.SIGKILL)
                break
        told = [300, *map(int, child.stdout.read().split())]
    file = JournalFile(path)
    written = [int(raw) for raw in lines(file)]
    file.close()
    assert written[: told[-1] + 1] == list(range(told[-1] + 1))
    assert len(written) <= told[-1] + 2


def test_syncing_while_writing_is_safe(tmp_path: Path) -> None:
    """One thread syncs, another appends."""
    file = JournalFile(tmp_path / "a")
    stop = threading.Event()

    def sync() -> None:
        while not stop.is_set():
            file.sync()

    thread = threading.Thread(target=sync)
    thread.start()
    for number in range(300):
        file.append(b"%d\n" % number)
    stop.set()
    thread.join()
    assert [int(raw) for raw in lines(file)] == list(range(300))
    file.close()
