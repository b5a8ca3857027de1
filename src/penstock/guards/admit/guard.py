"""Admission: each attempt waits in one line and, at its front, takes quota, slot and key, all or nothing.

The rule here: what is taken is given back by one synchronous function when the attempt ends, settled with what was
really used. What may have been billed stays spent, at the estimate or at what was seen, whichever is more; only what
was certainly not processed is refunded.
"""

from __future__ import annotations

import asyncio
import copy
from functools import partial
from typing import TYPE_CHECKING, cast

import anthropic
import anyio
import httpx2
from anthropic import APIRequest, Middleware, omit

from penstock._core.attempt import Attempt, CallNext, Response, brings_credentials, http_response_of, open_attempt
from penstock._core.chance import CHANCE
from penstock._core.context import current_pin
from penstock._core.durations import Durations
from penstock._core.failure import MOST_BELIEVED_S, FailureKind
from penstock._core.kind import RequestKind
from penstock._core.options import options_from
from penstock._core.secret import Secret, bearer
from penstock._core.size import Size, size_of
from penstock.errors import AdmissionTimeout
from penstock.events import Observers, UsageDisbelieved
from penstock.guards.admit.estimate import Estimator
from penstock.guards.admit.feedback import Feedback
from penstock.guards.admit.keys import KeyPool
from penstock.guards.admit.limits import Cost, LimitHeaders, Limits, limits_for
from penstock.guards.admit.line import Claim, Grant, Line
from penstock.guards.admit.options import PRIORITY_WEIGHTS, AdmitOptions
from penstock.guards.admit.slots import Slots
from penstock.guards.admit.statistics import AdmitStatistics, KeyStatistics

if TYPE_CHECKING:
    import random
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from penstock._core.call import Call
    from penstock._core.failure import Failure
    from penstock._core.usage import Usage
    from penstock.guards.admit.fair_queue import Place
    from penstock.guards.admit.keys import Key

__all__ = ["Admit", "AdmitOptions"]

_NOTHING = Cost(0, 0, 0)
_COUNT_TOKENS = "count_tokens"
_NO_OBSERVERS = Observers()


