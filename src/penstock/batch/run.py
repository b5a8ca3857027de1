"""A run: many requests in, a result for each out. What fan-outs and message batches have in common.

The rule here: a run belongs to nobody's task. What works for it lives in one task of its own, beside the one that reads
the input (`penstock.batch.intake`); whoever enters, iterates and leaves only hands over, from any task, and may be
cancelled anywhere. A result is in the journal before anybody is told of it, and waits for whoever comes to take it.

An engine does the work: it takes items from a `Work`, asks for them in its own way, and says what came of each.
"""

from __future__ import annotations

import asyncio
import difflib
import inspect
import math
from collections import deque
from collections.abc import Sized
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Final, Generic, Literal, Protocol, Self, cast, get_args

import anyio
from anthropic.resources.messages import AsyncMessages

from penstock._core.own_task import HandOver, OwnTask
from penstock.batch.failure_limit import FailureLimit
from penstock.batch.intake import Intake
from penstock.batch.journal import Journal, logged_journal_errors
from penstock.batch.output_format import OutputFormat
from penstock.batch.progress import ProgressReporter, Tally, check_on_progress
from penstock.batch.result import FanOutResult, is_account_refused, is_mendable, reason_of
from penstock.errors import AccountRefused

if TYPE_CHECKING:
    import os
    from collections.abc import AsyncIterable, Callable, Iterable, Mapping
    from types import TracebackType

    from typing_extensions import TypeVar

    from penstock.batch.intake import Ready
    from penstock.batch.items import Request
    from penstock.batch.progress import OnProgress, Progress, Waits
    from penstock.batch.result import Result

    # What a run's `output_format` makes of answers: nothing, where there is none. Only checkers know the default.
    Model = TypeVar("Model", default=None)
else:
    from typing import TypeVar

    Model = TypeVar("Model")

__all__ = ["KNOWN_PARAMS", "Engine", "Model", "Order", "Run", "RunOptions", "Work", "check_whole", "first_of"]

Order = Literal["completed", "input"]

KNOWN_PARAMS: Final = frozenset(inspect.signature(AsyncMessages.create).parameters) - {"self"}
_ON_PROGRESS_EVERY_S: Final = 1.0
# One may be refused a model that others may use; what so many in a row are refused is refused to all.
_MOST_REFUSED: Final = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """What every run is told; see `FanOut`.

    Raises:
        ValueError: An option is out of its range, or doesn't go with another one.
        TypeError: A param that the SDK doesn't know; `on_progress` is a coroutine function.
    """

    params: Mapping[str, Any]
    journal: str | os.PathLike[str] | Journal | None = None
    retry_failed: bool = False
    replay: bool = False
    keep_params: bool = False
    output_format: Any = None
    order: Order = "completed"
    fail_fast: bool = False
    max_failures: float | None = None
    progress: bool = False
    on_progress: OnProgress | None = None
    total: int | None = None
    waits: Callable[[float], Waits] | None = None

    def __post_init__(self) -> None:
        if self.params.get("stream"):
            raise ValueError("a run gives whole messages: leave stream out")
        for name in self.params.keys() - KNOWN_PARAMS:
            likely = "".join(f"; did you mean {each}?" for each in difflib.get_close_matches(name, KNOWN_PARAMS, 1))
            raise TypeError(f"messages.create takes no {name}{likely} (what only the API knows goes into extra_body)")
        if self.order not in get_args(Order):
            raise ValueError(f"order must be one of {', '.join(get_args(Order))}, not {self.order!r}")
        for name in ("retry_failed", "replay", "keep_params"):
            if getattr(self, name) and self.journal is None:
                raise ValueError(f"{name} needs a journal: give it journal='run.jsonl', or leave it out")
        if self.keep_params and isinstance(self.journal, Journal):
            raise ValueError("keep_params belongs to a journal of your own: Journal(…, keep_params=True)")
        check_on_progress(self.on_progress)


class Engine(Protocol):
    """What asks for the items of a run."""

    @property
    def room(self) -> int:
        """Results at most that may be under way or ready, and not taken by the caller."""
        ...

    async def open(self, work: Work, stack: AsyncExitStack) -> None:
        """Make ready; what `stack` closes is closed when the work has ended, in whatever way, and not cancelled."""
        ...

    async def work(self) -> None:
        """Do it all; returns when every item has its result. It may be cancelled at any await."""
        ...

    def leave(self) -> None:
        """Hear that the caller leaves: what it does is about to be cancelled."""
        ...


