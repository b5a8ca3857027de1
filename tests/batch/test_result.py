from __future__ import annotations

import dataclasses
import json
import pickle
from typing import Any

import anthropic
import httpx2
import pytest
from anthropic.types import Message

from penstock import (
    AdmissionTimeout,
    BudgetExceeded,
    CircuitOpen,
    ClientClosed,
    ContextOverflow,
    FanOutResult,
    InvalidOutput,
    ItemFailed,
    JournalError,
    KeyNotFound,
    NoKeyAvailable,
    QueueFull,
    RequestExceedsQuota,
)
from penstock.batch import Result
from penstock.batch.result import is_account_refused, is_mendable, reason_of
from penstock.simulator import Simulator

ASK: Any = {
    "model": "claude-sonnet-5-5",
    "max_tokens": 100,
    "messages": [{"role": "user", "content": "Hello there"}],
}


async def message() -> Message:
    """An answer of the simulator's."""
    answer: Message = await Simulator().client().messages.create(**ASK)
    return answer


async def test_an_answer_writes_out_as_a_line_of_a_batch() -> None:
    """The line is JSON, and the message in it can be read back."""
    answer = await message()
    result = FanOutResult(custom_id="a", index=0, message=answer)
    line = json.loads(json.dumps(result.to_dict()))
    assert line.keys() == {"custom_id", "result"}
    assert (line["custom_id"], line["result"]["type"]) == ("a", "succeeded")
    assert Message.model_validate(line["result"]["message"]) == answer


async def test_an_error_of_the_api_writes_out_as_the_api_wrote_it() -> None:
    """The line of a failed item holds the API's own error body."""
    with pytest.raises(anthropic.NotFoundError) as raised:
        await Simulator().client().messages.create(**{**ASK, "model": "claude-nonesuch"})
    line = json.loads(json.dumps(FanOutResult(custom_id="a", index=0, error=raised.value).to_dict()))
    assert line["result"]["type"] == "errored"
    assert line["result"]["error"]["type"] == "error"
    assert line["result"]["error"]["error"]["type"] == "not_found_error"


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (ClientClosed("the client is closed"), "api_error", "ClientClosed: the client is closed"),
        (anthropic.APITimeoutError(request=httpx2.Request("POST", "http://x.invalid")), "timeout_error", "timed out"),
        (ValueError("no custom_id"), "api_error", "ValueError: no custom_id"),
    ],
)
def test_other_errors_have_the_same_shape(error: Exception, kind: str, text: str) -> None:
    """An error that the API didn't send is written in the shape of one that it did."""
    line: Any = json.loads(json.dumps(FanOutResult(custom_id="a", index=0, error=error).to_dict()))
    assert line["result"]["error"]["type"] == "error"
    assert line["result"]["error"]["error"]["type"] == kind
    assert text in line["result"]["error"]["error"]["message"]


def test_a_page_of_a_proxy_is_no_error_body() -> None:
    """An answer that is no JSON is written as an error of the same shape all the same."""
    response = httpx2.Response(502, request=httpx2.Request("POST", "http://x.invalid"), content=b"<html>")
    error = anthropic.InternalServerError("Bad gateway", response=response, body="<html>")
    line: Any = FanOutResult(custom_id="a", index=0, error=error).to_dict()
    assert line["result"]["error"]["error"]["type"] == "api_error"


async def test_a_result_is_ok_or_not_and_frozen() -> None:
    """`ok` tells which of the two it is; nobody can change it."""
    good, bad = (
        FanOutResult(custom_id="a", index=0, message=await message()),
        FanOutResult(custom_id="b", index=1, error=ValueError("x")),
    )
    assert (good.ok, bad.ok) == (True, False)
    with pytest.raises(dataclasses.FrozenInstanceError):
        good.index = 2  # type: ignore[misc]


@pytest.mark.parametrize(
    "line",
    [
        {"custom_id": "a", "result": {"type": "expired"}},
        {"custom_id": "a", "result": {"type": "canceled"}},
        {"custom_id": "a", "result": {"type": "errored", "error": {"type": "error", "error": {"type": "x_error"}}}},
        {"custom_id": "a", "result": {"type": "succeeded", "message": {"content": [{"type": "of_tomorrow", "x": 1}]}}},
    ],
)
def test_a_line_comes_back_as_it_was(line: dict[str, Any]) -> None:
    """Of every type, with content that this SDK doesn't know."""
    result = FanOutResult.from_line(line, index=7)
    assert (result.custom_id, result.index, result.replayed) == ("a", 7, True)
    assert result.ok == (line["result"]["type"] == "succeeded")
    assert result.to_dict() == line


