"""Every error that penstock raises, under one root.

The rule here: an error says in its message what happened and what to do about it, carries its data in attributes,
pickles, and contains no prompt, completion or key. Errors of the API itself stay the SDK's own
(`anthropic.APIStatusError` and its subclasses); nothing here replaces them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anthropic

if TYPE_CHECKING:
    from anthropic.types import Message
    from anthropic.types.beta import BetaMessage

__all__ = [
    "AdmissionTimeout",
    "CircuitOpen",
    "ClientClosed",
    "InvalidStream",
    "KeyNotFound",
    "NoKeyAvailable",
    "PenstockError",
    "QueueFull",
    "RequestExceedsQuota",
    "StreamInterrupted",
    "UnknownPrice",
]


class PenstockError(anthropic.AnthropicError):
    """The root of all errors of this package; itself an `anthropic.AnthropicError`.

    Example:
        >>> issubclass(PenstockError, anthropic.AnthropicError)
        True
    """


class KeyNotFound(PenstockError):
    """No API key was found when a client was entered.

    Attributes:
        places: Every place that was looked at, in order.
    """

    def __init__(self, places: tuple[str, ...]) -> None:
        super().__init__(
            f"no API key found; looked at: {', '.join(places)}. "
            "Set one of them, or govern your own client with Client(sdk=…)."
        )
        self.places = places


class ClientClosed(PenstockError):
    """The client was used before it was entered, after it was closed, or in another event loop."""


class _Refused(PenstockError):
    """A request that was refused before it was sent, and when it may be tried again."""

    retry_after_s: float | None

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class NoKeyAvailable(_Refused):
    """No key can serve the request: all are quarantined, or none is free before the deadline.

    Attributes:
        retry_after_s: Seconds until the next key is tried again; `None` if only a change of configuration helps.
    """


class CircuitOpen(_Refused):
    """The circuit breaker of this model class is open: its service has been failing, so nothing is sent for a while.

    Attributes:
        retry_after_s: Seconds until the breaker lets probes through.
    """


class QueueFull(_Refused):
    """The waiting line already holds `max_queued` requests."""


class AdmissionTimeout(_Refused):
    """The request was not admitted before its deadline or `queue_timeout_s`; it was never sent and costs nothing."""


class RequestExceedsQuota(PenstockError):
    """The request is larger than a limit can ever hold, so waiting would never end.

    Attributes:
        limit: Name of the limit, e.g. `input_tokens`.
        needed: What the request needs, in units of that limit.
        capacity: The most that the limit can ever grant at once.
    """

    def __init__(self, limit: str, *, needed: float, capacity: float) -> None:
        super().__init__(
            f"the request needs {needed:.0f} {limit}, but that limit can never grant more than {capacity:.0f} at once. "
            "Send less, or raise the limit."
        )
        self.limit = limit
        self.needed = needed
        self.capacity = capacity


class UnknownPrice(PenstockError):
    """No price is known for a model, so its cost can't be computed.

    Attributes:
        model: The model id as the API returned it.
    """

    def __init__(self, model: str) -> None:
        super().__init__(f"no price is known for model {model!r}. Update the package genai-prices.")
        self.model = model


class InvalidStream(PenstockError):
    """A server-sent event stream holds bytes that aren't what the protocol allows.

    Attributes:
        position: Offset of the first byte of the offending event from the start of the stream.
        reason: What is wrong with it, without quoting it.
    """

    def __init__(self, reason: str, *, position: int) -> None:
        super().__init__(f"invalid event stream at byte {position}: {reason}")
        self.reason = reason
        self.position = position


class StreamInterrupted(PenstockError):
    """A stream broke off after its first content; all text that had come was delivered before.

    Attributes:
        partial: The message as far as it came, with `stop_reason` `None`; left out when the error is pickled or copied.
        usage: A `penstock.core.usage.Usage`: what is known of its tokens, marked as estimated.
        cause: The error of the SDK or the transport behind it; left out as `partial` is.
    """

    partial: Message | BetaMessage | None
    usage: Any
    cause: Exception | None

    def __init__(
        self, message: str, *, partial: Message | BetaMessage | None, usage: object, cause: Exception | None
    ) -> None:
        super().__init__(message)
        self.partial = partial
        self.usage = usage
        self.cause = cause

    def __reduce__(self) -> tuple[Any, ...]:
        """Leave out what may hold a prompt or a completion."""
        return _interrupted, (type(self), *self.args, self.usage)


def _interrupted(cls: type[StreamInterrupted], message: str, usage: object) -> StreamInterrupted:
    return cls(message, partial=None, usage=usage, cause=None)
