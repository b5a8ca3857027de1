from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import anthropic
import pytest
from pydantic import BaseModel

from penstock.streaming import opening, stream

if TYPE_CHECKING:
    from penstock.simulator import Simulator

PARAMS: dict[str, Any] = {
    "model": "claude-sonnet-5-5",
    "max_tokens": 100,
    "messages": [{"role": "user", "content": "Hello"}],
}
SDK = anthropic.AsyncAnthropic(api_key="sk-ant-test")
TOOL = {"name": "get_weather", "description": "d", "input_schema": {"type": "object", "properties": {}}}


class City(BaseModel):
    name: str
    rivers: list[str] = []


def names(method: Any) -> set[str]:
    """The names of a method's parameters."""
    return set(inspect.signature(method).parameters)


def test_the_betas_own_parameters_are_known() -> None:
    """Canary: what only `beta.messages` takes leads there, and all that its `stream` takes is known to `create`."""
    assert names(SDK.beta.messages.stream) - names(SDK.messages.stream) == opening._BETA
    for messages in (SDK.messages, SDK.beta.messages):
        assert names(messages.stream) - names(messages.create) == {"output_format"}


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"tools": [TOOL], "tool_choice": {"type": "auto"}, "system": "Be terse.", "metadata": {"user_id": "u"}},
        {"output_format": City},
        {"output_format": City, "output_config": {"effort": "low"}},
        {"output_format": anthropic.omit, "output_config": anthropic.omit},
        {"betas": ["context-management-2025-06-27"], "context_management": {"edits": []}},
        {"betas": ["x"], "mcp_servers": [{"type": "url", "url": "https://mcp.example", "name": "n"}]},
        {"betas": ["x"], "output_format": City, "output_config": {"effort": "low"}},
        {"betas": anthropic.omit, "extra_headers": {"x-own": "1"}, "extra_body": {"own": 1}, "workspace_id": "ws"},
    ],
)
async def test_the_request_is_the_one_of_the_sdks_own_stream(wire: Any, more: dict[str, Any]) -> None:
    """Path and body are the same, and the headers but for the SDK's own notes of which of its helpers was used."""
    claude = wire.client(wire.sse(*wire.recorded))
    beta = isinstance(more.get("betas"), list)
    sdks_more = {name: value for name, value in more.items() if beta or name != "betas"}
    async with (claude.beta if beta else claude).messages.stream(**PARAMS, **sdks_more):
        pass
    async with stream(claude, **PARAMS, **more):
        pass
    theirs, ours = wire.transport.asked
    assert ours[:2] == theirs[:2]
    notes = {"x-stainless-helper-method", "x-stainless-stream-helper", "x-stainless-raw-response"}
    assert {name: value for name, value in ours[2].items() if name not in notes} == {
        name: value for name, value in theirs[2].items() if name not in notes
    }


def test_bad_arguments_are_named() -> None:
    """Nothing is sent; the message says what is allowed."""
    for bad in (0, -1, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="stream_idle_timeout_s must be above 0"):
            stream(SDK, **PARAMS, stream_idle_timeout_s=bad)
    with pytest.raises(ValueError, match="on_abandon must be one of close, drain"):
        stream(SDK, **PARAMS, on_abandon="leave")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="output_config="):
        stream(SDK, **PARAMS, output_format={"type": "object"})  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="no JSON schema"):
        stream(SDK, **PARAMS, output_format=type("Odd", (), {}))


async def test_it_runs_once(simulator: Simulator) -> None:
    """Entered again it raises; left without having been entered it does nothing; its state shows."""
    async with simulator.client() as claude:
        manager = stream(claude, **PARAMS)
        assert repr(manager) == "<StreamManager 'claude-sonnet-5-5', not entered>"
        await manager.__aexit__(None, None, None)
        async with manager as answer:
            assert "open" in repr(manager)
            await answer.until_done()
        with pytest.raises(RuntimeError, match="runs once"):
            await manager.__aenter__()


async def test_a_refusal_raises_where_it_is_entered(simulator: Simulator) -> None:
    """The SDK's own error; and an exception of the block leaves as it is."""
    simulator.inject("authentication")
    async with simulator.client(max_retries=0) as claude:
        with pytest.raises(anthropic.AuthenticationError):
            await stream(claude, **PARAMS).__aenter__()
        with pytest.raises(LookupError, match="mine"):
            async with stream(claude, **PARAMS):
                raise LookupError("mine")
    assert simulator.in_flight == 0


async def test_bedrocks_older_format_is_left_to_the_sdk(wire: Any) -> None:
    """An answer in AWS frames is decoded by the SDK's stream; what it makes of it is read as any other."""
    claude = wire.client(wire.sse(*wire.recorded), headers={"content-type": "application/vnd.amazon.eventstream"})
    async with stream(claude, **PARAMS) as answer:
        assert [text async for text in answer.text_stream] == wire.texts
        assert (await answer.get_final_message()).stop_reason == "tool_use"
