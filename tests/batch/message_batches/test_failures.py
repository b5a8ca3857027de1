from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anyio
import pytest
from _message_batches import HOUR_S, MODEL, asked, check_all, governed, made, prompts, ran

from penstock.batch.message_batches import MessageBatches
from penstock.errors import ItemFailed
from penstock.simulator import BatchOptions, Simulator

if TYPE_CHECKING:
    from penstock.testing.plugin import VirtualTime


@pytest.mark.lengthy
async def test_what_the_service_failed_on_is_submitted_again(virtual_time: VirtualTime) -> None:
    """Errored by the service or expired: asked again up to `max_attempts` times; the rest is a failure then."""
    simulator = Simulator(batch=BatchOptions(errored=0.3, expired=0.1, lifetime_s=HOUR_S), seed=4)
    async with governed(simulator) as claude:
        results = await ran(claude, prompts(200), max_attempts=4)
    assert len(results) == 200
    good = [result for result in results if result.ok]
    assert 190 <= len(good) < 200
    assert {result.attempts for result in good} == {1, 2, 3, 4}
    for result in results:
        if not result.ok:
            assert isinstance(result.error, ItemFailed)
            assert (result.error.result, result.attempts) in {("errored", 4), ("expired", 4)}
    sizes = [len(wires) for wires in made(simulator)]
    assert len(sizes) == 4
    assert sizes == sorted(sizes, reverse=True)


async def test_what_is_wrong_with_a_request_is_final(virtual_time: VirtualTime) -> None:
    """An invalid request is not submitted again, and its result has the API's words."""
    simulator = Simulator()
    async with governed(simulator) as claude:
        (result,) = await ran(claude, ["One"], max_tokens=-5)
    assert isinstance(result.error, ItemFailed)
    assert result.error.error_type == "invalid_request_error"
    line: Any = result.to_dict()
    assert "max_tokens" in line["result"]["error"]["error"]["message"]
    assert len(made(simulator)) == 1


@pytest.mark.lengthy
@pytest.mark.parametrize("fault", ["truncated", "bad_json", "stall"])
async def test_a_results_file_that_breaks_off_is_read_again(virtual_time: VirtualTime, fault: str) -> None:
    """Each answer comes once, and nothing is submitted twice."""
    simulator = Simulator(batch=BatchOptions(duration_s=1))
    async with governed(simulator) as claude, claude.batch(prompts(300), model=MODEL, max_tokens=9) as results:
        await anyio.sleep(1)
        simulator.inject(fault, after=2)
        check_all([result async for result in results], 300)
    assert len(asked(simulator, "GET", "results")) == 2
    assert len(made(simulator)) == 1


async def test_a_result_that_is_missing_is_asked_again(virtual_time: VirtualTime) -> None:
    """A results file without a line for each request is read again a few times first."""
    simulator = Simulator(batch=BatchOptions(duration_s=1))
    async with governed(simulator) as claude, claude.batch(prompts(3), model=MODEL, max_tokens=100) as results:
        await anyio.sleep(2)
        (batch,) = (await claude.messages.batches.list()).data
        organization = simulator.organization("sk-sim-1").id
        simulator.batches.find(organization, batch.id).results(anyio.current_time()).pop()
        found = [result async for result in results]
    check_all(found, 3)
    assert sorted(result.attempts or 0 for result in found) == [1, 1, 2]
    assert len(asked(simulator, "GET", "results")) == 7


@pytest.mark.lengthy
async def test_a_batch_that_somebody_deleted_is_submitted_again(virtual_time: VirtualTime) -> None:
    """Its results can't be had any more."""
    simulator = Simulator(batch=BatchOptions(duration_s=1))
    async with (
        simulator.client() as claude,
        MessageBatches(claude, prompts(150), model=MODEL, max_tokens=100) as results,
    ):
        await anyio.sleep(2)
        (batch,) = (await claude.messages.batches.list()).data
        await claude.messages.batches.delete(batch.id)
        found = [result async for result in results]
    check_all(found, 150)
    assert {result.attempts for result in found} == {2}


async def test_a_batch_that_somebody_cancelled_stays_so(virtual_time: VirtualTime) -> None:
    """He will have meant it: what it hadn't done comes out as canceled."""
    simulator = Simulator(batch=BatchOptions(duration_s=100))
    async with governed(simulator) as claude, claude.batch(prompts(10), model=MODEL, max_tokens=9) as results:
        await anyio.sleep(51)
        (batch,) = (await claude.messages.batches.list()).data
        await claude.messages.batches.cancel(batch.id)
        found = [result async for result in results]
    assert sum(result.ok for result in found) == 5
    assert {str(result.error) for result in found if not result.ok} == {"the item canceled"}
