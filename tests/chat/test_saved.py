from __future__ import annotations

import json
from typing import Any

import pytest

from penstock import InvalidHistory
from penstock.chat import saved
from penstock.chat.turn import Turn

TURNS = [
    {"role": "user", "content": [{"type": "text", "text": "Q"}], "pinned": True},
    {"role": "assistant", "content": [{"type": "text", "text": "A"}], "paused": True},
]
WHOLE: dict[str, Any] = {
    "penstock_conversation": 1,
    "id": "s1",
    "options": {"model": "claude-sonnet-5-5"},
    "turns": TURNS,
}


def text(**changes: Any) -> str:
    """A saved conversation, changed."""
    return json.dumps({**WHOLE, **changes})


def test_what_was_written_is_read() -> None:
    """Flags of turns too; what is not there has its default."""
    turns = (
        Turn(role="user", content=({"type": "text", "text": "Q"},), pinned=True),
        Turn(role="user", content=({"type": "text", "text": "N"},), left_out=7),
        Turn(role="assistant", content=({"type": "text", "text": "é"},), paused=True),
    )
    written = saved.write({"id": "s1", "options": {"model": "m"}}, turns)
    assert written == saved.write({"id": "s1", "options": {"model": "m"}}, turns)
    for given in (written, written.encode()):
        found = saved.read(given)
        assert found.history() == turns
        assert (found.id, found.system_prompt, found.usage.total_tokens) == ("s1", None, 0)


@pytest.mark.parametrize(
    ("given", "place", "said"),
    [
        ("", "line 1 column 1", "no JSON"),
        ('{"a":\n  [1,}', "line 2 column 6", "no JSON"),
        (b"\xff\xfe\xfa", "the whole", "no JSON (UnicodeDecodeError)"),
        ("[" * 100_000, "the whole", "no JSON (RecursionError)"),
        ("[]", "the whole", "'penstock_conversation'"),
        ('{"messages": []}', "the whole", "'penstock_conversation'"),
        (text(penstock_conversation=2), "penstock_conversation", "of a version"),
        (text(options={}), "options.model", "required"),
        (text(options={"model": "m", "trim_at": 0.3, "trim_to": 0.4}), "options", "must be below"),
        (text(options={"model": "m", "top_k": 3}), "options.top_k", "not permitted"),
        (text(id=7), "id", "string"),
        (text(extra=1), "extra", "not permitted"),
        (text(spent={"usage": {"input_tokens": -1}}), "spent.usage.input_tokens", "greater than or equal"),
        (text(window={"per_token": 0.1}), "window.per_token", "greater than or equal"),
        (text(turns="x"), "turns", "list"),
        (text(turns=[7]), "turns.0", "dictionary"),
        (text(turns=[{"role": "user", "content": "x", "pinned": "perhaps"}]), "turns.0.pinned", "boolean"),
        (text(turns=[{"role": "user", "content": "x", "left_out": -1}]), "turns.0.left_out", "greater"),
        (text(turns=[{"role": "tool", "content": "x"}]), "turns.0", "tool_result blocks"),
        (text(turns=[*TURNS, {"role": "user", "content": [{"type": "text", "text": 7}]}]),
         "turns.2.content.0.text", "must be a text"),
        (text(turns=[TURNS[0], {"role": "assistant", "content": [
            {"type": "tool_use", "id": "t", "name": "f", "input": {}}]}, TURNS[0]]), "turns.2", "not answered"),
        (text(turns=[{"role": "user", "content": [{"type": "x", "y": 1e999}]}]), "turns.0.content.0.y", "a float"),
    ],
)  # fmt: skip
def test_what_is_damaged_is_refused_with_its_place(given: Any, place: str, said: str) -> None:
    """Corrupt JSON, another thing altogether, wrong turns: the error tells where, and quotes nothing."""
    with pytest.raises(InvalidHistory) as raised:
        saved.read(given).history()
    assert raised.value.place == place
    assert said in raised.value.reason
