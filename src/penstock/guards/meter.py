"""The meter: what every attempt came to, added up.

The rule here: it only adds. What a body tells is found in `penstock._core.body`; an attempt is added once, when it has
ended, and however many there are, the totals take the same memory.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final

import anthropic

from penstock._core.attempt import open_attempt
from penstock._core.durations import Durations, DurationStatistics
from penstock._core.failure import failure_of_exception
from penstock._core.kind import RequestKind
from penstock._core.network import network_problem
from penstock.events import NetworkChanged, Observers

if TYPE_CHECKING:
    from collections.abc import Mapping

    from anthropic import APIRequest

    from penstock._core.attempt import Attempt, CallNext, Response
    from penstock._core.failure import Failure
    from penstock._core.usage import Usage

__all__ = ["Meter", "MeterStatistics", "ModelStatistics"]

_MOST_MODELS: Final = 100
_NO_OBSERVERS: Final = Observers()
_OTHER: Final = "other"
# A network that comes and goes is told of so often.
_TOLD_EVERY_S: Final = 10.0
_TOO_MANY_REQUESTS: Final = 429


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelStatistics:
    """What the attempts for one model, or for all, came to.

    Attributes:
        attempts: Attempts that ended.
        successes: Those that succeeded.
        failures: The others, by kind of failure (`penstock._core.failure.FailureKind`).
        rate_limited: Answers of 429 among them.
        input_tokens: Input after the last cache breakpoint.
        output_tokens: Generated, thinking included.
        cache_read_tokens: Input read from the prompt cache.
        cache_write_tokens: Input written to the prompt cache.
        counted: Attempts whose tokens went into the sums.
        estimated: Those of them that broke off or were cancelled, so that the API didn't report all they used.
        latency: From sending to the end of the body, queue not included, failures included.
        first_token: From sending to the first content of a stream.
    """

    attempts: int
    successes: int
    failures: Mapping[str, int]
    rate_limited: int
    input_tokens: int
    output_tokens: int
    cache_read_tokens: int
    cache_write_tokens: int
    counted: int
    estimated: int
    latency: DurationStatistics
    first_token: DurationStatistics

    @property
    def estimated_share(self) -> float:
        """The share of the counted attempts whose tokens are estimated, 0 to 1."""
        return self.estimated / self.counted if self.counted else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class MeterStatistics:
    """What all attempts came to, together and by model; models beyond the first 100 are together under `other`.

    Attributes:
        total: All attempts.
        models: By model.
        network: Why the API can't be reached, by the last attempt that found no way to it or no answer; `None` once
            there was an answer again.
        reached: Whether there ever was an answer, whatever it said.
    """

    total: ModelStatistics
    models: Mapping[str, ModelStatistics]
    network: str | None
    reached: bool


class _Totals:
    """The sums of one model."""

    __slots__ = ("attempts", "first_token", "latency", "outcomes", "rate_limited", "tokens")

    def __init__(self) -> None:
        self.attempts = 0
        self.rate_limited = 0
        self.outcomes: Counter[str] = Counter()
        self.tokens: Counter[str] = Counter()
        self.latency = Durations()
        self.first_token = Durations()

    def add(self, attempt: Attempt, sent_at: float, now: float) -> None:
        self.attempts += 1
        self.rate_limited += attempt.status == _TOO_MANY_REQUESTS
        if attempt.failure is not None:
            self.outcomes[attempt.failure.kind.value] += 1
        if attempt.usage is not None:
            self._add_tokens(attempt.usage)
        self.latency.add(now - sent_at)
        if attempt.first_content_at is not None:
            self.first_token.add(attempt.first_content_at - sent_at)

    def _add_tokens(self, usage: Usage) -> None:
        tokens = self.tokens
        tokens["counted"] += 1
        tokens["estimated"] += usage.estimated
        tokens["input_tokens"] += usage.input_tokens
        tokens["output_tokens"] += usage.output_tokens
        tokens["cache_read_tokens"] += usage.cache_read_input_tokens
        tokens["cache_write_tokens"] += usage.cache_creation_input_tokens

    def include(self, other: _Totals) -> None:
        self.attempts += other.attempts
        self.rate_limited += other.rate_limited
        self.outcomes.update(other.outcomes)
        self.tokens.update(other.tokens)
        self.latency.include(other.latency)
        self.first_token.include(other.first_token)

    def statistics(self) -> ModelStatistics:
        return ModelStatistics(
            attempts=self.attempts,
            successes=self.attempts - self.outcomes.total(),
            failures=dict(self.outcomes),
            rate_limited=self.rate_limited,
            input_tokens=self.tokens["input_tokens"],
            output_tokens=self.tokens["output_tokens"],
            cache_read_tokens=self.tokens["cache_read_tokens"],
            cache_write_tokens=self.tokens["cache_write_tokens"],
            counted=self.tokens["counted"],
            estimated=self.tokens["estimated"],
            latency=self.latency.statistics(),
            first_token=self.first_token.statistics(),
        )


class Meter(anthropic.Middleware):
    """Adds up what every attempt for `/v1/messages` came to: outcomes, tokens, latency and time to first token.

    It stands next to the transport, so that its times hold no waiting in line.

    Args:
        observers: Told when the API can't be reached, and when it answers again (`NetworkChanged`).

    Example:
        >>> meter = Meter()
        >>> claude = anthropic.AsyncAnthropic(api_key="…", middleware=[meter])
        >>> meter.statistics().total.attempts
        0
    """

    def __init__(self, *, observers: Observers = _NO_OBSERVERS) -> None:
        self._observers = observers
        self._models: dict[str, _Totals] = {}
        self._network: str | None = None
        self._reached = self._told = False
        self._told_at = -math.inf

    def __repr__(self) -> str:
        attempts = sum(totals.attempts for totals in self._models.values())
        return f"<Meter {attempts} attempts, {len(self._models)} models>"

    def statistics(self) -> MeterStatistics:
        """Return the sums so far; attempts under way are not in them."""
        total = _Totals()
        for totals in self._models.values():
            total.include(totals)
        models = {model: totals.statistics() for model, totals in self._models.items()}
        return MeterStatistics(total=total.statistics(), models=models, network=self._network, reached=self._reached)

    async def handle_async(self, request: APIRequest, call_next: CallNext) -> Response:
        """Send `request` on, and add its attempt to the sums when it has ended."""
        with open_attempt(request) as attempt:
            if attempt.call.kind is RequestKind.MESSAGES:
                self._measure(attempt)
            attempt.sent = True
            try:
                response = await attempt.hand_on(request, call_next)
            except Exception as error:
                failure = failure_of_exception(error)
                self._note_problem(network_problem(error, failure), failure, attempt.call.clock())
                raise
            self._network, self._reached = None, True
            if self._told:
                self._tell(None)
            return response

    def _note_problem(self, problem: str | None, failure: Failure, now: float) -> None:
        if problem is None:
            return
        self._network = problem
        # A connection that was there, and was lost, is told with what failed by it.
        if not (failure.sent or self._told) and now - self._told_at >= _TOLD_EVERY_S:
            self._told_at = now
            self._tell(problem)

    def _tell(self, problem: str | None) -> None:
        self._told = problem is not None
        self._observers.emit(NetworkChanged(problem=problem))

    def _measure(self, attempt: Attempt) -> None:
        attempt.push(partial(self._add, attempt.call.model, attempt.call.clock()))

    def _add(self, model: str, sent_at: float, attempt: Attempt) -> None:
        self._totals_of(model).add(attempt, sent_at, attempt.call.clock())

    def _totals_of(self, model: str) -> _Totals:
        totals = self._models.get(model)
        if totals is None:
            # Names come from callers, so that there may be any number of them.
            name = model if len(self._models) < _MOST_MODELS else _OTHER
            totals = self._models.setdefault(name, _Totals())
        return totals
