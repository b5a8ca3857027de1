from __future__ import annotations

from typing import Any

import pytest

from penstock.simulator.prefix import blocks_of, canonical, marks_of, message_blocks

MARK: dict[str, Any] = {"cache_control": {"type": "ephemeral"}}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"type": "text", "text": "a", **MARK}, {"text": "a", "type": "text", "citations": None}),
        (
            {"type": "tool_result", "tool_use_id": "t", "content": "done"},
            {"type": "tool_result", "tool_use_id": "t", "content": [{"type": "text", "text": "done", **MARK}]},
        ),
        ({"type": "tool_result", "tool_use_id": "t"}, {"type": "tool_result", "tool_use_id": "t", "content": ""}),
    ],
)
def test_what_says_the_same_is_the_same(one: Any, other: Any) -> None:
    """However it is written down."""
    assert canonical(one) == canonical(other)


def test_the_order_of_keys_counts_inside_inputs() -> None:
    """As it does for the API; nothing in there is a mark or absent."""
    call = {"type": "tool_use", "id": "t", "name": "f"}
    inputs: list[Any] = [{"a": 1, "b": 2}, {"b": 2, "a": 1}, {"a": 1, "b": 2, "c": None}, {"a": 1, "b": 2, **MARK}]
    assert len({canonical({**call, "input": each}) for each in inputs}) == 4


def test_a_text_is_one_block() -> None:
    """An empty one is none."""
    assert blocks_of("Hi") == [{"type": "text", "text": "Hi"}]
    assert blocks_of("") == blocks_of(None) == blocks_of([]) == []


def test_blocks_and_marks_know_their_place() -> None:
    """In the order in which the model reads them."""
    messages: list[Any] = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b", **MARK}]},
    ]
    assert [(block.role, block.kind, block.place) for block in message_blocks(messages)] == [
        ("user", "text", "messages.0.content.0"),
        ("assistant", "text", "messages.1.content.0"),
        ("assistant", "text", "messages.1.content.1"),
    ]
    body = {
        "messages": messages,
        "system": [{"type": "text", "text": "s", **MARK}],
        "tools": [{"name": "t", **MARK}, {}],
    }
    assert [place for place, _ in marks_of(body)] == ["tools.0", "system.0", "messages.1.content.1"]
    assert marks_of({"messages": messages[:1], "system": "s", "tools": None}) == []
