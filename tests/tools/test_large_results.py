"""Results that are made to cost, or made carelessly: answered with the bound, in a moment."""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass
from typing import Any

import pytest
from pydantic import BaseModel

from penstock.tools.content import result_of

TEXT = {"type": "text", "text": "Hello"}
MOST = 100_000


class Rows(BaseModel):
    rows: list[int]


@dataclass
class Row:
    cells: list[int]


def image(characters: int) -> dict[str, Any]:
    """A block with so much in it."""
    return {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "A" * characters}}


LARGE: dict[str, tuple[Any, str]] = {
    "a million blocks": ([TEXT] * 1_000_000, "50000 values"),
    "some thousand blocks": ([TEXT] * 1_001, "1000 content blocks"),
    "a search result of a million parts": (
        {"type": "search_result", "source": "s", "title": "t", "content": [TEXT] * 1_000_000},
        "50000 values",
    ),
    "search results of many parts": (
        [{"type": "search_result", "source": "s", "title": "t", "content": [TEXT] * 500}] * 3,
        "1000 content blocks",
    ),
    "a million numbers": (list(range(1_000_000)), "list of more than 50000 values"),
    "many small lists": ([[1, 2, 3]] * 30_000, "50000 values"),
    "many keys": ([{"a": 1, "b": 2}] * 15_000, "50000 values"),
    "a set": (set(range(60_000)), "50000 values"),
    "a model": (Rows(rows=list(range(60_000))), "Rows of more than 50000 values"),
    "a dataclass": (Row(list(range(60_000))), "Row of more than 50000 values"),
    "no end": (itertools.count(), "50000 values"),
    "a long text in a dict": ({"html": "x" * 50_000_000}, "4000000 characters of JSON"),
    "a long key": ({"x" * 5_000_000: 1}, "4000000 characters of JSON"),
    "a large image": (image(50_000_000), "10000000 characters of images"),
    "large images": ([image(6_000_000)] * 2, "10000000 characters of images"),
}


@pytest.mark.parametrize("name", LARGE)
def test_what_is_too_large_is_told_in_a_moment(name: str) -> None:
    """Nothing of it is copied or written: it is measured, and not further than the bound."""
    value, bound = LARGE[name]
    began = time.process_time()
    result = result_of(value, most=MOST)
    assert time.process_time() - began < 0.15
    assert result.is_error
    assert f"more than {bound}" in result.text or bound in result.text
    assert len(result.text) < 200


@pytest.mark.lengthy
@pytest.mark.parametrize(
    "value",
    [
        [TEXT] * 1_000,
        image(9_000_000),
        [{"type": "text", "text": "x" * 50_000_000}],
        "x" * 50_000_000,
        list(range(49_000)),
        iter(range(49_000)),
        {"html": "x" * 3_900_000},
        [("a", 1, 2.5, None, True)] * 8_000,
    ],
    ids=["blocks", "image", "text block", "text", "numbers", "iterator", "html", "rows"],
)
def test_what_is_large_and_may_be_is_sent_or_cut(value: Any) -> None:
    """As ever."""
    result = result_of(value, most=MOST)
    assert not result.is_error
    assert len(result.text) <= MOST + 100


def test_the_bound_grows_with_what_may_be_sent() -> None:
    """Who allows long results gets them."""
    assert not result_of(list(range(60_000)), most=1_000_000).is_error
    assert not result_of({"html": "x" * 5_000_000}, most=6_000_000).is_error


def test_an_iterator_that_raises_is_a_failure() -> None:
    """Like any tool that raises."""
    result = result_of((1 // number for number in (1, 0)), most=MOST)
    assert result.is_error
    assert "ZeroDivisionError" in result.text
