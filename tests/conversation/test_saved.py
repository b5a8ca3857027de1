from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock import Conversation, InvalidHistory
from penstock.simulator import Simulator

if TYPE_CHECKING:
    import random

SDK = Simulator().client()
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


def load(found: str | bytes, **more: Any) -> Conversation:
    """What becomes of it."""
    return Conversation.from_json(found, SDK, **more)


def test_what_was_written_is_read() -> None:
    """Flags of turns too; what is not there has its default."""
    note = {"role": "user", "content": [{"type": "text", "text": "N"}], "left_out": 7}
    answer = {"role": "assistant", "content": [{"type": "text", "text": "é"}], "paused": True}
    written = text(turns=[TURNS[0], note, answer])
    for each in (written, written.encode()):
        chat = load(each)
        assert (chat.id, chat.system, chat.spent_tokens, len(chat.messages)) == ("s1", None, 0, 3)
        assert json.loads(chat.to_json())["turns"] == [TURNS[0], note, answer]
        assert load(chat.to_json()).to_json() == chat.to_json()


@pytest.mark.parametrize(
    ("found", "place", "said"),
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
        (text(turns=["@"]).replace('"@"', "9" * 5000), "the whole", "no JSON (ValueError)"),
        (text(system={"text": " "}), "system.text", "pattern"),
        (text(params={"stream": True}), "tools or params", "stream can't be given"),
        (text(params={"model": "x"}), "tools or params", "model can't be given"),
        (text(params={"temperature": 1}), "tools or params", "temperature: neither"),
        (text(params={"metadata": {"x": float("nan")}}), "params.metadata.x", "a float"),
        (text(tools=[{"name": "a"}, {"name": "a"}]), "tools or params", "two tools are named 'a'"),
        (text(tools=[{"name": 7}]), "tools or params", "no name"),
        (text(tools=[{"name": "a", "input_schema": float("inf")}]), "tools.0.input_schema", "a float"),
        (text(tools=["@"]).replace('"@"', '{"name":' * 500 + "1" + "}" * 500), "tools.0.name.name", "too deeply"),
        (text(tool_options={"max_iterations": 0}), "tool_options.max_iterations", "greater"),
    ],
)  # fmt: skip
def test_what_is_damaged_is_refused_with_its_place(found: Any, place: str, said: str) -> None:
    """Corrupt JSON, another thing altogether, wrong turns: the error tells where, and quotes nothing."""
    with pytest.raises(InvalidHistory) as raised:
        load(found)
    assert raised.value.place.startswith(place)
    assert said in raised.value.reason


def whole() -> str:
    """A conversation with something of everything."""
    called = {"type": "tool_use", "id": "t", "name": "f", "input": {"a": [1.5, None]}}
    chat = Conversation(
        SDK, model="claude-sonnet-5-5", system="You are terse.", tools=[{"name": "f", "input_schema": {}}], id="s1",
        metadata={"user_id": "é"}, token_budget=5000,
        messages=[{"role": "user", "content": "Q"}, {"role": "assistant", "content": [cast("Any", called)]}],
    )  # fmt: skip
    return chat.to_json()


def survives(found: str | bytes) -> bool:
    """Whether it is loaded, or refused as what it is: nothing else may come of it."""
    try:
        load(found)
    except InvalidHistory:
        return False
    return True


def test_every_truncation_is_refused() -> None:
    """A file that was not written to its end."""
    data = whole().encode()
    assert survives(data)
    assert not any(survives(data[:length]) for length in range(len(data)))


@pytest.mark.lengthy
@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), min_size=1, max_size=4))
def test_flipped_bytes_are_refused_or_harmless(flips: list[tuple[float, int]]) -> None:
    """Nothing but `InvalidHistory` comes of a damaged file."""
    data = bytearray(whole().encode())
    for place, byte in flips:
        data[int(place * len(data))] = byte
    survives(bytes(data))


ODD: Any = st.sampled_from(
    [None, True, -1, 2, 10**30, 1.5, math.nan, "", " ", "\ud800", "x", [], [[]], [None], {}, {"__proto__": {"x": 1}}]
)


@pytest.mark.lengthy
@settings(max_examples=300, deadline=None)
@given(st.randoms(use_true_random=False), ODD)
def test_a_wrong_value_anywhere_is_refused_or_harmless(rng: random.Random, odd: object) -> None:
    """Whoever wrote it, and whatever he put where."""
    at: Any = json.loads(whole())
    root = at
    while True:
        key = rng.choice(list(at) if isinstance(at, dict) else range(len(at)))
        if not isinstance(at[key], dict | list) or not at[key] or rng.random() < 0.2:
            break
        at = at[key]
    at[key] = odd
    survives(json.dumps(root))
