"""What the caller says about the requests made in a block: labels, a deadline, and how patient they are.

The rule here: everything is a `ContextVar`, so that tasks started inside a block inherit it and other tasks don't see
it. A block that is left in another context than it was entered in (a generator closed elsewhere) does nothing rather
than raise.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from contextvars import ContextVar, Token
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, Generic, Literal, Protocol, TypeVar, get_args

import anyio

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import TracebackType

__all__ = [
    "PRIORITIES",
    "EndedCall",
    "Patience",
    "Pin",
    "Priority",
    "current_call_end",
    "current_deadline",
    "current_labels",
    "current_patience",
    "current_pin",
    "deadline",
    "labels",
    "on_call_end",
    "patience",
    "pinned",
]

T = TypeVar("T")
Priority = Literal["interactive", "default", "batch"]
PRIORITIES: Final[tuple[Priority, ...]] = get_args(Priority)

_NO_LABELS: Mapping[str, str] = MappingProxyType({})
_labels: ContextVar[Mapping[str, str]] = ContextVar("penstock_labels", default=_NO_LABELS)
_deadline: ContextVar[float] = ContextVar("penstock_deadline", default=math.inf)


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How a batch item differs from an ordinary call.

    Attributes:
        max_attempts: Attempts for each item, at least 1.
        deadline_s: Seconds for each item, waits included; `None` for no bound.
    """

    max_attempts: int = 10
    deadline_s: float | None = None


class EndedCall(Protocol):
    """What is told of a call that has ended.

    Attributes:
        attempts: Attempts made.
        queued_s: Seconds spent waiting in line, all attempts together.
    """

    attempts: int
    queued_s: float


@dataclass(slots=True, kw_only=True)
class Pin:
    """Where requests belong that only the keys of one quota may make, such as all that concern one message batch.

    It begins empty, is filled in by the first of them that succeeds, and keeps the others there.

    Attributes:
        key: Name of the key.
        quota: Name of its quota; where the key is no longer there, another one of this quota is used.
    """

    key: str | None = None
    quota: str | None = None


_patience: ContextVar[Patience | None] = ContextVar("penstock_patience", default=None)
_pin: ContextVar[Pin | None] = ContextVar("penstock_pin", default=None)
_call_end: ContextVar[Callable[[EndedCall], None] | None] = ContextVar("penstock_call_end", default=None)


class _Scoped(ABC, Generic[T]):
    """Sets a `ContextVar` for a `with` block; may be entered many times, one inside the other."""

    __slots__ = ("_tokens", "_var")

    def __init__(self, var: ContextVar[T]) -> None:
        self._var = var
        self._tokens: list[Token[T]] = []

    @abstractmethod
    def _value(self) -> T: ...

    def __enter__(self) -> None:
        self._tokens.append(self._var.set(self._value()))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Several tasks may be inside the same block object: the newest token that this context takes back is its own.
        for token in reversed(self._tokens):
            try:
                self._var.reset(token)
            except ValueError:
                continue
            self._tokens.remove(token)
            return
        # Left in another context: the context it was set in is gone or not ours to change.


class labels(_Scoped["Mapping[str, str]"]):  # noqa: N801 - used as a statement, `with labels(user="u1"):`
    """Label every request made inside the block; blocks nest, and an inner label wins.

    Args:
        priority: `"interactive"`, `"default"` or `"batch"`; decides the place in the waiting line.
        **values: Any labels, e.g. `user`, `feature`, `session`, `request_type`. Labels appear in logs and statistics:
            put no content in them.

    Raises:
        ValueError: An unknown `priority`.
        TypeError: A value that is not a `str`.

    Example:
        >>> with labels(user="u1", priority="interactive"):
        ...     dict(current_labels())
        {'user': 'u1', 'priority': 'interactive'}
    """

    __slots__ = ("_values",)

    def __init__(self, *, priority: Priority | None = None, **values: str) -> None:
        super().__init__(_labels)
        if priority is not None:
            if priority not in PRIORITIES:
                raise ValueError(f"priority must be one of {', '.join(PRIORITIES)}, not {priority!r}")
            values["priority"] = priority
        given: dict[str, object] = dict(values)
        for name, value in given.items():
            if not isinstance(value, str):
                raise TypeError(f"label {name!r} must be a str, not {type(value).__name__}")
        self._values = values

    def _value(self) -> Mapping[str, str]:
        return MappingProxyType({**_labels.get(), **self._values})


