"""How far a tool loop may go, and what it does with its calls.

The rule here: every bound has a default or is off, and every one that is reached is named in the error as it was given.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated, Literal

from pydantic import Field

from penstock.core.options import Options

__all__ = ["OnUnknownTool", "ToolOptions"]

OnUnknownTool = Literal["answer", "raise"]


class ToolOptions(Options):
    """Options of `run_tools` and `tool_loop`.

    Args:
        max_iterations: Replies of the model, 1 or more.
        max_tool_calls: Calls of tools together, 0 or more; `None` for no bound.
        max_total_tokens: Input and output tokens of all replies together, 1 or more; `None` for no bound.
        max_cost_usd: What all replies together may cost, above 0; `None` for no bound.
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
