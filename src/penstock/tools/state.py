"""What a tool loop does next, decided synchronously.

The rule here: it takes what happened and the time, and says what to do: ask the model, run calls, end, or stop with an
error. It waits for nothing and sends nothing. Every bound has a default or is off, and one that is reached is named in
the error as it was given.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, TypeAlias, cast

from anthropic.types import Message
from pydantic import Field

from penstock._core.options import Options
from penstock._core.usage import Usage
from penstock.costs.spending import Spending
from penstock.errors import ToolLoopLimit, UnknownTool
from penstock.tools.outcome import ToolRun
from penstock.tools.transcript import Prompt, Transcript

if TYPE_CHECKING:
    from anthropic.types import MessageParam

    from penstock.messages.blocks import Turn
    from penstock.streaming.accumulate import AnyMessage
    from penstock.tools.content import Result
    from penstock.tools.events import ToolCall
    from penstock.tools.registry import Tools

__all__ = ["Ask", "End", "LoopState", "OnUnknownTool", "RunCalls", "Step", "Stop", "ToolOptions", "message_of"]

OnUnknownTool = Literal["answer", "raise"]

# The turn is not over: it is sent back as it is, and the model goes on.
_UNFINISHED: Final = ("pause_turn", "compaction")


class ToolOptions(Options):
    """Options of `run_tools` and `tool_loop`.

    Args:
        max_iterations: Replies of the model, 1 or more.
        max_tool_calls: Calls of tools together, 0 or more; `None` for no bound.
        max_total_tokens: Input and output tokens of all replies together, 1 or more; `None` for no bound.
        max_cost_usd: What all replies together may cost, above 0; `None` for no bound. It bounds nothing where a user
            profile pays (`billing_policy`).
        max_seconds: From the start, replies, tools and approvals together, above 0; `None` for no bound.
        max_identical_turns: Turns one after the other with the same calls and the same results, 2 or more; `None` for
            no bound.
        max_parallel_tools: Tools that run at the same time, 1 or more.
        tool_timeout_s: Seconds that a call may take, retries included, approval not, above 0; `None` for no bound.
        max_result_chars: Characters of a result's text, 1 or more; what is longer is cut, and says so.
        on_unknown_tool: `"answer"` tells the model that there is no such tool; `"raise"` raises `UnknownTool`.

    Raises:
        pydantic.ValidationError: A value is out of its range; it is also a `ValueError`.

    Example:
        >>> ToolOptions(max_iterations=3).max_parallel_tools
        8
    """

    max_iterations: Annotated[int, Field(ge=1, strict=True)] = 5
    max_tool_calls: Annotated[int, Field(ge=0, strict=True)] | None = None
    max_total_tokens: Annotated[int, Field(ge=1, strict=True)] | None = None
    max_cost_usd: Annotated[Decimal, Field(gt=0)] | None = None
    max_seconds: Annotated[float, Field(gt=0)] | None = None
    max_identical_turns: Annotated[int, Field(ge=2, strict=True)] | None = 3
    max_parallel_tools: Annotated[int, Field(ge=1, strict=True)] = 8
    tool_timeout_s: Annotated[float, Field(gt=0)] | None = 60.0
    max_result_chars: Annotated[int, Field(ge=1, strict=True)] = 100_000
    on_unknown_tool: OnUnknownTool = "answer"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """Ask the model for its next reply."""

    iteration: int
    turns: tuple[Turn, ...]

    @property
    def messages(self) -> list[MessageParam]:
        """What is sent."""
        return [turn.param() for turn in self.turns]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunCalls:
    """Run these calls, all at once."""

    calls: list[ToolCall]


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """It is over."""

    run: ToolRun


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop:
    """It can't go on."""

    error: ToolLoopLimit | UnknownTool


Step: TypeAlias = Ask | RunCalls | End | Stop


