from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime
from decimal import Decimal

import pytest
from anthropic.types import Message
from anthropic.types.beta import BetaMessage
from hypothesis import given
from hypothesis import strategies as st

from penstock._core.usage import Usage
from penstock.costs.prices import billed_to_user_profile, cost, price_of
from penstock.errors import UnknownPrice

AT = datetime(2026, 11, 20, tzinfo=UTC)
MILLION = 1_000_000
CACHED = {
    "input_tokens": 1000,
    "cache_creation_input_tokens": 2000,
    "cache_creation": {"ephemeral_5m_input_tokens": 500, "ephemeral_1h_input_tokens": 1500},
    "cache_read_input_tokens": 10_000,
    "output_tokens": 400,
    "server_tool_use": {"web_search_requests": 2},
}

# US dollars for a million tokens: input, output, written for 5 minutes, for 1 hour, read.
# Source: https://platform.claude.com/docs/en/about-claude/pricing
LISTED = {
    "claude-fable-5-2": "8 40 10 16 0.20",
    "claude-mythos-5-2": "8 40 10 16 0.20",
    "claude-fable-5-1": "10 50 12.50 20 0.25",
    "claude-mythos-5-1": "10 50 12.50 20 0.25",
    "claude-fable-5": "10 50 12.50 20 1.00",
    "claude-mythos-5": "10 50 12.50 20 1.00",
    "claude-opus-5-5": "4 20 5 8 0.20",
    "claude-opus-5": "5 25 6.25 10 0.50",
    "claude-opus-4-8": "5 25 6.25 10 0.50",
    "claude-opus-4-5": "5 25 6.25 10 0.50",
    "claude-sonnet-5-5": "2 10 2.50 4 0.10",
    "claude-sonnet-5": "2 10 2.50 4 0.20",
    "claude-sonnet-4-6": "3 15 3.75 6 0.30",
    "claude-haiku-4-5": "1 5 1.25 2 0.10",
}


def _message(usage: dict[str, object], model: str = "claude-sonnet-5-5") -> Message:
    return Message.construct(id="msg_1", type="message", role="assistant", model=model, content=[], usage=usage)


@pytest.mark.parametrize(("model", "listed"), LISTED.items())
@pytest.mark.parametrize(("batch", "factor"), [(False, 1), (True, Decimal("0.5"))])
def test_every_kind_of_token_has_its_listed_price(model: str, listed: str, batch: bool, factor: Decimal) -> None:
    """Each kind of token of each model costs what the price list says, and half of it in a batch."""
    kinds = [
        Usage(input_tokens=MILLION),
        Usage(output_tokens=MILLION),
        Usage(cache_creation_input_tokens=MILLION),
        Usage(cache_creation_input_tokens=MILLION, cache_creation_1h_input_tokens=MILLION),
        Usage(cache_read_input_tokens=MILLION),
    ]
    expected = [Decimal(price) * factor for price in listed.split()]
    assert [price_of(usage, model, batch=batch, at=AT) for usage in kinds] == expected


def test_cached_tokens_and_searches_are_priced_each_at_its_own() -> None:
    """A reply with fresh, written (5 minutes and 1 hour), read and generated tokens and searches costs their sum."""
    assert cost(_message(CACHED), at=AT) == Decimal("0.03425")


def test_a_batch_costs_half_except_for_its_searches() -> None:
    """Whether the caller says batch or the usage does, tokens cost half and searches the same."""
    assert cost(_message(CACHED), batch=True, at=AT) == Decimal("0.027125")
    assert cost(_message({**CACHED, "service_tier": "batch"}), at=AT) == Decimal("0.027125")


def test_a_batch_before_its_price_was_known_costs_the_full_price() -> None:
    """The time of the request chooses among prices that changed."""
    assert cost(_message(CACHED), batch=True, at=datetime(2026, 10, 1, tzinfo=UTC)) == Decimal("0.03425")


@pytest.mark.parametrize(("tokens", "expected"), [(100_000, "0.0105"), (100_001, "0.0525005")])
def test_a_long_prompt_can_change_the_price_of_every_token(tokens: int, expected: str) -> None:
    """Claude Haiku 5.5 has a higher price for all tokens of a prompt over 100,000 tokens."""
    assert price_of(Usage(input_tokens=tokens, output_tokens=1000), "claude-haiku-5-5", at=AT) == Decimal(expected)


def test_cached_tokens_count_towards_the_length_of_the_prompt() -> None:
    """The length that chooses a price is that of the whole prompt, however much of it was cached."""
    usage = Usage(input_tokens=1, cache_read_input_tokens=100_000)
    assert price_of(usage, "claude-haiku-5-5", at=AT) == Decimal("0.0050005")


def test_fast_mode_has_its_own_price() -> None:
    """Whether the caller says fast or the usage does, tokens cost the price of fast mode."""
    usage: dict[str, object] = {"input_tokens": MILLION, "output_tokens": MILLION}
    assert cost(_message(usage, "claude-opus-5-5"), speed="fast", at=AT) == Decimal(48)
    assert cost(_message({**usage, "speed": "fast"}, "claude-opus-5-5"), at=AT) == Decimal(48)
    assert cost(_message({**usage, "speed": "standard"}, "claude-opus-5-5"), at=AT) == Decimal(24)


