from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.simulator.journal import Journal, JournalEntry


def entry(number: int) -> JournalEntry:
    """An entry of which only the number matters."""
    return JournalEntry(number=number, request_id="r", path="/", method="GET")


@given(size=st.integers(0, 40), added=st.integers(0, 200))
def test_the_newest_entries_are_kept(size: int, added: int) -> None:
    """Never more than the size, always the newest, at least nine tenths of what fits."""
    journal = Journal(size)
    for number in range(1, added + 1):
        journal.add(entry(number))
    numbers = [each.number for each in journal.entries]
    assert len(numbers) <= size
    assert len(numbers) >= min(added, size - size // 10)
    assert numbers == list(range(added - len(numbers) + 1, added + 1))


@given(number=st.integers(-3, 30))
def test_after_gives_later_entries_only(number: int) -> None:
    """Entries are found by number, also when the first ones are gone."""
    journal = Journal(10)
    for each in range(1, 21):
        journal.add(entry(each))
    kept = [each.number for each in journal.entries]
    assert [each.number for each in journal.after(number)] == [each for each in kept if each > number]


def test_an_empty_journal_has_nothing_after() -> None:
    """Nothing was asked, nothing is found."""
    assert Journal(10).after(0) == []
    assert repr(Journal(10)) == "Journal(0 of at most 10 entries)"
    with pytest.raises(ValueError, match="journal_size"):
        Journal(-1)
