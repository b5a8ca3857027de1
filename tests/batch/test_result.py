from __future__ import annotations

import dataclasses
import json
from typing import Any

import anthropic
import httpx2
import pytest
from anthropic.types import Message

from penstock import ClientClosed, FanOutResult
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
