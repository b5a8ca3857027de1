from __future__ import annotations

from typing import Any

import pytest
from anthropic.types import Message
from anthropic.types.beta import BetaCompactionBlock, BetaMessage

from penstock.conversation.token_estimate import TokenEstimate, context_tokens
from penstock.messages.blocks import Turn

MODEL = "claude-sonnet-5-5"


def turn(words: str, *more: Any) -> Turn:
    """A turn of one text, and more blocks."""
    return Turn(role="user", content=({"type": "text", "text": words}, *more))


def answer(**usage: int) -> Message:
    """An answer with that usage."""
    return Message.construct(content=[], usage=None if not usage else _Usage(**usage))


class _Usage:
    def __init__(self, **counts: int | None) -> None:
        self.__dict__.update(counts)


def test_what_the_api_has_counted_is_not_guessed() -> None:
    """Only turns that came since are estimated, and a little too high."""
    estimate = TokenEstimate(MODEL, {}, has_tools=False)
    turns = [turn("x" * 4000)]
    assert estimate.measure(turns) == pytest.approx(4000 / 3.2 * 1.1, rel=0.02)
    estimate.learn(turns, answer(input_tokens=100, cache_read_input_tokens=900, output_tokens=50), turns=2)
    turns += [turn("ok")]
    assert estimate.measure(turns) == 1050
    longer = estimate.measure([*turns, turn("y" * 400)])
    assert longer - 1050 == pytest.approx(400 / estimate.per_token * 1.1, rel=0.15)
    assert estimate.measure([*turns, turn("y" * 400)], margin=1.0) < longer
    estimate.forget()
    assert estimate.measure(turns) == pytest.approx(1100, rel=0.1)


def test_it_learns_how_many_characters_a_token_has() -> None:
    """From texts that are long enough to tell, and within bounds."""
    for tokens, per_token in ((4000, 2.0), (2000, 4.0), (10, 8.0), (100_000, 1.0)):
        estimate = TokenEstimate(MODEL, {}, has_tools=False)
        estimate.learn([turn("x" * 8000)], answer(input_tokens=tokens, output_tokens=1), turns=2)
        assert estimate.per_token == pytest.approx(per_token, rel=0.05)
        assert repr(estimate).endswith(" characters a token>")
    estimate = TokenEstimate(MODEL, {}, has_tools=False)
    estimate.learn([turn("x" * 8000)], answer(input_tokens=100_000, output_tokens=1), turns=2)
    assert repr(estimate) == "<TokenEstimate 100001 tokens in 2 turns, 1.00 characters a token>"


def test_what_stands_before_the_turns_counts() -> None:
    """System prompt and tools, and what tools cost on top."""
    plain = TokenEstimate(MODEL, {}, has_tools=False)
    told = TokenEstimate(MODEL, {"system": "x" * 3200}, has_tools=True)
    assert plain.fixed == 0
    assert told.fixed == pytest.approx(1500)
    assert told.measure([turn("x")]) - plain.measure([turn("x")]) == pytest.approx(1650)


def test_an_answer_without_usage_teaches_nothing() -> None:
    """As compatible servers send it."""
    estimate = TokenEstimate(MODEL, {}, has_tools=False)
    estimate.learn([turn("x")], answer(), turns=2)
    estimate.learn([turn("x")], answer(input_tokens=0, output_tokens=4), turns=2)
    assert (estimate.tokens, estimate.per_token) == (0, 3.2)
    assert context_tokens(Message.construct()) == (0, 0)


def test_media_that_are_only_named_cost_what_they_can() -> None:
    """An image at most its model's most; a document some pages; also within the result of a tool."""
    image = {"type": "image", "source": {"type": "url", "url": "https://example.org/cat.png"}}
    document = {"type": "document", "source": {"type": "file", "file_id": "file_1"}}
    result = {"type": "tool_result", "tool_use_id": "t", "content": [image]}
    kept = {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "x"}}
    search = {"type": "search_result", "source": "https://example.org", "title": "x", "content": []}

    def cost(model: str, *blocks: Any) -> float:
        estimate = TokenEstimate(model, {}, has_tools=False)
        return estimate.of([turn("x", *blocks)]) - estimate.of([turn("x")])

    assert cost(MODEL, image) == pytest.approx(4784, rel=0.01)
    assert cost("claude-haiku-4-5", result) == pytest.approx(1568, rel=0.03)
    assert cost("claude-next", image) == pytest.approx(4784, rel=0.01)
    assert cost(MODEL, document) == pytest.approx(10_000, rel=0.01)
    assert cost(MODEL, kept, search) < 50


def test_signatures_of_thinking_do_not_count_as_text() -> None:
    """They are long and cost little; what they'd teach would make new texts look cheap."""
    estimate = TokenEstimate(MODEL, {}, has_tools=False)
    thought = {"type": "thinking", "thinking": "", "signature": "s" * 9000}
    assert estimate.of([turn("x", thought)]) < 20


def test_after_a_compaction_only_the_rest_counts() -> None:
    """What stands before it is not seen, and what it was made of teaches nothing about characters."""
    estimate = TokenEstimate(MODEL, {}, has_tools=False)
    old = turn("x" * 100_000)
    compaction = BetaCompactionBlock(type="compaction", content="short")
    message = BetaMessage.construct(content=[compaction], usage=_Usage(input_tokens=300, output_tokens=20))
    estimate.learn([old], message, turns=2)
    assert (estimate.tokens, estimate.per_token) == (320, 3.2)
    compacted = Turn(role="assistant", content=({"type": "compaction", "content": "short"},))
    estimate.forget()
    assert estimate.measure([old, compacted, turn("x" * 320)]) < 200
    estimate.learn([old, compacted, turn("x" * 3200)], answer(input_tokens=1000, output_tokens=1), turns=4)
    assert estimate.per_token == pytest.approx(3.2, rel=0.05)


def test_a_copy_learns_by_itself() -> None:
    """A send that fails leaves what was known."""
    estimate = TokenEstimate(MODEL, {}, has_tools=False)
    copied = estimate.copy()
    copied.learn([turn("x")], answer(input_tokens=10, output_tokens=1), turns=2)
    assert (estimate.tokens, copied.tokens) == (0, 11)
