"""Retries: a failed attempt is repeated while that may help, and while a quota shared by all calls leaves room for it.

The rule here: an attempt is over, and its answer closed, before the next begins. Whether and when that is follows from
the failure, the clock and chance alone.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, cast

import anthropic
import anyio
import httpx2

from penstock._core.attempt import http_response_of, open_attempt
from penstock._core.call import open_call
from penstock._core.chance import CHANCE
from penstock._core.failure import FailureKind, failure_of_exception, was_dropped
from penstock._core.network import network_problem
from penstock._core.options import options_from
from penstock.events import Observers, RetryScheduled
from penstock.guards.retry.course import Course, RetryOptions, Stop
from penstock.guards.retry.outcome import Outcome
from penstock.guards.retry.quota import FIRST, RetryQuota

if TYPE_CHECKING:
    import random

    from anthropic import APIRequest

    from penstock._core.attempt import Attempt, CallNext, Response
    from penstock._core.body.body import Beginning
    from penstock._core.call import Call
    from penstock._core.failure import Failure
    from penstock.guards.retry.quota import Charge

__all__ = ["Retry", "RetryStatistics"]

_NO_OBSERVERS: Final = Observers()
# A connection that was not kept is closed as the request comes; later, a server has let go of what it had begun.
_AT_ONCE_S: Final = 2.0
# The SDK marks how its caller wants the answer by this header; with "stream", the caller reads the body himself.
_RAW_RESPONSE: Final = "X-Stainless-Raw-Response"


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryStatistics:
    """The retry quota and what was made of it.

    Attributes:
        quota: What is left of it.
        capacity: What it holds when full.
        waiting: Items of fan-outs that wait for it now.
        delayed: Calls that failed and wait for their next attempt, those among them.
        retries: Retries made so far.
        exhausted: How often it had nothing left for a retry.
    """

    quota: int
    capacity: int
    waiting: int
    delayed: int
    retries: int
    exhausted: int


class Retry(anthropic.Middleware):
    """Repeats failed attempts with exponential back-off and full jitter; see `RetryOptions` for how often.

    What is retried: connection errors, time-outs, 408, 409, 429 (except spend limits), 5xx, and what the server asks to
    be (`x-should-retry`). What fails for one key where another can serve is sent again at once, and so is, once in a
    call, what fails with a connection that was closed as the request came; neither is a retry. `retry-after` is obeyed,
    up to the call's deadline and `max_retry_after_s`. A stream is retried until it has brought content: so it is held
    back until then, for at most `hold_s` seconds, and handed on byte for byte. Without a `penstock.Client`, that time
    is looked at only when bytes arrive. Refusals of other guards are final, except that items of a fan-out wait for the
    circuit breaker.

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
        self._rng = CHANCE if rng is None else rng
        self._quota = _quota_of(self._options)
        self._retries = 0
        self._delayed = 0

    def __repr__(self) -> str:
        return f"<Retry up to {self._options.max_attempts} attempts, {self._retries} retries, {self._quota!r}>"

    def statistics(self) -> RetryStatistics:
        """Return the state of the quota and the counts so far."""
        quota = self._quota
        return RetryStatistics(
            quota=quota.left,
            capacity=quota.capacity,
            waiting=quota.waiting,
            delayed=self._delayed,
            retries=self._retries,
            exhausted=quota.exhausted,
        )

    async def handle_async(self, request: APIRequest, call_next: CallNext) -> Response:
        """Send `request` on until it succeeds or nothing speaks for another attempt."""
        with open_call(request) as call:
            bare = request.cast_to is httpx2.Response
            if bare:
                request = _wrapped(request)
            course, charge = self._course(call, request), FIRST
            while True:
                outcome = await self._try(_numbered(request, course.attempts), call_next, course)
                failure = outcome.failure
                if failure is None:
                    self._quota.give_back(charge.reward)
                    return http_response_of(outcome.response) if bare else outcome.response
                following = await self._next(course, outcome, failure, charge)
                if isinstance(following, Stop):
                    return await outcome.conclude(_note(call, course, outcome, following))
                charge = following

    def _course(self, call: Call, request: APIRequest) -> Course:
        patience, retries = call.patience, request.max_retries
        most = self._options.max_attempts if patience is None else patience.max_attempts
        if isinstance(retries, int):
            # Said for this request alone; what must not be repeated isn't.
            most = retries + 1 if patience is None else min(most, retries + 1)
        return Course(
            self._options,
            self._rng,
            # The SDK repeats the request itself: two loops would multiply.
            max_attempts=1 if request.retries_taken else most,
            deadline=call.deadline,
            patient=patience is not None,
        )

    async def _try(self, request: APIRequest, call_next: CallNext, course: Course) -> Outcome:
        with open_attempt(request) as attempt:
            try:
                response = await attempt.send(request, call_next)
            except Exception as error:  # noqa: BLE001 - raised again unless another attempt follows
                attempt.failure = attempt.failure or failure_of_exception(error)
                if _closed_at_once(attempt, error) and course.may_drop():
                    attempt.failure = replace(attempt.failure, dropped=True)
                return Outcome(attempt, None, attempt.failure, error)
            http = http_response_of(response)
            if http is None:
                return Outcome(attempt, response, attempt.failure, None)
            begins = await attempt.begin(http, hold_s=self._hold_s(request))
            return Outcome(attempt, response, begins.failure, None if _is_kept(begins, request) else begins.error)

    def _hold_s(self, request: APIRequest) -> float:
        return math.inf if request.headers.get(_RAW_RESPONSE) == "stream" else self._options.hold_s

    async def _next(self, course: Course, outcome: Outcome, failure: Failure, charge: Charge) -> Charge | Stop:
        """Wait until the next attempt may start, and return what it has paid."""
        if failure.kind is FailureKind.REFUSED:
            self._quota.give_back(charge.paid)
            charge = charge.unpaid()
        started_at = anyio.current_time()
        step = course.after(failure, outcome.error, started_at)
        if isinstance(step, Stop):
            return step
        following = charge if step.free else None
        if following is None and not course.patient and (following := self._quota.take(failure)) is None:
            return Stop("the retry quota is empty")
        self._delayed += 1
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
        finally:
            self._delayed -= 1
        if failure.kind is FailureKind.REFUSED:
            # Nothing was sent, so it was no attempt.
            outcome.attempt.call.attempts -= 1
        else:
            self._retries += 1
        return following

    async def _line_up(self, failure: Failure) -> Charge:
        """Wait in line for the quota."""
        quota = self._quota
        waiter = quota.join(failure)
        try:
            while True:
                now = anyio.current_time()
                charge = quota.ask(waiter, now)
                if charge is not None:
                    return charge
                waiter.woken = anyio.Event()
                with anyio.move_on_after(quota.wait_s(waiter, now)):
                    await waiter.woken.wait()
        finally:
            quota.leave(waiter)

    def _announce(self, attempt: Attempt, failure: Failure, delay_s: float) -> None:
        reason = "circuit_open" if failure.kind is FailureKind.REFUSED else failure.kind.value
        asked_s, most_s = failure.retry_after_s, self._options.max_retry_after_s
        self._observers.emit(
            RetryScheduled(
                call_id=attempt.call.id,
                attempt=attempt.number,
                delay_s=delay_s,
                reason=reason,
                disbelieved_s=None if asked_s is None or asked_s <= most_s else asked_s,
            )
        )


