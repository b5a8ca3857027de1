"""What a run came to: counts, times and tokens by the client's events, and the quota used by the server's own books.

The rule here: it only adds up, and formats nothing.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from decimal import Decimal
from operator import itemgetter
from typing import TYPE_CHECKING

from pydantic import BaseModel

from penstock.events import CallEnded, RetryScheduled

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from penstock.events import Event

__all__ = ["ServerStatistics", "Tally", "percentile", "quota_used"]


class Tally:
    """An observer for a `Client`.

    Attributes:
        answered: Items with an answer.
        errors: Those without, by name of the error.
        retries: Attempts repeated, by why the one before failed (`penstock._core.failure.FailureKind`).
        failures: Calls that failed in the end, by why.
        latencies_s: Of each call, waits and retries included.
        waits_s: Of each call in line.
        input_tokens: Of all attempts, cache included.
        output_tokens: Of all attempts.
        cost_usd: Of all answers.

    Example:
        >>> tally = Tally()
        >>> tally(RetryScheduled(call_id="1", attempt=1, delay_s=0.5, reason="overloaded"))
        >>> tally.retries
        Counter({'overloaded': 1})
    """

    def __init__(self) -> None:
        self.answered = 0
        self.errors: Counter[str] = Counter()
        self.retries: Counter[str] = Counter()
        self.failures: Counter[str] = Counter()
        self.latencies_s: list[float] = []
        self.waits_s: list[float] = []
        self.input_tokens = 0
        self.output_tokens = 0
        self.cost_usd = Decimal(0)

    def __repr__(self) -> str:
        return f"<Tally {self.answered} answered, {self.failed} failed, {self.retries.total()} retries>"

    def __call__(self, event: Event) -> None:
        """Count an event."""
        if isinstance(event, RetryScheduled):
            self.retries[event.reason] += 1
        elif isinstance(event, CallEnded):
            self.latencies_s.append(event.latency_s)
            self.waits_s.append(event.queued_s)
            self.input_tokens += event.usage.total_input_tokens
            self.output_tokens += event.usage.output_tokens
            if event.failure is not None:
                self.failures[event.failure] += 1

    @property
    def failed(self) -> int:
        """Items without an answer."""
        return self.errors.total()

    def seen(self, *kinds: str) -> int:
        """Return how many attempts failed in one of these ways, repeated or not."""
        return sum(self.retries[kind] + self.failures[kind] for kind in kinds)


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value that `share` (0 to 1) of the values do not exceed; 0 if there are none.

    Example:
        >>> percentile([3.0, 1.0, 2.0], 0.5)
        2.0
    """
    if not values:
        return 0.0
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


class Bucket(BaseModel):
    """What the simulator says of one limit; `None`: unlimited."""

    level: float | None
    taken: float
    possible: float | None


_UNUSED = Bucket(level=None, taken=0.0, possible=None)


class Quota(BaseModel):
    """The limits of a model class."""

    requests: Bucket
    input_tokens: Bucket
    output_tokens: Bucket


class Organization(BaseModel):
    """The quotas of an organization, by model class."""

    quotas: dict[str, Quota]


class ServerStatistics(BaseModel):
    """What is needed here of the simulator's `/_simulator/statistics`."""

    organizations: dict[str, Organization]

    def buckets(self) -> Iterator[tuple[tuple[str, str, str], Bucket]]:
        """Give each bucket, by organization, model class and what it limits."""
        for organization, state in self.organizations.items():
            for model_class, quota in state.quotas.items():
                for name in Quota.model_fields:
                    yield (organization, model_class, name), getattr(quota, name)


def quota_used(before: ServerStatistics, after: ServerStatistics) -> tuple[str, float] | None:
    """Return the limit that held a run back, and the share of it that was used, all organizations together.

    What was possible is what the buckets held at first, and what ran into them until the end.

    Args:
        before: When the run began.
        after: When it ended.

    Returns:
        The limit (`requests`, `input_tokens` or `output_tokens`) and the share, 0 to 1; `None` if nothing is limited.
    """
    start = dict(before.buckets())
    used: defaultdict[str, float] = defaultdict(float)
    possible: defaultdict[str, float] = defaultdict(float)
    for place, bucket in after.buckets():
        if bucket.possible is not None:
            then = start.get(place, _UNUSED)
            used[place[-1]] += bucket.taken - then.taken
            possible[place[-1]] += bucket.possible - (then.possible or 0.0) + (then.level or 0.0)
    shares = {name: used[name] / amount for name, amount in possible.items() if amount > 0}
    return max(shares.items(), key=itemgetter(1), default=None)