@pytest.mark.parametrize(
    ("result", "kind", "error_type"),
    [
        ({"type": "expired"}, "expired", None),
        ({"type": "errored"}, "errored", None),
        ({"type": "errored", "error": "text"}, "errored", None),
        ({"type": "errored", "error": {"error": "text"}}, "errored", None),
        (
            {"type": "errored", "error": {"error": {"type": "overloaded_error", "message": "x"}}},
            "errored",
            "overloaded_error",
        ),
        (
            {"type": "errored", "error": {"error": {"type": "api_error", "message": "ValueError: x"}}},
            "errored",
            "ValueError",
        ),
        (
            {"type": "errored", "error": {"error": {"type": "api_error", "message": "Internal server error"}}},
            "errored",
            "api_error",
        ),
        ({"type": "errored", "error": {"error": {"type": "api_error"}}}, "errored", "api_error"),
    ],
)
def test_a_failure_is_told_by_its_type(result: dict[str, Any], kind: str, error_type: str | None) -> None:
    """The API's type, or the name of the error that was written down; never its text."""
    error = FanOutResult.from_line({"custom_id": "a", "result": result}, index=0).error
    assert isinstance(error, ItemFailed)
    assert (error.result, error.error_type) == (kind, error_type)
    assert str(error) == f"the item {kind}" + (f": {error_type}" if error_type else "")


@pytest.mark.parametrize(
    "line",
    [
        {},
        {"custom_id": "a"},
        {"custom_id": 7, "result": {"type": "expired"}},
        {"custom_id": "a", "result": "x"},
        {"custom_id": "a", "result": {"type": "succeeded"}},
        {"custom_id": "a", "result": {"type": "of_tomorrow"}},
        {"custom_id": "a", "result": {}},
    ],
)
def test_what_is_no_line_is_refused(line: dict[str, Any]) -> None:
    """With what is missing."""
    with pytest.raises(ValueError, match=r"it has no custom_id and result|its result has the type"):
        FanOutResult.from_line(line, index=0)


def refused(status: int, kind: str, message: str = "no", **headers: str) -> anthropic.APIStatusError:
    """An answer of the API's that is an error."""
    body = {"type": "error", "error": {"type": kind, "message": message}}
    request = httpx2.Request("POST", "http://x.invalid")
    response = httpx2.Response(status, request=request, json=body, headers=headers)
    return anthropic.AsyncAnthropic(api_key="x")._make_status_error_from_response(response)


REQUEST = httpx2.Request("POST", "http://x.invalid")
OF_THE_ACCOUNT = [
    refused(400, "invalid_request_error", "Your credit balance is too low to access the Anthropic API."),
    refused(400, "invalid_request_error", "This organization has been disabled."),
    refused(401, "authentication_error"),
    refused(402, "billing_error"),
    refused(403, "permission_error"),
    refused(429, "rate_limit_error", "You have reached your spend limit."),
    NoKeyAvailable("none"),
]
ELSEWHERE = [
    ClientClosed("closed"),
    AdmissionTimeout("late"),
    BudgetExceeded("b", spent_tokens=1, needed_tokens=1),
    JournalError("a", "full"),
    QueueFull("full"),
    RequestExceedsQuota("input_tokens", needed=9, capacity=5),
    CircuitOpen("open"),
    KeyNotFound(("A",)),
    ItemFailed("canceled"),
    ItemFailed("expired"),
    refused(429, "rate_limit_error"),
    refused(529, "overloaded_error"),
    refused(502, "api_error"),
    refused(503, "api_error"),
    anthropic.APIConnectionError(request=REQUEST),
    OSError(24, "Too many open files"),
]
OF_THE_ITEM = [
    ValueError("x"),
    TypeError("an unknown param"),
    ContextOverflow("m", needed_tokens=2, window_tokens=1),
    InvalidOutput(stop_reason="max_tokens", problems=()),
    anthropic.APITimeoutError(request=REQUEST),
    refused(400, "invalid_request_error", "messages: at least one is required"),
    refused(404, "not_found_error"),
    refused(413, "request_too_large"),
    refused(500, "api_error"),
    ItemFailed("errored", error_type="invalid_request_error", body=refused(400, "invalid_request_error").body),
]


def named(error: Exception) -> str:
    """For the names of tests."""
    return type(error).__name__


@pytest.mark.parametrize("error", [*OF_THE_ACCOUNT, *ELSEWHERE], ids=named)
def test_what_lies_outside_the_item_another_run_can_mend(error: Exception) -> None:
    """The account, the key, the quota, the network, and we ourselves."""
    assert is_mendable(error)
    assert is_account_refused(error) == (error in OF_THE_ACCOUNT)