class Work:
    """A run as its engine sees it.

    Attributes:
        intake: Gives the items.
        output: What answers are to fit.
        tally: The counts.
        room: To be acquired for each result that is going to be given.
        journal: Where results are written; `None` without one.
        results: Those that are ready.
    """

    def __init__(
        self, requests: Iterable[Request] | AsyncIterable[Request], options: RunOptions, intake: type[Intake], room: int
    ) -> None:
        self.output = OutputFormat.of(options.output_format)
        self.intake = intake(
            requests,
            options.params,
            output=self.output,
            retry_failed=options.retry_failed,
            replay=options.replay,
        )
        total = len(requests) if options.total is None and isinstance(requests, Sized) else options.total
        self.tally = Tally(total=total, waits=options.waits)
        self.room = asyncio.Semaphore(room)
        self.journal: Journal | None = None
        self.results: HandOver[FanOutResult] = HandOver()
        # In input order: the places of the items whose results are not ready to be taken, and what is known of them.
        self._in_line: deque[int] | None = deque() if options.order == "input" else None
        self._early: dict[int, FanOutResult] = {}
        # Items in a row whose account was refused.
        self._refused = 0

    def __repr__(self) -> str:
        return f"<Work {self.intake!r}, {self.tally!r}>"

    async def next(self) -> Ready | None:
        """Wait for an item; one that an earlier run has finished, or that can't be asked, comes as its result.

        Returns:
            An item, or a result to give; `None` at the end of the input.
        """
        ready = await self.intake.next()
        if ready is None:
            return None
        if self._in_line is not None:
            self._in_line.append(ready.index)
        if not isinstance(ready, FanOutResult):
            self.tally.start()
        elif not ready.replayed:
            self.tally.start()
            self.tally.add(ready)
        return ready

    def finish(self, result: FanOutResult, *, request: str | None, params: Any) -> None:
        """Write down what came of an item, and count it.

        Args:
            result: What came of it.
            request: Digest of its request.
            params: Of its request; `None` if they can't matter.

        Raises:
            JournalError: It can't be written down.
            AccountRefused: It was refused because of its account, as were those before it.
        """
        if self.journal is not None and result.error is None:
            self.journal.write(result, request=request)
        elif self.journal is not None:
            self.journal.write(result, request=request, params=params, retryable=is_mendable(result.error))
        self.tally.add(result)
        self._refused = self._refused + 1 if is_account_refused(result.error) else 0
        if self._refused == _MOST_REFUSED and result.error is not None:
            raise AccountRefused(items=self._refused, reason=reason_of(result.error)) from result.error

    def give(self, result: FanOutResult) -> None:
        """Hand a result over."""
        if self._in_line is None:
            self.results.give(result)
            return
        self._early[result.index] = result
        while self._in_line and self._in_line[0] in self._early:
            self.results.give(self._early.pop(self._in_line.popleft()))

    def snapshot(self) -> Progress:
        """Return how far it is."""
        self.tally.resumed = self.intake.resumed
        return self.tally.snapshot()


