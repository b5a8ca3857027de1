from __future__ import annotations

from decimal import Decimal

import pytest
from anthropic.types import Message

from penstock import UnknownPrice
from penstock._core.usage import Usage
from penstock.tools.outcome import Bill


def reply(model: str) -> Message:
    """A reply that used something."""
    return Message.model_validate(
        {
            "id": "msg_1",
            "type": "message",
            "role": "assistant",
            "model": model,
            "content": [],
            "usage": {"input_tokens": 1000, "output_tokens": 200},
        }
    )


def test_replies_and_what_broke_off_are_added_up() -> None:
    """Tokens at once, the cost when somebody asks, and each reply once."""
    bill = Bill()
    bill.add(reply("claude-sonnet-5-5"))
    assert bill.cost_usd == Decimal("0.004")
    bill.add_broken(Usage(input_tokens=1000, estimated=True), "claude-sonnet-5-5")
    assert bill.cost_usd == bill.cost_usd == Decimal("0.006")
    assert bill.usage == Usage(input_tokens=2000, output_tokens=200, estimated=True)
    assert repr(bill) == "<Bill of 2200 tokens>"


def test_a_price_that_is_not_known_is_an_error_each_time() -> None:
    """The tokens are counted all the same."""
    bill = Bill()
    bill.add(reply("claude-unheard-of"))
    for _ in range(2):
        with pytest.raises(UnknownPrice, match="claude-unheard-of"):
            _ = bill.cost_usd
    assert bill.usage.total_tokens == 1200
