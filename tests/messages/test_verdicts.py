"""One verdict on a history, whoever keeps it: a conversation, a tool loop, a saved conversation; and the API's.

Each history is given to all three. What they take is sent, and the simulated API takes it; what they refuse, it
refuses too, but where it says otherwise here.
"""

from __future__ import annotations

import json
import math
from typing import Any, Final

import anthropic
import pytest
from anthropic.types import CitationCharLocation, Message, TextBlock, ThinkingBlock, ToolUseBlock
from anthropic.types.beta import BetaCompactionBlock, BetaMessage, BetaTextBlock

from penstock import Conversation, InvalidHistory
from penstock.messages.history import open_calls
from penstock.simulator import Simulator
from penstock.testing import ScriptedTransport
from penstock.tools.transcript import Transcript

MODEL: Final = "claude-sonnet-5-5"
HELLO: Final[dict[str, Any]] = {"role": "user", "content": "Hello"}
HI: Final[dict[str, Any]] = {"role": "assistant", "content": "Hi"}
TEXT: Final[dict[str, Any]] = {"type": "text", "text": "x"}
CALL: Final[dict[str, Any]] = {"type": "tool_use", "id": "a", "name": "f", "input": {}}
SEARCH: Final[dict[str, Any]] = {"type": "server_tool_use", "id": "s", "name": "web_search", "input": {}}
FOUND: Final[dict[str, Any]] = {
    "type": "web_search_tool_result",
    "tool_use_id": "s",
    "content": [
        {
            "type": "web_search_result",
            "url": "https://a.example",
            "title": "A",
            "encrypted_content": "x",
            "page_age": None,
        }
    ],
}
THOUGHT: Final[dict[str, Any]] = {"type": "thinking", "thinking": "", "signature": "s"}
CITED: Final[dict[str, Any]] = {
    "type": "char_location",
    "cited_text": "x",
    "document_index": 0,
    "document_title": None,
    "file_id": None,
    "start_char_index": 0,
    "end_char_index": 1,
}
FULL: Final[dict[str, Any]] = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": MODEL,
    "stop_reason": "end_turn",
    "stop_sequence": None,
    "usage": {"input_tokens": 1, "output_tokens": 1},
    "content": [TEXT],
}


def said(*blocks: Any) -> dict[str, Any]:
    """An answer."""
    return {"role": "assistant", "content": list(blocks)}


def told(*blocks: Any) -> dict[str, Any]:
    """What the user says."""
    return {"role": "user", "content": list(blocks)}


def result(*ids: str, **more: Any) -> list[dict[str, Any]]:
    """Results of calls."""
    return [{"type": "tool_result", "tool_use_id": each, **more} for each in ids]


def call(*ids: str, **more: Any) -> dict[str, Any]:
    """An answer that calls tools."""
    return said(*({**CALL, "id": each, **more} for each in ids))


def nested(depth: int) -> Any:
    """Lists in lists."""
    found: Any = []
    for _ in range(depth):
        found = [found]
    return found


def answer(*blocks: Any, **more: Any) -> Message:
    """An answer as the SDK makes it."""
    return Message.construct(**{**FULL, "content": list(blocks), **more})


