"""One item of a fan-out asked: a request, and what came of it as a result.

The rule here: whatever goes wrong with the request is the result, and never raised; a cancellation is no result.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, cast

import anthropic
import httpx2
from anthropic.types import Message

from penstock._core.context import Patience, Priority, current_labels, labels, on_call_end, patience
from penstock._core.secret import clean_error
from penstock.batch.result import FanOutResult
from penstock.errors import InvalidOutput

if TYPE_CHECKING:
    from collections.abc import Mapping

    from anthropic import AsyncAnthropic

    from penstock._core.context import EndedCall
    from penstock.batch.items import Item
    from penstock.batch.output_format import OutputFormat

__all__ = ["ask", "fitted"]

_PATIENCE: Final = Patience(max_attempts=10)

# The SDK refuses to wait for long answers that are not streamed, unless it is told how long, because they may take more
# than its own ten minutes. It reckons with 128,000 tokens an hour. Of some old models 8,192 tokens count as long.
_SHORT_TOKENS: Final = 8192
_TOKENS_PER_S: Final = 128_000 / 3600
_SHORT_S: Final = 600.0
_CONNECT_S: Final = 5.0


async def ask(sdk: AsyncAnthropic, item: Item, output: OutputFormat | None) -> FanOutResult:
    """Ask for an item.

    Args:
        sdk: The client that sends it.
        item: What to ask.
        output: What its answer is to fit.
    """
    now = asyncio.get_running_loop().time
    started_at = now()
    ended: list[EndedCall] = []
    message: Message | None = None
    parsed: Any = None
    failure: Exception | None = None
    try:
        given: dict[str, Any] = {"priority": _priority(), **item.labels}
        with labels(**given), patience(_PATIENCE), on_call_end(ended.append):
            message = _checked(cast("object", await sdk.messages.create(**_timed(sdk, item.params))))
        if output is not None:
            parsed = output.parsed(message)
    except Exception as error:  # noqa: BLE001 - the failure is the result
        clean_error(error)
        failure = error
    call = ended[-1] if ended else None
    try:
        return FanOutResult(
            custom_id=item.custom_id,
            index=item.index,
            message=message,
            error=failure,
            parsed=parsed,
            attempts=None if call is None else call.attempts,
            latency_s=now() - started_at,
            queued_s=None if call is None else call.queued_s,
            labels=item.labels,
        )
    finally:
        # The error's traceback refers to this frame: without the cycle both are freed at once.
        del failure


def fitted(result: FanOutResult, output: OutputFormat | None) -> FanOutResult:
    """Return a result of an earlier run, its answer read as `output` wants it."""
    if output is None or result.message is None:
        return result
    try:
        return replace(result, parsed=output.parsed(result.message), error=None)
    except InvalidOutput as error:
        return replace(result, error=error)


def _checked(answer: object) -> Message:
    """Return an answer, if it is a message: the SDK hands on any JSON that comes with a 200."""
    if isinstance(answer, Message):
        return answer
    raise ValueError("the API's answer is no message")


def _priority() -> Priority:
    """Return `batch`, unless the caller has labelled the block otherwise."""
    return cast("Priority", current_labels().get("priority", "batch"))


def _timed(sdk: AsyncAnthropic, params: Mapping[str, Any]) -> Mapping[str, Any]:
    """Allow a long answer the time that it may take, where nobody has said how long."""
    max_tokens: object = params.get("max_tokens")
    if not isinstance(max_tokens, int) or max_tokens <= _SHORT_TOKENS or "timeout" in params:
        return params
    if sdk.timeout != anthropic.DEFAULT_TIMEOUT:
        return params
    return {**params, "timeout": httpx2.Timeout(max(_SHORT_S, max_tokens / _TOKENS_PER_S), connect=_CONNECT_S)}
