from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anthropic
import pytest

from penstock.simulator import Simulator
from penstock.simulator.script import Script, completed

if TYPE_CHECKING:
    from penstock.testing.plugin import VirtualTime

MODEL = "claude-opus-5"
ASK: Any = {"model": MODEL, "max_tokens": 100, "messages": [{"role": "user", "content": "Hello there"}]}
SEARCH: Any = {"type": "server_tool_use", "name": "web_search", "input": {"query": "news"}}


async def both(simulator: Simulator, times: int = 1, **fields: Any) -> list[anthropic.types.Message]:
    """The replies to a plain request and to a stream."""
    async with simulator.client() as claude:
        found = [await claude.messages.create(**{**ASK, **fields}) for _ in range(times)]
        for _ in range(times):
            async with claude.messages.stream(**{**ASK, **fields}) as stream:
                found.append(await stream.get_final_message())
    return found


def test_a_script_is_checked_and_kept_in_order() -> None:
    """Texts, blocks and lists of blocks are replies; anything else is refused at once."""
    script = Script()
    script.add("one", times=2)
    script.add({"type": "text", "text": "two"}, stop_reason="refusal", usage={"output_tokens": 9})
    assert repr(script) == "Script(3 waiting)"
    found = [script.next() for _ in range(3)]
    assert [each.content[0]["text"] for each in found if each] == ["one", "one", "two"]
    assert found[2] is not None
    assert (found[2].stop_reason, found[2].usage) == ("refusal", {"output_tokens": 9})
    assert script.next() is None
    with pytest.raises(ValueError, match="'type'"):
        script.add([{"text": "no type"}])
    with pytest.raises(ValueError, match="times"):
        script.add("x", times=0)


def test_what_the_api_would_add_is_added() -> None:
    """Calls get ids of their kind, texts their citations; what is there already stays."""
    script = Script()
    call = {"type": "tool_use", "name": "look"}
    script.add([call, SEARCH, {**call, "id": "toolu_mine"}, {"type": "text", "text": "Hi"}])
    scripted = script.next()
    assert scripted is not None
    first, search, mine, text = completed(scripted, "s")
    assert (first["id"][:8], first["input"], search["id"][:11]) == ("toolu_01", {}, "srvtoolu_01")
    assert (mine["id"], text["citations"]) == ("toolu_mine", None)


async def test_a_paused_turn_is_continued(virtual_time: VirtualTime) -> None:
    """`pause_turn` comes with its call of a server tool; sent back as it is, it is answered."""
    simulator = Simulator()
    simulator.reply([SEARCH], stop_reason="pause_turn", times=2)
    for paused in await both(simulator):
        (call,) = paused.content
        assert isinstance(call, anthropic.types.ServerToolUseBlock)
        assert (paused.stop_reason, call.input) == ("pause_turn", {"query": "news"})
        messages = [*ASK["messages"], {"role": "assistant", "content": [call.to_dict()]}]
        async with simulator.client() as claude:
            message = await claude.messages.create(**{**ASK, "messages": messages})
        assert message.stop_reason == "end_turn"


async def test_a_refusal_tells_its_details(virtual_time: VirtualTime) -> None:
    """`stop_details` is in the message, and in the last delta of a stream; elsewhere it is null."""
    simulator = Simulator()
    details = {"type": "refusal", "category": "cyber", "explanation": "No."}
    simulator.reply([], stop_reason="refusal", stop_details=details, times=2)
    refusals = await both(simulator)
    for refusal in refusals:
        assert refusal.stop_reason == "refusal"
        assert refusal.stop_details is not None
        assert (refusal.stop_details.category, refusal.stop_details.explanation) == ("cyber", "No.")
    assert [message.stop_details for message in await both(simulator)] == [None, None]


async def test_a_fallback_credit_is_told_in_a_stream_too(virtual_time: VirtualTime) -> None:
    """What a script says of `usage.fallback_credit` is in the message, and in the last delta of a stream."""
    simulator = Simulator()
    credit = {"status": {"type": "not_applied", "reason": "expired"}}
    simulator.reply("Hi", times=2, usage={"fallback_credit": credit})
    async with simulator.client() as claude:
        message = await claude.beta.messages.create(**ASK)
        assert message.usage.to_dict()["fallback_credit"] == credit
        async with await claude.beta.messages.create(**ASK, stream=True) as events:
            (usage,) = [event.usage async for event in events if event.type == "message_delta"]
    assert usage.to_dict()["fallback_credit"] == credit


async def test_a_call_that_was_cut_off_ends_within_its_json(virtual_time: VirtualTime) -> None:
    """With `max_tokens` as reason, the input of a last call is no whole JSON in a stream; calls before it are."""
    simulator = Simulator()
    calls = [{"type": "tool_use", "name": name, "input": {"text": "once upon a time"}} for name in ("a", "b")]
    simulator.reply(calls, stop_reason="max_tokens", times=2)
    plain, _ = await both(simulator)
    assert plain.stop_reason == "max_tokens"
    simulator.reply(calls, stop_reason="max_tokens")
    inputs = ["", ""]
    async with simulator.client() as claude, claude.messages.stream(**ASK) as stream:
        async for event in stream:
            if event.type == "content_block_delta" and event.delta.type == "input_json_delta":
                inputs[event.index] += event.delta.partial_json
    assert inputs == ['{"text": "once upon a time"}', '{"text": "once upon a time"']


async def test_a_full_window_can_be_scripted(virtual_time: VirtualTime) -> None:
    """Any stop reason can be."""
    simulator = Simulator()
    simulator.reply("So far", stop_reason="model_context_window_exceeded", times=2)
    assert {message.stop_reason for message in await both(simulator)} == {"model_context_window_exceeded"}


async def test_scripted_thinking_is_counted_and_signed(virtual_time: VirtualTime) -> None:
    """A thinking block gets a signature of its own, and its tokens are told apart."""
    simulator = Simulator()
    simulator.reply([{"type": "thinking", "thinking": "Let me think."}, {"type": "text", "text": "Hi"}], times=2)
    for message in await both(simulator):
        thought = message.content[0]
        assert isinstance(thought, anthropic.types.ThinkingBlock)
        assert (thought.thinking, bool(thought.signature)) == ("Let me think.", True)
        assert message.usage.output_tokens_details is not None
        assert 0 < message.usage.output_tokens_details.thinking_tokens < message.usage.output_tokens