@pytest.mark.parametrize("error", OF_THE_ITEM, ids=named)
def test_what_speaks_of_the_item_stays(error: Exception) -> None:
    """So does what was perhaps paid for."""
    assert not is_mendable(error)
    assert not is_account_refused(error)


def test_an_answer_needs_no_mending() -> None:
    """There is nothing wrong with it."""
    assert not is_mendable(None)
    assert not is_account_refused(None)


def test_a_batch_says_it_in_a_line() -> None:
    """The same words in an item's error of a results file mean the same."""
    error = ItemFailed("errored", body=OF_THE_ACCOUNT[0].body)  # type: ignore[attr-defined]
    assert is_mendable(error)
    assert is_account_refused(error)


def test_a_reason_can_t_steer_the_terminal() -> None:
    """Text from outside is one line without control characters, and not too long."""
    assert reason_of(ValueError("a\x1b[2J\nb")) == "a [2J b"
    assert reason_of(ValueError("x" * 500)) == "x" * 300 + "…"


def test_the_api_s_own_words_are_used() -> None:
    """An error of the API is told by status, type and message, any other by its text, or at least its name."""
    wrong = refused(404, "not_found_error", "model: claude-9")
    assert reason_of(wrong) == "404 not_found_error: model: claude-9"
    for body in (None, {}, {"error": "no"}, "no"):
        assert reason_of(anthropic.APIStatusError("a page", response=wrong.response, body=body)) == "a page"
    assert reason_of(TimeoutError()) == "TimeoutError"


async def test_the_cost_is_that_of_the_answer() -> None:
    """`None` where there is none, or no price is known."""
    answer = await message()
    cost = FanOutResult(custom_id="a", index=0, message=answer).cost_usd
    assert cost is not None
    assert cost > 0
    unknown = answer.model_copy(update={"model": "claude-nonesuch"})
    assert FanOutResult(custom_id="a", index=0, message=unknown).cost_usd is None
    assert FanOutResult(custom_id="a", index=0, error=ValueError("x")).cost_usd is None


TEXT = {"type": "text", "text": "one "}


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ([TEXT], "one "),
        (
            [{"type": "thinking", "thinking": "…"}, TEXT, {"type": "tool_use"}, {"type": "text", "text": "two"}],
            "one two",
        ),
        ([{"type": "thinking", "thinking": "…"}], ""),
        ([], ""),
        ([{"type": "of_tomorrow", "text": "x"}, TEXT], "one "),
        ([{"type": "text"}, {"type": "text", "text": None}, {"type": "text", "text": 5}, TEXT], "one "),
        (["x", None, 5, TEXT], "one "),
        ("one ", ""),
        (None, ""),
        ({}, ""),
    ],
)
def test_the_text_is_that_of_all_text_blocks(content: object, text: str) -> None:
    """Whatever stands between them, or in their place, as a journal or a compatible server may have it."""
    line = {"custom_id": "a", "result": {"type": "succeeded", "message": {"content": content}}}
    assert FanOutResult.from_line(line, index=0).text == text


def test_without_an_answer_there_is_no_text() -> None:
    """Also where the answer has no content at all."""
    assert FanOutResult(custom_id="a", index=0, error=ValueError("x")).text == ""
    assert FanOutResult(custom_id="a", index=0, message=Message.construct()).text == ""


def test_a_result_of_a_type_is_a_result_like_any_other() -> None:
    """What a checker is told of is one class when it is run, and any name for it does."""
    result = FanOutResult[int](custom_id="a", index=0, parsed=5)
    assert type(result) is FanOutResult
    assert result == FanOutResult(custom_id="a", index=0, parsed=5)
    assert dataclasses.replace(result, parsed=6).parsed == 6
    either: Any = Result
    assert isinstance(result, either)
    assert either[int] == FanOutResult[int]


async def test_a_result_can_be_pickled() -> None:
    """Between processes, with what is known of it."""
    result = FanOutResult(custom_id="a", index=0, message=await message(), attempts=2, latency_s=1.5)
    assert pickle.loads(pickle.dumps(result)) == result
    read = FanOutResult.from_line(result.to_dict(), index=0)
    assert pickle.loads(pickle.dumps(read)) == read


@pytest.mark.parametrize("model", [None, 5, []])
def test_an_answer_without_a_model_has_no_known_cost(model: object) -> None:
    """A compatible server may send what it likes."""
    message = Message.construct(model=model, usage={"input_tokens": 1, "output_tokens": 1})
    assert FanOutResult(custom_id="a", index=0, message=message).cost_usd is None
