"""The pool of API keys, and the quotas that they spend from.

The rule here: a key's quota is recognised by the headers of its answers; until then each key counts as a quota of its
own. A 401 quarantines the key, an account that is refused its quota; one request at a time probes whether that still
holds. Nothing here waits.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from penstock.errors import RequestExceedsQuota
from penstock.guards.admit.quarantine import Quarantine
from penstock.guards.admit.quota import Quota

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Mapping, Sequence

    from penstock._core.context import Pin
    from penstock._core.secret import Secret
    from penstock.guards.admit.limits import Cost, Limits

__all__ = ["Balance", "Choice", "Key", "KeyPool"]

Balance = Literal["headroom", "least_loaded", "round_robin", "random"]

_MOST_SESSIONS = 10_000


class Key:
    """A key of the pool.

    Args:
        secret: The key itself; `None` for the credentials that the SDK client brings.
        quota: What it spends from.
        weight: Its share of the work, more than 0.

    Attributes:
        name: How logs and statistics call it.
        quarantine: Holds after a 401.
        carried: Whether the SDK client sends it by itself.
        in_flight: Requests under way with it.
        turn: What it has served, by weight.
    """

    __slots__ = ("carried", "in_flight", "name", "quarantine", "quota", "secret", "turn", "weight")

    def __init__(self, secret: Secret | None, quota: Quota, weight: float = 1.0) -> None:
        self.secret = secret
        self.name = secret.name if secret is not None else "sdk"
        self.quota = quota
        self.weight = weight
        self.quarantine = Quarantine()
        self.carried = secret is None
        self.in_flight = 0
        self.turn = 0.0

    def __repr__(self) -> str:
        return f"<Key {self.name} of {self.quota.name}{', quarantined' if self.quarantined else ''}>"

    @property
    def quarantined(self) -> bool:
        """Whether it, or its quota, is quarantined."""
        return self.quarantine.active or self.quota.quarantine.active

    def may_use(self, *, now: float) -> bool:
        """Whether it, and its quota, may be used now."""
        return self.quarantine.may_use(now=now) and self.quota.quarantine.may_use(now=now)

    @property
    def reason(self) -> str:
        """Why it, or its quota, is quarantined."""
        return (self.quarantine if self.quarantine.active else self.quota.quarantine).reason

    def again_in_s(self, *, now: float) -> float:
        """Return the seconds until it may be used."""
        return max(self.quarantine.again_in_s(now=now), self.quota.quarantine.again_in_s(now=now))


@dataclass(slots=True)
class Choice:
    """What the pool answers: a key to use now, or how long to wait for one.

    Attributes:
        key: The key that can take the whole cost now; `None` if there is none.
        wait_s: Seconds until one can; infinity if there are no keys at all.
        quarantined: Whether every key is quarantined, so that `wait_s` is until the next probe.
        cooling_s: Seconds that every quota rests for which the API asked; 0 where one doesn't, or is being probed.
    """

    key: Key | None
    wait_s: float = 0.0
    quarantined: bool = False
    cooling_s: float = 0.0


class KeyPool:
    """Chooses a key for each request.

    Args:
        secrets: The keys; `None` stands for the credentials that the SDK client brings.
        configured: Gives the limits configured for a model class.
        balance: `"headroom"`: the quota with the most left; `"least_loaded"`: the key with the fewest requests under
            way; `"round_robin"`; or `"random"`. All but the first two by weight.
        rng: Source of chance for `"random"`.
        weights: By name of the key; 1 where none is given.
    """

    def __init__(
        self,
        secrets: Sequence[Secret | None],
        *,
        configured: Callable[[str], Limits],
        balance: Balance,
        rng: random.Random,
        weights: Mapping[str, float] | None = None,
    ) -> None:
        self._configured = configured
        self._balance = balance
        self._rng = rng
        self._weights = dict(weights or {})
        self._sessions: OrderedDict[str, Quota] = OrderedDict()
        self.quotas: dict[str, Quota] = {}
        self.keys: list[Key] = []
        for secret in dict.fromkeys(secrets):
            self.add(secret)

    def __repr__(self) -> str:
        return f"<KeyPool {self.keys}>"

    def add(self, secret: Secret | None) -> Key:
        """Add a key; one that is there already starts afresh, its quarantine ended."""
        name = secret.name if secret is not None else "sdk"
        for key in self.keys:
            if key.name == name:
                key.quarantine.end()
                return key
        key = Key(secret, self._quota(name), self._weights.get(name, 1.0))
        # It takes its place among the others instead of all the work until it has served as much.
        key.turn = min((other.turn for other in self.keys), default=0.0)
        self.keys.append(key)
        return key

    def retire(self, name: str) -> bool:
        """Use a key no more; what is under way with it goes on. Returns whether there was such a key."""
        for key in self.keys:
            if key.name == name:
                self.keys.remove(key)
                self._drop_unused(key.quota)
                return True
        return False

    def _quota(self, name: str) -> Quota:
        quota = self.quotas.get(name)
        if quota is None:
            quota = self.quotas[name] = Quota(name, self._configured)
        return quota

    def _drop_unused(self, quota: Quota) -> None:
        if all(key.quota is not quota for key in self.keys):
            self.quotas.pop(quota.name, None)

    def choose(
        self, model_class: str, cost: Cost, *, now: float, session: str | None = None, avoid: object = None
    ) -> Choice:
        """Return a key that can take `cost` now, or how long to wait for one.

        Args:
            model_class: What it is for.
            cost: What must be there.
            now: Time of the event loop.
            session: A session keeps to its quota while there is room, because prompt caches live there.
            avoid: A key not to be used while another may be.

        Raises:
            RequestExceedsQuota: No usable key's limits can ever grant the cost.
        """
        able: list[Key] = []
        shortest = probe_s = cooling_s = math.inf
        usable = False
        for key in self.keys:
            if key is avoid and self.others(key, now=now):
                continue
            if not key.may_use(now=now):
                probe_s = min(probe_s, key.again_in_s(now=now))
                continue
            usable = True
            allowance = key.quota.of_class(model_class)
            wait = allowance.wait_s(cost, now=now)
            if wait == 0.0:
                able.append(key)
                continue
            shortest, rests_s = min(shortest, wait), allowance.cooling_s(now=now)
            cooling_s = min(cooling_s, rests_s if rests_s >= wait else 0.0)
        if able:
            return Choice(self._pick(able, model_class, session))
        if not usable:
            return Choice(None, probe_s, quarantined=True)
        # A key to be probed sooner than the others are free may turn out to work.
        return Choice(None, min(shortest, probe_s), cooling_s=cooling_s if cooling_s <= probe_s else 0.0)

    def unlimited(self, pin: Pin | None, *, now: float) -> Key | None:
        """Return the key for what no limit of ours applies to: the first that may be used, of the pin's quota.

        Args:
            pin: Names a key, and the quota whose keys stand in for it; if neither is here, any key will do.
            now: Time of the event loop.
        """
        keys = self._of(pin)
        return next((key for key in keys if key.may_use(now=now)), keys[0] if keys else None)

    def _of(self, pin: Pin | None) -> list[Key]:
        keys = self.keys
        if pin is None:
            return keys
        quota = next((key.quota.name for key in keys if key.name == pin.key), pin.quota)
        own = [key for key in keys if key.quota.name == quota]
        return sorted(own, key=lambda key: key.name != pin.key) or keys

    def check(self, model_class: str, cost: Cost, *, now: float) -> None:
        """Refuse a cost that no usable key could ever take, by the limits that are configured.

        Raises:
            RequestExceedsQuota: So it is.
        """
        error: RequestExceedsQuota | None = None
        for key in self.keys:
            if not key.may_use(now=now):
                continue
            try:
                key.quota.of_class(model_class).check(cost)
            except RequestExceedsQuota as found:
                error = found
            else:
                return
        if error is not None:
            raise error

    def _pick(self, able: list[Key], model_class: str, session: str | None) -> Key:
        if len(able) == 1:
            return able[0]
        if session is not None and (quota := self._sessions.get(session)) is not None:
            able = [key for key in able if key.quota is quota] or able
        if self._balance == "random":
            return self._rng.choices(able, [key.weight for key in able])[0]
        if self._balance == "round_robin":
            return min(able, key=lambda key: key.turn)
        if self._balance == "headroom":
            left = {key.quota.name: key.quota.of_class(model_class).headroom() for key in able}
            if None not in left.values():
                # Of one quota's keys, or of quotas alike, the one whose turn it is.
                return min(able, key=lambda key: (-round(left[key.quota.name] or 0.0, 2), key.turn))
        # A quota of which nothing is known is no better than one that is half spent.
        return min(able, key=lambda key: (key.in_flight / key.weight, key.turn))

    def use(self, key: Key, *, session: str | None = None) -> bool:
        """Note that `key` was chosen; True if its request is a probe."""
        key.in_flight += 1
        key.turn += 1 / key.weight
        if session is not None:
            self._sessions[session] = key.quota
            self._sessions.move_to_end(session)
            if len(self._sessions) > _MOST_SESSIONS:
                self._sessions.popitem(last=False)
        on_key = key.quarantine.probe()
        return key.quota.quarantine.probe() or on_key

    def recognise(self, key: Key, quota_id: str | None) -> bool:
        """Take in which quota an answer says that `key` belongs to; True if that was news.

        What the key has under way is settled with the quota that it was taken from; headers correct the rest.
        """
        if quota_id is None or key.quota.name == quota_id or key not in self.keys:
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
        self._drop_unused(before)
        for model_class, allowance in before.classes.items():
            key.quota.of_class(model_class).rest_with(allowance)
        return True

    def others(self, key: Key, *, now: float, pin: Pin | None = None) -> bool:
        """Whether another key than `key` may be used now, of those that a pin leaves."""
        return any(other is not key and other.may_use(now=now) for other in self._of(pin))