class _Reservation:
    """What one attempt took, and how it is given back."""

    __slots__ = ("_admit", "_size", "grant", "model_class")

    def __init__(self, admit: Admit, grant: Grant, model_class: str, size: Size) -> None:
        self._admit = admit
        self._size = size
        self.grant = grant
        self.model_class = model_class

    def give_back(self, attempt: Attempt) -> None:
        """Settle with what was really used, and let the next in."""
        grant, usage, call = self.grant, attempt.usage, attempt.call
        if usage is not None and call.kind is RequestKind.MESSAGES:
            if not self._admit.estimator.believes(self._size, usage):
                self._admit.disbelieve(attempt, usage)
                usage = None
            elif attempt.ok and not usage.estimated:
                self._admit.estimator.learn(call.model, self._size, usage)
        grant.allowance.settle(grant.cost, self._used(attempt, usage))
        self._admit.ended(grant, attempt.failure)

    def _used(self, attempt: Attempt, usage: Usage | None) -> Cost:
        cost = self.grant.cost
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
        max_retry_after_s: Seconds that a 429 may ask the quota to rest, above 0; one that asks for more speaks for its
            own request only.

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
        observers: Observers = _NO_OBSERVERS,
        rng: random.Random | None = None,
        max_retry_after_s: float = MOST_BELIEVED_S,
        **fields: object,
    ) -> None:
        self._max_retry_after_s = max_retry_after_s
        self.options = options_from(AdmitOptions, options, fields)
        self.estimator = Estimator()
        self._observers = observers
        self._rng = CHANCE if rng is None else rng
        self._models: dict[str, str] = {}
        self._waits = Durations()
        self._clock: Callable[[], float] | None = None
        self._slots = _slots(self.options)
        self._priorities = {**PRIORITY_WEIGHTS, **self.options.priority_weights}
        self.use_keys(keys)

    def __repr__(self) -> str:
        return f"<Admit {self.line}, {self.pool}>"

    def use_keys(self, keys: Sequence[Secret], *, carried: Secret | None = None) -> None:
        """Set the keys, before the first request; `pool.add` and `pool.retire` change them later.

        Args:
            keys: To choose from; empty for what the client brings.
            carried: The one that the SDK client sends by itself, so that its requests needn't be changed.
        """
        options = self.options
        self.pool = KeyPool(
            keys or (None,),
            configured=self._configured,
            balance=options.balance,
            rng=self._rng,
            weights=options.key_weights,
        )
        if carried is not None:
            for key in self.pool.keys:
                key.carried = key.secret == carried
        self.line = Line(self.pool, self._slots, max_queued=options.max_queued)
        self._feedback = Feedback(
            self.pool,
            scope=options.quota_scope,
            observers=self._observers,
            max_retry_after_s=self._max_retry_after_s,
        )

    def _configured(self, model_class: str) -> Limits:
        if model_class == _COUNT_TOKENS:
            return Limits()
        return limits_for(self._models.get(model_class, model_class), self.options.limits)

    async def handle_async(self, request: APIRequest, call_next: CallNext) -> Response:
        """Wait, send with the key that was given, and take in what the answer says of the quota."""
        with open_attempt(request) as attempt:
            self._clock = attempt.call.clock
            if attempt.call.kind is RequestKind.OTHER:
                request = _at_base_url(request)
            if brings_credentials(request.headers):
                # A call that brings its own credentials spends from a quota that isn't ours.
                attempt.sent = True
                return await attempt.send(request, call_next)
            if attempt.call.kind is RequestKind.OTHER:
                return await self._send_unlimited(request, attempt, call_next)
            reservation = await self._reserve(request, attempt)
            attempt.push(reservation.give_back)
            response = await self._send(request, attempt, reservation.grant.key, call_next)
            if (http := http_response_of(response)) is not None:
                headers = LimitHeaders.read(http.headers.raw)
                self._feedback.take_in(headers, attempt, reservation.grant, reservation.model_class)
                # What was learned may let others in long before this body ends.
                self.line.wake()
            return response

    async def _reserve(self, request: APIRequest, attempt: Attempt) -> _Reservation:
        call = attempt.call
        body = _body(request)
        if call.kind is RequestKind.MESSAGES:
            model_class, size = call.model_class, size_of(body, call.model)
            self._models.setdefault(model_class, call.model)
            estimate = partial(self.estimator.cost, call.model, size, body.get("max_tokens"))
        else:
            model_class, size, estimate = _COUNT_TOKENS, Size(0), None
        grant = await self._wait(call, self._claim(call, model_class, estimate, body))
        call.place = grant.place
        attempt.queued_s = grant.queued_s
        attempt.key = grant.key.name
        self._waits.add(grant.queued_s)
        return _Reservation(self, grant, model_class, size)

    def _claim(
        self, call: Call, model_class: str, estimate: Callable[[], Cost] | None, body: Mapping[str, object]
    ) -> Claim:
        options, labels = self.options, call.labels
        tenant = labels.get(options.fair_by) or _user_of(body)
        priority = labels.get("priority", "default")
        return Claim(
            model_class=model_class,
            cost=Cost(1) if estimate is None else estimate(),
            priority=priority,
            tenant=tenant,
            weight=self._priorities[priority] * options.tenant_weights.get(tenant, 1.0),
            session=labels.get("session"),
            deadline=call.deadline,
            place=cast("Place | None", call.place),
            avoid=call.forbidden,
            estimate=estimate,
        )

    async def _wait(self, call: Call, claim: Claim) -> Grant:
        timeout_s = self.options.queue_timeout_s
        call.waiting = True
        try:
            if timeout_s is None:
                return await self.line.enter(claim)
            with anyio.move_on_after(timeout_s):
                return await self.line.enter(claim)
        finally:
            # A deadline that passes while it waits is told apart from one that passes under way; see Call.cut_short.
            call.waiting = call.overdue
        raise AdmissionTimeout(
            f"not admitted within queue_timeout_s={timeout_s:g}; nothing was sent. "
            "Allow more time, or raise the limits or concurrency.",
            retry_after_s=timeout_s,
        )

    def _send(self, request: APIRequest, attempt: Attempt, key: Key, call_next: CallNext) -> Awaitable[Response]:
        attempt.sent = True
        if not key.carried and key.secret is not None:
            request = _with_key(request, key.secret)
        return attempt.send(request, call_next)

    async def _send_unlimited(self, request: APIRequest, attempt: Attempt, call_next: CallNext) -> Response:
        """Send what no limit of ours applies to, with the first key that may be used where it is pinned to."""
        pin = current_pin()
        key = self.pool.unlimited(pin, now=anyio.current_time())
        if key is None:
            # All were retired: what the client has of its own is all that is left.
            attempt.sent = True
            return await attempt.send(request, call_next)
        attempt.key = key.name
        response = await self._send(request, attempt, key, call_next)
        if pin is not None and attempt.ok and (http := http_response_of(response)) is not None:
            self.pool.recognise(key, LimitHeaders.read(http.headers.raw).quota_id(self.options.quota_scope))
            pin.key, pin.quota = key.name, key.quota.name
        failure = attempt.failure
        # What else is forbidden there, a key or an endpoint, is told by no more than words.
        if failure is not None and failure.of_account and not failure.of_request_maybe:
            self._feedback.refused(key, attempt, failure, now=anyio.current_time(), pin=pin)
            self.line.wake()
        return response

    def disbelieve(self, attempt: Attempt, usage: Usage) -> None:
        """Tell of usage that can't be true; what was estimated stays taken."""
        self._observers.emit(
            UsageDisbelieved(
                call_id=attempt.call.id,
                model=attempt.call.model,
                input_tokens=usage.total_input_tokens,
                output_tokens=usage.output_tokens,
            )
        )

    def ended(self, grant: Grant, failure: Failure | None) -> None:
        """Give a slot back, and let the next in."""
        if failure is None:
            self._slots.succeeded()
        elif failure.kind is FailureKind.OVERLOADED or failure.kind is FailureKind.TIMEOUT:
            # Not anyio's clock: the garbage collector may end an attempt outside of any task.
            self._slots.overloaded(now=asyncio.get_running_loop().time())
        self.line.leave(grant)
        self.line.wake()

    def statistics(self) -> AdmitStatistics:
        """Return the line, the keys and the quotas as they stand now; inside an event loop or outside."""
        now = self._now()
        wait = self._waits.statistics()
        return AdmitStatistics(
            concurrency=self._slots.total,
            slots_used=self._slots.used,
            waiting=self.line.lengths(),
            waiting_by=self.line.lengths_by(),
            admitted=wait.count,
            wait=wait,
            keys=tuple(KeyStatistics.of(key, now=now) for key in self.pool.keys),
            quotas={quota.name: quota.statistics(now=now) for quota in self.pool.quotas.values()},
        )

    def _now(self) -> float:
        try:
            return asyncio.get_running_loop().time()
        except RuntimeError:
            # The time of the loop in which it was used last; before any request, nothing depends on it.
            return 0.0 if self._clock is None else self._clock()


