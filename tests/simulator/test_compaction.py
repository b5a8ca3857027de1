from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anthropic
import pytest

from penstock.simulator import Simulator
from penstock.simulator.compaction import visible

if TYPE_CHECKING:
    from anthropic.types.beta import BetaMessage

    from penstock.testing.plugin import VirtualTime

MODEL = "claude-opus-5"
BETAS = ["compact-2026-01-12"]
LONG: Any = {"role": "user", "content": "Tell me all. " + "word " * 50_000}


def edit(**fields: Any) -> Any:
    """`context_management` that compacts from 50,000 tokens on."""
    trigger = {"type": "input_tokens", "value": 50_000}
    return {"edits": [{"type": "compact_20260112", "trigger": trigger, **fields}]}


async def ask(simulator: Simulator, *messages: Any, stream: bool = False, **fields: Any) -> BetaMessage:
    """The reply to a beta request."""
    given: Any = {"model": MODEL, "max_tokens": 100, "messages": list(messages), "betas": BETAS, **fields}
    given.setdefault("context_management", edit())
    async with simulator.client(max_retries=0) as claude:
        if not stream:
            plain: BetaMessage = await claude.beta.messages.create(**given)
            return plain
        async with claude.beta.messages.stream(**given) as found:
            return await found.get_final_message()


@pytest.mark.parametrize("stream", [False, True])
async def test_a_long_conversation_is_summarized_before_it_is_answered(virtual_time: VirtualTime, stream: bool) -> None:
    """The first block is the summary; what it took is told in `iterations` only, and counts against limits."""
    simulator = Simulator()
    message = await ask(simulator, LONG, stream=stream)
    summary, text = message.content
    assert summary.type == "compaction"
    assert summary.content is not None
    assert summary.content.startswith("Summary of the conversation: Tell me all. word")
    assert text.type == "text"
    assert (text.text[:21], message.stop_reason) == ("Summary: Tell me all.", "end_turn")
    assert message.usage.iterations is not None
    compaction, answer = message.usage.iterations
    assert (compaction.type, compaction.input_tokens) == ("compaction", 62_507)
    assert (answer.type, answer.input_tokens) == ("message", message.usage.input_tokens)
    assert 200 < message.usage.input_tokens < 400
    assert answer.output_tokens == message.usage.output_tokens < compaction.output_tokens
    entry = simulator.journal[0]
    assert entry.input_tokens == compaction.input_tokens + answer.input_tokens
    assert entry.output_tokens == compaction.output_tokens + answer.output_tokens
    quota = simulator.organization("sk-sim-1").quotas["opus-5"]
    assert quota.input_tokens.taken == entry.input_tokens


async def test_what_was_summarized_counts_no_more(virtual_time: VirtualTime) -> None:
    """Sent or not: the next request is short either way, and is counted so."""
    simulator = Simulator()
    message = await ask(simulator, LONG)
    turn: Any = {"role": "assistant", "content": [block.to_dict() for block in message.content]}
    whole = await ask(simulator, LONG, turn, {"role": "user", "content": "And?"})
    cut = await ask(simulator, turn, {"role": "user", "content": "And?"})
    assert whole.usage.input_tokens == cut.usage.input_tokens < 500
    assert whole.usage.iterations is not None
    assert [each.type for each in whole.usage.iterations] == ["message"]
    async with simulator.client() as claude:
        count = await claude.beta.messages.count_tokens(
            model=MODEL, messages=[LONG, turn, {"role": "user", "content": "And?"}], betas=BETAS
        )
    assert count.input_tokens == cut.usage.input_tokens


async def test_a_short_conversation_is_left_alone(virtual_time: VirtualTime) -> None:
    """Up to the trigger, which is 150,000 tokens unless it is said."""
    simulator = Simulator()
    for fields in (
        {"context_management": edit(trigger={"type": "input_tokens", "value": 62_507})},
        {"context_management": edit(trigger=None)},
    ):
        message = await ask(simulator, LONG, **fields)
        assert [block.type for block in message.content] == ["text"]
    bare = await ask(simulator, LONG, context_management={"edits": []})
    assert bare.usage.iterations is None


