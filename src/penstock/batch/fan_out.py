"""Fan-out: many prompts at once, results as they come.

The rule here: input is read only as fast as items start, and items start only as fast as results are taken, so that
memory depends on the concurrency and never on the length of the input. A failed request is a result; an exception of
the caller's own leaves as itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Unpack

import anyio

from penstock.batch.ask import ask
from penstock.batch.items import Request
from penstock.batch.result import FanOutResult
from penstock.batch.run import Model, Order, Run, RunOptions, check_whole

if TYPE_CHECKING:
    import os
    from collections.abc import AsyncIterable, Callable, Iterable
    from contextlib import AsyncExitStack

    from anthropic import AsyncAnthropic, NotGiven, Omit
    from anyio.abc import TaskGroup

    from penstock._core.params import ItemParams
    from penstock.batch.journal import Journal
    from penstock.batch.progress import OnProgress, Waits
    from penstock.batch.run import Work

__all__ = ["FanOut", "Order", "Request"]

# How often the first item is sent alone before the others go with a cold cache.
_WARM_UPS: Final = 3


class FanOut(Run[Model]):
    """Runs requests concurrently: `async with` it, iterate over it, leave early as you like.

    Args:
        sdk: The client that sends them, governed or not.
        requests: Plain prompts, or requests as Message Batches takes them (`custom_id`, `params`; also `labels`); an
            iterable or async iterable, read lazily.
        concurrency: Items started at once, 1 or more; as a verb of a client, its own `concurrency` by default.
        order: `"completed"`, or `"input"` to keep the order; that holds back at most `concurrency` results.
        fail_fast: Raise the first failure instead of giving it as a result.
        max_failures: Raise `TooManyFailures` when more items have failed: a count from 0 up, or a share between 0 and 1
            of those that are finished, once there are 20 of them.
        journal: A file that every result is written to before it is given; what stands there is not asked again. Or a
            `Journal` that is open.
        retry_failed: Ask items again that failed by the journal, also where their request has changed.
        replay: Give results for items that are not asked again, too.
        keep_params: Keep the params of failed items in the journal.
        output_format: A type whose JSON schema the answers must fit; `result.parsed` is of that type.
        warm_cache: Ask one item first, so that the others find its prompt in the cache.
        progress: Show progress on the standard error: a bar in a terminal, else a line every five seconds.
        on_progress: Told how far it is, with a `Progress`, every second and at the end.
        total: Items in all, where `requests` doesn't tell by its length.
        waits: Tells what requests wait for, for the progress, given the time of the event loop; as a verb of a client,
            what its guards know.
        **params: Of `messages.create`, for every item; an item's own `params` win. As a verb of a client, `model` and
            `max_tokens` are its settings by default.

    Raises:
        ValueError: A bad `concurrency`, `order` or `max_failures`, or an option that needs a journal without one.
        TypeError: `requests` is a single text, or can't be iterated over; `output_format` has no JSON schema;
            `on_progress` is a coroutine function.

    Example:
        >>> from penstock import Client
        >>> async def main() -> None:
        ...     async with (
        ...         Client() as claude,
        ...         claude.fan_out(["One?", "Two?"], model="claude-haiku-5-5") as results,
        ...     ):
        ...         print(sorted([result.custom_id async for result in results if result.ok]))
        >>> import anyio
        >>> anyio.run(main)
        ['0', '1']
    """

    _NAME = "fan_out"

    def __init__(
        self,
        sdk: AsyncAnthropic,
        requests: Iterable[Request] | AsyncIterable[Request],
        *,
        concurrency: int = 64,
        order: Order = "completed",
        fail_fast: bool = False,
        max_failures: float | None = None,
        journal: str | os.PathLike[str] | Journal | None = None,
        retry_failed: bool = False,
        replay: bool = False,
        keep_params: bool = False,
        output_format: type[Model] | Omit | NotGiven | None = None,
        warm_cache: bool = False,
        progress: bool = False,
        on_progress: OnProgress | None = None,
        total: int | None = None,
        waits: Callable[[float], Waits] | None = None,
        **params: Unpack[ItemParams],
    ) -> None:
        options = RunOptions(
            journal=journal,
            retry_failed=retry_failed,
            replay=replay,
            keep_params=keep_params,
            output_format=output_format,
            order=order,
            fail_fast=fail_fast,
            max_failures=max_failures,
            progress=progress,
            on_progress=on_progress,
            total=total,
            waits=waits,
            params=params,
        )
        super().__init__(Live(sdk, concurrency, order=order, warm_cache=warm_cache), requests, options)


class Live:
    """Asks for items as they are read, so many at once.

    Args:
        sdk: The client that sends them.
        concurrency: Items at once.
        order: Of the results.
        warm_cache: Whether one item is to be answered before the others are asked.

    Raises:
        ValueError: `concurrency` is no whole number from 1 up.
    """

    def __init__(self, sdk: AsyncAnthropic, concurrency: int, *, order: Order, warm_cache: bool) -> None:
        check_whole("concurrency", concurrency)
        self._sdk = sdk
        self._concurrency = concurrency
        self._warm_ups = _WARM_UPS if warm_cache else 0
        self._workers = 0
        self._work: Work
        self._group: TaskGroup
        # In input order all that has begun and is not taken may have to be held back.
        self.room = concurrency if order == "input" else 2 * concurrency

    def __repr__(self) -> str:
        return f"<Live, {self._workers} workers>"

    async def open(self, work: Work, stack: AsyncExitStack) -> None:  # noqa: ARG002 - of the protocol
        """Nothing is left behind."""
        self._work = work

    async def work(self) -> None:
        """Ask for all of them."""
        async with anyio.create_task_group() as self._group:
            self._add_worker()

    def leave(self) -> None:
        """Nothing outlives the work."""

    def _add_worker(self) -> None:
        if self._workers < self._concurrency:
            self._workers += 1
            self._group.start_soon(self._ask)

    async def _ask(self) -> None:
        """Take items and ask for them, one after the other."""
        work = self._work
        while True:
            await work.room.acquire()
            ready = await work.next()
            if ready is None:
                return
            # One item found means there may be another: so there are never more workers than items.
            if not self._warm_ups:
                self._add_worker()
            if isinstance(ready, FanOutResult):
                work.give(ready)
                continue
            result = await ask(self._sdk, ready, work.output)
            self._warm_ups = 0 if result.ok else max(self._warm_ups - 1, 0)
            work.finish(result, request=ready.request, params=ready.params)
            work.give(result)
