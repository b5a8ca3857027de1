"""The request log: one JSON line for every call, and one for every other fact that guards report.

The rule here: the library logs through the standard library's logger `penstock` and leaves it to the application where
that goes; it prints nothing, and doesn't touch structlog's configuration, which is the application's. A line holds
names, numbers and labels, never content, and no text in it can be long or break it.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import sys
import threading
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, TextIO, cast

import structlog

from penstock._core.clock import wall_now
from penstock._core.failure import FailureKind
from penstock.events import (
    BackgroundFailed,
    BreakerChanged,
    CallEnded,
    Event,
    GiveBackFailed,
    KeyChanged,
    LimitsLearned,
    NetworkChanged,
    RetryScheduled,
)

if TYPE_CHECKING:
    from collections.abc import MutableMapping

__all__ = ["BufferedHandler", "JSONFormatter", "LogObserver", "json_handler"]

_LONGEST_TEXT: Final = 200
_MOST_LABELS: Final = 32
# Back-off is shorter: whoever waits for so long was asked to.
_LONG_S: Final = 60.0
_BY_THE_CALLER: Final = frozenset({FailureKind.CANCELLED.value, FailureKind.ABANDONED.value})
_METHODS: Final = {logging.DEBUG: "debug", logging.INFO: "info", logging.WARNING: "warning", logging.ERROR: "error"}
_LEVELS: Final[dict[type[Event], int]] = {
    LimitsLearned: logging.DEBUG,
    GiveBackFailed: logging.ERROR,
    BackgroundFailed: logging.ERROR,
}

_root = logging.getLogger("penstock")

# ASCII only, so that neither a stream's encoding nor an exotic line separator can break a line.
_encode = json.JSONEncoder(separators=(",", ":"), check_circular=False).encode


class _Line(str):
    """A message that is a JSON line already."""

    __slots__ = ()


class LogObserver:
    """An observer that logs every event as a JSON line; failed calls as warnings, short retries for debugging only.

    Args:
        logger: Where the lines go; the logger `penstock` if not given.

    Example:
        >>> from penstock.events import QuotaCooled
        >>> logger = logging.getLogger("penstock")
        >>> logger.setLevel(logging.INFO)
        >>> logger.addHandler(json_handler(sys.stderr))
        >>> LogObserver()(QuotaCooled(quota="default", model_class="sonnet-5-5", seconds=2.0))
    """

    def __init__(self, logger: logging.Logger | None = None) -> None:
        self._logger = logger or _root
        self._lines: structlog.BoundLogger = structlog.wrap_logger(
            self._logger, processors=[_line], wrapper_class=structlog.BoundLogger, context_class=dict
        ).bind()

    def __repr__(self) -> str:
        return f"<LogObserver to {self._logger.name!r}>"

    def __call__(self, event: Event) -> None:
        """Log `event`, if its level is switched on."""
        level = _level_of(event)
        if self._logger.isEnabledFor(level):
            fields = _call_fields(event) if isinstance(event, CallEnded) else _fields(event)
            getattr(self._lines, _METHODS[level])(_name_of(type(event).__name__), **fields)


def _level_of(event: Event) -> int:
    if isinstance(event, CallEnded):
        return logging.INFO if event.failure is None or event.failure in _BY_THE_CALLER else logging.WARNING
    if isinstance(event, BreakerChanged):
        return logging.WARNING if event.after == "open" else logging.INFO
    if isinstance(event, RetryScheduled):
        if event.disbelieved_s is not None:
            return logging.WARNING
        return logging.INFO if event.delay_s >= _LONG_S else logging.DEBUG
    if isinstance(event, KeyChanged | NetworkChanged):
        well = event.state == "ok" if isinstance(event, KeyChanged) else event.problem is None
        return logging.INFO if well else logging.WARNING
    return _LEVELS.get(type(event), logging.INFO)


@cache
def _name_of(kind: str) -> str:
    """`CallEnded` is logged as `call_ended`."""
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in kind).lstrip("_")


def _line(_logger: object, method: str, event_dict: MutableMapping[str, Any]) -> _Line:
    event = event_dict.pop("event")
    return _Line(_encode({"timestamp": wall_now().isoformat(), "level": method, "event": event, **event_dict}))


def _call_fields(event: CallEnded) -> dict[str, object]:
    usage = event.usage
    return {
        "call_id": event.call_id,
        "request_id": _cut(event.request_id),
        "kind": event.kind,
        "model": _cut(event.model),
        "stream": event.stream,
        "status": event.status,
        "failure": event.failure,
        "error_type": _cut(event.error_type),
        "stop_reason": _cut(event.stop_reason),
        "attempts": event.attempts,
        "latency_ms": _milliseconds(event.latency_s),
        "queue_ms": _milliseconds(event.queued_s),
        "first_token_ms": None if event.first_token_s is None else _milliseconds(event.first_token_s),
        "input_tokens": usage.input_tokens,
        "output_tokens": usage.output_tokens,
        "cache_write_tokens": usage.cache_creation_input_tokens,
        "cache_read_tokens": usage.cache_read_input_tokens,
        "estimated": usage.estimated,
        "key": event.key,
        "labels": _values(event.labels),
    }


def _fields(event: Event) -> dict[str, object]:
    return {field.name: _value(getattr(event, field.name)) for field in dataclasses.fields(event)}


def _value(value: object) -> object:
    if isinstance(value, str):
        return _cut(value)
    if isinstance(value, float):
        return round(value, 3) if math.isfinite(value) else None
    if value is None or isinstance(value, int):
        return value
    if isinstance(value, Mapping):
        return _values(cast("Mapping[str, object]", value))
    # Anything else could show content by its repr.
    return type(value).__name__


def _cut(text: str | None) -> str | None:
    if text is None or len(text) <= _LONGEST_TEXT:
        return text
    return text[: _LONGEST_TEXT - 1] + "…"


def _values(values: Mapping[str, object]) -> dict[str | None, object]:
    return {_cut(name): _value(value) for name, value in islice(values.items(), _MOST_LABELS)}


def _milliseconds(seconds: float) -> float:
    return round(seconds * 1000, 1)


class JSONFormatter(logging.Formatter):
    """Leaves the lines of `LogObserver` as they are, and makes JSON lines of all other records."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of `record`."""
        if isinstance(record.msg, _Line):
            return record.msg
        line = {
            "timestamp": datetime.fromtimestamp(record.created, UTC).isoformat(),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            "logger": record.name,
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return _encode(line)


class BufferedHandler(logging.Handler):
    """Writes many lines at a time, because writing and flushing one by one costs as much as making them.

    Lines are written when `most_lines` are waiting; when the oldest has waited for `oldest_s`, by a thread; with every
    error; when the handler is flushed or closed; and when the interpreter exits, as the standard library closes all
    handlers then.

    Args:
        stream: A text stream; never closed here.
        most_lines: Lines that may wait, 1 or more; 1 writes each at once.
        oldest_s: Seconds that a line may wait, 0 or more; 0 writes each at once.

    Raises:
        ValueError: An argument is out of its range.
    """

    def __init__(self, stream: TextIO, *, most_lines: int = 100, oldest_s: float = 1.0) -> None:
        if most_lines < 1 or not oldest_s >= 0:
            raise ValueError(f"most_lines must be at least 1 and oldest_s at least 0, not {most_lines} and {oldest_s}")
        super().__init__()
        self._stream = stream
        self._most_lines = most_lines
        self._oldest_s = oldest_s
        self._lines: list[str] = []
        self._timer: threading.Timer | None = None

    def __repr__(self) -> str:
        return f"<BufferedHandler {len(self._lines)} lines waiting>"

    def emit(self, record: logging.LogRecord) -> None:
        """Take a record; called with the handler's lock held."""
        try:
            self._lines.append(self.format(record))
            if len(self._lines) >= self._most_lines or record.levelno >= logging.ERROR or not self._is_timed():
                self.flush()
        except Exception:  # noqa: BLE001 - reported by the standard library's own means: logging must not break a call
            self.handleError(record)

    def flush(self) -> None:
        """Write all lines that wait; those that can't be written are dropped."""
        self.acquire()
        try:
            if self._lines:
                text = "\n".join((*self._lines, ""))
                self._lines.clear()
                self._stream.write(text)
                self._stream.flush()
        finally:
            self.release()

    def close(self) -> None:
        """Write what waits; what comes yet, as the interpreter exits, is written at once."""
        self._most_lines = 1
        if self._timer is not None:
            self._timer.cancel()
        try:
            self.flush()
        finally:
            super().close()

    def _is_timed(self) -> bool:
        """See to it that what waits is written in time; whether it will be."""
        if self._oldest_s == 0:
            return False
        # A forked process has no thread but its first.
        if self._timer is None or not self._timer.is_alive():
            self._timer = threading.Timer(min(self._oldest_s, threading.TIMEOUT_MAX), self._write_late)
            self._timer.daemon = True
            try:
                self._timer.start()
            except RuntimeError:
                # The interpreter exits, or there are too many threads.
                return False
        return True

    def _write_late(self) -> None:
        self._timer = None
        try:
            self.flush()
        except Exception:  # noqa: BLE001 - as in `emit`; whoever logged is gone
            self.handleError(logging.makeLogRecord({"msg": "lines that waited"}))


def json_handler(stream: TextIO | None = None, *, most_lines: int = 100, oldest_s: float = 1.0) -> BufferedHandler:
    """Make a handler that writes JSON lines, many at a time; add it to the logger `penstock`, or to the root logger.

    Args:
        stream: A text stream; standard error if not given.
        most_lines: Lines that may wait, 1 or more; 1 writes each at once.
        oldest_s: Seconds that a line may wait, 0 or more; 0 writes each at once.

    Returns:
        The handler.

    Raises:
        ValueError: An argument is out of its range.

    Example:
        >>> logger = logging.getLogger("penstock")
        >>> logger.setLevel(logging.INFO)
        >>> logger.addHandler(json_handler(sys.stderr))
    """
    handler = BufferedHandler(sys.stderr if stream is None else stream, most_lines=most_lines, oldest_s=oldest_s)
    handler.setFormatter(JSONFormatter())
    return handler
