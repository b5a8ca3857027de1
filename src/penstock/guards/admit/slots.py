"""How many requests may be under way at once: a fixed number, or one that follows what the service bears.

The rule here: additive increase, multiplicative decrease (Chiu and Jain, 1989). Each round of successes with the slots
in use adds one; an overload or a time-out takes away three tenths, once a second at most, because one overload answers
many requests at the same moment.
"""

from __future__ import annotations

import math

__all__ = ["Slots"]

_DECREASE = 0.7
_DECREASE_EVERY_S = 1.0
# Only a limit that is used says anything about a higher one.
_IN_USE = 0.9


class Slots:
    """Slots of a client, shared by all its lines.

    Args:
        total: At the start, 1 or more.
        floor: Adaptive slots never fall below it, 1 or more.
        ceiling: Adaptive slots never rise above it; `floor` = `ceiling` = `total` for a fixed number.

    Example:
        >>> slots = Slots(8, floor=2, ceiling=100)
        >>> slots.overloaded(now=0.0)
        >>> slots.total
        5
    """

    __slots__ = ("_ceiling", "_decreased_at", "_exact", "_floor", "used")

    def __init__(self, total: int, *, floor: int | None = None, ceiling: int | None = None) -> None:
        self._floor = total if floor is None else floor
        self._ceiling = total if ceiling is None else ceiling
        self._exact = float(min(max(total, self._floor), self._ceiling))
        self._decreased_at = -math.inf
        self.used = 0

    def __repr__(self) -> str:
        return f"<Slots {self.used} of {self.total}>"

    @property
    def total(self) -> int:
        """How many there are now."""
        return int(self._exact)

    @property
    def free(self) -> bool:
        """Whether there is one left."""
        return self.used < self.total

    def succeeded(self) -> None:
        """Note a success: a whole round of them, with the slots in use, adds one slot."""
        if self.used >= _IN_USE * self.total:
            self._exact = min(self._exact + 1 / self._exact, self._ceiling)

    def overloaded(self, *, now: float) -> None:
        """Note an overload or a time-out."""
        if now - self._decreased_at >= _DECREASE_EVERY_S:
            self._decreased_at = now
            self._exact = max(self._exact * _DECREASE, self._floor)
