"""What goes over the wire: frames as JSON, errors as a type and a sentence, and the close code that follows them.

The rule here: a browser is told what it can act on, and nothing of what an error's text may hold. The table of types
decides sentence and close code alike, wherever an error comes from.
"""

from __future__ import annotations

import enum
import json
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import anthropic

from penstock._core.failure import retry_after_s
from penstock.errors import StreamInterrupted, UnknownPrice
from penstock.streaming.relay import ErrorFrame, EventFrame, FinalFrame, Frame, TextFrame
from penstock.tools.events import ApprovalAsked, ToolDenied, ToolFinished, ToolStarted
from penstock.web.sources import RelayedLoop

if TYPE_CHECKING:
    from collections.abc import Callable
    from decimal import Decimal

    from penstock.streaming.stream import Stream

__all__ = ["CloseCode", "Cost", "close_code", "cost_of", "encoded", "error_frame", "wait_s"]

Cost: TypeAlias = "Callable[[Any], Decimal]"


class CloseCode(enum.IntEnum):
    """Why a WebSocket is closed after an error: RFC 6455 §7.4.1, and the registry of close codes at IANA."""

    POLICY = 1008
    """The browser took no frame for too long."""
    FAILED = 1011
    """The request failed, or the answer broke off."""
    RESTART = 1012
    """The server is shutting down: connect again."""
    TRY_LATER = 1013
    """Too much is asked for right now: connect again later."""


_TRY_LATER: Final = frozenset(
    {"AdmissionTimeout", "CircuitOpen", "NoKeyAvailable", "QueueFull", "overloaded_error", "rate_limit_error"}
)
_RESTART: Final = frozenset({"ClientClosed"})
# Asking for the same again gives the same.
_REFUSED: Final = frozenset(
    {
        "BudgetExceeded",
        "ContextOverflow",
        "ConversationChanged",
        "InvalidHistory",
        "InvalidImage",
        "KeyNotFound",
        "RequestExceedsQuota",
        "SystemPromptChanged",
        "UnsafeInput",
        "authentication_error",
        "billing_error",
        "invalid_request_error",
        "not_found_error",
        "permission_error",
        "request_too_large",
    }
)


def close_code(kind: str) -> CloseCode:
    """Return the code to close with after an error of this type.

    Example:
        >>> close_code("overloaded_error"), close_code("ReadTimeout")
        (<CloseCode.TRY_LATER: 1013>, <CloseCode.FAILED: 1011>)
    """
    if kind in _TRY_LATER:
        return CloseCode.TRY_LATER
    return CloseCode.RESTART if kind in _RESTART else CloseCode.FAILED


def error_frame(error: Exception, *, text_length: int = 0) -> ErrorFrame:
    """Return the frame for an error, under the name that a relay would give it."""
    cause = error.cause if isinstance(error, StreamInterrupted) and error.cause is not None else error
    kind = cause.type if isinstance(cause, anthropic.APIStatusError) and cause.type else type(cause).__name__
    return ErrorFrame(type=kind, message=str(error), text_length=text_length)


def wait_s(error: Exception) -> float | None:
    """Return the seconds after which asking again may help, if the error says so."""
    if isinstance(error, anthropic.APIStatusError):
        return retry_after_s(error.response.headers)
    seconds: float | None = getattr(error, "retry_after_s", None)
    return seconds


def cost_of(stream: Stream | RelayedLoop | None, cost: Cost | None) -> float | None:
    """Return what a whole message or loop cost, in USD; `None` if it is not whole, or nobody knows its price."""
    if stream is None or cost is None or not stream.complete:
        return None
    if isinstance(stream, RelayedLoop):
        return stream.cost_usd
    try:
        return float(cost(stream.current_message_snapshot))
    except UnknownPrice:
        return None


def encoded(
    frame: Frame, *, cost_usd: float | None = None, wait_s: float | None = None, estimated: bool = False
) -> str:
    """Return a frame as JSON.

    Args:
        frame: To be sent.
        cost_usd: Of the message, in a final frame.
        wait_s: Seconds after which asking again may help, in an error frame.
        estimated: Whether the usage in a final frame is less than what was used, because the message is not whole.

    Example:
        >>> encoded(TextFrame(text="Grüezi"))
        '{"type":"text","text":"Grüezi"}'
    """
    payload = _payload(frame, cost_usd, wait_s, estimated=estimated)
    text = _compact.encode(payload)
    try:
        text.encode()
    except UnicodeEncodeError:
        # Half of a surrogate pair, whose other half may come with the next frame.
        return _ascii.encode(payload)
    return text


# What a hook lets a tool run with may be any value of Python's.
_compact: Final = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), default=str)
_ascii: Final = json.JSONEncoder(separators=(",", ":"), default=str)


def _payload(frame: Frame, cost_usd: float | None, wait_s: float | None, *, estimated: bool) -> dict[str, object]:
    if isinstance(frame, TextFrame):
        return {"type": "text", "text": frame.text}
    if isinstance(frame, EventFrame):
        return _tool(frame.event)
    if isinstance(frame, ErrorFrame):
        error: dict[str, object] = {"type": frame.type, "message": _sentence(frame)}
        if wait_s is not None:
            error["retry_after_s"] = wait_s
        return {"type": "error", "error": error, "text_length": frame.text_length}
    final: dict[str, object] = {
        "type": "final",
        "stop_reason": frame.stop_reason,
        "usage": _usage(frame, estimated=estimated),
        "text_length": frame.text_length,
    }
    return final if cost_usd is None else {**final, "cost_usd": cost_usd}


def _tool(event: object) -> dict[str, object]:
    match event:
        case ApprovalAsked(id=identity, name=name, input=given):
            return {"type": "approval", "id": identity, "name": name, "input": given}
        case ToolStarted(id=identity, name=name, input=given):
            return {"type": "tool_call", "id": identity, "name": name, "input": given}
        case ToolFinished(id=identity, name=name, content=content, is_error=is_error):
            return {"type": "tool_result", "id": identity, "name": name, "content": content, "is_error": is_error}
        case ToolDenied(id=identity, name=name, reason=reason):
            return {"type": "tool_result", "id": identity, "name": name, "content": reason, "is_error": True}
        case _:
            raise TypeError(f"no frame stands for {type(event).__name__}")


def _usage(frame: FinalFrame, *, estimated: bool) -> dict[str, object]:
    usage = frame.usage
    return {
        "input_tokens": usage.input_tokens,
        "output_tokens": usage.output_tokens,
        "cache_creation_input_tokens": usage.cache_creation_input_tokens,
        "cache_read_input_tokens": usage.cache_read_input_tokens,
        "estimated": usage.estimated or estimated,
    }


def _sentence(frame: ErrorFrame) -> str:
    code = close_code(frame.type)
    if code is CloseCode.TRY_LATER:
        return "The service is busy. Please try again in a moment."
    if code is CloseCode.RESTART:
        return "The server is shutting down. Please try again in a moment."
    if frame.type in _REFUSED:
        return "This request can’t be answered."
    if frame.text_length:
        return "The answer broke off. Please try again."
    return "The request failed. Please try again."
