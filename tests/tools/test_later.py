"""Approvals that outlive the process: what waits for one is kept as plain data, and gone on from anywhere.

The rule here: nothing but JSON goes from one "process" to the next: other clients, other tools, other hooks.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

import anyio
import pytest

from penstock import Allow, Conversation, Deny, InvalidHistory, Later, ToolCall, tool
from penstock.tools import Finished, ToolLoop, run_tools

if TYPE_CHECKING:
    from penstock.simulator import Simulator
    from penstock.testing.plugin import VirtualTime

MODEL: Final = "claude-sonnet-5-5"
PARAMS: Final[Any] = {"model": MODEL, "max_tokens": 1000}
CALLS: Final[list[dict[str, Any]]] = [
    {"type": "text", "text": "I pay."},
    {"type": "tool_use", "id": "toolu_1", "name": "pay", "input": {"usd": 5}},
    {"type": "tool_use", "id": "toolu_2", "name": "look", "input": {}},
    {"type": "tool_use", "id": "toolu_3", "name": "pay", "input": {"usd": 500}},
]


class Process:
    """A process with tools of its own, and a hook that knows some decisions, or asks for ever."""

    def __init__(self, **decisions: Any) -> None:
        self.decisions = decisions
        self.ran: list[object] = []
        self.asked: list[str] = []

        async def pay(usd: int) -> str:
            """Pay."""
            self.ran.append(usd)
            return f"paid {usd}"

        async def look() -> str:
            """Look."""
            self.ran.append("look")
            return "seen"

        self.tools = [tool(pay, needs_approval=True), tool(look, needs_approval=False)]

    async def approve(self, call: ToolCall) -> Any:
        """Decide, or wait for ever."""
        self.asked.append(call.id)
        if call.id not in self.decisions:
            await anyio.sleep_forever()
        return self.decisions[call.id]

    @property
    def given(self) -> Any:
        """What a loop is given."""
        return {"tools": self.tools, "approve": self.approve}


def through_json(transcript: Any) -> Any:
    """What comes out of a database."""
    return json.loads(json.dumps(transcript))


def results(messages: Any) -> dict[str, str]:
    """Results by their calls."""
    blocks = [block for message in messages if isinstance(message["content"], list) for block in message["content"]]
    return {block["tool_use_id"]: str(block["content"]) for block in blocks if block["type"] == "tool_result"}


async def test_a_run_that_waits_for_approval_is_gone_on_from_elsewhere(simulator: Simulator) -> None:
    """The other calls have run, and don't run again; what was put off is asked about, and the run ends as any."""
    first, second = Process(toolu_1=Later(), toolu_3=Later()), Process(toolu_1=True, toolu_3=Deny("too much"))
    simulator.reply(CALLS)
    async with simulator.client() as sdk:
        run = await run_tools(sdk, "Pay.", **first.given, **PARAMS)
        assert [(call.id, call.name, call.input) for call in run.pending] == [
            ("toolu_1", "pay", {"usd": 5}),
            ("toolu_3", "pay", {"usd": 500}),
        ]
        assert (run.message.stop_reason, first.ran, run.tool_calls) == ("tool_use", ["look"], 1)
        assert results(run.transcript).keys() == {"toolu_2"}
        simulator.reply("Done.")
        again = await run_tools(sdk, through_json(run.transcript), **second.given, **PARAMS)
    assert (again.pending, again.text, second.ran, second.asked) == ((), "Done.", [5], ["toolu_1", "toolu_3"])
    assert results(again.transcript) == {"toolu_1": "paid 5", "toolu_2": "seen", "toolu_3": "Denied: too much"}
    assert len(simulator.journal) == 2


async def test_what_is_put_off_again_still_waits(simulator: Simulator) -> None:
    """Decided in part, or not at all: nothing is asked of the model before all calls are answered."""
    simulator.reply(CALLS)
    async with simulator.client() as sdk:
        run = await run_tools(sdk, "Pay.", **Process(toolu_1=Later(), toolu_3=Later()).given, **PARAMS)
        half = Process(toolu_1=Allow({"usd": 4}), toolu_3=Later())
        run = await run_tools(sdk, through_json(run.transcript), **half.given, **PARAMS)
        assert ([call.id for call in run.pending], half.ran) == (["toolu_3"], [4])
        assert (run.iterations, run.message.stop_reason, run.text) == (0, "tool_use", "I pay.")
        assert len(simulator.journal) == 1
        simulator.reply("Done.")
        run = await run_tools(sdk, through_json(run.transcript), **Process(toolu_3=True).given, **PARAMS)
    assert results(run.transcript) == {"toolu_1": "paid 4", "toolu_2": "seen", "toolu_3": "paid 500"}


