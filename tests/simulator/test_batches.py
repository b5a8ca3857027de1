from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import anthropic
import anyio
import httpx2
import pytest
from anthropic.types.messages import (
    MessageBatchErroredResult,
    MessageBatchIndividualResponse,
    MessageBatchSucceededResult,
)

from penstock.simulator import BatchOptions, Simulator
from penstock.simulator.server import serving
from penstock.simulator.wire import Request

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from anthropic import AsyncAnthropic

    from penstock.testing.plugin import VirtualTime

MODEL = "claude-sonnet-5-5"
DAY_S = 86_400
HEADERS = {"x-api-key": "sk-1", "anthropic-version": "2026-10-21", "host": "here"}


def asks(size: int, **params: object) -> list[Any]:
    """Requests for a batch, some params replaced."""
    return [
        {
            "custom_id": f"id-{index}",
            "params": {
                "model": MODEL,
                "max_tokens": 100,
                "messages": [{"role": "user", "content": f"Number {index}"}],
                **params,
            },
        }
        for index in range(size)
    ]


async def read(claude: AsyncAnthropic, identity: str) -> list[MessageBatchIndividualResponse]:
    """All lines of a results file."""
    return [line async for line in await claude.messages.batches.results(identity)]


async def drain(source: AsyncIterator[object], into: list[object]) -> None:
    """Read until it ends or fails."""
    async for line in source:
        into.append(line)  # noqa: PERF401 - a comprehension would lose them


async def ran(simulator: Simulator, requests: list[Any], seconds: float) -> dict[str, Any]:
    """What became of each request, by custom_id."""
    async with simulator.client() as claude:
        batch = await claude.messages.batches.create(requests=requests)
        await anyio.sleep(seconds)
        return {line.custom_id: line.result for line in await read(claude, batch.id)}


def posted(simulator: Simulator, requests: object) -> tuple[int, Any]:
    """Status and body of the answer to an attempt to make a batch."""
    body = json.dumps({"requests": requests}).encode()
    exchange = simulator.open(Request(method="POST", path="/v1/messages/batches", query={}, headers=HEADERS, body=body))
    status = exchange.begin()
    data = b"".join(exchange.produce(step) for step in exchange.steps)
    exchange.close(complete=True)
    return status, json.loads(data)


async def test_a_batch_goes_through_its_states(virtual_time: VirtualTime) -> None:
    """All counts stay in `processing` until the whole batch ends, and only then there are results."""
    simulator = Simulator(batch=BatchOptions(duration_s=100))
    async with simulator.client() as claude:
        made = await claude.messages.batches.create(requests=asks(10))
        assert (made.processing_status, made.request_counts.processing) == ("in_progress", 10)
        assert (made.expires_at - made.created_at).total_seconds() == DAY_S
        assert (made.results_url, made.ended_at, made.archived_at, made.cancel_initiated_at) == (None,) * 4
        await anyio.sleep(99)
        assert (await claude.messages.batches.retrieve(made.id)).request_counts.processing == 10
        with pytest.raises(anthropic.AnthropicError, match="results_url"):
            await claude.messages.batches.results(made.id)
        await anyio.sleep(1)
        ended = await claude.messages.batches.retrieve(made.id)
        assert ended.processing_status == "ended"
        assert ended.ended_at is not None
        assert (ended.ended_at - ended.created_at).total_seconds() == 100
        assert (ended.request_counts.processing, ended.request_counts.succeeded) == (0, 10)
        assert ended.results_url == f"http://simulator.invalid/v1/messages/batches/{made.id}/results"


@pytest.mark.lengthy
async def test_results_answer_each_request_in_another_order(virtual_time: VirtualTime) -> None:
    """Each custom_id gets the answer to its own prompt, in the tier `batch`, always the same, shuffled by the seed."""
    simulator = Simulator()
    async with simulator.client() as claude:
        batch = await claude.messages.batches.create(requests=asks(250))
        await anyio.sleep(60)
        lines = await read(claude, batch.id)
        assert [line.to_dict() for line in await read(claude, batch.id)] == [line.to_dict() for line in lines]
    assert [line.custom_id for line in lines] != sorted(line.custom_id for line in lines)
    ids: set[str] = set()
    for line in lines:
        assert isinstance(line.result, MessageBatchSucceededResult)
        message = line.result.message
        assert message.content[0].to_dict()["text"] == f"Summary: Number {line.custom_id.removeprefix('id-')}"
        assert message.usage.service_tier == "batch"
        ids.add(message.id)
    assert len(ids) == len({line.custom_id for line in lines}) == 250
    assert simulator.statistics().output_tokens == 0


