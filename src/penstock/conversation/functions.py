"""Tools that are functions, run between the requests of one `send`.

The rule here: the tool loop's own state decides what is next, and every request is the conversation's. Nothing of it
enters the history before the model's last answer is there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, Protocol, cast

import anyio

from penstock._core.context import labels
from penstock.conversation.reply import Draft
from penstock.messages.blocks import Turn, plain
from penstock.messages.history import open_calls
from penstock.tools.calls import Calls
from penstock.tools.registry import Tools
from penstock.tools.state import Ask, End, LoopState, RunCalls, Stop, ToolOptions

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from penstock.conversation.turn_lock import TurnLock
    from penstock.messages.blocks import Block
    from penstock.streaming.accumulate import AnyMessage
    from penstock.tools.events import Approve, ToolEvent
    from penstock.tools.registry import AnyTool

__all__ = ["OF_LOOP", "Functions", "Show", "offered"]


class Show(Protocol):
    """Tells the history while calls are decided about and run."""

    def __call__(self, *, stopped: bool = False) -> tuple[Turn, ...] | None:
        """Return it with the calls that wait for approval, `None` if none does; or with all answered, if stopped."""
        ...


# The conversation has budgets of its own.
_BUDGETS: Final = frozenset({"max_total_tokens", "max_cost_usd"})
OF_LOOP: Final = ToolOptions.model_fields.keys() - _BUDGETS | {"approve"}
"""What a conversation may be told about tools that are functions."""


class Functions:
    """The tools of one conversation, and how far it may go with them.

    Args:
        tools: What runs calls, and what the model is told of it.
        options: How far each `send` may go.
        approve: Asked before a call runs; `None` to run all.

    Raises:
        TypeError: A tool needs approval, and nothing gives it.
    """

    def __init__(self, tools: Tools, options: ToolOptions, approve: Approve | None) -> None:
        unasked = [tool.name for tool in tools.runnable if tool.needs_approval]
        if unasked and approve is None:
            raise TypeError(f"tool {unasked[0]!r} needs approval: give the conversation a hook, approve=…")
        self.tools = tools
        self.options = options
        self._approve = approve

    def __repr__(self) -> str:
        return f"<Functions of {self.tools!r}>"

    async def run(
        self,
        turns: tuple[Turn, ...],
        ask: Callable[[tuple[Turn, ...]], Awaitable[Draft]],
        turn_lock: TurnLock,
        show: Callable[[Show], None],
    ) -> Draft:
        """Ask, run what is called, and ask again, until nothing is called any more, or a call is put off.

        Args:
            turns: The history with the question, or with calls that are not all answered yet.
            ask: Sends a history and returns the answer.
            turn_lock: Of the conversation, in which no tool may ask.
            show: Given what tells the history, each time that calls are to be run.

        Raises:
            ToolLoopLimit: A bound is reached.
            UnknownTool: There is no such tool, and `on_unknown_tool` is `"raise"`.
            Exception: What `approve` raised, as it is.
        """
        state = LoopState(turns, self.tools, self.options)
        state.begin(anyio.current_time())
        with anyio.move_on_after(self.options.max_seconds):
            draft = Draft.of_calls(tuple(state.transcript.turns)) if open_calls(turns) else None
            while True:
                if draft is None:
                    with labels(tool_iteration=str(state.iterations + 1)):
                        draft = await ask(turns)
                    if draft.outcome is None or not draft.calls:
                        return draft
                    state.received(cast("AnyMessage", draft.whole.model_copy(update={"stop_reason": "tool_use"})))
                with turn_lock.awaiting():
                    results = await self._results(draft, state, show)
                if results is None:
                    return draft
                turns, draft = (*(draft.outcome or ()), results), None
        raise state.out_of_time().error

    async def _results(self, draft: Draft, state: LoopState, show: Callable[[Show], None]) -> Turn | None:
        """Run the calls of an answer; returns their results, or `None` where some wait."""
        before = draft.outcome or ()

        def told(*, stopped: bool = False) -> tuple[Turn, ...] | None:
            transcript = state.transcript
            if stopped:
                return (*before, replace(transcript.answered, pinned=draft.pinned))
            results = transcript.resumable_turns[len(transcript.turns) :]
            return (*before, *(replace(turn, pinned=draft.pinned) for turn in results)) if transcript.waits else None

        show(told)
        step = state.next(anyio.current_time())
        if isinstance(step, RunCalls):
            calls = Calls(self.tools, self.options, approve=self._approve, emit=_ignore)
            await calls.run(step.calls, state)
            step = state.next(anyio.current_time())
        if isinstance(step, Stop):
            raise step.error
        if isinstance(step, End):
            draft.wait(told() or before, step.run.pending)
            return None
        return replace(cast("Ask", step).turns[-1], pinned=draft.pinned)


def offered(
    tools: Iterable[AnyTool], told: Mapping[str, Any], *, keep_marks: bool
) -> tuple[list[Block], Functions | None]:
    """Return the request's `tools`, and what runs them if they are functions.

    Args:
        tools: Functions, or entries as the SDK takes them.
        told: Of `OF_LOOP`.
        keep_marks: Whether entries may have marks of the prompt cache.

    Raises:
        TypeError: One is no tool, needs approval that nothing gives, or nothing would run it.
        ValueError: Two have the same name, or a bound is out of its range.
        InvalidHistory: One holds what JSON can't.
    """
    kind = type(cast("object", tools))
    if issubclass(kind, str | bytes | Mapping) or not issubclass(kind, Iterable):
        raise TypeError(f"tools must be a list of tools, not {kind.__name__}; for one tool give [tool]")
    given: list[AnyTool] = list(tools)
    functions = None
    if any(not isinstance(tool, Mapping) for tool in given):
        registry = Tools(given)
        options = {name: value for name, value in told.items() if name != "approve"}
        functions = Functions(registry, ToolOptions(**options), told.get("approve"))
        given = list(registry.params)
    entries: list[Block] = [plain(tool, f"tools.{index}") for index, tool in enumerate(given)]
    names = [_name(entry, index) for index, entry in enumerate(entries)]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"two tools are named {name!r}")
    if not keep_marks:
        entries = [{name: part for name, part in entry.items() if name != "cache_control"} for entry in entries]
    return entries, functions


def _name(entry: Block, index: int) -> str:
    name = entry.get("name") or entry.get("mcp_server_name") or entry.get("type")
    if not isinstance(name, str):
        raise TypeError(f"tools.{index} has no name")
    return name


def _ignore(event: ToolEvent) -> None:
    del event
