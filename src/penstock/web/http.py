"""What a plain handler answers when asking failed: a status, a sentence, and when to come again.

The rule here: the status is for the browser, not the API's own. What is wrong with our key or our account is no 401 of
whoever asked us, and what is busy is a 503, whoever is busy. Nothing of an error's text gets out.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import anthropic
import httpx2
from starlette.responses import Response

from penstock._core.failure import (
    MOST_BELIEVED_S,
    FailureKind,
    failure_of_error_event,
    failure_of_exception,
)
from penstock.errors import (
    AdmissionTimeout,
    BudgetExceeded,
    CircuitOpen,
    ClientClosed,
    ContextOverflow,
    ConversationChanged,
    InvalidHistory,
    InvalidImage,
    InvalidOutput,
    InvalidStream,
    ItemFailed,
    NoKeyAvailable,
    PenstockError,
    QueueFull,
    RequestExceedsQuota,
    ResponseTooLarge,
    StreamInterrupted,
    SystemPromptChanged,
    UnsafeInput,
)
from penstock.web.frames import encoded, error_frame, wait_s

if TYPE_CHECKING:
    from penstock._core.failure import Failure

__all__ = ["http_error"]

_FAILED: Final = 500
_BAD_GATEWAY: Final = 502
_BUSY: Final = 503
_TOO_LATE: Final = 504
_TOO_LARGE: Final = 413
_UNPROCESSABLE: Final = 422

_OURS: Final[tuple[tuple[int, tuple[type[PenstockError], ...]], ...]] = (
    (409, (ConversationChanged, SystemPromptChanged)),
    (_TOO_LARGE, (ContextOverflow, RequestExceedsQuota)),
    (_UNPROCESSABLE, (InvalidHistory, InvalidImage, UnsafeInput)),
    (429, (BudgetExceeded,)),
    (_BAD_GATEWAY, (InvalidOutput, InvalidStream, ResponseTooLarge, StreamInterrupted)),
    (_BUSY, (AdmissionTimeout, CircuitOpen, ClientClosed, NoKeyAvailable, QueueFull)),
)
_OF_KIND: Final = {
    FailureKind.CONNECTION: _BAD_GATEWAY,
    FailureKind.INVALID: _BAD_GATEWAY,
    FailureKind.SERVER: _BAD_GATEWAY,
    FailureKind.OVERLOADED: _BUSY,
    FailureKind.RATE_LIMITED: _BUSY,
    FailureKind.TIMEOUT: _TOO_LATE,
}
# What whoever asks us may have caused; any other 4xx is a matter of how we ask.
_OF_STATUS: Final = {400: _UNPROCESSABLE, 413: _TOO_LARGE, 422: _UNPROCESSABLE}


def http_error(error: Exception) -> Response:
    """Return the answer to a request whose work failed with `error`, for handlers that don't stream.

    Args:
        error: Any: of penstock, of the SDK, or another, which is a 500.

    Returns:
        A response with a status, the JSON of an error frame (type and a sentence for people; never the error's own
        text), and `Retry-After` where the error says when asking again may help.

    Example:
        >>> from penstock.errors import CircuitOpen
        >>> answer = http_error(CircuitOpen("open", retry_after_s=2.5))
        >>> answer.status_code, answer.headers["retry-after"]
        (503, '3')
    """
    if isinstance(error, StreamInterrupted) and error.cause is not None:
        error = error.cause
    status = _status_of(error)
    seconds = wait_s(error) if status == _BUSY else None
    if seconds is not None and not 0 <= seconds <= MOST_BELIEVED_S:
        seconds = None
    headers = {"Cache-Control": "no-store"} | ({} if seconds is None else {"Retry-After": str(math.ceil(seconds))})
    body = encoded(error_frame(error), wait_s=seconds)
    return Response(body, status_code=status, headers=headers, media_type="application/json")


def _status_of(error: Exception) -> int:
    for status, kinds in _OURS:
        if isinstance(error, kinds):
            return status
    failure = _failure_of(error)
    if failure is None or failure.of_account:
        return _FAILED
    return _OF_KIND.get(failure.kind) or _OF_STATUS.get(failure.status or 0, _FAILED)


def _failure_of(error: Exception) -> Failure | None:
    """Return what the API, or the way to it, has to do with an error; `None` if nothing."""
    if isinstance(error, ItemFailed):
        return None if error.body is None else failure_of_error_event(error.body)
    if isinstance(error, anthropic.APIError | httpx2.HTTPError):
        return failure_of_exception(error)
    return None
