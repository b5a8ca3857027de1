"""One call's course through its attempts: after each failure, whether and when the next one follows.

The rule here: it follows from the failure, the clock and chance alone. Nothing waits here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from pydantic import Field

from penstock._core.failure import MOST_BELIEVED_S, FailureKind
from penstock._core.options import Options
from penstock.errors import CircuitOpen

if TYPE_CHECKING:
    import random

    from penstock._core.failure import Failure

__all__ = ["Again", "Course", "RetryOptions", "Stop"]

# Nobody has so many keys; whatever goes wrong, it is no endless loop.
_MOST_SPARED: Final = 100


class RetryOptions(Options):
    """How often and when failed attempts are repeated.

    Attributes:
        max_attempts: Attempts for each call, the first included, 1 to 100. Items of a fan-out have their own number.
        base_s: Seconds that the first wait has at most, above 0, at most 3,600; it doubles with every attempt.
        cap_s: Seconds that no wait exceeds unless the server asks for more, above 0, at most 86,400.
        max_retry_after_s: Seconds that the server may ask to wait, above 0, at most 86,400. Asked for more, a call
            comes back as if nothing had been asked; told so again, it waits for this long.
        hold_s: Seconds for which a stream is held back until its first content, so that it can be retried, 0 to 3,600.
        quota: The retry quota when full, 0 to 1,000,000. All calls share it: while it is empty, calls fail at once and
            items of a fan-out wait, so that an outage doesn't multiply the traffic.
        cost: What a retry takes from it, 1 or more.
        throttled_cost: The same for a retry after 429 or 529, 1 or more.
        probe_s: Seconds after which, while the quota is empty, one waiting item goes on all the same, above 0.

    Example:
        >>> RetryOptions(max_attempts=2).quota
        500
    """

    max_attempts: int = Field(default=4, ge=1, le=100)
    base_s: float = Field(default=0.5, gt=0, le=3_600)
    cap_s: float = Field(default=30.0, gt=0, le=86_400)
    max_retry_after_s: float = Field(default=MOST_BELIEVED_S, gt=0, le=86_400)
    hold_s: float = Field(default=10.0, ge=0, le=3_600)
    quota: int = Field(default=500, ge=0, le=1_000_000)
    cost: int = Field(default=14, ge=1)
    throttled_cost: int = Field(default=5, ge=1)
    probe_s: float = Field(default=30.0, gt=0, le=3_600)


@dataclass(frozen=True, slots=True)
class Again:
    """Try again after `delay_s` seconds; `free` of quota where no retry burdens the service."""

    delay_s: float
    free: bool = False


@dataclass(frozen=True, slots=True)
class Stop:
    """Try no more; `why` is for the caller to read."""

    why: str


class Course:
    """One call's way through its attempts: says after each failure whether and when the next one follows.

    Args:
        options: Back-off and number of attempts.
        rng: Source of jitter.
        max_attempts: The most attempts that count.
        deadline: Time of the event loop by which the call must have returned.
        patient: See the attribute.

    Attributes:
        attempts: Attempts so far: those that no guard refused.
        patient: Whether it waits for a circuit breaker and for the quota, as items of a fan-out do.

    Example:
        >>> import random
        >>> from penstock._core.failure import Failure
        >>> course = Course(RetryOptions(), random.Random(7), max_attempts=2, deadline=60.0)
        >>> failure = Failure(kind=FailureKind.RATE_LIMITED, retry_after_s=90.0)
        >>> course.after(failure, None, now=0.0).why
        'the wait of 90 s would pass the deadline'
    """

    __slots__ = (
        "_deadline",
        "_doubted",
        "_dropped",
        "_max_attempts",
        "_options",
        "_refusals",
        "_rng",
        "_spared",
        "attempts",
        "patient",
    )

    def __init__(
        self,
        options: RetryOptions,
        rng: random.Random,
        *,
        max_attempts: int,
        deadline: float = math.inf,
        patient: bool = False,
    ) -> None:
        self.attempts = 0
        self.patient = patient
        self._options = options
        self._rng = rng
        self._max_attempts = max_attempts
        self._deadline = deadline
        self._refusals = 0
        # Attempts that failed for one key or one connection, for which another stands in.
        self._spared = 0
        self._dropped = False
        self._doubted = False

    def after(self, failure: Failure, error: Exception | None, now: float) -> Again | Stop:
        """Decide what follows a failed attempt.

        Args:
            failure: How it failed.
            error: What it raised, if anything.
            now: Time of the event loop.
        """
        if failure.kind is not FailureKind.REFUSED:
            self.attempts += 1
            self._refusals = 0
        elif self.patient and isinstance(error, CircuitOpen):
            self._refusals += 1
            return self._in_time(Again(self._delay_s(self._refusals, error.retry_after_s), free=True), now)
        if not failure.retryable:
            return Stop("such a failure is not retried")
        if failure.at_once and self._max_attempts > 1 and self._spared < _MOST_SPARED:
            self._spared += 1
            return self._in_time(Again(0.0, free=True), now)
        counted = self.attempts - self._spared
        if counted >= self._max_attempts:
            return Stop("no attempt is left")
        delay_s = self._delay_s(counted, self._believed_s(failure.retry_after_s))
        return self._in_time(Again(delay_s, free=failure.kind is FailureKind.EXHAUSTED), now)

    def may_drop(self) -> bool:
        """Whether a dropped connection is to be taken for no more than that; True once, if there may be attempts."""
        first, self._dropped = not self._dropped and self._max_attempts > 1, True
        return first

    def _believed_s(self, retry_after_s: float | None) -> float | None:
        """Return how long a wait is worth that the server asks for: too long a one nothing at first, then the most."""
        most_s, doubted = self._options.max_retry_after_s, self._doubted
        self._doubted = retry_after_s is not None and retry_after_s > most_s
        if not self._doubted:
            return retry_after_s
        return most_s if doubted else None

    def _delay_s(self, number: int, retry_after_s: float | None) -> float:
        """Full jitter: https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/."""
        options, rng = self._options, self._rng
        # Beyond 2**64 the cap holds anyway.
        delay_s = rng.uniform(0.0, min(options.cap_s, options.base_s * 2.0 ** min(number - 1, 64)))
        if retry_after_s is None:
            return delay_s
        # Never sooner than asked, and not all who were told the same at the same moment.
        return max(delay_s, retry_after_s + rng.uniform(0.0, options.base_s))

    def _in_time(self, again: Again, now: float) -> Again | Stop:
        if now + again.delay_s < self._deadline:
            return again
        return Stop(f"the wait of {again.delay_s:.2g} s would pass the deadline")
