from __future__ import annotations

import random
from typing import TYPE_CHECKING

import anyio
import pytest
from _message_batches import HOUR_S, MODEL, check_all, governed, made, prompts, ran

from penstock.simulator import BatchOptions, Simulator

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from penstock.batch.items import Request
    from penstock.testing.plugin import VirtualTime


@pytest.mark.lengthy
async def test_what_is_not_done_in_time_is_asked_live(virtual_time: VirtualTime) -> None:
    """Near the deadline batches are stopped; what they have done counts, the rest is asked at full price."""
    simulator = Simulator(batch=BatchOptions(duration_s=HOUR_S, cancel_s=5))
    async with governed(simulator) as claude:
        results = await ran(claude, prompts(100), batch_size=40, deadline_s=HOUR_S / 2)
    check_all(results, 100)
    tiers = [result.message.usage.service_tier for result in results if result.message is not None]
    # A tenth of the deadline is set aside.
    assert tiers.count("batch") == pytest.approx(45, abs=4)
    assert virtual_time.now() < HOUR_S / 2


@pytest.mark.lengthy
async def test_too_little_time_means_no_batches(virtual_time: VirtualTime, tmp_path: Path) -> None:
    """Where all of it is set aside, everything is asked live, lazily, with the same results and journal."""
    simulator = Simulator(latency_s=1)
    read: list[int] = []

    def given() -> Iterator[Request]:
        for number, request in enumerate(prompts(100)):
            read.append(number)
            yield request

    async with governed(simulator) as claude:
        path = tmp_path / "run.jsonl"
        async with claude.batch(
            given(), model=MODEL, max_tokens=100, deadline_s=50, concurrency=5, journal=path
        ) as results:
            first = await anext(results)
            assert len(read) < 40
            found = [first, *[result async for result in results]]
        check_all(found, 100)
        assert made(simulator) == []
        assert await ran(claude, prompts(100), journal=path) == []


@pytest.mark.lengthy
async def test_nothing_is_waited_for_beyond_the_deadline(virtual_time: VirtualTime, tmp_path: Path) -> None:
    """What neither a batch nor the service live has answered by then has expired; another run collects it."""
    simulator = Simulator(batch=BatchOptions(duration_s=HOUR_S, cancel_s=900))
    path = tmp_path / "run.jsonl"
    async with governed(simulator) as claude:
        results = await ran(claude, prompts(10), journal=path, deadline_s=600)
        assert virtual_time.now() == pytest.approx(600, abs=1)
        assert {str(result.error) for result in results} == {"the item expired: DeadlineExceeded"}
        check_all(await ran(claude, prompts(10), journal=path), 10)


async def test_a_live_request_has_no_longer_than_the_deadline(virtual_time: VirtualTime, tmp_path: Path) -> None:
    """Where a service hangs, items expire in time, those in line too; a later run with the journal asks them."""
    simulator = Simulator(latency_s=1000)
    path = tmp_path / "run.jsonl"
    async with governed(simulator) as claude:
        results = await ran(claude, prompts(5), deadline_s=30, concurrency=2, journal=path)
    assert {str(result.error) for result in results} == {"the item expired: DeadlineExceeded"}
    assert virtual_time.now() == pytest.approx(30, abs=0.1)
    async with governed(Simulator()) as claude:
        check_all([*results[5:], *await ran(claude, prompts(5), journal=path)], 5)


async def test_input_that_comes_late_is_asked_live_too(virtual_time: VirtualTime) -> None:
    """What was read for a batch that was never submitted, and what is read after the turn."""
    simulator = Simulator(batch=BatchOptions(duration_s=10))

    async def given() -> AsyncIterator[Request]:
        for number, request in enumerate(prompts(30)):
            if number == 25:
                await anyio.sleep(200)
            yield request

    async with governed(simulator) as claude:
        results = await ran(claude, given(), batch_size=10, deadline_s=300, live_s=150)
    check_all(results, 30)
    tiers = [result.message.usage.service_tier for result in results if result.message is not None]
    assert (tiers.count("batch"), tiers.count("standard")) == (20, 10)


async def test_a_submission_that_waits_for_room_gives_way_to_the_deadline(virtual_time: VirtualTime) -> None:
    """A batch for which there is no room in time is asked live."""
    simulator = Simulator()
    simulator.inject("rate_limited", after=1, retry_after_s=10_000)
    async with governed(simulator) as claude:
        check_all(await ran(claude, prompts(5), deadline_s=1000, live_s=500), 5)
    assert virtual_time.now() == pytest.approx(500, abs=10)


async def test_what_waits_to_be_submitted_again_gives_way_to_the_deadline(virtual_time: VirtualTime) -> None:
    """It waits behind a batch for which there is no room, and is asked live with it."""
    simulator = Simulator(batch=BatchOptions(errored=1.0))
    simulator.inject("rate_limited", after=3, retry_after_s=10_000)
    async with governed(simulator) as claude:
        check_all(await ran(claude, prompts(10), batch_size=5, deadline_s=1000, live_s=500), 10)
    assert [len(wires) for wires in made(simulator)] == [5]
    assert virtual_time.now() == pytest.approx(500, abs=10)


async def test_cancelling_what_is_asked_live_ends_it_too(virtual_time: VirtualTime) -> None:
    """What is on its way is answered; what isn't is canceled."""
    simulator = Simulator(latency_s=10)
    async with (
        governed(simulator) as claude,
        claude.batch(prompts(100), model=MODEL, max_tokens=100, deadline_s=50, concurrency=4) as results,
    ):
        await anyio.sleep(5)
        await results.cancel()
        found = [result async for result in results]
    assert sum(result.ok for result in found) == 4
    assert 4 < len(found) < 30


async def test_a_stop_that_fails_is_tried_again(virtual_time: VirtualTime) -> None:
    """For a while nothing gets through; what then does, stops the batch."""
    simulator = Simulator(batch=BatchOptions(duration_s=HOUR_S))
    async with (
        governed(simulator) as claude,
        claude.batch(prompts(10), model=MODEL, max_tokens=9, rng=random.Random(0)) as results,
    ):
        await anyio.sleep(1)
        simulator.inject("api_error", times=12)
        await results.cancel()
        found = [result async for result in results]
    assert len(found) == 10
    assert virtual_time.now() < 300
