"""What comes of one item of a fan-out.

The rule here: a failure is a result like any other, and both write out as the lines of a Message Batches result file,
and read back from them.

There is one class of results. Type checkers are told of two below it, so that asking whether a result is ok tells them
what it has: `Result` is either of them, and what a run gives.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Generic, TypeAlias, cast

import anthropic
from anthropic.types import Message, TextBlock

from penstock._core.failure import failure_of_error_event, failure_of_exception
from penstock._core.network import network_problem
from penstock.errors import (
    ContextOverflow,
    InvalidHistory,
    InvalidImage,
    InvalidOutput,
    InvalidStream,
    ItemFailed,
    NoKeyAvailable,
    PenstockError,
    ResponseTooLarge,
    UnknownPrice,
    UnsafeInput,
)

if TYPE_CHECKING:
    from decimal import Decimal
    from typing import Literal

    from typing_extensions import TypeVar

    # The default is for those who name the class alone. Only checkers know defaults before Python 3.13.
    Model_co = TypeVar("Model_co", covariant=True, default=Any)
else:
    from typing import TypeVar

    Model_co = TypeVar("Model_co", covariant=True)

__all__ = ["DeadLetter", "FanOutResult", "Result", "is_account_refused", "is_mendable", "reason_of", "texts_of"]

_Fields: TypeAlias = Mapping[str, Any]

_LONGEST_REASON: Final = 300

# Of one of our own guards, and about the item that it refuses.
_OF_THE_ITEM: Final = (
    ContextOverflow,
    InvalidHistory,
    InvalidImage,
    InvalidOutput,
    InvalidStream,
    ResponseTooLarge,
    UnsafeInput,
)
# What the SDK calls a connection error in the end may be a lack of our own: of files, of memory, of a configured key.
_OURS: Final = (anthropic.CredentialsError, OSError, MemoryError)


def is_mendable(error: Exception | None) -> bool:
    """Return whether an item failed for reasons that lie outside it, so that another run asks it again.

    They lie in the account, the key, the quota, the network, or with us (a closed client, a budget, a limit that is too
    low). What speaks of the item itself, or was perhaps paid for, stays as it is.

    Example:
        >>> from penstock import ClientClosed
        >>> is_mendable(None), is_mendable(ValueError("max_tokens")), is_mendable(ClientClosed("closed"))
        (False, False, True)
    """
    if error is None:
        return False
    if isinstance(error, ItemFailed):
        return error.result in {"canceled", "expired"} or is_account_refused(error)
    if isinstance(error, PenstockError):
        return not isinstance(error, _OF_THE_ITEM)
    return isinstance(error, _OURS) or failure_of_exception(error).mendable


def is_account_refused(error: Exception | None) -> bool:
    """Return whether an item failed because its account was refused, as every other one would be."""
    if isinstance(error, ItemFailed):
        return error.body is not None and failure_of_error_event(error.body).of_account
    return isinstance(error, NoKeyAvailable) or (error is not None and failure_of_exception(error).of_account)


def reason_of(error: Exception) -> str:
    """Return why an item failed, in the API's own words where it has said so; on one line.

    Example:
        >>> reason_of(TimeoutError("too late"))
        'too late'
    """
    body: object = error.body if isinstance(error, anthropic.APIStatusError | ItemFailed) else None
    told: object = cast("_Fields", body).get("error") if isinstance(body, Mapping) else None
    fields: _Fields = cast("_Fields", told) if isinstance(told, Mapping) else {}
    status = f"{error.status_code} " if isinstance(error, anthropic.APIStatusError) else ""
    if fields:
        text = f"{status}{fields.get('type')}: {fields.get('message')}"
    else:
        lost = network_problem(error) if isinstance(error, anthropic.APIConnectionError) else None
        text = lost or str(error) or type(error).__name__
    line = "".join(character if character.isprintable() else " " for character in text)
    return line if len(line) <= _LONGEST_REASON else f"{line[:_LONGEST_REASON]}…"


@dataclass(frozen=True, slots=True, kw_only=True)
class FanOutResult(Generic[Model_co]):
    """One item's answer, or why there is none; of a `FanOutResult[City]`, `parsed` is a `City`.

    Attributes:
        custom_id: Of the request; the index for plain prompts.
        index: Place in the input, from 0.
        message: The answer; `None` if there is none.
        error: Why it failed; `None` if it didn't.
        parsed: What `output_format` makes of the answer; `None` without one, and where it failed.
        attempts: Requests sent or tried for it; `None` where nobody counted, as with an ungoverned client.
        latency_s: From start to end, waits and all attempts included; `None` if it was never asked.
        queued_s: The part of it that was spent in line; `None` as for `attempts`.
        labels: The item's own.
        replayed: Whether it comes from a journal of an earlier run.

    Example:
        >>> FanOutResult(custom_id="7", index=7, error=TimeoutError("too late")).to_dict()["result"]["type"]
        'errored'
    """

    if not TYPE_CHECKING:

        def __class_getitem__(cls, _: object) -> type:
            """It is one class when it is run: an alias would set an attribute of what it makes, which is frozen."""
            return cls

    custom_id: str
    index: int
    message: Message | None = None
    error: Exception | None = None
    parsed: Model_co | None = None
    attempts: int | None = None
    latency_s: float | None = None
    queued_s: float | None = None
    labels: Mapping[str, str] = field(default_factory=dict[str, str])
    replayed: bool = False

    @property
    def ok(self) -> bool:
        """Whether there is an answer, and nothing wrong with it."""
        return self.message is not None and self.error is None

    @property
    def text(self) -> str:
        """The answer's text, all blocks of it; empty if there is none."""
        return "" if self.message is None else "".join(texts_of(self.message))

    @property
    def cost_usd(self) -> Decimal | None:
        """What the answer cost, in USD; `None` if there is none, or no price is known for its model."""
        if self.message is None or not isinstance(cast("object", self.message.model), str):
            return None
        from penstock.costs.prices import cost  # noqa: PLC0415 - the price tables take a third of a second to load

        try:
            return cost(self.message)
        except UnknownPrice:
            return None

    def to_dict(self) -> dict[str, object]:
        """Return it as a line of a Message Batches result file: `custom_id` and `result`, ready for JSON."""
        return {"custom_id": self.custom_id, "result": self._result()}

    def _result(self) -> dict[str, object]:
        if self.message is not None:
            return {"type": "succeeded", "message": self.message.to_dict(warnings=False)}
        if isinstance(self.error, ItemFailed) and self.error.body is None:
            return {"type": self.error.result}
        return {"type": "errored", "error": _error_body(self.error)}

    @classmethod
    def from_line(cls, line: Mapping[str, Any], *, index: int) -> FanOutResult:
        """Read a line of a result file: Message Batches' own, or a journal's.

        Args:
            line: The line as decoded from JSON.
            index: Place in the input, from 0.

        Raises:
            ValueError: It is no such line.

        Example:
            >>> FanOutResult.from_line({"custom_id": "a", "result": {"type": "expired"}}, index=0).error
            ItemFailed('the item expired')
        """
        custom_id, result = line.get("custom_id"), line.get("result")
        if not isinstance(custom_id, str) or not isinstance(result, Mapping):
            raise ValueError("it has no custom_id and result")  # noqa: TRY004 - what is wrong is the text it was read from
        more: object = line.get("penstock")
        told: _Fields = cast("_Fields", more) if isinstance(more, Mapping) else {}
        message, error = _outcome(cast("_Fields", result), told)
        return cls(
            custom_id=custom_id,
            index=index,
            message=message,
            error=error,
            attempts=told.get("attempts"),
            latency_s=told.get("latency_s"),
            queued_s=told.get("queued_s"),
            labels=told.get("labels") or {},
            replayed=True,
        )


