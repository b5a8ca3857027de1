from __future__ import annotations

import math
from typing import Any

import pytest
from anthropic.types import TextBlock, ThinkingBlock, ToolUseBlock
from anthropic.types.beta import BetaCompactionBlock

from penstock import InvalidHistory
from penstock.messages.blocks import CONTINUE, Turn, answer_blocks, ids_of, is_fresh, plain, plain_block, text_of


def user(*blocks: dict[str, Any]) -> Turn:
    """A turn of the user."""
    return Turn(role="user", content=blocks)


TEXT = {"type": "text", "text": "Hello"}
RESULT = {"type": "tool_result", "tool_use_id": "t1"}


def test_a_block_is_copied_without_nulls_and_cache_marks() -> None:
    """What the API would refuse, and what belongs to a request only, is left out; also in the results of tools."""
    inner = {"type": "text", "text": "x", "citations": None, "cache_control": {"type": "ephemeral"}}
    given = {"type": "tool_result", "tool_use_id": "t", "content": [inner], "cache_control": {"type": "ephemeral"}}
    block = plain_block(given, "at")
    assert block == {"type": "tool_result", "tool_use_id": "t", "content": [{"type": "text", "text": "x"}]}
    inner["text"] = "y"
    assert block["content"][0]["text"] == "x"


def test_nulls_in_the_input_of_a_tool_stay() -> None:
    """They are what the model said."""
    given = {"type": "tool_use", "id": "t", "name": "f", "input": {"b": None, "a": [1, 2.5, True, None]}}
    block = plain_block(given, "at")
    assert block == given
    assert list(block["input"]) == ["b", "a"]


def test_objects_of_the_sdk_are_taken() -> None:
    """A block of an answer is sent back as it came, less what it has not."""
    assert plain_block(TextBlock(type="text", text="x", citations=None), "at") == {"type": "text", "text": "x"}
    assert plain(TextBlock(type="text", text="x"), "at") == {"type": "text", "text": "x"}


@pytest.mark.parametrize(
    ("value", "place", "said"),
    [
        ("text", "at", "must be a content block"),
        ({1: 2}, "at", "int as the name of a field"),
        ({"a": {"b": [b"x"]}}, "at.a.b.0", "a bytes, which JSON can't hold"),
        ({"a": {1: 2}}, "at.a", "int as the name"),
        ({"a": math.nan}, "at.a", "a float, which"),
        ({"type": "tool_result", "content": ["x"]}, "at.content.0", "must be a content block"),
        ({"a": 10**5000}, "at.a", "a int, which"),
    ],
)
def test_what_json_cannot_hold_is_refused_with_its_place(value: Any, place: str, said: str) -> None:
    """The error tells where it is, and what."""
    with pytest.raises(InvalidHistory, match=said) as raised:
        plain_block(value, "at")
    assert raised.value.place == place


def test_endless_nesting_is_refused() -> None:
    """A list that holds itself ends in an error, not in a crash."""
    endless: list[object] = []
    endless.append(endless)
    with pytest.raises(InvalidHistory, match="too deeply"):
        plain_block({"a": endless}, "at")


def test_an_answer_is_sent_back_unmodified_less_what_says_nothing() -> None:
    """Thinking stays as it is, even if it is empty; empty texts and failed compactions go."""
    content = [
        BetaCompactionBlock(type="compaction", content=None),
        BetaCompactionBlock(type="compaction", content="short"),
        ThinkingBlock(type="thinking", thinking="", signature="s"),
        TextBlock(type="text", text=" \n"),
        TextBlock(type="text", text="x", citations=None),
        ToolUseBlock.construct(type="tool_use", id="t", name="f", input={"a": None}),
    ]
    assert answer_blocks(content) == (
        {"type": "compaction", "content": "short"},
        {"type": "thinking", "thinking": "", "signature": "s"},
        {"type": "text", "text": "x"},
        {"type": "tool_use", "id": "t", "name": "f", "input": {"a": None}},
    )


def test_half_a_character_is_replaced() -> None:
    """Nothing could send it back; what is whole stays, wherever it stands."""
    whole = {"a": ["é", 1, None, {"b": "\U0001f600"}]}
    broken = {"a": ["\ud83d é", 1, None, {"b": "x\udc00"}]}
    (kept,) = answer_blocks([ToolUseBlock(type="tool_use", id="t", name="f", input=dict(whole))])
    (made,) = answer_blocks([ToolUseBlock(type="tool_use", id="t", name="f", input=dict(broken))])
    assert kept["input"] == whole
    assert made["input"] == {"a": ["\ufffd é", 1, None, {"b": "x\ufffd"}]}


def test_something_new_begins_neither_with_results_nor_with_the_rest_of_an_answer() -> None:
    """Such turns belong to the exchange before them."""
    assert is_fresh(user(TEXT))
    assert not is_fresh(user(RESULT, TEXT))
    assert not is_fresh(CONTINUE)
    assert not is_fresh(Turn(role="assistant", content=(TEXT,)))


def test_ids_and_texts_are_read_off_blocks() -> None:
    """Calls name themselves, results name their calls."""
    call = {"type": "tool_use", "id": "t0", "name": "f", "input": {}}
    assert ids_of([TEXT, call, RESULT], "tool_use") == ["t0"]
    assert ids_of([TEXT, call, RESULT], "tool_result") == ["t1"]
    assert text_of([TEXT, call, TEXT]) == "HelloHello"


def test_its_content_is_not_in_its_repr() -> None:
    """A traceback that shows local variables shows no prompt."""
    assert "Hello" not in repr(user(TEXT))
    assert user(TEXT).param() == {"role": "user", "content": [TEXT]}
