from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import httpx2
import pytest

from penstock.simulator import Simulator

if TYPE_CHECKING:
    import anthropic

    from penstock.testing.plugin import VirtualTime

HELLO: list[Any] = [{"role": "user", "content": "One two three four five six seven"}]


async def events(simulator: Simulator, **fields: object) -> list[dict[str, Any]]:
    """The events of one stream, read from its raw bytes."""
    body = {"model": "claude-opus-4-6", "max_tokens": 2000, "messages": HELLO, "stream": True, **fields}
    headers = {"x-api-key": "k", "anthropic-version": "2026-10-21"}
    async with httpx2.AsyncClient(transport=simulator.transport(), headers=headers) as client:
        response = await client.post("http://sim/v1/messages", json=body)
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert response.text.endswith("\n\n")
    found = []
    for chunk in response.text[:-2].split("\n\n"):
        name, data = chunk.split("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {found[-1]['type']}"
    return found


async def test_events_come_in_the_order_of_the_api(virtual_time: VirtualTime) -> None:
    """Start, block, deltas, stop, one ping, the final delta with cumulative usage, and the end."""
    simulator = Simulator()
    found = await events(simulator)
    kinds = [event["type"] for event in found]
    deltas = kinds.count("content_block_delta")
    assert kinds == [
        "message_start", "content_block_start", "ping", *["content_block_delta"] * deltas, "content_block_stop",
        "message_delta", "message_stop",
    ]  # fmt: skip
    start = found[0]["message"]
    assert (start["content"], start["stop_reason"], start["usage"]["output_tokens"]) == ([], None, 1)
    text = "".join(event["delta"]["text"] for event in found if event["type"] == "content_block_delta")
    assert text == "Summary: One two three four five six seven"
    assert found[-2]["delta"] == {"stop_reason": "end_turn", "stop_sequence": None}
    assert found[-2]["usage"]["output_tokens"] == simulator.journal[0].output_tokens == 11


@pytest.mark.parametrize("display", [None, "summarized", "omitted"])
async def test_thinking_is_shown_only_when_asked(virtual_time: VirtualTime, display: str | None) -> None:
    """A thinking block comes first, with words or without, and with one signature just before its end."""
    thinking = {"type": "enabled", "budget_tokens": 1024} | ({"display": display} if display else {})
    found = await events(Simulator(), thinking=thinking)
    block = [event["delta"] for event in found if event.get("index") == 0 and "delta" in event]
    words = "".join(delta.get("thinking", "") for delta in block)
    assert (words == "") == (display == "omitted")
    assert [delta["type"] for delta in block].count("signature_delta") == 1
    assert block[-1]["type"] == "signature_delta"
    assert found[1]["content_block"] == {"type": "thinking", "thinking": "", "signature": ""}
    assert found[-2]["usage"]["output_tokens_details"]["thinking_tokens"] > 0


async def test_tool_input_comes_in_pieces_of_json(virtual_time: VirtualTime) -> None:
    """The block starts with an empty input; the first piece is empty, all pieces together are the JSON."""
    simulator = Simulator()
    simulator.reply(
        [{"type": "text", "text": "Let me see."}, {"type": "tool_use", "name": "f", "input": {"a": [1, 2, 3] * 9}}]
    )
    found = await events(simulator)
    start = next(event for event in found if event.get("content_block", {}).get("type") == "tool_use")
    assert start["content_block"]["input"] == {}
    pieces = [e["delta"]["partial_json"] for e in found if e["type"] == "content_block_delta" and e["index"] == 1]
    assert pieces[0] == ""
    assert len(pieces) > 2
    assert json.loads("".join(pieces)) == {"a": [1, 2, 3] * 9}


async def test_blocks_of_other_types_come_whole(virtual_time: VirtualTime) -> None:
    """Results of server tools are complete in their start event."""
    simulator = Simulator()
    block = {"type": "web_search_tool_result", "tool_use_id": "srvtoolu_1", "content": []}
    simulator.reply([block, {"type": "redacted_thinking", "data": "xyz"}])
    found = await events(simulator)
    starts = [event["content_block"] for event in found if event["type"] == "content_block_start"]
    assert starts == [block, {"type": "redacted_thinking", "data": "xyz"}]
    assert "content_block_delta" not in [event["type"] for event in found]


async def test_a_reply_without_content_still_has_a_start_and_an_end(virtual_time: VirtualTime) -> None:
    """An empty reply is a stream without blocks."""
    simulator = Simulator()
    simulator.reply([], stop_reason="refusal")
    kinds = [event["type"] for event in await events(simulator)]
    assert kinds == ["message_start", "ping", "message_delta", "message_stop"]


async def test_plain_and_streamed_replies_are_the_same_message(virtual_time: VirtualTime) -> None:
    """The SDK accumulates from a stream what a plain request gets."""
    messages: list[anthropic.types.Message] = []
    for stream in (False, True):
        async with Simulator(thinking=True, output_tokens=50).client() as claude:
            fields: dict[str, Any] = {"model": "claude-opus-5-5", "max_tokens": 300, "messages": HELLO}
            if stream:
                async with claude.messages.stream(**fields) as events_of:
                    messages.append(await events_of.get_final_message())
            else:
                messages.append(await claude.messages.create(**fields))
    plain, streamed = (message.model_dump(exclude={"id"}) for message in messages)
    assert [block["type"] for block in plain["content"]] == ["thinking", "text"]
    assert streamed["usage"]["output_tokens"] == plain["usage"]["output_tokens"]
    assert [block.get("text") for block in streamed["content"]] == [block.get("text") for block in plain["content"]]
    assert streamed["content"][0]["signature"] == plain["content"][0]["signature"]
