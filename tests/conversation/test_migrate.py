"""Conversations that outlive the code that began them: bounds come from code, what the model sees changes by name."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from penstock import BudgetExceeded, Conversation, ConversationChanged, SystemPrompt, SystemPromptChanged, tool

if TYPE_CHECKING:
    from penstock.simulator import Simulator

MODEL = "claude-sonnet-5-5"
THOUGHT = {"type": "thinking", "thinking": "Hm.", "signature": "c2ln"}


async def get_weather(city: str) -> str:
    """Get the weather."""
    return f"sunny in {city}"


async def get_time(city: str) -> str:
    """Get the time."""
    return f"noon in {city}"


@tool(name="get_weather")
async def get_better_weather(city: str, day: str) -> str:
    """Get the weather of a day."""
    return f"sunny in {city} on {day}"


BEFORE: dict[str, Any] = {
    "system": SystemPrompt("You are terse.", name="support", version="v3"),
    "tools": [get_weather],
    "thinking": {"type": "adaptive"},
    "metadata": {"user_id": "u1"},
}


def saved_from(sdk: Any, **more: Any) -> str:
    """A conversation that was saved, with a thought in its history."""
    history: Any = [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": [THOUGHT, {"type": "text", "text": "Hi"}]},
    ]
    return Conversation(sdk, model=MODEL, messages=history, **{**BEFORE, **more}).to_json()


async def test_bounds_come_from_code(simulator: Simulator) -> None:
    """Larger, smaller, none or unsaid: what is said holds, what isn't stays; nothing of it is a change."""
    bounds: dict[str, Any] = {"token_budget": 2000, "max_tokens": 300, "max_iterations": 2, "tool_timeout_s": 7.0}
    async with simulator.client() as sdk:
        text = saved_from(sdk, **bounds, stream_idle_timeout_s=9.0)
        now: dict[str, Any] = {"token_budget": 90_000, "max_tokens": 500, "max_iterations": 6, "tool_timeout_s": None}
        window: dict[str, Any] = {"overflow": "summary", "trim_at": 0.5, "trim_to": 0.1, "cache_ttl": "1h"}
        more: dict[str, Any] = {"on_truncation": "continue", "cost_budget_usd": 2.5, "stream_idle_timeout_s": 5.0}
        changed = Conversation.from_json(text, sdk, tools=[get_weather], **now, **window, **more)
        kept = Conversation.from_json(text, sdk, tools=[get_weather])
        free = Conversation.from_json(text, sdk, tools=[get_weather], token_budget=None)
        for chat, wanted in ((changed, now), (kept, bounds)):
            functions = chat._session.functions
            assert functions is not None
            found = {**dict(chat.options), **dict(functions.options)}
            assert {name: found[name] for name in wanted} == wanted
        assert {name: getattr(changed.options, name) for name in window} == window
        assert changed._session.requests.params["stream_idle_timeout_s"] == 5.0
        assert free.options.token_budget is None
        assert kept.to_json() == text
        assert changed.messages == kept.messages
        with pytest.raises(ValueError, match="token_budget"):
            Conversation.from_json(text, sdk, tools=[get_weather], token_budget=1)


async def test_what_was_spent_counts_against_the_budget_of_today(simulator: Simulator) -> None:
    """A deploy that lowers the budget stops what has used more."""
    async with simulator.client() as sdk:
        chat = Conversation(sdk, model=MODEL, max_tokens=1000)
        await chat.send("word " * 1500)
        again = Conversation.from_json(chat.to_json(), sdk, token_budget=1000)
        with pytest.raises(BudgetExceeded):
            await again.send("More")
        assert again.spent_tokens == chat.spent_tokens


CHANGES: dict[str, tuple[dict[str, Any], dict[str, str]]] = {
    "model": ({"model": "claude-opus-5-5"}, {"model": "claude-sonnet-5-5, now claude-opus-5-5"}),
    "system": ({"system": SystemPrompt("You are kind.", name="support", version="v4")}, {"system": "support.v4"}),
    "a tool more": ({"tools": [get_weather, get_time]}, {"tools": "get_time was added"}),
    "a tool less": ({"tools": []}, {"tools": "get_weather was removed"}),
    "another tool": ({"tools": [get_time]}, {"tools": "get_weather was removed, get_time was added"}),
    "a changed tool": ({"tools": [get_better_weather]}, {"tools": "get_weather was changed"}),
    "a parameter": ({"thinking": {"type": "between_tools"}}, {"params": "thinking"}),
    "a new parameter": ({"tool_choice": {"type": "auto"}}, {"params": "tool_choice"}),
    "two things": (
        {"model": "claude-opus-5-5", "tools": [get_time]},
        {"model": "claude-opus-5-5", "tools": "get_time was added"},
    ),
}


