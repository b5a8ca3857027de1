"""Every error that penstock raises, under one root.

The rule here: an error says in its message what happened and what to do about it, carries its data in attributes,
pickles with them, as the SDK's root does, and contains no prompt, completion or key. Errors of the API itself stay the
SDK's own (`anthropic.APIStatusError` and its subclasses); nothing here replaces them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import anthropic
import httpx2

if TYPE_CHECKING:
    from collections.abc import Mapping
    from decimal import Decimal

    from anthropic.types import Message
    from anthropic.types.beta import BetaMessage

__all__ = [
    "AdmissionTimeout",
    "BudgetExceeded",
    "CircuitOpen",
    "ClientClosed",
    "ContextOverflow",
    "ConversationChanged",
    "InvalidHistory",
    "InvalidImage",
    "InvalidOutput",
    "InvalidStream",
    "ItemFailed",
    "JournalError",
    "KeyNotFound",
    "NoKeyAvailable",
    "PenstockError",
    "QueueFull",
    "RequestExceedsQuota",
    "ResponseTooLarge",
    "StreamInterrupted",
    "SystemPromptChanged",
    "TooManyFailures",
    "ToolLoopLimit",
    "UnknownPrice",
    "UnknownTool",
    "UnsafeInput",
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


class ResponseTooLarge(PenstockError):
    """An answer is larger than any answer of the API: `max_response_bytes`, measured after decompression.

    It is not asked for again, and may have been billed.

    Attributes:
        limit_bytes: What an answer may have.
    """

    def __init__(self, limit_bytes: int) -> None:
        super().__init__(
            f"the answer is larger than {limit_bytes:,} bytes, which no answer of the API is: see what stands between, "
            "or raise max_response_bytes"
        )
        self.limit_bytes = limit_bytes


class _HoldsContent(PenstockError):
    """An error with attributes that may hold prompts or completions: those stay in this process."""

    _CONTENT: ClassVar[tuple[str, ...]]

    def __reduce__(self) -> tuple[Any, ...]:
        """Leave out what may hold a prompt or a completion."""
        make, of, data = super().__reduce__()
        return make, of, {**data, **dict.fromkeys(self._CONTENT)}


class StreamInterrupted(_HoldsContent):
    """A stream broke off after its first content; all text that had come was delivered before.

    Attributes:
        partial: The message as far as it came, with `stop_reason` `None`; left out when the error is pickled or copied.
        usage: A `penstock._core.usage.Usage`: what is known of its tokens, marked as estimated.
        cause: The error of the SDK or the transport behind it; left out as `partial` is.
    """

    _CONTENT = ("partial", "cause")

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

    @property
    def was_cut(self) -> bool:
        """Whether the API or the connection broke it off, so that asking again may help.

        Otherwise what came can't be understood, and it is not to be asked for again by itself.
        """
        return isinstance(self.cause, anthropic.APIError | httpx2.TransportError)


class BudgetExceeded(PenstockError):
    """A request was not sent, because it could cost more than is left of a budget.

    Attributes:
        budget: The name of the budget.
        spent_usd: What is spent of it, in USD; `None` for a budget of tokens.
        needed_usd: The most that the request can cost, in USD.
        spent_tokens: What is spent of it, in tokens; `None` for a budget of money.
        needed_tokens: The most that the request can use, in tokens.
    """

    def __init__(
        self,
        budget: str,
        *,
        spent_usd: Decimal | None = None,
        needed_usd: Decimal | None = None,
        spent_tokens: int | None = None,
        needed_tokens: int | None = None,
    ) -> None:
        spent, needed = (
            (f"{spent_tokens} tokens", f"{needed_tokens} tokens")
            if spent_tokens is not None
            else (f"{spent_usd} USD", f"{needed_usd} USD")
        )
        super().__init__(
            f"the budget {budget!r} can't pay for this request: {spent} are spent, and it can take {needed}. "
            "Nothing was sent. Raise the budget, or ask for less."
        )
        self.budget = budget
        self.spent_usd = spent_usd
        self.needed_usd = needed_usd
        self.spent_tokens = spent_tokens
        self.needed_tokens = needed_tokens


class ContextOverflow(PenstockError):
    """A request was not sent, because even its last turn does not fit into the model's context window.

    Attributes:
        model: Whose window it is.
        needed_tokens: What the least that must be sent is estimated to take.
        window_tokens: What fits.
    """

    def __init__(self, model: str, *, needed_tokens: int, window_tokens: int) -> None:
        super().__init__(
            f"about {needed_tokens} tokens can't fit into the {window_tokens} that {model!r} takes. "
            "Nothing was sent. Send less at once, or use a model with a larger window."
        )
        self.model = model
        self.needed_tokens = needed_tokens
        self.window_tokens = window_tokens


class InvalidHistory(PenstockError):
    """Messages, or a saved conversation, are not what the API takes.

    Attributes:
        place: Where, e.g. `messages.3.content.0`.
        reason: What is wrong there, without quoting it.
    """

    def __init__(self, place: str, reason: str) -> None:
        super().__init__(f"{place}: {reason}")
        self.place = place
        self.reason = reason


class InvalidImage(PenstockError):
    """An image or document can't be sent.

    Attributes:
        reason: Why, and what would do.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class JournalError(PenstockError):
    """A journal can't be used as it is: locked, damaged, of another run, or not writable.

    Attributes:
        path: Of the journal.
        reason: What is wrong with it, and what to do.
    """

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"journal {path}: {reason}")
        self.path = path
        self.reason = reason


