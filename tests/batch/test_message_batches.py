from __future__ import annotations

import asyncio
import itertools
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import anthropic
import anyio
import httpx2
import pytest
from pydantic import BaseModel

from penstock import Client, JournalError, NoKeyAvailable, RetryOptions, deadline
from penstock.batch.journal import Journal
from penstock.batch.message_batches import MessageBatches
from penstock.batch.message_batches.desk import Delays, Desk
from penstock.batch.message_batches.follow import Follower
from penstock.batch.message_batches.ledger import Ledger
from penstock.batch.message_batches.plan import Plan
from penstock.batch.message_batches.remote import NoResults, Remote
from penstock.batch.message_batches.requests import Head, Spool, encoded, wire_id
from penstock.batch.message_batches.submit import Submitter
from penstock.errors import InvalidOutput, ItemFailed
from penstock.events import CallEnded, Event
from penstock.simulator import BatchOptions, Simulator
from penstock.simulator.server import serving
from penstock.testing import Cancelled, cancel_at_every_await

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from penstock.batch.items import Request
    from penstock.batch.progress import Progress
    from penstock.batch.result import FanOutResult
    from penstock.testing.cancellation import How
    from penstock.testing.plugin import VirtualTime

MODEL = "claude-sonnet-5-5"
DAY_S = 86_400.0
HOUR_S = 3_600.0
BATCHES = "/v1/messages/batches"
HOWS: tuple[How, ...] = ("waiting", "done", "repeatedly")


def governed(simulator: Simulator, *keys: str, **options: Any) -> Client:
    """Make a client that governs an SDK client of the simulator's."""
    given = {"api_keys": keys} if keys else {}
    return Client(sdk=simulator.client(), **{"log": False, "retry": RetryOptions(base_s=0.001), **given, **options})


class Between(httpx2.AsyncBaseTransport):
    """A transport between client and simulator, with a function that changes what passes."""

    def __init__(
        self,
        simulator: Simulator,
        change: Callable[
            [httpx2.Request, Callable[[httpx2.Request], Awaitable[httpx2.Response]]], Awaitable[httpx2.Response]
        ],
    ) -> None:
        self._inner = simulator.transport()
        self._change = change

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        return await self._change(request, self._inner.handle_async_request)


def kind_of(request: httpx2.Request) -> str:
    """What a request about batches is about."""
    if request.url.path.endswith("/results"):
        return "results"
    if request.url.path == BATCHES:
        return "make" if request.method == "POST" else "list"
    return "look" if request.method == "GET" else "stop"


def changed(simulator: Simulator, kind: str, change: Callable[[bytes], httpx2.Response], *, times: float = 1) -> Client:
    """Make a governed client, to whom the first answers of a kind come otherwise."""
    count = itertools.count()

    async def between(
        request: httpx2.Request, call: Callable[[httpx2.Request], Awaitable[httpx2.Response]]
    ) -> httpx2.Response:
        response = await call(request)
        if kind_of(request) != kind or next(count) >= times:
            return response
        return change(await response.aread())

    return passing(Between(simulator, between))


def passing(transport: httpx2.AsyncBaseTransport) -> Client:
    """Make a governed client that sends through a transport."""
    sdk = anthropic.AsyncAnthropic(
        api_key="sk-sim-1", http_client=httpx2.AsyncClient(transport=transport), max_retries=0
    )
    return Client(sdk=sdk, log=False, retry=RetryOptions(base_s=0.001))


def reply(content: bytes, kind: str = "application/json", status: int = 200) -> httpx2.Response:
    """An answer of HTTP."""
    return httpx2.Response(status, headers={"content-type": kind}, content=content)


def prompts(size: int) -> Iterator[Request]:
    """So many requests."""
    return (
        {"custom_id": f"row-{number}", "params": {"messages": [{"role": "user", "content": f"Number {number}"}]}}
        for number in range(size)
    )


async def ran(claude: Client, requests: Iterable[Any] | AsyncIterator[Any], **options: Any) -> list[FanOutResult]:
    """All results of a run."""
    async with claude.batch(requests, **{"model": MODEL, "max_tokens": 100, **options}) as results:
        return [result async for result in results]


