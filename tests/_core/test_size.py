from __future__ import annotations

from typing import Any

import pytest

from penstock._core.size import Size, TokenRate, size_of

IMAGE = {"type": "image", "source": {"type": "url", "url": "https://a.example"}}
DOCUMENT = {"type": "document", "source": {"type": "file", "file_id": "f"}}


def test_a_rate_begins_with_a_guess_and_learns() -> None:
    """Recent answers weigh more; nothing is learned from nothing."""
    rate = TokenRate()
    assert rate.per_token == 3.2
    rate.learn(0, 10)
    assert rate.per_token == 3.2
    for _ in range(50):
        rate.learn(4000, 2000)
    assert rate.per_token == pytest.approx(2, rel=0.01)
    rate.learn(90_000, 30_000)
    assert 2.5 < rate.per_token < 3
    assert rate.tokens(Size(0, media_tokens=7)) == 7
    assert repr(TokenRate(2.0)) == "<TokenRate 200 characters in 100 tokens>"


def test_media_that_are_only_named_cost_what_they_can() -> None:
    """Wherever they stand; the input of a tool that looks like them is text."""
    assert size_of([IMAGE], "claude-opus-5-5").media_tokens == 4784
    assert size_of({"content": [IMAGE, DOCUMENT]}, "claude-haiku-4-5").media_tokens == 11_568
    for other in ({"source": {"type": "url"}}, {"source": "x"}, {**IMAGE, "source": {"type": "text", "data": "x"}}):
        assert size_of(other).media_tokens == 0


def test_signatures_do_not_count() -> None:
    """They are long and cost little."""
    thought: Any = {"type": "thinking", "thinking": "Hm", "signature": "s" * 9000}
    assert size_of([thought]).characters == len("thinking") + len("Hm")
