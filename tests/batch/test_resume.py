# ruff: noqa: ASYNC240 - small files of the test's own
from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from typing import TYPE_CHECKING, Any

import anthropic
import anyio
import pytest

from penstock import Client, ClientClosed, FanOutResult, InvalidOutput, ItemFailed, Journal, JournalError, RetryOptions
from penstock.batch.journal.file import JournalFile
from penstock.simulator import Simulator
from penstock.simulator.server import serving
from penstock.testing import Cancelled, cancel_at_every_await

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Iterator
    from pathlib import Path

    from penstock.batch.fan_out import Order
    from penstock.testing.cancellation import How
    from penstock.testing.plugin import VirtualTime

MODEL = "claude-sonnet-5-5"
ORDERS: tuple[Order, ...] = ("completed", "input")
HOWS: tuple[How, ...] = ("waiting", "done", "repeatedly")


def governed(simulator: Simulator, **options: Any) -> Client:
    """Make a client that governs an SDK client of the simulator's."""
    return Client(sdk=simulator.client(), **{"log": False, "retry": RetryOptions(base_s=0.001), **options})


def request(name: str, text: str | None = None, **params: Any) -> dict[str, Any]:
    """An item."""
    return {"custom_id": name, "params": {"messages": [{"role": "user", "content": text or name}], **params}}


def ids(path: Path) -> list[str]:
    """Whose lines stand in a journal."""
    return [json.loads(line)["custom_id"] for line in path.read_text().splitlines()]


