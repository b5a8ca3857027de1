from __future__ import annotations

import json
from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from penstock.batch.journal.file import JournalFile
from penstock.batch.journal.index import JournalIndex
from penstock.batch.journal.lines import Line, State

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

lines = st.lists(
    st.builds(
        Line,
        custom_id=st.sampled_from("abc"),
        state=st.sampled_from(State),
        request=st.integers(0, 2**64 - 1),
    )
)


def raw_of(line: Line, number: int) -> bytes:
    """A line that says as much, and its number."""
    result = {
        State.ANSWERED: {"type": "succeeded", "message": {}},
        State.FAILED: {"type": "errored"},
        State.UNASKED: {"type": "expired"},
    }[line.state]
    return json.dumps({"custom_id": line.custom_id, "result": result, "number": number}).encode()


class Held:
    """A file whose lines begin at 0, 1, 2 and so on."""

    def __init__(self, raws: list[bytes]) -> None:
        self._raws = raws

    def lines(self) -> Iterator[tuple[int, bytes]]:
        """All lines."""
        return iter(enumerate(self._raws))


def test_an_empty_index_knows_nothing() -> None:
    """And is asked for nothing."""
    index = JournalIndex()
    assert index.get("a") is None
    assert repr(index) == "<JournalIndex 0 answered, 0 failed, 0 lines superseded>"


@given(lines)
def test_the_last_line_counts_but_no_failure_replaces_an_answer(found: list[Line]) -> None:
    """As a dictionary of the lines tells, with numbers that add up."""
    index = JournalIndex()
    counts: dict[str, tuple[int, Line]] = {}
    for start, line in enumerate(found):
        index.take(line, start)
        if line.custom_id not in counts or not (
            counts[line.custom_id][1].state is State.ANSWERED and line.state is not State.ANSWERED
        ):
            counts[line.custom_id] = start, line
    states = [line.state for _, line in counts.values()]
    assert index.answered == states.count(State.ANSWERED)
    assert index.failed == states.count(State.FAILED)
    assert index.superseded == len(found) - len(counts)
    for custom_id, (start, line) in counts.items():
        entry = index.get(custom_id)
        assert entry is not None
        assert (entry.start, entry.state, entry.request) == (start, line.state, line.request)
        assert entry.ok == (line.state is State.ANSWERED)
    raws = [raw_of(line, start) for start, line in enumerate(found)]
    given_back = index.current(Held(raws))  # type: ignore[arg-type]
    assert list(given_back) == [raws[start] for start in sorted(start for start, _ in counts.values())]


def test_new_items_are_only_counted() -> None:
    """A run of a million new items takes no memory for them; one that had a line is followed."""
    index = JournalIndex()
    index.take_new(Line(custom_id="new", state=State.ANSWERED, request=1), 0)
    assert (index.answered, index.get("new")) == (1, None)
    index.take(Line(custom_id="old", state=State.FAILED, request=1), 1)
    index.take_new(Line(custom_id="new", state=State.FAILED, request=1), 2)
    index.take_new(Line(custom_id="old", state=State.ANSWERED, request=1), 3)
    entry = index.get("old")
    assert entry is not None
    assert entry.start == 3
    assert (index.answered, index.failed, index.superseded) == (2, 1, 1)


def test_loading_tells_what_was_cut_off(tmp_path: Path) -> None:
    """And gives a whole last line the newline that it lacks."""
    path = tmp_path / "a"
    whole = b'{"custom_id":"a","result":{"type":"errored"}}'
    for text, cut, left in (
        (whole, 0, whole + b"\n"),
        (whole + b"\n" + whole[:20], 20, whole + b"\n"),
        (b"", 0, b""),
        (b"\n\n", 0, b"\n\n"),
    ):
        path.write_bytes(text)
        file = JournalFile(path)
        assert JournalIndex().load(file) == cut
        file.close()
        assert path.read_bytes() == left
