from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from _message_batches import HOUR_S, MODEL, between, check_all, governed, made, passing, prompts, ran, reply

from penstock import JournalError, deadline
from penstock.batch.journal import Journal
from penstock.batch.message_batches.desk import Delays, Desk
from penstock.batch.message_batches.follow import Follower
from penstock.batch.message_batches.ledger import Ledger
from penstock.batch.message_batches.remote import Remote
from penstock.batch.message_batches.requests import Head, Spool
from penstock.batch.message_batches.submit import Submitter
from penstock.simulator import BatchOptions, Simulator
from penstock.simulator.server import serving

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
    from pathlib import Path

    import httpx2

    from penstock.batch.items import Request
    from penstock.batch.result import FanOutResult
    from penstock.testing.plugin import VirtualTime


@pytest.mark.lengthy
@pytest.mark.parametrize("where", [0, 1, 2, 3, 4])
async def test_a_service_that_hangs_holds_nobody_beyond_the_deadline(
    virtual_time: VirtualTime, tmp_path: Path, where: int
) -> None:
    """Be it at the mark, the submission, a look, or the cancellation; a later run goes on, and pays for no more."""
    simulator = Simulator(batch=BatchOptions(duration_s=HOUR_S))
    path = tmp_path / "run.jsonl"
    async with governed(simulator) as claude:
        simulator.inject("stall_before_headers", after=where)
        results = await ran(claude, prompts(2), journal=path, deadline_s=200, live_s=100, rng=random.Random(0))
        assert {str(result.error) for result in results} == {"the item expired: DeadlineExceeded"}
        assert virtual_time.now() == pytest.approx(200, abs=0.1)
        check_all(await ran(claude, prompts(2), journal=path), 2)


@pytest.mark.lengthy
async def test_an_outage_at_the_deadline_holds_nobody(virtual_time: VirtualTime) -> None:
    """Neither can batches be stopped or looked at, nor anything be asked live; what can be stopped later is, then."""
    simulator = Simulator(batch=BatchOptions(duration_s=HOUR_S))
    down = False

    async def on_the_way(
        request: httpx2.Request, call: Callable[[httpx2.Request], Awaitable[httpx2.Response]]
    ) -> httpx2.Response:
        await anyio.sleep(1)
        return reply(b"{}", status=500) if down else await call(request)

    async with passing(between(simulator, on_the_way)) as claude:
        async with claude.batch(
            prompts(4), model=MODEL, max_tokens=9, batch_size=2, deadline_s=200, live_s=100
        ) as results:
            await anyio.sleep(50)
            down = True
            found = [result async for result in results]
            assert virtual_time.now() == pytest.approx(200, abs=0.1)
            down = False
        states = [batch.processing_status async for batch in claude.messages.batches.list()]
    assert [str(result.error) for result in found] == ["the item expired: DeadlineExceeded"] * 4
    assert states == ["canceling"] * 2


@pytest.mark.lengthy
async def test_a_results_file_that_hangs_holds_nobody_beyond_the_deadline(
    virtual_time: VirtualTime, tmp_path: Path
) -> None:
    """What had come of it counts; a later run reads the rest, and pays for no more."""
    simulator = Simulator(batch=BatchOptions(duration_s=1))
    path = tmp_path / "run.jsonl"
    async with governed(simulator) as claude:
        async with claude.batch(
            prompts(300), model=MODEL, max_tokens=9, journal=path, deadline_s=50, live_s=20
        ) as results:
            await anyio.sleep(1)
            simulator.inject("stall", after=2)
            found = [result async for result in results]
        assert virtual_time.now() == pytest.approx(50, abs=0.1)
        assert {str(result.error) for result in found if not result.ok} == {"the item expired: DeadlineExceeded"}
        assert 0 < sum(result.ok for result in found) < 300
        rest = await ran(claude, prompts(300), journal=path, max_tokens=9)
    check_all([*(result for result in found if result.ok), *rest], 300)
    assert len(made(simulator)) == 1


async def unending(size: int) -> AsyncIterator[Request]:
    """An input that comes to no end."""
    for request in prompts(size):
        yield request
    await anyio.sleep_forever()


