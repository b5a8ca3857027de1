"""What is raised for an answer that is none: the SDK's own errors, or those of this package, and no others.

The rule here: no error quotes what a decoder could not decode, or what another than the API says.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import anthropic
import httpx2

from penstock._core.body.scanner import NOT_A_STREAM
from penstock._core.body.sse import field_of
from penstock.errors import InvalidStream

if TYPE_CHECKING:
    from penstock._core.body.scanner import Scanner

__all__ = ["as_sdk_error", "ended_early", "error_of_answer", "request_of"]


def request_of(http: httpx2.Response) -> httpx2.Request:
    """Return the request of a response, which one that a middleware made up has not; errors need one."""
    try:
        return http.request
    except RuntimeError:
        http.request = httpx2.Request("POST", "https://answered.invalid/v1/messages")
        return http.request


def ended_early(http: httpx2.Response) -> anthropic.APIConnectionError:
    """Return what to raise for a stream that has ended before its first content."""
    return anthropic.APIConnectionError(message="The stream ended before its first content.", request=request_of(http))


def error_of_answer(http: httpx2.Response, scanner: Scanner) -> Exception | None:
    """Return what to raise for an answer that has failed; `None` if the SDK raises it as it reads."""
    if scanner.error is not None:
        return scanner.error
    request_of(http)
    says = scanner.document
    if scanner.is_document and field_of(says, "error") is None and field_of(says, "type") != "error":
        told = "is no message"
        if scanner.failure is NOT_A_STREAM:
            told = "is one whole message where a stream was asked for: something in between does not stream"
        return anthropic.APIResponseValidationError(http, None, message=f"the API's answer {told}")
    if scanner.is_document or scanner.unheard:
        # In the API's own form it may be shown, as the SDK shows it; what another says may quote anything.
        told = f"{says}" if field_of(says, "type") == "error" else "the API's answer is an error, and of another's form"
        return anthropic.APIStatusError(told, response=http, body=says)
    return None


def as_sdk_error(error: Exception, request: httpx2.Request) -> Exception:
    """Return what a caller expects in place of what broke a body: the SDK's errors, or those of this package.

    Args:
        error: What the transport, the decoders or the SDK raised.
        request: That the body answers.
    """
    if isinstance(error, httpx2.TimeoutException):
        mapped: Exception = anthropic.APITimeoutError(request=request)
    elif isinstance(error, httpx2.TransportError):
        mapped = anthropic.APIConnectionError(request=request)
    elif isinstance(error, anthropic.AnthropicError | httpx2.StreamError):
        return error
    else:
        # What decoders raise holds what they could not decode, and must not be printed.
        mapped = InvalidStream(f"it can't be understood ({type(error).__name__})", position=0)
        mapped.__suppress_context__ = True
        return mapped
    mapped.__cause__ = error
    return mapped
