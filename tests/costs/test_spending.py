from __future__ import annotations

from decimal import Decimal

import pytest
from anthropic.types import Message
from anthropic.types import Usage as MessageUsage

from penstock import BudgetExceeded, UnknownPrice
from penstock._core.usage import Usage
from penstock.costs.spending import Spending

MODEL = "claude-sonnet-5-5"


def message(model: str = MODEL) -> Message:
    """An answer of 1,000 tokens for 200."""
    return Message.construct(
        model=model, content=[], usage=MessageUsage.construct(input_tokens=1000, output_tokens=200)
    )


def test_what_was_used_adds_up() -> None:
    """Whole answers and estimates alike; prices come when somebody asks."""
    spending = Spending()
    spending.add(MODEL, Usage(input_tokens=1000, output_tokens=200), message())
    spending.add(MODEL, Usage(input_tokens=1000, output_tokens=200, estimated=True))
    assert spending.usage == Usage(input_tokens=2000, output_tokens=400, estimated=True)
    assert spending.cost_usd == Decimal("0.008")
    assert repr(spending) == "<Spending 2400 tokens in 2 requests>"


def test_long_sessions_are_priced_in_between() -> None:
    """What waits for its price is bounded."""
    spending = Spending()
    for _ in range(250):
        spending.add(MODEL, Usage(input_tokens=60_000), message())
    assert len(spending._later) <= 100
    assert spending.cost_usd == Decimal("0.12") * 250


def test_a_model_without_a_price_is_told_of() -> None:
    """The sum of the others is known; the whole isn't."""
    spending = Spending()
    spending.add("claude-next", Usage(input_tokens=1))
    spending.add(MODEL, Usage(input_tokens=1000, output_tokens=200))
    assert spending.priced_usd == Decimal("0.004")
    for _ in range(2):
        with pytest.raises(UnknownPrice, match="claude-next"):
            _ = spending.cost_usd
    assert spending.usage.total_tokens == 1201


def test_a_copy_goes_on_by_itself() -> None:
    """With what was spent before, priced or not."""
    spending = Spending(2000, None)
    spending.add(MODEL, Usage(input_tokens=1000))
    copied = spending.copy()
    copied.add(MODEL, Usage(input_tokens=500))
    assert (spending.usage.total_tokens, copied.usage.total_tokens) == (1000, 1500)
    assert (spending.cost_usd, copied.cost_usd) == (Decimal("0.002"), Decimal("0.003"))
    assert copied.allow(MODEL, input_tokens=100, max_tokens=1000, at_least=1) == 400


def allowed(spending: Spending, *, input_tokens: int = 1000, max_tokens: int = 1000, at_least: int = 200) -> int:
    """What is allowed."""
    return spending.allow(MODEL, input_tokens=input_tokens, max_tokens=max_tokens, at_least=at_least)


def test_a_budget_of_tokens_lowers_what_is_asked_and_then_refuses() -> None:
    """What fits is allowed as it is; less is allowed while it is worth an answer."""
    spending = Spending(3000, None)
    assert allowed(spending) == 1000
    spending.add(MODEL, Usage(input_tokens=500, cache_read_input_tokens=600, output_tokens=100))
    assert allowed(spending) == 800
    assert allowed(spending, input_tokens=1600) == 200
    with pytest.raises(BudgetExceeded, match="1200 tokens are spent, and it can take 1801 tokens") as raised:
        allowed(spending, input_tokens=1601)
    assert (raised.value.budget, raised.value.spent_tokens, raised.value.needed_tokens) == ("session", 1200, 1801)


def test_no_budget_allows_everything() -> None:
    """Nothing is priced either."""
    assert Spending().allow("claude-next", input_tokens=10**9, max_tokens=7, at_least=1) == 7


@pytest.mark.parametrize(("cache_ttl", "input_usd"), [(None, "0.002"), ("5m", "0.0025"), ("1h", "0.004")])
def test_a_budget_of_money_counts_the_worst(cache_ttl: str | None, input_usd: str) -> None:
    """As if the cache had forgotten everything: what comes is never more."""
    budget = Decimal(input_usd) + Decimal("0.005")
    spending = Spending(None, budget, cache_ttl=cache_ttl)  # type: ignore[arg-type]
    assert allowed(spending, max_tokens=500) == 500
    assert allowed(spending, max_tokens=1000) == 500
    assert allowed(spending, max_tokens=1000, at_least=500) == 500
    with pytest.raises(BudgetExceeded) as raised:
        allowed(spending, max_tokens=1000, at_least=501)
    assert raised.value.spent_usd == 0
    assert raised.value.needed_usd == Decimal(input_usd) + Decimal("0.00501")


def test_a_budget_of_money_needs_a_price() -> None:
    """A price is known or it is an error."""
    with pytest.raises(UnknownPrice):
        Spending(None, Decimal(1)).allow("claude-next", input_tokens=1, max_tokens=1, at_least=1)