async def drain(source: AsyncIterator[FanOutResult], into: list[FanOutResult]) -> None:
    """Take results as they come; what came before a cancellation stays."""
    async for result in source:
        into.append(result)  # noqa: PERF401 - a comprehension would lose them


def text_of(result: FanOutResult) -> str:
    """The text that an item was answered with."""
    assert result.message is not None
    (block,) = result.message.content
    assert block.type == "text"
    return block.text


def check_all(results: Sequence[FanOutResult], size: int) -> None:
    """Each of `prompts` has its own answer, once."""
    assert sorted(result.index for result in results) == list(range(size))
    for result in results:
        assert (result.custom_id, text_of(result)) == (f"row-{result.index}", f"Summary: Number {result.index}")


def made(simulator: Simulator) -> list[list[str]]:
    """The wire ids of each batch that was submitted and taken, whether its answer arrived or not."""
    return [
        [request["custom_id"] for request in entry.body["requests"]]
        for entry in simulator.journal
        if entry.path == BATCHES and entry.body is not None and entry.fault in {None, "truncated"}
    ]


def asked(simulator: Simulator, method: str, ending: str = "") -> list[float]:
    """When the requests of a kind came."""
    return [
        entry.started_at
        for entry in simulator.journal
        if entry.method == method and entry.path.startswith(BATCHES) and entry.path.endswith(ending)
    ]


# Results.


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


# Input.


async def test_input_is_split_and_read_one_batch_at_a_time(virtual_time: VirtualTime) -> None:
    """When a batch is submitted, no more than the first item of the next one has been read."""
    simulator = Simulator(latency_s=0.1)
    read: list[int] = []
    reads_at_submission: list[int] = []

    def given() -> Iterator[Request]:
        for number, request in enumerate(prompts(25)):
            reads_at_submission.append(len(made(simulator)))
            read.append(number)
            yield request

    async with governed(simulator) as claude:
        check_all(await ran(claude, given(), batch_size=10), 25)
    assert [len(wires) for wires in made(simulator)] == [10, 10, 5]
    assert reads_at_submission == [0] * 10 + [1] * 10 + [2] * 5


async def test_a_batch_holds_no_more_bytes_than_it_may(virtual_time: VirtualTime) -> None:
    """The limit holds for what is sent; a request beyond it fails alone."""
    simulator = Simulator()
    requests = [f"{number} " + "x" * 900 for number in range(10)]
    async with governed(simulator) as claude:
        results = await ran(claude, [*requests, "y" * 5000], batch_bytes=4000)
    bodies = [entry.body for entry in simulator.journal if entry.method == "POST"]
    assert [len(body["requests"]) for body in bodies if body is not None] == [3, 3, 3, 1]
    assert max(len(json.dumps(body)) for body in bodies) <= 4100
    (failed,) = [result for result in results if not result.ok]
    assert "a batch takes 4000" in str(failed.error)


async def test_what_can_not_be_asked_fails_alone(virtual_time: VirtualTime) -> None:
    """Duplicates, nonsense, and what no JSON can hold are results; the others are asked."""
    simulator = Simulator()
    bad: list[Any] = [
        5,
        {"params": {}},
        {"custom_id": "row-0", "params": {"messages": []}},
        {"custom_id": "object", "params": {"messages": object()}},
        {"custom_id": "nan", "params": {"messages": [], "x": float("nan")}},
        {"custom_id": "surrogate", "params": {"messages": [{"role": "user", "content": "\ud800"}]}},
        {"custom_id": "stream", "params": {"messages": [], "stream": True}},
    ]
    async with governed(simulator) as claude:
        results = await ran(claude, [*prompts(2), *bad])
    check_all([result for result in results if result.ok], 2)
    errors = {result.index: str(result.error) for result in results if not result.ok}
    assert sorted(errors) == list(range(2, 9))
    assert "has the custom_id 'row-0', as one before it has" in errors[4]
    assert len(made(simulator)[0]) == 2


