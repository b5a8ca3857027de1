"""A stopped answer that is kept: what was read of it is a turn that the API takes.

The rule here: answers are exact bytes that come to no end, and what is sent next is looked at.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

import anthropic
import anyio
import httpx2
import pytest

from penstock import Conversation, StreamInterrupted, ToolLoopLimit, deadline
from penstock.testing import ScriptedTransport

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from penstock.testing.plugin import VirtualTime

MODEL: Final = "claude-sonnet-5-5"
QUESTION: Final = {"role": "user", "content": [{"type": "text", "text": "Why?"}]}
CALL: Final = {"type": "tool_use", "id": "toolu_1", "name": "get_weather", "input": {}}
SEARCH: Final = {"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search", "input": {}}
MCP: Final = {"type": "mcp_tool_use", "id": "mcp_1", "name": "n", "server_name": "s", "input": {}}
FOUND: Final = {"type": "web_search_tool_result", "tool_use_id": "srvtoolu_1", "content": []}
TEXT: Final = {"type": "text", "text": ""}
THOUGHT: Final = {"type": "thinking", "thinking": "", "signature": ""}


def sse(*blocks: tuple[dict[str, Any], list[dict[str, Any]]], stopped: bool = True) -> bytes:
    """An answer as far as it came: blocks and their deltas, the last one without its end if it was stopped there."""
    message = {"id": "msg_1", "type": "message", "role": "assistant", "model": MODEL, "content": []}
    usage = {"input_tokens": 25, "output_tokens": 1}
    events: list[dict[str, Any]] = [
        {"type": "message_start", "message": {**message, "stop_reason": None, "usage": usage}}
    ]
    for index, (block, deltas) in enumerate(blocks):
        events.append({"type": "content_block_start", "index": index, "content_block": block})
        events += [{"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas]
        events.append({"type": "content_block_stop", "index": index})
    if stopped:
        events.pop()
    else:
        events.append({"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 9}})
        events.append({"type": "message_stop"})
    return "".join(f"event: {each['type']}\ndata: {json.dumps(each)}\n\n" for each in events).encode()


def says(*parts: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A block of text."""
    return TEXT, [{"type": "text_delta", "text": part} for part in parts]


class _Bytes(httpx2.AsyncByteStream):
    """What came, and then nothing for ever, or an end of the connection."""

    def __init__(self, sent: bytes, *, ends: bool) -> None:
        self._sent = sent
        self._ends = ends

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield self._sent
        if not self._ends:
            await anyio.sleep_forever()


def answered(*answers: bytes, ends: bool = False) -> ScriptedTransport:
    """A transport that gives these answers."""
    headers = {"content-type": "text/event-stream"}

    def answer(sent: bytes) -> Any:
        return lambda _: httpx2.Response(200, headers=headers, stream=_Bytes(sent, ends=ends))

    return ScriptedTransport(*map(answer, answers))


async def left(transport: ScriptedTransport, **options: Any) -> Any:
    """Ask, read what comes, and leave; returns the conversation, and the stream that was left."""
    chat = Conversation(transport.client(), model=MODEL, **options)
    asked = chat.stream("Why?", keep_partial=True)
    async with asked as stream:
        with anyio.move_on_after(1):
            await stream.until_done()
    return chat, asked


