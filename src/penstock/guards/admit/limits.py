"""How much may be spent, as configured and as response headers tell it, and what one request costs.

The rule here: plain values. Limits hold for each quota and model class; what is configured is an upper bound, what the
API says wins below it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from datetime import datetime
from email.utils import parsedate_to_datetime
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from penstock._core.clock import wall_now
from penstock._core.options import Options

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["Cost", "LimitHeaders", "Limits", "QuotaScope", "limits_for"]

QuotaScope = Literal["workspace", "organization", "key"]


class Limits(Options):
    """Limits per minute of one quota and model class; `None` leaves one to be learned from the API's answers.

    Args:
        requests_per_minute: More than 0.
        input_tokens_per_minute: More than 0; cache reads don't count against it.
        output_tokens_per_minute: More than 0; tokens really generated count against it, `max_tokens` doesn't.

    Raises:
        pydantic.ValidationError: A limit is not a number above 0.

    Example:
        >>> Limits(requests_per_minute=50).input_tokens_per_minute is None
        True
    """

    requests_per_minute: float | None = Field(default=None, gt=0)
    input_tokens_per_minute: float | None = Field(default=None, gt=0)
    output_tokens_per_minute: float | None = Field(default=None, gt=0)


def limits_for(model: str, limits: Limits | Mapping[str, Limits] | None) -> Limits:
    """Return the limits configured for `model`; of several patterns the first that matches holds.

    Example:
        >>> limits_for("claude-haiku-5-5", {"claude-haiku-*": Limits(requests_per_minute=9)}).requests_per_minute
        9.0
    """
    if limits is None:
        return Limits()
    if isinstance(limits, Limits):
        return limits
    return next((value for pattern, value in limits.items() if fnmatchcase(model, pattern)), Limits())


@dataclass(slots=True)
class Cost:
    """What one request takes from a quota.

    Attributes:
        requests: 1, or 0 for what doesn't count.
        input_tokens: Estimated; cache reads don't count.
        output_tokens: Estimated from what earlier answers took.
        sure_input_tokens: What the request itself shows of `input_tokens`, at the lowest rate; all, if infinite.
    """

    requests: float = 1
    input_tokens: float = 0
    output_tokens: float = 0
    sure_input_tokens: float = field(default=math.inf, repr=False, compare=False)

    NAMES: ClassVar = ("requests", "input_tokens", "output_tokens")

    def __post_init__(self) -> None:
        # A sum of what is not negative is finite only if all of it is.
        total = self.requests + self.input_tokens + self.output_tokens
        if total < math.inf and self.requests >= 0 and self.input_tokens >= 0 and self.output_tokens >= 0:
            return
        for name in self.NAMES:
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise ValueError(f"a cost's {name} must be a number from 0 up, not {value!r}")


@dataclass(slots=True)
class LimitHeaders:
    """What an answer's headers tell of its quota; missing where they tell nothing.

    Attributes:
        organization: `anthropic-organization-id`.
        workspace: `anthropic-workspace-id`.
        limits: Limits per minute, by bucket name; none that can't be meant.
        remaining: What is left, by bucket name; tokens are rounded to thousands by the API. Never more than the limit.
        resets: When each bucket is full again, as sent.
        date: The API's own clock, as sent.
    """

    organization: str | None = None
    workspace: str | None = None
    limits: Mapping[str, float] = field(default_factory=dict[str, float])
    remaining: Mapping[str, float] = field(default_factory=dict[str, float])
    resets: Mapping[str, bytes] = field(default_factory=dict[str, bytes])
    date: bytes | None = None

    def quota_id(self, scope: QuotaScope) -> str | None:
        """Name whose limits these are, an organization's or a workspace's; `None` where they don't say."""
        if scope == "key" or (self.organization is None and self.workspace is None):
            return None
        workspace = self.workspace if scope == "workspace" else None
        return f"{self.organization or ''}/{workspace}" if workspace else self.organization

    def seconds_to_full(self, name: str) -> float | None:
        """Return how long until a bucket is full again, by the API's clock; `None` where that can't be read."""
        reset = self.resets.get(name)
        if reset is None:
            return None
        try:
            moment = datetime.fromisoformat(reset.decode("ascii"))
            now = parsedate_to_datetime(self.date.decode("ascii")) if self.date else wall_now()
            seconds = (moment - now).total_seconds()
        except (ValueError, TypeError, OverflowError):
            return None
        # A bucket that a minute doesn't fill is one that headers of another date, or a wrong clock, speak of.
        return seconds if -_CLOCK_ERROR_S <= seconds <= _MOST_TO_FULL_S else None

    @classmethod
    def read(cls, raw: Iterable[tuple[bytes, bytes]]) -> LimitHeaders:
        """Read raw headers in one pass; what can't be read is left out, because a header must never break a call.

        Example:
            >>> LimitHeaders.read([(b"anthropic-ratelimit-requests-limit", b"50")]).limits
            {'requests': 50.0}
        """
        headers = list(raw)
        found = {name: value for name, value in headers if name in _WANTED}
        if not found:
            # Servers write all names in lower case, but need not.
            found = {name.lower(): value for name, value in headers if name.lower() in _WANTED}
        limits = {name: limit for name, place in _LIMITS if (limit := _limit(found.get(place))) is not None}
        return cls(
            _text(found.get(_ORGANIZATION)),
            _text(found.get(_WORKSPACE)),
            limits,
            {
                name: left
                for name, place in _REMAINING
                if (left := _number(found.get(place))) is not None and left <= limits.get(name, left) + _ROUNDED
            },
            {name: found[place] for name, place in _RESETS if place in found},
            found.get(_DATE),
        )


def _places(what: str) -> tuple[tuple[str, bytes], ...]:
    return tuple((name, f"anthropic-ratelimit-{name.replace('_', '-')}-{what}".encode()) for name in Cost.NAMES)


_CLOCK_ERROR_S = 2.0
_MOST_TO_FULL_S = 65.0
# Less or more a minute no limit can mean: 0 stands for what isn't enabled.
_LEAST_LIMIT, _MOST_LIMIT = 1.0, 1e12
# By so much the API's rounding may lift what remains above the limit.
_ROUNDED = 500.0
_LIMITS, _REMAINING, _RESETS = _places("limit"), _places("remaining"), _places("reset")
_ORGANIZATION, _WORKSPACE, _DATE = b"anthropic-organization-id", b"anthropic-workspace-id", b"date"
_WANTED = frozenset(
    {_ORGANIZATION, _WORKSPACE, _DATE, *(place for places in (_LIMITS, _REMAINING, _RESETS) for _, place in places)}
)


def _number(value: bytes | None) -> float | None:
    try:
        number = float(value) if value is not None else math.nan
    except ValueError:
        return None
    return number if 0 <= number < math.inf else None


# The same few limits come with every answer.
@lru_cache(maxsize=256)
def _limit(value: bytes | None) -> float | None:
    limit = _number(value)
    return limit if limit is not None and _LEAST_LIMIT <= limit <= _MOST_LIMIT else None


def _text(value: bytes | None) -> str | None:
    return value.decode("latin-1") if value else None
