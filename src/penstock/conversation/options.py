"""What a conversation can be told, checked once when it is made.

The rule here: nothing in it changes while the conversation lasts, because what is sent first must stay the same for the
prompt cache; all of it is saved with the conversation, but what may hold credentials. Whoever loads it may say anew how
far it may go.
"""

from __future__ import annotations

import copy
import functools
import inspect
from decimal import Decimal
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, Self, TypeAlias, TypedDict

from anthropic.resources import AsyncMessages
from anthropic.resources.beta import AsyncMessages as AsyncBetaMessages
from pydantic import ConfigDict, Field, model_validator

from penstock._core.options import Options
from penstock._core.params import MoreParams
from penstock.costs.spending import CacheTTL
from penstock.messages.blocks import plain
from penstock.tools.params import BoundParams

if TYPE_CHECKING:
    from collections.abc import Mapping

    from penstock._core.params import Left
    from penstock.tools.events import Approve

__all__ = [
    "IN_PASSING",
    "NOT_SAVED",
    "SUMMARY_PROMPT",
    "ConversationOptions",
    "ConversationParams",
    "LoadParams",
    "OnTruncation",
    "Overflow",
    "checked_params",
]

NOT_SAVED: Final = frozenset({"extra_body", "extra_headers", "extra_query", "mcp_servers", "timeout"})
"""What may hold credentials, or belongs to a connection, is not saved; it is given again."""

# What the conversation itself decides.
_OWN: Final = frozenset({
    "background", "cache_control", "max_tokens", "messages", "model", "on_abandon", "output_format", "stream", "system",
    "tools",
})  # fmt: skip
IN_PASSING: Final = frozenset({"metadata", "service_tier", "stream_idle_timeout_s"})
"""Parameters that change nothing of what the model sees: what code says of them holds."""

_OF_STREAM: Final = frozenset({"stream_idle_timeout_s"})

OnTruncation: TypeAlias = Literal["return", "continue", "retry"]
Overflow: TypeAlias = Literal["window", "summary", "compaction"]

SUMMARY_PROMPT = (
    "You are given the older part of a conversation between a user and an assistant. Summarize it for the assistant, "
    "who will go on without seeing it. Keep facts, names, numbers, decisions, open questions and what the user wants. "
    "Write only the summary."
)


class ConversationOptions(Options):
    """The options of a conversation; see `Conversation` for what each does."""

    model_config = ConfigDict(hide_input_in_errors=True)

    model: str = Field(min_length=1)
    max_tokens: int = Field(default=8192, ge=1)
    token_budget: int | None = Field(default=None, ge=1000)
    cost_budget_usd: Annotated[Decimal, Field(gt=0, allow_inf_nan=False)] | None = None
    on_truncation: OnTruncation = "return"
    overflow: Overflow = "window"
    trim_at: float = Field(default=0.75, ge=0.1, le=0.95)
    trim_to: float = Field(default=0.40, ge=0.0, le=0.9)
    window_tokens: int | None = Field(default=None, ge=1000)
    summary_model: str = Field(default="claude-haiku-5-5", min_length=1)
    summary_prompt: str = Field(default=SUMMARY_PROMPT, min_length=1)
    summary_max_tokens: int = Field(default=4096, ge=100)
    cache_ttl: CacheTTL | None = "5m"

    @model_validator(mode="after")
    def _check_shares(self) -> Self:
        if self.trim_to >= self.trim_at:
            raise ValueError(f"trim_to ({self.trim_to:g}) must be below trim_at ({self.trim_at:g})")
        return self


# More parameters of each request


class ConversationParams(BoundParams, MoreParams, total=False):
    """What a conversation hands on: to the requests, to its streams, and to what runs functions."""

    approve: Approve | Left | None
    stream_idle_timeout_s: float | Left | None


class BoundOptions(TypedDict, total=False):
    """How far a conversation may go, and how it keeps within that: what code says anew when it is loaded."""

    cache_ttl: CacheTTL | Left | None
    cost_budget_usd: Decimal | float | Left | None
    max_iterations: int | Left
    max_tokens: int | Left
    on_truncation: OnTruncation | Left
    overflow: Overflow | Left
    summary_max_tokens: int | Left
    summary_model: str | Left
    summary_prompt: str | Left
    token_budget: int | Left | None
    trim_at: float | Left
    trim_to: float | Left
    window_tokens: int | Left | None


class LoadParams(ConversationParams, BoundOptions, total=False):
    """What may be given to a conversation that was saved."""


def checked_params(params: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of the parameters that a caller gives for every request.

    Raises:
        TypeError: There is no such parameter, or the conversation itself decides about it.
        InvalidHistory: One holds what can't be saved.
    """
    if own := sorted(_OWN & params.keys()):
        raise TypeError(f"{', '.join(own)} can't be given: the conversation itself decides about it")
    if unknown := sorted(params.keys() - _known()):
        raise TypeError(f"{', '.join(unknown)}: neither an option of a conversation nor a parameter of messages.create")
    return {
        name: copy.deepcopy(value) if name in NOT_SAVED else plain(value, f"params.{name}")
        for name, value in params.items()
    }


@functools.cache
def _known() -> frozenset[str]:
    """What the SDK takes for each request."""
    creates = (AsyncMessages.create, AsyncBetaMessages.create)
    return frozenset(name for create in creates for name in inspect.signature(create).parameters) | _OF_STREAM
