"""What a failure means: may it be tried again, does it speak of the service's health, may it have been billed.

The rule here: one table for all guards. Classification follows the status codes and error codes that the API documents
under "Errors"; a header `x-should-retry` wins over it, as in the official SDK, except that a spend cap is always final.
"""

from __future__ import annotations

import email.utils
import enum
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, cast

import anthropic
import httpx2
from pydantic_core import from_json

from penstock._core.clock import wall_now
from penstock.errors import InvalidStream, PenstockError, ResponseTooLarge

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "ABANDONED",
    "CLOSED",
    "INCOMPLETE",
    "Failure",
    "FailureKind",
    "failure_of_error_event",
    "failure_of_exception",
    "failure_of_response",
    "retry_after_s",
]


class FailureKind(enum.Enum):
    """Why an attempt did not end well; the value is what logs and statistics show."""

    REFUSED = "refused"
    """By one of our guards; nothing was sent."""
    CANCELLED = "cancelled"
    """By the caller's own cancellation or deadline."""
    ABANDONED = "abandoned"
    """The caller closed a stream before its end."""
    CONNECTION = "connection"
    """The connection failed, or the answer broke off."""
    TIMEOUT = "timeout"
    RATE_LIMITED = "rate_limited"
    """429: the quota's limit."""
    SPEND_CAP = "spend_cap"
    """429 with the error code of a spend limit: final."""
    AUTHENTICATION = "authentication"
    """401: the key."""
    REQUEST = "request"
    """Any other 4xx: the request itself."""
    OVERLOADED = "overloaded"
    """529, or `overloaded_error` inside a stream."""
    SERVER = "server"
    """Any other 5xx, or `api_error` inside a stream."""
    INVALID = "invalid"
    """The answer can't be understood."""
    OTHER = "other"
    """An exception that is none of the above, e.g. of a user's own middleware."""


_RETRYABLE = frozenset(
    {
        FailureKind.CONNECTION,
        FailureKind.TIMEOUT,
        FailureKind.RATE_LIMITED,
        FailureKind.OVERLOADED,
        FailureKind.SERVER,
        FailureKind.INVALID,
    }
)
_SERVICE = frozenset(
    {FailureKind.CONNECTION, FailureKind.TIMEOUT, FailureKind.OVERLOADED, FailureKind.SERVER, FailureKind.INVALID}
)
_NEVER_BILLED = frozenset(
    {
        FailureKind.REFUSED,
        FailureKind.RATE_LIMITED,
        FailureKind.SPEND_CAP,
        FailureKind.AUTHENTICATION,
        FailureKind.REQUEST,
        FailureKind.OVERLOADED,
    }
)
_SPEND_CAPS = frozenset({"enforced_spend_limit_reached", "contract_spend_limit_reached"})
_RETRYABLE_4XX = frozenset({408, 409})
_STATUS_OF_TYPE = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "billing_error": 402,
    "permission_error": 403,
    "not_found_error": 404,
    "conflict_error": 409,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "api_error": 500,
    "timeout_error": 504,
    "overloaded_error": 529,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """How an attempt failed.

    Attributes:
        kind: What sort of failure it was.
        status: HTTP status, or the one that an error inside a stream stands for; `None` without an answer.
        error_type: The API's `error.type`, else the name of the exception's class.
        error_code: The API's `error.details.error_code`.
        retry_after_s: Seconds that the server asks to wait.
        should_retry: The server's own word (`x-should-retry`).
        sent: False if the request certainly never left this machine.
    """

    kind: FailureKind
    status: int | None = None
    error_type: str | None = None
    error_code: str | None = None
    retry_after_s: float | None = None
    should_retry: bool | None = None
    sent: bool = True

    @property
    def retryable(self) -> bool:
        """Whether another attempt may succeed."""
        if self.kind is FailureKind.SPEND_CAP:
            return False
        if self.should_retry is not None:
            return self.should_retry
        return self.kind in _RETRYABLE or self.status in _RETRYABLE_4XX

    @property
    def of_service(self) -> bool:
        """Whether it speaks of the service's health, which is what a circuit breaker counts: never a 4xx or a 429."""
        return self.kind in _SERVICE

    @property
    def may_be_billed(self) -> bool:
        """Whether the API may have done work for it: only a refusal, a 4xx, a 529 or a request never sent is free."""
        return self.sent and self.kind not in _NEVER_BILLED


ABANDONED = Failure(kind=FailureKind.ABANDONED)
CLOSED = Failure(kind=FailureKind.CANCELLED, error_type="ClientClosed")
INCOMPLETE = Failure(kind=FailureKind.CONNECTION, error_type="IncompleteStream")


def _number(text: str | None) -> float | None:
    try:
        value = float(text) if text is not None else math.nan
    except ValueError:
        return None
    return value if 0 < value < math.inf else None


