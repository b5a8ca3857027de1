"""The file under a journal: append, sync, one writer.

The rule here: every failure of the system becomes a `JournalError` that says what to do, and after a failed write the
file ends where it ended before. Everything here blocks; whoever must not be blocked calls it in a thread.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import secrets
import stat
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from penstock.batch.journal.lock import LockedFile
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
_PIECE: Final = 1 << 16

if sys.platform == "win32":

    def _read_at(descriptor: int, size: int, start: int) -> bytes:
        os.lseek(descriptor, start, os.SEEK_SET)
        return os.read(descriptor, size)

else:
    _read_at: Final = os.pread


class _Reader(io.RawIOBase):
    """Reads a file from a place of its own: the place of a descriptor is shared with every forked process."""

    def __init__(self, file: LockedFile) -> None:
        self._file = file
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        self._at = offset if whence == os.SEEK_SET else self._at + offset
        return self._at

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override] # it is what a BufferedReader gives
        data = _read_at(self._file.fileno(), len(buffer), self._at)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


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

    __slots__ = ("_file", "_reader", "broken", "made", "path", "size")

    def __init__(self, path: Path) -> None:
        self.path = Path(os.path.realpath(path))
        self.broken: JournalError | None = None
        self.made = False
        self._reader: io.BufferedReader | None = None
        with self._explained():
            if path.is_symlink() and not self.path.exists():
                # Else whoever made the link would say where answers go.
                raise JournalError(
                    str(path), "it is a link to a file that is not there. Make that file, or give a path"
                )
            self._file = self._opened()
            try:
                self.size = os.fstat(self._file.fileno()).st_size
                if self.made:
                    self._sync_folder()
            except BaseException:
                self.close()
                raise

    def __repr__(self) -> str:
        return f"<JournalFile {self.path.name}, {self.size} bytes>"

    def _opened(self) -> LockedFile:
        while True:
            self.made = not self.path.exists()
            file = LockedFile(self.path)
            try:
                if self._is(file):
                    return file
            except BaseException:
                file.close()
                raise
            # Its last writer replaced it between the opening and the lock.
            file.close()

    def _is(self, file: LockedFile) -> bool:
        """Return whether the path still leads to the open file."""
        try:
            return os.path.samestat(self.path.stat(), os.fstat(file.fileno()))
        except FileNotFoundError:
            return False

    @contextlib.contextmanager
    def _explained(self) -> Generator[None]:
        try:
            yield
        except OSError as error:
            raise self._told(error) from error

    def changed(self, how: str) -> JournalError:
        """Return the error for a file that another program has changed."""
        return JournalError(
            str(self.path),
            f"another program has changed it while it was open: {how}. See that none does, and run again: what is "
            "missing in it is asked again",
        )

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
        start, descriptor = self.size, self._file.fileno()
        try:
            written = os.write(descriptor, data)
            while written < len(data):
                written += os.write(descriptor, data[written:])
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
            os.ftruncate(self._file.fileno(), size)
        self.size = size

    def lines(self) -> Iterator[tuple[int, bytes]]:
        """Return every line and where it begins; the last may lack its newline."""
        with self._explained():
            start = 0
            for raw in self._read():
                yield start, raw
                start += len(raw)

    def line_at(self, start: int) -> bytes:
        """Return the line that begins at `start`."""
        with self._explained():
            if self._reader is None:
                self._reader = self._read()
            self._reader.seek(start)
            return self._reader.readline()

    def _read(self) -> io.BufferedReader:
        return io.BufferedReader(_Reader(self._file), _PIECE)

    def sync(self) -> None:
        """Have the disk hold all that was written.

        Raises:
            JournalError: It can't, or the path leads to another file by now, or to none, or something of it is gone.
        """
        written = self.size
        with self._explained():
            os.fsync(self._file.fileno())
            # Another thread may write meanwhile, but takes nothing away.
            left = os.fstat(self._file.fileno()).st_size
        if not self._is(self._file):
            reason = "it was moved or deleted while it was written. Move it back and run again"
            self.broken = JournalError(str(self.path), reason)
            raise self.broken
        if left < written:
            self.broken = self.changed(f"{written - left:,} bytes are gone")
            raise self.broken

    def replace(self, lines: Iterator[bytes]) -> None:
        """Put other lines in place of the present ones, all or nothing.

        Raises:
            JournalError: It can't be done; the file is as it was.
        """
        if os.fstat(self._file.fileno()).st_size != self.size:
            raise self.changed("it has another size than was written")
        # A name that nobody else has: what stands beside it under any other may be the user's.
        beside = self.path.with_name(f".penstock-{secrets.token_hex(8)}.new")
        with self._explained():
            file = LockedFile(beside, os.O_EXCL)
            try:
                beside.chmod(stat.S_IMODE(os.fstat(self._file.fileno()).st_mode))
                with os.fdopen(file.fileno(), "ab", closefd=False) as stream:
                    stream.writelines(lines)
                os.fsync(file.fileno())
                beside.replace(self.path)
            except BaseException:
                file.close()
                beside.unlink(missing_ok=True)
                raise
            self.close()
            self._reader, self._file, self.size = None, file, os.fstat(file.fileno()).st_size
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
        """Close it, which gives the lock back; in a forked process, the parent keeps both."""
        self._file.close()
