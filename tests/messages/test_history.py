from __future__ import annotations

from typing import Any

import pytest
from anthropic.types import Message, TextBlock, Usage

from penstock import InvalidHistory
from penstock.messages import history
from penstock.messages.history import open_calls, turns_of, user_blocks

HELLO = {"role": "user", "content": "Hello"}
HI = {"role": "assistant", "content": "Hi"}
IMAGE = {"type": "image", "source": {"type": "url", "url": "https://example.org/cat.png"}}
DOCUMENT = {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "x"}}


def call(*ids: str) -> dict[str, Any]:
    """An answer that calls tools."""
    return {
        "role": "assistant",
        "content": [{"type": "tool_use", "id": each, "name": "f", "input": {}} for each in ids],
    }


def results(*ids: str, last: Any = ()) -> dict[str, Any]:
    """The results of calls."""
    return {"role": "user", "content": [*({"type": "tool_result", "tool_use_id": each} for each in ids), *last]}


def block(**fields: Any) -> list[dict[str, Any]]:
    """A history of one block."""
    return [{"role": "user", "content": [fields]}]


def test_a_history_is_taken_with_texts_as_blocks() -> None:
    """A text is a list of one block; an answer of the SDK's is a turn."""
    message = Message.construct(role="assistant", content=[TextBlock(type="text", text="Hi")])
    turns = turns_of([HELLO, message, HELLO, HI])
    assert [turn.role for turn in turns] == ["user", "assistant", "user", "assistant"]
    assert turns[0].content == ({"type": "text", "text": "Hello"},)
    assert turns[1].content == turns[3].content == ({"type": "text", "text": "Hi"},)


def test_calls_may_wait_at_the_end() -> None:
    """A history can be gone on from where a tool loop stopped; consecutive messages of a role are one."""
    turns = turns_of([HELLO, call("a"), call("b")])
    assert open_calls(turns) == ("a", "b")
    assert open_calls(turns_of([HELLO, call("a"), results("a")])) == ()
    assert open_calls(()) == ()
    assert open_calls(turns_of([HELLO, call("a", "b", "c"), results("b")])) == ("a", "c")
    assert turns_of([HELLO, call("a", "b"), results("b"), results("a", last=[{"type": "text", "text": "x"}]), HI])


@pytest.mark.lengthy
@pytest.mark.parametrize(
    ("messages", "place", "said"),
    [
        ("Hello", "messages", "a list of messages, not str"),
        ({"role": "user"}, "messages", "a list of messages, not dict"),
        (7, "messages", "a list of messages, not int"),
        ([HELLO, "Hi"], "messages.1", "must be a message"),
        ([HI], "messages.0", "must be the user's"),
        ([{"role": "system", "content": "Be kind."}, HELLO], "messages.0", "`system=`"),
        ([{"role": "developer", "content": "x"}], "messages.0", "`system=`"),
        ([HELLO, {"role": "tool", "tool_call_id": "a", "content": "x"}], "messages.1", "tool_result blocks"),
        ([HELLO, {"role": "function", "name": "f", "content": "x"}], "messages.1", "tool_result blocks"),
        ([HELLO, {"role": "model", "parts": []}], "messages.1", "'assistant'"),
        ([{"content": "x"}], "messages.0", "has no role"),
        ([{"role": ["user"], "content": "x"}], "messages.0", "must be 'user' or 'assistant'"),
        ([HELLO, {"role": "assistant", "content": None, "tool_calls": []}], "messages.1", "tool_use blocks"),
        ([HELLO, {"role": "assistant", "content": None}], "messages.1.content", "is null"),
        ([{"role": "user", "content": ""}], "messages.0.content", "is empty"),
        ([{"role": "user", "content": []}], "messages.0.content", "is empty"),
        ([{"role": "user", "content": "  "}], "messages.0.content", "nothing but space"),
        ([{"role": "user", "content": 7}], "messages.0.content", "not int"),
        ([{"role": "user", "content": b"x"}], "messages.0.content", "not bytes"),
        ([{"role": "user", "content": "x", "name": "Ann"}], "messages.0", "has the field 'name'"),
        ([{"role": "user", "content": "x", 7: 8}], "messages.0", "has the field '7'"),
        (block(text="x"), "messages.0.content.0", "has no 'type'"),
        (block(type="image_url", image_url={"url": "x"}), "messages.0.content.0", "`penstock.image`"),
        (block(type="input_text", text="x"), "messages.0.content.0", "have type 'text'"),
        (block(type="text", text=7), "messages.0.content.0.text", "must be a text"),
        (block(type="text", text=" "), "messages.0.content.0.text", "is empty"),
        (block(type="tool_use", id="a", name="f", input={}), "messages.0.content.0", "role 'user'"),
        (block(type="thinking", thinking="", signature=""), "messages.0.content.0", "role 'user'"),
        ([HELLO, {"role": "assistant", "content": [DOCUMENT]}], "messages.1.content.0", "role 'assistant'"),
        ([HELLO, {"role": "assistant", "content": [{"type": "thinking", "thinking": ""}]}],
         "messages.1.content.0.signature", "must be a text"),
        ([HELLO, HI, {"role": "system", "content": [IMAGE]}], "messages.2.content.0", "role 'system'"),
        ([HELLO, call("a"), HELLO], "messages.2", "tool calls a are not answered"),
        ([HELLO, call("a", "b"), results("b"), HI], "messages.2", "tool calls a are not"),
        ([HELLO, call("a"), results(last=[{"type": "text", "text": "x"}, *results("a")["content"]])],
         "messages.2", "before any other block"),
        ([HELLO, call("a"), {"role": "system", "content": "x"}, results("a")], "messages.2", "not answered"),
        ([HELLO, call("a"), results("a", "b")], "messages.2", "no tool call of the message before"),
        ([results("a")], "messages.0", "no tool call of the message before"),
        ([HELLO, call("a"), results("a", "a")], "messages.2", "twice"),
        ([HELLO, call("a", "a"), results("a")], "messages.1", "the same id"),
        ([HELLO, call("a"), {"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": "a", "content": [{"type": "input_image"}]}]}],
         "messages.2.content.0.content.0", "`penstock.image`"),
        ([HELLO, call("a"), {"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": "a", "content": 7}]}],
         "messages.2.content.0.content", "a text or a list"),
    ],
)  # fmt: skip
def test_what_the_api_would_refuse_is_refused_with_its_place(messages: Any, place: str, said: str) -> None:
    """Histories of other SDKs, too; the error says what to do, and quotes nothing."""
    with pytest.raises(InvalidHistory) as raised:
        turns_of(messages)
    assert raised.value.place == place
    assert said in raised.value.reason


