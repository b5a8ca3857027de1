"""What disks, copies and other programs do to a journal: told, and never an answer that was not given."""

from __future__ import annotations

import json
import random
import re
import shutil
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import pytest
from anthropic.types import Message
from hypothesis import given
from hypothesis import strategies as st

from penstock import Client, FanOutResult, InvalidOutput, Journal, JournalError
from penstock.batch.journal.file import JournalFile
from penstock.batch.journal.index import JournalIndex
from penstock.batch.journal.lines import decode_line, write_line
from penstock.simulator import Simulator

if TYPE_CHECKING:
    from collections.abc import Callable

ASK = {"messages": [{"role": "user", "content": "Hi"}]}
GOLDEN = Path(__file__).parents[2] / "golden" / "journal.jsonl"


def answered(custom_id: str, text: str, **more: Any) -> FanOutResult:
    """An answer."""
    message = Message.construct(
        id="msg_1",
        type="message",
        role="assistant",
        model="claude-haiku-5-5",
        content=[{"type": "text", "text": text}],
        stop_reason="end_turn",
        usage={"input_tokens": 1234, "output_tokens": 567},
    )
    return FanOutResult(custom_id=custom_id, index=0, message=message, attempts=1, latency_s=1.25, **more)


RESULTS = [
    answered("1", "The sum is 4711.", labels={"user": "u1"}, queued_s=0.5),
    answered("2", 'J* Zürich 🦭 {"custom_id":"7","result":{"type":"expired"}}'),
    FanOutResult(custom_id="3", index=0, error=ValueError("no")),
    answered("4", "Grüezi", error=InvalidOutput(stop_reason="end_turn", problems=("missing",))),
    answered("five", "A last one"),
]


def line_of(result: FanOutResult, number: int) -> bytes:
    """A line with all that one may hold."""
    params = None if result.ok else {"model": "claude-haiku-5-5", "messages": [{"role": "user", "content": "Hi"}]}
    return write_line(result, request=f"{number:016x}", params=params, retryable=False)


NAMES = [result.custom_id for result in RESULTS]
LINES = [line_of(result, number) for number, result in enumerate(RESULTS)]


def told(result: FanOutResult) -> object:
    """All that counts of a result."""
    return result.to_dict(), result.labels, type(result.error).__name__


@cache
def as_read(custom_id: str) -> object:
    """What an undamaged journal gives."""
    (raw,) = (line for line, result in zip(LINES, RESULTS, strict=True) if result.custom_id == custom_id)
    return told(FanOutResult.from_line(json.loads(raw), index=0))


def check(path: Path, data: bytes) -> set[str]:
    """Load a journal that holds `data`: every item is as it was, or is asked again. Return those that are."""
    path.write_bytes(data)
    file, index = JournalFile(path), JournalIndex()
    try:
        repaired = index.load(file)
        again: set[str] = set()
        for name in NAMES:
            entry = index.get(name)
            if entry is None:
                again.add(name)
            else:
                assert told(FanOutResult.from_line(decode_line(file.line_at(entry.start)), index=0)) == as_read(name)
        assert bool(again) == bool(index.damaged or repaired)
        assert {json.loads(raw)["custom_id"] for raw in index.current(file)} == set(NAMES) - again
    finally:
        file.close()
    return again


def flipped(data: bytes, bit: int) -> bytes:
    """The same with one bit of it the other way."""
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