async def test_bad_params_are_errored_later(virtual_time: VirtualTime) -> None:
    """A batch is accepted whatever its params are; those that the API refuses come back as its error."""
    bad: dict[str, dict[str, object]] = {
        "model": {"model": "claude-unknown"},
        "stream": {"stream": True},
        "speed": {"speed": "fast"},
        "fallbacks": {"fallbacks": "default"},
        "billing": {"billing_policy": {"type": "billing_policy", "bill_to": "user_profile"}},
        "prewarm": {"max_tokens": 0},
        "negative": {"max_tokens": -1},
        "extra": {"temperature": 0.5},
        "window": {"messages": [{"role": "user", "content": "x" * 4_000_100}]},
    }
    requests = [{**asks(1, **params)[0], "custom_id": name} for name, params in bad.items()]
    results = await ran(Simulator(), [*requests, {**asks(1)[0], "custom_id": "good"}], 60)
    assert results.pop("good").type == "succeeded"
    kinds = {name: result.error.error.type for name, result in results.items()}
    assert kinds == {name: "not_found_error" if name == "model" else "invalid_request_error" for name in bad}
    assert all(isinstance(result, MessageBatchErroredResult) for result in results.values())
    assert results["prewarm"].error.request_id.startswith("req_")
    assert "stream" in results["stream"].error.error.message


@pytest.mark.lengthy
@pytest.mark.parametrize(
    ("requests", "message"),
    [
        (None, "requests: Input should be a valid list"),
        ([], "at least 1 item"),
        ([1], "requests.0: Input should be a valid dictionary"),
        ([{"params": {}}], "requests.0.custom_id: Field required"),
        ([{"custom_id": 1, "params": {}}], "requests.0.custom_id: Input should be a valid string"),
        ([{"custom_id": "a b", "params": {}}], "requests.0.custom_id: String should match pattern"),
        ([{"custom_id": "a\n", "params": {}}], "requests.0.custom_id: String should match pattern"),
        ([{"custom_id": "a" * 65, "params": {}}], "requests.0.custom_id: String should match pattern"),
        ([{"custom_id": "a"}], "requests.0.params: Field required"),
        ([{"custom_id": "a", "params": []}], "requests.0.params: Input should be a valid dictionary"),
        ([{"custom_id": "a", "params": {}, "extra": 1}], "requests.0.extra: Extra inputs are not permitted"),
        ([{"custom_id": "a", "params": {}}] * 2, "requests.1.custom_id: custom_id values must be unique"),
        ([{"custom_id": "a", "params": {}}] * 100_001, "at most 100000 items"),
    ],
)
def test_a_malformed_batch_is_refused_at_once(requests: object, message: str) -> None:
    """Ids, their uniqueness and the number of requests are looked at when a batch is made."""
    simulator = Simulator()
    status, body = posted(simulator, requests)
    assert status == 400
    assert message in body["error"]["message"]
    assert repr(simulator.batches) == "Batches(0 of 0)"


@pytest.mark.lengthy
def test_a_batch_may_have_256_mb() -> None:
    """A batch is allowed what a single request is not, and is refused above its own limit."""
    simulator = Simulator()
    large = [{"custom_id": "a", "params": {"text": "x" * (40 * 1024 * 1024)}}]
    assert posted(simulator, large)[0] == 200
    headers = {**HEADERS, "content-encoding": "identity"}
    body = bytes(256 * 1024 * 1024 + 1)
    exchange = simulator.open(Request(method="POST", path="/v1/messages/batches", query={}, headers=headers, body=body))
    assert exchange.begin() == 413


