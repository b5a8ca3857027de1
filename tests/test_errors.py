from __future__ import annotations

import copy
import pickle
from decimal import Decimal
from functools import partial
from typing import TYPE_CHECKING

import anthropic
import pytest
from anthropic.types import Message

from penstock import errors
from penstock._core.usage import Usage
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
    JournalError,
    KeyNotFound,
    NoKeyAvailable,
    PenstockError,
    QueueFull,
    RequestExceedsQuota,
    ResponseTooLarge,
    StreamInterrupted,
    SystemPromptChanged,
    ToolLoopLimit,
    TooManyFailures,
    UnknownPrice,
    UnknownTool,
    UnsafeInput,
)

if TYPE_CHECKING:
    from collections.abc import Callable

EXAMPLES: list[PenstockError] = [
    PenstockError("broken"),
    KeyNotFound(("ANTHROPIC_API_KEY", "PENSTOCK_API_KEYS")),
    ClientClosed("closed"),
    NoKeyAvailable("none", retry_after_s=12.5),
    CircuitOpen("open", retry_after_s=3.0),
    QueueFull("full"),
    AdmissionTimeout("late", retry_after_s=None),
    RequestExceedsQuota("input_tokens", needed=2000, capacity=1000),
    ResponseTooLarge(65_536),
    UnknownPrice("claude-none"),
    InvalidStream("no UTF-8", position=7),
    StreamInterrupted("broke off", partial=None, usage=Usage(output_tokens=3, estimated=True), cause=None),
    BudgetExceeded("session", spent_usd=Decimal("1.5"), needed_usd=Decimal("0.75")),
    ContextOverflow("claude-haiku-4-5", needed_tokens=250_000, window_tokens=200_000),
    ConversationChanged({"tools": "get_weather was removed"}),
    InvalidHistory("messages.3", "its role is 'tool'"),
    InvalidImage("it is empty"),
    InvalidOutput(stop_reason="max_tokens", problems=("json_invalid",)),
    ItemFailed("errored", error_type="overloaded_error", body={"type": "error"}),
    JournalError("run.jsonl", "another process writes it"),
    SystemPromptChanged(expected="support v3", found="support v4"),
    ToolLoopLimit("max_iterations=5", transcript=None),
    TooManyFailures(failed=11, finished=40),
    UnknownTool("get_wether"),
    UnsafeInput(("new_instructions at messages.0.content",)),
]
SECRET = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": "claude-sonnet-5-5",
    "content": [{"type": "text", "text": "the secret plan"}],
    "usage": {"input_tokens": 1, "output_tokens": 1},
}
each_error = pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)


def test_every_error_has_an_example_here() -> None:
    """A new error must be tried by the tests of this file."""
    assert {type(error).__name__ for error in EXAMPLES} == set(errors.__all__)


@each_error
def test_every_error_is_the_sdks_too(error: PenstockError) -> None:
    """Whoever catches the SDK's errors catches these."""
    assert isinstance(error, PenstockError)
    assert isinstance(error, anthropic.AnthropicError)


@pytest.mark.lengthy
@each_error
@pytest.mark.parametrize("remake", [copy.copy, copy.deepcopy, lambda error: pickle.loads(pickle.dumps(error))])
def test_errors_survive_pickling_with_their_data(error: PenstockError, remake: object) -> None:
    """An error that crosses a process boundary keeps class, message and attributes."""
    again = remake(error)  # type: ignore[operator]
    assert type(again) is type(error)
    assert str(again) == str(error)
    assert vars(again) == vars(error)


def test_a_missing_key_names_every_place() -> None:
    """The message lists where a key was looked for, and what to do."""
    error = KeyNotFound(("ANTHROPIC_API_KEY", "PENSTOCK_API_KEYS"))
    assert "ANTHROPIC_API_KEY, PENSTOCK_API_KEYS" in str(error)
    assert "Client(sdk=" in str(error)
    assert error.places == ("ANTHROPIC_API_KEY", "PENSTOCK_API_KEYS")


def test_a_request_too_large_tells_by_how_much() -> None:
    """The limit, the need and what it can hold are in message and attributes."""
    error = RequestExceedsQuota("input_tokens", needed=2000, capacity=1000)
    assert "2000 input_tokens" in str(error)
    assert "1000 at once" in str(error)
    assert (error.limit, error.needed, error.capacity) == ("input_tokens", 2000, 1000)


def test_an_unknown_price_names_the_model() -> None:
    """The message says which model, and which package to update."""
    error = UnknownPrice("claude-none")
    assert "'claude-none'" in str(error)
    assert "genai-prices" in str(error)
    assert error.model == "claude-none"


def test_an_invalid_stream_tells_where() -> None:
    """Reason and position are attributes; no byte of the stream is quoted."""
    error = InvalidStream("no UTF-8", position=7)
    assert (error.reason, error.position) == ("no UTF-8", 7)
    assert str(error) == "invalid event stream at byte 7: no UTF-8"


def test_what_had_come_of_a_stream_is_in_no_text_and_no_pickle() -> None:
    """The completion so far is for the caller's hands only: not for logs, not for other processes."""
    partial = Message.model_validate(SECRET)
    cause = ValueError("the secret cause")
    error = StreamInterrupted("broke off", partial=partial, usage=Usage(), cause=cause)
    assert error.partial is partial
    assert error.cause is cause
    assert "secret" not in str(error) + repr(error) + repr(error.args)
    assert b"secret" not in pickle.dumps(error)
    again = pickle.loads(pickle.dumps(error))
    assert (again.partial, again.cause, again.usage) == (None, None, Usage())


@pytest.mark.parametrize("make", [partial(ToolLoopLimit, "max_iterations=5"), partial(UnknownTool, "get_wether")])
def test_a_transcript_is_in_no_text_and_no_pickle(make: Callable[..., ToolLoopLimit | UnknownTool]) -> None:
    """The transcript is for the caller's hands only: not for logs, not for other processes."""
    transcript = [{"role": "user", "content": "the secret plan"}]
    error = make(transcript=transcript)
    assert error.transcript is transcript
    assert "secret" not in str(error) + repr(error) + repr(error.args)
    assert b"secret" not in pickle.dumps(error)
    assert pickle.loads(pickle.dumps(error)).transcript is None


def test_a_budget_tells_what_is_spent_in_its_own_unit() -> None:
    """Tokens for a budget of tokens, USD for one of money."""
    tokens = BudgetExceeded("session", spent_tokens=900, needed_tokens=200)
    money = BudgetExceeded("session", spent_usd=Decimal("1.5"), needed_usd=Decimal("0.75"))
    assert "900 tokens are spent, and it can take 200 tokens" in str(tokens)
    assert (tokens.spent_tokens, tokens.needed_tokens, tokens.spent_usd) == (900, 200, None)
    assert "1.5 USD are spent, and it can take 0.75 USD" in str(money)
    assert (money.spent_usd, money.needed_usd, money.spent_tokens) == (Decimal("1.5"), Decimal("0.75"), None)