async def test_an_error_of_the_input_comes_last(virtual_time: VirtualTime) -> None:
    """Everything that it gave before is answered; then it is raised as it is."""
    simulator = Simulator()

    def given() -> Iterator[Request]:
        yield from prompts(3)
        raise OSError("unplugged")

    seen: list[FanOutResult] = []
    async with governed(simulator) as claude, claude.batch(given(), model=MODEL) as results:
        with pytest.raises(OSError, match="unplugged"):
            seen.extend([await anext(results) for _ in itertools.count()])
        with pytest.raises(StopAsyncIteration):
            await anext(results)
    assert asked(simulator, "GET", "results") != []


def test_params_are_sent_as_json() -> None:
    """Blocks of an answer go back as they came, and what is not given is left out."""
    block = anthropic.types.TextBlock.construct(type="text", text="Hi")
    params = {"messages": [{"role": "assistant", "content": [block]}], "system": anthropic.NOT_GIVEN}
    assert json.loads(encoded(params)) == {
        "messages": [{"role": "assistant", "content": [{"type": "text", "text": "Hi"}]}]
    }
    with pytest.raises(TypeError, match="object is not"):
        encoded({"messages": object()})


def test_wire_ids_are_what_the_api_takes() -> None:
    """64 characters of its alphabet at most, different wherever the name or the request is."""
    digests = ("0" * 16, "f" * 16)
    names = ("a", "b", "a b", "ä", "x" * 47, "x" * 48, "x" * 500, "\ud800", "")
    found = {wire_id(name, digest) for name in names for digest in digests}
    assert len(found) == len(names) * len(digests)
    assert all(len(wire) <= 64 and wire.replace("-", "").isalnum() and wire.isascii() for wire in found)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"batch_size": 0}, "batch_size"),
        ({"batch_size": 100_001}, "batch_size"),
        ({"batch_size": True}, "batch_size"),
        ({"batch_bytes": 256_000_000}, "batch_bytes"),
        ({"max_attempts": 1.5}, "max_attempts"),
        ({"concurrency": 0}, "concurrency"),
        ({"poll_s": 0}, "poll_s"),
        ({"deadline_s": -1}, "deadline_s"),
        ({"live_s": float("inf")}, "live_s"),
        ({"stream": True}, "stream"),
        ({"retry_failed": True}, "retry_failed needs a journal"),
        ({"replay": True}, "replay needs a journal"),
        ({"keep_params": True}, "keep_params needs a journal"),
        ({"keep_params": True, "journal": Journal("run.jsonl")}, "keep_params belongs"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], error: str) -> None:
    """Each names itself, before anything is done."""
    with pytest.raises(ValueError, match=error):
        MessageBatches(Simulator().client(), [], **options)


async def test_it_runs_once_and_inside_its_block(virtual_time: VirtualTime) -> None:
    """Whoever holds it wrong is told so."""
    async with governed(Simulator()) as claude:
        with pytest.raises(TypeError, match="requests must be"):
            claude.batch("One prompt", model=MODEL)
        with pytest.raises(TypeError, match="on_progress must be"):
            claude.batch([], model=MODEL, on_progress=anyio.sleep)  # type: ignore[arg-type]
        results = claude.batch(["One"], model=MODEL, max_tokens=9)
        assert repr(results) == "<MessageBatches 0 read, 0 delivered, <Batches, not begun>>"
        with pytest.raises(RuntimeError, match="inside"):
            await anext(results)
        with pytest.raises(RuntimeError, match="inside"):
            await results.cancel()
        async with results:
            pass
        with pytest.raises(RuntimeError, match="once"):
            await results.__aenter__()
        await claude.batch([], model=MODEL).__aexit__(None, None, None)


# Waiting.


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


# What fails.


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


# Submitting.


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


async def test_no_room_for_a_batch_is_a_matter_of_time(virtual_time: VirtualTime) -> None:
    """A 429 is waited out however often it comes, as long as the API asks."""
    simulator = Simulator()
    simulator.inject("rate_limited", after=1, times=30, retry_after_s=300)
    async with governed(simulator) as claude:
        check_all(await ran(claude, prompts(5)), 5)
    assert virtual_time.now() > 30 * 300


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


# Going on.