class LoopState:
    """Where a tool loop stands.

    Args:
        prompt: As for `run_tools`; or checked turns.
        tools: What the model is offered.
        options: How far it may go.

    Attributes:
        transcript: The messages.
        spending: What the replies used.
        iterations: Replies so far.
        tool_calls: Calls answered so far.

    Raises:
        InvalidHistory: A message of the prompt is not what the API takes.
    """

    def __init__(self, prompt: Prompt | tuple[Turn, ...], tools: Tools, options: ToolOptions) -> None:
        self.transcript = Transcript(prompt)
        self.spending = Spending()
        self.iterations = 0
        self.tool_calls = 0
        self._tools = tools
        self._options = options
        self._began = 0.0
        self._message: AnyMessage | None = None
        self._last: AnyMessage | None = None
        # A transcript to go on from may end with calls.
        self._runs_calls = True
        self._last_turn: object = None
        self._identical_turns = 0

    def __repr__(self) -> str:
        return f"<LoopState {self.iterations} replies, {self.tool_calls} calls, {self.transcript!r}>"

    # What happened

    def begin(self, now: float) -> None:
        """Note when it starts."""
        self._began = now

    def received(self, message: AnyMessage) -> None:
        """Note a reply."""
        reason = message.stop_reason
        self._last = message
        self.iterations += 1
        self.spending.add(message.model, Usage.from_message(message), message)
        if message.container is not None:
            self.transcript.container = message.container.id
        if reason != "refusal":
            self.transcript.add_reply(message.content)
        self._runs_calls = reason == "tool_use"
        asks_again = reason in _UNFINISHED or (self._runs_calls and bool(self.transcript.unanswered))
        if not asks_again:
            self._message = message
            self.transcript.not_run = f"Not run: the reply ended before, with stop_reason {reason}."

    def broke_off(self, usage: Usage, model: str) -> None:
        """Note a reply that is asked for again."""
        self.spending.add(model, usage)

    def answered(self, call: ToolCall, result: Result) -> None:
        """Note the result of a call."""
        self.tool_calls += 1
        self.transcript.answer(call, result)

    # What to do

    def next(self, now: float) -> Step:
        """Decide.

        Raises:
            UnknownPrice: There is a bound on the cost, and none is known for a reply.
        """
        if self._message is not None:
            return End(run=self._run(self._message))
        calls = self.transcript.unanswered if self._runs_calls else []
        if self.transcript.pending and not calls:
            return End(run=self._run(self._last or message_of(self.transcript.turns[-1])))
        reached = self._reached(now) or self._too_many(calls)
        if reached is None and calls:
            return self._unknown(calls) or RunCalls(calls=calls)
        if reached is None and self._runs_calls:
            reached = self._close_turn()
        return (
            self.stopped(reached) if reached else Ask(iteration=self.iterations + 1, turns=tuple(self.transcript.turns))
        )

    def stopped(self, limit: str) -> Stop:
        """Return how it ends at a bound."""
        self.transcript.not_run = f"Not run: the tool loop reached {limit}."
        return Stop(error=ToolLoopLimit(limit, transcript=self.transcript.valid))

    def out_of_time(self) -> Stop:
        """Return how it ends when its time is over while something is under way."""
        return self.stopped(f"max_seconds={self._options.max_seconds:g}")

    def _close_turn(self) -> str | None:
        """End a turn whose calls are all answered; returns the bound that is reached if it is always the same."""
        most, turn = self._options.max_identical_turns, self.transcript.turn
        if turn:
            self._identical_turns = self._identical_turns + 1 if turn == self._last_turn else 1
            self._last_turn = turn
        self.transcript.close_turn()
        return f"max_identical_turns={most}" if most is not None and self._identical_turns >= most else None

    def _reached(self, now: float) -> str | None:
        """Return the bound that leaves no room for another reply."""
        options = self._options
        if self.iterations >= options.max_iterations:
            return f"max_iterations={options.max_iterations}"
        if options.max_total_tokens is not None and self.spending.usage.total_tokens >= options.max_total_tokens:
            return f"max_total_tokens={options.max_total_tokens}"
        if options.max_cost_usd is not None and self.spending.cost_usd >= options.max_cost_usd:
            return f"max_cost_usd={options.max_cost_usd}"
        if options.max_seconds is not None and now - self._began >= options.max_seconds:
            return f"max_seconds={options.max_seconds:g}"
        return None

    def _too_many(self, calls: list[ToolCall]) -> str | None:
        most = self._options.max_tool_calls
        return f"max_tool_calls={most}" if most is not None and self.tool_calls + len(calls) > most else None

    def _unknown(self, calls: list[ToolCall]) -> Stop | None:
        if self._options.on_unknown_tool == "answer":
            return None
        unknown = next((call for call in calls if self._tools.find(call) is None), None)
        if unknown is None:
            return None
        self.transcript.not_run = "Not run: one of the tools called in this turn does not exist."
        return Stop(error=UnknownTool(unknown.name, transcript=self.transcript.valid))

    def _run(self, message: AnyMessage) -> ToolRun:
        return ToolRun(
            message=message,
            transcript=self.transcript.resumable if self.transcript.pending else self.transcript.valid,
            pending=self.transcript.pending,
            iterations=self.iterations,
            tool_calls=self.tool_calls,
            usage=self.spending.usage,
            _spending=self.spending,
        )


def message_of(turn: Turn) -> AnyMessage:
    """Return the answer that a transcript ends with, as far as it tells."""
    usage = {"input_tokens": 0, "output_tokens": 0}
    fields: dict[str, Any] = {"id": "", "type": "message", "role": "assistant", "model": "", "usage": usage}
    message = Message.construct(**fields, content=list(turn.content), stop_reason="tool_use", stop_sequence=None)
    return cast("AnyMessage", message)
