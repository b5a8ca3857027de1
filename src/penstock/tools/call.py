"""A call that the model made, what a person or a policy may decide about it, and how it ended.

The rule here: plain values, which show no content when printed.
"""

from __future__ import annotations

import copy
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias, cast

__all__ = ["Allow", "Answer", "Approve", "Decision", "Deny", "Result", "ToolCall", "call_of", "result_block"]


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


Decision: TypeAlias = bool | Allow | Deny | Answer
Approve: TypeAlias = Callable[[ToolCall], Awaitable[Decision]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What a call is answered with.

    Attributes:
        content: A text, or content blocks as a `tool_result` takes them.
        is_error: Whether it failed.
    """

    content: str | list[dict[str, Any]] = field(repr=False)
    is_error: bool = False


def call_of(block: Mapping[str, Any]) -> ToolCall:
    """Read a `tool_use` block. An input that is no object is given on as none."""
    given = block.get("input")
    toolset = block.get("toolset_name")
    return ToolCall(
        id=str(block.get("id")),
        name=str(block.get("name")),
        input=copy.deepcopy(cast("dict[str, Any]", given)) if isinstance(given, dict) else {},
        toolset_name=str(toolset) if toolset else None,
    )


def result_block(call: ToolCall, result: Result) -> dict[str, Any]:
    """Return the `tool_result` block that answers a call."""
    block: dict[str, Any] = {"type": "tool_result", "tool_use_id": call.id}
    if result.content:
        block["content"] = result.content
    if result.is_error:
        block["is_error"] = True
    if call.toolset_name is not None:
        block["toolset_name"] = call.toolset_name
    return block