class Killed:
    """A run that is cut off at a moment; what its journal holds just then is all that is left."""

    def __init__(self, simulator: Simulator, folder: Path, **options: Any) -> None:
        self.simulator = simulator
        self.folder = folder
        self.journal = folder / "run.jsonl"
        self.options: dict[str, Any] = {"journal": self.journal, **options}
        self.seen: list[FanOutResult] = []

    async def until(self, moment: float, size: int) -> None:
        """Run until a time of the event loop."""
        with anyio.CancelScope(deadline=moment):
            async with (
                governed(self.simulator) as claude,
                claude.batch(prompts(size), model=MODEL, max_tokens=100, **self.options) as results,
            ):
                try:
                    async for result in results:
                        self.seen.append(result)
                except asyncio.CancelledError:
                    self._save()
                    raise
        self._bring_back()

    def _save(self) -> None:
        for path in self.folder.glob("run.jsonl*"):
            shutil.copy(path, self.folder / f"saved-{path.name}")

    def _bring_back(self) -> None:
        for path in self.folder.glob("saved-*"):
            path.replace(self.folder / path.name.removeprefix("saved-"))

    async def finish(self, size: int, **options: Any) -> list[FanOutResult]:
        """Run again with the same journal, to the end."""
        async with governed(self.simulator) as claude:
            return await ran(claude, prompts(size), **{**self.options, **options})


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
    notes.write_text('{"of": "somebody else"}\n', encoding="utf-8")
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


# Leaving.


async def leave(run: MessageBatches) -> None:
    """Enter it, and fail after ten seconds."""
    async with run:
        await anyio.sleep(10)
        raise RuntimeError("the caller's own")


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


# In time.


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


# Keys.


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


# What the API never says.


@pytest.mark.lengthy
@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda lines: [b"\n", *lines[:2], b"\r\n", *lines[2:]], id="blank lines"),
        pytest.param(lambda lines: [*lines[:2], b"{garbage\n", *lines[2:]], id="no JSON"),
        pytest.param(lambda lines: [b'[1]\n"x"\n5\nnull\n', *lines], id="no objects"),
        pytest.param(lambda lines: [b'{"result":{"type":"expired"}}\n', *lines], id="no custom_id"),
        pytest.param(lambda lines: [b'{"custom_id":[5],"result":{"type":"expired"}}\n', *lines], id="list for a name"),
        pytest.param(lambda lines: [b'{"custom_id":"theirs","result":{"type":"expired"}}\n', *lines], id="unknown"),
        pytest.param(lambda lines: [*lines, b"5"], id="no object at the end"),
        pytest.param(lambda lines: [*lines, *reversed(lines)], id="twice"),
        pytest.param(lambda lines: [b"".join(lines).rstrip(b"\n")], id="no last newline"),
    ],
)
async def test_odd_lines_of_a_results_file_are_passed_over(
    virtual_time: VirtualTime, tmp_path: Path, change: Callable[[list[bytes]], list[bytes]]
) -> None:
    """Each answer comes once, at the first reading, whatever stands between them."""
    simulator = Simulator()

    def odd(content: bytes) -> httpx2.Response:
        return reply(b"".join(change(content.splitlines(keepends=True))), "application/x-jsonl")

    async with changed(simulator, "results", odd) as claude:
        check_all(await ran(claude, prompts(5), journal=tmp_path / "run.jsonl"), 5)
    assert (len(asked(simulator, "GET", "results")), len(made(simulator))) == (1, 1)
    assert len((tmp_path / "run.jsonl").read_bytes().splitlines()) == 5


@pytest.mark.lengthy
@pytest.mark.parametrize(
    "result",
    [{"type": "paused"}, {"type": "succeeded", "message": None}, {"type": "succeeded", "message": {"model": MODEL}}],
)
async def test_a_result_that_nobody_understands_is_a_failure(
    virtual_time: VirtualTime, tmp_path: Path, result: dict[str, Any]
) -> None:
    """It may be paid for, so it is asked again on request only; and the journal stays one."""
    simulator = Simulator()
    options: dict[str, Any] = {"journal": tmp_path / "run.jsonl"}

    def odd(content: bytes) -> httpx2.Response:
        line = json.loads(content)
        return reply(json.dumps({**line, "result": result}).encode(), "application/x-jsonl")

    async with changed(simulator, "results", odd) as claude:
        (failed,) = await ran(claude, prompts(1), **options)
        assert isinstance(failed.error, ItemFailed)
        assert failed.error.error_type == "unknown_result"
        assert await ran(claude, prompts(1), **options) == []
        assert len(made(simulator)) == 1
        check_all(await ran(claude, prompts(1), **options, retry_failed=True), 1)


