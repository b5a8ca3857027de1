from __future__ import annotations

import json
from typing import Any, get_args

import anthropic
import anyio
import pytest

from penstock import (
    Client,
    ContextOverflow,
    Conversation,
    ConversationChanged,
    Deny,
    InvalidHistory,
    ToolCall,
    ToolLoopLimit,
    UnknownTool,
    labels,
    tool,
)
from penstock.simulator import Simulator
from penstock.testing import Cancelled, cancel_at_every_await
from penstock.testing.cancellation import How

MODEL = "claude-sonnet-5-5"
CALL = {"type": "tool_use", "name": "get_weather", "input": {"city": "Rome"}}
THOUGHT = {"type": "thinking", "thinking": ""}


async def get_weather(city: str) -> str:
    """Get the weather of a city."""
    await anyio.lowlevel.checkpoint()
    return f"sunny in {city}"


def get_time(city: str) -> str:
    """Get the time of a city."""
    return f"noon in {city}"


def kinds(chat: Conversation) -> list[tuple[str, list[str]]]:
    """Who said what kind of blocks."""
    messages: Any = chat.messages
    return [(turn["role"], [block["type"] for block in turn["content"]]) for turn in messages]


async def test_what_is_called_runs_until_the_last_answer() -> None:
    """All calls of a turn, several turns; the whole loop is in the history, thinking as it came, and goes on."""
    simulator = Simulator(thinking=True)
    simulator.reply([THOUGHT, CALL, {**CALL, "name": "get_time"}])
    simulator.reply([THOUGHT, {**CALL, "input": {"city": "Oslo"}}])
    simulator.reply([THOUGHT, {"type": "text", "text": "Fine."}])
    async with simulator.client() as sdk:
        chat = Conversation(sdk, model=MODEL, system="You are terse.", tools=[get_weather, get_time])
        reply = await chat.send("Weather and time?", pin=True)
        assert (reply.text, reply.requests, reply.tool_calls) == ("Fine.", 3, [])
        assert reply.usage == chat.usage
        assert kinds(chat) == [
            ("user", ["text"]),
            ("assistant", ["thinking", "tool_use", "tool_use"]),
            ("user", ["tool_result", "tool_result"]),
            ("assistant", ["thinking", "tool_use"]),
            ("user", ["tool_result"]),
            ("assistant", ["thinking", "text"]),
        ]
        assert all(turn.pinned for turn in chat._session.turns)
        await chat.send("And now?")
    results = (simulator.journal[-1].body or {})["messages"][2]["content"]
    assert [block["content"] for block in results] == ["sunny in Rome", "noon in Rome"]
    assert [tool["name"] for tool in (simulator.journal[0].body or {})["tools"]] == ["get_weather", "get_time"]
    assert all(entry.status == 200 for entry in simulator.journal)
    assert "get_weather" in repr(chat._session.functions)


async def test_each_request_says_how_deep_it_is(simulator: Simulator) -> None:
    """In the log, besides the session."""
    events: list[Any] = []
    simulator.reply(CALL)
    async with Client(sdk=simulator.client(), log=False, observers=[events.append], max_tool_iterations=2) as claude:
        chat = claude.conversation(model=MODEL, tools=[get_weather])
        with labels(user="u1"):
            await chat.send("Weather?")
        simulator.reply(CALL, times=3)
        with pytest.raises(ToolLoopLimit, match="max_iterations=2"):
            await chat.send("Again?")
    told = [dict(event.labels) for event in events if type(event).__name__ == "CallEnded"]
    assert [each["tool_iteration"] for each in told] == ["1", "2", "1", "2"]
    assert {(each["user"], each["session"]) for each in told[:2]} == {("u1", chat.id)}


async def test_what_fails_midway_leaves_the_history_as_it_was(simulator: Simulator) -> None:
    """An error of the API after tools have run, a refusal, a bound, a hook that raises."""

    async def approve(call: ToolCall) -> bool:
        await anyio.lowlevel.checkpoint()
        raise LookupError(call.name)

    async with simulator.client(max_retries=0) as sdk:
        chat = Conversation(sdk, model=MODEL, tools=[get_weather], max_iterations=3, max_identical_turns=None)
        await chat.send("Hello")
        before = chat.messages
        simulator.reply(CALL)
        simulator.inject("overloaded", after=1)
        with pytest.raises(anthropic.APIStatusError):
            await chat.send("One")
        simulator.reply(CALL)
        simulator.reply("No.", stop_reason="refusal")
        assert (await chat.send("Two")).refusal is not None
        simulator.reply(CALL, times=3)
        with pytest.raises(ToolLoopLimit) as raised:
            await chat.send("Three")
        assert chat.messages == before
        assert not chat._session.turn_lock.busy
        again = Conversation(sdk, model=MODEL, tools=[get_weather], messages=raised.value.transcript or [])
        assert (await again.send()).stop_reason == "end_turn"
        assert len(again.messages) == len(before) + 8
        simulator.reply(CALL)
        with pytest.raises(LookupError, match="get_weather"):
            await Conversation(sdk, model=MODEL, tools=[get_weather], approve=approve).send("Four")