def _slots(options: AdmitOptions) -> Slots:
    if isinstance(options.concurrency, int):
        return Slots(options.concurrency)
    start = min(64, options.max_concurrency)
    return Slots(start, floor=options.min_concurrency, ceiling=options.max_concurrency)


def _with_key(request: APIRequest, secret: Secret) -> APIRequest:
    """Return the request with a key of ours; the body is shared, not copied (`APIRequest.copy` copies it deeply)."""
    headers: dict[str, str | anthropic.Omit] = {**request.headers, "Authorization": bearer(secret), "X-Api-Key": omit}
    keyed = copy.copy(request)
    keyed.options = request.options.model_copy()
    keyed.options.headers = headers
    return keyed


def _at_base_url(request: APIRequest) -> APIRequest:
    """Return a request that names a host as one for the same at `base_url`: credentials are meant for nobody else.

    The SDK asks for a batch's results wherever an answer says that they are.
    """
    if request.url.startswith("/") or not (url := httpx2.URL(request.url)).is_absolute_url:
        return request
    path = url.raw_path.decode("ascii")
    moved = copy.copy(request)
    moved.options = request.options.model_copy()
    # What comes before is where the API is mounted, which `base_url` says as well.
    moved.options.url = path[max(path.find("/v1/"), 0) :]
    return moved


def _body(request: APIRequest) -> Mapping[str, object]:
    body = request.json
    return cast("Mapping[str, object]", body) if isinstance(body, dict) else {}


def _user_of(body: Mapping[str, object]) -> str:
    metadata = body.get("metadata")
    user = cast("Mapping[str, object]", metadata).get("user_id") if isinstance(metadata, dict) else None
    return user if isinstance(user, str) else ""
