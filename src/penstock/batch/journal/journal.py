"""The journal: what came of every item, in a file that survives the process.

The rule here: a result is in the file before anybody is told of it. `write` hands the line to the system at once, so
that a killed process loses nothing; the disk is synced every `fsync_s` seconds, in the journal's own thread, so that a
power failure loses at most what was written since. What stands in the file is never asked again.

A journal is a Message Batches result file (`penstock.batch.journal.lines`), one line an item. Beside it, if there is
anything to note, lies `<name>.state` with what a run must remember besides (the ids of message batches). Both hold
content or lead to it, and are made with mode 0600. One journal of a file can be open at a time.

    async with Journal("run.jsonl") as journal:     # locks it, reads it, cuts off a torn last line
        entry = journal.find("a", digest)           # what an earlier run wrote; JournalError if for another request
        result = journal.read(entry, index=0)       # the same as a FanOutResult
        journal.write(result, request=digest)       # in the file when it returns
        journal.note({"batch": "msgbatch_…"})       # on the disk when it returns
        group.start_soon(journal.keep_synced)       # fsync now and then, until cancelled

An item that failed and is asked again has two lines until the journal is closed in order; the last one counts.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

import anyio

from penstock.batch.journal.file import JournalFile
from penstock.batch.journal.index import Entry, JournalIndex
from penstock.batch.journal.lines import Line, State, decode_line, read_line, write_line
from penstock.batch.journal.notes import JournalNotes
from penstock.batch.journal.request import same_prompt
from penstock.batch.result import DeadLetter, FanOutResult
from penstock.errors import JournalError

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Mapping
    from types import TracebackType

__all__ = ["DeadLetter", "Entry", "Journal", "logged_journal_errors"]

_logger: Final = logging.getLogger("penstock")


class Journal:
    """A file of results that a run appends to, and a later run goes on from.

    Args:
        path: Of the file; made if there is none. Its folder must exist.
        fsync_s: Seconds between two syncs of the disk, more than 0: what a power failure may cost. A process that is
            killed loses nothing.
        keep_params: Whether the line of a failed item keeps its params, to ask it again without the input.

    Attributes:
        path: Of the file.
        repaired_bytes: Length of the torn last line that was cut off when it was opened.

    Raises:
        ValueError: `fsync_s` is not a number above 0.

    Example:
        >>> import tempfile
        >>> async def main() -> None:
        ...     with tempfile.TemporaryDirectory() as folder:
        ...         async with Journal(Path(folder) / "run.jsonl") as journal:
        ...             journal.write(FanOutResult(custom_id="a", index=0, error=ValueError("no")), request=None)
        ...             print(journal)
        >>> anyio.run(main)
        <Journal run.jsonl, 0 answered, 1 failed>
    """

    def __init__(self, path: str | os.PathLike[str], *, fsync_s: float = 1.0, keep_params: bool = False) -> None:
        if not fsync_s > 0:
            raise ValueError(f"fsync_s must be a number of seconds above 0, not {fsync_s!r}")
        self.path = Path(path)
        self.repaired_bytes = self._opened_size = 0
        self._fsync_s = fsync_s
        self._keep_params = keep_params
        self._index = JournalIndex()
        self._file: JournalFile | None = None
        self._notes: JournalNotes | None = None
        self._changed = asyncio.Event()
        # Opening, syncing and closing run in threads, which go on when whoever waits for them is cancelled.
        self._busy = threading.Lock()
        # One of its own, made when it opens: a pool of others may be full for as long as they like.
        self._thread: ThreadPoolExecutor | None = None
        # A process that is forked later has a copy of this object, but neither the file nor the thread.
        self._process = os.getpid()
        self._used = self._closed = False

    def __repr__(self) -> str:
        return f"<Journal {self.path.name}, {self.answered} answered, {self.failed} failed>"

    @property
    def answered(self) -> int:
        """Items that are answered in it."""
        return self._index.answered

    @property
    def failed(self) -> int:
        """Items that failed, by it."""
        return self._index.failed

    @property
    def damaged_lines(self) -> int:
        """Lines that could not be read when it was opened; their items are asked again.

        They are taken out when it is closed, if anything was written.
        """
        return len(self._index.damaged)

    @property
    def notes(self) -> list[dict[str, Any]]:
        """What was noted beside it, in order, by earlier runs too."""
        return [] if self._notes is None else self._notes.all

    # Its life

    async def __aenter__(self) -> Self:
        """Open it, in a thread.

        Raises:
            JournalError: It can't be opened or written, is open elsewhere, or holds what is no result.
        """
        if self._used:
            raise RuntimeError("a journal is opened once; make a new one")
        self._used = True
        self._process = os.getpid()
        try:
            await self._in_thread(self._open)
        except BaseException:
            self._abandon()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Sync it, take out lines that later ones have replaced, and let others have it.

        In a process that was forked while it was open, this does nothing: it is the parent's.

        Raises:
            JournalError: It can't be synced.
        """
        if not self._is_ours():
            return
        try:
            with anyio.CancelScope(shield=True):
                await self._in_thread(self._close)
        finally:
            # Where not even the shield held: waits for the thread, or does its work.
            self._abandon()

    def _abandon(self) -> None:
        if self._is_ours():
            self._close(in_order=False)
            if self._thread is not None:
                self._thread.shutdown(wait=False)

    async def _in_thread(self, work: Callable[[], None]) -> None:
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="penstock-journal")
        await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def _is_ours(self) -> bool:
        return os.getpid() == self._process

    def _open(self) -> None:
        with self._busy:
            if not self._closed:
                self._file = JournalFile(self.path)
                self.repaired_bytes = self._index.load(self._file)
                self._opened_size = self._file.size
                self._notes = JournalNotes(self._file.path.with_name(self._file.path.name + ".state"))

    def _close(self, *, in_order: bool = True) -> None:
        with self._busy:
            if self._closed:
                return
            self._closed = True
            try:
                if self._file is not None and in_order:
                    self._finish(self._file)
            finally:
                if self._file is not None:
                    self._file.close()
                if self._notes is not None:
                    self._notes.close()

    def _finish(self, file: JournalFile) -> None:
        if file.broken is not None:
            # Whoever wrote was told; what was written before is worth keeping all the same.
            with contextlib.suppress(JournalError):
                file.sync()
            return
        file.sync()
        if self._index.superseded or (self._index.damaged and file.size != self._opened_size):
            try:
                file.replace(self._index.current(file))
            except JournalError as error:
                # All is there; only the lines that no longer count are, too.
                _logger.warning("journal %s keeps lines that no longer count: %s", file.path, error.reason)

    def _opened(self) -> JournalFile:
        if self._file is None or self._closed:
            raise RuntimeError("use it inside `async with Journal(…) as journal:`")
        return self._file

    # What it holds

    def find(
        self, custom_id: str, request: str | None, *, by_place: bool = False, retry_failed: bool = False
    ) -> Entry | None:
        """Look up whether an item needs to be asked; that is decided by its id.

        What this run writes is found only for items that had a line before: a million new ones take no memory.

        Args:
            custom_id: Of the item.
            request: Digest of its request, from `RequestDigest`; `None` to take any.
            by_place: Whether the id is but the item's place in the input: then the prompt must be the same.
            retry_failed: Whether an item that failed is asked again.

        Returns:
            What is there; `None` if the item has yet to be asked.

        Raises:
            JournalError: Another prompt had this place.
        """
        entry = self._index.get(custom_id)
        if entry is None or entry.state is State.UNASKED or (retry_failed and not entry.ok):
            return None
        if by_place and entry.request and request is not None and not same_prompt(entry.request, int(request, 16)):
            raise JournalError(
                str(self.path),
                f"item {custom_id[:64]} was another prompt, and plain prompts are known by their place only. Give them "
                "a custom_id each, or give this run another journal",
            )
        return entry

    def read(self, entry: Entry, *, index: int) -> FanOutResult:
        """Read a result back.

        Args:
            entry: From `find`.
            index: Place of the item in the input, from 0.

        Raises:
            JournalError: It can't be read.
        """
        file = self._opened()
        try:
            return FanOutResult.from_line(decode_line(file.line_at(entry.start)), index=index)
        except ValueError as error:
            raise file.changed(f"the line at byte {entry.start} {error}") from None

    def results(self) -> Iterator[FanOutResult]:
        """Return what it holds, in the order in which it came; blocks while it reads.

        Raises:
            JournalError: It can't be read.
        """
        for index, raw in enumerate(self._index.current(self._opened())):
            yield FanOutResult.from_line(json.loads(raw), index=index)

    def dead_letters(self) -> Iterator[DeadLetter]:
        """Return the items that failed and why; blocks while it reads.

        Raises:
            JournalError: It can't be read.
        """
        for raw in self._index.current(self._opened()):
            read = read_line(raw)
            line = json.loads(raw)
            error = FanOutResult.from_line(line, index=0).error
            if error is not None and read is not None and read.state is State.FAILED:
                params = line.get("penstock", {}).get("params")
                yield DeadLetter(custom_id=line["custom_id"], error=error, params=params)

    # What it is told

    def write(
        self,
        result: FanOutResult,
        *,
        request: str | None,
        params: Mapping[str, Any] | None = None,
        retryable: bool = False,
    ) -> None:
        """Append a result; it is in the file when this returns, whatever becomes of the process.

        Args:
            result: What came of an item.
            request: Digest of its request; `None` if it isn't known.
            params: Of its request; kept for a failed item with `keep_params`.
            retryable: Whether the next run is to ask the item again.

        Raises:
            JournalError: It can't be written (no room, say): nothing of it is, and nothing will be from here on.
            TypeError: `params` are to be kept, and are nothing that JSON can hold.
        """
        kept = params if self._keep_params and not result.ok and not retryable else None
        start = self._opened().append(write_line(result, request=request, params=kept, retryable=retryable))
        self._changed.set()
        state = State.ANSWERED if result.ok else State.UNASKED if retryable else State.FAILED
        self._index.take_new(Line(custom_id=result.custom_id, state=state, request=int(request or "0", 16)), start)

    def note(self, record: Mapping[str, Any]) -> None:
        """Remember something beside the results; it is on the disk when this returns, which takes milliseconds.

        Args:
            record: What JSON can hold.

        Raises:
            JournalError: It can't be written.
        """
        self._opened()
        assert self._notes is not None  # noqa: S101 - opened together
        self._notes.add(record)

    async def sync(self) -> None:
        """Have the disk hold all that was written; waits in a thread.

        Raises:
            JournalError: It can't, or the file was moved or deleted.
        """
        self._changed.clear()
        if self._file is not None and not self._closed:
            await self._in_thread(self._sync) if self._is_ours() else self._file.sync()

    def _sync(self) -> None:
        with self._busy:
            if self._file is not None and not self._closed:
                self._file.sync()

    async def keep_synced(self) -> None:
        """Sync every `fsync_s` seconds while there is news; runs until it is cancelled.

        Raises:
            JournalError: As for `sync`.
        """
        while True:
            await self._changed.wait()
            await anyio.sleep(self._fsync_s)
            await self.sync()


@contextlib.contextmanager
def logged_journal_errors(*, instead: bool) -> Generator[None]:
    """Log a `JournalError` of the block instead of raising it, where another exception is on its way already."""
    try:
        yield
    except JournalError as error:
        if not instead:
            raise
        _logger.error("%s", error)  # noqa: TRY400 - it says all; the traceback may show content
