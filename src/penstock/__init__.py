"""Penstock governs the official `anthropic` SDK: one line for limits, retries, a breaker, keys, fan-out, logs.

Start with `Client`; the guards also work alone, as middleware of any `AsyncAnthropic`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from penstock._core.context import deadline, labels
    from penstock.batch.journal import Journal
    from penstock.batch.progress import Progress
    from penstock.batch.result import FanOutResult
    from penstock.client import Client, ClientStatistics
    from penstock.content.blocks import document, image, image_tokens
    from penstock.conversation.conversation import Conversation
    from penstock.conversation.reply import Reply
    from penstock.conversation.system_prompt import SystemPrompt
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
        ResponseTooLarge,
        StreamInterrupted,
        SystemPromptChanged,
        ToolLoopLimit,
        TooManyFailures,
        UnknownPrice,
        UnknownTool,
        UnsafeInput,
    )
    from penstock.guards.admit import Admit
    from penstock.guards.admit.limits import Limits
    from penstock.guards.breaker import BreakerOptions, CircuitBreaker
    from penstock.guards.meter import Meter
    from penstock.guards.record import Record
    from penstock.guards.retry import Retry, RetryOptions
    from penstock.guards.sanitize import Finding, Sanitize, SanitizeOptions
    from penstock.settings import Settings
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
    "ResponseTooLarge",
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

# Where each name is loaded from when it is first asked for: the SDK takes a second, and the command line's help and
# version need nothing of it.
_LATE = {
    "AdmissionTimeout": "penstock.errors",
    "Admit": "penstock.guards.admit",
    "Allow": "penstock.tools",
    "Answer": "penstock.tools",
    "BreakerOptions": "penstock.guards.breaker",
    "BudgetExceeded": "penstock.errors",
    "CircuitBreaker": "penstock.guards.breaker",
    "CircuitOpen": "penstock.errors",
    "Client": "penstock.client",
    "ClientClosed": "penstock.errors",
    "ClientStatistics": "penstock.client",
    "ContextOverflow": "penstock.errors",
    "Conversation": "penstock.conversation.conversation",
    "Deny": "penstock.tools",
    "FanOutResult": "penstock.batch.result",
    "Finding": "penstock.guards.sanitize",
    "InvalidHistory": "penstock.errors",
    "InvalidImage": "penstock.errors",
    "InvalidOutput": "penstock.errors",
    "InvalidStream": "penstock.errors",
    "ItemFailed": "penstock.errors",
    "Journal": "penstock.batch.journal",
    "JournalError": "penstock.errors",
    "KeyNotFound": "penstock.errors",
    "Limits": "penstock.guards.admit.limits",
    "Meter": "penstock.guards.meter",
    "NoKeyAvailable": "penstock.errors",
    "PenstockError": "penstock.errors",
    "Progress": "penstock.batch.progress",
    "QueueFull": "penstock.errors",
    "Record": "penstock.guards.record",
    "Reply": "penstock.conversation.reply",
    "RequestExceedsQuota": "penstock.errors",
    "ResponseTooLarge": "penstock.errors",
    "Retry": "penstock.guards.retry",
    "RetryOptions": "penstock.guards.retry",
    "Sanitize": "penstock.guards.sanitize",
    "SanitizeOptions": "penstock.guards.sanitize",
    "Settings": "penstock.settings",
    "StreamInterrupted": "penstock.errors",
    "SystemPrompt": "penstock.conversation.system_prompt",
    "SystemPromptChanged": "penstock.errors",
    "TooManyFailures": "penstock.errors",
    "Tool": "penstock.tools",
    "ToolCall": "penstock.tools",
    "ToolError": "penstock.tools",
    "ToolLoop": "penstock.tools",
    "ToolLoopLimit": "penstock.errors",
    "ToolRun": "penstock.tools",
    "UnknownPrice": "penstock.errors",
    "UnknownTool": "penstock.errors",
    "UnsafeInput": "penstock.errors",
    "deadline": "penstock._core.context",
    "document": "penstock.content.blocks",
    "image": "penstock.content.blocks",
    "image_tokens": "penstock.content.blocks",
    "labels": "penstock._core.context",
    "tool": "penstock.tools",
}
_PARTS = frozenset({
    "batch", "chain", "cli", "client", "content", "conversation", "costs", "errors", "events", "governed", "guards",
    "keys", "lifetime", "messages", "observe", "settings", "simulator", "streaming", "testing", "tools", "verbs", "web",
})  # fmt: skip


def __getattr__(name: str) -> object:
    if name in _LATE:
        value: object = getattr(import_module(_LATE[name]), name)
    elif name in _PARTS:
        value = import_module(f"penstock.{name}")
    else:
        raise AttributeError(f"module 'penstock' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATE, *_PARTS})
