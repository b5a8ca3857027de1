# ruff: noqa: ASYNC240 - small files of the test's own
from __future__ import annotations

import gc
import json
import logging
import os
import stat
import threading
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread
import pytest
from anthropic.types import Message
from hypothesis import given
from hypothesis import strategies as st

from penstock import FanOutResult, ItemFailed, Journal, JournalError
from penstock.batch.journal.file import JournalFile
from penstock.batch.journal.request import RequestDigest
from penstock.testing import Cancelled, VirtualLoop, cancel_at_every_await

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from penstock.testing.cancellation import How
    from penstock.testing.plugin import VirtualTime

ONE, TWO = "0000000000000001", "0000000000000002"


def answered(custom_id: str, text: str = "Hi") -> FanOutResult:
    """An answer."""
    message = Message.construct(
        id="msg_1",
        type="message",
        role="assistant",
        model="claude-haiku-5-5",
        content=[{"type": "text", "text": text}],
        stop_reason="end_turn",
        usage={"input_tokens": 1, "output_tokens": 1},
    )
    return FanOutResult(custom_id=custom_id, index=0, message=message)


def failed(custom_id: str) -> FanOutResult:
    """A failure."""
    return FanOutResult(custom_id=custom_id, index=0, error=ValueError("no"))


def text_of(result: FanOutResult) -> str:
    """What an answer says."""
    assert result.message is not None
    (block,) = result.message.content
    assert block.type == "text"
    return block.text


