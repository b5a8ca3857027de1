from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from _message_batches import DAY_S, MODEL, check_all, governed, made, prompts, ran

from penstock import JournalError
from penstock.batch.journal import Journal
from penstock.batch.message_batches.plan import Plan
from penstock.simulator import BatchOptions, Simulator

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from penstock.batch.result import FanOutResult
    from penstock.testing.plugin import VirtualTime


async def test_two_runs_may_share_a_journal(virtual_time: VirtualTime, tmp_path: Path) -> None:
    """Both of their batches are known to the next run; by its path, a journal is open once."""
    simulator = Simulator(batch=BatchOptions(duration_s=60))
    path = tmp_path / "run.jsonl"
    everything = list(prompts(6))
    async with governed(simulator) as claude:
        with anyio.move_on_after(20):
            async with Journal(path) as journal, anyio.create_task_group() as group:
                for half in (everything[:3], everything[3:]):
                    group.start_soon(lambda half: ran(claude, half, journal=journal), half)
        check_all(await ran(claude, everything, journal=path), 6)
        assert repr(simulator.batches) == "Batches(2 of 2)"
        async with claude.batch([], model=MODEL, journal=path):
            with pytest.raises(JournalError, match="another journal of it is open"):
                await ran(claude, everything, journal=path)


async def test_asked_live_in_between_nothing_is_answered_twice(virtual_time: VirtualTime, tmp_path: Path) -> None:
    """A fan-out doesn't know of batches under way; the run through batches after it takes its answers."""
    simulator = Simulator(batch=BatchOptions(duration_s=60))
    path = tmp_path / "run.jsonl"
    async with governed(simulator) as claude:
        with anyio.move_on_after(20):
            await ran(claude, prompts(3), journal=path)
        check_all(await claude.map(prompts(3), model=MODEL, max_tokens=100, journal=path), 3)
        (last,) = await ran(claude, prompts(4), journal=path)
        assert last.index == 3
        check_all(await ran(claude, prompts(4), journal=path, replay=True), 4)
    assert [len(wires) for wires in made(simulator)] == [3, 1]


async def test_a_batch_is_over_only_when_its_results_are_on_the_disk(virtual_time: VirtualTime, tmp_path: Path) -> None:
    """A power failure between the two would cost the batch: results are synced lazily, notes at once."""
    told: list[str] = []

    class Watched(Journal):
        def write(self, result: FanOutResult, **given: Any) -> None:
            told.append("result")
            super().write(result, **given)

        def note(self, record: Mapping[str, Any]) -> None:
            told.append(record["message_batch"])
            super().note(record)

        async def sync(self) -> None:
            told.append("synced")
            await super().sync()

    async with governed(Simulator()) as claude, Watched(tmp_path / "run.jsonl", fsync_s=DAY_S) as journal:
        check_all(await ran(claude, prompts(2), journal=journal), 2)
    assert told == ["planned", "made", "result", "result", "synced", "over"]


async def test_what_goes_into_the_body_goes_there_live_too(virtual_time: VirtualTime) -> None:
    """`extra_body` may hold what the SDK has no param for, in a batch or not."""
    simulator = Simulator()
    messages = [{"role": "user", "content": "Hi"}]
    requests = [{"custom_id": "a", "params": {"messages": messages, "extra_body": {"new": 1}}}]
    async with governed(simulator) as claude:
        await ran(claude, requests)
        await ran(claude, requests, deadline_s=30)
    batched, live = [entry.body for entry in simulator.journal if entry.method == "POST"]
    assert batched is not None
    assert live is not None
    assert batched["requests"][0]["params"] == live


async def test_headers_go_with_each_submission(virtual_time: VirtualTime) -> None:
    """And with what is asked live; an item can't have its own, and is told so."""
    simulator = Simulator()
    headers = {"anthropic-beta": "output-300k-2026-03-24"}
    own = {"custom_id": "own", "params": {"messages": [], "extra_headers": {"x": "y"}}}
    async with governed(simulator) as claude:
        *found, last = await ran(claude, [own, *prompts(1)], extra_headers=headers)
        assert "item 0 has extra_headers of its own" in str([*found, last][0].error)
        await ran(claude, prompts(1), extra_headers=headers, deadline_s=30)
    posts = [entry for entry in simulator.journal if entry.method == "POST"]
    assert [entry.headers.get("anthropic-beta") for entry in posts] == ["output-300k-2026-03-24"] * 2
    assert len(made(simulator)[0]) == 1


def test_a_batch_is_as_large_as_the_api_takes_it() -> None:
    """100,000 requests, and 256 MB with what is around them, unless told otherwise."""
    plan = Plan()
    assert (plan.batch_size, plan.batch_bytes) == (100_000, 255_000_000)
    assert plan.live_for(math.inf) == 0
