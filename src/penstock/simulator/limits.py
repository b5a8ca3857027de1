"""Token buckets for each organization and model class: refilled all the time; all or nothing; a refusal takes nothing.

Requests and input tokens are taken when a request starts (input is corrected when the real count is known); output
tokens are taken as they are generated and may leave the bucket in debt, because generation is never cut off for it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from penstock.simulator.clock import rfc3339
from penstock.simulator.wire import ApiError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from penstock.simulator.clock import Clock

__all__ = ["Bucket", "BucketLevel", "Limit", "OrganizationState", "Quota"]

# Loop time is a float: a caller that slept exactly as long as it was told must not be refused for a rounding error.
_SLACK = 1e-6
_NEVER_RETRY_AFTER_S = 60
_UNLIMITED_REQUESTS = 1_000_000
_UNLIMITED_TOKENS = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Limit:
    """A rate limit.

    Attributes:
        per_minute: refill, in requests or tokens a minute, above 0.
        burst_s: capacity, in seconds of refill, above 0. The API's documentation warns that short intervals may be
            enforced: 1.0 does that.

    Example:
        >>> from penstock.simulator import Limit
        >>> Limit(1800, burst_s=6).capacity
        180.0
    """

    per_minute: float
    burst_s: float = 60.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.per_minute) and self.per_minute > 0):
            raise ValueError(f"per_minute must be a finite number above 0, not {self.per_minute!r}")
        if not (math.isfinite(self.burst_s) and self.burst_s > 0):
            raise ValueError(f"burst_s must be a finite number of seconds above 0, not {self.burst_s!r}")

    @property
    def per_second(self) -> float:
        """Refill a second."""
        return self.per_minute / 60

    @property
    def capacity(self) -> float:
        """What a full bucket holds; at least 1, or nothing could ever pass."""
        return max(1.0, self.per_second * self.burst_s)


@dataclass(frozen=True, kw_only=True, slots=True)
class BucketLevel:
    """What a bucket held when it was looked at.

    Attributes:
        limit_per_minute: None: unlimited.
        capacity: None: unlimited.
        level: what is left; below 0 is debt. None: unlimited.
        taken: everything ever taken, given back amounts subtracted.
        possible: what could have been taken since its first request, the first burst included. None: unlimited.
    """

    limit_per_minute: float | None
    capacity: float | None
    level: float | None
    taken: float
    possible: float | None


class Bucket:
    """A token bucket, refilled continuously; without a limit it only counts."""

    __slots__ = ("_at", "_level", "_since", "limit", "taken")

    def __init__(self, limit: Limit | None, now: float) -> None:
        self.limit = limit
        self.taken = 0.0
        self._level = math.inf if limit is None else limit.capacity
        self._at = self._since = now

    def __repr__(self) -> str:
        return f"Bucket(limit={self.limit!r}, level={self._level:.3f}, taken={self.taken:g})"

    def level(self, now: float) -> float:
        """What is in it at `now`; a clock that went back refills nothing."""
        if self.limit is not None:
            refill = max(0.0, now - self._at) * self.limit.per_second
            self._level = min(self.limit.capacity, self._level + refill)
            self._at = now
        return self._level

    def seconds_until(self, amount: float, now: float) -> float:
        """How long until `amount` could be taken; 0: now; infinite: never, it is more than the bucket holds."""
        missing = amount - self.level(now)
        if self.limit is None or missing <= _SLACK:
            return 0.0
        return missing / self.limit.per_second if amount <= self.limit.capacity else math.inf

    def take(self, amount: float, now: float) -> None:
        """Take `amount`, into debt if need be; a negative amount gives back, up to the capacity."""
        self.taken += amount
        left = self.level(now) - amount
        self._level = left if self.limit is None else min(self.limit.capacity, left)

    def state(self, now: float) -> BucketLevel:
        """What it holds at `now`."""
        if self.limit is None:
            return BucketLevel(limit_per_minute=None, capacity=None, level=None, taken=self.taken, possible=None)
        limit = self.limit
        return BucketLevel(
            limit_per_minute=limit.per_minute,
            capacity=limit.capacity,
            level=self.level(now),
            taken=self.taken,
            possible=limit.capacity + max(0.0, now - self._since) * limit.per_second,
        )

    def header_values(self, now: float, *, thousands: bool) -> tuple[int, int, float]:
        """(limit, remaining, seconds until full), the way the API rounds them."""
        if self.limit is None:
            unlimited = _UNLIMITED_TOKENS if thousands else _UNLIMITED_REQUESTS
            return unlimited, unlimited, 0.0
        level = max(0.0, self.level(now))
        remaining = round(level / 1000) * 1000 if thousands else math.floor(level + _SLACK)
        return round(self.limit.per_minute), remaining, (self.limit.capacity - self._level) / self.limit.per_second


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """The limits of every quota of a simulator; None: unlimited."""

    requests: Limit | None = None
    input_tokens: Limit | None = None
    output_tokens: Limit | None = None
    count_tokens: Limit | None = None


class Quota:
    """The buckets of one organization for one model class."""

    __slots__ = ("input_tokens", "name", "organization", "output_tokens", "requests")

    def __init__(self, organization: str, name: str, limits: Limits, now: float) -> None:
        self.organization = organization
        self.name = name
        self.requests = Bucket(limits.requests, now)
        self.input_tokens = Bucket(limits.input_tokens, now)
        self.output_tokens = Bucket(limits.output_tokens, now)

    def __repr__(self) -> str:
        return f"Quota({self.organization!r}, {self.name!r})"

    def admit(self, input_tokens: int, now: float, model: str) -> None:
        """Take one request and its input, or take nothing and raise the API's 429."""
        needs = (
            (self.requests, 1.0, "requests"),
            (self.input_tokens, float(input_tokens), "input tokens"),
            (self.output_tokens, 1.0, "output tokens"),
        )
        waits = [bucket.seconds_until(amount, now) for bucket, amount, _ in needs]
        if any(waits):
            short, _, unit = needs[next(index for index, wait in enumerate(waits) if wait)]
            raise rate_limit_error(short.limit, unit, max(waits), organization=self.organization, model=model)
        self.requests.take(1, now)
        self.input_tokens.take(input_tokens, now)

    def give_back(self, input_tokens: int, now: float) -> None:
        """Undo `admit`: the request came to nothing."""
        self.requests.take(-1, now)
        self.input_tokens.take(-input_tokens, now)

    def headers(self, now: float, clock: Clock) -> dict[str, str]:
        """All `anthropic-ratelimit-*` headers at `now`."""
        requests = self.requests.header_values(now, thousands=False)
        given = self.input_tokens.header_values(now, thousands=True)
        made = self.output_tokens.header_values(now, thousands=True)
        both = (given[0] + made[0], given[1] + made[1], max(given[2], made[2]))
        named = {"requests": requests, "input-tokens": given, "output-tokens": made, "tokens": both}
        return dict(_lines(named, now, clock))