async def test_bounds_and_the_hook_are_those_of_a_tool_loop(simulator: Simulator) -> None:
    """Time, unknown tools, denials."""

    async def approve(call: ToolCall) -> Deny:
        await anyio.lowlevel.checkpoint()
        return Deny(f"no {call.name}")

    async def hang() -> None:
        """Never end."""
        await anyio.sleep_forever()

    async with simulator.client() as sdk:
        simulator.reply({**CALL, "name": "hang", "input": {}})
        with pytest.raises(ToolLoopLimit, match="max_seconds"):
            await Conversation(sdk, model=MODEL, tools=[hang], max_seconds=0.01).send("Hang")
        simulator.reply(CALL)
        with pytest.raises(UnknownTool, match="get_weather"):
            await Conversation(sdk, model=MODEL, tools=[hang], on_unknown_tool="raise").send("Weather?")
        simulator.reply(CALL)
        chat = Conversation(sdk, model=MODEL, tools=[tool(get_weather, needs_approval=True)], approve=approve)
        await chat.send("Weather?")
        assert "no get_weather" in str(chat.messages[2])


async def test_a_pause_and_a_cut_end_or_go_on_as_ever(simulator: Simulator) -> None:
    """A pause goes on by itself; a call that was cut off is not run; an empty answer leaves the results."""
    search = {"type": "server_tool_use", "name": "web_search", "input": {"query": "x"}}
    async with simulator.client() as sdk:
        of_server = {"type": "web_search_20250305", "name": "web_search"}
        chat = Conversation(sdk, model=MODEL, tools=[get_weather, of_server])
        simulator.reply(search, stop_reason="pause_turn")
        simulator.reply([{"type": "text", "text": "Found."}, CALL])
        simulator.reply([{"type": "text", "text": "It is"}, CALL], stop_reason="max_tokens")
        reply = await chat.send("Search")
        assert (reply.text, reply.truncated, reply.requests) == ("It is", True, 3)
        assert kinds(chat)[1:] == [
            ("assistant", ["server_tool_use", "text", "tool_use"]),
            ("user", ["tool_result"]),
            ("assistant", ["text"]),
        ]
        simulator.reply(CALL)
        simulator.reply([])
        await chat.send("Weather?")
        assert kinds(chat)[-1] == ("user", ["tool_result"])
        assert (await chat.send()).stop_reason == "end_turn"
    assert all(entry.status == 200 for entry in simulator.journal)


@pytest.mark.lengthy
async def test_nothing_is_trimmed_between_calls() -> None:
    """The question may begin with a shorter history; from then on it stays, and what can't fit any more is told."""
    simulator = Simulator(thinking=True, output_tokens=50)

    async def search() -> str:
        """Search."""
        await anyio.lowlevel.checkpoint()
        return "The water of the upper lake drives the turbine below. " * 12

    async with simulator.client() as sdk:
        chat = Conversation(
            sdk, model=MODEL, window_tokens=3_000, max_tokens=100, tools=[search], max_iterations=30,
            max_identical_turns=None,
        )  # fmt: skip
        while chat.statistics().context_tokens < 2_240:
            await chat.send(await search())
        before = chat.messages
        simulator.reply([THOUGHT, {**CALL, "name": "search", "input": {}}], times=4)
        await chat.send("Search")
        lengths = [len((entry.body or {})["messages"]) for entry in simulator.journal][-5:]
        assert lengths == list(range(lengths[0], lengths[0] + 10, 2))
        assert lengths[0] < len(before)
        before = chat.messages
        simulator.reply([THOUGHT, {**CALL, "name": "search", "input": {}}], times=20)
        with pytest.raises(ContextOverflow):
            await chat.send("Search on")
        assert chat.messages == before
    assert all(entry.status == 200 for entry in simulator.journal)


async def test_calls_with_another_stop_reason_are_run(simulator: Simulator) -> None:
    """Whatever the API may call it: they must be answered."""
    simulator.reply(CALL, stop_reason="wonder")
    async with simulator.client() as sdk:
        chat = Conversation(sdk, model=MODEL, tools=[get_weather])
        assert (await chat.send("Weather?")).requests == 2
        assert not chat.pending_tool_calls


async def test_a_tool_cannot_ask_in_the_conversation_that_waits_for_it(simulator: Simulator) -> None:
    """It would wait for ever; it can in a fork, and the one that waits is no worse for it."""
    said: list[str] = []

    async def ask_itself() -> str:
        """Ask."""
        said.append((await chat.fork().send("In a fork")).text)
        return (await chat.send("In itself")).text

    simulator.reply({**CALL, "name": "ask_itself", "input": {}})
    async with simulator.client() as sdk:
        chat = Conversation(sdk, model=MODEL, tools=[ask_itself])
        with anyio.fail_after(5):
            await chat.send("Ask")
        assert said == ["Summary: In a fork"]
        assert "fork it first" in str(chat.messages[2])
        await chat.send("And now?")


