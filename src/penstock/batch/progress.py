"""How far a fan-out is: counts, a frozen snapshot of them, and who is told when.

The rule here: counting is all that happens for each item; whoever is told of it is told every so often and at the end,
and an exception of theirs is logged and never breaks the run.

A `Tally` counts items (`start`, `add`, `resumed`), its `snapshot` is a `Progress`. A `ProgressReporter` hands snapshots
to functions: run it in a task group, cancel that, call `end`. `penstock.batch.progress_display` draws them. What the
run waits for is known to the guards of a client: `Waits` is that, and asked for only when a snapshot is taken.
"""

from __future__ import annotations

import inspect
import logging
import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final, TypeAlias

import anyio

from penstock._core.usage import Usage
from penstock.costs.spending import Spending

if TYPE_CHECKING:
    from collections.abc import Callable
    from decimal import Decimal

    from penstock.batch.result import FanOutResult
    from penstock.guards.admit.quota import BucketStatistics
    from penstock.guards.admit.statistics import AdmitStatistics
    from penstock.guards.breaker import CircuitBreakerStatistics
    from penstock.guards.meter import MeterStatistics
    from penstock.guards.retry import RetryStatistics

__all__ = ["OnProgress", "Progress", "ProgressReporter", "Tally", "Waits", "check_on_progress"]

_logger: Final = logging.getLogger("penstock")


