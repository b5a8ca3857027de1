"""The circuit breaker: while the service of a model class is down, its requests are refused at once, not sent to fail.

The rule here: an attempt counts once, when it has ended, and only by what it says of the service's health. An answer
counts for it, 4xx and 429 included; 5xx, 529, time-outs and broken connections count against it; a cancellation, a
refusal or a lack of our own, and one kept connection that was closed meanwhile, say nothing.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict, deque
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

import anthropic
from pydantic import Field, model_validator

from penstock._core.attempt import open_attempt
from penstock._core.failure import FailureKind
from penstock._core.kind import RequestKind
from penstock._core.options import Options, options_from
from penstock.errors import CircuitOpen
from penstock.events import BreakerChanged, Observers

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from anthropic import APIRequest

    from penstock._core.attempt import Attempt, CallNext, Response

__all__ = ["Breaker", "BreakerOptions", "BreakerStatistics", "CircuitBreaker", "CircuitBreakerStatistics", "Passage"]

State: TypeAlias = Literal["closed", "open", "half_open"]

_NO_OBSERVERS: Final = Observers()
_MOST_CLASSES: Final = 1_000
_BUSY_S: Final = 1.0
_COUNTED: Final = -1
_SILENT: Final = frozenset(
    {
        FailureKind.REFUSED,
        FailureKind.CANCELLED,
        FailureKind.ABANDONED,
        FailureKind.EXHAUSTED,
        FailureKind.OTHER,
    }
)


class BreakerOptions(Options):
    """When a breaker opens, and how it closes again.

    Attributes:
        window: How many of the last attempts of a model class it looks at, 1 to 100,000. Attempts, not seconds: so an
            outage opens it after the same number of doomed requests at any rate of traffic.
        failure_share: The share of them that must have failed for it to open, above 0, at most 1; attempts under way
            count as not failed, up to `window`.
        minimum: How many it must have seen before it may open, 1 to `window`.
        open_s: Seconds for which it refuses everything before it lets probes through, above 0, at most a day.
        probes: How many probes it lets through, and must see succeed, before it closes, 1 to 1,000.

    Example:
        >>> BreakerOptions(window=50).minimum
        20
    """

    window: int = Field(default=100, ge=1, le=100_000)
    failure_share: float = Field(default=0.5, gt=0, le=1)
    minimum: int = Field(default=20, ge=1)
    open_s: float = Field(default=30.0, gt=0, le=86_400)
    probes: int = Field(default=3, ge=1, le=1_000)

    @model_validator(mode="after")
    def _minimum_fits(self) -> BreakerOptions:
        if self.minimum > self.window:
            raise ValueError(f"minimum ({self.minimum}) must be at most window ({self.window}), else it never opens")
        return self


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerStatistics:
    """The breaker of one model class.

    Attributes:
        state: `closed`, `open` or `half_open`; one that is due for probes stays `open` until somebody asks for one.
        failures: Failed attempts in the window; while it is not closed, those that opened it.
        seen: Attempts in the window.
        open_until: Time of the event loop from which probes are let through; `None` unless open.
        under_way: Attempts let through that have not ended.
        refused: Attempts refused so far.
    """

    state: State
    failures: int
    seen: int
    open_until: float | None
    under_way: int
    refused: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CircuitBreakerStatistics:
    """The breakers of all model classes seen lately, by class, and how many attempts they refused together."""

    classes: Mapping[str, BreakerStatistics]
    refused: int


@dataclass(slots=True, eq=False)
class Passage:
    """Leave to send one attempt, given at `since`, in the breaker's `generation`; it counts for no other generation."""

    generation: int
    since: float


