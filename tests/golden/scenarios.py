"""What requests are sent, byte for byte: the prompt cache depends on it, and users' saved conversations on their form.

Run as a script, it writes down what the installed penstock sends: `python scenarios.py` in this directory.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import anthropic
import anyio
from anthropic.types import TextBlock, ToolUseBlock

from penstock import Client, Conversation, SystemPrompt, ToolLoopLimit
from penstock.simulator import Simulator
from penstock.testing import ScriptedTransport

HERE: Final = Path(__file__).parent
MODEL: Final = "claude-sonnet-5-5"
CALL: Final[dict[str, Any]] = {"type": "tool_use", "id": "toolu_1", "name": "get_weather", "input": {"city": "Rome"}}
TEXT: Final[dict[str, Any]] = {"type": "text", "text": "Sunny. ☀"}
THOUGHT: Final[dict[str, Any]] = {"type": "thinking", "thinking": ""}
SEARCH: Final[dict[str, Any]] = {"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search", "input": {"q": 1}}
FOUND: Final[dict[str, Any]] = {
    "type": "web_search_tool_result",
    "tool_use_id": "srvtoolu_1",
    "content": [{"type": "web_search_result", "url": "https://a.example", "title": "A", "encrypted_content": "x"}],
}
IMAGE: Final[dict[str, Any]] = {"type": "image", "source": {"type": "url", "url": "https://a.example/cat.png"}}
DOCUMENT: Final[dict[str, Any]] = {
    "type": "document",
    "source": {"type": "text", "media_type": "text/plain", "data": "Rivers."},
    "title": "R",
}
MARKED: Final[dict[str, Any]] = {"type": "text", "text": "Hello", "cache_control": {"type": "ephemeral"}}
ENTRY: Final[dict[str, Any]] = {
    "name": "get_weather",
    "description": "Weather.",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}},
}


async def get_weather(city: str) -> str:
    """Get the weather of a city."""
    if city == "Oslo":
        raise LookupError("no station")
    return f"sunny in {city}"


def recorded(simulator: Simulator) -> ScriptedTransport:
    """Hands requests to a simulator, and keeps them."""
    return ScriptedTransport(simulator.transport().handle_async_request)


def sdk_of(recorder: ScriptedTransport) -> anthropic.AsyncAnthropic:
    """A client of the recorder."""
    http = anthropic.DefaultAsyncHttpxClient(transport=recorder)
    return anthropic.AsyncAnthropic(api_key="key", base_url="http://api.invalid", max_retries=0, http_client=http)


async def create(sdk: Any, simulator: Simulator) -> None:
    """The SDK's own method, through a client."""
    async with Client(sdk=sdk) as claude:
        messages: Any = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": [TEXT]},
                         {"role": "user", "content": [MARKED]}]  # fmt: skip
        await claude.messages.create(model=MODEL, max_tokens=100, messages=messages, system="Be terse.")


async def send(sdk: Any, simulator: Simulator) -> None:
    """Texts, images and documents, thinking, a pinned turn; two turns are marked."""
    simulator.reply([THOUGHT, TEXT])
    simulator.reply([THOUGHT, TEXT])
    system = SystemPrompt("You are terse.", name="s", version="1")
    chat = Conversation(sdk, model=MODEL, system=system, thinking={"type": "adaptive"}, id="s1")
    await chat.send("Hello")
    await chat.send("What is it?", images=[IMAGE], documents=[DOCUMENT], pin=True)
    await chat.send([TEXT, IMAGE], max_tokens=77)


async def send_other(sdk: Any, simulator: Simulator) -> None:
    """Other marks, system turns, a history of the caller's, more parameters."""
    history: Any = [{"role": "user", "content": "Hello"},
                    {"role": "assistant", "content": [TextBlock(type="text", text="Hi", citations=None)]},
                    {"role": "user", "content": [MARKED]}, {"role": "assistant", "content": "Yes?"}]  # fmt: skip
    chat = Conversation(sdk, model=MODEL, messages=history, cache_ttl="1h", metadata={"user_id": "u"})
    await chat.send("More")
    chat.add_system_turn("In French.")
    await chat.send("And more")
    unmarked = Conversation(sdk, model=MODEL, messages=history, cache_ttl=None, stop_sequences=["x"], tools=[
        {**ENTRY, "cache_control": {"type": "ephemeral"}}])  # fmt: skip
    await unmarked.send("More")


async def send_stopped(sdk: Any, simulator: Simulator) -> None:
    """Pauses, cut answers continued and retried, compaction by the API."""
    simulator.reply([SEARCH], stop_reason="pause_turn")
    simulator.reply([FOUND, TEXT])
    simulator.reply([TEXT], stop_reason="max_tokens")
    simulator.reply([TEXT])
    simulator.reply([CALL], stop_reason="max_tokens")
    chat = Conversation(sdk, model=MODEL, tools=[ENTRY, {"type": "web_search_20250305", "name": "web_search"}])
    await chat.send("Search")
    await chat.send("Long", on_truncation="continue", max_tokens=50)
    await chat.send("Cut", on_truncation="retry", max_tokens=60)
    compacting = Conversation(sdk, model=MODEL, overflow="compaction")
    await compacting.send("Hello")