@pytest.mark.lengthy
@pytest.mark.parametrize("what", CHANGES)
async def test_what_the_model_sees_changes_only_by_name(simulator: Simulator, what: str) -> None:
    """It is told by name, refused, and accepted where it is named; then it is what is sent, without old thinking."""
    now, told = CHANGES[what]
    given = {"tools": [get_weather], **now}
    async with simulator.client() as sdk:
        text = saved_from(sdk)
        with pytest.raises((ConversationChanged, SystemPromptChanged)) as raised:
            Conversation.from_json(text, sdk, **given)
        assert all(name in str(raised.value) and how in str(raised.value) for name, how in told.items())
        if isinstance(raised.value, ConversationChanged):
            assert raised.value.changes.keys() == told.keys()
        with pytest.raises((ConversationChanged, SystemPromptChanged)):
            Conversation.from_json(text, sdk, **given, migrate=list(told)[1:])  # type: ignore[arg-type]
        again = Conversation.from_json(text, sdk, **given, migrate={*told})  # type: ignore[arg-type]
        assert "thinking" not in {block["type"] for block in again.messages[1]["content"]}  # type: ignore[index]
        await again.send("And now?")
        sent = simulator.journal[-1].body or {}
        assert sent["model"] == now.get("model", MODEL)
        assert sent["system"][0]["text"] == now.get("system", BEFORE["system"]).text
        assert {name: sent[name] for name in ("thinking", "tool_choice") if name in now} == {
            name: now[name] for name in ("thinking", "tool_choice") if name in now
        }
        fresh = Conversation.from_json(again.to_json(), sdk, tools=given["tools"])
        assert fresh.messages == again.messages


async def test_the_same_by_another_label_is_the_same(simulator: Simulator) -> None:
    """A new version of a prompt with the same text, the same parameters, other metadata: thinking stays."""
    async with simulator.client() as sdk:
        same = SystemPrompt("You are terse.", name="support", version="v9")
        again = Conversation.from_json(
            saved_from(sdk),
            sdk,
            model=MODEL,
            system=same,
            tools=[get_weather],
            thinking={"type": "adaptive"},
            metadata={"user_id": "u2"},
        )
        assert again.messages[1]["content"][0]["type"] == "thinking"  # type: ignore[index]
        await again.send("Hello")
        assert (simulator.journal[-1].body or {})["metadata"] == {"user_id": "u2"}


async def test_the_order_of_tools_is_told_too(simulator: Simulator) -> None:
    """It counts for the prompt cache."""
    async with simulator.client() as sdk:
        text = saved_from(sdk, tools=[get_weather, get_time])
        with pytest.raises(ConversationChanged, match="tools: their order was changed"):
            Conversation.from_json(text, sdk, tools=[get_time, get_weather])


async def test_a_model_without_system_turns_takes_no_history_with_them(simulator: Simulator) -> None:
    """It is told when it is loaded, not by a 400 of the API."""
    async with simulator.client() as sdk:
        chat = Conversation(sdk, model=MODEL)
        await chat.send("Hello")
        chat.add_system_turn("Answer in French.")
        with pytest.raises(ValueError, match="system turns"):
            Conversation.from_json(chat.to_json(), sdk, model="claude-haiku-4-5", migrate={"model"})


@pytest.mark.parametrize("migrate", ["tools", {"tool"}, {"tools", "messages"}])
async def test_migrate_names_what_there_is(simulator: Simulator, migrate: Any) -> None:
    """A text alone, or something misspelt, would accept nothing, or everything."""
    async with simulator.client() as sdk:
        with pytest.raises(ValueError, match="migrate must be a set of model, params, system, tools"):
            Conversation.from_json(saved_from(sdk), sdk, tools=[get_time], migrate=migrate)


async def test_a_damaged_list_of_tools_is_still_told_as_one(simulator: Simulator) -> None:
    """Nothing but what is documented comes of it."""
    async with simulator.client() as sdk:
        given = {**json.loads(saved_from(sdk)), "tools": [{"x": 1}]}
        with pytest.raises(ConversationChanged, match="get_weather was added"):
            Conversation.from_json(json.dumps(given), sdk, tools=[get_weather])
