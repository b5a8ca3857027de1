"""The line, the keys and the quotas as they stand at one moment.

The rule here: frozen values for people and dashboards; keys appear by name only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from penstock._core.durations import DurationStatistics
    from penstock.guards.admit.keys import Key
    from penstock.guards.admit.quota import BucketStatistics

__all__ = ["AdmitStatistics", "KeyStatistics"]


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyStatistics:
    """A key at one moment.

    Attributes:
        name: `key-` and 8 hex digits of its SHA-256; `sdk` for credentials that an SDK client brought.
        quota: The quota that it spends from.
        state: `ok`, `cooling` (some model class of its quota) or `quarantined`.
        again_in_s: Seconds until a quarantined key is probed, or a cooling one may be used again; 0 for others.
        in_flight: Requests under way with it.
    """

    name: str
    quota: str
    state: str
    again_in_s: float
    in_flight: int

    @classmethod
    def of(cls, key: Key, *, now: float) -> KeyStatistics:
        """Look at a key."""
        cooling_s = max((allowance.cooling_until - now for allowance in key.quota.classes.values()), default=0.0)
        state = "quarantined" if key.quarantined else "cooling" if cooling_s > 0 else "ok"
        return cls(
            name=key.name,
            quota=key.quota.name,
            state=state,
            again_in_s=max(cooling_s, 0.0) if state == "cooling" else key.again_in_s(now=now),
            in_flight=key.in_flight,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class AdmitStatistics:
    """The line, the keys and the quotas at one moment.

    Attributes:
        concurrency: Slots in all; changes if it is adaptive.
        slots_used: Slots in use.
        waiting: Requests waiting, by model class.
        waiting_by: The same, by priority and tenant within each model class.
        admitted: Requests admitted so far.
        wait: How long they waited.
        keys: Every key of the pool.
        quotas: Buckets by quota, model class and name, with levels and learned limits.
    """

    concurrency: int
    slots_used: int
    waiting: Mapping[str, int]
    waiting_by: Mapping[str, Mapping[tuple[str, str], int]]
    admitted: int
    wait: DurationStatistics
    keys: tuple[KeyStatistics, ...]
    quotas: Mapping[str, Mapping[str, Mapping[str, BucketStatistics]]]
