"""A file that one descriptor of one process may write: opened, locked, and given back.

The rule here: the lock is of the process that opened the file. The system gives a forked process every descriptor, and
with it the lock (`flock` belongs to what was opened, not to who opened it): a worker that outlives its parent would
hold it for good. So a forked process closes its copies before anything else runs there, and whoever closes a file in
order unlocks it first, whatever copies there are. Locks of `fcntl` would not be inherited, but they are no locks
within a process, and one is lost as soon as any descriptor of its file is closed. A started program gets no
descriptor at all: Python closes them when it is started.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import stat
import sys
import threading
from typing import TYPE_CHECKING, Final

from penstock.errors import JournalError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["LockedFile"]

_logger: Final = logging.getLogger("penstock")
_HELD: Final = (
    "another journal of it is open, in this process or another. One run writes it at a time: wait, or give another path"
)
_FORKED: Final = "it was opened by the process that this one was forked from. Open a Journal in the process that writes"
_CLOSED: Final = "it is closed"
# A file system that has no locks says so in many ways: some network mounts, FUSE, containers' sandboxes.
_NO_LOCKS: Final = frozenset((errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL))

if sys.platform == "win32":
    import msvcrt

    _TAKEN: Final = frozenset((errno.EACCES, errno.EAGAIN, errno.EDEADLK))
    # Locked regions can't be read by others there; this one is where no file ends.
    _FAR: Final = 1 << 62

    def _lock(descriptor: int) -> None:
        os.lseek(descriptor, _FAR, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)

    def _unlock(descriptor: int) -> None:
        os.lseek(descriptor, _FAR, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_UNLCK, 1)

else:
    import fcntl

    _TAKEN: Final = frozenset((errno.EAGAIN, errno.EWOULDBLOCK))

    def _lock(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def _unlock(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_UN)


class LockedFile:
    """An open file, for reading and for writing at its end, that nobody else has locked.

    Args:
        path: Where, links resolved; made with mode 0600 if there is none.
        flags: For `os.open`, besides those that every one has.

    Raises:
        OSError: It can't be opened.
        JournalError: It is no regular file, another has locked it, or locking failed.
    """

    __slots__ = ("_descriptor", "_gone", "_path")

    def __init__(self, path: Path, flags: int = 0) -> None:
        self._path = path
        self._gone = ""
        flags |= os.O_RDWR | os.O_APPEND | os.O_CREAT | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOFOLLOW", 0)
        with _forking:
            self._descriptor = os.open(path, flags, 0o600)
            _ours.add(self)
        try:
            self._take()
        except BaseException:
            self.close()
            raise

    def __repr__(self) -> str:
        return f"<LockedFile {self._path.name}{f', {self._gone}' if self._gone else ''}>"

    def fileno(self) -> int:
        """Return its descriptor.

        Raises:
            JournalError: It is closed, or this process was forked from the one that opened it.
        """
        if self._gone:
            raise JournalError(str(self._path), self._gone)
        return self._descriptor

    def _take(self) -> None:
        told = os.fstat(self._descriptor)
        if not stat.S_ISREG(told.st_mode):
            raise JournalError(str(self._path), "it is no regular file. Give the path of one")
        try:
            _lock(self._descriptor)
        except OSError as error:
            if error.errno in _TAKEN or (error.errno in _NO_LOCKS and self._is_open_here(told)):
                raise JournalError(str(self._path), _HELD) from None
            if error.errno not in _NO_LOCKS:
                raise JournalError(
                    str(self._path),
                    f"it could not be locked ({error.strerror or error}). Look after the disk that it is on, or give a "
                    "path on another",
                ) from error
            if told.st_dev not in _told_of:
                _told_of.add(told.st_dev)
                _logger.warning(
                    "journal %s: the file system it is on has no locks (%s); nothing but you keeps a second process "
                    "from writing it",
                    self._path,
                    error.strerror or error,
                )

    def _is_open_here(self, told: os.stat_result) -> bool:
        with _forking:
            others = [other._descriptor for other in _ours if other is not self]  # noqa: SLF001 - its own kind
            return any(os.path.samestat(os.fstat(other), told) for other in others)

    def close(self) -> None:
        """Unlock and close it; closing it again, or in a forked process, does nothing."""
        with _forking:
            if not self._gone:
                self._gone = _CLOSED
                _ours.discard(self)
                with contextlib.suppress(OSError):
                    _unlock(self._descriptor)
                os.close(self._descriptor)

    def leave(self) -> None:
        """Close it in a forked process; the parent keeps the lock."""
        self._gone = _FORKED
        with contextlib.suppress(OSError):
            os.close(self._descriptor)


# What is open in this process. A file is opened and noted in one step, and so it is closed: no fork comes between.
_ours: Final[set[LockedFile]] = set()
_forking: Final = threading.RLock()
# Devices whose lack of locks was told.
_told_of: Final[set[int]] = set()


def _leave_to_parent() -> None:
    while _ours:
        _ours.pop().leave()
    _forking.release()


if sys.platform != "win32":
    os.register_at_fork(before=_forking.acquire, after_in_parent=_forking.release, after_in_child=_leave_to_parent)