@dataclass(frozen=True, slots=True, kw_only=True)
class Waits:
    """What the requests of a client wait for at one moment, those of a run among them.

    Attributes:
        in_line: Requests that wait for quota, a slot or a key.
        retrying: Requests that failed, and wait for their next attempt.
        quota_use: The share of the fullest rate limit that is in use, 0 to 1 or a little more; `None` if none is known.
        quota_s: Seconds until that limit has a unit to give, or until a cool-down of all keys is over; 0 for now,
            `None` if neither is known.
        breaker_s: Seconds until an open circuit breaker, of any model, lets requests try the service again, 0 while
            they do; `None` if all are closed.
        network: Why the API can't be reached; `None` once it has answered again.
    """

    in_line: int = 0
    retrying: int = 0
    quota_use: float | None = None
    quota_s: float | None = None
    breaker_s: float | None = None
    network: str | None = None

    @classmethod
    def of(
        cls,
        admission: AdmitStatistics,
        retry: RetryStatistics,
        breaker: CircuitBreakerStatistics,
        attempts: MeterStatistics,
        *,
        now: float,
    ) -> Waits:
        """Read it off what a client's guards count.

        Args:
            admission: Of the line.
            retry: Of the retries.
            breaker: Of the circuit breakers.
            attempts: Of the meter.
            now: Time of the event loop.
        """
        open_s = [max((one.open_until or now) - now, 0.0) for one in breaker.classes.values() if one.state != "closed"]
        return cls(
            in_line=sum(admission.waiting.values()),
            retrying=retry.delayed,
            quota_use=_quota_use(admission),
            quota_s=_quota_s(admission),
            breaker_s=max(open_s, default=None),
            network=attempts.network,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """A fan-out at one moment.

    Attributes:
        total: Items in all; `None` where the input doesn't tell its length.
        answered: Items answered in this run.
        failed: Items that failed in this run.
        resumed: Items that an earlier run had finished, by the journal.
        in_flight: Items being asked.
        retried: Attempts beyond the first, of the finished items; 0 where nobody counts them.
        input_tokens: Of the answers, cache included.
        output_tokens: Of the answers.
        cost_usd: Of the answers; without those of models that have no known price.
        expected_cost_usd: Of this run as a whole, if the rest costs as much; `None` if that can't be told.
        waits: What it waits for, as far as a client tells.
        elapsed_s: Since the start.
        rate_per_s: Items finished in each second of this run.
        left_s: Until the end, at this rate; `None` if that can't be told.
        ended: Whether this is the last there is.
    """

    total: int | None
    answered: int
    failed: int
    resumed: int
    in_flight: int
    retried: int
    input_tokens: int
    output_tokens: int
    cost_usd: Decimal
    expected_cost_usd: Decimal | None
    elapsed_s: float
    rate_per_s: float
    left_s: float | None
    waits: Waits = field(default_factory=Waits)
    ended: bool = False

    @property
    def done(self) -> int:
        """Items that are finished, in this run or an earlier one."""
        return self.answered + self.failed + self.resumed


OnProgress: TypeAlias = "Callable[[Progress], object]"


def check_on_progress(on_progress: OnProgress | None) -> None:
    """Refuse what would never run.

    Raises:
        TypeError: It is a coroutine function.
    """
    if inspect.iscoroutinefunction(on_progress):
        raise TypeError("on_progress must be an ordinary function: it is called, not awaited")


class Tally:
    """Counts what a fan-out has come to.

    Args:
        total: Items in all, if that is known.
        waits: Tells what requests wait for, given the time of the event loop.

    Attributes:
        resumed: Items that an earlier run had finished.

    Example:
        >>> from penstock import FanOutResult
        >>> tally, clock = Tally(total=2), iter([0.0, 2.0])
        >>> tally.begin(lambda: next(clock))
        >>> tally.start()
        >>> tally.add(FanOutResult(custom_id="a", index=0, error=ValueError("no")))
        >>> progress = tally.snapshot()
        >>> progress.failed, progress.rate_per_s, progress.left_s
        (1, 0.5, 2.0)
    """

    def __init__(self, *, total: int | None, waits: Callable[[float], Waits] | None = None) -> None:
        self._total = total
        self._now: Callable[[], float] = float
        self._begun_at = 0.0
        self._waits = waits
        self._begun = False
        self.resumed = 0
        self._started = self._answered = self._failed = self._retried = 0
        self._input_tokens = self._output_tokens = 0
        self._spent = Spending()

    def __repr__(self) -> str:
        return f"<Tally {self._answered} answered, {self._failed} failed, {self.resumed} resumed>"

    def begin(self, now: Callable[[], float]) -> None:
        """Start the clock, which may be asked outside an event loop too."""
        self._now, self._begun_at, self._begun = now, now(), True

    def start(self) -> None:
        """Count an item that is being asked."""
        self._started += 1

    def add(self, result: FanOutResult) -> None:
        """Count an item that was started and is finished now."""
        self._answered += result.ok
        self._failed += not result.ok
        self._retried += max((result.attempts or 1) - 1, 0)
        if result.message is not None:
            usage = Usage.from_message(result.message)
            self._input_tokens += usage.total_input_tokens
            self._output_tokens += usage.output_tokens
            self._spent.add(result.message.model, usage, result.message)

    def snapshot(self) -> Progress:
        """Return the counts as they stand."""
        now = self._now()
        finished, elapsed_s = self._answered + self._failed, max(now - self._begun_at, 0.0)
        rate = finished / elapsed_s if elapsed_s else 0.0
        cost_usd = self._spent.priced_usd
        left = None if self._total is None else max(self._total - finished - self.resumed, 0)
        return Progress(
            total=self._total,
            answered=self._answered,
            failed=self._failed,
            resumed=self.resumed,
            in_flight=self._started - finished,
            retried=self._retried,
            input_tokens=self._input_tokens,
            output_tokens=self._output_tokens,
            cost_usd=cost_usd,
            expected_cost_usd=None if left is None or not finished else cost_usd * (finished + left) / finished,
            elapsed_s=elapsed_s,
            rate_per_s=rate,
            left_s=left / rate if left is not None and rate else None,
            waits=Waits() if self._waits is None or not self._begun else self._waits(now),
        )


class ProgressReporter:
    """Hands snapshots to functions, each at its own pace, and the last one to all.

    Args:
        snapshot: Makes one.
        sinks: Functions, and the seconds between two calls of each, more than 0.
    """

    def __init__(self, snapshot: Callable[[], Progress], sinks: list[tuple[OnProgress, float]]) -> None:
        self._snapshot = snapshot
        self._sinks = sinks
        self._ended = False

    def __repr__(self) -> str:
        return f"<ProgressReporter, {len(self._sinks)} told>"

    @property
    def tells(self) -> bool:
        """Whether there is anybody to tell."""
        return bool(self._sinks)

    async def run(self) -> None:
        """Tell them until cancelled."""
        begun_at = anyio.current_time()
        due = [begun_at + every_s for _, every_s in self._sinks]
        while True:
            await anyio.sleep_until(min(due))
            now = anyio.current_time()
            snapshot = self._snapshot()
            for number, (sink, every_s) in enumerate(self._sinks):
                if due[number] <= now:
                    due[number] = now + every_s
                    _tell(sink, snapshot)

    def end(self) -> None:
        """Tell them how it ended; only the first call has an effect."""
        if self.tells and not self._ended:
            self._ended = True
            snapshot = replace(self._snapshot(), ended=True)
            for sink, _ in self._sinks:
                _tell(sink, snapshot)


def _tell(sink: OnProgress, snapshot: Progress) -> None:
    try:
        sink(snapshot)
    except Exception as error:  # noqa: BLE001 - who watches must not break what is watched
        _logger.error("on_progress raised %s", type(error).__name__)  # noqa: TRY400 - a traceback may show content


def _quota_use(statistics: AdmitStatistics) -> float | None:
    """Return the share of the fullest bucket that is in use, 0 if all is there, 1 if nothing is; `None` without any."""
    bucket = _fullest(statistics)
    return None if bucket is None else _use(bucket)


def _quota_s(statistics: AdmitStatistics) -> float | None:
    """Return the seconds until the fullest bucket has one unit, or one of the keys, all of which cool down, is back."""
    bucket = _fullest(statistics)
    refilled_s = None if bucket is None else max(1 - bucket.available, 0.0) * 60 / bucket.per_minute
    if any(key.state != "cooling" for key in statistics.keys):
        return refilled_s
    return max(refilled_s or 0.0, min((key.again_in_s for key in statistics.keys), default=0.0))


def _fullest(statistics: AdmitStatistics) -> BucketStatistics | None:
    buckets = (
        bucket
        for classes in statistics.quotas.values()
        for buckets in classes.values()
        for bucket in buckets.values()
        if bucket.capacity and math.isfinite(bucket.capacity)
    )
    return max(buckets, key=_use, default=None)


def _use(bucket: BucketStatistics) -> float:
    return 1 - bucket.available / bucket.capacity
