"""Penstock governs the official `anthropic` SDK: one line for limits, retries, a breaker, keys, fan-out, logs.

Start with `Client`; the guards also work alone, as middleware of any `AsyncAnthropic`.
"""

from __future__ import annotations

from penstock.admission.limits import Limits
from penstock.batch.result import FanOutResult
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
    InvalidStream,
    JournalError,
    KeyNotFound,
    NoKeyAvailable,
    PenstockError,
    QueueFull,
    RequestExceedsQuota,
    StreamInterrupted,
    SystemPromptChanged,
    ToolLoopLimit,
    UnknownPrice,
    UnknownTool,
    UnsafeInput,
)
from penstock.guards.admit import Admit
from penstock.guards.breaker import BreakerOptions, CircuitBreaker
from penstock.guards.meter import Meter
from penstock.guards.record import Record
from penstock.guards.retry import Retry, RetryOptions
from penstock.settings import Settings

__all__ = [
    "AdmissionTimeout",
    "Admit",
    "BreakerOptions",
    "BudgetExceeded",
    "CircuitBreaker",
    "CircuitOpen",
    "Client",
    "ClientClosed",
    "ClientStatistics",
    "ContextOverflow",
    "FanOutResult",
    "InvalidHistory",
    "InvalidImage",
    "InvalidStream",
    "JournalError",
    "KeyNotFound",
    "Limits",
    "Meter",
    "NoKeyAvailable",
    "PenstockError",
    "QueueFull",
    "Record",
    "RequestExceedsQuota",
    "Retry",
    "RetryOptions",
    "Settings",
    "StreamInterrupted",
    "SystemPromptChanged",
    "ToolLoopLimit",
    "UnknownPrice",
    "UnknownTool",
    "UnsafeInput",
    "deadline",
    "labels",
]
