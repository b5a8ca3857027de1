"""Admission: each attempt waits in one line and, at its front, takes quota, slot and key, all or nothing.

The rule here: what is taken is given back by one synchronous function when the attempt ends, settled with what was
really used. What may have been billed stays spent, at the estimate or at what was seen, whichever is more; only what
was certainly not processed is refunded.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast

import anthropic
import anyio
from anthropic import APIRequest, Middleware, omit
from pydantic import Field

from penstock.admission.estimate import Estimator, characters_of
from penstock.admission.keys import Balance, KeyPool
from penstock.admission.limits import Cost, LimitHeaders, Limits, limits_for
from penstock.admission.line import Grant, Line, Slots
from penstock.core.attempt import Attempt, CallNext, Response, http_response_of, open_attempt
from penstock.core.events import KeyChanged, LimitsLearned, Observers, QuotaCooled
from penstock.core.failure import FailureKind
from penstock.core.kind import RequestKind
from penstock.core.options import Options, options_from
from penstock.core.secret import Secret, bearer
from penstock.errors import AdmissionTimeout

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from penstock.admission.keys import Key
    from penstock.admission.quota import BucketStatistics, Quota
    from penstock.core.call import Call

__all__ = ["Admit", "AdmitOptions", "AdmitStatistics", "KeyStatistics"]

_CREDENTIALS = frozenset({"authorization", "x-api-key"})
_NOTHING = Cost(0, 0, 0)
_COUNT_TOKENS = "count_tokens"


class AdmitOptions(Options):
    """How requests are admitted.

    Args:
        limits: Limits per minute for each quota and model class, for all models or by model pattern
            (`{"claude-haiku-*": Limits(…)}`, the first match holds); what is left out is learned from answers.
        concurrency: Requests under way at once, 1 or more.
        max_queued: The most that may wait; `None` for no bound.
        queue_timeout_s: Seconds that a request may wait; `None` for no bound but the call's deadline.
        balance: How a key is chosen: `"round_robin"` or `"random"`.
    """

    limits: Limits | dict[str, Limits] | None = None
    concurrency: int = Field(default=64, ge=1)
    max_queued: int | None = Field(default=None, ge=0)
    queue_timeout_s: float | None = Field(default=None, gt=0)
    balance: Balance = "round_robin"


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyStatistics:
    """A key at one moment.

    Attributes:
        name: `key-` and 8 hex digits of its SHA-256.
        quota: The quota that it spends from.
        state: `ok`, `cooling` (some model class of its quota) or `quarantined`.
        again_in_s: Seconds until a quarantined key is probed.
    """

    name: str
    quota: str
    state: str
    again_in_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class AdmitStatistics:
    """The line, the keys and the quotas at one moment.

    Attributes:
        concurrency: Slots in all.
        slots_used: Slots in use.
        waiting: Requests waiting, by model class.
        admitted: Requests admitted so far.
        waited_s: Seconds that they waited, all together.
        longest_wait_s: The longest wait.
        keys: Every key of the pool.
        quotas: Buckets by quota, model class and name.
    """

    concurrency: int
    slots_used: int
    waiting: dict[str, int]
    admitted: int
    waited_s: float
    longest_wait_s: float
    keys: tuple[KeyStatistics, ...]
    quotas: dict[str, dict[str, dict[str, BucketStatistics]]]


class _Reservation:
    """What one attempt took, and how it is given back."""

    __slots__ = ("_admit", "_characters", "_grant", "_model_class")

    def __init__(self, admit: Admit, grant: Grant, model_class: str, characters: float) -> None:
        self._admit = admit
        self._grant = grant
        self._model_class = model_class
        self._characters = characters

    @property
    def key(self) -> Key:
        return self._grant.key

    @property
    def model_class(self) -> str:
        return self._model_class

    def give_back(self, attempt: Attempt) -> None:
        """Settle with what was really used, and let the next in."""
        grant = self._grant
        grant.allowance.settle(grant.cost, self._used(attempt))
        usage = attempt.usage
        if attempt.ok and usage is not None and not usage.estimated and attempt.call.kind is RequestKind.MESSAGES:
            self._admit.estimator.learn(attempt.call.model, self._characters, usage)
        self._admit.line.leave(grant)
        self._admit.line.wake()

    def _used(self, attempt: Attempt) -> Cost:
        cost, usage = self._grant.cost, attempt.usage
        if not attempt.may_be_billed:
            return _NOTHING
        if usage is None:
            return cost
        if usage.estimated:
            return Cost(
                cost.requests,
                max(cost.input_tokens, usage.rate_limited_input_tokens),
                max(cost.output_tokens, usage.output_tokens),
            )
        return Cost(cost.requests, usage.rate_limited_input_tokens, usage.output_tokens)


class Admit(Middleware):
    """Lets each attempt wait for its share of the quota, a slot and a key, and settles with what it really used.

    Used alone it governs the client's own credentials. All models that share a pool of limits share a line.

    Args:
        options: Or give its fields as keywords: `Admit(limits=Limits(requests_per_minute=50), concurrency=8)`.
        keys: API keys to choose from; empty to leave the client's own credentials in place, counted as one key.
        observers: Told of limits learned, cool-downs and quarantines.
        rng: Source of chance.

    Raises:
        pydantic.ValidationError: A bad option.

    Example:
        >>> from anthropic import AsyncAnthropic
        >>> from penstock import Admit, Limits
        >>> client = AsyncAnthropic(
        ...     api_key="…", max_retries=0, middleware=[Admit(limits=Limits(requests_per_minute=50))]
        ... )
    """

    def __init__(
        self,
        options: AdmitOptions | None = None,
        *,
        keys: Sequence[Secret] = (),
        observers: Observers = Observers(),  # noqa: B008 - has no state when empty
        rng: random.Random | None = None,
        **fields: object,
    ) -> None:
        self.options = options_from(AdmitOptions, options, fields)
        self.estimator = Estimator()
        self._observers = observers
        self._rng = rng or random.Random()
        self._models: dict[str, str] = {}
        self._admitted = 0
        self._waited_s = 0.0
        self._longest_wait_s = 0.0
        self._slots = Slots(self.options.concurrency)
        self.use_keys(keys)

    def __repr__(self) -> str:
        return f"<Admit {self.line}, {self.pool}>"

    def use_keys(self, keys: Sequence[Secret]) -> None:
        """Set the keys, before the first request."""
        self.pool = KeyPool(keys or (None,), configured=self._configured, balance=self.options.balance, rng=self._rng)
        self.line = Line(self.pool, self._slots, max_queued=self.options.max_queued)

    def _configured(self, model_class: str) -> Limits:
        if model_class == _COUNT_TOKENS:
            return Limits()
        return limits_for(self._models.get(model_class, model_class), self.options.limits)

    async def handle_async(self, request: APIRequest, call_next: CallNext) -> Response:
        """Wait, send with the key that was given, and take in what the answer says of the quota."""
        with open_attempt(request) as attempt:
            if not _CREDENTIALS.isdisjoint(name.lower() for name in request.headers):
                # A call that brings its own credentials spends from a quota that isn't ours.
                attempt.sent = True
                return await attempt.send(request, call_next)
            if attempt.call.kind is RequestKind.OTHER:
                return await self._send_unlimited(request, attempt, call_next)
            reservation = await self._reserve(request, attempt)
            attempt.push(reservation.give_back)
            response = await self._send(request, attempt, reservation.key, call_next)
            self._take_in(response, attempt, reservation)
            return response

    async def _reserve(self, request: APIRequest, attempt: Attempt) -> _Reservation:
        call = attempt.call
        body = request.json
        characters = characters_of(body)
        if call.kind is RequestKind.MESSAGES:
            model_class = call.model_class
            self._models.setdefault(model_class, call.model)
            cost = self.estimator.cost_of(call.model, characters, _max_tokens(body))
        else:
            model_class, cost = _COUNT_TOKENS, Cost(1)
        if call.place is None:
            call.place = self.line.next_place()
        grant = await self._wait(call, model_class, cost)
        attempt.queued_s = grant.queued_s
        attempt.key = grant.key.name
        self._admitted += 1
        self._waited_s += grant.queued_s
        self._longest_wait_s = max(self._longest_wait_s, grant.queued_s)
        return _Reservation(self, grant, model_class, characters)

    async def _wait(self, call: Call, model_class: str, cost: Cost) -> Grant:
        place = call.place if call.place is not None else 0
        timeout_s = self.options.queue_timeout_s
        call.waiting = True
        try:
            if timeout_s is None:
                return await self.line.enter(model_class, cost, place=place, deadline=call.deadline)
            with anyio.move_on_after(timeout_s):
                return await self.line.enter(model_class, cost, place=place, deadline=call.deadline)
        finally:
            # A deadline that passes while it waits is told apart from one that passes under way; see Call.cut_short.
            call.waiting = call.overdue
        raise AdmissionTimeout(
            f"not admitted within queue_timeout_s={timeout_s:g}; nothing was sent. "
            "Allow more time, or raise the limits or concurrency.",
            retry_after_s=timeout_s,
        )

    async def _send(self, request: APIRequest, attempt: Attempt, key: Key, call_next: CallNext) -> Response:
        attempt.sent = True
        return await attempt.send(_with_key(request, key.secret), call_next)

    async def _send_unlimited(self, request: APIRequest, attempt: Attempt, call_next: CallNext) -> Response:
        """Send what no limit of ours applies to, with the first key that may be used."""
        now = anyio.current_time()
        key = next((key for key in self.pool.keys if key.may_use(now=now)), self.pool.keys[0])
        attempt.key = key.name
        response = await self._send(request, attempt, key, call_next)
        if attempt.failure is not None and attempt.failure.kind is FailureKind.AUTHENTICATION:
            self._refused(key, attempt, now=anyio.current_time())
            self.line.wake()
        return response

    def _take_in(self, response: Response, attempt: Attempt, reservation: _Reservation) -> None:
        """Take in what an answer says of its key and quota."""
        http = http_response_of(response)
        if http is None:
            return
        key, model_class, now = reservation.key, reservation.model_class, anyio.current_time()
        headers = LimitHeaders.read(http.headers.raw)
        self.pool.recognise(key, headers.quota_id)
        failure = attempt.failure
        if failure is None or headers.limits:
            self._learn(key.quota, model_class, headers)
        if failure is None:
            self._works(key)
        elif failure.kind is FailureKind.RATE_LIMITED and failure.retry_after_s is not None:
            if key.quota.of_class(model_class).cool_down(until=now + failure.retry_after_s):
                self._observers.emit(
                    QuotaCooled(quota=key.quota.name, model_class=model_class, seconds=failure.retry_after_s)
                )
            self._fail_over(key, attempt, model_class, now=now)
        elif failure.kind is FailureKind.SPEND_CAP:
            key.quota.quarantine.begin(now=now)
            self._changed(key, "quarantined", "spend limit reached", key.quota.quarantine.again_in_s(now=now))
            self._fail_over(key, attempt, model_class, now=now)
        elif failure.kind is FailureKind.AUTHENTICATION:
            self._refused(key, attempt, now=now)
        # What was learned may let others in long before this body ends.
        self.line.wake()

    def _learn(self, quota: Quota, model_class: str, headers: LimitHeaders) -> None:
        allowance = quota.of_class(model_class)
        if allowance.learn(headers) and self._observers:
            rates = {f"{name}_per_minute": bucket.per_minute for name, bucket in allowance.buckets.items()}
            known = {f"{name}_per_minute": rates.get(f"{name}_per_minute") for name in Cost.NAMES}
            self._observers.emit(LimitsLearned(quota=quota.name, model_class=model_class, **known))

    def _works(self, key: Key) -> None:
        for quarantine in (key.quarantine, key.quota.quarantine):
            if quarantine.active:
                quarantine.end()
                self._changed(key, "ok", "accepted again", None)

    def _refused(self, key: Key, attempt: Attempt, *, now: float) -> None:
        """A 401: quarantine the key, and have the call tried with another if there is one."""
        key.quarantine.begin(now=now)
        again_s = key.quarantine.again_in_s(now=now)
        self._changed(key, "quarantined", "authentication failed", again_s)
        if self.pool.others(key, now=now) and attempt.failure is not None:
            attempt.failure = replace(attempt.failure, should_retry=True)
        else:
            attempt.call.notes.append(
                f"{key.name} was refused and no other key is left; it is tried again in {again_s:.0f} s"
            )

    def _fail_over(self, key: Key, attempt: Attempt, model_class: str, *, now: float) -> None:
        """Let a call whose quota is spent go to another quota at once: the line knows how long this one must rest."""
        ready = [other for other in self.pool.keys if other.quota is not key.quota and other.may_use(now=now)]
        if attempt.failure is not None and any(
            other.quota.of_class(model_class).cooling_until <= now for other in ready
        ):
            attempt.failure = replace(attempt.failure, kind=FailureKind.RATE_LIMITED, retry_after_s=None)

    def _changed(self, key: Key, state: str, reason: str, again_s: float | None) -> None:
        self._observers.emit(KeyChanged(key=key.name, state=state, reason=reason, again_s=again_s))

    def statistics(self) -> AdmitStatistics:
        """Return the line, the keys and the quotas as they stand now; needs the event loop that they live in."""
        now = anyio.current_time()
        return AdmitStatistics(
            concurrency=self._slots.total,
            slots_used=self._slots.used,
            waiting=self.line.lengths(),
            admitted=self._admitted,
            waited_s=self._waited_s,
            longest_wait_s=self._longest_wait_s,
            keys=tuple(_key_statistics(key, now) for key in self.pool.keys),
            quotas={
                quota.name: {name: allowance.statistics() for name, allowance in quota.classes.items()}
                for quota in self.pool.quotas.values()
            },
        )


def _key_statistics(key: Key, now: float) -> KeyStatistics:
    quarantined = key.quarantine.active or key.quota.quarantine.active
    cooling = any(allowance.cooling_until > now for allowance in key.quota.classes.values())
    state = "quarantined" if quarantined else "cooling" if cooling else "ok"
    return KeyStatistics(name=key.name, quota=key.quota.name, state=state, again_in_s=key.again_in_s(now=now))


def _with_key(request: APIRequest, secret: Secret | None) -> APIRequest:
    """Return the request with a key of ours; the body is shared, not copied (`APIRequest.copy` copies it deeply)."""
    if secret is None:
        return request
    headers: dict[str, str | anthropic.Omit] = {**request.headers, "Authorization": bearer(secret), "X-Api-Key": omit}
    options = request.options.model_copy()
    options.headers = headers
    return APIRequest(
        options=options,
        cast_to=request.cast_to,
        stream=request.stream,
        stream_cls=request.stream_cls,
        retries_taken=request.retries_taken,
    )


def _max_tokens(body: object) -> object:
    return cast("Mapping[str, object]", body).get("max_tokens") if isinstance(body, dict) else None
