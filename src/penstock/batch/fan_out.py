"""Fan-out: many prompts at once, results as they come.

The rule here: input is read only as fast as items start, and items start only as fast as results are taken, so that
memory depends on the concurrency and never on the length of the input. A failed request is a result; an exception of
the caller's own leaves as itself. With a journal, a result is in the file before anybody is told of it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sized
from typing import TYPE_CHECKING, Any, Final, Literal, Self, Unpack, get_args

import anyio

from penstock.batch.ask import Asker
from penstock.batch.failure_limit import FailureLimit
from penstock.batch.intake import Intake
from penstock.batch.items import Request
from penstock.batch.journal import Journal, check_journal_options, logged_journal_errors
from penstock.batch.output_format import OutputFormat
from penstock.batch.progress import ProgressReporter, Tally, check_on_progress
from penstock.batch.result import FanOutResult
from penstock.errors import JournalError

if TYPE_CHECKING:
    import os
    from collections.abc import AsyncIterable, Callable, Iterable, Mapping
    from types import TracebackType

    from anthropic import AsyncAnthropic
    from anyio.abc import TaskGroup
    from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

    from penstock._core.params import ItemParams
    from penstock.batch.items import Item
    from penstock.batch.progress import OnProgress

__all__ = ["FanOut", "Order", "Request"]

Order = Literal["completed", "input"]

_ON_PROGRESS_EVERY_S: Final = 1.0


class FanOut:
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
        quota_use: Tells the share of the rate limits that is in use, for the progress.
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
        output_format: Any = None,
        warm_cache: bool = False,
        progress: bool = False,
        on_progress: OnProgress | None = None,
        total: int | None = None,
        quota_use: Callable[[], float | None] | None = None,
        **params: Unpack[ItemParams],
    ) -> None:
        _check(concurrency=concurrency, order=order, params=params)
        check_journal_options(journal, retry_failed=retry_failed, replay=replay, keep_params=keep_params)
        check_on_progress(on_progress)
        output = OutputFormat.of(output_format)
        self._intake = Intake(requests, params, output=output, retry_failed=retry_failed, replay=replay)
        self._concurrency = concurrency
        self._order = order
        self._limit = FailureLimit(fail_fast=fail_fast, max_failures=max_failures)
        self._own_journal = (
            None if journal is None or isinstance(journal, Journal) else Journal(journal, keep_params=keep_params)
        )
        self._journal = journal if isinstance(journal, Journal) else self._own_journal
        self._asker = Asker(sdk, output, journal=self._journal, warm_cache=warm_cache)
        self._progress = progress
        self._on_progress = on_progress
        self._total = len(requests) if total is None and isinstance(requests, Sized) else total
        self._quota_use = quota_use
        # Without a turn of the loop where there is no wait: an item has enough of them.
        self._reading = anyio.Lock(fast_acquire=True)
        # How many may have started and not be delivered; in input order all of them may have to be held back.
        self._room = anyio.Semaphore(concurrency if order == "input" else 2 * concurrency, fast_acquire=True)
        # Made on entry: one that is never entered has nothing to close.
        self._send: MemoryObjectSendStream[tuple[int, FanOutResult]]
        self._receive: MemoryObjectReceiveStream[tuple[int, FanOutResult]]
        self._group: TaskGroup | None = None
        self._reporter: ProgressReporter | None = None
        self._entered = self._stopped = False
        self._scopes: set[anyio.CancelScope] = set()
        self._workers = self._started = self._next = 0
        self._early: dict[int, FanOutResult] = {}
        self._broken: JournalError | None = None

    def __repr__(self) -> str:
        return f"<FanOut {self._started} started, {self._next} delivered, {self._workers} workers>"

    # Its life

    async def __aenter__(self) -> Self:
        """Open the journal and start; items begin as soon as the block awaits.

        Raises:
            JournalError: The journal can't be used.
        """
        if self._entered:
            raise RuntimeError("a fan-out runs once; make a new one")
        self._entered = True
        # Before anything is open, because it may fail.
        sinks = self._sinks()
        if self._own_journal is not None:
            await self._own_journal.__aenter__()
        self._intake.journal = self._journal
        self._send, self._receive = anyio.create_memory_object_stream[tuple[int, FanOutResult]](self._concurrency)
        self._group = anyio.create_task_group()
        await self._group.__aenter__()
        if self._journal is not None:
            self._group.start_soon(self._keep_synced, self._journal)
        self._report(self._group, sinks)
        self._add_worker()
        return self

    def _sinks(self) -> list[tuple[OnProgress, float]]:
        sinks: list[tuple[OnProgress, float]] = []
        if self._on_progress is not None:
            sinks.append((self._on_progress, _ON_PROGRESS_EVERY_S))
        if self._progress:
            from penstock.batch.progress_display import display  # noqa: PLC0415 - few ask for it

            sinks.append(display())
        return sinks

    def _report(self, group: TaskGroup, sinks: list[tuple[OnProgress, float]]) -> None:
        if sinks:
            tally = Tally(total=self._total, now=anyio.current_time(), quota_use=self._quota_use)
            self._asker.tally = tally
            self._reporter = ProgressReporter(tally, sinks)
            group.start_soon(self._reporter.run)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Cancel what is still under way and close the journal; an exception of the block leaves as it is.

        Raises:
            JournalError: The journal can't be synced.
        """
        group = self._group
        if group is None:
            return
        group.cancel_scope.cancel()
        try:
            # Without the block's exception, which would come out wrapped in an ExceptionGroup.
            await group.__aexit__(None, None, None)
        finally:
            self._receive.close()
            self._send.close()
            self._early.clear()
            if self._reporter is not None:
                self._reporter.end()
            if self._own_journal is not None:
                with logged_journal_errors(instead=error is not None):
                    await self._own_journal.__aexit__(None, None, None)

    def __aiter__(self) -> Self:
        """Results as they come."""
        return self

    async def __anext__(self) -> FanOutResult:
        """Wait for the next result.

        Raises:
            JournalError: The journal can't be written to any more; the rest was cancelled.
            TooManyFailures: More failed than `max_failures` allows.
            Exception: The input's own, once everything that it gave before is delivered; or the first failure with
                `fail_fast`.
        """
        if self._group is None:
            raise RuntimeError("use it inside `async with …fan_out(…) as results:`")
        if self._order == "input":
            while self._next not in self._early:
                number, result = await self._take()
                self._early[number] = result
            result = self._early.pop(self._next)
        else:
            _, result = await self._take()
        self._next += 1
        self._room.release()
        self._limit.count(result)
        return result

    async def _take(self) -> tuple[int, FanOutResult]:
        try:
            return self._receive.receive_nowait()
        except anyio.WouldBlock:
            with contextlib.suppress(anyio.EndOfStream):
                return await self._receive.receive()
        except (anyio.EndOfStream, anyio.ClosedResourceError):
            pass
        error, self._intake.error, self._broken = self._broken or self._intake.error, None, None
        # Raised out here, so that the input's error keeps its own cause and context.
        raise StopAsyncIteration if error is None else error

    # Workers

    def _add_worker(self) -> None:
        if self._group is not None and self._workers < self._concurrency:
            self._workers += 1
            self._group.start_soon(self._work)

    async def _work(self) -> None:
        """Take items and ask for them, one after the other; the last worker to leave ends the results."""
        scope = anyio.CancelScope()
        self._scopes.add(scope)
        if self._stopped:
            scope.cancel()
        try:
            with scope:
                while (read := await self._read()) is not None:
                    number, ready = read
                    # One item found means there may be another: so there are never more workers than items.
                    if self._asker.warm:
                        self._add_worker()
                    await self._give(number, await self._asker.finish(ready))
        except JournalError as error:
            self._break(error)
        finally:
            self._scopes.discard(scope)
            self._workers -= 1
            if self._workers == 0:
                self._send.close()

    async def _give(self, number: int, result: FanOutResult) -> None:
        try:
            self._send.send_nowait((number, result))
        except anyio.WouldBlock:
            await self._send.send((number, result))

    async def _read(self) -> tuple[int, Item | FanOutResult] | None:
        """Read the next item of the input, once there is room for its result."""
        await self._room.acquire()
        async with self._reading:
            ready = await self._intake.next()
            self._asker.resumed(self._intake.resumed)
            if ready is None:
                return None
            number = self._started
            self._started += 1
            return number, ready

    async def _keep_synced(self, journal: Journal) -> None:
        try:
            await journal.keep_synced()
        except JournalError as error:
            self._break(error)

    def _break(self, error: JournalError) -> None:
        """End the run, because results can't be kept: what is under way is cancelled."""
        self._broken = error
        self._stopped = True
        for scope in self._scopes:
            scope.cancel()


def _check(*, concurrency: object, order: object, params: Mapping[str, Any]) -> None:
    if not isinstance(concurrency, int) or isinstance(concurrency, bool) or concurrency < 1:
        raise ValueError(f"concurrency must be a whole number from 1 up, not {concurrency!r}")
    if order not in get_args(Order):
        raise ValueError(f"order must be one of {', '.join(get_args(Order))}, not {order!r}")
    if params.get("stream"):
        raise ValueError("a fan-out gives whole messages: leave stream out")
