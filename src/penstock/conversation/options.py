"""What a conversation can be told, checked once when it is made.

The rule here: nothing in it changes while the conversation lasts, because what is sent first must stay the same for the
prompt cache; all of it is saved with the conversation.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated, Literal, Self, TypeAlias

from pydantic import ConfigDict, Field, model_validator

from penstock._core.options import Options
from penstock.costs.spending import CacheTTL

__all__ = ["SUMMARY_PROMPT", "ConversationOptions", "OnTruncation", "Overflow"]

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
