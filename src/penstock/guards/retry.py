"""Retries: a failed attempt is repeated while that may help, and while a quota shared by all calls leaves room for it.

The rule here: an attempt is over, and its answer closed, before the next begins. Whether and when that is follows from
the failure, the clock and chance alone.
"""

from __future__ import annotations

import copy
import math
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import anthropic
import anyio
from pydantic import Field

from penstock.core.attempt import http_response_of, open_attempt
from penstock.core.call import open_call
from penstock.core.events import Observers, RetryScheduled
from penstock.core.failure import FailureKind, failure_of_exception
from penstock.core.kind import RequestKind
from penstock.core.options import Options, options_from
from penstock.core.outcome import Outcome
from penstock.core.read_ahead import can_read_ahead, read_ahead
from penstock.core.retry_quota import FIRST, RetryQuota
from penstock.errors import CircuitOpen

if TYPE_CHECKING:
    from anthropic import APIRequest

    from penstock.core.attempt import Attempt, CallNext, Response
    from penstock.core.call import Call
    from penstock.core.failure import Failure
    from penstock.core.retry_quota import Fare

__all__ = ["Again", "Course", "Retry", "RetryOptions", "RetryStatistics", "Stop"]

_NO_OBSERVERS: Final = Observers()
# The SDK marks how its caller wants the answer by this header; with "stream", the caller reads the body himself.
_RAW_RESPONSE: Final = "X-Stainless-Raw-Response"


class RetryOptions(Options):
    """How often and when failed attempts are repeated.

    Attributes:
        max_attempts: Attempts for each call, the first included, 1 to 100. Items of a fan-out have their own number.
        base_s: Seconds that the first wait has at most, above 0, at most 3,600; it doubles with every attempt.
        cap_s: Seconds that no wait exceeds unless the server asks for more, above 0, at most 86,400.
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
    hold_s: float = Field(default=10.0, ge=0, le=3_600)
    quota: int = Field(default=500, ge=0, le=1_000_000)
    cost: int = Field(default=14, ge=1)
    throttled_cost: int = Field(default=5, ge=1)
    probe_s: float = Field(default=30.0, gt=0, le=3_600)


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryStatistics:
    """The retry quota and what was made of it.

    Attributes:
        quota: What is left of it.
        capacity: What it holds when full.
        waiting: Items of fan-outs that wait for it now.
        retries: Retries made so far.
        exhausted: How often it had nothing left for a retry.
    """

    quota: int
    capacity: int
    waiting: int
    retries: int
    exhausted: int


@dataclass(frozen=True, slots=True)
class Again:
    """Try again after `delay_s` seconds; `free` of quota if nothing was sent."""

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
        attempts: Attempts so far that count: those that no guard refused.
        patient: Whether it waits for a circuit breaker and for the quota, as items of a fan-out do.

    Example:
        >>> from penstock.core.failure import Failure
        >>> course = Course(RetryOptions(), random.Random(7), max_attempts=2, deadline=60.0)
        >>> failure = Failure(kind=FailureKind.RATE_LIMITED, retry_after_s=90.0)
        >>> course.after(failure, None, now=0.0).why
        'the wait of 90 s would pass the deadline'
    """

    __slots__ = ("_deadline", "_max_attempts", "_options", "_refusals", "_rng", "attempts", "patient")

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
        if self.attempts >= self._max_attempts:
            return Stop("no attempt is left")
        return self._in_time(Again(self._delay_s(self.attempts, failure.retry_after_s)), now)

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


