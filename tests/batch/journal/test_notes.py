from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from penstock import JournalError
from penstock.batch.journal.notes import JournalNotes

if TYPE_CHECKING:
    from pathlib import Path


def test_notes_are_there_again(tmp_path: Path) -> None:
    """In order, from one run to the next, for their owner alone."""
    path = tmp_path / "a.state"
    notes = JournalNotes(path)
    assert not path.exists()
    notes.add({"batch": "msgbatch_1", "key": "key-1"})
    notes.add({"ended": "msgbatch_1"})
    notes.close()
    notes.close()
    assert path.stat().st_mode & 0o777 == 0o600
    again = JournalNotes(path)
    again.add({"batch": "msgbatch_2"})
    assert again.all == [{"batch": "msgbatch_1", "key": "key-1"}, {"ended": "msgbatch_1"}, {"batch": "msgbatch_2"}]
    assert repr(again) == "<JournalNotes a.state, 3 notes>"
    again.close()


def test_a_note_that_was_cut_off_never_was(tmp_path: Path) -> None:
    """At every byte: the ones before it stay, and others can follow."""
    path = tmp_path / "a.state"
    whole = b'{"batch":1}\n{"batch":2}\n'
    for end in range(len(whole)):
        path.write_bytes(whole[:end])
        notes = JournalNotes(path)
        assert notes.all == [{"batch": 1}, {"batch": 2}][: whole[:end].count(b"\n")]
        notes.add({"batch": 3})
        notes.close()
        again = JournalNotes(path)
        assert again.all[-1] == {"batch": 3}
        again.close()


@pytest.mark.parametrize("text", ["nonsense\n", '{"batch":1}\n[]\n', "\n"])
def test_what_is_no_note_is_told(tmp_path: Path, text: str) -> None:
    """By the number of its line; the file is given back."""
    path = tmp_path / "a.state"
    path.write_text(text)
    for _ in range(2):
        with pytest.raises(JournalError, match=f"line {text.count(chr(10))} is no JSON object"):
            JournalNotes(path)
    assert path.read_text() == text


def test_notes_that_can_t_be_looked_for_are_told(tmp_path: Path) -> None:
    """A name may be just short enough for the journal and too long for its notes."""
    with pytest.raises(JournalError, match="too long"):
        JournalNotes(tmp_path / ("a" * 300))