def asked(simulator: Simulator) -> Counter[str]:
    """How often each prompt was asked."""
    return Counter(entry.body["messages"][0]["content"] for entry in simulator.journal if entry.body)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where a journal is to be."""
    return tmp_path / "run.jsonl"


class TestResume:
    @pytest.mark.lengthy
    @pytest.mark.parametrize("order", ORDERS)
    async def test_what_is_answered_is_not_asked_again(
        self, path: Path, order: Order, virtual_time: VirtualTime
    ) -> None:
        """A run that was left early, and one that goes on from it: each item is asked once and has one line."""
        simulator = Simulator(latency_s=0.1)
        requests = [request(f"item {number}") for number in range(40)]
        first: list[FanOutResult] = []
        async with governed(simulator) as claude:
            async with claude.fan_out(requests, model=MODEL, journal=path, concurrency=4, order=order) as results:
                async for result in results:
                    first.append(result)
                    if len(first) == 10:
                        break
            written = set(ids(path))
            assert {result.custom_id for result in first} <= written
            async with claude.fan_out(requests, model=MODEL, journal=path, concurrency=4, order=order) as results:
                second = [result async for result in results]
        assert {result.custom_id for result in second} == {f"item {number}" for number in range(40)} - written
        assert not any(result.replayed for result in second)
        if order == "input":
            assert [result.index for result in second] == sorted(result.index for result in second)
        assert sorted(ids(path)) == sorted(f"item {number}" for number in range(40))
        counts = asked(simulator)
        assert set(counts.values()) <= {1, 2}
        # What was under way when the first run was left is asked again, and nothing else.
        assert sum(counts.values()) - 40 <= 4

    @pytest.mark.lengthy
    @pytest.mark.parametrize("order", ORDERS)
    async def test_what_is_answered_is_given_again_if_asked_for(self, path: Path, order: Order) -> None:
        """With the same message, at its place in the input."""
        simulator = Simulator()
        requests = [request(f"item {number}") for number in range(20)]
        async with governed(simulator) as claude:
            old = {result.custom_id: result for result in await claude.map(requests[5:15], model=MODEL, journal=path)}
            async with claude.fan_out(
                requests, model=MODEL, journal=path, replay=True, order=order, concurrency=3
            ) as results:
                seen = [result async for result in results]
        assert len(simulator.journal) == 20
        assert sorted(result.index for result in seen) == list(range(20))
        assert all(result.custom_id == f"item {result.index}" for result in seen)
        assert [result.replayed for result in sorted(seen, key=lambda result: result.index)] == [
            5 <= index < 15 for index in range(20)
        ]
        for result in seen:
            if result.replayed:
                assert result.message == old[result.custom_id].message
                assert result.cost_usd == old[result.custom_id].cost_usd
                assert (result.attempts, result.ok) == (1, True)

    async def test_map_gives_the_whole_list(self, path: Path) -> None:
        """What stands in the journal belongs to it, unless that is not wanted."""
        async with governed(Simulator()) as claude:
            for replayed in (0, 3):
                results = await claude.map(["a", "b", "c"], model=MODEL, journal=path)
                assert [result.index for result in results] == [0, 1, 2]
                assert sum(result.replayed for result in results) == replayed
            assert await claude.map(["a", "b", "c"], model=MODEL, journal=path, replay=False) == []

    async def test_what_failed_is_asked_again_if_that_is_wanted(self, path: Path) -> None:
        """Else it is passed over like an answer, or given again."""
        simulator = Simulator()
        bad = request("bad", messages=[])
        async with governed(simulator) as claude:
            first = await claude.map([bad, "x"], model=MODEL, journal=path)
            assert isinstance(first[0].error, anthropic.BadRequestError)
            assert len(simulator.journal) == 2
            (again, _) = await claude.map([bad, "x"], model=MODEL, journal=path)
            assert isinstance(again.error, ItemFailed)
            assert again.error.error_type == "invalid_request_error"
            assert again.to_dict() == first[0].to_dict()
            assert len(simulator.journal) == 2
            (retried, _) = await claude.map([bad, "x"], model=MODEL, journal=path, retry_failed=True)
            assert isinstance(retried.error, anthropic.BadRequestError)
            assert len(simulator.journal) == 3
        assert sorted(ids(path)) == ["1", "bad"]

    async def test_a_request_that_was_wrong_can_be_mended(self, path: Path) -> None:
        """A mistyped model fails all; with the right one, what failed is asked again, and what is answered is not."""
        simulator = Simulator()
        async with governed(simulator) as claude:
            first = await claude.map([request("a"), request("b", model="claude-hiku")], model=MODEL, journal=path)
            assert [result.ok for result in first] == [True, False]
            mended, changed = [request("a"), request("b")], [request("a", "other"), request("b")]
            (_, left) = await claude.map(mended, model=MODEL, journal=path)
            assert left.replayed
            again = await claude.map(mended, model=MODEL, journal=path, retry_failed=True)
            assert [(result.ok, result.replayed) for result in again] == [(True, True), (True, False)]
            assert len(simulator.journal) == 3
            for retry_failed in (False, True):
                for model in (MODEL, "claude-opus-5-5"):
                    kept = await claude.map(changed, model=model, journal=path, retry_failed=retry_failed)
                    assert [(result.ok, result.replayed) for result in kept] == [(True, True)] * 2
            assert len(simulator.journal) == 3
        assert sorted(ids(path)) == ["a", "b"]

    async def test_an_id_is_answered_or_it_is_not(self, path: Path) -> None:
        """Whatever it would be asked now: another prompt, another model, other params."""
        simulator = Simulator()
        async with governed(simulator) as claude:
            await claude.map([request("a"), request("b")], model=MODEL, journal=path)
            text = path.read_text()
            for options in ({"model": "claude-opus-5-5"}, {"model": MODEL, "max_tokens": 7}, {"model": MODEL}):
                for retry_failed in (False, True):
                    results = await claude.map(
                        [request("a", "other"), request("b")], journal=path, retry_failed=retry_failed, **options
                    )
                    assert [(result.ok, result.replayed) for result in results] == [(True, True)] * 2
        assert path.read_text() == text
        assert len(simulator.journal) == 2

    async def test_a_prompt_without_an_id_must_be_the_same(self, path: Path) -> None:
        """Its place is no name: another prompt in it never gets the old one's answer; another model is no matter."""
        simulator = Simulator()
        async with governed(simulator) as claude:
            await claude.map(["one", "two"], model=MODEL, journal=path)
            text = path.read_text()
            first, second = await claude.map(["two", "two"], model="claude-opus-5-5", journal=path)
            assert isinstance(first.error, JournalError)
            assert "item 0 was another prompt" in str(first.error)
            assert (second.ok, second.replayed) == (True, True)
        assert path.read_text() == text
        assert len(simulator.journal) == 2

    async def test_a_custom_id_that_comes_twice_is_an_error(self, path: Path) -> None:
        """Named; the first one is asked and kept."""
        simulator = Simulator()
        for journal in (None, path):
            items: list[Any] = [request("a"), request("a", "other"), "x", request("2")]
            async with governed(simulator) as claude:
                results = await claude.map(items, model=MODEL, journal=journal)
            assert [result.ok for result in results] == [True, False, True, False]
            assert "item 1 has the custom_id 'a', as one before it has" in str(results[1].error)
            assert "item 3 has the custom_id '2'" in str(results[3].error)
        assert sorted(ids(path)) == ["2", "a"]

    async def test_what_was_never_asked_for_reasons_of_the_moment_is_left_open(
        self, path: Path, virtual_time: VirtualTime
    ) -> None:
        """A closed client fails the rest of the input, and the next run asks for it."""
        simulator = Simulator(latency_s=1)
        claude = governed(simulator, close_timeout_s=0.1)
        await claude.__aenter__()
        async with claude.fan_out(["x"] * 20, model=MODEL, concurrency=4, journal=path) as results:
            for _ in range(4):
                assert (await anext(results)).ok
            await anyio.sleep(0.5)
            await claude.close()
            rest = [result async for result in results]
        assert {type(result.error) for result in rest} == {ClientClosed}
        async with Journal(path) as journal:
            assert (journal.answered, journal.failed, list(journal.dead_letters())) == (4, 0, [])
        async with governed(simulator) as claude:
            assert len(await claude.map(["x"] * 20, model=MODEL, journal=path)) == 20
        assert sorted(ids(path)) == sorted(map(str, range(20)))

    async def test_a_bad_item_is_not_written_down(self, path: Path) -> None:
        """It has no name, or none of its own; params that are no JSON can't be told apart from others."""
        items: list[Any] = [7, {"custom_id": "a"}, request("b", system=b"bytes"), request("c")]
        async with governed(Simulator()) as claude:
            results = await claude.map(items, model=MODEL, journal=path, keep_params=True)
        assert [type(result.error) for result in results[:3]] == [TypeError] * 3
        assert "params must be what JSON can hold, and bytes is not" in str(results[2].error)
        assert ids(path) == ["c"]

    async def test_dead_letters_keep_their_params_if_asked(self, path: Path) -> None:
        """Those that were sent, so that they can be asked again without the input."""
        simulator = Simulator()
        async with governed(simulator) as claude:
            await claude.map([request("a", messages=[])], model=MODEL, journal=path, keep_params=True)
            async with Journal(path) as journal:
                (letter,) = journal.dead_letters()
        assert letter.custom_id == "a"
        assert letter.params == simulator.journal[0].body

    async def test_labels_attempts_and_times_are_kept(self, path: Path, virtual_time: VirtualTime) -> None:
        """And read back."""
        simulator = Simulator(latency_s=2)
        simulator.inject("overloaded")
        item = {**request("a"), "labels": {"user": "u1"}}
        async with governed(simulator) as claude:
            results = [(await claude.map([item], model=MODEL, journal=path))[0] for _ in range(2)]
        assert [result.replayed for result in results] == [False, True]
        for result in results:
            assert (result.attempts, dict(result.labels)) == (2, {"user": "u1"})
            assert result.latency_s == pytest.approx(2, abs=0.1)

    @pytest.mark.lengthy
    async def test_ten_thousand_answered_items_are_passed_over_quickly(self, path: Path) -> None:
        """Without a turn of the loop for each, and without holding up the others."""
        line = '{"custom_id":"%d","result":{"type":"succeeded","message":{"content":[]}}}\n'
        path.write_text("".join(line % number for number in range(10_000)))
        turns = 0

        async def count() -> None:
            nonlocal turns
            while True:
                await anyio.lowlevel.checkpoint()
                turns += 1

        async def read(requests: Iterable[str]) -> None:
            async with governed(Simulator()) as claude, claude.fan_out(requests, model=MODEL, journal=path) as results:
                assert [result.index async for result in results] == [10_000]
            group.cancel_scope.cancel()

        async with anyio.create_task_group() as group:
            group.start_soon(count)
            group.start_soon(read, (str(number) for number in range(10_001)))
        assert turns > 50

    async def test_an_open_journal_stays_open(self, path: Path) -> None:
        """Whoever opened it closes it; several runs may share it, one after the other."""
        async with governed(Simulator()) as claude, Journal(path) as journal:
            await claude.map([request("a")], model=MODEL, journal=journal)
            await claude.map([request("b")], model=MODEL, journal=journal)
            assert journal.answered == 2
            with pytest.raises(ValueError, match="keep_params belongs to a journal of your own"):
                claude.fan_out([], journal=journal, keep_params=True)

    @pytest.mark.parametrize("option", ["retry_failed", "replay", "keep_params"])
    async def test_options_of_a_journal_need_one(self, option: str) -> None:
        """None is accepted and ignored."""
        options: dict[str, Any] = {option: True}
        async with governed(Simulator()) as claude:
            with pytest.raises(ValueError, match=f"{option} needs a journal"):
                claude.fan_out([], **options)

    async def test_no_second_run_writes_the_same_file(self, path: Path) -> None:
        """It is refused when it is entered, and asks nothing."""
        simulator = Simulator()
        async with governed(simulator) as claude, claude.fan_out(["x"], model=MODEL, journal=path):
            with pytest.raises(JournalError, match="another journal of it is open"):
                await claude.map(["x"], model=MODEL, journal=path)
        assert len(simulator.journal) <= 1

    async def test_parsed_answers_are_parsed_again(self, path: Path) -> None:
        """By the type of the run that goes on; what doesn't fit is a failure that can be asked again."""
        simulator = Simulator()
        async with governed(simulator) as claude:
            for _ in range(2):
                (result,) = await claude.map(["x"], model=MODEL, journal=path, output_format=int)
                assert type(result.parsed) is int
            assert len(simulator.journal) == 1
            (other,) = await claude.map(["x"], model=MODEL, journal=path, output_format=str)
            assert isinstance(other.error, InvalidOutput)
            assert other.replayed

    async def test_answers_that_do_not_fit_are_failures(self, path: Path) -> None:
        """They are written down with their answer, given again as failures, and asked again if that is wanted."""
        simulator = Simulator(output_tokens=lambda body: 1)
        asked_for: dict[str, Any] = {"model": MODEL, "journal": path, "output_format": list[str], "max_tokens": 1}
        async with governed(simulator) as claude:
            first = (await claude.map(["x"], **asked_for))[0]
            again = (await claude.map(["x"], **asked_for))[0]
            assert len(simulator.journal) == 1
            await claude.map(["x"], **asked_for, retry_failed=True)
            assert len(simulator.journal) == 2
        for result in (first, again):
            assert (type(result.error).__name__, result.ok) == ("InvalidOutput", False)
            assert result.message is not None
        assert ids(path) == ["0"]


