"""The one place that reads the wall clock; everything else lives on the event loop's clock.

The rule here: wall time is only for what other machines say in wall time (HTTP dates, timestamps in logs), never for
measuring a wait.
"""

from __future__ import annotations

from datetime import UTC, datetime

__all__ = ["wall_now"]


def wall_now() -> datetime:
    """Return the time of day, in UTC and aware of it."""
    return datetime.now(UTC)
