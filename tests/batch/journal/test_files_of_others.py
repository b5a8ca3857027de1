# ruff: noqa: ASYNC240 - small files of the test's own
"""Files that are not ours, and programs that don't know that ours is in use."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

from penstock import Client, FanOutResult, Journal, JournalError
from penstock.batch.journal.file import JournalFile
from penstock.simulator import Simulator

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

ONE = FanOutResult(custom_id="a", index=0, error=ValueError("no"))
BESIDE = [
    "state",
    "new",
    "lock",
    "tmp",
    "bak",
    "old",
    "part",
    "partial",
    "swp",
    "journal",
    "1",
    "new.state",
    "state.new",
]


@pytest.mark.parametrize("text", ["my own text", "", '{"custom_id":"a","result":{"type":"expired"}}\n'])
async def test_what_stands_beside_a_journal_stays_as_it_is(tmp_path: Path, text: str) -> None:
    """Whatever its name: while the journal is made, written, gone on with, and freed of lines that no longer count."""
    path = tmp_path / "run.jsonl"
    others = [tmp_path / f"run.jsonl.{end}" for end in BESIDE if end != "state"]
    others += [tmp_path / f".{other.name}" for other in others] + [tmp_path / "run.state", tmp_path / "run.new"]
    for other in others:
        other.write_text(text)
    for _ in range(2):
        async with Journal(path) as journal:
            journal.write(ONE, request=None)
            journal.note({"message_batch": "over", "number": 1})
    assert path.read_bytes().count(b"\n") == 1
    assert {other.read_text() for other in others} == {text}
    assert set(tmp_path.iterdir()) == {*others, path, tmp_path / "run.jsonl.state"}


async def test_a_file_of_the_user_s_where_notes_would_be_stops_the_run_before_it_begins(tmp_path: Path) -> None:
    """A fan-out as well as message batches; nothing is asked, and the file stays."""
    other = tmp_path / "run.jsonl.state"
    other.write_text("my own text")
    simulator = Simulator()
    async with Client(sdk=simulator.client(), log=False) as claude:
        begin: list[Callable[..., Any]] = [claude.fan_out, claude.batch]
        for run in begin:
            with pytest.raises(JournalError, match="it is there, and not ours"):
                async with run(["Hi"], model="claude-haiku-5-5", journal=tmp_path / "run.jsonl") as results:
                    await anext(results)
    assert (other.read_text(), len(simulator.journal)) == ("my own text", 0)


@pytest.mark.parametrize("name", ["run.jsonl", "run.jsonl.state"])
async def test_a_link_to_nowhere_is_refused(tmp_path: Path, name: str) -> None:
    """Whoever made it would say where answers go; nothing is made there."""
    (tmp_path / name).symlink_to(tmp_path / "elsewhere" / "target")
    (tmp_path / "elsewhere").mkdir()
    with pytest.raises(JournalError, match="it is a link to a file that is not there"):
        async with Journal(tmp_path / "run.jsonl") as journal:
            journal.note({"message_batch": "over", "number": 1})
    assert list((tmp_path / "elsewhere").iterdir()) == []


async def test_what_is_made_is_for_its_owner_alone(tmp_path: Path) -> None:
    """The journal, its notes, and a journal that was freed of lines, under any umask."""
    before = os.umask(0)
    try:
        for _ in range(2):
            async with Journal(tmp_path / "run.jsonl") as journal:
                journal.write(ONE, request=None)
                journal.note({"message_batch": "over", "number": 1})
            assert {each.stat().st_mode & 0o777 for each in tmp_path.iterdir()} == {0o600}
    finally:
        os.umask(before)


def emptied(path: Path) -> None:
    """As `> run.jsonl` in a shell does."""
    os.truncate(path, 0)


def cut(path: Path) -> None:
    """As a copy that goes wrong, or `truncate`."""
    os.truncate(path, path.stat().st_size - 1)


def removed(path: Path) -> None:
    """As `rm` does."""
    path.unlink()


def replaced(path: Path) -> None:
    """As an editor does."""
    (path.parent / "other").write_bytes(path.read_bytes())
    (path.parent / "other").replace(path)


TAKEN_AWAY = r"another program has changed it|it was moved or deleted"
CHANGES = [emptied, cut, removed, replaced]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("more", [0, 1])
async def test_what_another_program_takes_away_is_a_journal_error(
    tmp_path: Path, change: Callable[[Path], None], more: int
) -> None:
    """At the next sync and at the end at the latest, though the run writes on."""
    path = tmp_path / "run.jsonl"
    with pytest.raises(JournalError, match=TAKEN_AWAY):  # noqa: PT012 - wherever it is noticed
        async with Journal(path) as journal:
            for _ in range(2):
                journal.write(ONE, request=None)
            change(path)
            for _ in range(more):
                journal.write(ONE, request=None)


@pytest.mark.lengthy
@pytest.mark.parametrize("change", CHANGES)
async def test_a_run_whose_journal_is_taken_away_fails(tmp_path: Path, change: Callable[[Path], None]) -> None:
    """A hundred results without an error are a hundred lines."""
    path = tmp_path / "run.jsonl"
    async with Client(sdk=Simulator().client(), log=False) as claude:
        with pytest.raises(JournalError, match=TAKEN_AWAY):  # noqa: PT012 - wherever it is noticed
            # Few at once, or all may be written, and the journal closed, before the first result is looked at.
            async with claude.fan_out(
                map(str, range(100)), model="claude-haiku-5-5", journal=path, concurrency=2
            ) as results:
                async for result in results:
                    if result.index == 50:
                        change(path)


def test_lines_that_another_program_has_added_are_not_taken_out(tmp_path: Path) -> None:
    """Nobody knows what they are; the file stays as it is."""
    path = tmp_path / "run.jsonl"
    file = JournalFile(path)
    file.append(b"one\ntwo\n")
    with path.open("ab") as other:
        other.write(b"three\n")
    with pytest.raises(JournalError, match="another program has changed it"):
        file.replace(iter([b"one\n"]))
    file.close()
    assert path.read_bytes() == b"one\ntwo\nthree\n"
    assert list(tmp_path.iterdir()) == [path]
