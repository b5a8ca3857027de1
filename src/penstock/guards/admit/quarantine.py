"""Keeping a key or a quota from use, and finding out when it works again.

The rule here: synchronous state that takes `now`. One request at a time probes; only a probe's answer ends a
quarantine, because an answer to what was sent before tells nothing new.
"""

from __future__ import annotations

__all__ = ["Quarantine"]

_FIRST_PROBE_S = 60.0
_LAST_PROBE_S = 3600.0


class Quarantine:
    """Keeps something from use, and lets one request probe it from time to time: after 60 s, doubling to 1 h.

    Attributes:
        until: Time of the event loop of the next probe; `None` while it doesn't hold.
        reason: Why it was begun.

    Example:
        >>> quarantine = Quarantine()
        >>> quarantine.begin(now=0)
        >>> quarantine.may_use(now=59), quarantine.may_use(now=60)
        (False, True)
    """

    __slots__ = ("_interval_s", "_probing", "reason", "until")

    def __init__(self) -> None:
        self.until: float | None = None
        self.reason = ""
        self._interval_s = _FIRST_PROBE_S
        self._probing = False

    def __repr__(self) -> str:
        return f"<Quarantine until={self.until} probing={self._probing}>"

    @property
    def active(self) -> bool:
        """Whether it holds."""
        return self.until is not None

    def begin(self, *, now: float, reason: str = "") -> None:
        """Begin it, or after a failed probe again for twice as long; a late failure changes nothing."""
        if self.until is None:
            self._interval_s = _FIRST_PROBE_S
        elif self._probing:
            self._interval_s = min(self._interval_s * 2, _LAST_PROBE_S)
        else:
            return
        self._probing = False
        self.reason = reason
        self.until = now + self._interval_s

    def end(self) -> None:
        """End it."""
        self.until = None
        self._probing = False

    def may_use(self, *, now: float) -> bool:
        """Whether a request may use it now; the caller then calls `probe`."""
        return self.until is None or (now >= self.until and not self._probing)

    def probe(self) -> bool:
        """Note that a request uses it; True if that is a probe, of which there is one at a time."""
        if self.until is None:
            return False
        self._probing = True
        return True

    def probe_told_nothing(self, *, now: float) -> None:
        """Note that a probe ended without an answer; the next request may probe again."""
        if self._probing:
            self._probing = False
            self.until = now

    def again_in_s(self, *, now: float) -> float:
        """Return the seconds until the next probe; 0 if it may be used."""
        return 0.0 if self.until is None else max(self.until - now, 0.0 if not self._probing else _FIRST_PROBE_S)
