"""Running the calls of a turn, all at once, each to an answer.

The rule here: a call always ends in a result, whatever its tool does, and disturbs no other; only the hook `approve`
may fail the run. Nothing of the client's (no slot, no connection) is held while tools run, so a tool may use the client
itself.
"""

from __future__ import annotations

import copy
import inspect
import math
from typing import TYPE_CHECKING, Any, Final, cast

import anyio
import anyio.to_thread
from anthropic.lib.tools import ToolError
from anyio.lowlevel import RunVar

from penstock.messages.blocks import NO_JSON, is_wrapped
from penstock.tools.content import Result, failed, failure_of, result_of
from penstock.tools.definition import InvalidArguments
from penstock.tools.events import (
    Allow,
    Answer,
    ApprovalAsked,
    Deny,
    Later,
    ToolCall,
    ToolDenied,
    ToolFinished,
    ToolStarted,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from penstock.tools.definition import Tool
    from penstock.tools.events import Approve, Emit
    from penstock.tools.registry import Tools
    from penstock.tools.state import LoopState, ToolOptions

__all__ = ["Calls"]

_RETRIES: Final = 2
_BACK_OFF_S: Final = 0.1
# Worker threads of sync tools, in all loops of an event loop together; anyio's own are left to others.
_THREADS: Final = 64
_threads: RunVar[anyio.CapacityLimiter] = RunVar("penstock_tool_threads")


class Calls:
    """Runs the calls of one loop.

    Args:
        tools: What runs them.
        options: How many at once, how long each, and how much of its result.
        approve: Asked before a call runs; `None` to run all.
        emit: Told what happens.
    """

    def __init__(self, tools: Tools, options: ToolOptions, *, approve: Approve | None, emit: Emit) -> None:
        self._tools = tools
        self._options = options
        self._approve = approve
        self._emit = emit
        self._room = anyio.Semaphore(options.max_parallel_tools)

    def __repr__(self) -> str:
        return f"<Calls of {self._tools!r}>"

    async def run(self, calls: list[ToolCall], state: LoopState) -> None:
        """Run calls at the same time, and note the result of each as it comes.

        Raises:
            Exception: What `approve` raised, as it is; the other calls are cancelled.
        """
        raised: list[Exception] = []

        async def answer(call: ToolCall) -> None:
            try:
                await self._answer(call, state)
            except Exception as error:  # noqa: BLE001 - raised below, because a task group would wrap it
                raised.append(error)
                group.cancel_scope.cancel()
            except anyio.get_cancelled_exc_class():
                if anyio.current_effective_deadline() == -math.inf:
                    raise
                # Nobody here asked for it. Raised on, it would cancel the other calls.
                self._finish(call, failed("the call was cancelled"), state)

        async with anyio.create_task_group() as group:
            for call in calls:
                group.start_soon(answer, call, name=f"tool {call.name}")
        if raised:
            try:
                raise raised[0]
            finally:
                raised.clear()

    async def _answer(self, call: ToolCall, state: LoopState) -> None:
        tool = self._tools.find(call)
        if tool is None:
            self._finish(call, failed(f"there is no tool named {call.name[:128]!r}"), state)
            return
        if is_wrapped(call.input):
            self._finish(call, failed(NO_JSON), state)
            return
        with state.transcript.asking(call):
            decided = await self._decide(tool, call)
        if isinstance(decided, Later):
            state.transcript.put_off(call)
        elif isinstance(decided, Deny):
            self._deny(call, decided, state)
        elif isinstance(decided, Result):
            self._finish(call, decided, state)
        else:
            async with self._room:
                await self._run(tool, call, decided, state)

    async def _decide(self, tool: Tool[..., Any], call: ToolCall) -> dict[str, Any] | Deny | Later | Result:
        """Return what a call is to be run with, or what it is answered with instead."""
        refused = self._refusal(tool, call.input)
        if refused is not None:
            return refused
        if self._approve is None or tool.needs_approval is False:
            return call.input
        self._emit(ApprovalAsked(id=call.id, name=call.name, input=copy.deepcopy(call.input)))
        asked = cast("object", self._approve(call))
        if not inspect.isawaitable(asked):
            raise TypeError("approve must be an async function that takes a ToolCall")
        decision = cast("object", await asked)
        if isinstance(decision, bool):
            decision = Allow() if decision else Deny()
        if isinstance(decision, Deny | Later):
            return decision
        if isinstance(decision, Answer):
            return self._answered_by(decision)
        if isinstance(decision, Allow):
            given = call.input if decision.input is None else decision.input
            return self._refusal(tool, given) or given
        kind = type(decision).__name__
        raise TypeError(f"approve must return a bool, Allow, Deny, Answer or Later, not {kind} (tool {call.name!r})")

    def _refusal(self, tool: Tool[..., Any], given: dict[str, Any]) -> Result | None:
        """Return why a tool doesn't take an input; `None` if it does."""
        try:
            _bound(tool, given)
        except Exception as error:  # noqa: BLE001 - validators of the tool's own
            return self._failure(error)
        return None

    def _answered_by(self, decision: Answer) -> Result:
        result = result_of(decision.content, most=self._options.max_result_chars)
        return failed(result.text) if decision.is_error else result

    # Running

    async def _run(self, tool: Tool[..., Any], call: ToolCall, given: dict[str, Any], state: LoopState) -> None:
        timeout_s = self._options.tool_timeout_s if tool.timeout_s is None else tool.timeout_s
        state.transcript.begin(call)
        self._emit(ToolStarted(id=call.id, name=call.name, input=given))
        began = anyio.current_time()
        result = None
        with anyio.move_on_after(math.inf if timeout_s is None else timeout_s):
            result = await self._attempts(tool, given)
        if result is None:
            result = failed(f"the tool took longer than {timeout_s:g} s and was stopped")
        self._finish(call, result, state, seconds=anyio.current_time() - began)

    async def _attempts(self, tool: Tool[..., Any], given: dict[str, Any]) -> Result:
        """Call a tool, and again if that is safe, until it succeeds or has failed often enough."""
        left = _RETRIES if tool.safe_to_retry else 0
        while True:
            try:
                return await self._attempt(tool, given)
            except (ToolError, InvalidArguments) as error:
                return self._failure(error)
            except Exception as error:  # noqa: BLE001 - whatever a tool raises is told to the model
                if left == 0:
                    return self._failure(error)
            await anyio.sleep(_BACK_OFF_S * 2 ** (_RETRIES - left))
            left -= 1

    async def _attempt(self, tool: Tool[..., Any], given: dict[str, Any]) -> Result:
        bound = _bound(tool, given)
        if tool.is_async:
            value = await cast("Any", bound())
        else:
            value = await anyio.to_thread.run_sync(
                self._call_sync, tool, bound, abandon_on_cancel=True, limiter=_limiter()
            )
        if inspect.isawaitable(value):
            value = await value
        return value if isinstance(value, Result) else self._result(tool, value)

    def _call_sync(self, tool: Tool[..., Any], bound: Callable[[], object]) -> object:
        """Call a sync tool; returns its result, or what is still to be awaited (a wrapped async function)."""
        try:
            value = bound()
        except SystemExit as error:
            # In a thread it ends nothing but the thread; raised on, it would end the program.
            raise ToolError(f"the tool called sys.exit({error.code!r})") from error
        return value if inspect.isawaitable(value) else self._result(tool, value)

    def _result(self, tool: Tool[..., Any], value: object) -> Result:
        return result_of(value, most=self._options.max_result_chars, schema=tool.result)

    def _failure(self, error: Exception) -> Result:
        return failure_of(error, most=self._options.max_result_chars)

    # Telling

    def _deny(self, call: ToolCall, decision: Deny, state: LoopState) -> None:
        result = failed(f"Denied: {decision.reason}")
        state.answered(call, result)
        self._emit(ToolDenied(id=call.id, name=call.name, reason=result.text))

    def _finish(self, call: ToolCall, result: Result, state: LoopState, *, seconds: float = 0.0) -> None:
        state.answered(call, result)
        self._emit(
            ToolFinished(id=call.id, name=call.name, content=result.content, is_error=result.is_error, seconds=seconds)
        )


def _bound(tool: Tool[..., Any], given: dict[str, Any]) -> Callable[[], object]:
    """Return the call, with arguments of its own: a tool may change what it is given, and be called again."""
    return tool.bind(copy.deepcopy(given))


def _limiter() -> anyio.CapacityLimiter:
    """Return the event loop's bound on threads of tools."""
    limiter = _threads.get(None)
    if limiter is None:
        limiter = anyio.CapacityLimiter(_THREADS)
        _threads.set(limiter)
    return limiter