class CountQuota:
    """The requests bucket that token counting has for itself."""

    __slots__ = ("organization", "requests")

    def __init__(self, organization: str, limits: Limits, now: float) -> None:
        self.organization = organization
        self.requests = Bucket(limits.count_tokens, now)

    def admit(self, now: float, model: str) -> None:
        """Take one request, or take nothing and raise the API's 429."""
        wait = self.requests.seconds_until(1, now)
        if wait:
            raise rate_limit_error(self.requests.limit, "requests", wait, organization=self.organization, model=model)
        self.requests.take(1, now)

    def headers(self, now: float, clock: Clock) -> dict[str, str]:
        """The `anthropic-ratelimit-requests-*` headers at `now`."""
        return dict(_lines({"requests": self.requests.header_values(now, thousands=False)}, now, clock))


def _lines(named: dict[str, tuple[int, int, float]], now: float, clock: Clock) -> Iterator[tuple[str, str]]:
    for name, (limit, remaining, full_in_s) in named.items():
        yield f"anthropic-ratelimit-{name}-limit", str(limit)
        yield f"anthropic-ratelimit-{name}-remaining", str(remaining)
        yield f"anthropic-ratelimit-{name}-reset", rfc3339(clock.wall(now + full_in_s))


def rate_limit_error(limit: Limit | None, unit: str, wait_s: float, *, organization: str, model: str) -> ApiError:
    """The API's 429 for a quota used up, with `retry-after` in whole seconds."""
    per_minute = round(limit.per_minute) if limit else _UNLIMITED_REQUESTS
    retry_after = max(1, math.ceil(wait_s - _SLACK)) if math.isfinite(wait_s) else _NEVER_RETRY_AFTER_S
    message = (
        f"This request would exceed your organization's rate limit of {per_minute:,} {unit} per minute "
        f"(org: {organization}, model: {model}). For details, refer to: https://docs.claude.com/en/api/rate-limits. "
        "You can see the response headers for current usage. Please reduce the prompt length or the maximum tokens "
        "requested, or try again later. You may also contact sales at https://www.anthropic.com/contact-sales to "
        "discuss your options for a rate limit increase."
    )
    return ApiError(429, "rate_limit_error", message, headers={"retry-after": str(retry_after)})


@dataclass(frozen=True, kw_only=True, slots=True)
class QuotaState:
    """The buckets of one model class when they were looked at."""

    requests: BucketLevel
    input_tokens: BucketLevel
    output_tokens: BucketLevel


@dataclass(frozen=True, kw_only=True, slots=True)
class OrganizationState:
    """What an organization has left.

    Attributes:
        id: as in the `anthropic-organization-id` header.
        quotas: by model class, those used so far.
        count_tokens: the requests bucket of token counting.
    """

    id: str
    quotas: dict[str, QuotaState]
    count_tokens: BucketLevel


@dataclass(kw_only=True, slots=True)
class Organization:
    """The quotas of one organization, made when first used."""

    id: str
    limits: Limits
    counting: CountQuota
    quotas: dict[str, Quota] = field(default_factory=dict[str, Quota])

    def quota(self, name: str, now: float) -> Quota:
        """The quota of model class `name`."""
        found = self.quotas.get(name)
        if found is None:
            found = self.quotas[name] = Quota(self.id, name, self.limits, now)
        return found

    def state(self, now: float) -> OrganizationState:
        """Bucket levels at `now`."""
        quotas = {
            name: QuotaState(
                requests=quota.requests.state(now),
                input_tokens=quota.input_tokens.state(now),
                output_tokens=quota.output_tokens.state(now),
            )
            for name, quota in self.quotas.items()
        }
        return OrganizationState(id=self.id, quotas=quotas, count_tokens=self.counting.requests.state(now))
