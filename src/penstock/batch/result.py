"""What comes of one item of a fan-out.

The rule here: a failure is a result like any other, and both write out as the lines of a Message Batches result file.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import anthropic

if TYPE_CHECKING:
    from anthropic.types import Message

__all__ = ["FanOutResult"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FanOutResult:
    """One item's answer, or why there is none.

    Attributes:
        custom_id: Of the request; the index for plain prompts.
        index: Place in the input, from 0.
        message: The answer; `None` if it failed.
        error: Why it failed; `None` if it didn't.

    Example:
        >>> FanOutResult(custom_id="7", index=7, error=TimeoutError("too late")).to_dict()["result"]["type"]
        'errored'
    """

    custom_id: str
    index: int
    message: Message | None = None
    error: Exception | None = None

    @property
    def ok(self) -> bool:
        """Whether there is an answer."""
        return self.message is not None

    def to_dict(self) -> dict[str, object]:
        """Return it as a line of a Message Batches result file: `custom_id` and `result`, ready for JSON."""
        if self.message is not None:
            return {"custom_id": self.custom_id, "result": {"type": "succeeded", "message": self.message.to_dict()}}
        return {"custom_id": self.custom_id, "result": {"type": "errored", "error": _error_body(self.error)}}


def _error_body(error: Exception | None) -> object:
    """Return the API's own error body where there is one, else one of the same shape."""
    body: object = error.body if isinstance(error, anthropic.APIStatusError) else None
    if isinstance(body, dict):
        return cast("dict[str, object]", body)
    kind = "timeout_error" if isinstance(error, anthropic.APITimeoutError) else "api_error"
    return {"type": "error", "error": {"type": kind, "message": f"{type(error).__name__}: {error}"}}
