"""Growing slowly after the API has complained of too steep a growth (429 with `ramp_limit_exceeded`).

The rule here: synchronous state that takes `now`. From then on requests go, evenly spaced, at four fifths of the rate
that they had, which doubles each minute; after ten minutes without another complaint the matter is forgotten.
"""

from __future__ import annotations

import math

__all__ = ["Ramp"]

_REMEMBERED_S = 10.0
_BACK_TO = 0.8
_DOUBLES_IN_S = 60.0
_FORGOTTEN_AFTER_S = 600.0
_SLOWEST_PER_S = 0.5


class Ramp:
    """Watches the rate of admissions, and bounds its growth once the API asks for that.

    Example:
        >>> ramp = Ramp()
        >>> for number in range(100):
        ...     ramp.admitted(now=number / 10)
        >>> ramp.too_steep(now=10.0)
        >>> ramp.admitted(now=10.0)
        >>> 0.1 < ramp.wait_s(now=10.0) < 0.3
        True
    """

    __slots__ = ("_began_at", "_last_at", "_next_at", "_per_s", "_rate")

    def __init__(self) -> None:
        # An exponentially weighted count of the last seconds.
        self._rate = 0.0
        self._last_at = -math.inf
        self._began_at: float | None = None
        self._per_s = math.inf
        self._next_at = -math.inf

    def __repr__(self) -> str:
        return f"<Ramp {'off' if self._began_at is None else f'from {self._per_s:.1f} a second'}>"

    @property
    def active(self) -> bool:
        """Whether growth is bounded now."""
        return self._began_at is not None

    def admitted(self, *, now: float) -> None:
        """Note that a request was let in."""
        self._rate = self._rate_at(now) + 1 / _REMEMBERED_S
        self._last_at = now
        if self._began_at is not None:
            self._next_at = max(self._next_at, now) + 1 / self._allowed(now)

    def too_steep(self, *, now: float) -> None:
        """Note the API's complaint; several within a second are one."""
        if self._began_at is not None and now - self._began_at < 1:
            return
        bounded = self._allowed(now) if self._began_at is not None else math.inf
        self._per_s = max(min(self._rate_at(now), bounded) * _BACK_TO, _SLOWEST_PER_S)
        self._began_at = self._next_at = now

    def wait_s(self, *, now: float) -> float:
        """Return how long until the next request may go; 0 for now."""
        if self._began_at is None:
            return 0.0
        if now - self._began_at > _FORGOTTEN_AFTER_S:
            self._began_at = None
            return 0.0
        return max(self._next_at - now, 0.0)

    def _rate_at(self, now: float) -> float:
        return self._rate * math.exp(min(self._last_at - now, 0.0) / _REMEMBERED_S) if self._rate else 0.0

    def _allowed(self, now: float) -> float:
        began_at = self._began_at if self._began_at is not None else now
        return self._per_s * 2 ** ((now - began_at) / _DOUBLES_IN_S)
