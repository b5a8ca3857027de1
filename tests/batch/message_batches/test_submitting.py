from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anthropic
import anyio
import pytest
from _message_batches import HOUR_S, MODEL, asked, check_all, governed, made, prompts, ran

from penstock.simulator import BatchOptions, Simulator

if TYPE_CHECKING:
    from pathlib import Path

    from penstock.testing.plugin import VirtualTime


@pytest.mark.lengthy
@pytest.mark.parametrize("fault", ["truncated", "bad_json", "stall"])
async def test_a_submission_whose_answer_is_lost_is_found(virtual_time: VirtualTime, fault: str) -> None:
    """The batch exists, so it is looked for, and not made twice; one of another size is none."""
    simulator = Simulator(latency_s=1)
    simulator.inject(fault, after=2)
    theirs: Any = [{"custom_id": "x", "params": {}}]
    async with (
        simulator.client() as other,
        governed(simulator) as claude,
        claude.batch(prompts(5), model=MODEL, max_tokens=100) as results,
    ):
        await anyio.sleep(0.5)
        await other.messages.batches.create(requests=theirs)
        check_all([result async for result in results], 5)
    assert repr(simulator.batches) == "Batches(2 of 2)"


async def test_a_submission_that_never_arrived_is_repeated(virtual_time: VirtualTime) -> None:
    """Looking for it shows that there is none."""
    simulator = Simulator()
    simulator.inject("reset", after=1)
    simulator.inject("api_error", after=1)
    async with governed(simulator) as claude:
        check_all(await ran(claude, prompts(5)), 5)
    assert len(asked(simulator, "POST")) == 3
    assert repr(simulator.batches) == "Batches(1 of 1)"


@pytest.mark.lengthy
async def test_no_room_for_a_batch_is_a_matter_of_time(virtual_time: VirtualTime) -> None:
    """A 429 is waited out however often it comes, as long as the API asks."""
    simulator = Simulator()
    simulator.inject("rate_limited", after=1, times=30, retry_after_s=300)
    async with governed(simulator) as claude:
        check_all(await ran(claude, prompts(5)), 5)
    assert virtual_time.now() > 30 * 300


@pytest.mark.lengthy
@pytest.mark.parametrize(
    ("fault", "times", "error"),
    [
        ("permission", 1, anthropic.PermissionDeniedError),
        ("spend_cap", 1, anthropic.RateLimitError),
        ("overloaded", 10, anthropic.InternalServerError),
    ],
)
async def test_a_submission_that_the_api_refuses_ends_the_run(
    virtual_time: VirtualTime, tmp_path: Path, fault: str, times: int, error: type[Exception]
) -> None:
    """The error is raised, nothing counts as submitted, and another run asks everything."""
    simulator = Simulator()
    simulator.inject(fault, after=1, times=times)
    async with governed(simulator) as claude:
        with pytest.raises(error):
            await ran(claude, prompts(5), journal=tmp_path / "run.jsonl")
        check_all(await ran(claude, prompts(5), journal=tmp_path / "run.jsonl"), 5)
    assert repr(simulator.batches) == "Batches(1 of 1)"


async def test_a_service_that_keeps_failing_ends_the_run(virtual_time: VirtualTime, tmp_path: Path) -> None:
    """After ten attempts; whether one of them made a batch is looked up by the next run once more."""
    simulator = Simulator()
    for _ in range(10):
        simulator.inject("api_error", after=1)
    async with governed(simulator) as claude:
        with pytest.raises(anthropic.InternalServerError):
            await ran(claude, prompts(5), journal=tmp_path / "run.jsonl")
        check_all(await ran(claude, prompts(5), journal=tmp_path / "run.jsonl"), 5)
    assert len(asked(simulator, "POST")) == 11


async def test_another_programs_batch_is_not_taken_for_ours(virtual_time: VirtualTime) -> None:
    """One of the same size made at the same moment is found out by its results, left alone, and ours is made."""
    simulator = Simulator()
    # Ours is lost on its way, while theirs is made.
    simulator.inject("reset", after=1, delay_s=2)
    theirs: Any = [{"custom_id": f"x-{n}", "params": {"model": MODEL, "messages": []}} for n in range(2)]
    async with (
        simulator.client() as other,
        governed(simulator) as claude,
        claude.batch(prompts(2), model=MODEL, max_tokens=100) as results,
    ):
        await anyio.sleep(1)
        await other.messages.batches.create(requests=theirs)
        found = [result async for result in results]
    check_all(found, 2)
    assert {result.attempts for result in found} == {1}
    assert [wires[0][:-17] or wires[0] for wires in made(simulator)] == ["x-0", "row-0"]


async def test_a_batch_that_may_be_anothers_is_never_stopped(virtual_time: VirtualTime) -> None:
    """Until its results prove that it is ours; so a cancellation just leaves it."""
    simulator = Simulator(batch=BatchOptions(duration_s=HOUR_S))
    simulator.inject("reset", after=1, delay_s=2)
    theirs: Any = [{"custom_id": f"x-{n}", "params": {"model": MODEL, "messages": []}} for n in range(2)]
    async with simulator.client() as other, governed(simulator) as claude:
        async with claude.batch(prompts(2), model=MODEL, max_tokens=100) as results:
            await anyio.sleep(1)
            await other.messages.batches.create(requests=theirs)
            await anyio.sleep(60)
            await results.cancel()
            found = [result async for result in results]
        assert {str(result.error) for result in found} == {"the item canceled"}
        states = [batch.processing_status async for batch in other.messages.batches.list()]
    assert states == ["in_progress"]
    assert virtual_time.now() < 200