def _closed_at_once(attempt: Attempt, error: Exception) -> bool:
    sent_at = attempt.started_at + attempt.queued_s
    return was_dropped(error) and not attempt.answered and attempt.call.clock() - sent_at < _AT_ONCE_S


def _wrapped(request: APIRequest) -> APIRequest:
    """Have a bare HTTP response come as the others do: the SDK raises nothing for one that failed."""
    wrapped = copy.copy(request)
    wrapped.cast_to = anthropic.AsyncAPIResponse[httpx2.Response]
    return wrapped


def _is_kept(begins: Beginning, request: APIRequest) -> bool:
    """Whether an answer that broke off is for its reader all the same.

    A thread of the beta keeps account of its turns: what was asked in one that has begun is not taken back.
    """
    if begins.failure is None or begins.failure.kind is not FailureKind.CONNECTION:
        return False
    body = request.json
    return isinstance(body, dict) and "thread" in cast("dict[str, object]", body)


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
    if outcome.error is not None and (problem := network_problem(outcome.error)) is not None:
        notes.append(problem)
    return "; ".join(notes) or None


def _tried(call: Call, course: Course, stop: Stop) -> str:
    attempts = "1 attempt" if course.attempts == 1 else f"{course.attempts} attempts"
    return f"{attempts} in {anyio.current_time() - call.started_at:.3g} s; {stop.why}"
