"""The one place where the simulator reads time: loop time for what happens, wall-clock time for what headers say.

Wall-clock time is the moment of the first reading plus the loop time since, so that virtual time moves it too.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import anyio

__all__ = ["Clock", "rfc3339"]


class Clock:
    """Loop time, also outside a loop (then the last reading), and the wall-clock time that goes with it."""

    __slots__ = ("_last", "_origin", "_started")

    def __init__(self) -> None:
        self._last = 0.0
        self._origin: float | None = None
        self._started = datetime.now(UTC)

    def __repr__(self) -> str:
        return f"Clock(now={self._last:.6f})"

    def now(self) -> float:
        """Seconds on the running event loop's clock."""
        try:
            self._last = anyio.current_time()
        except anyio.NoEventLoopError:
            return self._last
        if self._origin is None:
            self._origin, self._started = self._last, datetime.now(UTC)
        return self._last

    def wall(self, at: float) -> datetime:
        """The wall-clock time, in UTC, of the loop time `at`."""
        origin = self._last if self._origin is None else self._origin
        return self._started + timedelta(seconds=at - origin)


def rfc3339(moment: datetime) -> str:
    """As the API writes times: `2026-11-20T12:40:59Z`, rounded up to the second, so that it is never too early."""
    if moment.microsecond:
        moment = moment.replace(microsecond=0) + timedelta(seconds=1)
    return f"{moment:%Y-%m-%dT%H:%M:%SZ}"