# What is taken: by name, the history without the user's last message, which is added.
TAKEN: Final[dict[str, list[Any]]] = {
    "nothing": [],
    "texts": [HELLO, HI],
    "a system turn in the middle": [HELLO, HI, {"role": "system", "content": "In French."}],
    "two answers in a row": [HELLO, HI, said(TEXT)],
    "two questions in a row": [HELLO, HELLO, HI],
    "an answer of the SDK's": [HELLO, answer(TextBlock(type="text", text="x", citations=None))],
    "an answer of the beta's": [
        HELLO,
        BetaMessage.construct(**{**FULL, "content": [BetaTextBlock(type="text", text="x")]}),
    ],
    "an answer stored whole": [HELLO, Message.model_validate(FULL).model_dump()],
    "an answer stored as it came": [HELLO, Message.model_validate(FULL).to_dict()],
    "an answer stored as JSON": [HELLO, json.loads(Message.model_validate(FULL).model_dump_json())],
    "blocks of the SDK's": [HELLO, said(ThinkingBlock(type="thinking", thinking="", signature="s"), TEXT)],
    "one block that is no list": [
        {"role": "user", "content": TEXT},
        {"role": "assistant", "content": TextBlock(**TEXT)},
    ],
    "blocks from an iterator": [{"role": "user", "content": iter([TEXT])}, {"role": "assistant", "content": (TEXT,)}],
    "an empty text beside a call": [HELLO, said({**TEXT, "text": ""}, CALL), told(*result("a")), HI],
    "an empty text of the SDK's": [
        HELLO,
        answer(TextBlock(type="text", text=""), ToolUseBlock(**CALL)),
        told(*result("a")),
        HI,
    ],
    "space beside a call": [HELLO, said({**TEXT, "text": " \n"}, CALL), told(*result("a")), HI],
    "an empty text behind thinking": [HELLO, said(THOUGHT, TEXT, {**TEXT, "text": ""})],
    "nulls": [
        HELLO,
        said({**TEXT, "citations": None, "cache_control": None}, {**CALL, "caller": None}),
        told(*result("a")),
    ],
    "nulls in an input": [HELLO, call("a", input={"b": None, "c": [None]}), told(*result("a")), HI],
    "a cited document without a title": [HELLO, said({**TEXT, "citations": [CITED]})],
    "a citation of the SDK's": [
        HELLO,
        answer(TextBlock(type="text", text="x", citations=[CitationCharLocation(**CITED)])),
    ],
    "a citation that lost its nulls": [
        HELLO,
        said(
            {
                **TEXT,
                "citations": [
                    {
                        "type": "web_search_result_location",
                        "cited_text": "x",
                        "encrypted_index": "y",
                        "url": "https://a.example",
                    }
                ],
            }
        ),
    ],
    "structured output": [HELLO, said({**TEXT, "parsed_output": {"a": 1}})],
    "half a character in an answer": [HELLO, said({**TEXT, "text": "x\ud83d"})],
    "half a character in a text": [HELLO, {"role": "assistant", "content": "\ude00"}],
    "halves of one character": [told({**TEXT, "text": "\ud83d\ude00"}), said({**TEXT, "text": "\ud83d\ude00"})],
    "half a character in an input": [HELLO, call("a", input={"\ud83d": ["\ude00"]}), told(*result("a")), HI],
    "an input that is a list": [HELLO, call("a", input=["x"]), told(*result("a")), HI],
    "an input that is a text": [HELLO, call("a", input="{}"), told(*result("a")), HI],
    "an input that is a number": [HELLO, call("a", input=7), told(*result("a")), HI],
    "an input that is null": [HELLO, call("a", input=None), told(*result("a")), HI],
    "an input that is missing": [HELLO, said({"type": "tool_use", "id": "a", "name": "f"}), told(*result("a")), HI],
    "an input that is not finite": [HELLO, call("a", input={"x": [math.nan]}), told(*result("a")), HI],
    "an input that JSON can't hold": [HELLO, call("a", input={"x": {1: b"y"}}), told(*result("a")), HI],
    "an input that is too deep": [HELLO, call("a", input={"x": nested(150)}), told(*result("a")), HI],
    "an input without an end": [HELLO, call("a", input={"x": nested(50_000)}), told(*result("a")), HI],
    "an input with a number too long": [HELLO, call("a", input={"x": 10**5000}), told(*result("a")), HI],
    "an input of the SDK's that is a list": [
        HELLO,
        answer(ToolUseBlock.construct(**{**CALL, "input": ["x"]})),
        told(*result("a")),
    ],
    "results in another order": [HELLO, call("a", "b"), told(*result("b", "a")), HI],
    "results in several messages": [HELLO, call("a", "b"), told(*result("b")), told(*result("a"), TEXT), HI],
    "results and more": [HELLO, call("a"), told(*result("a", content=[TEXT], is_error=False), TEXT), HI],
    "a result without content": [HELLO, call("a"), told(*result("a", content=None)), HI],
    "a result as a text": [HELLO, call("a"), told(*result("a", content="")), HI],
    "one id in two turns": [HELLO, call("a"), told(*result("a")), call("a"), told(*result("a")), HI],
    "calls of a turn in two messages": [HELLO, call("a"), call("b"), told(*result("a", "b")), HI],
    "a search with its results": [HELLO, said(SEARCH, FOUND, TEXT)],
    "a search in two messages": [HELLO, said(SEARCH), said(FOUND, TEXT)],
    "thinking that is empty": [HELLO, said(THOUGHT, TEXT)],
    "thinking that is hidden": [HELLO, said({"type": "redacted_thinking", "data": "d"}, TEXT)],
    "a compaction that failed": [
        HELLO,
        answer(BetaCompactionBlock.construct(type="compaction", content=None), TextBlock(**TEXT)),
    ],
    "marks of the cache": [told({**TEXT, "cache_control": {"type": "ephemeral"}}), HI],
}

