"""What a tool loop takes, as keywords, for type checkers and editors.

The rule here: the fields of `ToolOptions`, and what the SDK takes for each request.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypedDict

from penstock._core.params import RequestParams

if TYPE_CHECKING:
    from decimal import Decimal

    from anthropic.types import ModelParam

    from penstock._core.params import Left
    from penstock.tools.state import OnUnknownTool

__all__ = ["BoundParams", "LoopParams"]


class BoundParams(TypedDict, total=False):
    """How far a loop may go, whoever runs it; see `ToolOptions`."""

    max_identical_turns: int | Left | None
    max_parallel_tools: int | Left
    max_result_chars: int | Left
    max_seconds: float | Left | None
    max_tool_calls: int | Left | None
    on_unknown_tool: OnUnknownTool | Left
    tool_timeout_s: float | Left | None


class LoopParams(BoundParams, RequestParams, total=False):
    """Options of a loop, and parameters of each of its requests."""

    max_cost_usd: Decimal | float | Left | None
    max_iterations: int | Left | None
    max_tokens: int | Left | None
    max_total_tokens: int | Left | None
    model: ModelParam | Left | None