SIGNED: Final = {"type": "signature_delta", "signature": "c2ln"}
THINKS: Final = {"type": "thinking_delta", "thinking": "Hm."}
HALF: Final = {"type": "input_json_delta", "partial_json": '{"city": "Ro'}
WHOLE_CALL: Final = {"type": "input_json_delta", "partial_json": '{"city": "Rome"}'}
KEPT: Final[dict[str, tuple[list[tuple[dict[str, Any], list[dict[str, Any]]]], list[str] | None]]] = {
    "a text": ([says("Because", " it is")], ["text"]),
    "a text that ends with space": ([says("Because \n\n")], ["text"]),
    "space alone": ([says("\n\n ")], None),
    "nothing": ([], None),
    "signed thinking, then text": ([(THOUGHT, [THINKS, SIGNED]), says("Because")], ["thinking", "text"]),
    "thinking that was not signed": ([(THOUGHT, [THINKS]), says("Because")], ["text"]),
    "thinking alone": ([(THOUGHT, [THINKS, SIGNED])], None),
    "half a call": ([says("Because"), (CALL, [HALF])], ["text"]),
    "a whole call": ([says("Because"), (CALL, [WHOLE_CALL]), says("and")], ["text", "text"]),
    "a call alone": ([(CALL, [WHOLE_CALL])], None),
    "half a search": ([says("Because"), (SEARCH, [HALF])], ["text"]),
    "half a call of a server": ([says("Because"), (MCP, [HALF])], ["text"]),
    "a search with its result": (
        [(SEARCH, [WHOLE_CALL]), (FOUND, []), says("Because")],
        ["server_tool_use", "web_search_tool_result", "text"],
    ),
    "a text, and the space of another": ([says("Because"), says(" ")], ["text"]),
    "half a compaction": ([says("Because"), ({"type": "compaction", "content": "It"}, [])], ["text"]),
    "redacted thinking": (
        [({"type": "redacted_thinking", "data": "ZGF0YQ=="}, []), says("Because")],
        ["redacted_thinking", "text"],
    ),
}


@pytest.mark.lengthy
@pytest.mark.parametrize("what", KEPT)
async def test_what_was_read_of_a_stopped_answer_is_kept(virtual_time: VirtualTime, what: str) -> None:
    """As a turn that can be sent back, whatever had come by then; where that says nothing, the history stays."""
    blocks, kinds = KEPT[what]
    transport = answered(sse(*blocks), sse(says("Fine."), stopped=False))
    tool = {"name": "get_weather", "input_schema": {"type": "object"}}
    chat, asked = await left(transport, tools=[tool], cache_ttl=None)
    if kinds is None:
        assert (chat.messages, asked.reply) == ([], None)
        return
    question, answer = chat.messages
    assert question == QUESTION
    assert [block["type"] for block in answer["content"]] == kinds
    assert answer["content"][-1]["text"].rstrip() == answer["content"][-1]["text"] != ""
    assert (asked.reply.stop_reason, asked.reply.tool_calls, chat.pending_tool_calls) == (None, [], ())
    assert asked.reply.usage == chat.usage
    await chat.send("Go on.")
    assert json.loads(transport.requests[-1].content)["messages"][:2] == [question, answer]
    again = Conversation.from_json(chat.to_json(), transport.client())
    assert again.messages == chat.messages


async def test_only_what_was_read_is_kept(virtual_time: VirtualTime) -> None:
    """The user has seen no more, though more had come; what was read to its end is a whole answer all the same."""
    transport = answered(sse(says("Because", " it is", " so"), stopped=False), ends=True)
    chat = Conversation(transport.client(), model=MODEL)
    async with chat.stream("Why?", keep_partial=True) as stream:
        assert await anext(stream.text_stream) == "Because"
    assert chat.messages[1]["content"] == [{"type": "text", "text": "Because"}]
    whole = chat.stream("Why?", keep_partial=True)
    async with whole as stream:
        await stream.until_done()
    assert whole.reply is not None
    assert whole.reply.stop_reason == "end_turn"


async def test_without_being_asked_to_nothing_is_kept(virtual_time: VirtualTime) -> None:
    """Neither by a stream nor by a send."""
    chat = Conversation(answered(sse(says("Because"))).client(), model=MODEL)
    async with chat.stream("Why?") as stream:
        await anext(stream.text_stream)
    with pytest.raises(anthropic.APITimeoutError), deadline(1):
        await chat.send("Why?")
    assert chat.messages == []


async def read_and_raise(chat: Conversation) -> None:
    """Fail in the middle of an answer."""
    async with chat.stream("Why?", keep_partial=True) as stream:
        await anext(stream.text_stream)
        raise KeyError


