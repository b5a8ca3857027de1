"""The tool loop: the model calls functions, and is told what they return, until it needs no more.

`definition` makes a tool of a function, `registry` holds the tools of a loop, `state` decides what is next, `calls`
runs tools, `transcript` keeps the messages valid; `run_tools` is the loop as one call, `ToolLoop` as a stream of
events. It needs nothing but an `AsyncAnthropic`, governed or not.
"""

from __future__ import annotations

from anthropic.lib.tools import ToolError

from penstock.tools.definition import Tool, tool
from penstock.tools.events import (
    Allow,
    Answer,
    ApprovalAsked,
    Approve,
    Decision,
    Deny,
    Finished,
    IterationStarted,
    Later,
    MessageFinished,
    TextDelta,
    ToolCall,
    ToolDenied,
    ToolEvent,
    ToolFinished,
    ToolStarted,
)
from penstock.tools.loop import ToolLoop
from penstock.tools.outcome import ToolRun
from penstock.tools.registry import AnyTool, Tools
from penstock.tools.run import run_tools
from penstock.tools.state import ToolOptions

__all__ = [
    "Allow",
    "Answer",
    "AnyTool",
    "ApprovalAsked",
    "Approve",
    "Decision",
    "Deny",
    "Finished",
    "IterationStarted",
    "Later",
    "MessageFinished",
    "TextDelta",
    "Tool",
    "ToolCall",
    "ToolDenied",
    "ToolError",
    "ToolEvent",
    "ToolFinished",
    "ToolLoop",
    "ToolOptions",
    "ToolRun",
    "ToolStarted",
    "Tools",
    "run_tools",
    "tool",
]