async def test_only_send_runs_them(simulator: Simulator) -> None:
    """A stream says what to use."""
    async with simulator.client() as sdk:
        chat = Conversation(sdk, model=MODEL, tools=[get_weather])
        with pytest.raises(TypeError, match="use send, or a tool_loop"):
            chat.stream("Weather?")


async def test_functions_are_given_again_to_what_was_saved(simulator: Simulator) -> None:
    """The same ones; how far they may go is saved, the hook is not."""

    async def approve(call: ToolCall) -> bool:
        await anyio.lowlevel.checkpoint()
        return call.name != "get_time"

    simulator.reply(CALL)
    async with simulator.client() as sdk:
        chat = Conversation(sdk, model=MODEL, tools=[get_weather], max_iterations=2, tool_timeout_s=7, approve=approve)
        await chat.send("Weather?")
        text = chat.to_json()
        with pytest.raises(InvalidHistory, match="give them again") as raised:
            Conversation.from_json(text, sdk)
        assert raised.value.place == "tools"
        for others in ([get_time], [get_weather, get_time], []):
            with pytest.raises(ConversationChanged, match=r"tools: get_(weather was removed|time was added)"):
                Conversation.from_json(text, sdk, tools=others)
        with pytest.raises(TypeError, match="approve: neither an option"):
            Conversation.from_json(Conversation(sdk, model=MODEL).to_json(), sdk, approve=approve)
        again = Conversation.from_json(text, sdk, tools=[get_weather], approve=approve)
        assert again.to_json() == text
        functions = again._session.functions
        assert functions is not None
        assert (functions.options.max_iterations, functions.options.tool_timeout_s) == (2, 7)
        simulator.reply(CALL)
        for one in (again, again.fork()):
            assert (await one.send("Again?")).stop_reason == "end_turn"
        entries = json.loads(text)["tools"]
        simulator.reply(CALL)
        calls = await Conversation.from_json(text, sdk, tools=entries).send("By hand")
        assert calls.tool_calls


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"tools": "x"}, TypeError, "must be a list of tools, not str"),
        ({"tools": {"name": "x"}}, TypeError, "must be a list of tools, not dict"),
        ({"tools": get_weather}, TypeError, "must be a list of tools, not function"),
        ({"tools": [{}]}, TypeError, r"tools\.0 has no name"),
        ({"tools": [{"name": "a"}, {"name": "a"}]}, ValueError, "two tools are named 'a'"),
        ({"tools": [get_weather, get_weather]}, ValueError, "two tools are named 'get_weather'"),
        ({"tools": [get_weather, {"name": "a", "input_schema": {}}]}, TypeError, "nothing would run it"),
        ({"tools": [tool(get_weather, needs_approval=True)]}, TypeError, "needs approval"),
        ({"tools": [get_weather], "max_iterations": 0}, ValueError, "max_iterations"),
        ({"tools": [get_weather], "max_total_tokens": 5}, TypeError, "max_total_tokens: neither an option"),
        ({"tools": [get_weather], "tool_choice": {"type": "any"}}, TypeError, "forced tool_choice"),
        ({"tools": [{"name": "a"}], "max_tool_calls": 5}, TypeError, "max_tool_calls: neither an option"),
        ({"approve": print}, TypeError, "approve: neither an option"),
    ],
)
async def test_tools_that_cannot_be_used_are_refused(
    simulator: Simulator, options: Any, error: type[Exception], said: str
) -> None:
    """When the conversation is made, saying what to do."""
    async with simulator.client() as sdk:
        with pytest.raises(error, match=said):
            Conversation(sdk, **{"model": MODEL, **options})


@pytest.mark.slow
@pytest.mark.parametrize("how", get_args(How))
async def test_cancelled_anywhere_the_history_is_whole(how: How) -> None:
    """It has the whole loop, or nothing of it; the next question goes on at once."""

    async def scenario(cancelled: Cancelled) -> None:
        simulator = Simulator(output_tokens=30)
        async with simulator.client() as sdk:
            chat = Conversation(sdk, model=MODEL, tools=[get_weather, get_time])
            simulator.reply([CALL, {**CALL, "name": "get_time"}])

            async def main() -> None:
                await chat.send("Weather?")

            await cancelled(main())
            assert len(chat.messages) in {0, 4}
            assert not chat._session.turn_lock.busy
            assert simulator.in_flight == 0
            simulator._api.script._waiting.clear()
            await chat.send("Hello")

    assert await cancel_at_every_await(scenario, how=how) > 3
