"""What a tool loop asks and tells an application: calls to decide about, and what happens, as it happens.

The rule here: frozen values, the events in the order in which things happened. Content is in them, because an interface
shows it, but never in their `repr`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from penstock.streaming.accumulate import AnyMessage
    from penstock.tools.outcome import ToolRun

__all__ = [
    "Allow",
    "Answer",
    "ApprovalAsked",
    "Approve",
    "Decision",
    "Deny",
    "Emit",
    "Finished",
    "IterationStarted",
    "Later",
    "MessageFinished",
    "TextDelta",
    "ToolCall",
    "ToolDenied",
    "ToolEvent",
    "ToolFinished",
    "ToolStarted",
]

# Asked


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """A call of a tool, as the model made it.

    Attributes:
        id: The API's, of the `tool_use` block.
        name: Of the tool.
        input: Its arguments; a copy, free to be changed. Never in `repr`.
        toolset_name: Of the toolset that it belongs to, if any.
    """

    id: str
    name: str
    input: dict[str, Any] = field(repr=False)
    toolset_name: str | None = None


@dataclass(frozen=True, slots=True)
class Allow:
    """Let a call run.

    Attributes:
        input: The arguments to run it with, in place of the model's; `None` to keep those.
    """

    input: dict[str, Any] | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Deny:
    """Don't let a call run; the model is told so.

    Attributes:
        reason: For the model.
    """

    reason: str = field(default="The user does not allow this call.", repr=False)


@dataclass(frozen=True, slots=True)
class Answer:
    """Answer a call in place of the tool.

    Attributes:
        content: What a tool may return.
        is_error: Whether the model is to take it for a failure.
    """

    content: object = field(default=None, repr=False)
    is_error: bool = False


@dataclass(frozen=True, slots=True)
class Later:
    """Decide about a call later: the other calls of the turn are run, then the run ends.

    Whoever goes on from what it ended with is asked about the call again.
    """


Decision: TypeAlias = bool | Allow | Deny | Answer | Later
Approve: TypeAlias = Callable[[ToolCall], Awaitable[Decision]]


# Told


@dataclass(frozen=True, slots=True, kw_only=True)
class IterationStarted:
    """The model is asked for its next reply.

    Attributes:
        iteration: Which reply of this run, from 1.
    """

    iteration: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TextDelta:
    """Text that follows what came before; one delta, or several that came while nobody took them.

    Attributes:
        text: What was added.
        iteration: To which reply.
    """

    text: str = field(repr=False)
    iteration: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageFinished:
    """A reply is complete.

    Attributes:
        message: As the SDK makes it.
        iteration: Which reply.
    """

    message: AnyMessage = field(repr=False)
    iteration: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ApprovalAsked:
    """The hook `approve` is asked about a call, which waits for what it says.

    Attributes:
        id: Of the call.
        name: Of the tool.
        input: What it would be run with.
    """

    id: str
    name: str
    input: dict[str, Any] = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolStarted:
    """A tool begins to run.

    Attributes:
        id: Of the call.
        name: Of the tool.
        input: What it is run with.
    """

    id: str
    name: str
    input: dict[str, Any] = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolFinished:
    """A call is answered: by its tool, in its place, or because it could not run.

    Attributes:
        id: Of the call.
        name: Of the tool.
        content: What the model is told: text, or content blocks.
        is_error: Whether it failed.
        seconds: That the tool ran; 0 if it did not.
    """

    id: str
    name: str
    content: str | list[dict[str, Any]] = field(repr=False)
    is_error: bool
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolDenied:
    """A call was denied.

    Attributes:
        id: Of the call.
        name: Of the tool.
        reason: What the model is told.
    """

    id: str
    name: str
    reason: str = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """The loop has come to its end; the last event.

    Attributes:
        run: What came of it.
    """

    run: ToolRun


ToolEvent: TypeAlias = (
    IterationStarted | TextDelta | MessageFinished | ApprovalAsked | ToolStarted | ToolFinished | ToolDenied | Finished
)
Emit: TypeAlias = Callable[[ToolEvent], object]