async def test_a_failure_without_a_reason_is_the_services(virtual_time: VirtualTime) -> None:
    """So it is asked again."""
    simulator = Simulator()

    def odd(content: bytes) -> httpx2.Response:
        line = {**json.loads(content), "result": {"type": "errored", "error": None}}
        return reply(json.dumps(line).encode() + b"\n", "application/x-jsonl")

    async with changed(simulator, "results", odd) as claude:
        check_all(await ran(claude, prompts(1)), 1)
    assert len(made(simulator)) == 2


def edited(**fields: Any) -> Callable[[bytes], httpx2.Response]:
    """An answer with other fields."""
    return lambda content: reply(json.dumps({**json.loads(content), **fields}).encode())


@pytest.mark.lengthy
@pytest.mark.parametrize(
    ("kind", "change", "times"),
    [
        ("look", lambda _: reply(b"<html>", "text/html"), 3),
        ("look", lambda _: reply(b"<html>", "text/html", 502), 30),
        ("look", lambda _: reply(b"<html>", "text/html", 404), 1),
        ("look", lambda _: reply(b"{}"), 3),
        ("look", lambda _: reply(b"[]"), 3),
        ("look", lambda _: reply(b"", status=204), 3),
        ("look", edited(processing_status="paused"), 3),
        ("look", edited(processing_status="ended", results_url=None), 3),
        ("results", lambda _: reply(b'{"type":"error","error":{"type":"not_found_error"}}', status=404), 3),
        ("results", lambda _: reply(b"<html>", "text/html", 502), 100),
        ("list", lambda _: reply(b"<html>", "text/html"), 3),
        ("list", lambda _: reply(b"{}"), 3),
        ("make", lambda _: reply(b"<html>", "text/html"), 1),
        ("make", lambda _: reply(b"{}"), 1),
    ],
)
async def test_what_is_no_answer_is_asked_for_again(
    virtual_time: VirtualTime, kind: str, change: Callable[[bytes], httpx2.Response], times: int
) -> None:
    """A page of a proxy, or an answer that says nothing, ends no run and makes no second batch."""
    simulator = Simulator(batch=BatchOptions(duration_s=1))
    async with changed(simulator, kind, change, times=times) as claude:
        check_all(await ran(claude, prompts(5)), 5)
    assert repr(simulator.batches) == "Batches(1 of 1)"


@pytest.mark.lengthy
@pytest.mark.parametrize(
    ("kind", "change", "error"),
    [
        ("list", lambda _: reply(b"{}"), anthropic.APIResponseValidationError),
        ("list", lambda _: reply(b"{}", status=403), anthropic.PermissionDeniedError),
        ("results", lambda _: reply(b"{}", status=403), anthropic.PermissionDeniedError),
        ("results", lambda _: reply(b"{}", status=500), anthropic.InternalServerError),
        ("look", edited(processing_status="ended", results_url=None), NoResults),
    ],
)
async def test_what_stays_so_is_an_error(
    virtual_time: VirtualTime,
    tmp_path: Path,
    kind: str,
    change: Callable[[bytes], httpx2.Response],
    error: type[Exception],
) -> None:
    """After a day or so at most it is raised, and another run goes on where this one was."""
    simulator = Simulator()
    path = tmp_path / "run.jsonl"
    async with changed(simulator, kind, change, times=math.inf) as claude:
        with pytest.raises(error):
            await ran(claude, prompts(2), journal=path, poll_s=5 if kind == "list" else HOUR_S)
    assert virtual_time.now() < 30 * HOUR_S
    async with governed(simulator) as claude:
        check_all(await ran(claude, prompts(2), journal=path), 2)
    assert repr(simulator.batches) == "Batches(1 of 1)"


