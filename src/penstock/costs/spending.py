"""The one purse: what requests have used, what that cost, and whether budgets pay for one more request.

The rule here: tokens are counted at once, prices are looked up when somebody asks, for many requests with one look. And
nothing is sent that could cost more than is left: a request is made smaller before it is refused, its `max_tokens`
lowered to what is left, as long as that is worth an answer.
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
# No price list has a higher price for prompts as short as this.
_SHORT_TOKENS: Final = 100_000


class Spending:
    """What the requests of a conversation, a tool loop or a run have used.

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
        "_together",
        "_token_budget",
        "requests",
        "unpriced",
        "usage",
    )

    def __init__(
        self,
        token_budget: int | None = None,
        cost_budget_usd: Decimal | None = None,
        *,
        cache_ttl: CacheTTL | None = None,
    ) -> None:
        self._token_budget = token_budget
        self._cost_budget_usd = cost_budget_usd
        self._cache_ttl: CacheTTL | None = cache_ttl
        self.usage = NOTHING
        self.requests = 0
        self.unpriced: str | None = None
        self._cost_usd = Decimal(0)
        # Prices are proportional to tokens, but some are higher for long prompts: usages are put together only as far
        # as they would be a short prompt, and what can't be told from the usage alone is priced by itself.
        self._together: dict[tuple[str, str | None, str | None], Usage] = {}
        self._later: list[tuple[str, Usage] | Message | BetaMessage] = []

    def __repr__(self) -> str:
        return f"<Spending {self.usage.total_tokens} tokens in {self.requests} requests>"

    def copy(self) -> Spending:
        """Return one that goes on from here by itself."""
        copied = Spending(self._token_budget, self._cost_budget_usd, cache_ttl=self._cache_ttl)
        copied.restore(self.usage, self.requests, self._cost_usd, self.unpriced)
        copied._later, copied._together = list(self._later), dict(self._together)
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
        if message is not None and _took_steps(message):
            self._later.append(message.model_copy(update={"content": []}))
        else:
            self._put_together(str(model), usage)
        if len(self._later) > _MOST_UNPRICED:
            self._price()

    def _put_together(self, model: str, usage: Usage) -> None:
        key = (model, usage.service_tier, usage.speed)
        before = self._together.get(key, NOTHING)
        if before.total_input_tokens + usage.total_input_tokens > _SHORT_TOKENS:
            if before is not NOTHING:
                self._later.append((model, before))
            before = NOTHING
        self._together[key] = before + usage

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
        later = [*self._later, *((key[0], usage) for key, usage in self._together.items())]
        self._later, self._together = [], {}
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


def _took_steps(message: Message | BetaMessage) -> bool:
    """Whether an answer may have a usage that a `Usage` doesn't tell, as of several models."""
    usage: object = getattr(message, "usage", None)
    return bool(getattr(usage, "model_extra", None) or getattr(usage, "iterations", None))