def test_each_step_of_a_reply_has_the_price_of_its_model() -> None:
    """A compaction, a refused attempt and the fallback that answered are priced one by one, and searches once."""
    iterations = [
        {"type": "compaction", "input_tokens": 60_000, "output_tokens": 100},
        {"type": "message", "model": "claude-opus-5-5", "input_tokens": 10, "output_tokens": 0},
        {"type": "fallback_message", "model": "claude-haiku-5-5", "input_tokens": 60_000, "output_tokens": 20},
    ]
    usage = {"input_tokens": 60_000, "output_tokens": 20, "server_tool_use": {"web_search_requests": 1}}
    message = BetaMessage.construct(model="claude-haiku-5-5", usage={**usage, "iterations": iterations})
    expected = (
        price_of(Usage(input_tokens=60_000, output_tokens=100), "claude-haiku-5-5", at=AT)
        + price_of(Usage(input_tokens=10), "claude-opus-5-5", at=AT)
        + price_of(Usage(input_tokens=60_000, output_tokens=20), "claude-haiku-5-5", at=AT)
        + Decimal("0.01")
    )
    assert cost(message, at=AT) == expected


def test_steps_in_a_batch_cost_half() -> None:
    """The tier of the whole reply holds for each of its steps."""
    usage = {"service_tier": "batch", "iterations": [{"type": "message", "input_tokens": MILLION, "output_tokens": 0}]}
    assert cost(BetaMessage.construct(model="claude-sonnet-5-5", usage=usage), at=AT) == Decimal(1)


REDEEMED = {"status": {"type": "redeemed"}}
# A retry on another model: 50,000 tokens that the refused model had in its cache, and 2,000 new ones.
CREDITED = {
    "input_tokens": 10,
    "cache_creation_input_tokens": 2000,
    "cache_read_input_tokens": 50_000,
    "output_tokens": 100,
    "fallback_credit": REDEEMED,
}
CREDITED_USD = (Decimal(5) * 10 + Decimal("6.25") * 2000 + Decimal("0.5") * 50_000 + 25 * 100) / MILLION


def test_a_redeemed_fallback_credit_is_in_the_counts_and_not_taken_off_twice() -> None:
    """The API tells what was moved as cache reads already; what it still tells as written costs what writes cost."""
    message = BetaMessage.construct(model="claude-opus-5", usage=CREDITED)
    assert cost(message, at=AT) == CREDITED_USD


def test_a_fallback_credit_that_was_not_applied_changes_nothing() -> None:
    """The retry was served at its normal price."""
    credit = {"status": {"type": "not_applied", "reason": "expired"}}
    usage = {**CREDITED, "cache_creation_input_tokens": 52_000, "cache_read_input_tokens": 0}
    credited, plain = ({**usage, "fallback_credit": credit}, {**usage, "fallback_credit": None})
    costs = [cost(BetaMessage.construct(model="claude-opus-5", usage=each), at=AT) for each in (credited, plain)]
    assert costs[0] == costs[1] == (Decimal(50) + Decimal("6.25") * 52_000 + 2500) / MILLION


@pytest.mark.parametrize("written", [(52_000, 0), (52_000,), (1000, 51_000), (2000, 0)])
def test_a_redeemed_fallback_credit_holds_for_the_steps_too(written: tuple[int, ...]) -> None:
    """Where the steps still tell as written what the totals tell as read, it is billed once, at the price of reads."""
    tokens = [{"cache_creation_input_tokens": each, "cache_read_input_tokens": 0} for each in written]
    tokens[-1]["cache_read_input_tokens"] = 52_000 - sum(written)
    steps = [{"type": "message", "input_tokens": 0, "output_tokens": 0, **each} for each in tokens]
    steps[0] |= {"input_tokens": 10, "output_tokens": 100}
    compaction = {"type": "compaction", "input_tokens": 60_000, "output_tokens": 0}
    message = BetaMessage.construct(model="claude-opus-5", usage={**CREDITED, "iterations": [compaction, *steps]})
    assert cost(message, at=AT) == CREDITED_USD + Decimal("0.3")


def test_steps_of_a_chain_that_the_totals_leave_out_are_priced_as_they_say() -> None:
    """The SDK's middleware puts the refused model's step in front; the credit is of the one that answered."""
    refused = {"type": "message", "model": "claude-fable-5", "input_tokens": 5, "cache_read_input_tokens": 50_000}
    answered = {
        "type": "fallback_message",
        "model": "claude-opus-5",
        "input_tokens": 10,
        "cache_creation_input_tokens": 52_000,
        "cache_read_input_tokens": 0,
        "output_tokens": 100,
    }
    message = BetaMessage.construct(model="claude-opus-5", usage={**CREDITED, "iterations": [refused, answered]})
    assert cost(message, at=AT) == CREDITED_USD + (Decimal(50) + 50_000) / MILLION


