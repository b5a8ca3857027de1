"""What one organization or workspace may spend, for each model class.

The rule here: synchronous decisions on the event loop's time. A cost is taken from all buckets or from none; what was
taken is settled with what was really used, once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from penstock.admission.bucket import TokenBucket
from penstock.admission.limits import Cost, Limits
from penstock.errors import RequestExceedsQuota

if TYPE_CHECKING:
    from collections.abc import Callable

    from penstock.admission.limits import LimitHeaders

__all__ = ["BucketStatistics", "ClassQuota", "Quarantine", "Quota"]

# `remaining` of tokens is rounded to the nearest thousand.
_ROUNDING = {"requests": 0.0, "input_tokens": 500.0, "output_tokens": 500.0}
# Requests under way before the first answer has taught the limits, and how many more each second.
_FIRST_WAVE = 10.0
_FIRST_PROBE_S = 60.0
_LAST_PROBE_S = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class BucketStatistics:
    """A bucket at one moment.

    Attributes:
        available: Units that can be taken now; negative when more was used than was there.
        capacity: The most it holds.
        per_minute: Units that flow in each minute.
    """

    available: float
    capacity: float
    per_minute: float


class Quarantine:
    """Keeps something from use, and lets one request probe it from time to time: after 60 s, doubling to 1 h.

    Example:
        >>> quarantine = Quarantine()
        >>> quarantine.begin(now=0)
        >>> quarantine.may_use(now=59), quarantine.may_use(now=60)
        (False, True)
    """

    __slots__ = ("_interval_s", "_probing", "until")

    def __init__(self) -> None:
        self.until: float | None = None
        self._interval_s = _FIRST_PROBE_S
        self._probing = False

    def __repr__(self) -> str:
        return f"<Quarantine until={self.until} probing={self._probing}>"

    @property
    def active(self) -> bool:
        """Whether it holds."""
        return self.until is not None

    def begin(self, *, now: float) -> None:
        """Begin it, or after a failed probe again for twice as long; a late failure changes nothing."""
        if self.until is None:
            self._interval_s = _FIRST_PROBE_S
        elif self._probing:
            self._interval_s = min(self._interval_s * 2, _LAST_PROBE_S)
        else:
            return
        self._probing = False
        self.until = now + self._interval_s

    def end(self) -> None:
        """End it."""
        self.until = None
        self._probing = False

    def may_use(self, *, now: float) -> bool:
        """Whether a request may use it now; the caller then calls `probe`."""
        return self.until is None or (now >= self.until and not self._probing)

    def probe(self) -> bool:
        """Note that a request uses it; True if that is a probe, of which there is one at a time."""
        if self.until is None:
            return False
        self._probing = True
        return True

    def probe_told_nothing(self, *, now: float) -> None:
        """Note that a probe ended without an answer; the next request may probe again."""
        if self._probing:
            self._probing = False
            self.until = now

    def again_in_s(self, *, now: float) -> float:
        """Return the seconds until the next probe; 0 if it may be used."""
        return 0.0 if self.until is None else max(self.until - now, 0.0 if not self._probing else _FIRST_PROBE_S)


class ClassQuota:
    """What one quota may spend on one model class.

    Args:
        configured: Upper bounds; what is not configured is learned.

    Attributes:
        buckets: By name; a name without limit has none.
        cooling_until: Time of the event loop until which nothing is sent.
        in_flight: Requests under way.
    """

    __slots__ = ("_configured", "_first_at", "_reserved", "_taught", "buckets", "cooling_until", "in_flight")

    def __init__(self, configured: Limits) -> None:
        self._configured = {
            "requests": configured.requests_per_minute,
            "input_tokens": configured.input_tokens_per_minute,
            "output_tokens": configured.output_tokens_per_minute,
        }
        self.buckets = {
            name: TokenBucket(limit, name=name) for name, limit in self._configured.items() if limit is not None
        }
        self.cooling_until = 0.0
        self.in_flight = 0
        self._reserved = dict.fromkeys(Cost.NAMES, 0.0)
        self._taught = bool(self.buckets)
        self._first_at: float | None = None

    def __repr__(self) -> str:
        return f"<ClassQuota {list(self.buckets.values())}, {self.in_flight} in flight>"

    def check(self, cost: Cost) -> None:
        """Refuse a cost that no wait would make fit.

        Raises:
            RequestExceedsQuota: It is larger than a bucket can ever hold.
        """
        for name, bucket in self.buckets.items():
            needed = self._needed(name, cost)
            if needed > bucket.capacity:
                raise RequestExceedsQuota(name, needed=needed, capacity=bucket.capacity)

    def _needed(self, name: str, cost: Cost) -> float:
        """How much must be there. Of output no more than a full bucket: it is a guess, and only the answer can tell."""
        needed: float = getattr(cost, name)
        return min(needed, self.buckets[name].capacity) if name == "output_tokens" else needed

    def wait_s(self, cost: Cost, *, now: float) -> float:
        """Return how long until `cost` can be taken: 0 for now."""
        wait = self.cooling_until - now
        if not self._taught:
            wait = max(wait, self._first_wave_s(now))
        for name, bucket in self.buckets.items():
            wait = max(wait, bucket.seconds_until(self._needed(name, cost)))
        return max(wait, 0.0)

    def _first_wave_s(self, now: float) -> float:
        """Begin gently while nothing is known: a first wave, and as many more each second."""
        since = now - self._first_at if self._first_at is not None else 0.0
        return self.in_flight / _FIRST_WAVE - 0.9 - since

    def take(self, cost: Cost, *, now: float) -> None:
        """Take `cost` from every bucket."""
        if self._first_at is None:
            self._first_at = now
        self.in_flight += 1
        for name in Cost.NAMES:
            amount: float = getattr(cost, name)
            self._reserved[name] += amount
            if (bucket := self.buckets.get(name)) is not None:
                bucket.take(amount)

    def settle(self, taken: Cost, used: Cost) -> None:
        """Replace what was taken by what was used."""
        self.in_flight -= 1
        for name in Cost.NAMES:
            amount: float = getattr(taken, name)
            difference: float = getattr(used, name) - amount
            self._reserved[name] -= amount
            bucket = self.buckets.get(name)
            if bucket is None or difference == 0:
                continue
            if difference > 0:
                bucket.take(difference)
            else:
                bucket.refund(-difference)

    def cool_down(self, *, until: float) -> bool:
        """Send nothing until then; of several cool-downs the longest holds. Returns whether this one does."""
        longer = until > self.cooling_until
        self.cooling_until = max(self.cooling_until, until)
        return longer

    def learn(self, headers: LimitHeaders) -> bool:
        """Correct the buckets by an answer's headers. Returns whether a limit changed."""
        self._taught = True
        changed = False
        for name in Cost.NAMES:
            limit = self._bounded(name, headers.limits.get(name))
            bucket = self.buckets.get(name)
            if limit is not None and bucket is None:
                bucket = self.buckets[name] = TokenBucket(limit, name=name)
                # What is under way was taken before there was a bucket, and will be settled with it.
                bucket.take(max(self._reserved[name], 0.0))
                changed = True
            if bucket is None:
                continue
            changed = changed or (limit is not None and abs(limit - bucket.per_minute) > 1e-6 * limit)
            remaining = headers.remaining.get(name)
            bucket.sync(per_minute=limit, remaining=None if remaining is None else remaining + _ROUNDING[name])
        return changed

    def _bounded(self, name: str, limit: float | None) -> float | None:
        if not limit:
            return None
        configured = self._configured[name]
        return limit if configured is None else min(limit, configured)

    def statistics(self) -> dict[str, BucketStatistics]:
        """Return the buckets as they stand, by name."""
        return {
            name: BucketStatistics(available=bucket.available, capacity=bucket.capacity, per_minute=bucket.per_minute)
            for name, bucket in self.buckets.items()
        }


class Quota:
    """What one organization or workspace may spend.

    Args:
        name: Its id, or the name of the only key known to belong to it.
        configured: Gives the limits configured for a model class.

    Attributes:
        quarantine: Holds after the API refused for a spend cap.
        classes: By model class.
    """

    __slots__ = ("_configured", "classes", "name", "quarantine")

    def __init__(self, name: str, configured: Callable[[str], Limits]) -> None:
        self.name = name
        self._configured = configured
        self.quarantine = Quarantine()
        self.classes: dict[str, ClassQuota] = {}

    def __repr__(self) -> str:
        return f"<Quota {self.name}, {len(self.classes)} model classes>"

    def of_class(self, model_class: str) -> ClassQuota:
        """Return what may be spent on a model class."""
        found = self.classes.get(model_class)
        if found is None:
            found = self.classes[model_class] = ClassQuota(self._configured(model_class))
        return found