async def send_calls(sdk: Any, simulator: Simulator) -> None:
    """Calls that the caller answers, and functions that run."""
    simulator.reply([TEXT, CALL, {**CALL, "id": "toolu_2", "input": {"city": "Ulm", "extra": None}}])
    chat = Conversation(sdk, model=MODEL, tools=[ENTRY])
    reply = await chat.send("Weather?")
    await chat.send([*({"type": "tool_result", "tool_use_id": call.id, "content": [TEXT]} for call in reply.tool_calls),
                     {"type": "text", "text": "Go on."}])  # fmt: skip
    simulator.reply([THOUGHT, CALL, {**CALL, "id": "toolu_2", "input": {"city": "Oslo"}}])
    functions = Conversation(sdk, model=MODEL, tools=[get_weather], max_iterations=3)
    await functions.send("Weather?")
    await functions.send("Thanks")


async def stream(sdk: Any, simulator: Simulator) -> None:
    """The same requests, read as they come."""
    chat = Conversation(sdk, model=MODEL, system="You are terse.")
    for text in ("Hello", "And?"):
        async with chat.stream(text) as opened:
            async for _ in opened.text_stream:
                pass


async def saved(sdk: Any, simulator: Simulator) -> None:
    """One that was saved goes on as it was."""
    simulator.reply([{"type": "text", "text": "Rhine"}])
    chat = Conversation(sdk, model=MODEL, system="You are terse.", id="s1", thinking={"type": "adaptive"})
    await chat.send("A river", pin=True)
    again = Conversation.from_json(chat.to_json(), sdk)
    await again.send("Another")


async def run_tools(sdk: Any, simulator: Simulator) -> None:
    """A text, blocks and a history as prompts; marks of the caller's stay."""
    async with Client(sdk=sdk) as claude:
        simulator.reply([THOUGHT, TEXT, CALL, {**CALL, "id": "toolu_2", "input": {"city": "Oslo"}}])
        simulator.reply([{**CALL, "id": "toolu_3", "input": {"city": "Ulm"}}])
        more: Any = {"tools": [get_weather], "model": MODEL, "max_tokens": 100, "system": "Be terse."}
        run = await claude.run_tools("Weather?", **more)
        await claude.run_tools([*run.transcript, {"role": "user", "content": [MARKED, IMAGE]}], **more)
        await claude.run_tools([MARKED, TextBlock(type="text", text="?")], **more)
        calls: Any = [{"role": "user", "content": "Weather?"},
                      {"role": "assistant", "content": [ToolUseBlock(**CALL), {**CALL, "id": "toolu_9"}]},
                      {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "toolu_9"}]}]  # fmt: skip
        await claude.run_tools(calls, **more)


async def tool_loop(sdk: Any, simulator: Simulator) -> None:
    """The same, with events; pauses, and a bound."""
    simulator.reply([SEARCH], stop_reason="pause_turn")
    simulator.reply([FOUND, CALL])
    simulator.reply([{**CALL, "id": "toolu_2"}], times=1)
    search = {"type": "web_search_20250305", "name": "web_search"}
    async with Client(sdk=sdk) as claude:
        more: Any = {"tools": [get_weather, search], "model": MODEL, "max_tokens": 100}
        try:
            async with claude.tool_loop("Weather?", max_iterations=3, **more) as events:
                async for _ in events:
                    pass
        except ToolLoopLimit as limit:
            async with claude.tool_loop(limit.transcript or [], **more) as events:
                async for _ in events:
                    pass


SCENARIOS: Final = [
    create, send, send_other, send_stopped, send_calls, stream, saved, run_tools, tool_loop,
]  # fmt: skip


async def bodies(scenario: Any) -> list[str]:
    """What it sends."""
    simulator = Simulator()
    recorder = recorded(simulator)
    async with sdk_of(recorder) as sdk:
        await scenario(sdk, simulator)
    assert all(entry.status == 200 for entry in simulator.journal), [entry.status for entry in simulator.journal]
    return [request.content.decode() for request in recorder.requests]


async def save() -> str:
    """A conversation with all that can be saved."""
    simulator = Simulator()
    simulator.reply([THOUGHT, TEXT, CALL])
    async with sdk_of(recorded(simulator)) as sdk:
        system = SystemPrompt("You are terse.", name="s", version="1")
        chat = Conversation(sdk, model=MODEL, system=system, tools=[ENTRY], id="s1", token_budget=50_000,
                            cost_budget_usd=1, thinking={"type": "adaptive"})  # fmt: skip
        await chat.send("Weather? ☀", documents=[DOCUMENT], pin=True)
        await chat.send([{"type": "tool_result", "tool_use_id": "toolu_1", "content": "sunny"}])
        return chat.to_json()


async def write_journal(path: Path) -> None:
    """A fan-out of three."""
    simulator = Simulator()
    prompts = ["One", "Two", "Three"]
    async with (
        sdk_of(recorded(simulator)) as sdk,
        Client(sdk=sdk) as claude,
        claude.fan_out(prompts, model=MODEL, max_tokens=50, journal=path, concurrency=1) as results,
    ):
        async for _ in results:
            pass


async def _write() -> None:
    found = {scenario.__name__: await bodies(scenario) for scenario in SCENARIOS}
    (HERE / "bodies.json").write_text(json.dumps(found, indent=1), encoding="utf-8")
    (HERE / "conversation.json").write_text(await save(), encoding="utf-8")
    (HERE / "journal.jsonl").unlink(missing_ok=True)
    await write_journal(HERE / "journal.jsonl")


if __name__ == "__main__":
    anyio.run(_write)
