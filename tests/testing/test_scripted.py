from __future__ import annotations

import httpx2
import pytest

from penstock.testing import ScriptedTransport

MESSAGE = {"id": "msg_1", "type": "message", "role": "assistant", "model": "m", "content": []}


async def test_answers_come_in_turn_and_the_last_one_for_ever() -> None:
    """Whatever they are: a response, an error, a function, a coroutine function."""

    async def slow(request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(202, content=request.content)

    transport = ScriptedTransport(
        httpx2.Response(201), httpx2.ConnectError("refused"), slow, lambda _: httpx2.Response(203)
    )
    async with httpx2.AsyncClient(transport=transport) as client:
        assert (await client.get("http://a.invalid")).status_code == 201
        with pytest.raises(httpx2.ConnectError):
            await client.get("http://a.invalid")
        assert (await client.post("http://a.invalid", content=b"body")).content == b"body"
        assert [(await client.get("http://a.invalid")).status_code for _ in range(3)] == [203] * 3
    assert [request.method for request in transport.requests] == ["GET", "GET", "POST", "GET", "GET", "GET"]
    assert transport.times == sorted(transport.times)
    assert repr(transport) == "<ScriptedTransport 6 requests, 1 answers left>"


async def test_a_client_of_the_sdk_is_answered_by_it() -> None:
    """It retries nothing, unless it is told to."""
    transport = ScriptedTransport(httpx2.ConnectError("refused"), httpx2.Response(200, json=MESSAGE))
    async with transport.client(max_retries=1) as sdk:
        answer = await sdk.messages.create(model="m", max_tokens=9, messages=[{"role": "user", "content": "Hello"}])
    assert (answer.id, len(transport.requests)) == ("msg_1", 2)
    assert ScriptedTransport(httpx2.Response(200)).client().max_retries == 0
