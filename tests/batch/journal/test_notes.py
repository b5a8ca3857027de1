from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

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


def written(path: Path, *notes: dict[str, Any]) -> bytes:
    """Note all that is given; return what then stands in the file."""
    held = JournalNotes(path)
    for note in notes:
        held.add(note)
    held.close()
    return path.read_bytes()


def read(path: Path) -> list[dict[str, Any]]:
    """All notes."""
    held = JournalNotes(path)
    held.close()
    return held.all


BEFORE = b'{"message_batch": "planned", "number": 1}\n{"message_batch": "made", "number": 1}\n'


def test_a_note_that_was_cut_off_never_was(tmp_path: Path) -> None:
    """At every byte, filled up with zeros or not, with a header or of before: the ones before it stay."""
    path = tmp_path / "a.state"
    for whole, header in ((written(path, {"batch": 1}, {"batch": 2}), 1), (BEFORE, 0)):
        path.write_bytes(whole)
        notes = read(path)
        for end in range(len(whole)):
            path.write_bytes(whole[:end] + bytes(end % 3))
            assert read(path) == notes[: max(0, whole[:end].count(b"\n") - header)]
            if end % 10 == 0:
                written(path, {"batch": 3})
                assert read(path)[-1] == {"batch": 3}


def test_notes_of_before_go_on(tmp_path: Path) -> None:
    """Without header and checksums; what is added has a checksum."""
    path = tmp_path / "a.state"
    path.write_bytes(BEFORE)
    assert written(path, {"message_batch": "over"}).startswith(BEFORE)
    assert [note["message_batch"] for note in read(path)] == ["planned", "made", "over"]


@pytest.mark.lengthy
def test_a_damaged_note_is_told(tmp_path: Path) -> None:
    """Whichever bit it is: a batch that it tells of is paid, so nobody goes on without it by himself."""
    path = tmp_path / "a.state"
    whole = written(path, {"batch": "msgbatch_1"}, {"batch": "msgbatch_2"})
    chance = random.Random(1)
    bits = [chance.randrange(len(whole) * 8) for _ in range(150)] + list(range(len(whole) * 8 - 200, len(whole) * 8))
    for bit in bits:
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        for _ in range(2):
            with pytest.raises(JournalError, match=r"is damaged|not ours"):
                JournalNotes(path)
        assert path.read_bytes() == damaged


@pytest.mark.parametrize(
    "text",
    ["nonsense\n", "no line", "\n", '{"batch":1}\n', '{"batch":1}\n[]\n', "[", '{"penstock":1}\n', "\ufeff", "{}"],
)
def test_a_file_of_somebody_else_is_never_touched(tmp_path: Path, text: str) -> None:
    """Neither read nor written, and given back: nothing in it says that it is ours."""
    path = tmp_path / "a.state"
    notes = JournalNotes(path)
    path.write_text(text)
    for _ in range(2):
        with pytest.raises(JournalError, match="it is there, and not ours"):
            JournalNotes(path)
        with pytest.raises(JournalError, match="it is there, and not ours"):
            notes.add({"batch": 1})
    assert path.read_text() == text


def test_notes_that_can_t_be_looked_for_are_told(tmp_path: Path) -> None:
    """A name may be just short enough for the journal and too long for its notes."""
    with pytest.raises(JournalError, match="too long"):
        JournalNotes(tmp_path / ("a" * 300))
