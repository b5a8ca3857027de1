"""What an answer tells of its key and quota, and what follows from it.

The rule here: an answer that refuses for the key's or the quota's sake is marked to be sent again with another key
where one can serve; where none can, its error says so, and whose it is.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from penstock._core.failure import FailureKind
from penstock.events import KeyChanged, LimitsLearned, QuotaCooled
from penstock.guards.admit.limits import Cost

if TYPE_CHECKING:
    from penstock._core.attempt import Attempt
    from penstock._core.context import Pin
    from penstock._core.failure import Failure
    from penstock.events import Observers
    from penstock.guards.admit.keys import Key, KeyPool
    from penstock.guards.admit.limits import LimitHeaders, QuotaScope
    from penstock.guards.admit.line import Grant

__all__ = ["Feedback"]

_TOO_STEEP = "ramp_limit_exceeded"
# Limits are per minute.
_REST_S = 60.0


class Feedback:
    """Corrects keys and quotas by what answers say.

    Args:
        pool: The keys.
        scope: What shares a quota.
        observers: Told of limits learned, cool-downs and quarantines.
        max_retry_after_s: Seconds that a quota may be asked to rest.
    """

    def __init__(self, pool: KeyPool, *, scope: QuotaScope, observers: Observers, max_retry_after_s: float) -> None:
        self._pool = pool
        self._scope: QuotaScope = scope
        self._observers = observers
        self._max_retry_after_s = max_retry_after_s

    def __repr__(self) -> str:
        return f"<Feedback to {self._pool}>"

    def take_in(self, headers: LimitHeaders, attempt: Attempt, grant: Grant, model_class: str) -> None:
        """Take in what the answer to an attempt says of its key and quota.

        Args:
            headers: Of the answer.
            attempt: What it came to; its failure may be made one to be tried again, with another key.
            grant: What it was let in with, not settled yet.
            model_class: Which line it stood in.
        """
        failure, now = attempt.failure, attempt.call.clock()
        self._pool.recognise(grant.key, headers.quota_id(self._scope))
        if failure is None or headers.limits:
            self._learn(grant, model_class, headers, failure, now)
        if failure is None:
            grant.allowance.works(grant.mark, now=now)
            if grant.probe:
                self._works(grant.key)
        elif failure.kind is FailureKind.RATE_LIMITED:
            self._rate_limited(failure, attempt, grant.key, model_class, now)
        elif failure.of_request_maybe:
            self._forbidden(grant.key, attempt, failure, now=now)
        elif failure.of_account:
            self.refused(grant.key, attempt, failure, now=now)

    def _learn(
        self, grant: Grant, model_class: str, headers: LimitHeaders, failure: Failure | None, now: float
    ) -> None:
        refused_for_s = None
        if failure is not None and failure.kind is FailureKind.RATE_LIMITED and failure.error_code != _TOO_STEEP:
            refused_for_s = self._believed_s(failure) or 0.0
        allowance = grant.allowance
        changed = allowance.learn(headers, grant.mark, grant.cost, now=now, refused_for_s=refused_for_s)
        if changed and self._observers:
            rates = {name: bucket.per_minute for name, bucket in allowance.buckets.items()}
            known = {f"{name}_per_minute": rates.get(name) for name in Cost.NAMES}
            self._observers.emit(LimitsLearned(quota=grant.key.quota.name, model_class=model_class, **known))

    def _rate_limited(self, failure: Failure, attempt: Attempt, key: Key, model_class: str, now: float) -> None:
        allowance, seconds = key.quota.of_class(model_class), self._believed_s(failure)
        if failure.error_code == _TOO_STEEP:
            allowance.ramp.too_steep(now=now)
        if failure.retry_after_s is None:
            # How long to wait is up to the back-off of the one who was refused.
            return
        if seconds is None and self._is_served_elsewhere(key, model_class, now=now):
            # It holds nobody up, and else the next request might choose it again.
            seconds = min(_REST_S, self._max_retry_after_s)
        if seconds is not None and allowance.cool_down(seconds, now=now):
            self._observers.emit(QuotaCooled(quota=key.quota.name, model_class=model_class, seconds=seconds))
        self._fail_over(key, attempt, model_class, now=now)

    def _believed_s(self, failure: Failure) -> float | None:
        """Return how long the quota is to rest; one answer that asks for too long holds nobody else up."""
        seconds = failure.retry_after_s
        return seconds if seconds is None or seconds <= self._max_retry_after_s else None

    def _works(self, key: Key) -> None:
        """A probe succeeded."""
        for quarantine in (key.quarantine, key.quota.quarantine):
            if quarantine.active:
                quarantine.end()
                self._changed(key, "ok", "accepted again", None)

    def refused(self, key: Key, attempt: Attempt, failure: Failure, *, now: float, pin: Pin | None = None) -> None:
        """Quarantine a refused key, or the quota of a refused organization, and have the call go to another."""
        quarantine = key.quarantine if failure.of_key else key.quota.quarantine
        reason = _reason(failure)
        quarantine.begin(now=now, reason=reason)
        again_s = quarantine.again_in_s(now=now)
        self._changed(key, "quarantined", reason, again_s)
        # With none left, nothing that the server says of retries changes that.
        elsewhere = self._pool.others(key, now=now, pin=pin)
        attempt.failure = replace(failure, elsewhere=elsewhere, should_retry=None)
        if not elsewhere:
            attempt.call.notes.append(
                f"{key.name} was refused ({reason}) and no other key is left; it is tried again in {again_s:.0f} s"
            )

    def _forbidden(self, key: Key, attempt: Attempt, failure: Failure, *, now: float) -> None:
        """Have a call that one key may not make go to another, once: if that may not either, it is the call's."""
        call = attempt.call
        if call.forbidden is None and self._pool.others(key, now=now):
            call.forbidden = key
            attempt.failure = replace(failure, elsewhere=True)

    def _fail_over(self, key: Key, attempt: Attempt, model_class: str, *, now: float) -> None:
        """Let a call whose quota is spent go to another quota at once: the line knows how long this one must rest."""
        if attempt.failure is not None and self._is_served_elsewhere(key, model_class, now=now):
            attempt.failure = replace(attempt.failure, kind=FailureKind.RATE_LIMITED, retry_after_s=None)

    def _is_served_elsewhere(self, key: Key, model_class: str, *, now: float) -> bool:
        """Whether another quota than this key's may be used now."""
        ready = [other for other in self._pool.keys if other.quota is not key.quota and other.may_use(now=now)]
        return any(other.quota.of_class(model_class).cooling_until <= now for other in ready)

    def _changed(self, key: Key, state: str, reason: str, again_s: float | None) -> None:
        self._observers.emit(KeyChanged(key=key.name, state=state, reason=reason, again_s=again_s))


def _reason(failure: Failure) -> str:
    """Return why a key or its organization was refused, in words of ours."""
    if failure.kind is FailureKind.AUTHENTICATION:
        return "authentication failed"
    if failure.kind is FailureKind.SPEND_CAP:
        return "spend limit reached"
    return f"{failure.words or 'account refused'}, {failure.status}"
