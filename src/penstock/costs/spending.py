"""What a conversation has used, and whether its budgets pay for one more request.

The rule here: nothing is sent that could cost more than is left. A request is made smaller before it is refused: its
`max_tokens` is lowered to what is left, as long as that is worth an answer.
"""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from penstock._core.usage import NOTHING, Usage
from penstock.costs.prices import cost, price_of
from penstock.errors import BudgetExceeded, UnknownPrice

if TYPE_CHECKING:
    from anthropic.types import Message
    from anthropic.types.beta import BetaMessage
__all__ = ["WORTH_TOKENS", "CacheTTL", "Spending"]

CacheTTL: TypeAlias = Literal["5m", "1h"]

WORTH_TOKENS: Final = 256
"""An answer shorter than that is not asked for only because a budget has no more."""

_BUDGET: Final = "session"
_MOST_UNPRICED: Final = 100


class Spending:
    """What one conversation has used.

    Args:
        token_budget: Tokens that all its requests may use together; `None` for no bound.
        cost_budget_usd: The same in USD.
        cache_ttl: For how long its prompts are cached, which has a price.

    Attributes:
        usage: Of all its requests.
        requests: How many there were.
        unpriced: The model whose price isn't known, if there was one.
    """

    __slots__ = (
        "_cache_ttl",
        "_cost_budget_usd",
        "_cost_usd",
        "_later",
        "_token_budget",
        "requests",
        "unpriced",
        "usage",
    )

    def __init__(
        self, token_budget: int | None, cost_budget_usd: Decimal | None, *, cache_ttl: CacheTTL | None = None
    ) -> None:
        self._token_budget = token_budget
        self._cost_budget_usd = cost_budget_usd
        self._cache_ttl: CacheTTL | None = cache_ttl
        self.usage = NOTHING
        self.requests = 0
        self.unpriced: str | None = None
        self._cost_usd = Decimal(0)
        # Priced when somebody asks: loading the prices takes a third of a second.
        self._later: list[tuple[str, Usage] | Message | BetaMessage] = []

    def __repr__(self) -> str:
        return f"<Spending {self.usage.total_tokens} tokens in {self.requests} requests>"

    def copy(self) -> Spending:
        """Return one that goes on from here by itself."""
        copied = Spending(self._token_budget, self._cost_budget_usd, cache_ttl=self._cache_ttl)
        copied.restore(self.usage, self.requests, self._cost_usd, self.unpriced)
        copied._later = list(self._later)
        return copied

    def restore(self, usage: Usage, requests: int, cost_usd: Decimal, unpriced: str | None) -> None:
        """Go on from what was saved."""
        self.usage, self.requests, self._cost_usd, self.unpriced = usage, requests, cost_usd, unpriced

    # Counting

    def add(self, model: str, usage: Usage, message: Message | BetaMessage | None = None) -> None:
        """Count a request.

        Args:
            model: That it named.
            usage: What it used.
            message: Its whole answer, if it came.
        """
        self.usage += usage
        self.requests += 1
        self._later.append((model, usage) if message is None else message.model_copy(update={"content": []}))
        if len(self._later) > _MOST_UNPRICED:
            self._price()

    @property
    def priced_usd(self) -> Decimal:
        """What the requests with a known price cost, in USD."""
        self._price()
        return self._cost_usd

    @property
    def cost_usd(self) -> Decimal:
        """What all requests cost, in USD.

        Raises:
            UnknownPrice: The price of a model isn't known.
        """
        priced = self.priced_usd
        if self.unpriced is not None:
            raise UnknownPrice(self.unpriced)
        return priced

    def _price(self) -> None:
        later, self._later = self._later, []
        for used in later:
            try:
                self._cost_usd += price_of(used[1], used[0]) if isinstance(used, tuple) else cost(used)
            except UnknownPrice as error:
                self.unpriced = error.model

    # Deciding

    def allow(self, model: str, *, input_tokens: int, max_tokens: int, at_least: int) -> int:
        """Return the `max_tokens` that the budgets pay for: that asked for, or what is left.

        Args:
            model: Who is asked.
            input_tokens: What the input will take, estimated.
            max_tokens: What is wanted.
            at_least: Below that it isn't worth to ask.

        Raises:
            BudgetExceeded: Less than `at_least` is left.
            UnknownPrice: There is a budget in USD, and the price of the model isn't known.
        """
        if self._token_budget is not None:
            spent = self.usage.total_tokens
            max_tokens = min(max_tokens, self._token_budget - spent - input_tokens)
            if max_tokens < at_least:
                raise BudgetExceeded(_BUDGET, spent_tokens=spent, needed_tokens=input_tokens + at_least)
        if self._cost_budget_usd is not None:
            max_tokens = self._affordable(model, input_tokens, max_tokens, at_least, self._cost_budget_usd)
        return max_tokens

    def _affordable(self, model: str, input_tokens: int, max_tokens: int, at_least: int, budget: Decimal) -> int:
        spent = self.cost_usd
        all_of_it = self._price_at_most(model, input_tokens, max_tokens)
        if spent + all_of_it <= budget:
            return max_tokens
        least = self._price_at_most(model, input_tokens, at_least)
        if spent + least > budget:
            raise BudgetExceeded(_BUDGET, spent_usd=spent, needed_usd=least)
        more = (all_of_it - least) / (max_tokens - at_least)
        return at_least + int((budget - spent - least) / more)

    def _price_at_most(self, model: str, input_tokens: int, output_tokens: int) -> Decimal:
        """The cache may have forgotten everything, and is written again then."""
        written = input_tokens if self._cache_ttl is not None else 0
        usage = Usage(
            input_tokens=input_tokens - written,
            cache_creation_input_tokens=written,
            cache_creation_1h_input_tokens=written if self._cache_ttl == "1h" else 0,
            output_tokens=output_tokens,
        )
        return price_of(usage, model)
