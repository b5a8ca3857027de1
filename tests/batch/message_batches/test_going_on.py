from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from _message_batches import DAY_S, HOUR_S, MODEL, Killed, check_all, governed, made, prompts, ran

from penstock import JournalError
from penstock.batch.journal import Journal
from penstock.batch.journal.notes import JournalNotes
from penstock.errors import ItemFailed
from penstock.simulator import BatchOptions, Simulator

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from penstock.batch.items import Request
    from penstock.testing.plugin import VirtualTime


@pytest.mark.lengthy
@pytest.mark.parametrize("seed", range(8))
async def test_whoever_comes_back_collects_what_was_submitted(
    virtual_time: VirtualTime, tmp_path: Path, seed: int
) -> None:
    """Killed at random moments, a run loses no result, has none twice, and submits nothing twice."""
    rng = random.Random(seed)
    simulator = Simulator(latency_s=0.5, batch=BatchOptions(duration_s=60, errored=0.1), seed=seed)
    run = Killed(simulator, tmp_path, batch_size=20, max_attempts=9)
    for _ in range(4):
        await run.until(anyio.current_time() + rng.choice([0.3, 0.7, 1.2, 1.8, 30, 60, 62, 75]), 50)
        await anyio.sleep(rng.choice([0, 10, 100]))
    rest = await run.finish(50)
    check_all(run.seen + [result for result in rest if result.index not in {seen.index for seen in run.seen}], 50)
    wires = [wire for batch in made(simulator) for wire in batch]
    assert len(set(wires)) == 50
    async with governed(simulator) as claude:
        check_all(await ran(claude, prompts(50), journal=run.journal, replay=True), 50)
        assert sum(map(len, made(simulator))) == len(wires)
        failed = [batch.request_counts.errored async for batch in claude.messages.batches.list()]
    # A request is submitted again only after the service has failed on it.
    assert len(wires) - 50 == sum(failed)


@pytest.mark.lengthy
async def test_a_kill_while_batches_run_costs_nothing(virtual_time: VirtualTime, tmp_path: Path) -> None:
    """Nothing is submitted again, at no moment of the run."""
    for moment in (0.2, 0.7, 1.2, 1.7, 2.5, 30, 61, 62, 70):
        simulator = Simulator(latency_s=0.5, batch=BatchOptions(duration_s=60))
        folder = tmp_path / str(moment)
        folder.mkdir()
        run = Killed(simulator, folder, batch_size=20)
        await run.until(anyio.current_time() + moment, 40)
        rest = await run.finish(40)
        check_all(run.seen + [result for result in rest if result.index not in {seen.index for seen in run.seen}], 40)
        assert [len(wires) for wires in made(simulator)] == [20, 20]
        assert repr(simulator.batches) == "Batches(2 of 2)"


async def test_a_batch_that_was_never_submitted_is_submitted_by_the_next_run(
    virtual_time: VirtualTime, tmp_path: Path
) -> None:
    """It was noted before it was sent, and can't be found."""
    simulator = Simulator()
    simulator.inject("reset", after=1, delay_s=10)
    run = Killed(simulator, tmp_path)
    await run.until(5, 4)
    check_all(await run.finish(4), 4)
    assert repr(simulator.batches) == "Batches(1 of 1)"


async def test_what_was_found_out_about_a_lost_batch_is_remembered(virtual_time: VirtualTime, tmp_path: Path) -> None:
    """A run that ends right after it has found that a batch is another's does not collect that one again."""
    simulator = Simulator()
    simulator.inject("reset", after=1, delay_s=2)
    theirs: Any = [{"custom_id": f"x-{n}", "params": {"model": MODEL, "messages": []}} for n in range(2)]
    run = Killed(simulator, tmp_path)
    async with simulator.client() as other, anyio.create_task_group() as group:
        group.start_soon(run.until, 81, 2)
        await anyio.sleep(1)
        await other.messages.batches.create(requests=theirs)
        await anyio.sleep(30)
        # The look for the mark of the new batch hangs until the kill.
        simulator.inject("stall_before_headers", after=20)
    check_all(await run.finish(2), 2)
    assert len(made(simulator)) == 2


async def test_a_run_that_is_over_leaves_nothing_to_do(virtual_time: VirtualTime, tmp_path: Path) -> None:
    """The next one asks nothing, and gives what is there on request."""
    simulator = Simulator()
    async with governed(simulator) as claude:
        async with Journal(tmp_path / "run.jsonl") as journal:
            check_all(await ran(claude, prompts(5), journal=journal), 5)
            assert journal.answered == 5
        before = len(simulator.journal)
        assert await ran(claude, prompts(5), journal=tmp_path / "run.jsonl") == []
        replayed = await ran(claude, prompts(5), journal=tmp_path / "run.jsonl", replay=True)
        live = await claude.map(prompts(5), model=MODEL, max_tokens=100, journal=tmp_path / "run.jsonl")
    check_all(replayed, 5)
    check_all(live, 5)
    assert len(simulator.journal) == before


@pytest.mark.lengthy
async def test_failures_are_asked_again_on_request(virtual_time: VirtualTime, tmp_path: Path) -> None:
    """A journal holds what failed for good; what expired or was cancelled is asked again in any case."""
    simulator = Simulator(batch=BatchOptions(errored=1.0))
    options: dict[str, Any] = {"journal": tmp_path / "run.jsonl", "max_attempts": 1}
    async with governed(simulator) as claude:
        assert not any(result.ok for result in await ran(claude, prompts(3), **options, keep_params=True))
        simulator.batches.options = BatchOptions(expired=1.0, lifetime_s=HOUR_S)
        assert await ran(claude, prompts(3), **options) == []
        assert len(await ran(claude, prompts(5), **options)) == 2
        simulator.batches.options = BatchOptions()
        assert [result.index for result in await ran(claude, prompts(5), **options)] == [3, 4]
        check_all(
            sorted(await ran(claude, prompts(3), **options, retry_failed=True), key=lambda result: result.index), 3
        )