def run(main: Callable[[], Awaitable[object]]) -> None:
    """Run on virtual time; Hypothesis and fixtures don't go together."""
    anyio.run(main, backend_options={"loop_factory": VirtualLoop})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where a journal is to be."""
    return tmp_path / "run.jsonl"


class TestResume:
    async def test_what_was_written_is_found_by_the_next_run(self, path: Path) -> None:
        """Answered and failed items, by their ids."""
        async with Journal(path) as journal:
            journal.write(answered("a", "one"), request=ONE)
            journal.write(failed("b"), request=TWO)
            journal.write(answered("c", "three"), request=None)
            assert (journal.answered, journal.failed) == (2, 1)
        async with Journal(str(path)) as journal:
            assert repr(journal) == "<Journal run.jsonl, 2 answered, 1 failed>"
            a, b, c = (journal.find(name, None) for name in "abc")
            assert a is not None
            assert b is not None
            assert c is not None
            assert (a.ok, b.ok, c.ok) == (True, False, True)
            assert [journal.find("a", ONE), journal.find("b", TWO), journal.find("c", TWO)] == [a, b, c]
            assert journal.find("d", ONE) is None
            result = journal.read(a, index=7)
            assert (text_of(result), result.index, result.ok, result.replayed) == ("one", 7, True, True)
            error = journal.read(b, index=8).error
            assert isinstance(error, ItemFailed)
            assert (error.result, error.error_type) == ("errored", "ValueError")
            assert journal.find("a", TWO) == a

    async def test_a_plain_prompt_is_known_by_its_place_and_its_words(self, path: Path) -> None:
        """Another model is no other prompt; where nothing is known of what was asked, the place will do."""
        ask, other = {"messages": [1]}, {"messages": [2]}
        asked = RequestDigest({"model": "one"})(ask)
        async with Journal(path) as journal:
            journal.write(answered("0"), request=asked)
            journal.write(failed("1"), request=asked)
            journal.write(answered("2"), request=None)
        async with Journal(path) as journal:
            assert journal.find("0", RequestDigest({"model": "two"})(ask), by_place=True)
            for changed in (RequestDigest({"model": model})(other) for model in ("one", "two")):
                for name in "01":
                    with pytest.raises(JournalError, match=f"item {name} was another prompt"):
                        journal.find(name, changed, by_place=True)
                assert journal.find("1", changed, by_place=True, retry_failed=True) is None
                assert journal.find("2", changed, by_place=True)

    async def test_what_another_run_can_mend_is_asked_as_if_there_were_no_line(self, path: Path) -> None:
        """It is on record, but neither failed nor a dead letter; a later answer takes its place."""
        async with Journal(path) as journal:
            journal.write(failed("a"), request=ONE, retryable=True)
            assert (journal.answered, journal.failed) == (0, 0)
        assert json.loads(path.read_text())["penstock"]["retryable"] is True
        async with Journal(path) as journal:
            assert (journal.answered, journal.failed) == (0, 0)
            assert journal.find("a", ONE) is None
            assert list(journal.dead_letters()) == []
            journal.write(answered("a"), request=ONE)
        async with Journal(path) as journal:
            assert journal.answered == 1
        assert path.read_bytes().count(b"\n") == 1

    async def test_a_changed_request_takes_the_place_of_a_failure_only_if_that_is_wanted(self, path: Path) -> None:
        """What was answered stays answered, whatever it would be asked now."""
        async with Journal(path) as journal:
            journal.write(answered("a"), request=ONE)
            journal.write(failed("b"), request=ONE)
        async with Journal(path) as journal:
            entry = journal.find("b", TWO)
            assert entry is not None
            assert not entry.ok
            assert journal.find("b", TWO, retry_failed=True) is None
            assert journal.find("a", TWO, retry_failed=True)
            journal.write(answered("b"), request=TWO)
            assert (journal.answered, journal.failed) == (2, 0)
            assert journal.find("b", ONE, retry_failed=True)
        assert path.read_bytes().count(b"\n") == 2

    async def test_an_item_asked_again_has_one_line_in_the_end(self, path: Path) -> None:
        """While it is open the last counts; once it is closed there is no other."""
        async with Journal(path) as journal:
            for name in "abc":
                journal.write(failed(name), request=ONE)
        async with Journal(path) as journal:
            journal.write(answered("b"), request=TWO)
            journal.write(failed("c"), request=ONE)
            assert (journal.answered, journal.failed) == (1, 2)
            assert path.read_bytes().count(b"\n") == 5
            entry = journal.find("b", TWO)
            assert entry is not None
            assert journal.read(entry, index=0).ok
            assert [result.custom_id for result in journal.results()] == ["a", "b", "c"]
        assert [json.loads(line)["custom_id"] for line in path.read_text().splitlines()] == ["a", "b", "c"]
        assert [each.name for each in path.parent.iterdir()] == ["run.jsonl"]

    async def test_a_cancelled_run_is_closed_in_order(self, path: Path) -> None:
        """A time limit, or a consumer that left, is no reason to leave lines that no longer count."""
        async with Journal(path) as journal:
            journal.write(failed("a"), request=ONE)
        with anyio.CancelScope() as scope:
            async with Journal(path) as journal:
                journal.write(answered("a"), request=ONE)
                scope.cancel()
        assert path.read_bytes().count(b"\n") == 1
        assert b"succeeded" in path.read_bytes()

    async def test_a_killed_runs_second_lines_are_taken_out_by_the_next(self, path: Path) -> None:
        """Even if that asks nothing again."""
        async with Journal(path) as journal:
            journal.write(failed("a"), request=ONE)
        with path.open("ab") as file:
            file.write(json.dumps(answered("a").to_dict()).encode() + b"\n")
        async with Journal(path) as journal:
            assert (journal.answered, journal.failed) == (1, 0)
        assert path.read_bytes().count(b"\n") == 1
        assert b"succeeded" in path.read_bytes()

    async def test_lines_that_cannot_be_taken_out_stay(
        self, path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """All is there all the same, and it is logged."""
        async with Journal(path) as journal:
            journal.write(failed("a"), request=ONE)

        def full(self: JournalFile, lines: object) -> None:
            raise JournalError(str(self.path), "there is no room")

        monkeypatch.setattr(JournalFile, "replace", full)
        async with Journal(path) as journal:
            journal.write(answered("a"), request=ONE)
        assert path.read_bytes().count(b"\n") == 2
        assert "keeps lines that no longer count: there is no room" in caplog.text
        async with Journal(path) as journal:
            entry = journal.find("a", ONE)
            assert entry is not None
            assert entry.ok

    async def test_a_file_of_message_batches_is_a_journal(self, path: Path) -> None:
        """What was cancelled or expired there is asked again, and then has one line."""
        path.write_text(
            '{"custom_id":"a","result":{"type":"succeeded","message":{"content":[]}}}\n'
            '{"custom_id":"b","result":{"type":"expired"}}\n'
            '{"custom_id":"c","result":{"type":"canceled"}}\n'
            '{"custom_id":"d","result":{"type":"errored","error":{"type":"error","error":{"type":"x"}}}}\n'
        )
        async with Journal(path) as journal:
            assert (journal.answered, journal.failed) == (1, 1)
            assert journal.find("a", ONE) is not None
            assert journal.find("b", ONE) is None
            assert journal.find("c", ONE) is None
            assert [letter.custom_id for letter in journal.dead_letters()] == ["d"]
            journal.write(answered("b"), request=ONE)
        assert [json.loads(line)["custom_id"] for line in path.read_text().splitlines()] == ["a", "c", "d", "b"]

    async def test_dead_letters_say_why(self, path: Path) -> None:
        """And what was asked, only if that is to be kept, and only of those that failed."""
        for keep, kept in ((False, [None, None]), (True, [{"model": "m"}, None])):
            path.unlink(missing_ok=True)
            async with Journal(path, keep_params=keep) as journal:
                journal.write(failed("a"), request=ONE, params={"model": "m", "timeout": 5})
                journal.write(answered("b"), request=ONE, params={"model": "m", "system": "secret"})
                journal.write(failed("c"), request=ONE)
                letters = list(journal.dead_letters())
            assert [letter.custom_id for letter in letters] == ["a", "c"]
            assert [letter.params for letter in letters] == kept
            assert str(letters[0].error) == "the item errored: ValueError"
            assert "secret" not in path.read_text()


class TestRepair:
    @given(
        items=st.lists(st.tuples(st.sampled_from("abcd"), st.booleans(), st.text(max_size=9)), min_size=1, max_size=4),
        where=st.floats(0, 1),
    )
    def test_cut_off_anywhere_no_line_before_it_is_lost(self, items: list[tuple[str, bool, str]], where: float) -> None:
        """What had its newline, or all but that, is there, and writing goes on behind it."""
        with TemporaryDirectory() as folder:
            path = Path(folder) / "run.jsonl"
            run(lambda: self._cut(path, items, lambda size: [int(where * size)]))

    @pytest.mark.lengthy
    def test_cut_off_at_any_byte_no_line_before_it_is_lost(self, path: Path) -> None:
        """The same for each byte of a journal of two lines."""
        run(lambda: self._cut(path, [("a", False, ""), ("b", True, "Hi")], range))

    async def _cut(self, path: Path, items: list[tuple[str, bool, str]], cuts: Callable[[int], Iterable[int]]) -> None:
        names = [f"{name}{number}" for number, (name, _, _) in enumerate(items)]
        ends: list[int] = []
        async with Journal(path) as journal:
            for name, (_, ok, text) in zip(names, items, strict=True):
                journal.write(answered(name, text) if ok else failed(name), request=ONE)
                ends.append(path.stat().st_size)
        whole = path.read_bytes()
        for cut in cuts(len(whole)):
            path.write_bytes(whole[:cut])
            left = [name for name, end in zip(names, ends, strict=True) if cut >= end - 1]
            async with Journal(path) as journal:
                assert [result.custom_id for result in journal.results()] == left
                assert all(journal.find(name, ONE) for name in left)
                assert journal.repaired_bytes == (0 if cut + 1 in ends else cut - max([0, *ends[: len(left)]]))
                journal.write(answered("next"), request=ONE)
            assert path.read_bytes().count(b"\n") == len(left) + 1

    @given(before=st.integers(0, 2), garbage=st.binary(min_size=1, max_size=30).filter(lambda raw: b"\n" not in raw))
    def test_garbage_between_lines_is_told_and_left(self, before: int, garbage: bytes) -> None:
        """The number of its line is in the message, nothing is changed, and the file is given back."""
        line = json.dumps(answered("a").to_dict()).encode() + b"\n"

        async def main() -> None:
            with TemporaryDirectory() as folder:
                path = Path(folder) / "run.jsonl"
                text = line * before + garbage + b"\n" + line
                path.write_bytes(text)
                for _ in range(2):
                    with pytest.raises(JournalError, match=f"line {before + 1} is .*Nothing was changed"):
                        async with Journal(path):
                            pass
                assert path.read_bytes() == text

        if garbage.strip():
            run(main)

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("my notes", "line 1 is not JSON"),
            ('{"model":"m"}', "line 1 is no result"),
            ('{"custom_id":"a","params":{}}\n', "line 1 is a request, not a result"),
            ("id,answer\n1,yes\n", "line 1 is not JSON"),
        ],
    )
    async def test_a_file_of_another_kind_is_left_alone(self, path: Path, text: str, said: str) -> None:
        """A slip in the path must not cost the file that it leads to."""
        path.write_text(text)
        with pytest.raises(JournalError, match=said):
            async with Journal(path):
                pass
        assert path.read_text() == text

    async def test_a_torn_line_is_logged(self, path: Path, caplog: pytest.LogCaptureFixture) -> None:
        """With its length, and not its text."""
        path.write_text('{"custom_id":"secret')
        with caplog.at_level(logging.WARNING, "penstock"):
            async with Journal(path) as journal:
                assert journal.repaired_bytes == 20
        assert "cut off a torn last line of 20 bytes" in caplog.text
        assert "secret" not in caplog.text

    @pytest.mark.lengthy
    async def test_a_very_long_line_is_read(self, path: Path) -> None:
        """An answer of many megabytes is a line like any other."""
        async with Journal(path) as journal:
            journal.write(answered("a", "x" * 20_000_000), request=ONE)
            journal.write(answered("b"), request=ONE)
        async with Journal(path) as journal:
            entry = journal.find("a", ONE)
            assert entry is not None
            assert len(text_of(journal.read(entry, index=0))) == 20_000_000
            assert journal.answered == 2


class TestLife:
    async def test_one_journal_of_a_file_is_open_at_a_time(self, path: Path) -> None:
        """The second is refused at once, and may come when the first is closed."""
        async with Journal(path):
            with pytest.raises(JournalError, match="another journal of it is open"):
                await Journal(path).__aenter__()
        async with Journal(path):
            pass

    async def test_it_is_used_inside_its_block(self, path: Path) -> None:
        """And once."""
        journal = Journal(path)
        assert journal.notes == []
        for use in (
            lambda: journal.write(answered("a"), request=ONE),
            lambda: journal.note({}),
            lambda: list(journal.results()),
        ):
            with pytest.raises(RuntimeError, match="inside `async with"):
                use()
        async with journal:
            with pytest.raises(RuntimeError, match="opened once"):
                await journal.__aenter__()
        with pytest.raises(RuntimeError, match="inside `async with"):
            journal.write(answered("a"), request=ONE)
        await journal.sync()

    def test_a_thread_that_comes_too_late_opens_nothing(self, path: Path) -> None:
        """Whoever was to use it was cancelled before the thread began."""
        journal = Journal(path)
        journal._close()
        journal._open()
        assert not path.exists()

    @pytest.mark.parametrize("fsync_s", [0, -1.0, float("nan")])
    def test_a_bad_interval_is_refused(self, path: Path, fsync_s: float) -> None:
        """Zero would sync without end."""
        with pytest.raises(ValueError, match="fsync_s must be a number of seconds above 0"):
            Journal(path, fsync_s=fsync_s)

    async def test_notes_lie_beside_it(self, path: Path) -> None:
        """In a file of their own, so that the results are nothing but results."""
        async with Journal(path) as journal:
            assert journal.notes == []
            journal.note({"batch": "msgbatch_1"})
            assert journal.notes == [{"batch": "msgbatch_1"}]
        assert path.read_bytes() == b""
        async with Journal(path) as journal:
            assert journal.notes == [{"batch": "msgbatch_1"}]
        beside = path.with_name("run.jsonl.state")
        assert [stat.S_IMODE(each.stat().st_mode) for each in (path, beside)] == [0o600, 0o600]
        beside.write_text("nonsense\n")
        for _ in range(2):
            with pytest.raises(JournalError, match=r"run.jsonl.state: it is there, and not ours"):
                await Journal(path).__aenter__()

    async def test_the_disk_is_synced_every_so_often(
        self, path: Path, virtual_time: VirtualTime, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """While there is news, and once more when it is closed; not when nothing came."""
        synced: list[float] = []
        monkeypatch.setattr(JournalFile, "sync", lambda self: synced.append(virtual_time.now()))
        async with Journal(path, fsync_s=2.0) as journal, anyio.create_task_group() as group:
            group.start_soon(journal.keep_synced)
            await anyio.sleep(10)
            assert synced == []
            for _ in range(100):
                journal.write(answered("a"), request=ONE)
                await anyio.sleep(0.05)
            await anyio.sleep(100)
            assert synced == [pytest.approx(when, abs=0.1) for when in (12, 14, 16)]
            group.cancel_scope.cancel()
        assert len(synced) == 4

    async def test_syncing_does_not_hold_up_the_loop(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A slow disk is waited for in a thread."""
        loop_thread, threads = threading.get_ident(), []
        real = os.fsync

        def slow(descriptor: int) -> None:
            threads.append(threading.get_ident())
            real(descriptor)

        monkeypatch.setattr(os, "fsync", slow)
        async with Journal(path) as journal:
            journal.write(answered("a"), request=ONE)
            await journal.sync()
        assert len(threads) >= 3
        assert loop_thread not in threads

    async def test_a_disk_that_fails_to_sync_is_told(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """By whoever syncs, and at the end; the file is given back."""

        def broken(descriptor: int) -> None:
            raise OSError(5, "Input/output error")

        journal = await Journal(path).__aenter__()
        monkeypatch.setattr(os, "fsync", broken)
        with pytest.raises(JournalError, match="Input/output error"):
            await journal.sync()
        with pytest.raises(JournalError, match="Input/output error"):
            await journal.__aexit__(None, None, None)
        monkeypatch.undo()
        async with Journal(path):
            pass

    async def test_after_a_write_that_failed_nothing_is_written(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """And closing it is no second error."""
        async with Journal(path) as journal:
            journal.write(answered("a"), request=ONE)

            def full(descriptor: int, data: bytes) -> int:
                raise OSError(28, "No space left on device")

            with monkeypatch.context() as patch:
                patch.setattr(os, "write", full)
                with pytest.raises(JournalError, match="no room"):
                    journal.write(answered("b"), request=ONE)
            with pytest.raises(JournalError, match="no room"):
                journal.write(answered("c"), request=ONE)
            assert journal.answered == 1
        assert path.read_bytes().count(b"\n") == 1


HOWS: tuple[How, ...] = ("waiting", "done", "repeatedly")


def descriptors() -> int:
    """Open files of this process."""
    gc.collect()
    folder = Path("/proc/self/fd")
    return len(list(folder.iterdir())) if folder.exists() else 0


async def threads_idle() -> None:
    """Wait until the journals' threads have ended."""
    for thread in threading.enumerate():
        if thread.name.startswith("penstock-journal"):
            await anyio.to_thread.run_sync(thread.join)


@pytest.mark.lengthy
@pytest.mark.parametrize("how", HOWS)
async def test_cancelled_anywhere_it_is_closed_and_whole(tmp_path: Path, how: How) -> None:
    """The lock is given back, no file stays open, and what `write` returned from is there."""
    path = tmp_path / "run.jsonl"

    async def use(written: list[str]) -> None:
        async with Journal(path, fsync_s=0.01) as journal:
            for name in "ab":
                journal.write(answered(name), request=ONE)
                written.append(name)
                await journal.sync()
            journal.note({"x": 1})

    async def scenario(cancelled: Cancelled) -> None:
        path.unlink(missing_ok=True)
        await threads_idle()
        before = descriptors()
        written: list[str] = []
        await cancelled(use(written))
        await threads_idle()
        assert descriptors() == before
        async with Journal(path) as journal:
            assert [result.custom_id for result in journal.results()] == written

    assert await cancel_at_every_await(scenario, how=how) >= 4