@pytest.mark.lengthy
@pytest.mark.parametrize("count", [1, len(LINES)])
def test_one_flipped_bit_is_told_and_costs_its_line_alone(tmp_path: Path, count: int) -> None:
    """Wherever it is: in ids, keys, digits, texts, the checksum, the newline; then its neighbour goes with it."""
    chance = random.Random(1)
    data = b"".join(LINES[:count])
    begins = [sum(map(len, LINES[:number])) for number in range(count + 1)]
    bits = [chance.randrange(len(data) * 8) for _ in range(150)]
    # The ends of the lines are where one is told from another.
    bits += [(begin + by) * 8 + bit for begin in begins[1:] for by in range(-24 // count, 0) for bit in range(8)]

    for bit in bits:
        (number,) = (number for number in range(count) if begins[number] <= bit // 8 < begins[number + 1])
        again = check(tmp_path / "run.jsonl", flipped(data, bit)) - set(NAMES[count:])
        expected = {NAMES[number]}
        if bit // 8 == begins[number + 1] - 1 and number + 1 < count:
            expected.add(NAMES[number + 1])
        assert again == expected, (bit, flipped(data, bit))


@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=4))
def test_no_damage_changes_an_answer(changes: list[tuple[int, int]]) -> None:
    """Any few bytes, anywhere, made any others."""
    data = bytearray(b"".join(LINES))
    for place, byte in changes:
        data[place % len(data)] = byte
    with TemporaryDirectory() as folder:
        check(Path(folder) / "run.jsonl", bytes(data))


async def test_what_is_damaged_is_asked_again(tmp_path: Path) -> None:
    """By a run, after which the journal holds every answer, and no damaged line."""
    path = tmp_path / "run.jsonl"
    prompts = [{"custom_id": name, "params": ASK} for name in NAMES]
    simulator = Simulator()
    async with Client(sdk=simulator.client(), log=False) as claude:
        await claude.map(prompts, model="claude-haiku-5-5", journal=path)
        chance = random.Random(2)
        for number in range(1, 6):
            size = path.stat().st_size
            path.write_bytes(flipped(path.read_bytes(), chance.randrange(8 * size)))
            results = await claude.map(prompts, model="claude-haiku-5-5", journal=path)
            assert all(result.ok for result in results)
            assert len(simulator.journal) >= len(NAMES) + number
            async with Journal(path) as journal:
                assert (journal.answered, journal.damaged_lines, journal.repaired_bytes) == (len(NAMES), 0, 0)


async def test_damage_is_told_once_with_its_place(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """In the log by the first line and their number, and by the journal; the text quotes nothing."""
    path = tmp_path / "run.jsonl"
    path.write_bytes(LINES[0] + LINES[1].replace(b"Z", b"S") + b"no JSON\n" + LINES[4])
    async with Journal(path) as journal:
        assert (journal.damaged_lines, journal.answered) == (2, 2)
    (record,) = caplog.records
    said = f"{path}: line 2 is damaged: its checksum doesn't fit. What can't be read (2 lines) is asked again"
    assert record.getMessage() == f"journal {said}"


async def test_damaged_lines_stay_until_something_was_written(tmp_path: Path) -> None:
    """Whoever only looks into a journal takes nothing away; a run, which asks again, does."""
    path = tmp_path / "run.jsonl"
    damaged = LINES[0] + LINES[1].replace(b"Z", b"S")
    path.write_bytes(damaged)
    async with Journal(path) as journal:
        assert len(list(journal.results())) == 1
    assert path.read_bytes() == damaged
    async with Journal(path) as journal:
        journal.write(RESULTS[4], request=None)
    assert [json.loads(line)["custom_id"] for line in path.read_text().splitlines()] == ["1", "five"]


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([b'{"name":"Kaprun","penstock":{"diameter_m":3}}\n'], "line 1 is damaged"),
        ([b'{"custom_id":"a","params":{}}\n', b"no JSON\n"], "line 1 is a request"),
        ([b'{"custom_id":"a","result":{"type":"expired"}}\n', b"no JSON\n"], "line 2 is not JSON"),
    ],
)
async def test_a_file_that_nothing_shows_to_be_a_journal_is_refused(
    tmp_path: Path, lines: list[bytes], said: str
) -> None:
    """A slip in the path must not cost anybody a file: it is as it was."""
    path = tmp_path / "run.jsonl"
    path.write_bytes(b"".join(lines))
    with pytest.raises(JournalError, match=said):
        await Journal(path).__aenter__()
    assert path.read_bytes() == b"".join(lines)


async def test_journals_without_checksums_load(tmp_path: Path) -> None:
    """Those of before are taken at their word, and get lines with checksums from now on."""
    path = tmp_path / "run.jsonl"
    path.write_bytes(re.sub(rb',?"crc32":"[0-9a-f]{8}"', b"", b"".join(LINES)))
    assert b"crc32" not in path.read_bytes()
    async with Journal(path) as journal:
        assert (journal.answered, journal.failed, journal.damaged_lines) == (3, 2, 0)
        journal.write(answered("six", "6"), request=None)
    assert path.read_bytes().count(b"crc32") == 1
    async with Journal(path) as journal:
        assert (journal.answered, journal.damaged_lines) == (4, 0)


async def test_a_golden_journal_of_before_is_read(tmp_path: Path) -> None:
    """As an earlier version wrote it."""
    path = tmp_path / "run.jsonl"
    shutil.copy(GOLDEN, path)
    async with Journal(path) as journal:
        assert (journal.answered, journal.damaged_lines) == (3, 0)
    assert b"crc32" not in path.read_bytes()


async def test_lines_that_another_program_has_saved_anew_are_whole(tmp_path: Path) -> None:
    """A byte order mark and Windows' newlines are no damage."""
    path = tmp_path / "run.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + b"".join(LINES).replace(b"\n", b"\r\n"))
    async with Journal(path) as journal:
        assert (journal.answered, journal.failed, journal.damaged_lines) == (3, 2, 0)


def overwritten(path: Path) -> None:
    """Another program writes zeros over the first line."""
    with path.open("r+b") as file:
        file.write(bytes(20))


@pytest.mark.parametrize("read", ["read", "results", "dead_letters"])
async def test_what_is_changed_after_it_was_read_is_told(tmp_path: Path, read: str) -> None:
    """Reading an answer back checks it again."""
    path = tmp_path / "run.jsonl"
    path.write_bytes(b"".join(LINES))
    async with Journal(path) as journal:
        entry = journal.find("1", None)
        assert entry is not None
        first = entry
        reads: dict[str, Callable[[Journal], object]] = {
            "read": lambda journal: journal.read(first, index=0),
            "results": lambda journal: list(journal.results()),
            "dead_letters": lambda journal: list(journal.dead_letters()),
        }
        overwritten(path)
        with pytest.raises(JournalError, match="another program has changed it while it was open") as raised:
            reads[read](journal)
    assert raised.value.path == str(path)