@pytest.mark.lengthy
async def test_the_service_fails_for_some(virtual_time: VirtualTime) -> None:
    """A share of the requests, the same ones for one seed, is errored with what may be tried again."""
    options = BatchOptions(errored=0.5)
    results = await ran(Simulator(batch=options, seed=3), asks(200), 60)
    failed = {name for name, result in results.items() if result.type == "errored"}
    assert 60 < len(failed) < 140
    assert {results[name].error.error.type for name in failed} == {"overloaded_error", "api_error"}
    again = await ran(Simulator(batch=options, seed=3), asks(200), 60)
    assert failed == {name for name, result in again.items() if result.type == "errored"}


async def test_what_is_not_processed_expires(virtual_time: VirtualTime) -> None:
    """After a day a batch ends; requests that were never processed, or too late, have expired."""
    stuck = await ran(Simulator(batch=BatchOptions(expired=0.3)), asks(100), DAY_S)
    assert 10 < sum(result.type == "expired" for result in stuck.values()) < 60
    slow = await ran(Simulator(batch=BatchOptions(duration_s=2 * DAY_S)), asks(100), DAY_S)
    assert sum(result.type == "expired" for result in slow.values()) == 50
    assert sum(result.type == "succeeded" for result in slow.values()) == 50


async def test_a_cancelled_batch_keeps_what_is_done(virtual_time: VirtualTime) -> None:
    """A batch is `canceling` for a while; what was processed by then stays, the rest is `canceled`."""
    simulator = Simulator(batch=BatchOptions(duration_s=100, cancel_s=5))
    async with simulator.client() as claude:
        batch = await claude.messages.batches.create(requests=asks(10))
        await anyio.sleep(30)
        canceling = await claude.messages.batches.cancel(batch.id)
        assert canceling.processing_status == "canceling"
        assert canceling.cancel_initiated_at is not None
        await anyio.sleep(4)
        assert (await claude.messages.batches.cancel(batch.id)).cancel_initiated_at == canceling.cancel_initiated_at
        assert (await claude.messages.batches.retrieve(batch.id)).request_counts.processing == 10
        await anyio.sleep(1)
        ended = await claude.messages.batches.retrieve(batch.id)
        assert (ended.request_counts.succeeded, ended.request_counts.canceled) == (3, 7)
        kinds = [line.result.type for line in await read(claude, batch.id)]
        assert (kinds.count("succeeded"), kinds.count("canceled")) == (3, 7)
        with pytest.raises(anthropic.BadRequestError, match="has ended"):
            await claude.messages.batches.cancel(batch.id)


async def test_a_batch_cancelled_near_its_end_just_ends(virtual_time: VirtualTime) -> None:
    """A cancellation never makes a batch last longer."""
    simulator = Simulator(batch=BatchOptions(duration_s=100, cancel_s=50))
    async with simulator.client() as claude:
        batch = await claude.messages.batches.create(requests=asks(10))
        await anyio.sleep(95)
        await claude.messages.batches.cancel(batch.id)
        await anyio.sleep(5)
        ended = await claude.messages.batches.retrieve(batch.id)
    assert (ended.processing_status, ended.request_counts.succeeded) == ("ended", 9)


async def test_batches_are_listed_in_pages_newest_first(virtual_time: VirtualTime) -> None:
    """The SDK pages through all of them, and both cursors work."""
    simulator = Simulator()
    async with simulator.client() as claude:
        assert (await claude.messages.batches.list()).data == []
        made = [(await claude.messages.batches.create(requests=asks(1))).id for _ in range(5)]
        newest_first = made[::-1]
        assert [batch.id async for batch in claude.messages.batches.list(limit=2)] == newest_first
        page = await claude.messages.batches.list(limit=2, after_id=newest_first[0])
        assert ([batch.id for batch in page.data], page.has_more) == (newest_first[1:3], True)
        assert (page.first_id, page.last_id) == (newest_first[1], newest_first[2])
        page = await claude.messages.batches.list(limit=2, before_id=newest_first[3])
        assert ([batch.id for batch in page.data], page.has_more) == (newest_first[1:3], True)
        page = await claude.messages.batches.list(limit=5, before_id=newest_first[3])
        assert ([batch.id for batch in page.data], page.has_more) == (newest_first[:3], False)
        with pytest.raises(anthropic.BadRequestError):
            await claude.messages.batches.list(limit=0)
        with pytest.raises(anthropic.NotFoundError):
            await claude.messages.batches.list(after_id="msgbatch_none")


