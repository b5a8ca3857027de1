"""The way of requests from the input into a run.

The rule here: an input that can be read twice is checked as a whole before anything is sent; one that can't, a pipe, is
checked line by line as it comes, and its first bad line ends the reading.
"""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, Any, Self

from penstock.cli.run.lines import BadInput
from penstock.cli.run.requests import requests
from penstock.cli.run.thread import OneThread

if TYPE_CHECKING:
    from collections.abc import Iterator

    from penstock.batch.journal import Journal
    from penstock.cli.run.lines import Input
    from penstock.cli.run.requests import Reading, Request

__all__ = ["Feed"]


class Feed:
    """Requests on their way: an async iterable of what is to be asked.

    Args:
        source: Where they come from.
        reading: How to read them.

    Attributes:
        total: Their number; `None` for a pipe.
    """

    def __init__(self, source: Input, reading: Reading) -> None:
        self.total: int | None = None
        self._source = source
        self._reading = reading
        self._requests = self._all()
        self._thread = None if source.again else OneThread("penstock-input")

    def __repr__(self) -> str:
        return f"<Feed of {self._source.name}>"

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

    async def look_up(self, journal: Journal) -> None:
        """Refuse a journal that has nothing to do with an input that can be read twice.

        Raises:
            BadInput: It belongs to other requests.
        """
        if self._source.again and journal.answered + journal.failed:
            thread = OneThread("penstock-check")
            try:
                if not await thread.run(lambda: any(journal.find(each.custom_id, None) for each in self._all())):
                    reason = "none of these requests is in the file of results, which is of another run: "
                    raise self._bad(f"{reason}give -o another name")
            finally:
                thread.close()

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
        request = await self._read()
        if request is None:
            raise StopAsyncIteration
        return request.fields

    async def _read(self) -> Request | None:
        if self._thread is None:
            return next(self._requests, None)
        return await self._thread.run(lambda: next(self._requests, None))
