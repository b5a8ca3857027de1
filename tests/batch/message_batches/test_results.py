from __future__ import annotations

import random
from decimal import Decimal
from typing import TYPE_CHECKING

import anyio
import pytest
from _message_batches import HOUR_S, MODEL, asked, check_all, governed, made, prompts, ran, text_of
from pydantic import BaseModel

from penstock.batch.message_batches import MessageBatches
from penstock.errors import InvalidOutput
from penstock.simulator import BatchOptions, Simulator

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from penstock.batch.items import Request
    from penstock.batch.progress import Progress
    from penstock.testing.plugin import VirtualTime


@pytest.mark.lengthy
async def test_every_request_is_answered_at_half_the_price(virtual_time: VirtualTime) -> None:
    """Plain prompts and requests alike come back with their own answers, as a fan-out's would, for half the money."""
    simulator = Simulator(batch=BatchOptions(duration_s=HOUR_S))
    requests: list[Request] = [
        "Number 0",
        {"custom_id": "row-1", "params": {"max_tokens": 7, "messages": [{"role": "user", "content": "Number 1"}]}},
        {
            "custom_id": "a name, with Umläute 🙂",
            "params": {
                "messages": [{"role": "user", "content": "Number 2"}],
                "timeout": 5,
                "extra_body": {"system": "s"},
            },
            "labels": {"user": "u1"},
        },
    ]
    async with governed(simulator) as claude:
        results = {result.index: result for result in await ran(claude, requests)}
        live = await claude.map(requests[:2], model=MODEL, max_tokens=100)
    assert [results[index].custom_id for index in range(3)] == ["0", "row-1", "a name, with Umläute 🙂"]
    assert [text_of(results[index]) for index in range(3)] == [f"Summary: Number {index}" for index in range(3)]
    assert results[2].labels == {"user": "u1"}
    for batched, asked_live in zip((results[0], results[1]), live, strict=True):
        assert text_of(batched) == text_of(asked_live)
        assert batched.cost_usd is not None
        assert batched.cost_usd * 2 == asked_live.cost_usd != Decimal(0)
    assert {result.attempts for result in results.values()} == {1}
    assert all(HOUR_S <= (result.latency_s or 0) <= HOUR_S + 75 for result in results.values())
    (wires,) = made(simulator)
    assert [wire[:-16] for wire in wires[:2]] == ["0-", "row-1-"]
    body = simulator.journal[1].body
    assert body is not None
    assert body["requests"][1]["params"]["max_tokens"] == 7
    assert set(body["requests"][2]["params"]) == {"model", "max_tokens", "messages", "system"}


async def test_a_refusal_is_an_answer(virtual_time: VirtualTime) -> None:
    """What the model would not say was said all the same."""
    simulator = Simulator()
    simulator.reply("No.", stop_reason="refusal")
    async with governed(simulator) as claude:
        (result,) = await ran(claude, ["Do it."])
    assert result.ok
    assert result.message is not None
    assert result.message.stop_reason == "refusal"


async def test_an_empty_input_asks_nothing(virtual_time: VirtualTime) -> None:
    """No request is sent for no requests."""
    simulator = Simulator()
    async with governed(simulator) as claude:
        assert await ran(claude, []) == []
    assert simulator.journal == []


async def test_an_async_input_and_a_client_that_nobody_governs_will_do(virtual_time: VirtualTime) -> None:
    """It works with any `AsyncAnthropic`, whose own retries don't repeat a submission."""
    simulator = Simulator()
    simulator.inject("overloaded", after=1)

    async def given() -> AsyncIterator[Request]:
        for request in prompts(3):
            await anyio.sleep(1)
            yield request

    async with (
        simulator.client() as sdk,
        MessageBatches(sdk, given(), model=MODEL, max_tokens=100, rng=random.Random(1)) as results,
    ):
        assert repr(results).startswith("<MessageBatches 0 read, 0 delivered, <Batches batches, ")
        check_all([result async for result in results], 3)
    assert len(made(simulator)) == 1
    posts = asked(simulator, "POST")
    assert len(posts) == 2
    assert posts[1] - posts[0] > 3.9


async def test_answers_are_read_as_a_type(virtual_time: VirtualTime) -> None:
    """With `output_format`, batches ask for JSON, and what doesn't fit is told."""

    class Point(BaseModel):
        x: int

    simulator = Simulator()
    async with governed(simulator) as claude:
        results = await ran(claude, ["One", "Two"], output_format=Point)
        assert {type(result.parsed) for result in results} == {Point}
        simulator.reply("no JSON")
        (bad,) = await ran(claude, ["Three"], output_format=Point)
    assert isinstance(bad.error, InvalidOutput)
    assert bad.message is not None


@pytest.mark.lengthy
async def test_progress_is_told(virtual_time: VirtualTime) -> None:
    """Every second, and at the end, with the results that were there before counted apart."""
    seen: list[Progress] = []
    simulator = Simulator(batch=BatchOptions(duration_s=100))
    async with governed(simulator) as claude:
        await ran(claude, [*prompts(3), 5], on_progress=seen.append)
    assert (seen[0].total, seen[0].in_flight, seen[0].failed) == (4, 3, 1)
    assert (seen[-1].answered, seen[-1].failed, seen[-1].in_flight, seen[-1].ended) == (3, 1, 0, True)
    assert len(seen) > 90


async def test_progress_is_shown(virtual_time: VirtualTime, capsys: pytest.CaptureFixture[str]) -> None:
    """On the standard error, on request."""
    async with governed(Simulator()) as claude:
        await ran(claude, prompts(3), progress=True)
    assert "3" in capsys.readouterr().err
