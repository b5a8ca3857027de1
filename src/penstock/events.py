"""The facts that guards report, and how they reach observers.

The rule here: events are small, frozen, and hold numbers, names and labels only, never a prompt, a completion or a key.
Observers are plain functions, called at once; one that raises is logged and never breaks a call.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from penstock._core.usage import Usage

__all__ = [
    "BackgroundFailed",
    "BreakerChanged",
    "CallEnded",
    "Event",
    "GiveBackFailed",
    "InputFlagged",
    "KeyChanged",
    "LimitsLearned",
    "NetworkChanged",
    "Observer",
    "Observers",
    "QuotaCooled",
    "RetryScheduled",
    "UsageDisbelieved",
]

_logger = logging.getLogger("penstock")
# Until the application adds a handler, nothing is shown, not even by the last resort of `logging`.
_logger.addHandler(logging.NullHandler())


def make_harmless(logger: logging.Logger) -> None:
    """Have what the application's handlers and filters raise told on the standard error, as `logging` tells of its own.

    Whoever logs in the middle of a call would fail it otherwise, when it is paid for.

    Args:
        logger: Whose records they handle; what is made harmless stays so.
    """
    if not isinstance(logger.handle, partial):
        logger.handle = partial(_handle, logger.handle)  # type: ignore[method-assign]


def _handle(handle: Callable[[logging.LogRecord], None], record: logging.LogRecord) -> None:
    try:
        handle(record)
    except Exception as error:  # noqa: BLE001 - a line of a log is worth less than an answer
        if logging.raiseExceptions and sys.stderr is not None:
            # Neither the record nor the traceback: the SDK's own lines hold content.
            with contextlib.suppress(OSError, ValueError):
                sys.stderr.write(f"a log handler or filter raised {type(error).__name__} on a line of {record.name}\n")


make_harmless(_logger)


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """A fact that a guard reports."""


Observer: TypeAlias = "Callable[[Event], None]"


@dataclass(frozen=True, slots=True, kw_only=True)
class CallEnded(Event):
    """A call is over, stream and all: what a log line and a ledger need.

    Attributes:
        call_id: Identifies the call within this process.
        request_id: The API's id of the last answer.
        kind: `messages`, `count_tokens` or `other`.
        model: As asked for.
        stream: Whether the answer was streamed.
        status: HTTP status of the last attempt; `None` if there was no answer.
        failure: The kind of failure (`penstock._core.failure.FailureKind`), `None` for success.
        error_type: The API's error type or the name of the exception's class.
        stop_reason: As the API gave it.
        attempts: Number of attempts.
        usage: Tokens of all attempts together, as far as known.
        latency_s: From start to end, body included.
        queued_s: Spent waiting in line, all attempts together.
        first_token_s: From start to the first content of a stream; `None` if there was none.
        key: Name of the last key used.
        labels: As set by the caller.
    """

    call_id: str
    request_id: str | None
    kind: str
    model: str
    stream: bool
    status: int | None
    failure: str | None
    error_type: str | None
    stop_reason: str | None
    attempts: int
    usage: Usage
    latency_s: float
    queued_s: float
    first_token_s: float | None
    key: str | None
    labels: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryScheduled(Event):
    """An attempt failed and another will follow after `delay_s` seconds.

    `disbelieved_s` is what the server asked to wait, if that was more than `max_retry_after_s`.
    """

    call_id: str
    attempt: int
    delay_s: float
    reason: str
    disbelieved_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class InputFlagged(Event):
    """Something unsafe was found in the input of a request; `action` is what was done: `strip`, `flag` or `refuse`."""

    call_id: str
    pattern: str
    place: str
    count: int
    action: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerChanged(Event):
    """The circuit breaker of a model class changed its state: `closed`, `open` or `half_open`."""

    model_class: str
    before: str
    after: str


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyChanged(Event):
    """A key changed its state: `ok` or `quarantined`; `again_s` is when it is probed next, `None` for never."""

    key: str
    state: str
    reason: str
    again_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class QuotaCooled(Event):
    """A 429 cooled a quota and model class down for `seconds`."""

    quota: str
    model_class: str
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkChanged(Event):
    """The API can't be reached, `problem` says why; or it has answered again, `None`."""

    problem: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitsLearned(Event):
    """Response headers taught the limits per minute of a quota and model class; `None` for those not sent."""

    quota: str
    model_class: str
    requests_per_minute: float | None
    input_tokens_per_minute: float | None
    output_tokens_per_minute: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageDisbelieved(Event):
    """An answer told more tokens than its request can have taken, or no input at all: its estimate stands instead."""

    call_id: str
    model: str
    input_tokens: int
    output_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GiveBackFailed(Event):
    """Giving something back at the end of a call raised; a defect worth a report."""

    call_id: str
    error_type: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BackgroundFailed(Event):
    """Background work of a client raised; it goes on with the rest."""

    error_type: str


class Observers:
    """Hands each event to every observer.

    Args:
        observers: Functions of one event; called synchronously, so they must be quick and must not block.

    Example:
        >>> seen = []
        >>> Observers((seen.append,)).emit(BackgroundFailed(error_type="OSError"))
        >>> seen[0].error_type
        'OSError'
    """

    __slots__ = ("_observers",)

    def __init__(self, observers: tuple[Observer, ...] = ()) -> None:
        self._observers = observers

    def __bool__(self) -> bool:
        return bool(self._observers)

    def __repr__(self) -> str:
        return f"<Observers {len(self._observers)}>"

    def emit(self, event: Event) -> None:
        """Hand `event` to every observer; one that raises is logged, by the name of its error only."""
        for observer in self._observers:
            try:
                observer(event)
            except Exception as error:  # noqa: BLE001 - an observer must never break a call
                _logger.error("observer raised %s on %s", type(error).__name__, type(event).__name__)  # noqa: TRY400 - a traceback may show content
