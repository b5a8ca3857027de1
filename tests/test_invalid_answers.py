from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anthropic
import httpx2
import pytest

from penstock import Retry

if TYPE_CHECKING:
    from penstock.testing.plugin import VirtualTime

HELLO: Any = {"model": "claude-sonnet-5-5", "max_tokens": 100, "messages": [{"role": "user", "content": "Hello"}]}
MESSAGE: Any = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": "claude-sonnet-5-5",
    "content": [{"type": "text", "text": "Hi"}],
    "stop_reason": "end_turn",
    "stop_sequence": None,
    "usage": {"input_tokens": 1, "output_tokens": 1},
}


def answering(*bodies: bytes) -> anthropic.AsyncAnthropic:
    """A client with `Retry` alone, whose server answers 200 with one body after the other."""
    left = list(bodies)

    def answer(request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(200, content=left.pop(0), headers={"content-type": "application/json"})

    transport = httpx2.MockTransport(answer)
    return anthropic.AsyncAnthropic(
        api_key="sk-1",
        max_retries=0,
        middleware=[Retry(max_attempts=2)],
        http_client=httpx2.AsyncClient(transport=transport),
    )


async def test_an_answer_that_is_not_json_is_tried_again(virtual_time: VirtualTime) -> None:
    """A 200 whose body breaks off in the middle is repeated like any other broken answer."""
    whole = httpx2.Response(200, json=MESSAGE).content
    message = await answering(whole[:-20], whole).messages.create(**HELLO)
    assert message.content[0].type == "text"


async def test_when_no_answer_is_json_the_error_is_typed_and_quotes_nothing(virtual_time: VirtualTime) -> None:
    """The last attempt raises the SDK's own validation error, not a text in place of a message."""
    with pytest.raises(anthropic.APIResponseValidationError, match="no message") as raised:
        await answering(b"<html>secret</html>", b"<html>secret</html>").messages.create(**HELLO)
    assert "2 attempts" in raised.value.__notes__[0]
    assert "secret" not in str(raised.value)
