"""What can be forwarded besides a stream: conversations, tool loops with approval; and what can't."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from datetime import date
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from starlette.websockets import WebSocketDisconnect

from penstock import ToolCall, ToolLoopLimit
from penstock.streaming.relay import EventFrame
from penstock.tools import ToolStarted
from penstock.web import event_stream, forward
from penstock.web.frames import encoded

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = pytest.mark.anyio

PARAMS: Any = {"model": "claude-sonnet-5-5", "max_tokens": 1000}
CALL = {"type": "tool_use", "name": "get_weather", "input": {"city": "Rome"}}


async def get_weather(city: str) -> str:
    """Get the weather of a city."""
    return f"sunny in {city}"


def replies(api: Any, times: int = 1) -> None:
    """Have the model call a tool, so many times, and then say something."""
    for _ in range(times):
        api.simulator.reply([{"type": "text", "text": "I'll look. "}, CALL])
    api.simulator.reply("It is sunny.")


def kinds(frames: list[dict[str, Any]]) -> list[str]:
    """Of frames, adjacent texts as one."""
    found: list[str] = []
    for frame in frames:
        if not (found and found[-1] == frame["type"] == "text"):
            found.append(frame["type"])
    return found


@pytest.mark.usefixtures("virtual_time")
async def test_a_tool_loop_is_forwarded_with_what_its_tools_do(api: Any, browser: Any) -> None:
    """Text, calls and results in order; the end tells of all replies together."""
    replies(api)
    async with api.client() as claude:
        loop = claude.tool_loop("Weather in Rome?", tools=[get_weather], **PARAMS)
        final = await forward(loop, await browser.connect(), cost=claude.cost)
    assert kinds(browser.frames) == ["text", "tool_call", "tool_result", "text", "final"]
    call, result = (frame for frame in browser.frames if frame["type"].startswith("tool"))
    assert call == {"type": "tool_call", "id": call["id"], "name": "get_weather", "input": {"city": "Rome"}}
    assert result == {
        "type": "tool_result",
        "id": call["id"],
        "name": "get_weather",
        "content": "sunny in Rome",
        "is_error": False,
    }
    assert browser.text == final.text == "I'll look. It is sunny."
    last = browser.frames[-1]
    assert (last["stop_reason"], last["text_length"]) == ("end_turn", len(final.text))
    assert final.usage == loop.run.usage
    assert last["cost_usd"] == float(loop.run.cost_usd or 0) > 0
    assert browser.closed is None


@pytest.mark.usefixtures("virtual_time")
@pytest.mark.parametrize("allow", [True, False])
async def test_a_browser_is_asked_for_approval(api: Any, browser: Any, allow: bool) -> None:
    """The frame says what about; what the browser says goes to `on_message`, and from there to the hook."""
    replies(api)
    asked: dict[str, asyncio.Future[bool]] = {}

    async def approve(call: ToolCall) -> bool:
        asked[call.id] = asyncio.get_running_loop().create_future()
        return await asked[call.id]

    def on_message(said: str | bytes) -> None:
        message = json.loads(said)
        asked[message["id"]].set_result(message["allow"])

    def answer(frame: dict[str, Any]) -> None:
        if frame["type"] == "approval":
            browser.say(json.dumps({"id": frame["id"], "allow": allow}))

    browser.on_frame = answer
    async with api.client() as claude:
        loop = claude.tool_loop("Weather in Rome?", tools=[get_weather], approve=approve, **PARAMS)
        await forward(loop, await browser.connect(), on_message=on_message)
    assert kinds(browser.frames) == (
        ["text", "approval", *(["tool_call"] if allow else []), "tool_result", "text", "final"]
    )
    approval, result = (frame for frame in browser.frames if frame["type"] in {"approval", "tool_result"})
    assert approval["input"] == {"city": "Rome"}
    assert result["is_error"] is not allow


@pytest.mark.usefixtures("virtual_time")
@pytest.mark.parametrize("stops", [True, False])
async def test_who_stops_or_leaves_while_a_tool_runs_ends_it(api: Any, browser: Any, stops: bool) -> None:
    """A stop gets a final frame; nothing goes on."""
    replies(api)
    ended = False

    async def wait(city: str) -> str:
        """Wait."""
        nonlocal ended
        try:
            await anyio.sleep(1000)
        finally:
            ended = True
        return city

    def answer(frame: dict[str, Any]) -> None:
        if frame["type"] == "tool_call":
            browser.say('{"type":"stop"}') if stops else browser.leave()

    wait.__name__ = "get_weather"
    browser.on_frame = answer
    async with api.client() as claude:
        loop = claude.tool_loop("Weather in Rome?", tools=[wait], tool_timeout_s=None, **PARAMS)
        with anyio.fail_after(50), suppress(WebSocketDisconnect):
            final = await forward(loop, await browser.connect(), cost=claude.cost)
            assert stops
            assert final.stop_reason is None
            assert final.usage.output_tokens > 0
            assert browser.frames[-1]["usage"]["estimated"]
            assert "cost_usd" not in browser.frames[-1]
        assert api.idle(claude)
    assert ended
    assert (browser.frames[-1]["type"] == "final") is stops
    assert loop.transcript[-1]["content"][0]["is_error"]


@pytest.mark.usefixtures("virtual_time")
async def test_a_loop_that_comes_to_a_bound_ends_with_an_error_frame(api: Any, browser: Any) -> None:
    """After all its text; the error comes out."""
    replies(api, times=3)
    async with api.client() as claude:
        loop = claude.tool_loop("Weather?", tools=[get_weather], max_iterations=2, **PARAMS)
        with pytest.raises(ToolLoopLimit):
            await forward(loop, await browser.connect())
    assert browser.text == "I'll look. I'll look. "
    assert browser.frames[-1]["error"]["type"] == "ToolLoopLimit"
    assert browser.closed == 1011


@pytest.mark.usefixtures("virtual_time")
async def test_a_conversation_is_forwarded_and_remembers_the_answer(api: Any, browser: Any) -> None:
    """Its stream is one; what was stopped is forgotten."""
    api.simulator.reply("Four.")
    async with api.client() as claude:
        chat = claude.conversation(**PARAMS)
        asked = chat.stream("Two and two?")
        final = await forward(asked, await browser.connect())
    assert browser.text == final.text == "Four."
    assert asked.reply is not None
    assert [message["role"] for message in chat.messages] == ["user", "assistant"]


async def body_of(response: Any) -> list[dict[str, Any]]:
    """The frames that a response sends."""
    pieces: list[bytes] = []

    async def receive() -> Any:
        await anyio.sleep_forever()

    async def send(message: Any) -> None:
        pieces.append(message.get("body", b""))

    await response({"type": "http", "method": "GET", "headers": []}, receive, send)
    lines = b"".join(pieces).decode().splitlines()
    return [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")]


@pytest.mark.usefixtures("virtual_time")
async def test_event_streams_take_them_as_well(api: Any) -> None:
    """The same frames."""
    replies(api)
    async with api.client() as claude:
        loop = claude.tool_loop("Weather in Rome?", tools=[get_weather], **PARAMS)
        frames = await body_of(event_stream(loop))
        assert kinds(frames) == ["text", "tool_call", "tool_result", "text", "final"]
        api.simulator.reply("Four.")
        frames = await body_of(event_stream(claude.conversation(**PARAMS).stream("Two and two?")))
        assert kinds(frames) == ["text", "final"]


class Opening:
    """A context manager of the application's own."""

    def __init__(self, opens: Any) -> None:
        self.opens = opens

    async def __aenter__(self) -> Any:
        return await self.opens.__aenter__()

    async def __aexit__(self, *how: object) -> None:
        await self.opens.__aexit__(*how)


