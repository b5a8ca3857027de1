from __future__ import annotations

import base64

from hypothesis import given
from hypothesis import strategies as st

from penstock.simulator.models import MODELS
from penstock.simulator.tokens import count_input, count_text

OLD, NEW = MODELS["claude-haiku-4-5"], MODELS["claude-opus-5-5"]


@given(st.text(max_size=200), st.text(max_size=200))
def test_more_text_is_never_fewer_tokens(first: str, second: str) -> None:
    """Tokens are a fourth of the characters, rounded up."""
    assert count_text(first) <= count_text(first + second) <= count_text(first) + count_text(second)
    assert count_text("x" * 9) == 3


def test_every_part_of_a_request_counts() -> None:
    """System, messages, tool calls and results count; thinking that is sent back doesn't."""

    def count(**fields: object) -> int:
        return count_input({"messages": [], **fields}, NEW)

    assert count() == 1
    assert count(system="x" * 40) == count(system=[{"type": "text", "text": "x" * 40}]) == 10
    assert count(messages=[{"role": "user", "content": "x" * 40}]) == 13
    call = {"type": "tool_use", "input": {"a": 1}}
    result = {"type": "tool_result", "content": "x" * 40}
    thinking = {"type": "thinking", "thinking": "x" * 400}
    assert count(messages=[{"role": "assistant", "content": [call, thinking]}]) == 5
    assert count(messages=[{"role": "user", "content": [result, "odd"]}]) == 13
    assert count(tools=[{"name": "a"}]) == 286 + 3


def test_media_count_by_size_and_tier() -> None:
    """Images cost by what the model sees of them, PDFs by page, texts as text."""
    png = base64.b64encode(b"\x89PNG\r\n\x1a\n" + b"\0\0\0\rIHDR" + (2000).to_bytes(4) + (1500).to_bytes(4)).decode()
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": png}}
    pdf = {
        "type": "document",
        "source": {"type": "base64", "data": base64.b64encode(b"%PDF /Type /Page /Type/Page").decode()},
    }
    plain = {"type": "document", "source": {"type": "text", "data": "x" * 40}}

    def count(block: object, model: str) -> int:
        return count_input({"messages": [{"role": "user", "content": [block]}]}, MODELS[model]) - 3

    assert count(image, OLD.id) == 1564
    assert count(image, NEW.id) == 3888
    assert count({"type": "image", "source": {"type": "url"}}, NEW.id) == 1568
    assert count(pdf, NEW.id) == 4000
    assert count(plain, NEW.id) == 10
