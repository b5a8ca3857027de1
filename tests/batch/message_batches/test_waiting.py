from __future__ import annotations

import itertools
import random
from typing import TYPE_CHECKING

import anthropic
import anyio
import pytest
from _message_batches import DAY_S, HOUR_S, MODEL, asked, check_all, governed, prompts, ran

from penstock import RetryOptions
from penstock.simulator import BatchOptions, Simulator

if TYPE_CHECKING:
    from penstock.testing.plugin import VirtualTime


@pytest.mark.lengthy
async def test_a_batch_is_looked_at_less_and_less_often(virtual_time: VirtualTime) -> None:
    """First after about 5 seconds, in the end once a minute, never at the same pace as everybody else."""
    simulator = Simulator(batch=BatchOptions(duration_s=HOUR_S))
    async with governed(simulator) as claude:
        await ran(claude, prompts(1), rng=random.Random(3))
    looks = asked(simulator, "GET")[1:-2]
    gaps = [later - earlier for earlier, later in itertools.pairwise(looks)]
    assert 4 <= looks[0] <= 6
    assert all(48 <= gap <= 72.1 for gap in gaps[8:])
    assert gaps[0] < gaps[2] < gaps[4]
    assert len({round(gap, 3) for gap in gaps}) == len(gaps)


async def test_an_outage_while_waiting_is_sat_out(virtual_time: VirtualTime) -> None:
    """Looks that fail for longer than any retry don't end the run, because waiting costs nothing."""
    simulator = Simulator(batch=BatchOptions(duration_s=100))
    async with governed(simulator) as claude, claude.batch(prompts(2), model=MODEL, max_tokens=9) as results:
        await anyio.sleep(1)
        simulator.inject("unavailable", times=50)
        check_all([result async for result in results], 2)


async def test_a_refused_look_ends_the_run(virtual_time: VirtualTime) -> None:
    """What no waiting will mend is raised, as itself."""
    simulator = Simulator(batch=BatchOptions(duration_s=100))
    async with governed(simulator) as claude, claude.batch(prompts(2), model=MODEL, max_tokens=9) as results:
        await anyio.sleep(1)
        simulator.inject("permission")
        with pytest.raises(anthropic.PermissionDeniedError):
            await anext(results)


@pytest.mark.lengthy
async def test_a_service_that_stays_away_is_given_up_after_a_day(virtual_time: VirtualTime) -> None:
    """No batch takes longer, so there is nothing to wait for."""
    simulator = Simulator(batch=BatchOptions(duration_s=100))
    async with (
        governed(simulator, retry=RetryOptions(base_s=0.001, cap_s=0.002)) as claude,
        claude.batch(prompts(2), model=MODEL, max_tokens=9, poll_s=HOUR_S) as results,
    ):
        await anyio.sleep(1)
        simulator.inject("api_error", times=1000)
        with pytest.raises(anthropic.InternalServerError):
            await anext(results)
    assert DAY_S < virtual_time.now() < 1.3 * DAY_S


async def test_an_outage_at_the_end_of_a_long_batch_is_sat_out_as_well(virtual_time: VirtualTime) -> None:
    """Patience is counted from the last answer of the service, not from the beginning."""
    simulator = Simulator(batch=BatchOptions(duration_s=DAY_S - 10))
    async with (
        governed(simulator, retry=RetryOptions(base_s=0.001, cap_s=0.002)) as claude,
        claude.batch(prompts(2), model=MODEL, max_tokens=9, poll_s=HOUR_S) as results,
    ):
        await anyio.sleep(23.9 * HOUR_S)
        simulator.inject("api_error", times=30)
        check_all([result async for result in results], 2)
    assert virtual_time.now() > 26 * HOUR_S
