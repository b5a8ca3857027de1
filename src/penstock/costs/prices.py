"""What usage costs, in US dollars, as an exact decimal.

The rule here: a price is known or it is an error, never a guess. Prices are the list prices of Anthropic's own API,
from the data of the package genai-prices (on disk, no network); a table here stands in front of it for models that its
data lacks. What is priced is what the API reported: cache writes for five minutes and for one hour, cache reads and
searches each have their own price.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import TYPE_CHECKING, Final, cast

from pydantic import BaseModel

from penstock._core.models import price_name
from penstock._core.usage import Usage, fields_of, steps_of
from penstock.errors import UnknownPrice

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from datetime import datetime

    from anthropic.types import Message
    from anthropic.types.beta import BetaMessage

__all__ = ["billed_to_user_profile", "cost", "price_of"]

_MILLION: Final = 1_000_000
_SEARCH_USD: Final = Decimal("0.01")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Prices:
    """US dollars for a million tokens. In a batch, tokens cost half."""

    input: Decimal
    output: Decimal
    write_5m: Decimal
    write_1h: Decimal
    read: Decimal

    def total(self, usage: Usage, *, batch: bool) -> Decimal:
        tokens = (
            self.input * usage.input_tokens
            + self.output * usage.output_tokens
            + self.write_5m * (usage.cache_creation_input_tokens - usage.cache_creation_1h_input_tokens)
            + self.write_1h * usage.cache_creation_1h_input_tokens
            + self.read * usage.cache_read_input_tokens
        )
        return tokens / (2 * _MILLION if batch else _MILLION) + _SEARCH_USD * usage.web_search_requests


def _like_fable_5(read: str) -> _Prices:
    return _Prices(
        input=Decimal(10), output=Decimal(50), write_5m=Decimal("12.5"), write_1h=Decimal(20), read=Decimal(read)
    )


# Models of limited availability, priced as the Fable model of their version; fast mode isn't offered.
# Source: https://platform.claude.com/docs/en/about-claude/pricing
_OVERRIDES: Final = {"claude-mythos-5": _like_fable_5("1"), "claude-mythos-5-1": _like_fable_5("0.25")}

_DATED: Final = re.compile(r"-20\d{6}$")


def billed_to_user_profile(params: Mapping[str, object]) -> bool:
    """Whether the customer behind a user profile pays for a request, and not one's own organization.

    The API rejects such a request where it may not bill the customer, rather than bill it to somebody else. What it
    costs is still what `cost` says; it must not count in a budget of one's own.
    Source: https://platform.claude.com/docs/en/manage-claude/user-profiles

    Args:
        params: Of the request, as they are given to the SDK; `extra_body` is looked at too, and wins, as it does there.

    Returns:
        Whether `billing_policy.bill_to` is `user_profile`.

    Example:
        >>> billed_to_user_profile({"billing_policy": {"type": "billing_policy", "bill_to": "user_profile"}})
        True
    """
    extra = _object(params.get("extra_body"))
    policy = (params if "billing_policy" not in extra else extra).get("billing_policy")
    return _object(policy).get("bill_to") == "user_profile"


def _object(value: object) -> dict[str, object]:
    return cast("dict[str, object]", value) if isinstance(value, dict) else {}


def cost(
    message: Message | BetaMessage, *, batch: bool = False, speed: str | None = None, at: datetime | None = None
) -> Decimal:
    """What a message cost.

    Where the reply took several steps, perhaps of several models (fallback, compaction, advisor), each is priced alone.
    A fallback credit that was redeemed counts: what it moved from cache writes to cache reads has the price of reads.

    Args:
        message: The reply, with the usage that the API reported.
        batch: Whether it came from a message batch, where the usage doesn't say so itself: tokens cost half.
        speed: `fast` for fast mode, where the usage doesn't say so itself.
        at: When it was asked for, because prices change; now by default.

    Returns:
        US dollars.

    Raises:
        UnknownPrice: No price is known for its model.

    Example:
        >>> from anthropic.types import Message
        >>> usage = {"input_tokens": 1000, "output_tokens": 200}
        >>> message = Message.construct(model="claude-sonnet-5-5", usage=usage)
        >>> cost(message)
        Decimal('0.004')
    """
    return sum(
        (price_of(usage, model, batch=batch, speed=speed, at=at) for model, usage in _steps(message)), Decimal(0)
    )


def price_of(
    usage: Usage, model: str, *, batch: bool = False, speed: str | None = None, at: datetime | None = None
) -> Decimal:
    """What usage of a model costs, as one request: a price that depends on the prompt's length is chosen by its tokens.

    Args:
        usage: Tokens and searches.
        model: Model id, as Anthropic's API, Bedrock or Vertex spells it.
        batch: Whether it is in a message batch, where `usage.service_tier` doesn't say so itself: tokens cost half.
        speed: `fast` for fast mode, where `usage.speed` doesn't say so itself.
        at: When it was or will be asked for, because prices change; now by default.

    Returns:
        US dollars.

    Raises:
        UnknownPrice: No price is known for the model.

    Example:
        >>> price_of(Usage(input_tokens=1_000_000), "anthropic.claude-haiku-4-5-20251001-v1:0")
        Decimal('1.00')
    """
    batch = batch or usage.service_tier == "batch"
    name = price_name(model)
    if (prices := _OVERRIDES.get(_DATED.sub("", name))) is not None:
        return prices.total(usage, batch=batch)
    context = {"processing": "batch"} if batch else {"speed": speed or usage.speed or "standard"}
    return _listed_price(usage, name, model=model, context=context, at=at)


def _listed_price(usage: Usage, name: str, *, model: str, context: dict[str, str], at: datetime | None) -> Decimal:
    import genai_prices  # noqa: PLC0415 - it takes as long to import as half of the SDK, and many programs never ask

    counts = genai_prices.Usage(
        input_tokens=usage.total_input_tokens,
        cache_write_tokens=usage.cache_creation_input_tokens,
        cache_write_1h_tokens=usage.cache_creation_1h_input_tokens,
        cache_read_tokens=usage.cache_read_input_tokens,
        output_tokens=usage.output_tokens,
        web_searches=usage.web_search_requests,
    )
    try:
        price = genai_prices.calc_price(
            counts, name, provider_id="anthropic", genai_request_timestamp=at, price_context=context
        )
    except LookupError:
        raise UnknownPrice(model) from None
    return price.total_price


def _steps(message: Message | BetaMessage) -> Iterator[tuple[str, Usage]]:
    """Each sampling step of a message as a model and its usage; the whole message where the API names no steps."""
    whole = Usage.from_message(message)
    usage: object = getattr(message, "usage", None)
    named = steps_of(fields_of(usage)) if isinstance(usage, BaseModel) else []
    steps = [(model or message.model, step) for model, step in named if step.total_tokens]
    if not steps:
        yield message.model, whole
        return
    for model, step in steps:
        yield model, replace(step, service_tier=whole.service_tier, speed=whole.speed)
    yield message.model, Usage(web_search_requests=whole.web_search_requests)