if TYPE_CHECKING:

    class _Answered(FanOutResult[Model_co]):
        message: Message
        error: None
        parsed: Model_co

        @property
        def ok(self) -> Literal[True]: ...

    class _Failed(FanOutResult[Model_co]):
        error: Exception

        @property
        def ok(self) -> Literal[False]: ...

    Result: TypeAlias = _Answered[Model_co] | _Failed[Model_co]
else:
    Result = FanOutResult


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetter:
    """An item that failed for good, as a journal tells it.

    Attributes:
        custom_id: Of the item.
        error: Why.
        params: Of its request, if they were kept (`keep_params`).
    """

    custom_id: str
    error: Exception
    params: Mapping[str, Any] | None


def texts_of(message: Message) -> Iterator[str]:
    """Give the texts of a message, block by block; what a later API or a compatible server puts among them is left out.

    Example:
        >>> list(texts_of(Message.construct(content=[{"type": "text", "text": "Hi"}, {"type": "of_tomorrow"}])))
        ['Hi']
    """
    # What a journal holds, and what a compatible server sends, is not validated.
    content = cast("object", message.content)
    for block in cast("list[object]", content) if isinstance(content, list) else []:
        if isinstance(block, TextBlock):
            kind, text = cast("tuple[object, object]", (block.type, block.text))
            if kind == "text" and isinstance(text, str):
                yield text


def _outcome(result: _Fields, told: _Fields) -> tuple[Message | None, ItemFailed | None]:
    kind = result.get("type")
    if kind == "succeeded" and isinstance(message := result.get("message"), Mapping):
        wrong = told.get("error")
        # Not validated: a later API may answer with what this SDK doesn't know.
        answer = Message.construct(**cast("dict[str, Any]", message))
        return answer, None if wrong is None else ItemFailed("errored", error_type=str(wrong))
    if kind == "errored":
        body = result.get("error")
        return None, ItemFailed("errored", error_type=_error_type(body), body=body)
    if kind in {"canceled", "expired"}:
        return None, ItemFailed(str(kind))
    raise ValueError(f"its result has the type {str(kind)[:40]!r}")


def _error_type(body: object) -> str | None:
    """Return the API's error type, or the name that an error of another kind was written with."""
    error: object = cast("_Fields", body).get("error") if isinstance(body, Mapping) else None
    if not isinstance(error, Mapping):
        return None
    fields = cast("_Fields", error)
    kind, message = fields.get("type"), fields.get("message")
    name = message.partition(":")[0] if isinstance(message, str) else ""
    return name if kind in {"api_error", "timeout_error"} and name.isidentifier() else str(kind)


def _error_body(error: Exception | None) -> object:
    """Return the API's own error body where there is one, else one of the same shape."""
    body: object = error.body if isinstance(error, anthropic.APIStatusError | ItemFailed) else None
    if isinstance(body, dict):
        return cast("dict[str, object]", body)
    kind = "timeout_error" if isinstance(error, anthropic.APITimeoutError) else "api_error"
    return {"type": "error", "error": {"type": kind, "message": f"{type(error).__name__}: {error}"}}
