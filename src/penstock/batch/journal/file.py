"""The file under a journal: append, sync, one writer.

The rule here: every failure of the system becomes a `JournalError` that says what to do, and after a failed write the
file ends where it ended before. Everything here blocks; whoever must not be blocked calls it in a thread.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import sys
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final

from penstock.errors import JournalError

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

__all__ = ["JournalFile"]

_REASONS: Final = {
    **dict.fromkeys(
        (errno.ENOSPC, errno.EFBIG, errno.EDQUOT),
        "there is no room for more. Make some and run again: what is in it is whole",
    ),
    **dict.fromkeys(
        (errno.EACCES, errno.EPERM, errno.EROFS), "it may not be written to. Allow it, or give another path"
    ),
    **dict.fromkeys((errno.ENOENT, errno.ENOTDIR), "its folder does not exist. Make it first"),
    errno.EISDIR: "it is a folder. Give the path of a file",
}
_LOCKED: Final = (
    "another journal of it is open, in this process or another. One run writes it at a time: wait, or give another path"
)

if sys.platform == "win32":
    import msvcrt

    # Locked regions can't be read by others there; this one is where no file ends.
    _FAR: Final = 1 << 62

    def _lock(descriptor: int) -> None:
        os.lseek(descriptor, _FAR, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)

else:
    import fcntl

    def _lock(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


class JournalFile:
    """An append-only file that this object alone writes.

    Args:
        path: Where; made with mode 0600 if there is none.

    Attributes:
        path: As given, links resolved.
        size: Bytes in it.
        made: Whether it was made now.

    Raises:
        JournalError: It can't be opened, or another writes it.
    """

    __slots__ = ("_descriptor", "_reader", "broken", "made", "path", "size")

    def __init__(self, path: Path) -> None:
        self.path = Path(os.path.realpath(path))
        self.broken: JournalError | None = None
        self.made = False
        self._reader: BinaryIO | None = None
        with self._explained():
            self._descriptor = self._opened()
            try:
                self.size = os.fstat(self._descriptor).st_size
                if self.made:
                    self._sync_folder()
            except BaseException:
                self.close()
                raise

    def __repr__(self) -> str:
        return f"<JournalFile {self.path.name}, {self.size} bytes>"

    def _opened(self) -> int:
        while True:
            self.made = not self.path.exists()
            descriptor = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o600)
            try:
                self._take(descriptor)
                if self._is(descriptor):
                    return descriptor
            except BaseException:
                os.close(descriptor)
                raise
            # Its last writer replaced it between the opening and the lock.
            os.close(descriptor)

    def _take(self, descriptor: int) -> None:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise JournalError(str(self.path), "it is no regular file. Give the path of one")
        try:
            _lock(descriptor)
        except OSError:
            raise JournalError(str(self.path), _LOCKED) from None

    def _is(self, descriptor: int) -> bool:
        """Return whether the path still leads to the open file."""
        try:
            return os.path.samestat(self.path.stat(), os.fstat(descriptor))
        except FileNotFoundError:
            return False

    @contextlib.contextmanager
    def _explained(self) -> Generator[None]:
        try:
            yield
        except OSError as error:
            raise self._told(error) from error

    def _told(self, error: OSError) -> JournalError:
        return JournalError(str(self.path), _REASONS.get(error.errno or 0, f"{error.strerror or error}"))

    def append(self, data: bytes) -> int:
        """Write at the end.

        Returns:
            Where it begins, in bytes from the start of the file.

        Raises:
            JournalError: It could not be written, and nothing of it is; or an earlier write failed.
        """
        if self.broken is not None:
            raise JournalError(self.broken.path, self.broken.reason)
        start = self.size
        try:
            written = os.write(self._descriptor, data)
            while written < len(data):
                written += os.write(self._descriptor, data[written:])
        except BaseException as error:
            if isinstance(error, OSError):
                self.broken = self._told(error)
            self.cut(start)
            if self.broken is not None:
                raise JournalError(self.broken.path, self.broken.reason) from error
            raise
        self.size = start + len(data)
        return start

    def cut(self, size: int) -> None:
        """End the file at `size` bytes."""
        with self._explained():
            os.ftruncate(self._descriptor, size)
        self.size = size

    def lines(self) -> Iterator[tuple[int, bytes]]:
        """Return every line and where it begins; the last may lack its newline."""
        with self._explained(), self.path.open("rb") as file:
            start = 0
            for raw in file:
                yield start, raw
                start += len(raw)

    def line_at(self, start: int) -> bytes:
        """Return the line that begins at `start`."""
        with self._explained():
            if self._reader is None:
                self._reader = self.path.open("rb")
            self._reader.seek(start)
            return self._reader.readline()

    def sync(self) -> None:
        """Have the disk hold all that was written.

        Raises:
            JournalError: It can't, or the path leads to another file by now, or to none.
        """
        with self._explained():
            os.fsync(self._descriptor)
        if not self._is(self._descriptor):
            self.broken = JournalError(
                str(self.path), "it was moved or deleted while it was written. Move it back and run again"
            )
            raise self.broken

    def replace(self, lines: Iterator[bytes]) -> None:
        """Put other lines in place of the present ones, all or nothing.

        Raises:
            JournalError: It can't be done; the file is as it was.
        """
        beside = self.path.with_name(self.path.name + ".new")
        with self._explained():
            try:
                beside.unlink(missing_ok=True)
                descriptor = os.open(beside, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_EXCL, 0o600)
                try:
                    _lock(descriptor)
                    beside.chmod(stat.S_IMODE(os.fstat(self._descriptor).st_mode))
                    with os.fdopen(descriptor, "ab", closefd=False) as file:
                        file.writelines(lines)
                    os.fsync(descriptor)
                    beside.replace(self.path)
                except BaseException:
                    os.close(descriptor)
                    raise
            except BaseException:
                beside.unlink(missing_ok=True)
                raise
            self.close()
            self._descriptor, self.size = descriptor, os.fstat(descriptor).st_size
            self._sync_folder()

    def _sync_folder(self) -> None:
        """Have the disk hold the file's name as well; some systems can't, and need not."""
        with contextlib.suppress(OSError):
            folder = os.open(self.path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)

    def close(self) -> None:
        """Close it, which gives the lock back."""
        if self._reader is not None:
            self._reader.close()
            self._reader = None
        os.close(self._descriptor)
