"""The input of a fan-out: read late, each item checked, and looked up in the journal.

The rule here: one item is read when one is asked for. What a journal holds is not asked again; what is wrong with an
item is its result.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final, cast

import anyio.lowlevel

from penstock.batch.ask import fitted
from penstock.batch.items import Item, name_of, read_item
from penstock.batch.journal.digests import DigestSet
from penstock.batch.journal.request import RequestDigest
from penstock.batch.result import FanOutResult

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from penstock.batch.items import Request
    from penstock.batch.journal import Journal
    from penstock.batch.output_format import OutputFormat

__all__ = ["Intake"]

# An input that needs no waiting would hold up everything else while a journal's items are passed over.
_AT_A_STRETCH: Final = 100
_END: Final = object()


class Intake:
    """Reads items.

    Args:
        requests: Prompts or requests.
        common: Params of every item; an item's own win.
        output: What the answers are to fit.

    Attributes:
        read: Items read so far.
        resumed: Those that an earlier run had finished.
        ended: Whether there are no more.
        error: What the input raised.
        journal: Where finished items are looked up.
        retry_failed: Whether those that failed are asked again.
        replay: Whether those that are not asked again are given as results.

    Raises:
        TypeError: `requests` is a single text, or can't be iterated over.
    """

    def __init__(
        self,
        requests: Iterable[Request] | AsyncIterable[Request],
        common: Mapping[str, Any],
        *,
        output: OutputFormat | None = None,
        retry_failed: bool = False,
        replay: bool = False,
    ) -> None:
        given = cast("object", requests)
        if isinstance(given, str | bytes | Mapping) or not isinstance(given, Iterable | AsyncIterable):
            raise TypeError(
                "requests must be an iterable or async iterable of prompts or requests; for one prompt give [prompt]"
            )
        self._source: Iterator[Request] | AsyncIterator[Request] = (
            aiter(requests) if isinstance(requests, AsyncIterable) else iter(requests)
        )
        self._output = output
        self._common = common if output is None else output.asked(common)
        self._digest = RequestDigest(self._common)
        self._seen = DigestSet()
        self.retry_failed = retry_failed
        self.replay = replay
        self.journal: Journal | None = None
        self.read = self.resumed = 0
        self.ended = False
        self.error: Exception | None = None

    def __repr__(self) -> str:
        return f"<Intake {self.read} read, {self.resumed} resumed{', ended' if self.ended else ''}>"

    async def next(self) -> Item | FanOutResult | None:
        """Read on.

        Returns:
            An item to ask for, or what has become of one without asking; `None` at the end.
        """
        passed = 0
        while (request := await self._next()) is not _END:
            index = self.read
            self.read += 1
            try:
                ready = self._prepared(read_item(index, request))
            except Exception as error:  # noqa: BLE001 - it is the item's result
                return FanOutResult(custom_id=name_of(index, request), index=index, error=error)
            if ready is not None:
                return ready
            passed += 1
            if passed % _AT_A_STRETCH == 0:
                await anyio.lowlevel.checkpoint()
        return None

    async def _next(self) -> object:
        if self.ended:
            return _END
        try:
            if isinstance(self._source, AsyncIterable):
                return await anext(self._source)
            return next(self._source)
        except (StopIteration, StopAsyncIteration):
            self.ended = True
        except Exception as error:  # noqa: BLE001 - raised to the caller, after all that the input gave before
            self.ended = True
            self.error = error
        return _END

    def _prepared(self, item: Item) -> Item | FanOutResult | None:
        """Return the item with all its params, or what the journal holds of it; `None` to pass it over."""
        if not self._seen.add(item.custom_id):
            raise ValueError(
                f"item {item.index} has the custom_id {item.custom_id[:64]!r}, as one before it has: give each its own"
            )
        own = item.params
        if self._output is not None and "output_config" in own:
            own = self._output.asked(own)
        params = {**self._common, **own}
        item.params = params
        if self.journal is None:
            return item
        item.request = self._digest(own)
        entry = self.journal.find(item.custom_id, item.request, retry_failed=self.retry_failed)
        if entry is None or (self.retry_failed and not entry.ok):
            return item
        self.resumed += 1
        return fitted(self.journal.read(entry, index=item.index), self._output) if self.replay else None