async def test_a_loop_that_waits_can_be_kept_while_it_waits(simulator: Simulator, virtual_time: VirtualTime) -> None:
    """Without anybody putting anything off: `resumable` is gone on from once the process is gone."""
    first, second = Process(toolu_1=True), Process(toolu_3=True)
    simulator.reply(CALLS)
    async with simulator.client() as sdk:
        async with ToolLoop(sdk, "Pay.", **first.given, **PARAMS) as loop:
            await anyio.sleep(5)
            kept = through_json(loop.resumable)
            assert results(loop.transcript).keys() == {"toolu_1", "toolu_2", "toolu_3"}
        simulator.reply("Done.")
        async with ToolLoop(sdk, kept, **second.given, **PARAMS) as loop:
            events = [event async for event in loop]
    assert isinstance(events[-1], Finished)
    assert (events[-1].run.text, sorted(map(str, first.ran)), second.ran) == ("Done.", ["5", "look"], [500])
    assert results(loop.transcript) == {"toolu_1": "paid 5", "toolu_2": "seen", "toolu_3": "paid 500"}


async def test_what_is_being_run_while_another_waits_is_not_run_again(
    simulator: Simulator, virtual_time: VirtualTime
) -> None:
    """Whether it has done its work isn't known, and the model is told so."""

    async def look() -> str:
        """Look for long."""
        await anyio.sleep(1000)
        return "seen"

    first, second = Process(), Process(toolu_1=True, toolu_3=True)
    first.tools[1] = tool(look, needs_approval=False, timeout_s=2000)
    simulator.reply(CALLS)
    async with simulator.client() as sdk:
        async with ToolLoop(sdk, "Pay.", **first.given, **PARAMS) as loop:
            await anyio.sleep(5)
            kept = through_json(loop.resumable)
        simulator.reply("Done.")
        run = await run_tools(sdk, kept, **second.given, **PARAMS)
    assert second.ran == [5, 500]
    assert "not known" in results(run.transcript)["toolu_2"]


# Conversations


async def test_a_conversation_that_waits_is_saved_and_gone_on_from(simulator: Simulator) -> None:
    """`send` returns with the calls that wait; loaded elsewhere, `send()` asks about them, and goes on."""
    first, second = Process(toolu_1=Later(), toolu_3=Later()), Process(toolu_1=True, toolu_3=Deny("too much"))
    simulator.reply(CALLS)
    async with simulator.client() as sdk:
        chat = Conversation(sdk, model=MODEL, **first.given)
        reply = await chat.send("Pay.", pin=True)
        assert ([call.id for call in reply.tool_calls], reply.stop_reason) == (["toolu_1", "toolu_3"], "tool_use")
        assert (chat.pending_tool_calls, first.ran) == (("toolu_1", "toolu_3"), ["look"])
        text = chat.to_json()
        with pytest.raises(InvalidHistory):
            await chat.send("Something else")
        simulator.reply("Done.")
        again = Conversation.from_json(text, sdk, **second.given)
        reply = await again.send()
        assert (reply.text, reply.tool_calls, again.pending_tool_calls) == ("Done.", [], ())
        assert results(again.messages) == {"toolu_1": "paid 5", "toolu_2": "seen", "toolu_3": "Denied: too much"}
        assert [message["role"] for message in again.messages] == ["user", "assistant", "user", "assistant"]
        assert all(turn.pinned for turn in again._session.turns[:3])
        assert second.ran == [5]
        assert again.usage.total_tokens > chat.usage.total_tokens
        simulator.reply("Fine.")
        assert (await again.send("And now?")).text == "Fine."
        assert Conversation.from_json(again.to_json(), sdk, **second.given).messages == again.messages