@pytest.mark.lengthy
async def test_input_that_never_ends_holds_nobody_beyond_the_deadline(virtual_time: VirtualTime) -> None:
    """What was read for the next batch is asked live in time, though no more comes."""
    simulator = Simulator()
    async with governed(simulator) as claude:
        found: list[FanOutResult] = []
        async with claude.batch(
            unending(150), model=MODEL, max_tokens=100, deadline_s=300, live_s=100, batch_size=100
        ) as results:
            async for result in results:
                found.append(result)
                assert virtual_time.now() < 210
    check_all(found, 150)
    tiers = [result.message.usage.service_tier for result in found if result.message is not None]
    assert (tiers.count("batch"), tiers.count("standard")) == (100, 50)
    assert virtual_time.now() == pytest.approx(300, abs=0.1)


@pytest.mark.lengthy
async def test_input_goes_on_being_told_of_after_the_deadline(virtual_time: VirtualTime) -> None:
    """Whatever needs no waiting for is read, and has expired."""
    simulator = Simulator(latency_s=1000)
    async with governed(simulator) as claude:
        results = await ran(claude, prompts(400), deadline_s=10, concurrency=2)
    assert sorted(result.index for result in results) == list(range(400))
    assert {str(result.error) for result in results} == {"the item expired: DeadlineExceeded"}


async def test_what_the_service_failed_on_before_a_cancellation_is_asked_again_too(
    virtual_time: VirtualTime, tmp_path: Path
) -> None:
    """It had attempts left, so the next run asks it like all that was canceled."""
    simulator = Simulator(batch=BatchOptions(duration_s=10, errored=1.0))
    path = tmp_path / "run.jsonl"
    async with governed(simulator) as claude:
        async with claude.batch(prompts(10), model=MODEL, max_tokens=100, journal=path) as results:
            await anyio.sleep(6)
            await results.cancel()
            assert [str(result.error) async for result in results] == ["the item canceled"] * 10
        (counts,) = [batch.request_counts async for batch in claude.messages.batches.list()]
        assert counts.errored > 4
        simulator.batches.options = BatchOptions()
        check_all(await ran(claude, prompts(10), journal=path), 10)


async def test_a_cancellation_that_can_not_be_noted_is_told(virtual_time: VirtualTime, tmp_path: Path) -> None:
    """The error is the journal's own, not a group of them."""

    class Full(Journal):
        def note(self, record: Mapping[str, Any]) -> None:
            if record["message_batch"] == "stopped":
                raise JournalError("run.jsonl", "no room")
            super().note(record)

    simulator = Simulator()
    async with (
        governed(simulator) as claude,
        Full(tmp_path / "run.jsonl") as journal,
        claude.batch(prompts(2), model=MODEL, max_tokens=9, journal=journal) as results,
    ):
        await anyio.sleep(1)
        # A look hangs.
        simulator.inject("stall_before_headers")
        await anyio.sleep(20)
        with pytest.raises(JournalError, match="no room"):
            await results.cancel()


async def test_cancelling_does_not_wait_for_input(virtual_time: VirtualTime) -> None:
    """What was read comes out as canceled, and the results end."""
    async with governed(Simulator()) as claude, claude.batch(unending(5), model=MODEL) as results:
        await anyio.sleep(1)
        await results.cancel()
        found = [result async for result in results]
    assert [str(result.error) for result in found] == ["the item canceled"] * 5
    assert virtual_time.now() == pytest.approx(1, abs=0.1)


async def test_a_deadline_around_the_block_is_one_of_the_run(virtual_time: VirtualTime) -> None:
    """It leaves no time for batches, or some."""
    simulator = Simulator(batch=BatchOptions(duration_s=HOUR_S))
    async with governed(simulator) as claude:
        with deadline(30):
            check_all(await ran(claude, prompts(3)), 3)
        assert made(simulator) == []
        with deadline(1000):
            check_all(await ran(claude, prompts(3), deadline_s=5000), 3)
        assert len(made(simulator)) == 1
    assert virtual_time.now() < 1000


async def test_a_deadline_around_the_block_leaves_nothing_failed(virtual_time: VirtualTime, tmp_path: Path) -> None:
    """What the service doesn't answer in time has expired, and is asked by a later run."""
    path = tmp_path / "run.jsonl"
    async with governed(Simulator(latency_s=1000)) as claude:
        with deadline(30):
            results = await ran(claude, prompts(3), journal=path, concurrency=2)
    assert [str(result.error) for result in results] == ["the item expired: DeadlineExceeded"] * 3
    async with governed(Simulator()) as claude:
        check_all(await ran(claude, prompts(3), journal=path), 3)