class InvalidOutput(PenstockError):
    """An answer is not what `output_format` asks for: cut short, refused, or of another shape.

    Attributes:
        stop_reason: Why the answer ended, as the API gave it.
        problems: What is wrong with it, as pydantic's names of errors (`missing`, `int_parsing`).
    """

    def __init__(self, *, stop_reason: str | None, problems: tuple[str, ...]) -> None:
        remedy = " Allow more max_tokens." if stop_reason == "max_tokens" else ""
        super().__init__(
            f"the answer doesn't fit output_format ({', '.join(problems)}); it ended with {stop_reason!r}.{remedy}"
        )
        self.stop_reason = stop_reason
        self.problems = problems


class ItemFailed(PenstockError):
    """An item failed, as the line of a result file says: in an earlier run, or in a message batch.

    Attributes:
        result: `errored`, `canceled` or `expired`.
        error_type: The API's error type, or the name of the error; `None` if the line tells none.
        body: The API's error body as the line has it; `None` if there is none. It is left out of the error's text.
    """

    body: object

    def __init__(self, result: str, *, error_type: str | None = None, body: object = None) -> None:
        super().__init__(f"the item {result}" + (f": {error_type}" if error_type else ""))
        self.result = result
        self.error_type = error_type
        self.body = body


class ConversationChanged(PenstockError):
    """A saved conversation was to go on with something else than it was saved with, and nobody has said that it may.

    Attributes:
        changes: What is something else (`model`, `params`, `system`, `tools`), and how, without quoting content.
    """

    def __init__(self, changes: Mapping[str, str]) -> None:
        told = "; ".join(f"{name}: {how}" for name, how in changes.items())
        super().__init__(
            f"the conversation was saved with something else ({told}). To go on all the same, from_json("
            f"migrate={{{', '.join(repr(name) for name in changes)}}}); thinking is left out of its history then."
        )
        self.changes = dict(changes)


class SystemPromptChanged(PenstockError):
    """A conversation was to go on under another system prompt than it began with.

    Attributes:
        expected: Name, version and hash of the one it began with.
        found: The same of the other.
    """

    def __init__(self, *, expected: str, found: str) -> None:
        super().__init__(
            f"this conversation began under {expected} and can't go on under {found}: the prompt never changes within "
            "a conversation. Begin a new one, or, if it was saved, accept the change: from_json(migrate={'system'})."
        )
        self.expected = expected
        self.found = found


class TooManyFailures(PenstockError):
    """A fan-out was stopped, because more of its items failed than `max_failures` allows.

    Attributes:
        failed: Items that failed, the last one included.
        finished: Items that were answered or failed.
    """

    def __init__(self, *, failed: int, finished: int) -> None:
        super().__init__(
            f"{failed} of {finished} items failed, more than max_failures allows; the last error is the cause of this "
            "one. Nothing more was started."
        )
        self.failed = failed
        self.finished = finished


class AccountRefused(PenstockError):
    """A run was stopped, because the API refused the account that it asks with, one item after the other.

    The items can be asked again once that is mended: a journal doesn't count them as failed.

    Attributes:
        items: Items in a row that were refused.
        reason: The API's own words, or the name of the error.
    """

    def __init__(self, *, items: int, reason: str) -> None:
        super().__init__(
            f"the last {items} items were refused because of the key or its organization, not because of what they "
            f"ask: {reason.rstrip('.')}. Nothing more was started; once that is mended, run it again."
        )
        self.items = items
        self.reason = reason


class ToolLoopLimit(_HoldsContent):
    """A tool loop reached one of its caps; every call of a tool that the model made is answered in the transcript.

    Attributes:
        limit: The cap, e.g. `max_iterations=5`.
        transcript: All messages so far, ready to go on from; left out when the error is pickled or copied.
        container: Id of the container of code execution that they go on in, if there is one. The transcript knows it
            as long as it is not copied; else give it along, `container=error.container`.
    """

    _CONTENT = ("transcript", "container")

    transcript: list[Any] | None
    container: str | None

    def __init__(self, limit: str, *, transcript: list[Any] | None) -> None:
        super().__init__(
            f"the tool loop reached {limit}. Go on from the error's transcript, or allow more for such tasks."
        )
        self.limit = limit
        self.transcript = transcript
        self.container = getattr(transcript, "container", None)


class UnknownTool(_HoldsContent):
    """The model called a tool that was not offered to it, and `on_unknown_tool` is `"raise"`.

    Attributes:
        name: Of the tool, as the model wrote it.
        transcript: All messages so far, ready to go on from; left out when the error is pickled or copied.
    """

    _CONTENT = ("transcript",)

    transcript: list[Any] | None

    def __init__(self, name: str, *, transcript: list[Any] | None = None) -> None:
        super().__init__(f"the model called {name[:64]!r}, which is none of the tools it was given")
        self.name = name
        self.transcript = transcript


class UnsafeInput(PenstockError):
    """A request was refused because of what stands in it.

    Attributes:
        findings: Each pattern that was found and where; never the text itself.
    """

    def __init__(self, findings: tuple[Any, ...]) -> None:
        super().__init__(f"the request was refused: {'; '.join(str(finding) for finding in findings)}")
        self.findings = findings
