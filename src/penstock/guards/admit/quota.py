"""What one organization or workspace may spend, for each model class.

The rule here: synchronous decisions on the event loop's time. A cost is taken from all buckets or from none; what was
taken is settled with what was really used, once. What the API says corrects the rest: a limit counts once two answers
in a row have told it, and where answers alone make everybody wait, one request goes now and then to see whether it is
still so. Only what is configured refuses.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from penstock.errors import RequestExceedsQuota
from penstock.guards.admit.bucket import TokenBucket
from penstock.guards.admit.limits import Cost, Limits
from penstock.guards.admit.quarantine import Quarantine
from penstock.guards.admit.ramp import Ramp

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from penstock.guards.admit.limits import LimitHeaders

__all__ = ["BucketStatistics", "ClassQuota", "Mark", "Quota"]

# `remaining` of tokens is rounded to the nearest thousand.
_ROUNDING = {"requests": 0.0, "input_tokens": 500.0, "output_tokens": 500.0}
# Requests under way before the first answer has told what is left, and how many more each second.
_FIRST_WAVE = 10.0
# `reset` has whole seconds, so that a capacity is read off it with that error; one close to the limit is the limit.
_RESET_ERROR_S = 1.0
_AS_GOOD_AS = 0.8
# The API writes limits as whole numbers.
_SAME_LIMIT = 1.01
# Dates take time to read: a capacity is looked at in the first answers, and then in one of so many.
_PLENTY = 0.5
_EVERY_EARLY = 4
_EVERY = 16
# By so much the quickest answer that is known slows down with each other answer; an answer's ten weigh on a reading;
# readings whose errors differ by less, in requests, are alike.
_LAG_GROWS = 1.05
_READINGS_MEMORY = 0.95
_READINGS_ALIKE = 5.0
_SAY_SO = 3
_MOST_RECENT = 10_000
# What no answer has told for so long is not so any more.
_FORGOTTEN_AFTER_S = 600.0
# Limits are per minute: one who waits for longer than that goes to see; and, refused, half as often, but in time.
_PROBE_S = 60.0
_LAST_PROBE_S = 600.0


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


@dataclass(slots=True)
class Mark:
    """What had been taken when a request was let in; against it the request's answer is read.

    Attributes:
        number: Counts the requests of a quota and model class.
        at: Time of the event loop.
        taken: Taken by then, less what was given back, by bucket; the request's own share included.
        reserved_output: Output tokens set aside for requests under way then, this one's included.
    """

    number: int
    at: float
    taken: tuple[float, float, float]
    reserved_output: float


class ClassQuota:
    """What one quota may spend on one model class.

    Args:
        configured: Upper bounds; what is not configured is learned.

    Attributes:
        buckets: By name; a name without limit has none.
        cooling_until: Time of the event loop until which nothing is sent.
        in_flight: Requests under way.
        ramp: Set after the API complained of too steep a growth.
    """

    __slots__ = (
        "_begun",
        "_believed",
        "_configured",
        "_cooled_at",
        "_cooled_blind",
        "_doubted",
        "_ended",
        "_first_at",
        "_gaps",
        "_gone",
        "_informed",
        "_lag_s",
        "_last_at",
        "_last_told",
        "_number",
        "_probe_s",
        "_recent",
        "_reserved_input",
        "_reserved_output",
        "_synced",
        "_taken",
        "_taught",
        "_told_at",
        "_wave",
        "buckets",
        "cooling_until",
        "in_flight",
        "ramp",
    )

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
        self.ramp = Ramp()
        self._taken = dict.fromkeys(Cost.NAMES, 0.0)
        self._reserved_input = 0.0
        self._reserved_output = 0.0
        self._synced: set[str] = set()
        self._number = 0
        self._informed = 0
        self._believed: dict[str, float] = {}
        self._doubted: dict[str, float] = {}
        self._recent: deque[Mark] = deque(maxlen=_MOST_RECENT)
        self._gone = (0.0, 0.0, 0.0)
        self._lag_s = math.inf
        self._last_told: tuple[Mark, float, float, float] | None = None
        self._begun = self._ended = 0.0
        self._gaps = {name: list[float]() for name in Cost.NAMES}
        self._told_at = -math.inf
        self._cooled_at = -math.inf
        self._cooled_blind = False
        self._last_at = -math.inf
        self._probe_s = _PROBE_S
        self._taught = False
        self._wave = max(_FIRST_WAVE, (configured.requests_per_minute or 0.0) / 60)
        self._first_at: float | None = None

    def __repr__(self) -> str:
        return f"<ClassQuota {list(self.buckets.values())}, {self.in_flight} in flight>"

    def check(self, cost: Cost) -> None:
        """Refuse a cost that no wait would make fit: its sure part is larger than a limit that is configured.

        Raises:
            RequestExceedsQuota: So it is.
        """
        for name, needed in (
            ("requests", cost.requests),
            ("input_tokens", min(cost.input_tokens, cost.sure_input_tokens)),
        ):
            most = self._configured[name]
            if most is not None and needed > most:
                raise RequestExceedsQuota(name, needed=needed, capacity=most)

    def wait_s(self, cost: Cost, *, now: float) -> float:
        """Return how long until `cost` can be taken: 0 for now."""
        told, ours = self.cooling_until - now, self.ramp.wait_s(now=now)
        if not self._taught:
            ours = max(ours, self._first_wave_s(now))
        for name, bucket in self.buckets.items():
            # Never more than a full bucket: output is a guess, and a learned capacity comes of coarse headers.
            wait = bucket.seconds_until(min(getattr(cost, name), bucket.max_rate))
            if name in self._believed:
                told = max(told, wait)
            else:
                ours = max(ours, wait)
        if told > ours and not self.in_flight:
            told = min(told, max(self._last_at, self._cooled_at) + self._probe_s - now)
        return max(told, ours, 0.0)

    def cooling_s(self, *, now: float) -> float:
        """Return how long nothing is sent for sure; a long rest is sure once a request went to see, and was refused."""
        seconds = max(self.cooling_until - now, 0.0)
        seeing = self._last_at > self._cooled_at and self.in_flight
        return 0.0 if seeing or seconds > self._probe_s == _PROBE_S else seconds

    def _first_wave_s(self, now: float) -> float:
        """Begin gently until an answer tells what is left: a first wave, and as many more each second."""
        since = max(now - self._first_at, 0.0) if self._first_at is not None else 0.0
        return (self.in_flight + 1) / self._wave - 1 - since

    def headroom(self) -> float | None:
        """Return the share of the scarcest bucket that is left, at most 1; `None` where no limit is known."""
        return min((bucket.available / bucket.capacity for bucket in self.buckets.values()), default=None)

    def take(self, cost: Cost, *, now: float) -> Mark:
        """Take `cost` from every bucket."""
        if self._first_at is None:
            self._first_at = now
        self._last_at = now
        self.in_flight += 1
        self._number += 1
        self._reserved_input += cost.input_tokens
        self._reserved_output += cost.output_tokens
        self.ramp.admitted(now=now)
        taken = self._taken
        taken["requests"] += cost.requests
        taken["input_tokens"] += cost.input_tokens
        taken["output_tokens"] += cost.output_tokens
        for name, bucket in self.buckets.items():
            bucket.take(getattr(cost, name))
        mark = Mark(
            self._number,
            now,
            (taken["requests"], taken["input_tokens"], taken["output_tokens"]),
            self._reserved_output,
        )
        self._recent.append(mark)
        return mark

    def settle(self, taken: Cost, used: Cost) -> None:
        """Replace what was taken by what was used."""
        self.in_flight -= 1
        self._reserved_input -= taken.input_tokens
        self._reserved_output -= taken.output_tokens
        for name in Cost.NAMES:
            difference: float = getattr(used, name) - getattr(taken, name)
            self._taken[name] += difference
            bucket = self.buckets.get(name)
            if bucket is None or difference == 0:
                continue
            if difference > 0:
                bucket.take(difference)
            else:
                bucket.refund(-difference)

    def cool_down(self, seconds: float, *, now: float) -> bool:
        """Send nothing for so long; of several cool-downs the longest holds. Returns whether this one does."""
        until = now + seconds
        again = self._cooled_at < self._last_at < self.cooling_until
        self._probe_s = min(self._probe_s * 2, _LAST_PROBE_S) if again else _PROBE_S
        self._cooled_at = now
        if not self._believed:
            # Nothing tells how much there will be then, so that all who wait must not come at once.
            self._cooled_blind, self._taught, self._first_at = True, False, until
        longer = until > self.cooling_until
        self.cooling_until = max(self.cooling_until, until)
        return longer

    def rest_with(self, other: ClassQuota) -> None:
        """Rest as long as another, which turns out to be the same."""
        self.cooling_until = max(self.cooling_until, other.cooling_until)
        self._cooled_at = max(self._cooled_at, other._cooled_at)

    def works(self, mark: Mark, *, now: float) -> None:
        """A request succeeded: what was sent in spite of a cool-down has shown that there is none."""
        if self._cooled_at < mark.at:
            self.cooling_until = min(self.cooling_until, now)

    # What the API says

    def learn(
        self, headers: LimitHeaders, mark: Mark, cost: Cost, *, now: float, refused_for_s: float | None = None
    ) -> bool:
        """Correct the buckets by the headers of an answer.

        Args:
            headers: Of the answer.
            mark: Of its request.
            cost: What its request has taken, and not settled yet.
            now: Time of the event loop.
            refused_for_s: Seconds to wait, if it is a 429.

        Returns:
            Whether a limit changed.
        """
        changed = self._learn_limits(headers.limits, now)
        if refused_for_s is not None:
            self._learn_refusal(headers, cost, refused_for_s)
            return changed
        self._note_delay(now - mark.at, now)
        self._compare_readings(headers.remaining.get("requests"), mark, now)
        # A refusal tells which bucket is empty, not what the others hold.
        self._taught = bool(self._believed) or not (headers.limits or self._cooled_blind)
        if changed:
            # What earlier answers told there was nothing to compare with.
            self._informed = 0
        if mark.number < self._informed:
            # An answer to a later request has told more.
            return changed
        self._informed = mark.number
        for place, name in enumerate(Cost.NAMES):
            bucket, remaining = self.buckets.get(name), headers.remaining.get(name)
            if bucket is None or remaining is None:
                continue
            if mark.number <= _EVERY_EARLY or mark.number % _EVERY == 0:
                self._learn_capacity(bucket, remaining, headers.seconds_to_full(name))
            since = self._taken[name] - mark.taken[place]
            if _PLENTY * bucket.capacity < bucket.surely_available <= remaining - since:
                # Not too high, and only a bucket that runs low needs to be exact.
                continue
            refilled = (now - mark.at) * bucket.per_minute / 60
            if name == "output_tokens":
                # What is still being generated is not in the API's count.
                begun = remaining + refilled - since - mark.reserved_output
                ended = remaining - (self._reserved_output - cost.output_tokens)
            else:
                on_its_way = self._taken[name] - self._gone[place]
                begun, ended = remaining + refilled - since, remaining - max(on_its_way, 0.0)
            # What is left of a larger limit than ours says nothing about how much of ours is.
            if headers.limits.get(name, math.inf) > _SAME_LIMIT * bucket.per_minute:
                begun = min(begun, bucket.available)
            self._correct(bucket, begun, ended, since)
        return changed

    def _note_delay(self, seconds: float, now: float) -> None:
        """Note how long the quickest answers take of late: what was sent since may not have been counted in them."""
        self._lag_s = min(seconds, self._lag_s * _LAG_GROWS)
        recent, arrived_by = self._recent, now - self._lag_s
        while recent and recent[0].at <= arrived_by:
            self._gone = recent.popleft().taken

    def _compare_readings(self, remaining: float | None, mark: Mark, now: float) -> None:
        """Compare what both readings predict from one answer to the next, until one of them is plainly right."""
        bucket = self.buckets.get("requests")
        if bucket is None or not remaining:
            # Empty is empty, by whichever reading.
            self._last_told = None
            return
        taken, last = self._taken["requests"], self._last_told
        self._last_told = (mark, now, taken, remaining)
        if last is None:
            return
        last_mark, last_at, last_taken, last_remaining = last
        change, per_s = remaining - last_remaining, bucket.per_minute / 60
        begun = (mark.at - last_mark.at) * per_s - (mark.taken[0] - last_mark.taken[0])
        ended = (now - last_at) * per_s - (taken - last_taken)
        self._begun = self._begun * _READINGS_MEMORY + abs(change - begun)
        self._ended = self._ended * _READINGS_MEMORY + abs(change - ended)

    def _most(self, begun: float, ended: float) -> float:
        """Return the most that can be available by the reading that the service follows; by both until that shows."""
        if self._begun + _READINGS_ALIKE < self._ended / 2:
            return begun
        return ended if self._ended + _READINGS_ALIKE < self._begun / 2 else max(begun, ended)

    def _learn_refusal(self, headers: LimitHeaders, cost: Cost, seconds: float) -> None:
        """A bucket that could not take a request will only just be able to after the seconds told."""
        for name, bucket in self.buckets.items():
            remaining = headers.remaining.get(name)
            if remaining is not None and remaining - _ROUNDING[name] < getattr(cost, name):
                # The cost is still taken here, and will be given back.
                rounding = _ROUNDING[name]
                # It was told in whole seconds, rounded up: with large tokens a second that is much to give away.
                told_s = min(seconds, _PROBE_S) - bool(rounding)
                missing = max(told_s * bucket.per_minute / 60, 2 * rounding)
                bucket.correct(at_least=-math.inf, at_most=-missing)

    def _correct(self, bucket: TokenBucket, begun: float, ended: float, since: float) -> None:
        """Move a bucket into the range that an answer leaves possible.

        The API may have counted when it began the answer or when it ended it. Upwards, the bucket is corrected only
        where both readings agree that it is wrong.
        """
        name, rounding, most = bucket.name, _ROUNDING[bucket.name], self._most(begun, ended)
        if name not in self._synced:
            # The first answer corrects a mere guess: to the careful side too.
            self._synced.add(name)
            most = min(begun, ended) if rounding else ended
        available = bucket.available
        if available > most + rounding:
            # To the careful side: a bias of half a thousand tokens would be refused again and again.
            bucket.correct(at_least=-math.inf, at_most=most - rounding)
            self._gaps[name].clear()
        else:
            # Requests overtake each other: any that is under way may not have been counted. Input under way has been
            # taken as estimated here, as it is there: what will be given back must not be counted twice. A level that
            # is too low costs its difference once; one too high is refused each time.
            unsure = {"requests": self.in_flight - 1.0, "input_tokens": self._reserved_input}.get(name, 0.0)
            least = min(begun, ended - max(since, 0.0)) - unsure - rounding
            self._raise(bucket, least - available)

    def _raise(self, bucket: TokenBucket, gap: float) -> None:
        """Give back what several answers in a row say is missing: requests overtake each other on their way."""
        gaps = self._gaps[bucket.name]
        if gap <= 0:
            gaps.clear()
            return
        gaps.append(gap)
        if len(gaps) == _SAY_SO:
            bucket.correct(at_least=bucket.available + min(gaps), at_most=math.inf)
            gaps.clear()

    def _learn_limits(self, told: Mapping[str, float], now: float) -> bool:
        """Believe a limit that two answers in a row tell, and none that no answer has told for long."""
        changed = False
        if told == self._believed:
            self._told_at = now
            self._doubted.clear()
            return changed
        for name in Cost.NAMES:
            limit, believed = told.get(name), self._believed.get(name)
            if limit is None:
                if believed is not None and now - self._told_at > _FORGOTTEN_AFTER_S:
                    self._forget(name)
                    changed = True
            elif limit == believed:
                self._doubted.pop(name, None)
            elif self._doubted.get(name) == limit:
                del self._doubted[name]
                self._believed[name], self._told_at = limit, now
                changed |= self._limit(name, limit)
            else:
                self._doubted[name] = limit
        return changed

    def _limit(self, name: str, limit: float) -> bool:
        """Limit a bucket; True if that is news."""
        configured, bucket = self._configured[name], self.buckets.get(name)
        limit = limit if configured is None else min(limit, configured)
        if bucket is None:
            bucket = self.buckets[name] = TokenBucket(limit, name=name)
            # Requests under way have taken their share already, when there was no bucket yet.
            bucket.take(self._under_way(name))
        elif math.isclose(limit, bucket.per_minute):
            return False
        else:
            bucket.change(per_minute=limit, capacity=limit)
        return True

    def _forget(self, name: str) -> None:
        del self._believed[name]
        self._synced.discard(name)
        configured = self._configured[name]
        if configured is None:
            del self.buckets[name]
        else:
            self.buckets[name].change(per_minute=configured, capacity=configured)

    def _under_way(self, name: str) -> float:
        return (
            float(self.in_flight) if name == "requests" else self._reserved_output if name == "output_tokens" else 0.0
        )

    @staticmethod
    def _learn_capacity(bucket: TokenBucket, remaining: float, seconds_to_full: float | None) -> None:
        """Shrink a bucket whose limit the API enforces over shorter times: when it is full tells how much it holds."""
        if remaining > bucket.capacity and bucket.capacity < bucket.per_minute:
            bucket.change(per_minute=bucket.per_minute, capacity=min(remaining, bucket.per_minute))
        if seconds_to_full is None:
            return
        holds = remaining + (seconds_to_full + _RESET_ERROR_S) * bucket.per_minute / 60
        if 0 < holds < _AS_GOOD_AS * bucket.capacity:
            # That it holds less than was thought doesn't mean that more was taken from it.
            available = bucket.available
            bucket.change(per_minute=bucket.per_minute, capacity=max(holds, 1.0))
            bucket.correct(at_least=available, at_most=bucket.capacity)

    def statistics(self, *, now: float) -> dict[str, BucketStatistics]:
        """Return the buckets as they stand, by name."""
        return {
            name: BucketStatistics(
                available=bucket.available_at(now), capacity=bucket.capacity, per_minute=bucket.per_minute
            )
            for name, bucket in self.buckets.items()
        }


class Quota:
    """What one organization or workspace may spend.

    Args:
        name: Its id, or the name of the only key known to belong to it.
        configured: Gives the limits configured for a model class.

    Attributes:
        quarantine: Holds after the API refused its organization: no credit, a spend cap, disabled.
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

    def statistics(self, *, now: float) -> Mapping[str, Mapping[str, BucketStatistics]]:
        """Return the buckets of every model class."""
        return {model_class: allowance.statistics(now=now) for model_class, allowance in self.classes.items()}
