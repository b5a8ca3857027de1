"""What a stream that breaks off is told by: an error, a sentence, and what had come of the message.

The rule here: a failure before the first content is what any request may raise, and the SDK's own; after it, it is a
`StreamInterrupted`. No sentence quotes content.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final, cast

import anthropic
import httpx2

from penstock._core.body.answer_errors import as_sdk_error
from penstock.errors import ClientClosed, ResponseTooLarge, StreamInterrupted

if TYPE_CHECKING:
    from anthropic.types import Message
    from anthropic.types.beta import BetaMessage

    from penstock._core.usage import Usage
    from penstock.streaming.accumulate import AnyMessage

__all__ = ["ended_early", "error_of_event", "interruption"]


def error_of_event(text: str, response: httpx2.Response) -> anthropic.APIStatusError:
    """Return what the SDK raises for an `error` event inside an answer of status 200."""
    body: object = text
    try:
        body = json.loads(text)
        message = f"{body}"
    except (ValueError, RecursionError):
        message = text or f"Error code: {response.status_code}"
    return anthropic.APIStatusError(message, response=response, body=body)


def ended_early(response: httpx2.Response) -> anthropic.APIConnectionError:
    """Return the error for a body that ended without `message_stop`."""
    return anthropic.APIConnectionError(message="The stream ended before its last event.", request=response.request)


def interruption(
    cause: Exception, snapshot: AnyMessage | None, usage: Usage, *, response: httpx2.Response, begun: bool
) -> Exception:
    """Return what is raised for a stream that broke off.

    Args:
        cause: The error of the SDK or the transport behind it.
        snapshot: The message as far as it came; `None` if not even its start did.
        usage: What it used, as far as known.
        response: The answer.
        begun: Whether content has come.
    """
    if not begun:
        return as_sdk_error(cause, response.request)
    # Whoever keeps it must not take it for a whole answer.
    partial = snapshot and snapshot.model_copy(update={"stop_reason": None, "stop_sequence": None})
    error = StreamInterrupted(
        f"{_what_happened(cause)} after its first content (request {response.headers.get('request-id')}). "
        "`partial` holds what came. Ask again, or ask to go on from there.",
        partial=cast("Message | BetaMessage | None", partial),
        usage=usage,
        cause=cause,
    )
    error.__cause__ = cause
    return error


# The first that matches holds.
_TOLD: Final[tuple[tuple[type[Exception], str], ...]] = (
    (anthropic.APIStatusError, "the API broke the stream off ({type})"),
    (anthropic.APIConnectionError, "the stream ended without its last event"),
    (httpx2.TimeoutException, "the stream fell silent"),
    (httpx2.TransportError, "the connection broke off ({name})"),
    (ResponseTooLarge, "the stream grew larger than any answer of the API"),
    (httpx2.StreamClosed, "the stream was closed"),
    (ClientClosed, "the client was closed while this stream was read,"),
)
_NOT_UNDERSTOOD: Final = "the stream holds what can't be understood ({name})"


def _what_happened(cause: Exception) -> str:
    told = next((told for of, told in _TOLD if isinstance(cause, of)), _NOT_UNDERSTOOD)
    return told.format(name=type(cause).__name__, type=getattr(cause, "type", None) or "error")