class Retry(anthropic.Middleware):
    """Repeats failed attempts with exponential back-off and full jitter; see `RetryOptions` for how often.

    What is retried: connection errors, time-outs, 408, 409, 429 (except spend limits), 5xx, and what the server asks to
    be (`x-should-retry`). `retry-after` is obeyed, up to the call's deadline. A stream is retried until it has brought
    content: so it is held back until then, for at most `hold_s` seconds, and handed on byte for byte. Without a
    `penstock.Client`, that time is looked at only when bytes arrive. Refusals of other guards are final, except that
    items of a fan-out wait for the circuit breaker.

    There should be one retry loop only: make the SDK's client with `max_retries=0`. If its own retries are on, a final
    answer says `x-should-retry: false`, and a request that the SDK repeats is tried once.

    Args:
        options: How often and when; or give its fields as keywords.
        observers: Told of every retry (`RetryScheduled`).
        rng: Source of jitter.
        **fields: Fields of `RetryOptions`.

    Raises:
        pydantic.ValidationError: A field is unknown or out of range; it is also a `ValueError`.
        TypeError: Both `options` and fields were given.

    Example:
        >>> claude = anthropic.AsyncAnthropic(api_key="…", max_retries=0, middleware=[Retry(max_attempts=5)])
    """

    def __init__(
        self,
        options: RetryOptions | None = None,
        *,
        observers: Observers = _NO_OBSERVERS,
        rng: random.Random | None = None,
        **fields: object,
    ) -> None:
        self._options = options_from(RetryOptions, options, fields)
        self._observers = observers
        self._rng = random.Random() if rng is None else rng
        self._quota = _quota_of(self._options)
        self._retries = 0

    def __repr__(self) -> str:
        return f"<Retry up to {self._options.max_attempts} attempts, {self._retries} retries, {self._quota!r}>"

    def statistics(self) -> RetryStatistics:
        """Return the state of the quota and the counts so far."""
        quota = self._quota
        return RetryStatistics(
            quota=quota.left,
            capacity=quota.capacity,
            waiting=quota.waiting,
            retries=self._retries,
            exhausted=quota.exhausted,
        )

    async def handle_async(self, request: APIRequest, call_next: CallNext) -> Response:
        """Send `request` on until it succeeds or nothing speaks for another attempt."""
        with open_call(request) as call:
            course, fare = self._course(call, request), FIRST
            while True:
                outcome = await self._try(_numbered(request, course.attempts), call_next)
                failure = outcome.failure
                if failure is None:
                    self._quota.give_back(fare.reward)
                    return outcome.response
                following = await self._next(course, outcome, failure, fare)
                if isinstance(following, Stop):
                    return await outcome.conclude(_note(call, course, outcome, following))
                fare = following

    def _course(self, call: Call, request: APIRequest) -> Course:
        patience = call.patience
        most = self._options.max_attempts if patience is None else patience.max_attempts
        return Course(
            self._options,
            self._rng,
            # The SDK repeats the request itself: two loops would multiply.
            max_attempts=1 if request.retries_taken else most,
            deadline=call.deadline,
            patient=patience is not None,
        )

    async def _try(self, request: APIRequest, call_next: CallNext) -> Outcome:
        with open_attempt(request) as attempt:
            try:
                response = await attempt.send(request, call_next)
            except Exception as error:  # noqa: BLE001 - raised again unless another attempt follows
                return Outcome(attempt, None, attempt.failure or failure_of_exception(error), error)
            http = http_response_of(response)
            if attempt.failure is None and http is not None and _is_stream(attempt, request) and can_read_ahead(http):
                ahead = await read_ahead(http, attempt, hold_s=self._hold_s(request))
                return Outcome(attempt, response, ahead.failure, ahead.error)
            return Outcome(attempt, response, attempt.failure, None)

    def _hold_s(self, request: APIRequest) -> float:
        return math.inf if request.headers.get(_RAW_RESPONSE) == "stream" else self._options.hold_s

    async def _next(self, course: Course, outcome: Outcome, failure: Failure, fare: Fare) -> Fare | Stop:
        """Wait until the next attempt may start, and return what it has paid."""
        if failure.kind is FailureKind.REFUSED:
            self._quota.give_back(fare.paid)
        started_at = anyio.current_time()
        step = course.after(failure, outcome.error, started_at)
        if isinstance(step, Stop):
            return step
        following = fare.unpaid() if step.free else None
        if following is None and not course.patient and (following := self._quota.take(failure)) is None:
            return Stop("the retry quota is empty")
        try:
            await outcome.discard()
            if following is None:
                following = await self._line_up(failure)
            delay_s = max(started_at + step.delay_s - anyio.current_time(), 0.0)
            self._announce(outcome.attempt, failure, delay_s)
            await anyio.sleep(delay_s)
        except BaseException:
            if following is not None:
                self._quota.undo(following)
            raise
        if step.free:
            # Nothing was sent, so it was no attempt.
            outcome.attempt.call.attempts -= 1
        else:
            self._retries += 1
        return following

    async def _line_up(self, failure: Failure) -> Fare:
        """Wait in line for the quota."""
        quota = self._quota
        waiter = quota.join(failure)
        try:
            while True:
                now = anyio.current_time()
                fare = quota.ask(waiter, now)
                if fare is not None:
                    return fare
                waiter.woken = anyio.Event()
                with anyio.move_on_after(quota.wait_s(waiter, now)):
                    await waiter.woken.wait()
        finally:
            quota.leave(waiter)

    def _announce(self, attempt: Attempt, failure: Failure, delay_s: float) -> None:
        reason = "circuit_open" if failure.kind is FailureKind.REFUSED else failure.kind.value
        self._observers.emit(
            RetryScheduled(call_id=attempt.call.id, attempt=attempt.number, delay_s=delay_s, reason=reason)
        )


def _is_stream(attempt: Attempt, request: APIRequest) -> bool:
    return request.stream and attempt.call.kind is RequestKind.MESSAGES


def _numbered(request: APIRequest, retries: int) -> APIRequest:
    """Return `request` as the SDK would repeat it, so that the server and the caller see the number of retries."""
    if not retries:
        return request
    again = copy.copy(request)
    again.retries_taken = retries
    return again


def _quota_of(options: RetryOptions) -> RetryQuota:
    return RetryQuota(options.quota, cost=options.cost, throttled_cost=options.throttled_cost, probe_s=options.probe_s)


def _note(call: Call, course: Course, outcome: Outcome, stop: Stop) -> str | None:
    """Return what the error should say besides the API's own words; `None` if nothing."""
    notes = list(call.notes)
    if (outcome.failure is not None and outcome.failure.retryable) or outcome.attempt.number > 1:
        notes.append(_tried(call, course, stop))
    return "; ".join(notes) or None


def _tried(call: Call, course: Course, stop: Stop) -> str:
    attempts = "1 attempt" if course.attempts == 1 else f"{course.attempts} attempts"
    return f"{attempts} in {anyio.current_time() - call.started_at:.3g} s; {stop.why}"
