from __future__ import annotations

import copy
import pickle

import anthropic
import pytest
from anthropic.types import Message

from penstock import errors
from penstock.core.usage import Usage
from penstock.errors import (
    AdmissionTimeout,
    CircuitOpen,
    ClientClosed,
    InvalidStream,
    KeyNotFound,
    NoKeyAvailable,
    PenstockError,
    QueueFull,
    RequestExceedsQuota,
    StreamInterrupted,
    UnknownPrice,
)

EXAMPLES: list[PenstockError] = [
    PenstockError("broken"),
    KeyNotFound(("ANTHROPIC_API_KEY", "PENSTOCK_API_KEYS")),
    ClientClosed("closed"),
    NoKeyAvailable("none", retry_after_s=12.5),
    CircuitOpen("open", retry_after_s=3.0),
    QueueFull("full"),
    AdmissionTimeout("late", retry_after_s=None),
    RequestExceedsQuota("input_tokens", needed=2000, capacity=1000),
    UnknownPrice("claude-none"),
    InvalidStream("no UTF-8", position=7),
    StreamInterrupted("broke off", partial=None, usage=Usage(output_tokens=3, estimated=True), cause=None),
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
