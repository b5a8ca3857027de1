"""Penstock governs the official `anthropic` SDK: one line for limits, retries, a breaker, keys, fan-out, logs.

Start with `Client`; the guards also work alone, as middleware of any `AsyncAnthropic`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    # What type checkers and editors see: these names and no others, so that a misspelt one is an error. `as` hands a
    # name on to users; a new one goes into the table below as well.
    from penstock import batch as batch
    from penstock import chain as chain
    from penstock import client as client
    from penstock import content as content
    from penstock import conversation as conversation
    from penstock import costs as costs
    from penstock import errors as errors
    from penstock import events as events
    from penstock import guards as guards
    from penstock import observe as observe
    from penstock import settings as settings
    from penstock import simulator as simulator
    from penstock import streaming as streaming
    from penstock import testing as testing
    from penstock import tools as tools
    from penstock import web as web
    from penstock._core.context import deadline as deadline
    from penstock._core.context import labels as labels
    from penstock.batch.journal import Journal as Journal
    from penstock.batch.progress import Progress as Progress
    from penstock.batch.result import FanOutResult as FanOutResult
    from penstock.client import Client as Client
    from penstock.client import ClientStatistics as ClientStatistics
    from penstock.content.blocks import document as document
    from penstock.content.blocks import image as image
    from penstock.content.blocks import image_tokens as image_tokens
    from penstock.conversation.conversation import Conversation as Conversation
    from penstock.conversation.reply import Reply as Reply
    from penstock.conversation.system_prompt import SystemPrompt as SystemPrompt
    from penstock.errors import AccountRefused as AccountRefused
    from penstock.errors import AdmissionTimeout as AdmissionTimeout
    from penstock.errors import BudgetExceeded as BudgetExceeded
    from penstock.errors import CircuitOpen as CircuitOpen
    from penstock.errors import ClientClosed as ClientClosed
    from penstock.errors import ContextOverflow as ContextOverflow
    from penstock.errors import ConversationChanged as ConversationChanged
    from penstock.errors import InvalidHistory as InvalidHistory
    from penstock.errors import InvalidImage as InvalidImage
    from penstock.errors import InvalidOutput as InvalidOutput
    from penstock.errors import InvalidStream as InvalidStream
    from penstock.errors import ItemFailed as ItemFailed
    from penstock.errors import JournalError as JournalError
    from penstock.errors import KeyNotFound as KeyNotFound
    from penstock.errors import NoKeyAvailable as NoKeyAvailable
    from penstock.errors import PenstockError as PenstockError
    from penstock.errors import QueueFull as QueueFull
    from penstock.errors import RequestExceedsQuota as RequestExceedsQuota
    from penstock.errors import ResponseTooLarge as ResponseTooLarge
    from penstock.errors import StreamInterrupted as StreamInterrupted
    from penstock.errors import SystemPromptChanged as SystemPromptChanged
    from penstock.errors import ToolLoopLimit as ToolLoopLimit
    from penstock.errors import TooManyFailures as TooManyFailures
    from penstock.errors import UnknownPrice as UnknownPrice
    from penstock.errors import UnknownTool as UnknownTool
    from penstock.errors import UnsafeInput as UnsafeInput
    from penstock.guards.admit import Admit as Admit
    from penstock.guards.admit.limits import Limits as Limits
    from penstock.guards.breaker import BreakerOptions as BreakerOptions
    from penstock.guards.breaker import CircuitBreaker as CircuitBreaker
    from penstock.guards.meter import Meter as Meter
    from penstock.guards.record import Record as Record
    from penstock.guards.retry import Retry as Retry
    from penstock.guards.retry import RetryOptions as RetryOptions
    from penstock.guards.sanitize import Finding as Finding
    from penstock.guards.sanitize import Sanitize as Sanitize
    from penstock.guards.sanitize import SanitizeOptions as SanitizeOptions
    from penstock.settings import Settings as Settings
    from penstock.tools import Allow as Allow
    from penstock.tools import Answer as Answer
    from penstock.tools import Deny as Deny
    from penstock.tools import Later as Later
    from penstock.tools import Tool as Tool
    from penstock.tools import ToolCall as ToolCall
    from penstock.tools import ToolError as ToolError
    from penstock.tools import ToolLoop as ToolLoop
    from penstock.tools import ToolRun as ToolRun
    from penstock.tools import tool as tool
else:
    from importlib import import_module

    # What is there when it is run, by where it is loaded from when it is first asked for: the SDK takes a second, and
    # the help and version of the command line need nothing of it.
    _NAMES = {
        "penstock": (
            "batch chain client content conversation costs errors events guards observe settings simulator streaming "
            "testing tools web"
        ),
        "penstock._core.context": "deadline labels",
        "penstock.batch.journal": "Journal",
        "penstock.batch.progress": "Progress",
        "penstock.batch.result": "FanOutResult",
        "penstock.client": "Client ClientStatistics",
        "penstock.content.blocks": "document image image_tokens",
        "penstock.conversation.conversation": "Conversation",
        "penstock.conversation.reply": "Reply",
        "penstock.conversation.system_prompt": "SystemPrompt",
        "penstock.errors": (
            "AccountRefused AdmissionTimeout BudgetExceeded CircuitOpen ClientClosed ContextOverflow "
            "ConversationChanged InvalidHistory InvalidImage InvalidOutput InvalidStream ItemFailed "
            "JournalError KeyNotFound NoKeyAvailable PenstockError QueueFull RequestExceedsQuota "
            "ResponseTooLarge StreamInterrupted SystemPromptChanged TooManyFailures ToolLoopLimit UnknownPrice "
            "UnknownTool UnsafeInput"
        ),
        "penstock.guards.admit": "Admit",
        "penstock.guards.admit.limits": "Limits",
        "penstock.guards.breaker": "BreakerOptions CircuitBreaker",
        "penstock.guards.meter": "Meter",
        "penstock.guards.record": "Record",
        "penstock.guards.retry": "Retry RetryOptions",
        "penstock.guards.sanitize": "Finding Sanitize SanitizeOptions",
        "penstock.settings": "Settings",
        "penstock.tools": "Allow Answer Deny Later Tool ToolCall ToolError ToolLoop ToolRun tool",
    }
    _LATE = {name: module for module, names in _NAMES.items() for name in names.split()}
    __all__ = [name for name, module in _LATE.items() if module != "penstock"]

    def __getattr__(name: str) -> object:
        if name not in _LATE:
            # Python's traceback adds "Did you mean: 'Client'?" by itself, out of what `__dir__` lists.
            raise AttributeError(f"module 'penstock' has no attribute {name!r}")
        module = _LATE[name]
        value: object = (
            import_module(f"penstock.{name}") if module == "penstock" else getattr(import_module(module), name)
        )
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        return sorted({*_LATE, *(name for name in globals() if name.startswith("__"))})
