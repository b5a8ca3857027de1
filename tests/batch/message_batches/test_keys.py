from __future__ import annotations

from typing import TYPE_CHECKING

import anyio
import pytest
from _message_batches import BATCHES, HOUR_S, MODEL, asked, check_all, governed, prompts, ran

from penstock import Client, NoKeyAvailable
from penstock.batch.message_batches import MessageBatches
from penstock.events import CallEnded, Event
from penstock.simulator import BatchOptions, Simulator

if TYPE_CHECKING:
    from pathlib import Path

    from penstock.batch.result import FanOutResult
    from penstock.testing.plugin import VirtualTime


async def test_a_batch_is_asked_about_with_a_key_of_its_quota(virtual_time: VirtualTime, tmp_path: Path) -> None:
    """In the run that made it and in the next, whatever keys there are besides, and in whatever order."""
    keys = {"sk-a": "org-1", "sk-b": "org-1", "sk-c": "org-2", "sk-d": "org-2"}
    simulator = Simulator(keys=keys, batch=BatchOptions(duration_s=100))
    path = tmp_path / "run.jsonl"
    async with governed(simulator, "sk-c", "sk-a", "sk-b", "sk-d") as claude:
        with anyio.move_on_after(50):
            await ran(claude, prompts(4), journal=path)
    async with governed(simulator, "sk-a", "sk-d", "sk-c", "sk-b") as claude:
        check_all(await ran(claude, prompts(4), journal=path), 4)
    assert {entry.key for entry in simulator.journal if entry.path.startswith(BATCHES)} == {"sk-c"}


async def test_a_batch_is_cancelled_with_a_key_of_its_quota(virtual_time: VirtualTime, tmp_path: Path) -> None:
    """In a later run, too; where another key comes first, which could not see it."""
    simulator = Simulator(keys={"sk-a": "org-1", "sk-c": "org-2"}, batch=BatchOptions(duration_s=HOUR_S))
    path = tmp_path / "run.jsonl"
    async with governed(simulator, "sk-c") as claude:
        with anyio.move_on_after(50):
            await ran(claude, prompts(4), journal=path)
    async with (
        governed(simulator, "sk-a", "sk-c") as claude,
        claude.batch(prompts(4), model=MODEL, max_tokens=100, journal=path) as results,
    ):
        await anyio.sleep(50)
        await results.cancel()
        assert [str(result.error) async for result in results] == ["the item canceled"] * 4
    assert len(asked(simulator, "POST", "cancel")) == 1
    assert {entry.key for entry in simulator.journal} == {"sk-c"}


async def test_another_key_of_the_quota_stands_in(virtual_time: VirtualTime, tmp_path: Path) -> None:
    """Where the one that made a batch is gone, and the other is known to be of its quota."""
    keys = {"sk-a": "org-1", "sk-b": "org-1", "sk-c": "org-2"}
    simulator = Simulator(keys=keys, batch=BatchOptions(duration_s=100))
    async with governed(simulator, "sk-a", "sk-c", "sk-b", balance="round_robin") as claude:
        for _ in range(3):
            await claude.messages.create(model=MODEL, max_tokens=9, messages=[{"role": "user", "content": "Hi"}])
        async with claude.batch(prompts(4), model=MODEL, max_tokens=100) as results:
            await anyio.sleep(50)
            (gone,) = {entry.key for entry in simulator.journal if entry.path.startswith(BATCHES)}
            assert gone == "sk-a"
            name = claude.statistics().admission.keys[0].name
            claude.retire_key(name)
            check_all([result async for result in results], 4)
    assert {entry.key for entry in simulator.journal if entry.path.startswith(BATCHES)} == {"sk-a", "sk-b"}


async def test_a_batch_of_a_quota_without_keys_is_not_paid_for_again(virtual_time: VirtualTime, tmp_path: Path) -> None:
    """It is invisible to other keys; so the run ends with an error that says which one is missing."""
    simulator = Simulator(keys={"sk-a": "org-1", "sk-c": "org-2"}, batch=BatchOptions(duration_s=100))
    path = tmp_path / "run.jsonl"
    async with governed(simulator, "sk-a") as claude:
        with anyio.move_on_after(50):
            await ran(claude, prompts(4), journal=path)
    async with governed(simulator, "sk-c") as claude:
        with pytest.raises(NoKeyAvailable, match=r"was made with key-.* of org-1"):
            await ran(claude, prompts(4), journal=path)
    async with governed(simulator, "sk-a") as claude:
        check_all(await ran(claude, prompts(4), journal=path), 4)


async def test_a_client_that_nobody_governs_pays_nothing_again_for_another_owner(
    virtual_time: VirtualTime, tmp_path: Path
) -> None:
    """What another organization's key can't see is not taken for deleted; what its own key can't see is."""
    simulator = Simulator(keys={"sk-a": "org-1", "sk-c": "org-2"}, batch=BatchOptions(duration_s=100))

    async def run(key: str) -> list[FanOutResult]:
        async with (
            simulator.client(key) as sdk,
            MessageBatches(sdk, prompts(3), model=MODEL, max_tokens=100, journal=tmp_path / "run.jsonl") as results,
        ):
            return [result async for result in results]

    with anyio.move_on_after(50):
        await run("sk-a")
    with pytest.raises(NoKeyAvailable, match=r"was made with a key of .*org-1.*the key is of .*org-2"):
        await run("sk-c")
    check_all(await run("sk-a"), 3)
    assert repr(simulator.batches) == "Batches(1 of 1)"


async def test_a_deleted_batch_is_told_from_an_invisible_one(virtual_time: VirtualTime) -> None:
    """With the key that made it, not found means gone."""
    simulator = Simulator(keys={"sk-a": "org-1"}, batch=BatchOptions(duration_s=1))
    async with (
        governed(simulator, "sk-a") as claude,
        claude.batch(prompts(3), model=MODEL, max_tokens=9) as results,
    ):
        await anyio.sleep(2)
        (batch,) = (await claude.messages.batches.list()).data
        await claude.messages.batches.delete(batch.id)
        check_all([result async for result in results], 3)


async def test_calls_about_batches_are_recorded_and_hold_no_content(virtual_time: VirtualTime) -> None:
    """They pass the record, the retries and the keys, as items of a batch."""
    events: list[Event] = []
    simulator = Simulator()
    simulator.inject("overloaded", after=2)
    async with Client(sdk=simulator.client(), log=False, observers=[events.append]) as claude:
        check_all(await ran(claude, prompts(3)), 3)
        assert claude.statistics().calls.in_flight == 0
    calls = [event for event in events if isinstance(event, CallEnded)]
    assert {call.kind for call in calls} == {"other"}
    assert {call.labels["priority"] for call in calls} == {"batch"}
    assert max(call.attempts for call in calls) == 2
    assert "Number" not in repr(events)