class TestFaults:
    @pytest.mark.parametrize("order", ORDERS)
    async def test_a_journal_that_is_full_ends_the_run(
        self, path: Path, order: Order, virtual_time: VirtualTime, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What was written is given; what is under way is cancelled; then it is told, once."""
        simulator = Simulator(latency_s=1)
        real, written = JournalFile.append, 0

        def append(self: JournalFile, data: bytes) -> int:
            nonlocal written
            if written == 6:
                raise JournalError(str(self.path), "there is no room for more")
            written += 1
            return real(self, data)

        monkeypatch.setattr(JournalFile, "append", append)
        seen: list[str] = []
        async with governed(simulator) as claude:
            async with claude.fan_out(["x"] * 100, model=MODEL, concurrency=4, journal=path, order=order) as results:
                with pytest.raises(JournalError, match="no room"):
                    await collect(results, seen)
                with pytest.raises(StopAsyncIteration):
                    await anext(results)
                assert claude.statistics().calls.in_flight == 0
            assert simulator.in_flight == 0
        assert set(seen) <= set(ids(path))
        assert len(ids(path)) == 6
        assert len(simulator.journal) <= 6 + 4

    async def test_what_is_under_way_is_cancelled_when_the_journal_fails(
        self, path: Path, virtual_time: VirtualTime, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Its answers could not be kept."""
        simulator = Simulator(tokens_per_s=10, output_tokens=lambda body: 5000 if "slow" in str(body) else 1)

        def full(self: JournalFile, data: bytes) -> int:
            raise JournalError(str(self.path), "there is no room for more")

        monkeypatch.setattr(JournalFile, "append", full)
        async with governed(simulator) as claude, claude.fan_out(["slow", "x"], model=MODEL, journal=path) as results:
            with pytest.raises(JournalError, match="no room"):
                await anext(results)
            assert simulator.in_flight == 0
        assert virtual_time.now() < 5

    async def test_a_journal_that_is_taken_away_ends_the_run(self, path: Path, virtual_time: VirtualTime) -> None:
        """It is noticed within the interval of syncing."""
        seen: list[str] = []
        async with governed(Simulator(latency_s=0.5)) as claude:
            results = await claude.fan_out(["x"] * 100, model=MODEL, concurrency=2, journal=path).__aenter__()
            await anext(results)
            path.rename(path.with_name("moved"))
            with pytest.raises(JournalError, match="moved or deleted"):
                await collect(results, seen)
            await results.__aexit__(None, None, None)
        assert len(seen) < 10

    async def test_an_error_at_closing_is_raised_unless_the_block_has_its_own(
        self, path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """The block's exception leaves as itself, and the journal's is logged."""

        async def use(error: Exception | None) -> None:
            async with claude.fan_out(["x"], model=MODEL, journal=path):
                await anyio.sleep(0.05)
                path.unlink()
                if error is not None:
                    raise error

        mine = KeyError("mine")
        async with governed(Simulator()) as claude:
            with pytest.raises(JournalError, match="moved or deleted"):
                await use(None)
            with pytest.raises(KeyError) as raised:
                await use(mine)
        assert raised.value is mine
        assert "moved or deleted" in caplog.text

    async def test_an_input_that_raises_leaves_the_journal_whole(self, path: Path) -> None:
        """Everything before is written."""

        async def broken() -> AsyncIterator[str]:
            yield "a"
            yield "b"
            raise OSError("the user's own")

        async with governed(Simulator()) as claude:
            with pytest.raises(OSError, match="the user's own"):
                await claude.map(broken(), model=MODEL, journal=path)
            assert [result.ok for result in await claude.map(["a", "b"], model=MODEL, journal=path)] == [True, True]
        assert sorted(ids(path)) == ["0", "1"]

    @pytest.mark.lengthy
    @pytest.mark.parametrize("how", HOWS)
    async def test_cancelled_anywhere_nothing_given_is_missing(self, path: Path, how: How) -> None:
        """What the caller saw stands in the journal, which is closed, whole, and can be gone on from."""
        items = ["a", "b", "c"]

        async def use(claude: Client, seen: list[str]) -> None:
            async with claude.fan_out(items, model=MODEL, journal=path, concurrency=2) as results:
                await collect(results, seen)

        async def scenario(cancelled: Cancelled) -> None:
            path.unlink(missing_ok=True)
            simulator = Simulator()
            seen: list[str] = []
            async with governed(simulator) as claude:
                await cancelled(use(claude, seen))
                await anyio.sleep(0.005)
                assert claude.statistics().calls.in_flight == 0
                async with Journal(path) as journal:
                    written = [result.custom_id for result in journal.results()]
                    assert set(seen) <= set(written)
                    assert all(result.ok for result in journal.results())
                await claude.map(items, model=MODEL, journal=path)
            assert sorted(ids(path)) == ["0", "1", "2"]
            # Nothing that was written is asked again.
            assert len(simulator.journal) <= len(items) + len(items) - len(written)

        # On entry, at each result, and on leaving: all the rest is not the caller's.
        assert await cancel_at_every_await(scenario, how=how) >= 5


async def collect(results: AsyncIterator[FanOutResult], seen: list[str]) -> None:
    """Read results to the end."""
    async for result in results:
        seen.append(result.custom_id)  # noqa: PERF401 - what came before an error counts


PROGRAM = """
import sys
import anyio
from penstock import Client

async def main():
    requests = ({"custom_id": f"item-{n}", "params": {"messages": [{"role": "user", "content": f"item-{n}"}]}}
                for n in range(int(sys.argv[3])))
    async with Client(api_keys=["sk-test"], base_url=sys.argv[1], log=False) as claude:
        async with claude.fan_out(
            requests, model="claude-haiku-5-5", journal=sys.argv[2], concurrency=8
        ) as results:
            async for result in results:
                print(result.custom_id, flush=True)

anyio.run(main)
"""


@pytest.mark.slow
@pytest.mark.parametrize("kills", [[1, 40]])
def test_killed_at_any_point_nothing_is_lost(path: Path, kills: list[int]) -> None:
    """By SIGKILL, twice: in the end each item has one line, what was told is there, and few were asked again."""
    count, concurrency = 120, 8
    simulator = Simulator(latency_s=0.02)
    told: set[str] = set()
    with serving(simulator) as url:
        for kill in [*kills, None]:
            for name in _told(url, path, count):
                told.add(name)
                if kill is not None and len(told) >= kill:
                    break
            assert told <= set(_whole(path))
    assert sorted(ids(path)) == sorted(f"item-{number}" for number in range(count))
    assert sum(asked(simulator).values()) - count <= concurrency * len(kills)


def _told(url: str, path: Path, count: int) -> Iterator[str]:
    """Run the program; gives what it says, and kills it when no more is wanted."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("ANTHROPIC", "PENSTOCK"))}
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, url, path, str(count)], stdout=subprocess.PIPE, text=True, env=environment
    ) as child:
        assert child.stdout is not None
        try:
            for line in child.stdout:
                yield line.strip()
        finally:
            child.send_signal(signal.SIGKILL)


def _whole(path: Path) -> list[str]:
    """The lines that are whole."""
    return [json.loads(line)["custom_id"] for line in path.read_text().split("\n")[:-1]]
