"""The input of a run: read late and in one task, each item checked, frozen, and looked up in the journal.

The rule here: one item is read when one is asked for. What a journal holds is not asked again; what is wrong with an
item is its result. The input may be an async generator that holds a task group, a time-out or another run: all of it
runs in one task, in which nothing else is open, and in which it is closed again.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final, TypeAlias, cast

import anyio.lowlevel

from penstock._core.own_task import OwnTask
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

__all__ = ["Intake", "Ready"]

Ready: TypeAlias = "Item | FanOutResult"

# An input that needs no waiting would hold up everything else while a journal's items are passed over.
_AT_A_STRETCH: Final = 100
_logger: Final = logging.getLogger("penstock")


class _NoModel(Exception):
    """A prompt has nobody to be asked of."""


class Intake:
    """Reads items.

    Args:
        requests: Prompts or requests.
        common: Params of every item; an item's own win.
        output: What the answers are to fit.
        retry_failed: Whether those that failed are asked again.
        replay: Whether those that are not asked again are given as results.

    Attributes:
        read: Items read so far.
        resumed: Those that an earlier run had finished.
        ended: Whether there are no more.
        error: What the input raised.
        journal: Where finished items are looked up.
        waits: Whether reading may take time.

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
        self._requests = requests
        self.waits = isinstance(given, AsyncIterable)
        self._output = output
        self._common = common if output is None else output.asked(common)
        self._digest = RequestDigest(self._common)
        self._seen = DigestSet()
        self._retry_failed = retry_failed
        self._replay = replay
        self._task = OwnTask("penstock-input")
        self._stopped = False
        self._asking: deque[asyncio.Future[Ready | None]] = deque()
        self._left_over: deque[Ready] = deque()
        self._asked: asyncio.Future[None] | None = None
        self.journal: Journal | None = None
        self.read = self.resumed = 0
        self.ended = False
        self.error: Exception | None = None

    def __repr__(self) -> str:
        return f"<Intake {self.read} read, {self.resumed} resumed{', ended' if self.ended else ''}>"

    # For those who want items

    def begin(self) -> None:
        """Begin to read, once somebody asks."""
        self._task.begin(self._serve)

    async def next(self) -> Ready | None:
        """Wait for an item; whoever stops waiting leaves it to the next one.

        Returns:
            An item to ask for, or what has become of one without asking; `None` at the end.
        """
        if self._left_over:
            return self._left_over.popleft()
        if self.ended:
            return None
        wanted: asyncio.Future[Ready | None] = asyncio.get_running_loop().create_future()
        self._asking.append(wanted)
        if self._asked is not None and not self._asked.done():
            self._asked.set_result(None)
        try:
            return await wanted
        except BaseException:
            if wanted.done() and not wanted.cancelled():
                self._keep(wanted.result())
            wanted.cancel()
            raise

    async def end(self) -> None:
        """Stop reading and close the input, in the task that read it; returns when that is done."""
        if not self._stopped:
            self._stopped = True
            self._task.cancel()
        await self._task.ended()

    # The task that reads

    async def _serve(self) -> None:
        source = self._requests
        try:
            if isinstance(source, AsyncIterable):
                await self._serve_async(aiter(source))
            else:
                await self._serve_sync(iter(source))
        except Exception as error:  # noqa: BLE001 - raised to the caller, after all that the input gave before
            self.error = error
        except asyncio.CancelledError:
            if not self._stopped:
                # An input that is cut short must not look as if it had come to its end.
                self.error = RuntimeError("the input was cancelled, by itself or from outside, before its end")
            raise
        finally:
            self.ended = True
            while self._asking:
                self._settle(None)

    async def _serve_sync(self, source: Iterator[Request]) -> None:
        await self._demand()
        for request in source:
            await self._hand_on(request)

    async def _serve_async(self, source: AsyncIterator[Request]) -> None:
        generator = _as_generator(source)
        try:
            await self._demand()
            request = await anext(source)
            while True:
                try:
                    await self._hand_on(request)
                except asyncio.CancelledError as error:
                    if self._stopped or generator is None:
                        raise
                    # A time-out of the input's own is over while it waits to be asked: it hears of it where it waits.
                    request = await generator.athrow(error)
                else:
                    request = await anext(source)
        except StopAsyncIteration:
            pass
        finally:
            if generator is not None:
                await _close(generator)

    async def _hand_on(self, request: Request) -> None:
        """Hand on what was read, and wait until there is a wish for more; what is passed over needs none."""
        if self._took(request):
            await self._demand()
        elif self.read % _AT_A_STRETCH == 0:
            await anyio.lowlevel.checkpoint()

    async def _demand(self) -> None:
        """Wait until somebody asks for an item."""
        while not self._wanted():
            self._asked = asyncio.get_running_loop().create_future()
            await self._asked

    def _wanted(self) -> bool:
        while self._asking and self._asking[0].done():
            self._asking.popleft()
        return bool(self._asking)

    def _took(self, request: Request) -> bool:
        """Hand an item to whoever asks; False if it is one to pass over."""
        index = self.read
        self.read += 1
        ready: Ready | None
        try:
            ready = self._prepared(read_item(index, request))
        except _NoModel:
            # Of all prompts alike: not a failure for each of them.
            raise TypeError("no model: give the run one, as model=…") from None
        except Exception as error:  # noqa: BLE001 - it is the item's result
            ready = FanOutResult(custom_id=name_of(index, request), index=index, error=error)
        if ready is None:
            return False
        self._settle(ready)
        return True

    def _settle(self, ready: Ready | None) -> None:
        while self._asking:
            wanted = self._asking.popleft()
            if not wanted.done():
                wanted.set_result(ready)
                return
        self._keep(ready)

    def _keep(self, ready: Ready | None) -> None:
        """Keep what was read for somebody who is gone, for whoever asks next."""
        if ready is None:
            return
        self._left_over.append(ready)
        if self._wanted():
            self._asking.popleft().set_result(self._left_over.popleft())

    def _prepared(self, item: Item) -> Ready | None:
        """Return the item with all its params, or what the journal holds of it; `None` to pass it over."""
        if not self._seen.add(item.custom_id):
            raise ValueError(
                f"item {item.index} has the custom_id {item.custom_id[:64]!r}, as one before it has: give each its own"
            )
        own = item.params
        if self._output is not None and "output_config" in own:
            own = self._output.asked(own)
        params = {**self._common, **own}
        if item.by_place and not isinstance(params.get("model"), str):
            raise _NoModel
        item.params = params
        if self.journal is None:
            return item
        item.request = self._digest(own)
        entry = self.journal.find(item.custom_id, item.request, by_place=item.by_place, retry_failed=self._retry_failed)
        if entry is None:
            return item
        self.resumed += 1
        return fitted(self.journal.read(entry, index=item.index), self._output) if self._replay else None


def _as_generator(source: object) -> AsyncGenerator[Request] | None:
    return cast("AsyncGenerator[Request]", source) if isinstance(source, AsyncGenerator) else None


async def _close(generator: AsyncGenerator[Any]) -> None:
    """Close an input that is left, as it would be closed where a loop over it is left: nobody waits for its errors."""
    try:
        await generator.aclose()
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # noqa: BLE001 - a task group makes a group of the `GeneratorExit` that ends it
        names = ", ".join(sorted({type(each).__name__ for each in _leaves(error)} - {"GeneratorExit"}))
        if names:
            _logger.warning("the input of a run raised %s as it was closed", names)


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for each in cast("BaseExceptionGroup[BaseException]", error).exceptions:
            yield from _leaves(each)
    else:
        yield error