@pytest.mark.usefixtures("virtual_time")
async def test_a_context_manager_of_ones_own_may_give_a_stream(api: Any, browser: Any) -> None:
    """As one does that looks a conversation up first."""
    async with api.client() as claude:
        final = await forward(Opening(api.ask(claude)), await browser.connect())
    assert final.stop_reason == "end_turn"


async def test_what_cannot_be_forwarded_is_a_type_error_that_says_what_can(api: Any, browser: Any) -> None:
    """Before anything is sent."""

    async def texts() -> AsyncIterator[str]:
        yield "Hello"

    async with api.client() as claude:
        chat = claude.conversation(**PARAMS)
        sdk_stream = claude.messages.stream(messages=[{"role": "user", "content": "Hello"}], **PARAMS)
        others: list[Any] = [None, "Hello", texts(), claude, chat, sdk_stream, claude.fan_out(["Hello"], **PARAMS)]
        async with sdk_stream as opened_by_sdk:
            others.append(opened_by_sdk)
        for other in others:
            with pytest.raises(TypeError, match=r"forward takes what claude.stream\(…\), .* not "):
                await forward(other, await browser.connect())
            with pytest.raises(TypeError, match=r"event_stream takes what claude.stream\(…\), .* not "):
                event_stream(other)
        async with api.ask(claude) as opened:
            with pytest.raises(TypeError, match="not yet entered, not Stream"):
                event_stream(opened)
    assert not browser.frames


async def test_a_frame_is_written_whatever_a_tool_is_run_with() -> None:
    """A hook may give values that JSON doesn't know; what no frame stands for is an error."""
    event = ToolStarted(id="1", name="f", input={"day": date(2026, 1, 1), "half": "\ud83d"})
    assert json.loads(encoded(EventFrame(event=event)))["input"] == {"day": "2026-01-01", "half": "\ud83d"}
    with pytest.raises(TypeError, match="no frame stands for int"):
        encoded(EventFrame(event=1))
    assert "2026" not in repr(EventFrame(event=event))
