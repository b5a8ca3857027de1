"""Fan-out: many prompts at once, results as they come.

The rule here: input is read only as fast as items start, and items start only as fast as results are taken, so that
memory depends on the concurrency and never on the length of the input. A failed request is a result; an exception of
the caller's own leaves as itself.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal, Self, TypeAlias, cast, get_args

import anyio

from penstock.batch.result import FanOutResult
from penstock.core.context import Patience, Priority, current_labels, labels, patience

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from types import TracebackType

    from anthropic import AsyncAnthropic
    from anthropic.types import Message
    from anyio.abc import TaskGroup
    from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

__all__ = ["FanOut", "Order", "Request"]

Request: TypeAlias = "str | Mapping[str, Any]"
Order = Literal["completed", "input"]

_PATIENCE = Patience(max_attempts=10)


class FanOut:
    """Runs requests concurrently: `async with` it, iterate over it, leave early as you like.

    Args:
        sdk: The client that sends them, governed or not.
        requests: Plain prompts, or requests as Message Batches takes them (`custom_id`, `params`); an iterable or async
            iterable, read lazily.
        concurrency: Items started at once, 1 or more.
        order: `"completed"`, or `"input"` to keep the order; that holds back at most `concurrency` results.
        fail_fast: Raise the first failure instead of giving it as a result.
        **params: Of `messages.create`, for every item; an item's own `params` win.

    Raises:
        ValueError: A bad `concurrency` or `order`.
        TypeError: `requests` is a single text, or can't be iterated over.

    Example:
        >>> async def main() -> None:
        ...     async with FanOut(claude.sdk, ["One", "Two"], model="claude-haiku-5-5", max_tokens=100) as results:
        ...         async for result in results:
        ...             print(result.custom_id, result.ok)
    """

    def __init__(
        self,
        sdk: AsyncAnthropic,
        requests: Iterable[Request] | AsyncIterable[Request],
        *,
        concurrency: int = 64,
        order: Order = "completed",
        fail_fast: bool = False,
        **params: Any,
    ) -> None:
        given = cast("object", requests)
        if isinstance(given, str | bytes | Mapping) or not isinstance(given, Iterable | AsyncIterable):
            raise TypeError(
                "requests must be an iterable or async iterable of prompts or requests; for one prompt give [prompt]"
            )
        number = cast("object", concurrency)
        if not isinstance(number, int) or isinstance(number, bool) or number < 1:
            raise ValueError(f"concurrency must be a whole number from 1 up, not {concurrency!r}")
        if order not in get_args(Order):
            raise ValueError(f"order must be one of {', '.join(get_args(Order))}, not {order!r}")
        self._sdk = sdk
        self._source: Iterator[Request] | AsyncIterator[Request] = (
            aiter(requests) if isinstance(requests, AsyncIterable) else iter(requests)
        )
        self._concurrency = concurrency
        self._order = order
        self._fail_fast = fail_fast
        self._params = params
        self._reading = anyio.Lock()
        # How many may have started and not be delivered; in input order all of them may have to be held back.
        self._room = anyio.Semaphore(concurrency if order == "input" else 2 * concurrency)
        # Made on entry: one that is never entered has nothing to close.
        self._send: MemoryObjectSendStream[FanOutResult]
        self._receive: MemoryObjectReceiveStream[FanOutResult]
        self._group: TaskGroup | None = None
        self._workers = 0
        self._started = 0
        self._next = 0
        self._early: dict[int, FanOutResult] = {}
        self._source_ended = False
        self._input_error: Exception | None = None

    def __repr__(self) -> str:
        return f"<FanOut {self._started} started, {self._next} delivered, {self._workers} workers>"

    async def __aenter__(self) -> Self:
        """Start; items begin as soon as the block awaits."""
        if self._group is not None:
            raise RuntimeError("a fan-out runs once; make a new one")
        self._send, self._receive = anyio.create_memory_object_stream[FanOutResult](self._concurrency)
        self._group = anyio.create_task_group()
        await self._group.__aenter__()
        self._add_worker()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Cancel what is still under way; an exception of the block leaves as it is."""
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

    def __aiter__(self) -> Self:
        """Results as they come."""
        return self

    async def __anext__(self) -> FanOutResult:
        """Wait for the next result.

        Raises:
            Exception: The input's own, once everything that it gave before is delivered; or the first failure with
                `fail_fast`.
        """
        if self._group is None:
            raise RuntimeError("use it inside `async with …fan_out(…) as results:`")
        if self._order == "input":
            while self._next not in self._early:
                result = await self._take()
                self._early[result.index] = result
            result = self._early.pop(self._next)
        else:
            result = await self._take()
        self._next += 1
        self._room.release()
        if self._fail_fast and result.error is not None:
            raise result.error
        return result

    async def _take(self) -> FanOutResult:
        with contextlib.suppress(anyio.EndOfStream, anyio.ClosedResourceError):
            return await self._receive.receive()
        error, self._input_error = self._input_error, None
        # Raised out here, so that the input's error keeps its own cause and context.
        raise StopAsyncIteration if error is None else error

    # Workers

    def _add_worker(self) -> None:
        if self._group is not None and self._workers < self._concurrency:
            self._workers += 1
            self._group.start_soon(self._work)

    async def _work(self) -> None:
        """Take items and ask for them, one after the other; the last worker to leave ends the results."""
        try:
            while (item := await self._read()) is not None:
                index, request = item
                # One item found means there may be another: so there are never more workers than items.
                self._add_worker()
                await self._send.send(await self._ask(index, request))
        finally:
            self._workers -= 1
            if self._workers == 0:
                self._send.close()

    async def _read(self) -> tuple[int, Request] | None:
        """Read the next item of the input, once there is room for its result."""
        await self._room.acquire()
        async with self._reading:
            if self._source_ended:
                return None
            try:
                if isinstance(self._source, AsyncIterable):
                    request = await anext(self._source)
                else:
                    request = next(self._source)
            except (StopIteration, StopAsyncIteration):
                self._source_ended = True
                return None
            except Exception as error:  # noqa: BLE001 - raised to the caller, after all that the input gave before
                self._source_ended = True
                self._input_error = error
                return None
            index = self._started
            self._started += 1
            return index, request

    async def _ask(self, index: int, request: Request) -> FanOutResult:
        custom_id = str(index)
        try:
            if isinstance(request, Mapping) and isinstance(given := request.get("custom_id"), str):
                custom_id = given
            params: dict[str, Any] = {**self._params, **_params_of(index, request)}
            with labels(priority=_priority()), patience(_PATIENCE):
                message = cast("Message", await self._sdk.messages.create(**params))
        except Exception as error:  # noqa: BLE001 - the failure is the result
            return FanOutResult(custom_id=custom_id, index=index, error=error)
        return FanOutResult(custom_id=custom_id, index=index, message=message)


def _priority() -> Priority:
    """Return `batch`, unless the caller has labelled the block otherwise."""
    return cast("Priority", current_labels().get("priority", "batch"))


def _params_of(index: int, request: object) -> Mapping[str, Any]:
    """Return what an item asks for, or say what is wrong with it."""
    if isinstance(request, str):
        return {"messages": [{"role": "user", "content": request}]}
    if not isinstance(request, Mapping):
        raise TypeError(
            f"item {index} must be a prompt or a mapping with custom_id and params, not {type(request).__name__}"
        )
    item = cast("Mapping[str, object]", request)
    custom_id, params = item.get("custom_id"), item.get("params")
    if not isinstance(custom_id, str) or not custom_id:
        raise ValueError(f"item {index} has no custom_id: give it a text that names it")
    if not isinstance(params, Mapping):
        raise TypeError(f"item {index} has no params: give it those of messages.create")
    wanted = cast("Mapping[str, Any]", params)
    if wanted.get("stream"):
        raise ValueError(f"item {index} asks for a stream; a fan-out gives whole messages")
    return wanted