@pytest.mark.parametrize("stream", [False, True])
async def test_it_can_pause_after_the_summary(virtual_time: VirtualTime, stream: bool) -> None:
    """The reply is the summary alone, and costs nothing at top level; sent back, it is answered."""
    simulator = Simulator()
    simulator.reply("At last.")
    paused = await ask(simulator, LONG, stream=stream, context_management=edit(pause_after_compaction=True))
    assert [block.type for block in paused.content] == ["compaction"]
    assert (paused.stop_reason, paused.usage.input_tokens, paused.usage.output_tokens) == ("compaction", 0, 0)
    assert simulator.journal[0].input_tokens == 62_507
    turn: Any = {"role": "assistant", "content": [block.to_dict() for block in paused.content]}
    message = await ask(simulator, LONG, turn)
    assert [block.to_dict() for block in message.content] == [{"citations": None, "text": "At last.", "type": "text"}]


async def test_a_summary_is_taken_for_a_reply_only_at_the_end(virtual_time: VirtualTime) -> None:
    """An answer after it, sent back alone, is a prefill."""
    turn: Any = {
        "role": "assistant",
        "content": [{"type": "compaction", "content": "So"}, {"type": "text", "text": "a"}],
    }
    with pytest.raises(anthropic.BadRequestError, match="prefill"):
        await ask(Simulator(), LONG, turn)


async def test_the_summary_comes_in_one_delta(virtual_time: VirtualTime) -> None:
    """As the API streams it."""
    deltas = []
    async with (
        Simulator().client() as claude,
        claude.beta.messages.stream(
            model=MODEL, max_tokens=9, messages=[LONG], betas=BETAS, context_management=edit()
        ) as stream,
    ):
        async for event in stream:
            if event.type == "content_block_start" and event.index == 0:
                assert event.content_block.to_dict() == {"type": "compaction", "content": None}
            if event.type == "content_block_delta" and event.index == 0:
                deltas.append(event.delta.type)
    assert deltas == ["compaction_delta"]


async def test_compaction_reads_and_writes_the_cache(virtual_time: VirtualTime) -> None:
    """It reads what the last request wrote; then only what comes before the messages is kept."""
    simulator = Simulator()
    system: Any = [{"type": "text", "text": "Be terse. " * 500, "cache_control": {"type": "ephemeral"}}]
    fields: Any = {"system": system, "cache_control": {"type": "ephemeral"}}
    first = await ask(simulator, LONG, **fields, context_management={"edits": []})
    written = first.usage.cache_creation_input_tokens
    assert written is not None
    message = await ask(simulator, LONG, **fields)
    assert message.usage.iterations is not None
    compaction, answer = message.usage.iterations
    assert (compaction.type, compaction.cache_read_input_tokens, compaction.input_tokens) == ("compaction", written, 0)
    assert (answer.type, answer.cache_read_input_tokens) == ("message", 1250)
    turn: Any = {"role": "assistant", "content": [block.to_dict() for block in message.content]}
    later = await ask(simulator, turn, {"role": "user", "content": "And?"}, **fields)
    assert later.usage.cache_read_input_tokens == 1250 + answer.cache_creation_input_tokens


async def test_thinking_after_a_summary_stays_valid(virtual_time: VirtualTime) -> None:
    """With the history before it and without."""
    simulator = Simulator()
    fields: Any = {"model": "claude-sonnet-5-5", "thinking": {"type": "adaptive"}, "max_tokens": 400}
    message = await ask(simulator, LONG, **fields)
    assert [block.type for block in message.content] == ["compaction", "thinking", "text"]
    turn: Any = {"role": "assistant", "content": [block.to_dict() for block in message.content]}
    for history in ([LONG], []):
        await ask(simulator, *history, turn, {"role": "user", "content": "And?"}, **fields)
    gone: Any = {"role": "assistant", "content": turn["content"][1:]}
    with pytest.raises(anthropic.BadRequestError, match=r"messages\.1\.content\.0: .* different conversation"):
        await ask(simulator, LONG, gone, {"role": "user", "content": "And?"}, **fields)


def test_a_request_without_a_summary_is_seen_as_it_is() -> None:
    """So is one whose compaction failed."""
    failed = {"role": "assistant", "content": [{"type": "compaction", "content": None}]}
    for messages in ([LONG], [LONG, failed, LONG]):
        body = {"messages": messages}
        assert visible(body) is body
