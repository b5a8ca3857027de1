"""A token bucket that can be given back to, corrected, and asked how long to wait.

The rule here: nobody ever waits on a bucket. `aiolimiter.AsyncLimiter` keeps the level, on the event loop's clock; its
own waiting serves the smallest amount first, so that large requests starve, and it knows no refund. The waiting line
asks, takes, and sleeps instead.
"""

from __future__ import annotations

import math

from aiolimiter import AsyncLimiter

__all__ = ["TokenBucket"]

# A wait that is a hair too short would be repeated for the present instant; this is far below any wait that matters.
_MARGIN_S = 1e-6


class TokenBucket(AsyncLimiter):
    """A bucket of `capacity` units that refills continuously.

    Args:
        per_minute: Units that flow in each minute, more than 0.
        capacity: The most that it holds; a minute's worth by default.
        name: For errors and statistics.

    Raises:
        ValueError: A number that is not above 0.

    Example:
        >>> import anyio
        >>> async def main() -> None:
        ...     bucket = TokenBucket(60, name="requests")
        ...     bucket.take(60)
        ...     print(round(bucket.seconds_until(2), 3), bucket.has_capacity(2))
        >>> anyio.run(main)
        2.0 False
    """

    __slots__ = ("_per_minute", "name")

    def __init__(self, per_minute: float, *, capacity: float | None = None, name: str = "tokens") -> None:
        capacity = per_minute if capacity is None else capacity
        if not (0 < per_minute < math.inf and 0 < capacity < math.inf):
            raise ValueError(
                f"a bucket of {name} needs a rate and a capacity above 0, not {per_minute!r} and {capacity!r}"
            )
        super().__init__(capacity, capacity * 60 / per_minute)
        self._per_minute = per_minute
        self.name = name

    def __repr__(self) -> str:
        left = self.capacity - self._level
        return f"<TokenBucket {self.name}: {left:.0f} of {self.capacity:.0f}, {self.per_minute:.0f} a minute>"

    @property
    def capacity(self) -> float:
        """The most that it holds."""
        return self.max_rate

    @property
    def per_minute(self) -> float:
        """Units that flow in each minute."""
        return self._per_minute

    @property
    def surely_available(self) -> float:
        """What could be taken when it was last looked at, and a fortiori now; cheaper than `available`."""
        return self.max_rate - self._level

    @property
    def available(self) -> float:
        """What can be taken now; negative when more was used than was there."""
        self._leak()
        return self.max_rate - self._level

    def available_at(self, now: float) -> float:
        """Return what could be taken at a time of the event loop, without looking for one and without a change."""
        return self.max_rate - max(self._level - max(now - self._last_check, 0.0) * self._rate_per_sec, 0.0)

    def take(self, amount: float) -> None:
        """Take `amount` now, into debt if need be: what has been used is used.

        Raises:
            ValueError: `amount` is not a number from 0 up.
        """
        if not 0 <= amount < math.inf:
            self._check(amount)
        self._leak()
        self._level += amount

    def refund(self, amount: float) -> None:
        """Give `amount` back, up to a full bucket.

        Raises:
            ValueError: `amount` is not a number from 0 up.
        """
        if not 0 <= amount < math.inf:
            self._check(amount)
        self._leak()
        self._level = max(self._level - amount, 0.0)

    def seconds_until(self, amount: float) -> float:
        """Return the seconds until `amount` can be taken: 0 for now, infinity for more than the bucket can ever hold.

        Raises:
            ValueError: `amount` is not a number from 0 up.
        """
        # Levels only fall with time: what fits the last known level fits now.
        if amount >= 0 and self._level + amount <= self.max_rate:
            return 0.0
        self._check(amount)
        if amount > self.max_rate:
            return math.inf
        self._leak()
        missing = amount - (self.max_rate - self._level)
        # The same comparison as `has_capacity`, so that both agree at the last bit.
        if self._level + amount <= self.max_rate:
            return 0.0
        return missing / self._rate_per_sec + _MARGIN_S

    def change(self, *, per_minute: float, capacity: float) -> None:
        """Change the limits from now on; what has been taken stays taken.

        Args:
            per_minute: More than 0.
            capacity: More than 0.
        """
        self._leak()
        self._per_minute = per_minute
        self._rate_per_sec = per_minute / 60
        self.time_period = capacity * 60 / per_minute
        self.max_rate = capacity

    def correct(self, *, at_least: float, at_most: float) -> None:
        """Move what is available into a range that is known better; what lies in it already stays as it is.

        Args:
            at_least: At least so much is available; `-inf` if that isn't known.
            at_most: At most so much is; where both contradict each other, this one holds.
        """
        self._leak()
        available = min(max(self.max_rate - self._level, at_least), at_most)
        self._level = max(self.max_rate - available, 0.0)

    def _check(self, amount: float) -> None:
        if not 0 <= amount < math.inf:
            raise ValueError(f"an amount of {self.name} must be a number from 0 up, not {amount!r}")