class Breaker:
    """The state machine of one model class: it never waits and knows no clock.

    Every change of state begins a new generation; what was let through in an earlier one changes nothing when it ends.

    Args:
        options: When it opens and closes.

    Example:
        >>> breaker = Breaker(BreakerOptions(window=2, minimum=2, open_s=30))
        >>> for passage in [breaker.enter(0.0), breaker.enter(0.0)]:
        ...     breaker.leave(passage, failed=True, now=1.0)
        >>> breaker.state, breaker.enter(30.0), breaker.retry_after_s(30.0)
        ('open', None, 1.0)
        >>> breaker.enter(31.0) is not None, breaker.state
        (True, 'half_open')
    """

    def __init__(self, options: BreakerOptions) -> None:
        self.state: State = "closed"
        self._options = options
        self._generation = 0
        self._under_way = 0
        self._refused = 0
        self._window: deque[bool] = deque(maxlen=options.window)
        self._failures = 0
        self._open_until = 0.0
        self._probes: dict[Passage, Callable[[], bool]] = {}
        self._succeeded = 0

    def __repr__(self) -> str:
        return f"<Breaker {self.state}, {self._failures} of {len(self._window)} failed, {self._under_way} under way>"

    @property
    def idle(self) -> bool:
        """Whether nothing but its window would be lost with it."""
        return self.state == "closed" and not self._under_way

    def enter(self, now: float, has_content: Callable[[], bool] = bool) -> Passage | None:
        """Decide whether an attempt may be sent.

        Args:
            now: Time of the event loop.
            has_content: Tells later whether the attempt's stream has brought content yet.

        Returns:
            What to give to `leave` when the attempt has ended; `None` if it may not be sent.
        """
        if self.state == "open" and now >= self._open_until:
            self._become("half_open")
        if self.state == "half_open":
            self._look_at_probes(now)
        if not self._has_room():
            self._refused += 1
            return None
        passage = Passage(self._generation, now)
        if self.state == "half_open":
            self._probes[passage] = has_content
        self._under_way += 1
        return passage

    def leave(self, passage: Passage, *, failed: bool | None, now: float) -> None:
        """Note that an attempt has ended.

        Args:
            passage: What `enter` returned for it; each is given back once.
            failed: Whether the service failed; `None` if the attempt says nothing about it and so counts neither way.
            now: Time of the event loop.
        """
        self._under_way -= 1
        self._probes.pop(passage, None)
        if failed is not None:
            self._count(passage, failed=failed, now=now)

    def retry_after_s(self, now: float) -> float:
        """Return the seconds until probes are let through; one second while they are under way, as nobody knows."""
        return max(self._open_until - now, 0.0) if self.state == "open" else _BUSY_S

    def statistics(self) -> BreakerStatistics:
        """Return what it is doing."""
        return BreakerStatistics(
            state=self.state,
            failures=self._failures,
            seen=len(self._window),
            open_until=self._open_until if self.state == "open" else None,
            under_way=self._under_way,
            refused=self._refused,
        )

    def _has_room(self) -> bool:
        if self.state == "half_open":
            return len(self._probes) + self._succeeded < self._options.probes
        return self.state == "closed"

    def _look_at_probes(self, now: float) -> None:
        """Count probes whose stream has brought content, and give the place of those silent for `open_s` to others.

        Otherwise a stream of minutes or a dead connection would keep everybody out for as long. They are looked at only
        when a caller comes, because before that nobody minds. A silent one still counts when it ends.
        """
        for probe, has_content in tuple(self._probes.items()):
            if has_content():
                self._probes.pop(probe, None)
                self._count(probe, failed=False, now=now)
            elif now - probe.since >= self._options.open_s:
                self._probes.pop(probe, None)

    def _count(self, passage: Passage, *, failed: bool, now: float) -> None:
        if passage.generation != self._generation:
            return
        passage.generation = _COUNTED
        if self.state == "half_open":
            self._count_probe(failed=failed, now=now)
        else:
            self._count_attempt(failed=failed, now=now)

    def _count_probe(self, *, failed: bool, now: float) -> None:
        if failed:
            self._open(now)
            return
        self._succeeded += 1
        if self._succeeded == self._options.probes:
            self._window.clear()
            self._failures = 0
            self._become("closed")

    def _count_attempt(self, *, failed: bool, now: float) -> None:
        window, options = self._window, self._options
        if len(window) == options.window:
            self._failures -= window[0]
        window.append(failed)
        self._failures += failed
        # What is under way has not failed. Without it, failures that come back at once would outvote, at every start,
        # the successes that take their time.
        begun = min(len(window) + self._under_way, options.window)
        if len(window) >= options.minimum and self._failures / max(begun, len(window)) >= options.failure_share:
            self._open(now)

    def _open(self, now: float) -> None:
        self._open_until = now + self._options.open_s
        self._become("open")

    def _become(self, state: State) -> None:
        self.state = state
        self._generation += 1
        self._probes.clear()
        self._succeeded = 0


