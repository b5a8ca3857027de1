"""How much may be spent, as configured and as response headers tell it, and what one request costs.

The rule here: plain values. Limits hold for each quota and model class; what is configured is an upper bound, what the
API says wins below it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from penstock.core.options import Options

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["Cost", "LimitHeaders", "Limits", "limits_for"]


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


@dataclass(frozen=True, slots=True)
class Cost:
    """What one request takes from a quota.

    Attributes:
        requests: 1, or 0 for what doesn't count.
        input_tokens: Estimated; cache reads don't count.
        output_tokens: Estimated from what earlier answers took.
    """

    requests: float = 1
    input_tokens: float = 0
    output_tokens: float = 0

    NAMES: ClassVar = ("requests", "input_tokens", "output_tokens")

    def __post_init__(self) -> None:
        for name in self.NAMES:
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise ValueError(f"a cost's {name} must be a number from 0 up, not {value!r}")


@dataclass(frozen=True, slots=True)
class LimitHeaders:
    """What an answer's headers tell of its quota; `None` or missing where they tell nothing.

    Attributes:
        organization: `anthropic-organization-id`.
        workspace: `anthropic-workspace-id`.
        limits: Limits per minute, by bucket name.
        remaining: What is left, by bucket name; tokens are rounded to thousands by the API.
    """

    organization: str | None
    workspace: str | None
    limits: Mapping[str, float]
    remaining: Mapping[str, float]

    @property
    def quota_id(self) -> str | None:
        """Names the organization and workspace whose limits these are."""
        if self.organization is None and self.workspace is None:
            return None
        return f"{self.organization or ''}/{self.workspace or ''}"

    @classmethod
    def read(cls, raw: Iterable[tuple[bytes, bytes]]) -> LimitHeaders:
        """Read raw headers in one pass; what can't be read is left out, because a header must never break a call.

        Example:
            >>> LimitHeaders.read([(b"anthropic-ratelimit-requests-limit", b"50")]).limits
            {'requests': 50.0}
        """
        found: dict[bytes, bytes] = {}
        limits: dict[str, float] = {}
        remaining: dict[str, float] = {}
        for name, value in raw:
            if len(name) < len(_PREFIX) or name[:10].lower() != b"anthropic-":
                continue
            name = name.lower()  # noqa: PLW2901 - most headers need no lower-casing at all
            place = _PLACES.get(name)
            if place is None:
                found[name] = value
                continue
            bucket, is_limit = place
            number = _number(value)
            if number is not None:
                (limits if is_limit else remaining)[bucket] = number
        return cls(
            _text(found.get(b"anthropic-organization-id")),
            _text(found.get(b"anthropic-workspace-id")),
            limits,
            remaining,
        )


_PREFIX = b"anthropic-workspace-id"
_PLACES = {
    f"anthropic-ratelimit-{bucket.replace('_', '-')}-{what}".encode(): (bucket, what == "limit")
    for bucket in Cost.NAMES
    for what in ("limit", "remaining")
}


def _number(value: bytes) -> float | None:
    try:
        number = float(value)
    except ValueError:
        return None
    return number if 0 <= number < math.inf else None


def _text(value: bytes | None) -> str | None:
    return value.decode("latin-1") if value else None
