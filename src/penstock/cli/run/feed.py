"""The way of requests from the input into a run.

The rule here: an input that can be read twice is checked as a whole before anything is sent; one that can't, a pipe, is
checked line by line as it comes, and its first bad line ends the reading. What a journal holds goes no further.
"""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, Any, Final, Self

import anyio.lowlevel

from penstock.batch.journal.request import RequestDigest
from penstock.cli.run.lines import BadInput
from penstock.cli.run.requests import requests
from penstock.cli.run.thread import OneThread
from penstock.errors import JournalError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from penstock.batch.journal import Entry, Journal
    from penstock.batch.progress import Tally
    from penstock.cli.run.lines import Input
    from penstock.cli.run.requests import Reading, Request

__all__ = ["Feed"]


# Whoever waits for the event loop must not wait until a million known requests are passed over.
_AT_A_STRETCH: Final = 100


class Feed:
    """Requests on their way: an async iterable of what is to be asked.

    Args:
        source: Where they come from.
        reading: How to read them.

    Attributes:
        total: Their number; `None` for a pipe.
        tally: Where they are counted, once there is one.
    """

    def __init__(self, source: Input, reading: Reading) -> None:
        self.total: int | None = None
        self.tally: Tally | None = None
        self._source = source
        self._reading = reading
        self._requests = self._all()
        self._thread = None if source.again else OneThread("penstock-input")
        self._journal: Journal | None = None
        self._digest = RequestDigest({})
        self._retry_failed = False

    def __repr__(self) -> str:
        return f"<Feed of {self._source.name}, {self.tally}>"

    def close(self) -> None:
        """Let go of the thread that reads."""
        if self._thread is not None:
            self._thread.close()

    def _all(self) -> Iterator[Request]:
        """Give the requests from the beginning."""
        try:
            yield from requests(self._source.lines(), self._reading)
        except BadInput as error:
            error.source = self._source.name
            raise

    # Before the run

    def check(self) -> None:
        """Read an input that can be read twice from end to end; blocks.

        Raises:
            BadInput: A line is no request, or there are none.
        """
        if self._source.again:
            self.total = sum(1 for _ in self._all())
            if not self.total:
                raise self._bad("there are no requests in it")

    async def wait(self) -> None:
        """Wait for the first request of a pipe.

        Raises:
            BadInput: It is none, or there are none.
        """
        if self._thread is not None:
            first = await self._read()
            if first is None:
                raise self._bad("there are no requests in it")
            self._requests = chain([first], self._requests)

    async def look_up(self, journal: Journal, common: Mapping[str, Any], *, retry_failed: bool) -> None:
        """Let nothing on that a journal holds; an input that can be read twice is checked against it at once.

        Args:
            journal: As an earlier run left it.
            common: Params of every request.
            retry_failed: Whether failed requests go on.

        Raises:
            BadInput: The journal belongs to other requests.
        """
        if journal.answered + journal.failed:
            self._journal, self._digest, self._retry_failed = journal, RequestDigest(common), retry_failed
            if self._source.again:
                thread = OneThread("penstock-check")
                try:
                    await thread.run(self._check_journal)
                finally:
                    thread.close()

    def _check_journal(self) -> None:
        if not sum(self._entry(request) is not None for request in self._all()):
            raise self._bad(
                "none of these requests is in the file of results, which is of another run: give -o another name"
            )

    def _entry(self, request: Request) -> Entry | None:
        if self._journal is None:
            return None
        try:
            digest = self._digest(request.fields["params"])
            return self._journal.find(request.custom_id, digest, retry_failed=self._retry_failed)
        except JournalError as error:
            raise self._bad(str(error), line=request.line) from None

    def _bad(self, reason: str, *, line: int | None = None) -> BadInput:
        error = BadInput(reason, line=line)
        error.source = self._source.name
        return error

    # During the run

    def __aiter__(self) -> Self:
        """Give what is to be asked."""
        return self

    async def __anext__(self) -> dict[str, Any]:
        """Read on.

        Raises:
            BadInput: A line is no request.
        """
        passed = 0
        while (request := await self._read()) is not None:
            entry = self._entry(request)
            new = entry is None or (self._retry_failed and not entry.ok)
            self._count(new=new)
            if new:
                return request.fields
            passed += 1
            if passed % _AT_A_STRETCH == 0:
                await anyio.lowlevel.checkpoint()
        raise StopAsyncIteration

    async def _read(self) -> Request | None:
        if self._thread is None:
            return next(self._requests, None)
        return await self._thread.run(lambda: next(self._requests, None))

    def _count(self, *, new: bool) -> None:
        if self.tally is not None and new:
            self.tally.start()
        elif self.tally is not None:
            self.tally.resumed += 1