async def test_a_changed_request_is_not_taken_for_the_old_one(virtual_time: VirtualTime, tmp_path: Path) -> None:
    """Answered or still in a batch: other params under the same custom_id never get the old answer."""
    simulator = Simulator(batch=BatchOptions(duration_s=60))
    path = tmp_path / "run.jsonl"
    async with governed(simulator) as claude:
        with anyio.move_on_after(10):
            await ran(claude, prompts(2), journal=path)
        (changed,) = await ran(claude, prompts(1), journal=path, max_tokens=3)
        assert changed.message is not None
        assert changed.message.stop_reason == "max_tokens"
        assert [len(wires) for wires in made(simulator)] == [2, 1]
        assert await ran(claude, prompts(1), journal=path) == []


async def test_what_another_input_lacks_stays_for_the_next(virtual_time: VirtualTime, tmp_path: Path) -> None:
    """A batch is over only when all of its requests have been met."""
    simulator = Simulator(batch=BatchOptions(duration_s=60))
    path = tmp_path / "run.jsonl"
    async with governed(simulator) as claude:
        with anyio.move_on_after(10):
            await ran(claude, prompts(4), journal=path)
        check_all(await ran(claude, prompts(2), journal=path), 2)
        assert await ran(claude, [], journal=path) == []
        rest = await ran(claude, prompts(4), journal=path)
    assert sorted(result.index for result in rest) == [2, 3]
    assert len(made(simulator)) == 1


async def test_results_that_the_api_has_dropped_are_told_so(virtual_time: VirtualTime, tmp_path: Path) -> None:
    """After a month there is nothing to collect: each item fails and says how it can be asked again."""
    simulator = Simulator()
    path = tmp_path / "run.jsonl"
    async with governed(simulator) as claude:
        with anyio.move_on_after(10):
            await ran(claude, prompts(2), journal=path)
        await anyio.sleep(30 * DAY_S)
        gone = await ran(claude, prompts(2), journal=path)
        assert {result.error.error_type for result in gone if isinstance(result.error, ItemFailed)} == {
            "results_archived"
        }
        line: Any = gone[0].to_dict()
        assert "retry_failed" in line["result"]["error"]["error"]["message"]
        check_all(await ran(claude, prompts(2), journal=path, retry_failed=True), 2)


async def test_an_output_format_of_an_item_goes_with_it_into_the_next_run(
    virtual_time: VirtualTime, tmp_path: Path
) -> None:
    """Requests with an `output_config` of their own are known again, answered or under way."""
    simulator = Simulator(batch=BatchOptions(duration_s=60))
    requests = [
        {
            "custom_id": f"{number}",
            "params": {"messages": [{"role": "user", "content": "Hi"}], "output_config": {"effort": "low"}},
        }
        for number in range(4)
    ]
    options: dict[str, Any] = {"journal": tmp_path / "run.jsonl", "output_format": int, "batch_size": 4}
    async with governed(simulator) as claude:
        with anyio.move_on_after(10):
            await ran(claude, requests, **options)
        assert len(await ran(claude, requests[:2], **options)) == 2
        rest = await ran(claude, requests, **options)
        assert [type(result.parsed) for result in rest] == [int, int]
        again = await ran(claude, requests, **options, replay=True)
    assert [result.index for result in again] == [0, 1, 2, 3]
    assert len(made(simulator)) == 1


async def test_damaged_notes_are_told(virtual_time: VirtualTime, tmp_path: Path) -> None:
    """A run does not go on as if there were no batches."""
    (tmp_path / "run.jsonl").touch()
    notes = tmp_path / "run.jsonl.state"
    held = JournalNotes(notes)
    held.add({"of": "somebody else"})
    held.close()
    async with governed(Simulator()) as claude:
        check_all(await ran(claude, prompts(2), journal=tmp_path / "run.jsonl"), 2)
        notes.write_text('{"message_batch": "made", "number": 7}\n', encoding="utf-8")
        with pytest.raises(JournalError, match="damaged"):
            await ran(claude, prompts(2), journal=tmp_path / "run.jsonl")


async def test_a_journal_that_is_gone_ends_the_run(
    virtual_time: VirtualTime, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The error is the journal's own; closing it fails as well, which hides no error of the caller's."""
    simulator = Simulator(batch=BatchOptions(duration_s=60))
    path = tmp_path / "run.jsonl"

    async def given() -> AsyncIterator[Request]:
        for request in prompts(2):
            yield request
        await anyio.sleep(DAY_S)

    async with governed(simulator) as claude:
        run = claude.batch(given(), model=MODEL, max_tokens=100, batch_size=2, journal=path)
        await run.__aenter__()
        await anyio.sleep(10)
        path.unlink()
        with pytest.raises(JournalError):
            [result async for result in run]
        await run.__aexit__(None, None, None)
        run = claude.batch(given(), model=MODEL, max_tokens=100, batch_size=2, journal=path)
        await run.__aenter__()
        path.unlink()
        with pytest.raises(JournalError):
            await run.__aexit__(None, None, None)
        assert caplog.text == ""
        run = claude.batch(given(), model=MODEL, max_tokens=100, batch_size=2, journal=path)
        await run.__aenter__()
        path.unlink()
        await run.__aexit__(ValueError, ValueError("the caller's own"), None)
    assert "run.jsonl" in caplog.text
