"""The pool of API keys, and the quotas that they spend from.

The rule here: a key's quota is recognised by the headers of its answers; until then each key counts as a quota of its
own. A 401 quarantines the key, a spend cap its quota; one request at a time probes whether that still holds. Nothing
here waits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from penstock.admission.quota import Quarantine, Quota

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Sequence

    from penstock.admission.limits import Cost, Limits
    from penstock.admission.quota import ClassQuota
    from penstock.core.secret import Secret

__all__ = ["Balance", "Choice", "Key", "KeyPool"]

Balance = Literal["round_robin", "random"]


class Key:
    """A key of the pool.

    Args:
        secret: The key itself; `None` for the credentials that the SDK client brings.
        quota: What it spends from.

    Attributes:
        name: How logs and statistics call it.
        quarantine: Holds after a 401.
    """

    __slots__ = ("name", "quarantine", "quota", "secret")

    def __init__(self, secret: Secret | None, quota: Quota) -> None:
        self.secret = secret
        self.name = secret.name if secret is not None else "sdk"
        self.quota = quota
        self.quarantine = Quarantine()

    def __repr__(self) -> str:
        return f"<Key {self.name} of {self.quota.name}{', quarantined' if self.quarantine.active else ''}>"

    def may_use(self, *, now: float) -> bool:
        """Whether it, and its quota, may be used now."""
        return self.quarantine.may_use(now=now) and self.quota.quarantine.may_use(now=now)

    def again_in_s(self, *, now: float) -> float:
        """Return the seconds until it may be used."""
        return max(self.quarantine.again_in_s(now=now), self.quota.quarantine.again_in_s(now=now))


@dataclass(frozen=True, slots=True)
class Choice:
    """What the pool answers: a key to use now, or how long to wait for one.

    Attributes:
        key: The key that can take the whole cost now; `None` if there is none.
        wait_s: Seconds until one can; infinity if only the end of a request under way can tell.
        quarantined: Whether every key is quarantined, so that `wait_s` is until the next probe.
        cooling: Whether the wait is for a cool-down that the API asked for.
    """

    key: Key | None
    wait_s: float = 0.0
    quarantined: bool = False
    cooling: bool = False


class KeyPool:
    """Chooses a key for each request.

    Args:
        secrets: The keys; `None` stands for the credentials that the SDK client brings.
        configured: Gives the limits configured for a model class.
        balance: `"round_robin"` or `"random"`.
        rng: Source of chance for `"random"`.
    """

    def __init__(
        self,
        secrets: Sequence[Secret | None],
        *,
        configured: Callable[[str], Limits],
        balance: Balance,
        rng: random.Random,
    ) -> None:
        self._configured = configured
        self._balance = balance
        self._rng = rng
        self._next = 0
        self.quotas: dict[str, Quota] = {}
        self.keys: list[Key] = []
        for secret in dict.fromkeys(secrets):
            name = secret.name if secret is not None else "sdk"
            self.keys.append(Key(secret, self._quota(name)))

    def __repr__(self) -> str:
        return f"<KeyPool {self.keys}>"

    def _quota(self, name: str) -> Quota:
        quota = self.quotas.get(name)
        if quota is None:
            quota = self.quotas[name] = Quota(name, self._configured)
        return quota

    def choose(self, model_class: str, cost: Cost, *, now: float) -> Choice:
        """Return a key that can take `cost` now, or how long to wait for one.

        Raises:
            RequestExceedsQuota: No usable key's quota can ever hold the cost.
        """
        usable = [key for key in self._in_order() if key.may_use(now=now)]
        if len(usable) < len(self.keys):
            probe_s = min(key.again_in_s(now=now) for key in self.keys if not key.may_use(now=now))
            if not usable:
                return Choice(None, probe_s, quarantined=True)
        else:
            probe_s = math.inf
        shortest = math.inf
        cooling = False
        for key in usable:
            allowance = key.quota.of_class(model_class)
            wait = allowance.wait_s(cost, now=now)
            if wait == 0.0:
                return Choice(key)
            if wait < shortest:
                shortest, cooling = wait, allowance.cooling_until - now >= wait
        if shortest == math.inf:
            self._too_large(usable, model_class, cost)
        # A key to be probed sooner than the others are free may turn out to work.
        return Choice(None, min(shortest, probe_s), cooling=cooling and shortest <= probe_s)

    def _in_order(self) -> list[Key]:
        if len(self.keys) < 2:
            return self.keys
        if self._balance == "random":
            return self._rng.sample(self.keys, len(self.keys))
        start = self._next % len(self.keys)
        return self.keys[start:] + self.keys[:start]

    def _too_large(self, usable: list[Key], model_class: str, cost: Cost) -> None:
        for key in usable:
            key.quota.of_class(model_class).check(cost)

    def use(self, key: Key) -> bool:
        """Note that `key` was chosen; True if its request is a probe."""
        if self._balance == "round_robin":
            self._next = self.keys.index(key) + 1
        on_key = key.quarantine.probe()
        return key.quota.quarantine.probe() or on_key

    def recognise(self, key: Key, quota_id: str | None) -> bool:
        """Take in which quota an answer says that `key` belongs to; True if that was news.

        What the key has under way is settled with the quota that it was taken from; headers correct the rest.
        """
        if quota_id is None or key.quota.name == quota_id:
            return False
        before = key.quota
        known = self.quotas.get(quota_id)
        if known is None and all(other.quota is not before for other in self.keys if other is not key):
            # The key's own provisional quota turns out to be this one: keep its buckets and what is in flight.
            del self.quotas[before.name]
            before.name = quota_id
            self.quotas[quota_id] = before
            return True
        key.quota = self._quota(quota_id)
        if all(other.quota is not before for other in self.keys):
            del self.quotas[before.name]
            for model_class, allowance in before.classes.items():
                key.quota.of_class(model_class).cool_down(until=allowance.cooling_until)
        return True

    def others(self, key: Key, *, now: float) -> bool:
        """Whether another key than `key` may be used now."""
        return any(other is not key and other.may_use(now=now) for other in self.keys)

    def class_quota(self, key: Key, model_class: str) -> ClassQuota:
        """Return what `key` may spend on a model class."""
        return key.quota.of_class(model_class)