class Run(Generic[Model]):
    """Many requests: `async with` it, iterate over it, leave early as you like.

    Args:
        engine: Asks for the items.
        requests: Plain prompts or requests, read lazily.
        options: What it is told.
        intake: Reads them.
    """

    _NAME: ClassVar = "run"

    def __init__(
        self,
        engine: Engine,
        requests: Iterable[Request] | AsyncIterable[Request],
        options: RunOptions,
        *,
        intake: type[Intake] = Intake,
    ) -> None:
        self._engine = engine
        self._options = options
        self._limit = FailureLimit(fail_fast=options.fail_fast, max_failures=options.max_failures)
        self._work = Work(requests, options, intake, engine.room)
        self._task = OwnTask(f"penstock-{self._NAME}")
        self._error: Exception | None = None
        self._taken = 0
        # Made on entry, which takes a loop.
        self._scope: anyio.CancelScope

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._work.intake.read} read, {self._taken} delivered, {self._engine!r}>"

    @property
    def progress(self) -> Progress:
        """How far it is."""
        return self._work.snapshot()

    async def __aenter__(self) -> Self:
        """Open the journal and start; items begin as soon as the block awaits.

        Raises:
            JournalError: The journal can't be used.
            RuntimeError: It was entered before.
        """
        if self._task.begun:
            raise RuntimeError(f"a {self._NAME} runs once; make a new one")
        loop = asyncio.get_running_loop()
        opened: asyncio.Future[None] = loop.create_future()
        self._scope = anyio.CancelScope()
        self._work.tally.begin(loop.time)
        self._task.begin(lambda: self._live(opened))
        try:
            await opened
        except BaseException:
            # Whoever fails or is cancelled while entering never leaves.
            self._scope.cancel()
            with logged_journal_errors(instead=True):
                await self._task.ended()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Cancel what is still under way and close the journal; an exception of the block leaves as it is.

        Raises:
            JournalError: The journal can't be synced.
        """
        if not self._task.begun:
            return
        self._engine.leave()
        self._scope.cancel()
        with logged_journal_errors(instead=error is not None):
            await self._task.ended()
        self._work.results.clear()

    def __aiter__(self) -> Self:
        """Results as they come."""
        return self

    async def __anext__(self) -> Result[Model]:
        """Wait for the next result; one that somebody stopped waiting for is given to whoever waits next.

        Raises:
            JournalError: The journal can't be written to any more; the rest was cancelled.
            TooManyFailures: More failed than `max_failures` allows.
            Exception: The input's own, once everything that it gave before is delivered; the first failure with
                `fail_fast`; or of the API about the run as a whole.
        """
        self._check_entered()
        try:
            result = await self._work.results.take()
        except EOFError:
            pass
        else:
            self._taken += 1
            self._work.room.release()
            self._limit.count(result)
            return cast("Result[Model]", result)
        error, self._error = self._error, None
        try:
            # Raised out here, so that the input's error keeps its own cause and context.
            raise StopAsyncIteration if error is None else error
        finally:
            # Without the reference, the error forms no cycle with its traceback.
            del error

    def _check_entered(self) -> None:
        if not self._task.begun:
            raise RuntimeError(f"use it inside `async with …{self._NAME}(…) as results:`")

    # What goes on in its own task

    async def _live(self, opened: asyncio.Future[None]) -> None:
        try:
            async with AsyncExitStack() as stack:
                reporter = ProgressReporter(self._work.snapshot, self._sinks())
                self._work.journal = self._work.intake.journal = await self._opened_journal(stack)
                self._work.intake.begin()
                stack.push_async_callback(self._work.intake.end)
                await self._engine.open(self._work, stack)
                if not opened.done():
                    opened.set_result(None)
                with self._scope:
                    await self._work_watched(reporter)
                    # The journal stays open for as long as anybody may ask it something.
                    await anyio.sleep_forever()
        except BaseException as error:
            if opened.done():
                raise
            opened.set_exception(error)

    async def _work_watched(self, reporter: ProgressReporter) -> None:
        try:
            async with anyio.create_task_group() as beside:
                if self._work.journal is not None:
                    beside.start_soon(self._work.journal.keep_synced)
                if reporter.tells:
                    beside.start_soon(reporter.run)
                await self._engine.work()
                beside.cancel_scope.cancel()
        except Exception as error:  # noqa: BLE001 - raised to the caller, after the results
            self._error = first_of(error)
        except asyncio.CancelledError:
            if not self._scope.cancel_called:
                # What is cut short must not look as if it had come to its end.
                self._error = RuntimeError("the run was cancelled from outside before its end")
            raise
        finally:
            self._error = self._error or self._work.intake.error
            reporter.end()
            self._work.results.close()

    async def _opened_journal(self, stack: AsyncExitStack) -> Journal | None:
        given = self._options.journal
        if given is None or isinstance(given, Journal):
            return given
        return await stack.enter_async_context(Journal(given, keep_params=self._options.keep_params))

    def _sinks(self) -> list[tuple[OnProgress, float]]:
        sinks: list[tuple[OnProgress, float]] = []
        if self._options.on_progress is not None:
            sinks.append((self._options.on_progress, _ON_PROGRESS_EVERY_S))
        if self._options.progress:
            from penstock.batch.progress_display import display  # noqa: PLC0415 - few ask for it

            sinks.append(display())
        return sinks


def check_whole(name: str, value: object, most: float = math.inf) -> None:
    """Refuse what is no whole number from 1 to `most`.

    Raises:
        ValueError: It names the option, what is allowed, and the value.
    """
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
        limit = "up" if most == math.inf else f"to {most}"
        raise ValueError(f"{name} must be a whole number from 1 {limit}, not {value!r}")


def first_of(error: Exception) -> Exception:
    """Return the error inside groups of them."""
    while isinstance(error, ExceptionGroup):
        error = cast("ExceptionGroup[Exception]", error).exceptions[0]
    return error