class deadline(_Scoped[float]):  # noqa: N801 - used as a statement, `with deadline(30):`
    """Bound every call made inside the block, waits and attempts together; the earliest of nested deadlines holds.

    A call returns or raises by then; a stream counts as returned once its first content is there, and may be read on.

    Args:
        seconds: Seconds from entry of the block, more than 0. Entry needs a running event loop.

    Raises:
        ValueError: `seconds` is not a number above 0.

    Example:
        >>> async def main() -> None:
        ...     with deadline(30):
        ...         print(round(current_deadline() - anyio.current_time()))
        >>> anyio.run(main)
        30
    """

    __slots__ = ("_seconds",)

    def __init__(self, seconds: float) -> None:
        super().__init__(_deadline)
        if not seconds > 0:
            raise ValueError(f"a deadline must be more than 0 seconds away, not {seconds!r}")
        self._seconds = seconds

    def _value(self) -> float:
        return min(_deadline.get(), anyio.current_time() + self._seconds)


class patience(_Scoped["Patience | None"]):  # noqa: N801 - used as a statement
    """Treat calls inside the block as items of a batch: more attempts, and waits where an ordinary call fails at once.

    Example:
        >>> with patience(Patience(max_attempts=10)):
        ...     current_patience()
        Patience(max_attempts=10, deadline_s=None)
    """

    __slots__ = ("_options",)

    def __init__(self, options: Patience) -> None:
        super().__init__(_patience)
        self._options = options

    def _value(self) -> Patience:
        return self._options


class on_call_end(_Scoped["Callable[[EndedCall], None] | None"]):  # noqa: N801 - used as a statement
    """Have a function told of every call made inside the block, when it has ended.

    A call made inside another, by a middleware, ends before it; so the last one told of is the caller's own.

    Example:
        >>> with on_call_end(lambda call: print(call.attempts)):
        ...     current_call_end() is None
        False
    """

    __slots__ = ("_told",)

    def __init__(self, told: Callable[[EndedCall], None]) -> None:
        super().__init__(_call_end)
        self._told = told

    def _value(self) -> Callable[[EndedCall], None]:
        return self._told


class pinned(_Scoped["Pin | None"]):  # noqa: N801 - used as a statement
    """Make the requests inside the block with keys of one quota; messages and token counts choose theirs as ever.

    Example:
        >>> with pinned(Pin(key="key-f2d4b279")):
        ...     current_pin()
        Pin(key='key-f2d4b279', quota=None)
    """

    __slots__ = ("_pin",)

    def __init__(self, pin: Pin) -> None:
        super().__init__(_pin)
        self._pin = pin

    def _value(self) -> Pin:
        return self._pin


def current_labels() -> Mapping[str, str]:
    """Return the labels in force here, read-only."""
    return _labels.get()


def current_deadline() -> float:
    """Return the deadline in force here, as a time of the event loop; infinity if there is none."""
    return _deadline.get()


def current_pin() -> Pin | None:
    """Return the pin in force here; `None` where any key will do."""
    return _pin.get()


def current_patience() -> Patience | None:
    """Return the patience in force here; `None` for ordinary calls."""
    return _patience.get()


def current_call_end() -> Callable[[EndedCall], None] | None:
    """Return the function to be told of the ends of calls made here, if any."""
    return _call_end.get()
