"""Penstock governs the official `anthropic` SDK: one line for limits, retries, a breaker, keys, fan-out, logs.

Start with `Client`; the guards also work alone, as middleware of any `AsyncAnthropic`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from penstock.admission.limits import Limits
from penstock.client import Client, ClientStatistics
from penstock.core.context import deadline, labels
from penstock.errors import (
    AdmissionTimeout,
    BudgetExceeded,
    CircuitOpen,
    ClientClosed,
    ContextOverflow,
    InvalidHistory,
    InvalidImage,
    InvalidOutput,
    InvalidStream,
    ItemFailed,
    JournalError,
    KeyNotFound,
    NoKeyAvailable,
    PenstockError,
    QueueFull,
    RequestExceedsQuota,
    StreamInterrupted,
    SystemPromptChanged,
    ToolLoopLimit,
    TooManyFailures,
    UnknownPrice,
    UnknownTool,
    UnsafeInput,
)
from penstock.guards.admit import Admit
from penstock.guards.breaker import BreakerOptions, CircuitBreaker
from penstock.guards.meter import Meter
from penstock.guards.record import Record
from penstock.guards.retry import Retry, RetryOptions
from penstock.guards.sanitize import Finding, Sanitize, SanitizeOptions
from penstock.settings import Settings

if TYPE_CHECKING:
    from penstock.batch.journal import Journal
    from penstock.batch.progress import Progress
    from penstock.batch.result import FanOutResult
    from penstock.chat.content import document, image, image_tokens
    from penstock.chat.conversation import Conversation
    from penstock.chat.reply import Reply
    from penstock.chat.system_prompt import SystemPrompt
    from penstock.tools import Allow, Answer, Deny, Tool, ToolCall, ToolError, ToolLoop, ToolRun, tool

__all__ = [
    "AdmissionTimeout",
    "Admit",
    "Allow",
    "Answer",
    "BreakerOptions",
    "BudgetExceeded",
    "CircuitBreaker",
    "CircuitOpen",
    "Client",
    "ClientClosed",
    "ClientStatistics",
    "ContextOverflow",
    "Conversation",
    "Deny",
    "FanOutResult",
    "Finding",
    "InvalidHistory",
    "InvalidImage",
    "InvalidOutput",
    "InvalidStream",
    "ItemFailed",
    "Journal",
    "JournalError",
    "KeyNotFound",
    "Limits",
    "Meter",
    "NoKeyAvailable",
    "PenstockError",
    "Progress",
    "QueueFull",
    "Record",
    "Reply",
    "RequestExceedsQuota",
    "Retry",
    "RetryOptions",
    "Sanitize",
    "SanitizeOptions",
    "Settings",
    "StreamInterrupted",
    "SystemPrompt",
    "SystemPromptChanged",
    "TooManyFailures",
    "Tool",
    "ToolCall",
    "ToolError",
    "ToolLoop",
    "ToolLoopLimit",
    "ToolRun",
    "UnknownPrice",
    "UnknownTool",
    "UnsafeInput",
    "deadline",
    "document",
    "image",
    "image_tokens",
    "labels",
    "tool",
]

# What is loaded when it is first asked for.
_LATE = {
    "Allow": "penstock.tools",
    "Answer": "penstock.tools",
    "Conversation": "penstock.chat.conversation",
    "Deny": "penstock.tools",
    "FanOutResult": "penstock.batch.result",
    "Journal": "penstock.batch.journal",
    "Progress": "penstock.batch.progress",
    "Reply": "penstock.chat.reply",
    "SystemPrompt": "penstock.chat.system_prompt",
    "Tool": "penstock.tools",
    "ToolCall": "penstock.tools",
    "ToolError": "penstock.tools",
    "ToolLoop": "penstock.tools",
    "ToolRun": "penstock.tools",
    "document": "penstock.chat.content",
    "image": "penstock.chat.content",
    "image_tokens": "penstock.chat.content",
    "tool": "penstock.tools",
}
_PACKAGES = frozenset({"batch", "chat", "keys", "simulator", "streaming", "testing", "tools", "web"})


def __getattr__(name: str) -> object:
    if name in _LATE:
        value: object = getattr(import_module(_LATE[name]), name)
    elif name in _PACKAGES:
        value = import_module(f"penstock.{name}")
    else:
        raise AttributeError(f"module 'penstock' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATE, *_PACKAGES})
