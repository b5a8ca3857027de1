"""Message batches: many prompts at half the price, within a day.

The rule here: what was submitted is paid for, so it is never lost: with a journal, whoever comes back collects it;
without one, leaving stops it. Same input, same journal, same results as `penstock.batch.fan_out`, in the order in
which they come.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sized
from contextlib import AsyncExitStack, suppress
from typing import TYPE_CHECKING, Any, Final, Self, Unpack, cast

import anyio

from penstock._core.context import current_deadline
from penstock.batch.journal import Journal, check_journal_options, logged_journal_errors
from penstock.batch.message_batches.desk import Desk
from penstock.batch.message_batches.ledger import Ledger
from penstock.batch.message_batches.plan import MOST_BYTES, MOST_REQUESTS, Plan
from penstock.batch.message_batches.remote import Remote
from penstock.batch.message_batches.requests import BatchIntake, Spool
from penstock.batch.message_batches.run import Run
from penstock.batch.output_format import OutputFormat
from penstock.batch.progress import ProgressReporter, Tally, check_on_progress
from penstock.batch.result import FanOutResult

if TYPE_CHECKING:
    import os
    from collections.abc import AsyncIterable, Iterable
    from types import TracebackType

    from anthropic import AsyncAnthropic
    from anyio.abc import TaskGroup
    from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

    from penstock._core.params import ItemParams
    from penstock.batch.items import Request
    from penstock.batch.progress import OnProgress

__all__ = ["MessageBatches"]

_BUFFERED: Final = 64
_ON_PROGRESS_EVERY_S: Final = 1.0
_STOPPED_WITHIN_S: Final = 10.0


class MessageBatches:
    """Runs requests through message batches: `async with` it, iterate over it.

    Args:
        sdk: The client that sends them, governed or not.
        requests: As for a fan-out: plain prompts, or mappings with `custom_id` and `params`; read lazily, one batch at
            a time.
        journal: A file, or an open `Journal`, that holds results and batches across runs. With one, leaving the block
            lets batches run on, and the next run collects them; without, leaving stops them.
        retry_failed: Ask again what failed in an earlier run.
        replay: Give results of earlier runs too.
        keep_params: Whether the journal keeps the params of failed items.
        output_format: A type that answers are to fit; see `FanOutResult.parsed`.
        batch_size: Requests in a batch at most, 1 to 100,000.
        batch_bytes: Bytes of requests in a batch at most, 1 to 255,000,000.
        max_attempts: How often a request is submitted at most, if it expires or the service fails on it; 1 or more.
        poll_s: Seconds until a batch is looked at for the first time, above 0; the pauses grow to a minute.
        deadline_s: Seconds until all must be over, above 0; `None` for a day and more. In time for it, what batches
            haven't got done is cancelled and asked live, at full price.
        live_s: Seconds before the deadline when that happens, above 0; a tenth of `deadline_s` by default, and at
            least a minute. If it is `deadline_s` or more, there are no batches at all.
        concurrency: Of what is asked live, 1 or more; as a verb of a client, its own `concurrency` by default.
        progress: Show progress on the standard error: a bar in a terminal, else a line every five seconds.
        on_progress: Told how far it is, with a `Progress`, every second and at the end.
        total: Items in all, where `requests` doesn't tell by its length.
        rng: Source of jitter.
        **params: Of `messages.create`, for every item; an item's own `params` win. As a verb of a client, `model` and
            `max_tokens` are its settings by default.

    Raises:
        ValueError: A number is out of its range.
        TypeError: `requests` is a single text, or can't be iterated over; no schema can be made of `output_format`; or
            `on_progress` is a coroutine function.

    Example:
        >>> from penstock import Client
        >>> async def main() -> None:
        ...     async with (
        ...         Client() as claude,
        ...         claude.batch(["One?", "Two?"], model="claude-haiku-5-5", poll_s=0.05) as results,
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
        journal: str | os.PathLike[str] | Journal | None = None,
        retry_failed: bool = False,
        replay: bool = False,
        keep_params: bool = False,
        output_format: Any = None,
        batch_size: int = MOST_REQUESTS,
        batch_bytes: int = MOST_BYTES,
        max_attempts: int = 3,
        poll_s: float = 5.0,
        deadline_s: float | None = None,
        live_s: float | None = None,
        concurrency: int = 64,
        progress: bool = False,
        on_progress: OnProgress | None = None,
        total: int | None = None,
        rng: random.Random | None = None,
        **params: Unpack[ItemParams],
    ) -> None:
        check_on_progress(on_progress)
        if params.get("stream"):
            raise ValueError("a batch gives whole messages: leave stream out")
        check_journal_options(journal, retry_failed=retry_failed, replay=replay, keep_params=keep_params)
        self._plan = Plan(
            batch_size=batch_size,
            batch_bytes=batch_bytes,
            max_attempts=max_attempts,
            poll_s=poll_s,
            deadline_s=deadline_s,
            live_s=live_s,
            concurrency=concurrency,
            params=params,
        )
        self._sdk = sdk
        self._journal = journal
        self._keep_params = keep_params
        self._output = OutputFormat.of(output_format)
        self._intake = BatchIntake(requests, params, output=self._output, retry_failed=retry_failed, replay=replay)
        self._progress, self._on_progress = progress, on_progress
        self._total = len(requests) if total is None and isinstance(requests, Sized) else total
        self._rng = rng or random.Random()
        self._entered = False
        self._error: Exception | None = None
        self._group: TaskGroup | None = None
        # Made on entry: one that is never entered has nothing to close.
        self._stack: AsyncExitStack
        self._desk: Desk
        self._run: Run
        self._receive: MemoryObjectReceiveStream[FanOutResult]

    def __repr__(self) -> str:
        return "<MessageBatches, not begun>" if self._group is None else f"<MessageBatches {self._run!r}>"

    async def __aenter__(self) -> Self:
        """Open the journal and start.

        Raises:
            JournalError: The journal can't be used.
        """
        if self._entered:
            raise RuntimeError("a run through message batches runs once; make a new one")
        self._entered = True
        async with AsyncExitStack() as stack:
            journal = await self._opened(stack)
            spool = stack.enter_context(Spool(None if journal is None else journal.path.parent))
            send, self._receive = anyio.create_memory_object_stream[FanOutResult](_BUFFERED)
            stack.enter_context(self._receive)
            stack.enter_context(send)
            self._intake.journal = journal
            tally = self._tally()
            self._run = self._made(journal, spool, send, tally)
            reporter = None if tally is None else self._reporter(tally)
            if reporter is not None:
                stack.callback(reporter.end)
            if journal is None:
                stack.push_async_callback(self._stop)
            self._stack = stack.pop_all()
        self._group = anyio.create_task_group()
        await self._group.__aenter__()
        self._group.start_soon(self._work)
        if reporter is not None:
            self._group.start_soon(reporter.run)
        return self

    def _tally(self) -> Tally | None:
        watched = self._progress or self._on_progress is not None
        return Tally(total=self._total, now=anyio.current_time()) if watched else None

    def _reporter(self, tally: Tally) -> ProgressReporter:
        sinks: list[tuple[OnProgress, float]] = []
        if self._on_progress is not None:
            sinks.append((self._on_progress, _ON_PROGRESS_EVERY_S))
        if self._progress:
            from penstock.batch.progress_display import display  # noqa: PLC0415 - few ask for it

            sinks.append(display())
        return ProgressReporter(tally, sinks)

    async def _opened(self, stack: AsyncExitStack) -> Journal | None:
        if self._journal is None or isinstance(self._journal, Journal):
            return self._journal
        return await stack.enter_async_context(Journal(self._journal, keep_params=self._keep_params))

    def _made(
        self,
        journal: Journal | None,
        spool: Spool,
        results: MemoryObjectSendStream[FanOutResult],
        tally: Tally | None,
    ) -> Run:
        # A deadline around the block is one of the run, too.
        deadline_at = min(anyio.current_time() + (self._plan.deadline_s or math.inf), current_deadline())
        left_s = deadline_at - anyio.current_time()
        live_s = self._plan.live_for(left_s)
        self._desk = Desk(
            plan=self._plan,
            remote=Remote(self._sdk, deadline_at=deadline_at, sending=self._plan.sending),
            ledger=Ledger(journal),
            spool=spool,
            results=results,
            journal=journal,
            output=self._output,
            tally=tally,
            rng=self._rng,
            stage="live" if live_s >= left_s else "batches",
        )
        return Run(self._sdk, self._desk, self._intake, live_at=deadline_at - live_s)

    async def _work(self) -> None:
        try:
            await self._run.work()
        except Exception as error:  # noqa: BLE001 - raised to the caller, after the results
            self._error = _first(error)
        finally:
            self._desk.results.close()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End what is done here; an exception of the block leaves as it is.

        Batches under way are stopped if there is no journal, else they run on.

        Raises:
            JournalError: The journal can't be synced.
        """
        group = self._group
        if group is None:
            return
        group.cancel_scope.cancel()
        if (making := self._run.submitter.making) is not None:
            making.deadline = anyio.current_time() + _STOPPED_WITHIN_S
        try:
            # Without the block's exception, which would come out wrapped in an ExceptionGroup.
            await group.__aexit__(None, None, None)
        finally:
            with logged_journal_errors(instead=error is not None):
                await self._stack.aclose()

    async def _stop(self) -> None:
        """Stop what nobody could collect, even where the block was cancelled."""
        self._desk.remote.deadline_at = math.inf
        with anyio.move_on_after(_STOPPED_WITHIN_S, shield=True):
            await self._run.stop_all()

    def __aiter__(self) -> Self:
        """Results as they come."""
        return self

    async def __anext__(self) -> FanOutResult:
        """Wait for the next result.

        Raises:
            Exception: The input's own, once everything that it gave before is delivered; an error of the API about a
                whole batch; or `JournalError`.
        """
        if self._group is None:
            raise RuntimeError("use it inside `async with …batch(…) as results:`")
        with suppress(anyio.EndOfStream, anyio.ClosedResourceError):
            return await self._receive.receive()
        error, self._error, self._intake.error = self._error or self._intake.error, None, None
        raise StopAsyncIteration if error is None else error

    async def cancel(self) -> None:
        """Stop: nothing more is read or submitted, and batches under way are cancelled.

        What they have done by then still comes out; the rest comes out as failed with `ItemFailed` (`canceled`), and is
        asked again by a later run with the same journal.

        Raises:
            RuntimeError: It has not begun.
            JournalError: That can't be noted.
        """
        if self._group is None:
            raise RuntimeError("use it inside `async with …batch(…) as results:`")
        try:
            await self._run.turn("cancelled")
        except ExceptionGroup as errors:
            raise _first(errors) from None


def _first(error: Exception) -> Exception:
    """Return the error inside groups of them."""
    while isinstance(error, ExceptionGroup):
        error = cast("ExceptionGroup[Exception]", error).exceptions[0]
    return error
