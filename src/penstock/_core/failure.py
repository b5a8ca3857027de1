"""What a failure means: whose it is, may it be tried again, may it have been billed.

The rule here: one table for all guards. A failure is the caller's, this machine's, the account's, one connection's, the
network's or the service's; only the last two count against the service. The status says what failed. Where the API
names a cause that says more than its status, it stands in `_CAUSES`; all others fall under their status. A header
`x-should-retry` wins over both, as in the official SDK, but not over a spend cap, nor where asking again blindly may do
harm.

Sources: https://platform.claude.com/docs/en/api/errors for statuses and types; the exceptions of the official SDK,
whose docstrings say what each `error_code` means.
"""

from __future__ import annotations

import email.utils
import enum
import errno
import math
import re
import ssl
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Final, cast

import anthropic
import httpx2
from anthropic.lib.credentials import WorkloadIdentityError
from pydantic_core import from_json

from penstock._core.clock import wall_now
from penstock.errors import InvalidStream, PenstockError, ResponseTooLarge

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = [
    "ABANDONED",
    "CLOSED",
    "INCOMPLETE",
    "MOST_BELIEVED_S",
    "Cause",
    "Failure",
    "FailureKind",
    "errors_below",
    "failure_of_error_event",
    "failure_of_exception",
    "failure_of_response",
    "retry_after_s",
    "was_dropped",
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
    EXHAUSTED = "exhausted"
    """This machine has run out of files, ports or connections, so that nothing was sent."""
    TIMEOUT = "timeout"
    RATE_LIMITED = "rate_limited"
    """429: the quota's limit."""
    SPEND_CAP = "spend_cap"
    """429 for a spend limit: final."""
    AUTHENTICATION = "authentication"
    """401: the key."""
    REQUEST = "request"
    """Any other 4xx: the request itself, or the account (402, 403); or a redirect that was not followed."""
    OVERLOADED = "overloaded"
    """529, or `overloaded_error` inside a stream."""
    SERVER = "server"
    """Any other 5xx, or `api_error` inside a stream."""
    INVALID = "invalid"
    """The answer can't be understood."""
    OTHER = "other"
    """An exception that is none of the above, e.g. of a user's own middleware, or of a request that can't be sent."""


class Cause(enum.Enum):
    """What a cause that the API names says beyond the status that it comes with."""

    SPEND_CAP = "spend_cap"
    """What one's own organization may spend is spent."""
    ACCOUNT = "account"
    """It speaks of the organization that the key belongs to, whatever the request is."""
    CUSTOMER = "customer"
    """It speaks of a customer's organization that was to pay for this one request, not of ours."""
    NOTHING_DONE = "nothing_done"
    """The request was not processed, and the same may succeed: retried, never billed."""
    PERMANENT = "permanent"
    """The same request would be refused for the same reason, though its status is one that is retried."""
    MAYBE_DONE = "maybe_done"
    """All or a part of it is done, or may be, or others have changed what it is about: never repeated blindly."""


_CAUSES: Final = {
    "enforced_spend_limit_reached": Cause.SPEND_CAP,
    "contract_spend_limit_reached": Cause.SPEND_CAP,
    # 400
    "organization_on_hold": Cause.ACCOUNT,
    "request_body_timeout": Cause.NOTHING_DONE,
    "external_key_validation_timed_out": Cause.NOTHING_DONE,
    # 402, 403: of the customer behind `user_profile_id`, with `bill_to: user_profile`.
    "linked_organization_billing_unavailable": Cause.CUSTOMER,
    "linked_organization_spend_limit_reached": Cause.CUSTOMER,
    "user_profile_billing_not_authorized": Cause.CUSTOMER,
    "user_profile_not_billable": Cause.CUSTOMER,
    # 409
    "gcp_project_controlled_by_another_organization": Cause.PERMANENT,
    "memory_path_conflict_error": Cause.PERMANENT,
    "memory_precondition_failed_error": Cause.PERMANENT,
    "plugin_name_taken": Cause.PERMANENT,
    "skill_name_taken": Cause.PERMANENT,
    "skill_read_blocked_undecryptable": Cause.PERMANENT,
    "storage_already_registered": Cause.PERMANENT,
    "storage_in_use": Cause.PERMANENT,
    "slack_channel_set_up_settings_conflict": Cause.MAYBE_DONE,
    "storage_attached_during_archive": Cause.MAYBE_DONE,
    "storage_changed_concurrently": Cause.MAYBE_DONE,
    "workspace_changed_concurrently": Cause.MAYBE_DONE,
    # 429: of one model, so that it says nothing of what the quota may do for others.
    "credits_required": Cause.PERMANENT,
    # 503
    "authorization_check_unavailable": Cause.NOTHING_DONE,
    "cmek_context_unavailable": Cause.NOTHING_DONE,
    "cmek_key_unreachable": Cause.NOTHING_DONE,
    "change_outcome_unknown": Cause.MAYBE_DONE,
    "registration_pending": Cause.MAYBE_DONE,
    "workspace_created_incomplete": Cause.MAYBE_DONE,
}
"""By `error.details.error_code`, else by `error.type`."""

_WORDS: Final = (
    (429, "spend limit", Cause.SPEND_CAP),
    # "Extra usage is required for long context requests.": of this request, so that waiting doesn't help.
    (429, "required for long context", Cause.PERMANENT),
    (400, "credit balance is too low", Cause.ACCOUNT),
    (400, "API usage limits", Cause.ACCOUNT),
    (400, "organization has been disabled", Cause.ACCOUNT),
    (403, "organization has been disabled", Cause.ACCOUNT),
    # Source: https://platform.claude.com/docs/en/build-with-claude/fallback-credit
    (400, "redemption temporarily unavailable", Cause.NOTHING_DONE),
)
"""Causes for which the API has words only. Words can change: then these fall under their status again."""

# Behind a colon or a quotation mark the API may repeat what it was sent: nobody's input may speak for the account.
_QUOTED: Final = re.compile("""[:"`]| '""")
_ACCOUNT_CAUSES: Final = frozenset({Cause.ACCOUNT, Cause.SPEND_CAP})

_PERMANENT_5XX: Final = frozenset({501, 505})

_RETRYABLE = frozenset(
    {
        FailureKind.CONNECTION,
        FailureKind.EXHAUSTED,
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
_RETRYABLE_4XX = frozenset({408, 409})
_ACCOUNT = frozenset({FailureKind.AUTHENTICATION, FailureKind.SPEND_CAP})
_FORBIDDEN = 403
_ACCOUNT_4XX = frozenset({402, _FORBIDDEN})
_OUTSIDE = frozenset({FailureKind.CONNECTION, FailureKind.EXHAUSTED, FailureKind.RATE_LIMITED, FailureKind.OVERLOADED})
# What stands before the service says so; a 500 or a 504 may well be the request's.
_AWAY = frozenset({502, 503})
_STATUS_OF_TYPE = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "billing_error": 402,
    "permission_error": 403,
    "not_found_error": 404,
    "conflict_error": 409,
    "memory_path_conflict_error": 409,
    "memory_precondition_failed_error": 409,
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
        cause: What the cause that the API names says beyond the status; `None` if nothing.
        words: Those of the API's message that name the cause, where no code does.
        retry_after_s: Seconds that the server asks to wait.
        should_retry: The server's own word (`x-should-retry`).
        sent: False if the request certainly never left this machine.
        dropped: Whether it is one connection's, which was closed as the request came: a server may do that to one that
            it was to keep. `Retry` says so, once in a call: what happens to a second one speaks of the service.
        elsewhere: Whether it is one key's, and another can serve.
    """

    kind: FailureKind
    status: int | None = None
    error_type: str | None = None
    error_code: str | None = None
    cause: Cause | None = None
    words: str | None = None
    retry_after_s: float | None = None
    should_retry: bool | None = None
    sent: bool = True
    dropped: bool = False
    elsewhere: bool = False

    @property
    def at_once(self) -> bool:
        """Whether it speaks of one key or one connection alone, so that another takes its place: that is no retry."""
        return self.dropped or self.elsewhere

    @property
    def retryable(self) -> bool:
        """Whether another attempt may succeed."""
        if self.at_once:
            return True
        if self.kind is FailureKind.SPEND_CAP or self.cause is Cause.MAYBE_DONE:
            return False
        if self.should_retry is not None:
            return self.should_retry
        if self.cause is Cause.PERMANENT or self.status in _PERMANENT_5XX:
            return False
        return self.cause is Cause.NOTHING_DONE or self.kind in _RETRYABLE or self.status in _RETRYABLE_4XX

    @property
    def of_service(self) -> bool:
        """Whether it speaks of the service's health, which is what a circuit breaker counts: never a 4xx or a 429."""
        return self.kind in _SERVICE and not self.dropped

    @property
    def of_account(self) -> bool:
        """Whether it speaks of the key or its organization, so that no request at all would fare better."""
        if self.cause is not None:
            return self.cause in _ACCOUNT_CAUSES
        return self.kind in _ACCOUNT or self.status in _ACCOUNT_4XX

    @property
    def of_key(self) -> bool:
        """Whether it speaks of the key alone, not of all that its organization has."""
        return self.kind is FailureKind.AUTHENTICATION or self.of_request_maybe

    @property
    def of_request_maybe(self) -> bool:
        """Whether it can be the request's as well as the key's: a 403 may forbid one model, or one feature."""
        return self.status == _FORBIDDEN and self.cause is None

    @property
    def mendable(self) -> bool:
        """Whether the same request may well succeed once something has changed that lies outside it.

        It speaks of who pays, of the quota, of this machine, of the network or of an overloaded service, and nothing
        else is known against the request.
        """
        pays = self.of_account or self.cause is Cause.CUSTOMER
        return pays or self.kind in _OUTSIDE or (self.kind is FailureKind.SERVER and self.status in _AWAY)

    @property
    def may_be_billed(self) -> bool:
        """Whether the API may have done work for it.

        Only a refusal, a 4xx, a 529, a request never sent or dropped with its connection, and one about which the API
        has done nothing are free.
        """
        free = self.kind in _NEVER_BILLED or self.cause is Cause.NOTHING_DONE or self.dropped
        return self.sent and not free


ABANDONED = Failure(kind=FailureKind.ABANDONED)
CLOSED = Failure(kind=FailureKind.CANCELLED, error_type="ClientClosed")
INCOMPLETE = Failure(kind=FailureKind.CONNECTION, error_type="IncompleteStream")
MOST_BELIEVED_S: Final = 3_600.0
"""Seconds that a server may ask to wait, unless told otherwise. Limits are per minute; no answer may lock us out."""


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
    a wrong local clock does no harm. However long it is: whether it is believed is for those to say who wait.

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


def _kind_of_status(status: int, cause: Cause | None) -> FailureKind:
    if status == 429:
        return FailureKind.SPEND_CAP if cause is Cause.SPEND_CAP else FailureKind.RATE_LIMITED
    if status == 401:
        return FailureKind.AUTHENTICATION
    if status == 529:
        return FailureKind.OVERLOADED
    return FailureKind.SERVER if status >= 500 else FailureKind.REQUEST


def _field(value: object, name: str) -> object:
    return cast("dict[str, object]", value).get(name) if isinstance(value, dict) else None


def _text(value: object, name: str) -> str | None:
    found = _field(value, name)
    return found if isinstance(found, str) else None


def _cause_of(
    status: int, error_type: str | None, error_code: str | None, message: str | None
) -> tuple[Cause | None, str | None]:
    """Return the cause that the API names, and the words by which it does, where those are all there is."""
    named = _CAUSES.get(error_code or "") or _CAUSES.get(error_type or "")
    if named is not None or message is None:
        return named, None
    own = _QUOTED.split(message, 1)[0]
    for of, words, cause in _WORDS:
        if of == status and words in (own if cause in _ACCOUNT_CAUSES else message):
            return cause, words
    return None, None


def _failure(status: int | None, error: object, headers: Mapping[str, str]) -> Failure:
    """Classify what the API says of an error; without a status, its type stands for one, unknown ones for a 500."""
    error_type = _text(error, "type")
    error_code = _text(_field(error, "details"), "error_code")
    status = _STATUS_OF_TYPE.get(error_type or "", 500) if status is None else status
    cause, words = _cause_of(status, error_type, error_code, _text(error, "message"))
    return Failure(
        kind=_kind_of_status(status, cause),
        status=status,
        error_type=error_type,
        error_code=error_code,
        cause=cause,
        words=words,
        retry_after_s=retry_after_s(headers),
        should_retry={"true": True, "false": False}.get(headers.get("x-should-retry", "")),
    )


def failure_of_response(response: httpx2.Response) -> Failure:
    """Classify an error response whose body has been read (or can't be)."""
    try:
        body: object = from_json(response.content)
    except (ValueError, httpx2.ResponseNotRead):
        body = None
    return _failure(response.status_code, _field(body, "error"), response.headers)


def failure_of_error_event(data: object) -> Failure:
    """Classify the data of an `error` event inside an HTTP 200 stream; an unknown type counts as a server error."""
    return _failure(None, _field(data, "error"), {})


def failure_of_exception(error: BaseException) -> Failure:
    """Classify what a chain or a body raised."""
    if isinstance(error, anthropic.APIStatusError):
        # The SDK raises for an error inside a stream what its HTTP status is: 200.
        in_stream = error.response.is_success
        return failure_of_error_event(error.body) if in_stream else failure_of_response(error.response)
    kind = _kind_of_exception(error)
    return Failure(
        kind=kind,
        error_type=type(error).__name__,
        should_retry=_word_of(error),
        sent=kind not in _NEVER_SENT and not _cannot_be_sent(error) and _was_sent(error),
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
    (anthropic.APIResponseValidationError, FailureKind.INVALID),
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
    if isinstance(error, anthropic.APIConnectionError | httpx2.TransportError):
        if _has_run_out(error):
            return FailureKind.EXHAUSTED
        if _cannot_be_sent(error) or isinstance(error.__cause__, _BLUNDERS):
            return FailureKind.OTHER
    return next((kind for of, kind in _KINDS if isinstance(error, of)), FailureKind.CANCELLED)


_NEVER_SENT: Final = frozenset({FailureKind.REFUSED, FailureKind.EXHAUSTED})
_NO_MORE: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL})
_UNSENDABLE: Final = (
    anthropic.CredentialsError,
    WorkloadIdentityError,
    httpx2.InvalidURL,
    httpx2.LocalProtocolError,
    httpx2.TooManyRedirects,
    httpx2.UnsupportedProtocol,
    ssl.SSLCertVerificationError,
)
# Neither a system nor a transport says of a connection that it failed by one of these.
_BLUNDERS: Final = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ExceptionGroup,
    LookupError,
    MemoryError,
    NameError,
    RuntimeError,
    TypeError,
    ValueError,
)
_DEEPEST: Final = 20


def _has_run_out(error: BaseException) -> bool:
    """Whether a connection could not be had because this machine has none left to give."""
    return any(
        isinstance(below, httpx2.PoolTimeout) or (isinstance(below, OSError) and below.errno in _NO_MORE)
        for below in errors_below(error)
    )


def _cannot_be_sent(error: BaseException) -> bool:
    """Whether the request, or the client's configuration, fails on this machine, and would each time.

    The SDK calls all of that a connection error: an address or header that is none, a certificate that isn't trusted.
    """
    if not isinstance(error, anthropic.AnthropicError | httpx2.TransportError | httpx2.InvalidURL):
        return False
    return isinstance(error.__cause__, ValueError | TypeError) or any(
        # Where httpcore doesn't translate what its h11 says, only the name is known.
        isinstance(below, _UNSENDABLE) or type(below).__name__ == "LocalProtocolError"
        for below in errors_below(error)
    )


def errors_below(error: BaseException) -> Iterator[BaseException]:
    """Give an error and what it says led to it, outermost first.

    What was merely being handled meanwhile isn't followed: that may be any other error, of the caller's own.
    """
    return islice(_below(error), _DEEPEST)


def _below(error: BaseException) -> Iterator[BaseException]:
    yield error
    # Where httpcore translates an error, it keeps it as an argument only.
    held: tuple[object, ...] = error.args
    if isinstance(error, BaseExceptionGroup):
        held = cast("BaseExceptionGroup[BaseException]", error).exceptions
    for below in (error.__cause__, *held):
        if isinstance(below, BaseException):
            yield from _below(below)


def was_dropped(error: BaseException) -> bool:
    """Whether a connection that was there was closed while an answer was waited for.

    A server may close one that is kept alive at any moment, also as the next request is on its way. Whether any of an
    answer had come, the error doesn't say.
    """
    cause = error if isinstance(error, httpx2.TransportError) else error.__cause__
    if isinstance(cause, httpx2.RemoteProtocolError):
        return "without sending a response" in str(cause)
    return isinstance(cause, httpx2.ReadError | httpx2.WriteError | httpx2.ConnectError) and _was_sent(error)


def _was_sent(error: BaseException) -> bool:
    """Whether the request may have reached the server: not if no connection was ever made.

    The SDK's aiohttp transport reports a connection that the server dropped as `ConnectError` too; only the aiohttp
    error below it, its cause, tells whether there had been a connection: `…Connector…` errors are raised
    while making one.
    """
    cause = error if isinstance(error, httpx2.TransportError) else error.__cause__
    if isinstance(cause, httpx2.ConnectTimeout | httpx2.PoolTimeout | httpx2.ProxyError):
        return False
    if isinstance(cause, httpx2.ConnectError):
        below = type(cause.__cause__)
        connecting = any("Connector" in each.__name__ for each in below.__mro__)
        return below.__module__.startswith("aiohttp") and not connecting
    return True
