"""The retry quota: what all calls of a client may spend on retries, so that an outage doesn't multiply the traffic.

The rule here: what a retry pays comes back if it succeeds or is never made. The quota never waits and knows no clock.

Method and figures: https://docs.aws.amazon.com/sdkref/latest/guide/feature-retry-behavior.html
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from penstock._core.failure import FailureKind

if TYPE_CHECKING:
    import anyio

    from penstock._core.failure import Failure

__all__ = ["FIRST", "Charge", "RetryQuota", "Waiter"]

_THROTTLED: Final = frozenset({FailureKind.RATE_LIMITED, FailureKind.OVERLOADED})


@dataclass(frozen=True, slots=True)
class Charge:
    """What an attempt has `paid` from the quota, and the `reward` that goes back to it if the attempt succeeds."""

    paid: int
    reward: int
    probe: bool = False

    def unpaid(self) -> Charge:
        """Return the charge of the same attempt once more, after nothing was sent and its price was given back."""
        return replace(self, paid=0, reward=self.reward - self.paid)


FIRST: Final = Charge(paid=0, reward=1)


class Waiter:
    """Somebody who waits in line for `cost` of the quota; `woken` is set when it is worth asking again."""

    __slots__ = ("cost", "woken")

    def __init__(self, cost: int) -> None:
        self.cost = cost
        self.woken: anyio.Event | None = None

    def wake(self) -> None:
        """Have it ask again."""
        if self.woken is not None:
            self.woken.set()


class RetryQuota:
    """What is left of the quota, and who waits for it.

    Args:
        capacity: What it holds when full, 0 or more.
        cost: What a retry takes from it, 1 or more.
        throttled_cost: The same for a retry after 429 or 529, 1 or more.
        probe_s: Seconds after which, while it is empty, one who waits goes on without paying, above 0.

    Attributes:
        left: What it holds now.
        exhausted: How often it had too little for a retry.

    Example:
        >>> from penstock._core.failure import Failure
        >>> failure = Failure(kind=FailureKind.SERVER)
        >>> quota = RetryQuota(20, cost=14, throttled_cost=5, probe_s=30.0)
        >>> charge = quota.take(failure)
        >>> quota.left, quota.take(failure)
        (6, None)
        >>> quota.give_back(charge.reward)
        >>> quota.left
        20
    """

    __slots__ = ("_cost", "_line", "_probe_at", "_probe_s", "_throttled_cost", "capacity", "exhausted", "left")

    def __init__(self, capacity: int, *, cost: int, throttled_cost: int, probe_s: float) -> None:
        self.capacity = capacity
        self.left = capacity
        self.exhausted = 0
        self._cost = cost
        self._throttled_cost = throttled_cost
        self._probe_s = probe_s
        self._line: deque[Waiter] = deque()
        self._probe_at = -math.inf

    def __repr__(self) -> str:
        return f"<RetryQuota {self.left} of {self.capacity}, {self.waiting} waiting>"

    @property
    def waiting(self) -> int:
        """How many items wait."""
        return len(self._line)

    def take(self, failure: Failure) -> Charge | None:
        """Pay for a retry after `failure`; `None` if not enough is left."""
        charge = self._pay(self._cost_after(failure))
        if charge is None:
            self.exhausted += 1
        return charge

    def give_back(self, amount: int) -> None:
        """Put `amount` back, up to the capacity, and wake who waits first."""
        self.left = min(self.left + amount, self.capacity)
        self._wake_first()

    def undo(self, charge: Charge) -> None:
        """Take back what was paid for an attempt that isn't made."""
        if charge.probe:
            self._probe_at = -math.inf
        self.give_back(charge.paid)

    def join(self, failure: Failure) -> Waiter:
        """Join the end of the line, for a retry after `failure`."""
        waiter = Waiter(self._cost_after(failure))
        if self._line or self.left < waiter.cost:
            self.exhausted += 1
        self._line.append(waiter)
        return waiter

    def leave(self, waiter: Waiter) -> None:
        """Leave the line, with or without a charge."""
        self._line.remove(waiter)
        self._wake_first()

    def ask(self, waiter: Waiter, now: float) -> Charge | None:
        """Pay for the retry of `waiter`; `None` if its turn has not come or not enough is left.

        Once in `probe_s` seconds one may go on without paying: the probe. Its success fills the quota up, because it
        tells that an outage is over.
        """
        if self._line[0] is not waiter:
            return None
        charge = self._pay(waiter.cost)
        if charge is None and now >= self._probe_at:
            self._probe_at = now + self._probe_s
            charge = Charge(paid=0, reward=self.capacity, probe=True)
        return charge

    def wait_s(self, waiter: Waiter, now: float) -> float:
        """Return the seconds after which `waiter` should ask again if nobody wakes it."""
        return self._probe_at - now if self._line[0] is waiter else math.inf

    def _cost_after(self, failure: Failure) -> int:
        return self._throttled_cost if failure.kind in _THROTTLED else self._cost

    def _pay(self, cost: int) -> Charge | None:
        if self.left < cost:
            return None
        self.left -= cost
        return Charge(paid=cost, reward=cost)

    def _wake_first(self) -> None:
        if self._line:
            self._line[0].wake()
