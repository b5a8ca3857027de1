"""What comes of a tool loop: the last reply, the transcript, what it took.

The rule here: every reply is counted, also one that broke off; a price is looked up only when somebody asks.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from decimal import Decimal
from functools import partial
from typing import TYPE_CHECKING

from penstock._core.usage import NOTHING, Usage
from penstock.costs.prices import cost, price_of
from penstock.errors import UnknownPrice

if TYPE_CHECKING:
    from collections.abc import Callable

    from anthropic.types import Message, MessageParam
    from anthropic.types.beta import BetaMessage

    from penstock.streaming.accumulate import AnyMessage

__all__ = ["Bill", "ToolRun"]


class Bill:
    """The sum of what the replies used."""

    __slots__ = ("_spent_usd", "_to_price", "usage")

    def __init__(self) -> None:
        self.usage = NOTHING
        self._spent_usd = Decimal(0)
        self._to_price: list[Callable[[], Decimal]] = []

    def __repr__(self) -> str:
        return f"<Bill of {self.usage.total_tokens} tokens>"

    def add(self, message: Message | BetaMessage) -> None:
        """Count a reply."""
        self.usage += Usage.from_message(message)
        self._to_price.append(partial(cost, message))

    def add_broken(self, usage: Usage, model: str) -> None:
        """Count a reply that broke off."""
        self.usage += usage
        self._to_price.append(partial(price_of, usage, model))

    @property
    def cost_usd(self) -> Decimal:
        """What they cost.

        Raises:
            UnknownPrice: No price is known for a model.
        """
        while self._to_price:
            self._spent_usd += self._to_price[-1]()
            self._to_price.pop()
        return self._spent_usd


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolRun:
    """A finished run.

    Attributes:
        message: The last reply. Its `stop_reason` tells how it ended: `end_turn`, but also `refusal` or `max_tokens`.
        transcript: All messages, the prompt and the last reply included, ready to go on from. A refusal is not in it,
            because it would be refused again.
        iterations: Replies of the model.
        tool_calls: Calls of tools that were answered by a tool, by the hook, or because they could not run.
        usage: Tokens of all replies together.
    """

    message: AnyMessage = field(repr=False)
    transcript: list[MessageParam] = field(repr=False)
    iterations: int
    tool_calls: int
    usage: Usage = field(repr=False)
    _bill: Bill = field(repr=False, compare=False)

    @property
    def text(self) -> str:
        """The text of the last reply; empty if it has none."""
        return "".join(block.text for block in self.message.content if block.type == "text")

    @property
    def cost_usd(self) -> Decimal | None:
        """What all replies cost, in USD; `None` where no price is known for the model."""
        try:
            return self._bill.cost_usd
        except UnknownPrice:
            return None