async def test_a_cancellation_cut_short_is_made_up_for_on_leaving(virtual_time: VirtualTime) -> None:
    """A stop that was never sent leaves no batch running that nobody can collect."""
    simulator = Simulator(batch=BatchOptions(duration_s=HOUR_S))
    async with governed(simulator) as claude:
        async with claude.batch(prompts(3), model=MODEL, max_tokens=9) as results:
            await anyio.sleep(1)
            simulator.inject("stall_before_headers")
            with anyio.move_on_after(1):
                await results.cancel()
        states = [batch.processing_status async for batch in claude.messages.batches.list()]
    assert states == ["canceling"]


async def test_a_client_that_is_closed_first_hides_no_error(virtual_time: VirtualTime) -> None:
    """Nothing can be stopped then; what the block raises leaves it all the same."""
    claude = governed(Simulator(batch=BatchOptions(duration_s=HOUR_S)))
    await claude.__aenter__()
    run = claude.batch(prompts(3), model=MODEL, max_tokens=9)
    await run.__aenter__()
    await anyio.sleep(1)
    await claude.__aexit__(None, None, None)
    await run.__aexit__(None, None, None)


PROGRAM = """
import sys
import anyio
from penstock import Client

async def main():
    requests = ({"custom_id": f"row-{n}", "params": {"messages": [{"role": "user", "content": f"Number {n}"}]}}
                for n in range(int(sys.argv[3])))
    async with Client(api_keys=["sk-sim-1"], base_url=sys.argv[1], log=False) as claude:
        async with claude.batch(
            requests, model="claude-haiku-5-5", max_tokens=100, journal=sys.argv[2], batch_size=20, poll_s=0.02
        ) as results:
            async for result in results:
                print(result.custom_id, flush=True)

anyio.run(main)
"""


@pytest.mark.slow
def test_killed_for_good_nothing_is_lost_or_paid_for_twice(tmp_path: Path) -> None:
    """By SIGKILL, while the second of three batches is being submitted."""
    simulator = Simulator(latency_s=0.05, batch=BatchOptions(duration_s=0.2))
    path = tmp_path / "run.jsonl"
    told: list[str] = []
    lines: list[str] = []
    with serving(simulator) as url:
        for most in (4, None):
            told += _told(simulator, url, path, most)
            lines = [json.loads(line)["custom_id"] for line in path.read_bytes().split(b"\n")[:-1]]
            assert set(told) <= set(lines)
    assert sorted(lines) == sorted(f"row-{number}" for number in range(60))
    assert len(told) == len(set(told))
    assert repr(simulator.batches) == "Batches(3 of 3)"


def _told(simulator: Simulator, url: str, path: Path, most: int | None) -> list[str]:
    """Run the program, kill it when it has sent so many requests, and give what it said."""
    before = len(simulator.journal)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("ANTHROPIC", "PENSTOCK"))}
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, url, path, "60"], stdout=subprocess.PIPE, text=True, env=environment
    ) as child:
        while most is not None and len(simulator.journal) < before + most:
            threading.Event().wait(0.005)
        if most is not None:
            child.send_signal(signal.SIGKILL)
        return child.communicate(timeout=60)[0].split()


def test_what_it_is_made_of_shows_no_content() -> None:
    """Neither params nor prompts are in what is printed of its parts."""
    desk = Desk.__new__(Desk)
    desk.ledger = Ledger(None)
    with Spool(None) as spool:
        place = spool.add(Head(index=0, custom_id="a", digest="0" * 16, wire_id="a-0"), b'{"secret": 1}')
        assert spool.request(place) == {"custom_id": "a-0", "params": {"secret": 1}}
        assert repr(spool) == "<Spool of 54 bytes>"
    assert repr(Submitter(desk)).startswith("<Submitter")
    assert repr(Delays(5.0, random.Random(0))) == "<Delays, next 5 s>"
    assert repr(Ledger(None)) == "<Ledger of 0 batches under way, 0 in all>"
    assert "Remote" in repr(Remote(Simulator().client()))
    assert repr(Follower(desk)) == "<Follower of <Ledger of 0 batches under way, 0 in all>>"