class CircuitBreaker(anthropic.Middleware):
    """Refuses requests to a model class whose service is failing; see `BreakerOptions` for when.

    Only requests to `/v1/messages` pass it. A refused one raises `penstock.CircuitOpen`, and nothing was sent.

    Args:
        options: When breakers open and close; or give its fields as keywords.
        observers: Told of every change of state (`BreakerChanged`).
        **fields: Fields of `BreakerOptions`.

    Raises:
        pydantic.ValidationError: A field is unknown or out of range; it is also a `ValueError`.
        TypeError: Both `options` and fields were given.

    Example:
        >>> claude = anthropic.AsyncAnthropic(api_key="…", max_retries=0, middleware=[CircuitBreaker(open_s=10)])
    """

    def __init__(
        self, options: BreakerOptions | None = None, *, observers: Observers = _NO_OBSERVERS, **fields: object
    ) -> None:
        self._options = options_from(BreakerOptions, options, fields)
        self._observers = observers
        self._breakers: OrderedDict[str, Breaker] = OrderedDict()
        self._refused = 0

    def __repr__(self) -> str:
        broken = sum(breaker.state != "closed" for breaker in self._breakers.values())
        return f"<CircuitBreaker {len(self._breakers)} model classes, {broken} not closed>"

    def statistics(self) -> CircuitBreakerStatistics:
        """Return what the breaker of every model class is doing."""
        classes = {name: breaker.statistics() for name, breaker in self._breakers.items()}
        return CircuitBreakerStatistics(classes=classes, refused=self._refused)

    async def handle_async(self, request: APIRequest, call_next: CallNext) -> Response:
        """Send `request` on, unless the breaker of its model class refuses."""
        with open_attempt(request) as attempt:
            if attempt.call.kind is RequestKind.MESSAGES:
                self._enter(attempt)
            return await attempt.hand_on(request, call_next)

    def _enter(self, attempt: Attempt) -> None:
        model_class, now = attempt.call.model_class, attempt.call.clock()
        breaker = self._breaker_of(model_class)
        before = breaker.state
        passage = breaker.enter(now, bool if before == "closed" else _content_of(attempt))
        self._report(model_class, before, breaker)
        if passage is None:
            self._refused += 1
            raise _refusal(model_class, breaker, now)
        attempt.push(partial(self._leave, model_class, breaker, passage))

    def _leave(self, model_class: str, breaker: Breaker, passage: Passage, attempt: Attempt) -> None:
        before = breaker.state
        breaker.leave(passage, failed=failed_service(attempt), now=attempt.call.clock())
        self._report(model_class, before, breaker)

    def _report(self, model_class: str, before: State, breaker: Breaker) -> None:
        if breaker.state != before:
            self._observers.emit(BreakerChanged(model_class=model_class, before=before, after=breaker.state))

    def _breaker_of(self, model_class: str) -> Breaker:
        breakers = self._breakers
        breaker = breakers.get(model_class)
        if breaker is None:
            if len(breakers) >= _MOST_CLASSES:
                self._forget_one()
            breaker = breakers[model_class] = Breaker(self._options)
        else:
            breakers.move_to_end(model_class)
        return breaker

    def _forget_one(self) -> None:
        """Forget the idle class not used for longest: names come from callers, so there may be any number of them."""
        name = next((name for name, breaker in self._breakers.items() if breaker.idle), None)
        if name is not None:
            del self._breakers[name]


def failed_service(attempt: Attempt) -> bool | None:
    """Return whether an attempt that has ended shows that the service fails; `None` if it says nothing about it.

    Content that came is an answer, even if the caller then left.
    """
    failure = attempt.failure
    if failure is not None and failure.of_service:
        return True
    if failure is None or attempt.first_content_at is not None:
        return False
    return None if failure.dropped or failure.kind in _SILENT else False


def _content_of(attempt: Attempt) -> Callable[[], bool]:
    """Return what tells whether content has come.

    It holds the call weakly, so that the garbage collector still finds a body dropped unread, and ends its attempt.
    """
    reference = weakref.ref(attempt.call)

    def has_content() -> bool:
        call = reference()
        return call is not None and call.attempt is not None and call.attempt.first_content_at is not None

    return has_content


def _refusal(model_class: str, breaker: Breaker, now: float) -> CircuitOpen:
    wait_s = breaker.retry_after_s(now)
    seen = breaker.statistics()
    return CircuitOpen(
        f"the circuit breaker of model class {model_class[:100]!r} is {seen.state.replace('_', '-')}: "
        f"{seen.failures} of its last {seen.seen} attempts failed. Nothing was sent; try again in {wait_s:.3g} s, "
        "or use another model.",
        retry_after_s=wait_s,
    )