async def test_only_what_has_ended_can_be_deleted(virtual_time: VirtualTime) -> None:
    """A deleted batch is gone for good."""
    simulator = Simulator(batch=BatchOptions(duration_s=10))
    async with simulator.client() as claude:
        batch = await claude.messages.batches.create(requests=asks(1))
        with pytest.raises(anthropic.BadRequestError, match="in progress"):
            await claude.messages.batches.delete(batch.id)
        await anyio.sleep(10)
        deleted = await claude.messages.batches.delete(batch.id)
        assert (deleted.id, deleted.type) == (batch.id, "message_batch_deleted")
        with pytest.raises(anthropic.NotFoundError):
            await claude.messages.batches.retrieve(batch.id)
    assert repr(simulator.batches) == "Batches(0 of 1)"


async def test_results_are_kept_for_29_days(virtual_time: VirtualTime) -> None:
    """After that the batch is archived: it is there, its results are not."""
    simulator = Simulator()
    async with simulator.client() as claude:
        batch = await claude.messages.batches.create(requests=asks(3))
        await anyio.sleep(29 * DAY_S - 1)
        assert len(await read(claude, batch.id)) == 3
        await anyio.sleep(1)
        archived = await claude.messages.batches.retrieve(batch.id)
        assert archived.archived_at is not None
        assert (archived.results_url, archived.request_counts.succeeded) == (None, 3)
        with pytest.raises(anthropic.NotFoundError, match="no longer available"):
            await claude.get(f"/v1/messages/batches/{batch.id}/results", cast_to=httpx2.Response)


async def test_results_are_not_there_before_the_end(virtual_time: VirtualTime) -> None:
    """Whoever asks for them without looking at the batch is refused."""
    async with Simulator().client() as claude:
        batch = await claude.messages.batches.create(requests=asks(1))
        with pytest.raises(anthropic.NotFoundError, match="no results yet"):
            await claude.get(f"/v1/messages/batches/{batch.id}/results", cast_to=httpx2.Response)


async def test_a_batch_belongs_to_its_organization(virtual_time: VirtualTime) -> None:
    """Keys of the organization that made a batch see it; to any other there is none."""
    simulator = Simulator(keys={"sk-a": "org-1", "sk-b": "org-1", "sk-c": "org-2"})
    async with simulator.client("sk-a") as first, simulator.client("sk-b") as second, simulator.client("sk-c") as other:
        batch = await first.messages.batches.create(requests=asks(1))
        assert (await second.messages.batches.retrieve(batch.id)).id == batch.id
        assert (await other.messages.batches.list()).data == []
        actions: list[Callable[[str], Any]] = [
            other.messages.batches.retrieve,
            other.messages.batches.cancel,
            other.messages.batches.delete,
            other.messages.batches.results,
        ]
        for action in actions:
            with pytest.raises(anthropic.NotFoundError):
                await action(batch.id)


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("DELETE", "", "GET, POST"),
        ("POST", "/msgbatch_1", "GET, DELETE"),
        ("GET", "/msgbatch_1/cancel", "POST"),
        ("POST", "/msgbatch_1/results", "GET"),
        ("GET", "/msgbatch_1/other", None),
    ],
)
def test_each_path_has_its_methods(method: str, path: str, allow: str | None) -> None:
    """Another method gets a 405 that names the right ones; an unknown path a 404."""
    exchange = Simulator().open(
        Request(method=method, path=f"/v1/messages/batches{path}", query={}, headers=HEADERS, body=b"{}")
    )
    assert exchange.begin() == (404 if allow is None else 405)
    assert exchange.headers.get("allow") == allow


async def test_scripted_replies_go_to_batches_too(virtual_time: VirtualTime) -> None:
    """A refusal is an answer like any other, and the script is used when the batch ends."""
    simulator = Simulator(batch=BatchOptions(errored=0.2), seed=1)
    simulator.reply("No.", stop_reason="refusal", times=20)
    results = await ran(simulator, asks(10), 60)
    answered = [result for result in results.values() if result.type == "succeeded"]
    assert 0 < len(answered) < 10
    assert {result.message.stop_reason for result in answered} == {"refusal"}