@pytest.mark.parametrize("how", ["cancelled", "deadline", "broken", "raised"])
async def test_a_send_that_is_stopped_keeps_what_came_too(virtual_time: VirtualTime, how: str) -> None:
    """Cancelled, too late or broken off twice: that comes out as ever; question and partial answer are kept."""
    transport = answered(sse(says("No.")), sse(says("Because ")), ends=True) if how == "broken" else None
    chat = Conversation((transport or answered(sse(says("Because ")))).client(), model=MODEL)
    if how == "cancelled":
        with anyio.move_on_after(1) as scope:
            await chat.send("Why?", keep_partial=True)
        assert scope.cancelled_caught
    elif how == "deadline":
        with pytest.raises(anthropic.APITimeoutError), deadline(1):
            await chat.send("Why?", keep_partial=True)
    elif how == "broken":
        with pytest.raises(StreamInterrupted):
            await chat.send("Why?", keep_partial=True)
    else:
        with pytest.raises(KeyError):
            await read_and_raise(chat)
    assert chat.messages == [QUESTION, {"role": "assistant", "content": [{"type": "text", "text": "Because"}]}]
    assert chat.usage.estimated


@pytest.mark.parametrize("found", [True, False])
async def test_an_answer_that_goes_on_after_a_pause_is_kept_whole(virtual_time: VirtualTime, found: bool) -> None:
    """What was paused and what came after it are one turn; a search that the stop left open is not in it."""
    paused = sse((SEARCH, [WHOLE_CALL]), stopped=False).replace(b'"end_turn"', b'"pause_turn"')
    transport = answered(paused, sse(*[(FOUND, [])] * found, says("So")))
    chat = Conversation(transport.client(), model=MODEL)
    async with chat.stream("Why?") as stream:
        await stream.until_done()
    async with chat.stream(keep_partial=True) as stream:
        with anyio.move_on_after(1):
            await stream.until_done()
    kinds = [block["type"] for block in chat.messages[1]["content"]]  # type: ignore[index]
    assert kinds == (["server_tool_use", "web_search_tool_result"] if found else []) + ["text"]
    assert len(chat.messages) == 2


async def test_the_results_of_tools_before_a_stop_are_kept(virtual_time: VirtualTime) -> None:
    """With functions: the question, the calls with their results, and what came of the last answer."""

    async def get_weather(city: str) -> str:
        """Get the weather."""
        return f"sunny in {city}"

    called = sse((CALL, [WHOLE_CALL]), stopped=False).replace(b'"end_turn"', b'"tool_use"')
    chat = Conversation(answered(called, sse(says("It is sun"))).client(), model=MODEL, tools=[get_weather])
    with anyio.move_on_after(1):
        await chat.send("Weather in Rome?", keep_partial=True)
    kinds = [[block["type"] for block in message["content"]] for message in chat.messages]  # type: ignore[index]
    assert kinds == [["text"], ["tool_use"], ["tool_result"], ["text"]]
    assert "sunny in Rome" in str(chat.messages[2])


@pytest.mark.parametrize("when", ["a tool runs", "the model is asked", "a bound is reached"])
async def test_what_tools_have_done_is_kept_where_nothing_was_written(virtual_time: VirtualTime, when: str) -> None:
    """Nobody runs them again; a call that the stop cut off says that it isn't known what it did."""

    async def get_weather(city: str) -> str:
        """Get the weather."""
        await anyio.sleep(5)
        return f"sunny in {city}"

    called = sse((CALL, [WHOLE_CALL]), stopped=False).replace(b'"end_turn"', b'"tool_use"')
    transport = answered(called, sse(), sse(says("Fine."), stopped=False))
    bound = 1 if when == "a bound is reached" else 5
    chat = Conversation(transport.client(), model=MODEL, tools=[get_weather], max_iterations=bound)
    if when == "a bound is reached":
        with pytest.raises(ToolLoopLimit):
            await chat.send("Weather in Rome?", keep_partial=True)
        transport.answers.pop(0)
    else:
        with anyio.move_on_after(2 if when == "a tool runs" else 8):
            await chat.send("Weather in Rome?", keep_partial=True)
        if when == "a tool runs":
            transport.answers.pop(0)
    said = {"a tool runs": "is not known", "the model is asked": "sunny in Rome", "a bound is reached": "Not run"}[when]
    assert [message["role"] for message in chat.messages] == ["user", "assistant", "user"]
    assert said in str(chat.messages[2])
    assert chat.pending_tool_calls == ()
    assert Conversation.from_json(chat.to_json(), transport.client(), tools=[get_weather]).messages == chat.messages
    assert (await chat.send("And now?")).text == "Fine."