@pytest.mark.parametrize(
    ("params", "theirs"),
    [
        ({}, False),
        ({"billing_policy": None}, False),
        ({"billing_policy": "user_profile"}, False),
        ({"billing_policy": {"type": "billing_policy"}}, False),
        ({"billing_policy": {"type": "billing_policy", "bill_to": "self"}}, False),
        ({"billing_policy": {"type": "billing_policy", "bill_to": "user_profile"}}, True),
        ({"user_profile_id": "up_1"}, False),
        ({"extra_body": {"billing_policy": {"bill_to": "user_profile"}}}, True),
        ({"billing_policy": {"bill_to": "user_profile"}, "extra_body": {"billing_policy": {"bill_to": "self"}}}, False),
        ({"billing_policy": {"bill_to": "user_profile"}, "extra_body": {}}, True),
        ({"billing_policy": {"bill_to": "user_profile"}, "extra_body": None}, True),
    ],
)
def test_a_request_says_who_pays(params: dict[str, object], theirs: bool) -> None:
    """Only `bill_to: user_profile` has the customer pay; to name a profile alone does not."""
    assert billed_to_user_profile(params) is theirs


@pytest.mark.parametrize("iterations", [None, 3, [], ["x"], [{"type": "message"}]])
def test_steps_that_say_nothing_leave_the_price_of_the_whole(iterations: object) -> None:
    """A reply whose iterations are empty or unusable is priced by its totals."""
    assert cost(_message({**CACHED, "iterations": iterations}), at=AT) == Decimal("0.03425")


def test_a_reply_without_usage_costs_nothing() -> None:
    """A reply that reports no usage has the price of nothing."""
    assert cost(Message.construct(model="claude-sonnet-5-5"), at=AT) == 0


@pytest.mark.parametrize(
    "spelling",
    [
        "claude-sonnet-4-5",
        "claude-sonnet-4-5-20250929",
        "claude-sonnet-4-5@20250929",
        "claude-sonnet-4-5@default",
        "anthropic.claude-sonnet-4-5-20250929-v1:0",
        "us.anthropic.claude-sonnet-4-5-20250929-v1:0",
        "arn:aws:bedrock:eu-west-1:123456789012:inference-profile/eu.anthropic.claude-sonnet-4-5-20250929-v1:0",
        "anthropic.claude-sonnet-4-5-20250929-v1:0:200k",
        "publishers/anthropic/models/claude-sonnet-4-5",
        "Claude-Sonnet-4-5",
    ],
)
def test_a_model_is_known_by_the_names_that_clouds_give_it(spelling: str) -> None:
    """Ids of Bedrock and Vertex, with region, version, date or path, have the price of their model."""
    assert price_of(Usage(input_tokens=1000), spelling, at=AT) == Decimal("0.003")


def test_a_dated_id_of_the_table_in_front_is_known() -> None:
    """Models that the price data lacks are found by dated and cloud ids as well, searches included."""
    usage = Usage(input_tokens=MILLION, web_search_requests=1)
    assert price_of(usage, "anthropic.claude-mythos-5-20260901-v1:0", at=AT) == Decimal("10.01")


@pytest.mark.parametrize(
    "model", ["claude-opus-6", "claude-mythos-preview", "anthropic.claude-opus-5-9-v1:0", "gpt-5", ""]
)
def test_a_model_without_a_price_is_an_error_that_names_it(model: str) -> None:
    """No price is guessed for an unknown model; the error tells the id as it was given."""
    with pytest.raises(UnknownPrice) as failure:
        price_of(Usage(input_tokens=1), model)
    assert failure.value.model == model
    assert failure.value.__cause__ is None


@given(
    st.builds(
        Usage, **{name: st.integers(0, 10**7) for name in ("input_tokens", "output_tokens", "cache_read_input_tokens")}
    )
)
def test_no_usage_is_priced_below_zero_or_fails(usage: Usage) -> None:
    """Any usage of a known model has a finite price that isn't negative."""
    assert price_of(usage, "claude-haiku-5-5").is_finite()
    assert price_of(usage, "claude-mythos-5") >= 0


@given(st.integers(0, 10**6), st.integers(0, 10**6))
def test_a_cache_write_is_priced_by_how_long_it_was_written_for(written: int, for_an_hour: int) -> None:
    """The parts written for five minutes and for an hour are priced each at its own, and add up."""
    usage = Usage(cache_creation_input_tokens=written + for_an_hour, cache_creation_1h_input_tokens=for_an_hour)
    expected = (Decimal("2.5") * written + 4 * for_an_hour) / MILLION
    assert price_of(usage, "claude-sonnet-5-5", at=AT) == expected


@pytest.mark.lengthy
def test_prices_are_imported_only_when_asked_for() -> None:
    """Importing this module doesn't import the price data, which takes as long as half of the SDK."""
    code = "import sys, penstock.costs.prices; sys.exit('genai_prices' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