def _seconds_until(date: str, server_now: str | None) -> float | None:
    try:
        moment = email.utils.parsedate_to_datetime(date)
        now = email.utils.parsedate_to_datetime(server_now) if server_now else wall_now()
        seconds = (moment - now).total_seconds()
    except (ValueError, TypeError, OverflowError):
        return None
    return seconds if seconds > 0 else None


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Return the seconds that a response asks to wait: `retry-after-ms`, else `retry-after` (RFC 9110 §10.2.3).

    Zero, negative, past and unreadable values count as none. A date is compared with the response's own `date`, so that
    a wrong local clock does no harm.

    Example:
        >>> (
        ...     retry_after_s({"retry-after": "7"}),
        ...     retry_after_s({"retry-after-ms": "0", "retry-after": "2"}),
        ...     retry_after_s({}),
        ... )
        (7.0, 2.0, None)
    """
    milliseconds = _number(headers.get("retry-after-ms"))
    if milliseconds is not None:
        return milliseconds / 1000
    text = headers.get("retry-after")
    if text is None:
        return None
    return _number(text) or _seconds_until(text, headers.get("date"))


def _kind_of_status(status: int, error_code: str | None) -> FailureKind:
    if status == 429:
        return FailureKind.SPEND_CAP if error_code in _SPEND_CAPS else FailureKind.RATE_LIMITED
    if status == 401:
        return FailureKind.AUTHENTICATION
    if status == 529:
        return FailureKind.OVERLOADED
    return FailureKind.SERVER if status >= 500 else FailureKind.REQUEST


def _field(value: object, name: str) -> object:
    return cast("dict[str, object]", value).get(name) if isinstance(value, dict) else None


def _error_of(body: object) -> tuple[str | None, str | None]:
    """Return `error.type` and `error.details.error_code` of an error body, of whatever shape it is."""
    error = _field(body, "error")
    kind, code = _field(error, "type"), _field(_field(error, "details"), "error_code")
    return (kind if isinstance(kind, str) else None), (code if isinstance(code, str) else None)


def failure_of_response(response: httpx2.Response) -> Failure:
    """Classify an error response whose body has been read (or can't be)."""
    try:
        body: object = from_json(response.content)
    except (ValueError, httpx2.ResponseNotRead):
        body = None
    error_type, error_code = _error_of(body)
    word = response.headers.get("x-should-retry")
    return Failure(
        kind=_kind_of_status(response.status_code, error_code),
        status=response.status_code,
        error_type=error_type,
        error_code=error_code,
        retry_after_s=retry_after_s(response.headers),
        should_retry={"true": True, "false": False}.get(word or ""),
    )


def failure_of_error_event(data: object) -> Failure:
    """Classify the data of an `error` event inside an HTTP 200 stream; an unknown type counts as a server error."""
    error_type, error_code = _error_of(data)
    status = _STATUS_OF_TYPE.get(error_type or "", 500)
    return Failure(
        kind=_kind_of_status(status, error_code), status=status, error_type=error_type, error_code=error_code
    )


def failure_of_exception(error: BaseException) -> Failure:
    """Classify what a chain or a body raised."""
    if isinstance(error, anthropic.APIStatusError):
        return failure_of_response(error.response)
    kind = _kind_of_exception(error)
    return Failure(
        kind=kind,
        error_type=type(error).__name__,
        should_retry=_word_of(error),
        sent=kind is not FailureKind.REFUSED and _was_sent(error),
    )


def _word_of(error: BaseException) -> bool | None:
    """What an exception itself says about trying again."""
    if isinstance(error, ResponseTooLarge):
        return False
    return True if isinstance(error, anthropic.RetryableError) else None


# The first that matches holds.
_KINDS: Final[tuple[tuple[type[BaseException], FailureKind], ...]] = (
    (InvalidStream, FailureKind.INVALID),
    (ResponseTooLarge, FailureKind.INVALID),
    (PenstockError, FailureKind.REFUSED),
    (anthropic.APITimeoutError, FailureKind.TIMEOUT),
    (httpx2.TimeoutException, FailureKind.TIMEOUT),
    (anthropic.APIConnectionError, FailureKind.CONNECTION),
    (httpx2.TransportError, FailureKind.CONNECTION),
    (httpx2.DecodingError, FailureKind.INVALID),
    (Exception, FailureKind.OTHER),
    (GeneratorExit, FailureKind.ABANDONED),
)


def _kind_of_exception(error: BaseException) -> FailureKind:
    return next((kind for of, kind in _KINDS if isinstance(error, of)), FailureKind.CANCELLED)


def _was_sent(error: BaseException) -> bool:
    """Whether the request may have reached the server: not if no connection was ever made.

    The SDK's aiohttp transport reports a connection that the server dropped as `ConnectError` too; only the aiohttp
    error below it, its cause, tells whether there had been a connection: `…Connector…` errors are raised
    while making one.
    """
    cause = error if isinstance(error, httpx2.TransportError) else error.__cause__
    if isinstance(cause, httpx2.ConnectTimeout | httpx2.PoolTimeout):
        return False
    if isinstance(cause, httpx2.ConnectError):
        below = type(cause.__cause__)
        return below.__module__.startswith("aiohttp") and "Connector" not in below.__name__
    return True
