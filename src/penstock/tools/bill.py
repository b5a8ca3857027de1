"""What the replies of a run used, and what they cost.

The rule here: every reply is counted, also one that broke off; a price is looked up only when somebody asks.
"""

from __future__ import annotations

from decimal import Decimal
from functools import partial
from typing import TYPE_CHECKING

from penstock.core.usage import NOTHING, Usage
from penstock.costs.prices import cost, price_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from anthropic.types import Message
    from anthropic.types.beta import BetaMessage

__all__ = ["Bill", "check_price"]


class Bill:
    """The sum of what was used."""

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
        """What it cost.

        Raises:
            UnknownPrice: No price is known for a model.
        """
        while self._to_price:
            self._spent_usd += self._to_price[-1]()
            self._to_price.pop()
        return self._spent_usd


def check_price(model: str) -> None:
    """Make sure that the cost of a model's replies can be told.

    Raises:
        UnknownPrice: It can't.
    """
    price_of(Usage(input_tokens=1), model)
