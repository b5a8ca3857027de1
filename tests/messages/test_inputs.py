from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from anthropic.lib.streaming._messages import accumulate_event
from hypothesis import example, given
from hypothesis import strategies as st

from penstock.messages.inputs import ToolInputs

START: dict[str, Any] = {
    "type": "message_start",
    "message": {
        "id": "m", "type": "message", "role": "assistant", "model": "m", "content": [], "stop_reason": None,
        "stop_sequence": None, "usage": {"input_tokens": 1, "output_tokens": 1},
    },
}  # fmt: skip
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)
CALL: dict[str, Any] = {"type": "tool_use", "id": "a", "name": "f", "input": {}}


def delta(piece: object, index: object = 0) -> dict[str, object]:
    """A piece of input, decoded."""
    return {"type": "content_block_delta", "index": index, "delta": {"type": "input_json_delta", "partial_json": piece}}


def streamed(*pieces: str, stop_reason: str = "tool_use") -> Any:
    """The input that the SDK accumulates of pieces."""
    inputs, buffers = ToolInputs(), dict[int, bytes]()
    message: Any = accumulate_event(event=_of(START), current_snapshot=None, json_bufs=buffers)
    for event in (
        {"type": "content_block_start", "index": 0, "content_block": CALL},
        *map(delta, pieces),
        {"type": "content_block_stop", "index": 0},
    ):
        taken = inputs.taken(event)
        if taken is not None:
            message = accumulate_event(event=_of(taken), current_snapshot=message, json_bufs=buffers)
    inputs.mend(message.content)
    inputs.mend(message.content, stop_reason)
    assert repr(inputs) == f"<ToolInputs of {bool(pieces):d} calls>"
    return message.content[0].input


def _of(event: dict[str, Any]) -> Any:
    from anthropic._models import construct_type
    from anthropic.types import RawMessageStreamEvent

    return construct_type(type_=RawMessageStreamEvent, value=event)


@pytest.mark.parametrize(
    ("pieces", "found"),
    [
        ([], {}),
        (["", ""], {}),
        ([" "], {}),
        (["", '{"city": "Ro', 'me"}'], {"city": "Rome"}),
        ([' {"a"', ": 1} "], {"a": 1}),
        (['{"a": "\\ud83d', '\\ude00"}'], {"a": "\U0001f600"}),
        (['{"a": "\\ud8', '3d\\ude00"}'], {"a": "\U0001f600"}),
        (['{"a": "\ud83d', '\ude00"}'], {"a": "\U0001f600"}),
        (["n", "ul", "l"], None),
        (['["x"]'], ["x"]),
        (['{"city": x}'], {"INVALID_JSON": '{"city": x}'}),
        (['{"city": ', "x", "}"], {"INVALID_JSON": '{"city": x}'}),
        (['{"a": 1', "} x"], {"INVALID_JSON": '{"a": 1} x'}),
        (['{"a": "b'], {"INVALID_JSON": '{"a": "b'}),
        (['{"a": NaN}'], {"INVALID_JSON": '{"a": NaN}'}),
        (['{"a": "\\ud83d x"}'], {"INVALID_JSON": '{"a": "\\ud83d x"}'}),
        (['{"a": "\ud83d x"}'], {"INVALID_JSON": '{"a": "\ufffd x"}'}),
        (["[" * 300], {"INVALID_JSON": "[" * 300}),
    ],
)
def test_input_is_what_its_pieces_say_or_says_that_it_is_no_json(pieces: list[str], found: object) -> None:
    """Wherever it is cut, also within a character; nothing raises."""
    assert streamed(*pieces) == found
    assert streamed(*"".join(pieces)) == found


@pytest.mark.parametrize("reason", ["max_tokens", "model_context_window_exceeded", "refusal"])
def test_input_that_was_cut_off_stays_as_far_as_it_came(reason: str) -> None:
    """It is asked for again, or left out; what can't be the beginning of any JSON says so even then."""
    assert streamed('{"a": 1, "b', stop_reason=reason) == {"a": 1}
    assert streamed('{"a": x', stop_reason=reason) == {"INVALID_JSON": '{"a": x'}


@given(st.text(st.characters(), max_size=40), st.lists(st.integers(0, 60), max_size=5))
@example('{"a": "\ud83d"}', [7])
def test_any_text_cut_anywhere_can_be_sent_back(text: str, cuts: list[int]) -> None:
    """As itself, or as a text."""
    places = [0, *sorted(cuts), len(text)]
    found = streamed(*(text[at:to] for at, to in pairwise(places)))
    json.dumps(found, allow_nan=False).encode()


@given(VALUES, st.integers(1, 5))
def test_json_comes_as_it_is(value: Any, size: int) -> None:
    """However it is cut."""
    text = json.dumps({"x": value})
    assert streamed(*(text[at : at + size] for at in range(0, len(text), size))) == json.loads(text)


def test_other_events_pass() -> None:
    """As they are; what no block is there for changes nothing."""
    inputs = ToolInputs()
    events: list[dict[str, object]] = [START, {"type": "content_block_delta"}, delta(7), delta('{"a"')]
    for event in events:
        assert inputs.taken(event) is event
    assert inputs.taken(delta("x", index="one")) is None
    inputs.mend([], "tool_use")
