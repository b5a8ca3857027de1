from __future__ import annotations

import asyncio
import itertools
import random
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from _message_batches import HOUR_S, HOWS, MODEL, check_all, drain, governed, leave, prompts, ran

from penstock.simulator import BatchOptions, Simulator
from penstock.testing import Cancelled, cancel_at_every_await

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from penstock import Client
    from penstock.batch.items import Request
    from penstock.batch.result import FanOutResult
    from penstock.testing.cancellation import How
    from penstock.testing.plugin import VirtualTime


async def test_leaving_without_a_journal_stops_the_batches(virtual_time: VirtualTime) -> None:
    """Nobody would collect them, and they cost money."""
    simulator = Simulator(batch=BatchOptions(duration_s=HOUR_S))
    async with governed(simulator) as claude:
        with pytest.raises(RuntimeError, match="the caller's own"):
            await leave(claude.batch(prompts(30), model=MODEL, max_tokens=9, batch_size=10))
        states = [batch.processing_status async for batch in claude.messages.batches.list()]
    assert states == ["canceling"] * 3


@pytest.mark.lengthy
async def test_a_timeout_around_the_block_stops_the_batches(virtual_time: VirtualTime) -> None:
    """A cancellation is a way of leaving, too."""
    simulator = Simulator(batch=BatchOptions(duration_s=HOUR_S), latency_s=1)
    async with governed(simulator) as claude:
        with anyio.move_on_after(100):
            await ran(claude, prompts(30), batch_size=1)
        states = [batch.processing_status async for batch in claude.messages.batches.list()]
    assert states == ["canceling"] * 30
    assert virtual_time.now() < 111


async def test_leaving_with_a_journal_lets_the_batches_run(virtual_time: VirtualTime, tmp_path: Path) -> None:
    """The next run collects them."""
    simulator = Simulator(batch=BatchOptions(duration_s=HOUR_S))
    async with governed(simulator) as claude:
        async with claude.batch(prompts(30), model=MODEL, max_tokens=100, journal=tmp_path / "run.jsonl"):
            await anyio.sleep(10)
        await anyio.sleep(2 * HOUR_S)
        check_all(await ran(claude, prompts(30), journal=tmp_path / "run.jsonl"), 30)
        states = [batch.request_counts.succeeded async for batch in claude.messages.batches.list()]
    assert states == [30]


async def test_leaving_while_a_batch_is_being_made_waits_for_its_id(virtual_time: VirtualTime) -> None:
    """Without a journal it could never be found again, so it is waited for, and stopped."""
    simulator = Simulator(batch=BatchOptions(duration_s=HOUR_S), latency_s=2)
    async with governed(simulator) as claude:
        async with claude.batch(prompts(3), model=MODEL, max_tokens=9):
            simulator.inject("rate_limited", after=1, delay_s=4)
            await anyio.sleep(3)
        await anyio.sleep(10)
        assert [batch.processing_status async for batch in claude.messages.batches.list()] == []
        async with claude.batch(prompts(3), model=MODEL, max_tokens=9):
            await anyio.sleep(2.5)
        states = [batch.processing_status async for batch in claude.messages.batches.list()]
    assert states == ["canceling"]


async def test_leaving_does_not_wait_for_ever(virtual_time: VirtualTime) -> None:
    """A service that doesn't answer holds nobody up for longer than ten seconds or so."""
    simulator = Simulator(batch=BatchOptions(duration_s=HOUR_S))
    async with governed(simulator) as claude:
        simulator.inject("stall_before_headers", after=1)
        async with claude.batch(prompts(3), model=MODEL, max_tokens=9):
            await anyio.sleep(1)
        assert virtual_time.now() < 12
        async with claude.batch(prompts(3), model=MODEL, max_tokens=9):
            await anyio.sleep(1)
            simulator.inject("stall_before_headers", times=5)
        assert virtual_time.now() < 25


@pytest.mark.lengthy
async def test_cancelling_stops_reading_and_gives_what_is_done(virtual_time: VirtualTime, tmp_path: Path) -> None:
    """Answers that are there come out; the rest is canceled, and asked again by the next run."""
    simulator = Simulator(batch=BatchOptions(duration_s=100, cancel_s=5))
    read: list[Any] = []

    async def given() -> AsyncIterator[Request]:
        for request in prompts(40):
            if len(read) == 30:
                await anyio.sleep(50.5)
            read.append(request)
            yield request

    path = tmp_path / "run.jsonl"
    async with governed(simulator) as claude:
        async with claude.batch(given(), model=MODEL, max_tokens=100, batch_size=20, journal=path) as results:
            await anyio.sleep(50.2)
            await results.cancel()
            found = [result async for result in results]
        assert len(found) == 30
        assert sum(result.ok for result in found) == 10
        assert {str(result.error) for result in found if not result.ok} == {"the item canceled"}
        assert virtual_time.now() < 70
        rest = await ran(claude, prompts(40), journal=path)
    check_all([*(result for result in found if result.ok), *rest], 40)


@pytest.mark.lengthy
@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("kept", [False, True])
async def test_cancelled_anywhere_it_leaves_nothing_behind(
    virtual_time: VirtualTime, tmp_path: Path, how: How, kept: bool
) -> None:
    """No task, request or lock is left; and with a journal another run ends with every answer, paid for once."""
    number = itertools.count()

    async def scenario(cancelled: Cancelled) -> None:
        simulator = Simulator(batch=BatchOptions(duration_s=6))
        path = tmp_path / f"{next(number)}.jsonl" if kept else None
        seen: list[FanOutResult] = []

        async def main(claude: Client) -> None:
            async with claude.batch(
                prompts(4), model=MODEL, max_tokens=100, batch_size=2, journal=path, rng=random.Random(0)
            ) as results:
                await drain(results, seen)

        async with governed(simulator) as claude:
            await cancelled(main(claude))
            assert simulator.in_flight == 0
            assert [task for task in asyncio.all_tasks() if "message_batches" in repr(task.get_coro())] == []
            if path is None:
                left = [batch.processing_status async for batch in claude.messages.batches.list()]
                assert how == "repeatedly" or "in_progress" not in left
            else:
                everything = await ran(claude, prompts(4), journal=path, batch_size=2, replay=True)
                check_all(everything, 4)
                assert {result.index for result in seen} <= {result.index for result in everything if result.replayed}
                assert repr(simulator.batches) == "Batches(2 of 2)"
                path.unlink()

    assert await cancel_at_every_await(scenario, how=how) > 3
