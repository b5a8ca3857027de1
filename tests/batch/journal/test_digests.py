from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.batch.journal import digests
from penstock.batch.journal.digests import DigestMap, DigestSet


@given(st.lists(st.text(max_size=3)))
def test_a_set_knows_what_it_was_given(texts: list[str]) -> None:
    """A text is new once, and known from then on."""
    seen = DigestSet()
    known: set[str] = set()
    for text in texts:
        assert (text in seen) == (text in known)
        assert seen.add(text) == (text not in known)
        known.add(text)
    assert len(seen) == len(known)
    assert all(text in seen for text in texts)
    assert "longer than any of them" not in seen


@given(st.lists(st.tuples(st.text(max_size=2), st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))))
def test_a_map_gives_the_last_numbers(puts: list[tuple[str, int, int]]) -> None:
    """As a dictionary would, over many growths."""
    places = DigestMap()
    known: dict[str, tuple[int, int]] = {}
    for text, first, second in puts:
        places.put(text, first, second)
        known[text] = first, second
    assert len(places) == len(known)
    assert {text: places.get(text) for text in known} == known
    assert places.get("longer than any of them") is None


def test_texts_that_meet_in_a_place_are_kept_apart() -> None:
    """Thousands in 64 shards collide all the time, at the end of a shard too."""
    places = DigestMap()
    for number in range(5000):
        places.put(f"item-{number}", number, number * 2)
    assert all(places.get(f"item-{number}") == (number, number * 2) for number in range(5000))
    assert places.get("item-5000") is None


@pytest.mark.lengthy
def test_a_text_takes_no_more_than_16_bytes() -> None:
    """At any number beyond the first few hundred, growth included."""
    seen = DigestSet()
    for number in range(60_000):
        seen.add(f"item-{number}")
        if number > 2000 and number % 500 == 0:
            assert seen.size_bytes <= 16 * (number + 1)
    assert repr(seen) == f"<DigestSet 60000 texts, {seen.size_bytes} bytes>"


def test_a_hash_of_zero_is_a_text_too() -> None:
    """Zero marks an empty place, so that no digest may be it."""
    seen = DigestSet()
    assert seen.add("")
    assert "" in seen
    assert digests._digest("") != 0


def test_a_map_tells_its_size() -> None:
    """How many, and how much they take."""
    places = DigestMap()
    assert repr(places) == "<DigestMap 0 texts, 0 bytes>"
    places.put("a", 1, 2)
    assert repr(places) == "<DigestMap 1 texts, 192 bytes>"
