"""Counts of what the simulator did since it started; kept apart from the journal, which forgets."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from penstock.simulator.journal import JournalEntry
    from penstock.simulator.limits import OrganizationState

__all__ = ["Counts", "SimulatorStatistics"]


@dataclass(frozen=True, kw_only=True, slots=True)
class SimulatorStatistics:
    """What the simulator did since it started.

    Attributes:
        requests: requests that arrived.
        in_flight: those not ended yet.
        by_status: ended requests by HTTP status; 0: no answer was ever sent.
        by_fault: ended requests by the fault that hit them.
        by_outcome: ended requests by outcome.
        input_tokens: input tokens charged.
        output_tokens: tokens generated.
        organizations: by id, what each has left and could have used.
    """

    requests: int
    in_flight: int
    by_status: dict[int, int]
    by_fault: dict[str, int]
    by_outcome: dict[str, int]
    input_tokens: int
    output_tokens: int
    organizations: dict[str, OrganizationState]


class Counts:
    """Running counts."""

    __slots__ = ("_faults", "_given", "_made", "_outcomes", "_statuses", "in_flight", "requests")

    def __init__(self) -> None:
        self.requests = 0
        self.in_flight = 0
        self._given = 0
        self._made = 0
        self._statuses: Counter[int] = Counter()
        self._faults: Counter[str] = Counter()
        self._outcomes: Counter[str] = Counter()

    def arrived(self) -> int:
        """Count a request and return its number."""
        self.requests += 1
        self.in_flight += 1
        return self.requests

    def ended(self, entry: JournalEntry) -> None:
        """Count how a request ended."""
        self.in_flight -= 1
        self._given += entry.input_tokens
        self._made += entry.output_tokens
        self._statuses[entry.status or 0] += 1
        self._outcomes[str(entry.outcome)] += 1
        if entry.fault is not None:
            self._faults[entry.fault] += 1

    def statistics(self, organizations: dict[str, OrganizationState]) -> SimulatorStatistics:
        """All counts at this moment."""
        return SimulatorStatistics(
            requests=self.requests,
            in_flight=self.in_flight,
            by_status=dict(self._statuses),
            by_fault=dict(self._faults),
            by_outcome=dict(self._outcomes),
            input_tokens=self._given,
            output_tokens=self._made,
            organizations=organizations,
        )