async def test_faults_hit_the_requests_about_batches(virtual_time: VirtualTime) -> None:
    """One that keeps a request from being processed makes no batch; one that damages the answer makes one."""
    simulator = Simulator()
    simulator.inject("overloaded")
    simulator.inject("truncated")
    async with simulator.client(max_retries=0) as claude:
        with pytest.raises(anthropic.InternalServerError):
            await claude.messages.batches.create(requests=asks(1))
        assert repr(simulator.batches) == "Batches(0 of 0)"
        with pytest.raises(anthropic.APIConnectionError):
            await claude.messages.batches.create(requests=asks(1))
        assert len((await claude.messages.batches.list()).data) == 1
    assert [entry.fault for entry in simulator.journal] == ["overloaded", "truncated", None]


@pytest.mark.lengthy
@pytest.mark.parametrize(
    ("fault", "error"),
    [("truncated", httpx2.RemoteProtocolError), ("stall", httpx2.ReadTimeout), ("bad_json", json.JSONDecodeError)],
)
async def test_a_results_file_may_break_off(virtual_time: VirtualTime, fault: str, error: type[Exception]) -> None:
    """Half of it comes, and then an end, nothing, or something that is no JSON."""
    simulator = Simulator()
    lines: list[object] = []
    async with simulator.client(max_retries=0) as claude:
        batch = await claude.messages.batches.create(requests=asks(100))
        await anyio.sleep(60)
        simulator.inject(fault, after=1, delay_s=7)
        before = virtual_time.now()
        decoder = await claude.messages.batches.results(batch.id)
        assert virtual_time.now() == pytest.approx(before + 7)
        with pytest.raises(error):
            await drain(decoder, lines)
        await decoder.close()
    assert 40 < len(lines) < 60


@pytest.mark.parametrize(
    "fields",
    [
        {"duration_s": -1},
        {"duration_s": float("nan")},
        {"cancel_s": -1},
        {"lifetime_s": 0},
        {"kept_s": float("inf")},
        {"errored": -0.1},
        {"expired": 1.1},
        {"errored": 0.6, "expired": 0.6},
    ],
)
def test_options_out_of_range_are_refused(fields: dict[str, float]) -> None:
    """Times and probabilities that make no sense name themselves."""
    with pytest.raises(ValueError, match=next(iter(fields))):
        BatchOptions(**fields)


async def test_options_hold_for_batches_made_from_then_on(virtual_time: VirtualTime) -> None:
    """What is changed while a batch is under way does not change that one."""
    simulator = Simulator(batch=BatchOptions(duration_s=0))
    async with simulator.client() as claude:
        first = await claude.messages.batches.create(requests=asks(1))
        simulator.batches.options = BatchOptions(duration_s=500)
        second = await claude.messages.batches.create(requests=asks(1))
        assert (await claude.messages.batches.retrieve(first.id)).processing_status == "ended"
        assert (await claude.messages.batches.retrieve(second.id)).processing_status == "in_progress"
    assert repr(simulator.batches) == "Batches(2 of 2)"


def test_a_batch_shows_no_content() -> None:
    """Neither prompts nor params are in what is printed of it."""
    simulator = Simulator()
    status, made = posted(simulator, asks(1))
    assert status == 200
    organization = simulator.organization("sk-1").id
    batch = simulator.batches.find(organization, made["id"])
    assert repr(batch) == f"Batch({made['id']}, 1 requests, in progress)"
    assert "Number" not in repr([simulator, simulator.batches, batch])


@pytest.mark.lengthy
@pytest.mark.anyio
async def test_batches_work_over_a_server() -> None:
    """Through sockets too, a large results file arrives whole."""
    simulator = Simulator(batch=BatchOptions(duration_s=0.0))
    with serving(simulator) as url:
        async with anthropic.AsyncAnthropic(api_key="sk-1", base_url=url) as claude:
            batch = await claude.messages.batches.create(requests=asks(1000))
            ended = await claude.messages.batches.retrieve(batch.id)
            assert ended.results_url == f"{url}/v1/messages/batches/{batch.id}/results"
            lines = await read(claude, batch.id)
    assert {line.custom_id for line in lines} == {f"id-{index}" for index in range(1000)}
