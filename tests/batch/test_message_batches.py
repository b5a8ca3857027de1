from __future__ import annotations

import asyncio
import itertools
import json
import random
import shutil
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import anthropic
import anyio
import pytest
from pydantic import BaseModel

from penstock import Client, JournalError, NoKeyAvailable, RetryOptions
from penstock.batch.journal import Journal
from penstock.batch.message_batches import MessageBatches
from penstock.batch.message_batches.desk import Delays, Desk
from penstock.batch.message_batches.follow import Follower
from penstock.batch.message_batches.intake import encoded, wire_id
from penstock.batch.message_batches.ledger import Ledger
from penstock.batch.message_batches.remote import Remote
from penstock.batch.message_batches.spool import Head, Spool
from penstock.batch.message_batches.submit import Submitter
from penstock.core.events import CallEnded, Event
from penstock.errors import InvalidOutput, ItemFailed
from penstock.simulator import BatchOptions, Simulator
from penstock.testing import Cancelled, cancel_at_every_await

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Iterator
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


def check_all(results: list[FanOutResult], size: int) -> None:
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
        assert repr(results).startswith("<MessageBatches <Run batches, <Intake ")
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
        results = claude.batch(["One"], model=MODEL, max_tokens=9)
        assert repr(results) == "<MessageBatches, not begun>"
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


# What fails.


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


async def test_a_results_file_that_never_comes_whole_is_an_error(virtual_time: VirtualTime) -> None:
    """After a few times without any progress."""
    simulator = Simulator(batch=BatchOptions(duration_s=1))
    async with governed(simulator) as claude, claude.batch(prompts(3), model=MODEL, max_tokens=9) as results:
        await anyio.sleep(1)
        simulator.inject("bad_json", after=2)
        for _ in range(5):
            simulator.inject("bad_json", after=1)
        with pytest.raises(json.JSONDecodeError):
            [result async for result in results]
    assert len(asked(simulator, "GET", "results")) == 6


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
        with anyio.move_on_at(moment):
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
        (refused,) = await ran(claude, prompts(1), journal=path)
        assert isinstance(refused.error, JournalError)


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
        assert len(found) == 31
        assert sum(result.ok for result in found) == 10
        assert {str(result.error) for result in found if not result.ok} == {"the item canceled"}
        assert virtual_time.now() < 70
        rest = await ran(claude, prompts(40), journal=path)
    check_all([*(result for result in found if result.ok), *rest], 40)


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
            if path is not None:
                everything = await ran(claude, prompts(4), journal=path, batch_size=2, replay=True)
                check_all(everything, 4)
                assert {result.index for result in seen} <= {result.index for result in everything if result.replayed}
                assert repr(simulator.batches) == "Batches(2 of 2)"
                path.unlink()

    assert await cancel_at_every_await(scenario, how=how) > 3


# In time.


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


async def test_nothing_is_waited_for_beyond_the_deadline(virtual_time: VirtualTime, tmp_path: Path) -> None:
    """What neither a batch nor the service live has answered by then has expired; another run collects it."""
    simulator = Simulator(batch=BatchOptions(duration_s=HOUR_S, cancel_s=900))
    path = tmp_path / "run.jsonl"
    async with governed(simulator) as claude:
        results = await ran(claude, prompts(10), journal=path, deadline_s=600)
        assert virtual_time.now() == pytest.approx(600, abs=1)
        assert {str(result.error) for result in results} == {"the item expired: DeadlineExceeded"}
        check_all(await ran(claude, prompts(10), journal=path), 10)


async def test_a_live_request_has_no_longer_than_the_deadline(virtual_time: VirtualTime) -> None:
    """A service that hangs fails the item, in time."""
    simulator = Simulator(latency_s=1000)
    async with governed(simulator) as claude:
        (result,) = await ran(claude, prompts(1), deadline_s=30)
    assert isinstance(result.error, anthropic.APITimeoutError)
    assert virtual_time.now() == pytest.approx(30, abs=0.1)


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


def test_what_it_is_made_of_shows_no_content() -> None:
    """Neither params nor prompts are in what is printed of its parts."""
    desk: Any = None
    with Spool(None) as spool:
        place = spool.add(Head(index=0, custom_id="a", digest="0" * 16, wire_id="a-0"), b'{"secret": 1}')
        assert spool.request(place) == {"custom_id": "a-0", "params": {"secret": 1}}
        assert repr(spool) == "<Spool of 54 bytes>"
    assert repr(Submitter(Desk.__new__(Desk))).startswith("<Submitter")
    assert repr(Delays(5.0, random.Random(0))) == "<Delays, next 5 s>"
    assert repr(Ledger(None)) == "<Ledger of 0 batches under way, 0 in all>"
    assert "Remote" in repr(Remote(Simulator().client()))
    assert repr(Follower(desk, max_attempts=3)) == "<Follower, up to 3 attempts>"