def test_an_answer_that_was_stored_whole_is_taken_back() -> None:
    """As the SDK's own `model_dump` makes it: what the API doesn't take back is left out."""
    answer = Message(
        id="msg_1", type="message", role="assistant", model="m", stop_reason="end_turn", stop_sequence=None,
        content=[TextBlock(type="text", text="A")], usage=Usage(input_tokens=1, output_tokens=1),
    )  # fmt: skip
    assert turns_of([HELLO, answer.model_dump()])[1].param() == turns_of([HELLO, answer])[1].param()


def test_more_messages_than_a_request_can_hold_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """At once: to check a million of them would hold up everybody."""
    monkeypatch.setattr(history, "_MOST_MESSAGES", 3)
    assert len(turns_of([HELLO] * 3)) == 3
    with pytest.raises(InvalidHistory, match="more than 3"):
        turns_of(HELLO for _ in range(4))


def test_blocks_are_not_nested_without_end() -> None:
    """Not in each other, and not in their fields; the place stays readable."""
    block: Any = {"type": "text", "text": "x"}
    for _ in range(3000):
        block = {"type": "tool_result", "tool_use_id": "a", "content": [block]}
    for bad in (block, {"type": "x", "y": block}):
        with pytest.raises(InvalidHistory, match="nested too deeply") as raised:
            turns_of([{"role": "user", "content": [bad]}])
        assert len(raised.value.place) <= 100


def test_block_types_that_are_not_known_pass() -> None:
    """The API may have learned them since."""
    future = {"type": "hologram", "data": "x"}
    assert turns_of([{"role": "user", "content": [future]}])[0].content == (future,)
    answered = results("a", last=[])["content"][0] | {"content": [{"type": "text", "text": "x"}]}
    assert turns_of([HELLO, call("a"), {"role": "user", "content": [answered]}])


def test_results_come_first_then_media_then_the_rest() -> None:
    """The API wants it so, and reads images best before the question about them."""
    result = results("a")["content"][0]
    text = {"type": "text", "text": "x"}
    assert user_blocks([text, result], images=[IMAGE], documents=[DOCUMENT]) == (result, DOCUMENT, IMAGE, text)
    assert user_blocks("", images=iter([IMAGE]), documents=()) == (IMAGE,)
    assert user_blocks(text, images=(), documents=()) == (text,)
    assert user_blocks(TextBlock(type="text", text="x"), images=(), documents=()) == (text,)
    assert user_blocks("", images=(), documents=()) == ()


@pytest.mark.parametrize(
    ("fields", "place", "said"),
    [
        ({"content": " "}, "content", "nothing but space"),
        ({"content": [{"type": "text", "text": 7}]}, "content.0.text", "must be a text"),
        ({"content": "x", "images": IMAGE}, "images", "must be a list of image blocks"),
        ({"content": "x", "images": 7}, "images", "must be a list of image blocks"),
        ({"content": "x", "images": ["cat.png"]}, "images.0", "must be a content block"),
        ({"content": "x", "images": [DOCUMENT]}, "images.0", "type 'image'"),
        ({"content": "x", "documents": [IMAGE]}, "documents.0", "type 'document'"),
    ],
)
def test_a_question_that_is_none_is_refused(fields: Any, place: str, said: str) -> None:
    """Empty messages, and media that are not."""
    with pytest.raises(InvalidHistory) as raised:
        user_blocks(**{"images": (), "documents": (), **fields})
    assert raised.value.place == place
    assert said in raised.value.reason