async def test_a_conversation_may_put_a_call_off_again(simulator: Simulator) -> None:
    """Nothing is asked, nothing is lost, and answering by hand does as well."""
    simulator.reply(CALLS)
    process = Process(toolu_1=Later(), toolu_3=Later())
    async with simulator.client() as sdk:
        chat = Conversation(sdk, model=MODEL, **process.given)
        await chat.send("Pay.")
        before = chat.messages
        reply = await chat.send()
        assert ([call.id for call in reply.tool_calls], reply.text) == (["toolu_1", "toolu_3"], "I pay.")
        assert (chat.messages, reply.usage.total_tokens, len(simulator.journal)) == (before, 0, 1)
        again = Conversation.from_json(chat.to_json(), sdk, **Process(toolu_1=True, toolu_3=Later()).given)
        reply = await again.send()
        assert [call.id for call in reply.tool_calls] == ["toolu_3"]
        simulator.reply("Done.")
        by_hand = [{"type": "tool_result", "tool_use_id": "toolu_3", "content": "paid by cheque"}]
        assert (await again.send(by_hand)).text == "Done."
        assert results(again.messages) == {"toolu_1": "paid 5", "toolu_2": "seen", "toolu_3": "paid by cheque"}


async def test_a_conversation_is_saved_while_somebody_is_asked(simulator: Simulator, virtual_time: VirtualTime) -> None:
    """`to_json` has the question and the calls then; the process may die, and another goes on."""
    first, second = Process(toolu_1=True), Process(toolu_3=True)
    simulator.reply(CALLS)
    async with simulator.client() as sdk:
        chat = Conversation(sdk, model=MODEL, **first.given)
        before = chat.to_json()
        with anyio.move_on_after(10):
            async with anyio.create_task_group() as group:
                group.start_soon(chat.send, "Pay.")
                await anyio.sleep(5)
                text = chat.to_json()
                group.cancel_scope.cancel()
        assert json.loads(chat.to_json())["turns"] == json.loads(before)["turns"] == []
        again = Conversation.from_json(text, sdk, **second.given)
        assert again.pending_tool_calls == ("toolu_3",)
        simulator.reply("Done.")
        assert (await again.send()).text == "Done."
        assert (sorted(map(str, first.ran)), second.ran, second.asked) == (["5", "look"], [500], ["toolu_3"])
        assert results(again.messages) == {"toolu_1": "paid 5", "toolu_2": "seen", "toolu_3": "paid 500"}


async def test_without_anybody_asked_what_is_saved_is_the_history(
    simulator: Simulator, virtual_time: VirtualTime
) -> None:
    """Tools that run under way are no history yet."""

    async def look() -> str:
        """Look for a while."""
        await anyio.sleep(20)
        return "seen"

    simulator.reply([CALLS[2]])
    async with simulator.client() as sdk:
        chat = Conversation(sdk, model=MODEL, tools=[look])
        async with anyio.create_task_group() as group:
            group.start_soon(chat.send, "Look.")
            await anyio.sleep(5)
            assert json.loads(chat.to_json())["turns"] == []
        assert len(json.loads(chat.to_json())["turns"]) == 4


async def test_calls_that_an_older_conversation_left_open_are_run(simulator: Simulator) -> None:
    """As `run_tools` does with a transcript that ends with some."""
    process = Process(toolu_1=True, toolu_3=True)
    history: Any = [{"role": "user", "content": "Pay."}, {"role": "assistant", "content": CALLS}]
    simulator.reply("Done.")
    async with simulator.client() as sdk:
        chat = Conversation(sdk, model=MODEL, messages=history, **process.given)
        assert (await chat.send()).text == "Done."
    assert sorted(map(str, process.ran)) == ["5", "500", "look"]


async def test_without_functions_nothing_is_run(simulator: Simulator) -> None:
    """Calls of tools that are the caller's own are answered by him."""
    history: Any = [{"role": "user", "content": "Pay."}, {"role": "assistant", "content": CALLS}]
    async with simulator.client() as sdk:
        chat = Conversation(sdk, model=MODEL, messages=history)
        with pytest.raises(InvalidHistory, match="content: is empty"):
            await chat.send()