# What is not taken: by name, the history; where; what is said of it.
REFUSED: Final[dict[str, tuple[list[Any], str, str]]] = {
    "an empty text of the user's": ([told({**TEXT, "text": ""})], "messages.0.content.0.text", "is empty"),
    "space of the user's": ([told(TEXT, {**TEXT, "text": " "})], "messages.0.content.1.text", "is empty"),
    "a message of space": ([{"role": "user", "content": " "}], "messages.0.content", "nothing but space"),
    "an answer that says nothing": ([HELLO, said({**TEXT, "text": ""})], "messages.1.content", "is empty"),
    "no blocks": ([HELLO, said()], "messages.1.content", "is empty"),
    "no text": ([{"role": "user", "content": ""}], "messages.0.content", "is empty"),
    "content that is null": ([HELLO, {"role": "assistant", "content": None}], "messages.1.content", "is null"),
    "content that is missing": ([{"role": "user"}], "messages.0.content", "is null"),
    "content that is a number": ([{"role": "user", "content": 7}], "messages.0.content", "not int"),
    "content in bytes": ([{"role": "user", "content": b"x"}], "messages.0.content", "not bytes"),
    "a block that is none": ([told("x")], "messages.0.content.0", "must be a content block"),
    "a block without a type": ([told({"text": "x"})], "messages.0.content.0", "no 'type'"),
    "no message": ([HELLO, "Hi"], "messages.1", "must be a message"),
    "no role": ([HELLO, {"content": "x"}], "messages.1", "no role"),
    "role system first": ([{"role": "system", "content": "x"}, HELLO], "messages.0", "`system=`"),
    "role developer": ([{"role": "developer", "content": "x"}], "messages.0", "`system=`"),
    "role tool": ([HELLO, {"role": "tool", "content": "x", "tool_call_id": "a"}], "messages.1", "tool_result blocks"),
    "an answer first": ([HI, HELLO], "messages.0", "must be the user's"),
    "fields of another SDK": ([HELLO, {**HI, "tool_calls": []}], "messages.1", "tool_use blocks"),
    "a field of no SDK": ([{**HELLO, "name": "Ann"}], "messages.0", "the field 'name'"),
    "an image of another SDK": (
        [told({"type": "image_url", "image_url": {}})],
        "messages.0.content.0",
        "`penstock.image`",
    ),
    "a call of the user's": ([told(CALL)], "messages.0.content.0", "role 'user'"),
    "an answer with results": ([HELLO, call("a"), said(*result("a"))], "messages.2.content.0", "role 'assistant'"),
    "a document in an answer": (
        [HELLO, said({"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "x"}})],
        "messages.1.content.0",
        "role 'assistant'",
    ),
    "thinking without a signature": (
        [HELLO, said({"type": "thinking", "thinking": ""})],
        "messages.1.content.0.signature",
        "must be",
    ),
    "a call without an id": ([HELLO, said({**CALL, "id": None})], "messages.1.content.0.id", "must be a text"),
    "a call with an empty name": ([HELLO, said({**CALL, "name": ""})], "messages.1.content.0.name", "is empty"),
    "two calls with one id": ([HELLO, call("a", "a"), told(*result("a"))], "messages.1", "the same id"),
    "one id in two messages of a turn": (
        [HELLO, call("a"), call("a"), told(*result("a"))],
        "messages.1",
        "the same id",
    ),
    "a call that nothing answers": ([HELLO, call("a"), HELLO], "messages.2", "a are not answered"),
    "a call answered in part": ([HELLO, call("a", "b"), told(*result("a")), HI], "messages.2", "b are not answered"),
    "a call answered in part, and more": (
        [HELLO, call("a", "b"), told(*result("a"), TEXT)],
        "messages.2",
        "b are not answered",
    ),
    "a result behind a text": ([HELLO, call("a"), told(TEXT, *result("a"))], "messages.2", "before any other block"),
    "a result of no call": ([told(*result("a"))], "messages.0", "no tool call"),
    "a result of another call": ([HELLO, call("a"), told(*result("a", "b"))], "messages.2", "no tool call"),
    "a result of an earlier call": (
        [HELLO, call("a"), told(*result("a")), HI, told(*result("a"))],
        "messages.4",
        "no tool call",
    ),
    "two results of one call": ([HELLO, call("a"), told(*result("a", "a"))], "messages.2", "twice"),
    "a result that is a number": (
        [HELLO, call("a"), told(*result("a", content=7))],
        "messages.2.content.0.content",
        "a text or a list",
    ),
    "a system turn within a call": (
        [HELLO, call("a"), {"role": "system", "content": "x"}],
        "messages.2",
        "not answered",
    ),
    "a system turn with an image": (
        [HELLO, HI, {"role": "system", "content": [{"type": "image"}]}],
        "messages.2.content.0",
        "'system'",
    ),
    "a number that is not finite": ([told({"type": "hologram", "x": math.inf})], "messages.0.content.0.x", "a float"),
    "a name that is a number": ([told({"type": "hologram", "x": {7: 8}})], "messages.0.content.0.x", "int as the name"),
    "nesting without an end": ([told({"type": "hologram", "x": nested(5000)})], "", "too deeply"),
}
# The simulated API doesn't look so closely, or it never comes so far.
NOT_LOOKED_AT: Final = {
    "role system first",
    "an answer first",
    "a number that is not finite",
    "a name that is a number",
    "nesting without an end",
    "a system turn with an image",
    "a call with an empty name",
    "content in bytes",
    "a document in an answer",
}


async def accepted(messages: Any) -> Any:
    """What the simulated API was sent, which it took."""
    simulator = Simulator()
    recorder = ScriptedTransport(simulator.transport().handle_async_request)
    http = anthropic.DefaultAsyncHttpxClient(transport=recorder)
    async with anthropic.AsyncAnthropic(
        api_key="k", base_url="http://a.invalid", http_client=http, max_retries=0
    ) as sdk:
        await sdk.messages.create(
            model=MODEL,
            max_tokens=50,
            messages=messages,
            thinking={"type": "adaptive"},
            extra_headers={"anthropic-beta": "compact-2026-01-12"},
        )
    return json.loads(recorder.requests[-1].content)["messages"]


def saved_as(turns: list[Any]) -> str:
    """A conversation that was saved with this history."""
    return json.dumps({"penstock_conversation": 1, "id": "s1", "options": {"model": MODEL}, "turns": turns})


def fresh(messages: list[Any]) -> list[Any]:
    """The same, with iterators that nobody has read."""
    return [
        {**each, "content": iter([TEXT])} if hasattr(each, "get") and hasattr(each.get("content"), "__next__") else each
        for each in messages
    ]


@pytest.mark.lengthy
@pytest.mark.parametrize("name", TAKEN)
async def test_what_is_taken_is_taken_by_all_and_by_the_api(name: str) -> None:
    """The same messages, whoever keeps them; a conversation saves them, and is loaded again."""
    sdk: Any = Simulator().client()
    asked = [*TAKEN[name], {"role": "user", "content": "And now?"}]
    chat = Conversation(sdk, model=MODEL, messages=fresh(asked))
    loop: Any = Transcript(fresh(asked)).valid
    again = Conversation.from_json(chat.to_json(), sdk)
    assert again.messages == chat.messages
    assert [without_marks(message) for message in loop] == chat.messages
    for messages in (chat.messages, loop):
        if "thinking" not in name:  # the simulated API signs it, and knows its own
            assert await accepted(messages) is not None


def without_marks(message: Any) -> Any:
    """A message with its texts as blocks, and without the marks of the cache, as conversations keep it."""
    content = message["content"]
    blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
    return {
        "role": message["role"],
        "content": [{key: value for key, value in block.items() if key != "cache_control"} for block in blocks],
    }


@pytest.mark.lengthy
@pytest.mark.parametrize("name", REFUSED)
async def test_what_is_refused_is_refused_by_all_and_by_the_api(name: str) -> None:
    """At the same place, with the same words."""
    messages, place, words = REFUSED[name]
    sdk: Any = Simulator().client()
    told_by: list[InvalidHistory] = []
    for keep in (lambda: Conversation(sdk, model=MODEL, messages=messages), lambda: Transcript(messages)):
        with pytest.raises(InvalidHistory) as raised:
            keep()
        told_by.append(raised.value)
    assert told_by[0].args == told_by[1].args
    assert words in told_by[0].reason
    if place:
        assert told_by[0].place == place
    if name not in NOT_LOOKED_AT:
        with pytest.raises(anthropic.BadRequestError):
            await accepted(messages)


@pytest.mark.parametrize("name", [name for name in REFUSED if name not in NOT_LOOKED_AT and name != "no message"])
def test_what_is_refused_does_not_load(name: str) -> None:
    """A saved conversation that was changed says where, with the same words."""
    messages, place, words = REFUSED[name]
    with pytest.raises(InvalidHistory) as raised:
        Conversation.from_json(saved_as(messages), Simulator().client())
    assert raised.value.place == place.replace("messages.", "turns.", 1)
    assert words in raised.value.reason


def test_what_an_answer_had_that_cannot_go_back_is_made_good() -> None:
    """Exactly that, and nothing else."""

    def kept(name: str) -> Any:
        turns: Any = Transcript(fresh(TAKEN[name])).to_send
        return turns[1]["content"]

    assert kept("an empty text beside a call") == kept("space beside a call") == [CALL]
    assert kept("nulls") == [TEXT, CALL]
    assert kept("nulls in an input")[0]["input"] == {"b": None, "c": [None]}
    assert kept("a cited document without a title") == [{**TEXT, "citations": [CITED]}]
    assert kept("a citation of the SDK's") == [{**TEXT, "citations": [CITED]}]
    assert kept("a citation that lost its nulls")[0]["citations"][0]["title"] is None
    assert kept("structured output") == [TEXT]
    assert kept("half a character in an answer")[0]["text"] == "x\ufffd"
    assert kept("half a character in a text") == "\ufffd"
    assert kept("halves of one character")[0]["text"] == "\U0001f600"
    assert kept("half a character in an input")[0]["input"] == {"\ufffd": ["\ufffd"]}
    assert kept("an input that is a list")[0]["input"] == {"INVALID_JSON": '["x"]'}
    assert kept("an input that is a text")[0]["input"] == {"INVALID_JSON": '"{}"'}
    assert kept("an input that is null")[0]["input"] == kept("an input that is missing")[0]["input"] == {}
    assert kept("an input that is not finite")[0]["input"] == {"INVALID_JSON": '{"x": [NaN]}'}
    assert kept("an input that JSON can't hold")[0]["input"]["INVALID_JSON"].startswith("(dict")
    assert kept("a compaction that failed") == [TEXT]
    assert kept("a search with its results") == [SEARCH, FOUND, TEXT]


def test_marks_and_texts_stay_where_the_caller_sends_them_himself() -> None:
    """A tool loop's prompt is sent as it is; a conversation places its own marks."""
    marked = TAKEN["marks of the cache"]
    assert Transcript(marked).to_send == marked
    inner = told(*result("a", content=[{**TEXT, "cache_control": {"type": "ephemeral"}}]))
    assert Transcript([HELLO, call("a"), inner, HI]).to_send[2] == inner


@pytest.mark.parametrize("results", [[], [told(*result("b"))], [told(*result("c")), told(*result("a"))]])
def test_calls_may_wait_at_the_end_for_all(results: list[Any]) -> None:
    """All, or some, which are added; the same for a conversation, which is answered by `send`."""
    messages = [HELLO, call("a", "b", "c"), *results]
    waiting = [
        each for each in "abc" if not any(block["tool_use_id"] == each for turn in results for block in turn["content"])
    ]
    chat = Conversation(Simulator().client(), model=MODEL, messages=messages)
    assert chat.pending_tool_calls == tuple(waiting)
    assert [each.id for each in Transcript(messages).unanswered] == waiting
    assert Conversation.from_json(chat.to_json(), Simulator().client()).pending_tool_calls == tuple(waiting)
    assert open_calls(chat._session.turns) == tuple(waiting)


async def test_a_conversation_goes_on_from_calls_that_are_answered_in_part() -> None:
    """The rest is answered by the next `send`, and nothing else can be said before."""
    simulator = Simulator()
    async with simulator.client() as sdk:
        history: Any = [HELLO, call("a", "b"), told(*result("b"))]
        chat = Conversation(sdk, model=MODEL, messages=history)
        for content in ("", "Never mind"):
            with pytest.raises(InvalidHistory):
                await chat.send(content)
        reply = await chat.send(result("a"))
    assert reply.stop_reason == "end_turn"
    assert simulator.journal[-1].status == 200


def test_more_than_a_request_can_hold_is_refused_by_all() -> None:
    """At once."""
    for keep in (lambda many: Conversation(Simulator().client(), model=MODEL, messages=many), Transcript):
        with pytest.raises(InvalidHistory, match="more than 100,000"):
            keep([HELLO] * 100_001)
