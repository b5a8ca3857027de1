from __future__ import annotations

import json
from typing import Any

import pytest

from penstock.simulator.cache import Reading
from penstock.simulator.models import MODELS
from penstock.simulator.reply import Manner, Reply, compose
from penstock.simulator.tokens import count_input

SONNET = MODELS["claude-sonnet-4-6"]


def reply(
    prompt: object = "a b c",
    *,
    output_tokens: Any = None,
    thinking: bool = False,
    model: str = SONNET.id,
    **fields: object,
) -> Reply:
    """The composed reply to one prompt."""
    body: dict[str, Any] = {"max_tokens": 1000, "messages": [{"role": "user", "content": prompt}], **fields}
    if thinking:
        body["thinking"] = {"type": "adaptive"}
    manner = Manner(output_tokens=output_tokens)
    reading = Reading(tokens=count_input(body, MODELS[model]))
    return compose(body, MODELS[model], None, reading=reading, manner=manner, salt="s")


def text(of: Reply) -> str:
    """All text of a reply."""
    return "".join(block.get("text", "") for block in of.content)


def test_the_reply_repeats_the_first_words_of_the_last_prompt() -> None:
    """A test can tell by the answer which question it answers."""
    messages = [
        {"role": "user", "content": "old"},
        {"role": "assistant", "content": "no"},
        {"role": "user", "content": " ".join(map(str, range(100)))},
    ]
    assert text(reply(messages=messages)) == "Summary: " + " ".join(map(str, range(24)))


def test_tool_results_are_words_of_the_prompt() -> None:
    """The answer to tool results is about them."""
    block = {"type": "tool_result", "tool_use_id": "t", "content": [{"type": "text", "text": "sunny today"}]}
    assert text(reply([block, {"type": "image"}])) == "Summary: sunny today"


def test_a_prompt_without_words_gets_an_answer_too() -> None:
    """No text means an empty summary, or a filler of the asked length."""
    assert text(reply([{"type": "image"}])) == "Summary: "
    assert reply([{"type": "image"}], output_tokens=7).output_tokens == 7
    assert text(reply(messages="none")) == "Summary: "


@pytest.mark.parametrize("tokens", [0, 1, 2, 17, 999])
def test_the_length_of_replies_can_be_set(tokens: int) -> None:
    """The number of tokens is exact, given as number or function."""
    assert reply(output_tokens=tokens).output_tokens == tokens
    assert reply(output_tokens=lambda body: body["max_tokens"] - 1000 + tokens).output_tokens == tokens


def test_max_tokens_cuts_the_reply() -> None:
    """A longer reply ends at the limit and says so."""
    short = reply(output_tokens=50, max_tokens=20)
    assert (short.output_tokens, short.stop_reason) == (20, "max_tokens")
    assert reply(output_tokens=20, max_tokens=20).stop_reason == "end_turn"


def test_no_tokens_at_all_warms_the_cache_only() -> None:
    """`max_tokens: 0` gives no content and stops at the limit."""
    empty = reply(max_tokens=0, thinking=True)
    assert (empty.content, empty.stop_reason, empty.output_tokens) == ([], "max_tokens", 0)


@pytest.mark.lengthy
def test_a_full_window_cuts_the_reply() -> None:
    """Input and output share the window; what ends a reply there has a reason of its own."""
    prompt = "x" * 4 * (200_000 - 13)
    found = reply(prompt, model="claude-haiku-4-5", output_tokens=500)
    assert (found.output_tokens, found.stop_reason) == (10, "model_context_window_exceeded")


@pytest.mark.parametrize(
    ("sequences", "ends", "sequence"), [(["two"], "Summary: one ", "two"), (["x", "one", "two"], "Summary: ", "one")]
)
def test_the_first_stop_sequence_ends_the_reply(sequences: list[str], ends: str, sequence: str) -> None:
    """The text before it is kept, and the sequence is named."""
    found = reply("one two", stop_sequences=sequences)
    assert (text(found), found.stop_reason, found.stop_sequence) == (ends, "stop_sequence", sequence)


def test_a_stop_sequence_at_the_start_leaves_nothing() -> None:
    """An empty text is no block."""
    assert reply(stop_sequences=["Summary"]).content == []


def test_an_output_format_gets_fitting_json() -> None:
    """With a JSON schema asked for, the text is JSON that fits it."""
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}}
    found = reply(output_config={"format": {"type": "json_schema", "schema": schema}})
    assert json.loads(text(found)) == {"n": 0}
    assert text(reply(output_config={"effort": "low"})).startswith("Summary")


def test_thinking_is_part_of_the_output() -> None:
    """Its tokens count, and are told apart."""
    bare, thought = reply(), reply(thinking=True)
    thinking = thought.usage["output_tokens_details"]["thinking_tokens"]
    assert thinking > 0
    assert thought.output_tokens == bare.output_tokens + thinking
    assert thought.content[0]["thinking"] != ""
    assert reply(thinking=True, model="claude-opus-5").content[0]["thinking"] == ""


def test_thinking_leaves_room_for_an_answer() -> None:
    """With few tokens, at most half are thought away."""
    found = reply(thinking=True, max_tokens=4, output_tokens=50)
    assert [block["type"] for block in found.content] == ["thinking", "text"]
    assert found.output_tokens == 4
