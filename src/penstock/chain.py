"""The order of the guards, a reason a line.

The rule here: this is the only place that knows the order, and it does nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from penstock.guards.admit import Admit
from penstock.guards.breaker import CircuitBreaker
from penstock.guards.meter import Meter
from penstock.guards.record import Record
from penstock.guards.retry import Retry
from penstock.guards.sanitize import Sanitize

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

    from anthropic import Middleware

    from penstock._core.background import Background
    from penstock.events import Observers
    from penstock.settings import Settings

__all__ = ["Chain", "build_chain"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """The guards of one client, outermost first."""

    record: Record
    sanitize: Sanitize | None
    retry: Retry
    breaker: CircuitBreaker
    admit: Admit
    meter: Meter

    @property
    def middleware(self) -> tuple[Middleware, ...]:
        """The guards in the order in which a request meets them."""
        return (
            self.record,  # sees every call begin and end, and what leaves, whatever the others do
            # outside retry: once for each call; inside record: what it refuses is reported. Only if it was asked for.
            *(() if self.sanitize is None else (self.sanitize,)),
            self.retry,  # inside record: a call is reported once; outside the rest: each attempt passes them anew
            self.breaker,  # inside retry: counts attempts; outside admit: a doomed request must not wait or take quota
            self.admit,  # last before the wire: nothing is held while waiting for something else
            self.meter,  # innermost: what it counts is what was really sent
        )


def build_chain(
    settings: Settings, *, observers: Observers, background: Background, gate: Callable[[], None], rng: random.Random
) -> Chain:
    """Make the guards of one client; they share nothing but the call that passes them."""
    return Chain(
        record=Record(
            observers=observers,
            background=background,
            deadline_s=settings.deadline_s,
            max_response_bytes=settings.max_response_bytes,
            gate=gate,
        ),
        sanitize=None if settings.sanitize is None else Sanitize(settings.sanitize, observers=observers),
        retry=Retry(settings.retry, observers=observers, rng=rng),
        breaker=CircuitBreaker(settings.breaker, observers=observers),
        admit=Admit(settings.admit, observers=observers, rng=rng, max_retry_after_s=settings.retry.max_retry_after_s),
        meter=Meter(observers=observers),
    )