async def test_a_batch_deleted_before_its_results_are_read_is_submitted_again(virtual_time: VirtualTime) -> None:
    """It had ended a moment ago."""
    simulator = Simulator()
    first = itertools.count()

    async def between(
        request: httpx2.Request, call: Callable[[httpx2.Request], Awaitable[httpx2.Response]]
    ) -> httpx2.Response:
        if kind_of(request) == "results" and next(first) == 0:
            url = str(request.url).removesuffix("/results")
            await call(httpx2.Request("DELETE", url, headers=request.headers))
        return await call(request)

    async with passing(Between(simulator, between)) as claude:
        found = await ran(claude, prompts(3))
    check_all(found, 3)
    assert {result.attempts for result in found} == {2}


async def test_a_search_for_a_lost_batch_is_made_again(virtual_time: VirtualTime) -> None:
    """Where it gets no answer, it has not shown that there is none."""
    simulator = Simulator()
    simulator.inject("truncated", after=1)
    count = itertools.count()

    def later(content: bytes) -> httpx2.Response:
        return reply(b"{}" if next(count) else content)

    async with changed(simulator, "list", later, times=4) as claude:
        check_all(await ran(claude, prompts(2)), 2)
    assert repr(simulator.batches) == "Batches(1 of 1)"


async def test_a_lost_batch_is_looked_for_until_none_is_left(virtual_time: VirtualTime) -> None:
    """Another's of the same size that was made before it is not the end of the search, so ours is not paid twice."""
    simulator = Simulator()
    theirs: Any = [{"custom_id": f"x-{n}", "params": {"model": MODEL, "messages": []}} for n in range(2)]
    first = itertools.count()
    async with simulator.client() as other:

        async def between(
            request: httpx2.Request, call: Callable[[httpx2.Request], Awaitable[httpx2.Response]]
        ) -> httpx2.Response:
            if kind_of(request) == "make" and next(first) == 0:
                await other.messages.batches.create(requests=theirs)
                await call(request)
                raise httpx2.ReadError("lost", request=request)
            return await call(request)

        async with passing(Between(simulator, between)) as claude:
            found = await ran(claude, prompts(2))
    check_all(found, 2)
    assert {result.attempts for result in found} == {1}
    assert repr(simulator.batches) == "Batches(2 of 2)"


async def test_a_lost_batch_proves_itself_to_an_input_that_lacks_some_of_it(
    virtual_time: VirtualTime, tmp_path: Path
) -> None:
    """Its other requests are known from the notes, so it is not taken for another's, and not paid for twice."""
    simulator = Simulator(latency_s=1)
    run = Killed(simulator, tmp_path)
    # The batch exists, its answer is on the way.
    await run.until(1.5, 5)
    assert len(made(simulator)) == 1
    check_all(await run.finish(3), 3)
    assert sorted(result.index for result in await run.finish(5)) == [3, 4]
    assert repr(simulator.batches) == "Batches(1 of 1)"


@pytest.mark.lengthy
async def test_more_batches_than_a_page_holds_are_searched(virtual_time: VirtualTime) -> None:
    """A lost one is found behind them."""
    simulator = Simulator()
    theirs: Any = [{"custom_id": "x", "params": {"model": MODEL, "messages": []}}]
    first = itertools.count()
    async with simulator.client() as other:

        async def between(
            request: httpx2.Request, call: Callable[[httpx2.Request], Awaitable[httpx2.Response]]
        ) -> httpx2.Response:
            if kind_of(request) == "make" and next(first) == 0:
                await call(request)
                for _ in range(120):
                    await other.messages.batches.create(requests=theirs)
                raise httpx2.ReadError("lost", request=request)
            return await call(request)

        async with passing(Between(simulator, between)) as claude:
            check_all(await ran(claude, prompts(2)), 2)
    assert repr(simulator.batches) == "Batches(121 of 121)"


# What else went wrong.


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


# Cut short.


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


async def test_an_outage_at_the_deadline_holds_nobody(virtual_time: VirtualTime) -> None:
    """Neither can batches be stopped or looked at, nor anything be asked live; what can be stopped later is, then."""
    simulator = Simulator(batch=BatchOptions(duration_s=HOUR_S))
    down = False

    async def between(
        request: httpx2.Request, call: Callable[[httpx2.Request], Awaitable[httpx2.Response]]
    ) -> httpx2.Response:
        await anyio.sleep(1)
        return reply(b"{}", status=500) if down else await call(request)

    async with passing(Between(simulator, between)) as claude:
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
