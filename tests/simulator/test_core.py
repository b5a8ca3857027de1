from __future__ import annotations

import contextlib
import json
from datetime import datetime
from typing import TYPE_CHECKING, Any

import anthropic
import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.simulator import Limit, Simulator
from penstock.simulator.wire import Request

if TYPE_CHECKING:
    import httpx2

    from penstock.testing.plugin import VirtualTime

MODEL = "claude-sonnet-5-5"
HELLO: list[Any] = [{"role": "user", "content": "Hello there"}]
HEADERS = {"x-api-key": "sk-1", "anthropic-version": "2026-10-21"}


def request(
    body: object = None, *, path: str = "/v1/messages", method: str = "POST", headers: dict[str, str] | None = None
) -> Request:
    """A request as a front end hands it over."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Request(method=method, path=path, query={}, headers=HEADERS if headers is None else headers, body=data)


def answered(simulator: Simulator, asked: Request) -> tuple[int, dict[str, str], Any]:
    """(status, headers, JSON body) of an answer that takes no time."""
    exchange = simulator.open(asked)
    status = exchange.begin()
    data = b"".join(exchange.produce(step) for step in exchange.steps)
    exchange.close(complete=True)
    return status, exchange.headers, json.loads(data) if data.startswith(b"{") else data


def ask(**fields: object) -> dict[str, object]:
    """A valid body, with some fields replaced."""
    return {"model": MODEL, "max_tokens": 100, "messages": HELLO, **fields}


async def test_a_plain_message_has_every_field_of_the_api(virtual_time: VirtualTime) -> None:
    """The SDK's own type reads the reply, usage included."""
    simulator = Simulator()
    async with simulator.client() as claude:
        message = await claude.messages.create(model=MODEL, max_tokens=100, messages=HELLO)
        raw = await claude.messages.with_raw_response.create(model=MODEL, max_tokens=100, messages=HELLO)
    assert isinstance(message.content[0], anthropic.types.TextBlock)
    assert message.content[0].text == "Summary: Hello there"
    assert (message.stop_reason, message.role, message.model) == ("end_turn", "assistant", MODEL)
    assert (message.usage.input_tokens, message.usage.output_tokens) == (6, 5)
    assert message.usage.service_tier == "standard"
    assert message.id.startswith("msg_01")
    assert raw.headers["request-id"].startswith("req_01")
    assert set(json.loads(raw.http_response.content)) == {
        "id", "type", "role", "model", "content", "stop_reason", "stop_sequence", "stop_details", "container", "usage",
    }  # fmt: skip


async def test_counting_and_usage_agree(virtual_time: VirtualTime) -> None:
    """`count_tokens` says what the message is then charged for."""
    simulator = Simulator()
    tools: list[Any] = [{"name": "look", "description": "Look it up", "input_schema": {"type": "object"}}]
    async with simulator.client() as claude:
        count = await claude.messages.count_tokens(model=MODEL, messages=HELLO, system="Be terse.", tools=tools)
        message = await claude.messages.create(
            model=MODEL, max_tokens=9, messages=HELLO, system="Be terse.", tools=tools
        )
    assert count.input_tokens == message.usage.input_tokens == simulator.journal[1].input_tokens > 286


async def test_models_are_listed_in_pages(virtual_time: VirtualTime) -> None:
    """The SDK pages through all models, and finds one by id with its limits."""
    async with Simulator().client() as claude:
        everything = [model.id async for model in await claude.models.list(limit=5)]
        one = await claude.models.retrieve("claude-haiku-4-5")
        with pytest.raises(anthropic.NotFoundError, match="model: claude-none"):
            await claude.models.retrieve("claude-none")
    assert len(everything) == len(set(everything)) == 22
    assert (one.max_input_tokens, one.max_tokens, one.lifecycle) == (200_000, 64_000, "active")


@pytest.mark.parametrize("headers", [{"authorization": "Bearer sk-1"}, {"x-api-key": "sk-1"}])
def test_both_ways_to_send_a_key_are_accepted(headers: dict[str, str]) -> None:
    """A bearer token and `x-api-key` are the same key."""
    simulator = Simulator(keys={"sk-1": "org-1"})
    status, sent, _ = answered(simulator, request(ask(), headers={**headers, "anthropic-version": "2026-10-21"}))
    assert (status, sent["anthropic-organization-id"]) == (200, "org-1")


@pytest.mark.parametrize(
    ("headers", "message"),
    [
        ({}, "x-api-key header is required"),
        ({"authorization": "Basic sk-1"}, "x-api-key header is required"),
        ({"x-api-key": "sk-unknown"}, "invalid x-api-key"),
    ],
)
def test_missing_and_unknown_keys_are_401(headers: dict[str, str], message: str) -> None:
    """Without a known key nothing is answered, and no organization is named."""
    simulator = Simulator(keys={"sk-1": "org-1"})
    status, sent, body = answered(simulator, request(ask(), headers={**headers, "anthropic-version": "2026-10-21"}))
    assert (status, body["error"]) == (401, {"type": "authentication_error", "message": message})
    assert body["request_id"] == sent["request-id"] == simulator.journal[0].request_id
    assert "anthropic-organization-id" not in sent
    assert simulator.journal[0].outcome == "refused"


def test_without_keys_each_key_is_its_own_organization() -> None:
    """The id is derived from the key, always the same, and doesn't show it."""
    first, second = Simulator(), Simulator()
    ids = {key: first.organization(key).id for key in ("sk-1", "sk-2")}
    assert ids["sk-1"] != ids["sk-2"]
    assert second.organization("sk-1").id == ids["sk-1"]
    assert "sk-1" not in ids["sk-1"]


def test_an_unknown_key_has_no_organization() -> None:
    """Asking for the state of a key that isn't one is an error that doesn't repeat the key."""
    with pytest.raises(ValueError, match="this key belongs to no organization"):
        Simulator(keys={"sk-1": "org-1"}).organization("sk-2")


@pytest.mark.parametrize(
    ("asked", "status", "kind", "message"),
    [
        (request(path="/v1/complete"), 404, "not_found_error", "Not found"),
        (request(method="GET"), 405, "invalid_request_error", "Method Not Allowed"),
        (request(path="/v1/models"), 405, "invalid_request_error", "Method Not Allowed"),
        (request(ask(model="claude-none")), 404, "not_found_error", "model: claude-none"),
        (request(b"{"), 400, "invalid_request_error", "The request body is not valid JSON"),
        (request([1]), 400, "invalid_request_error", "Input should be a valid dictionary"),
        (request(b" " * (32 * 1024 * 1024 + 1)), 413, "request_too_large", "Request exceeds the maximum size"),
    ],
)
def test_what_the_api_does_not_serve_is_refused_as_there(asked: Request, status: int, kind: str, message: str) -> None:
    """Paths, methods, models and bodies that the API refuses get its status, type and message."""
    simulator = Simulator()
    got, _, body = answered(simulator, asked)
    assert (got, body["error"]) == (status, {"type": kind, "message": message})


async def test_a_quota_holds_for_an_organization_and_model_class(virtual_time: VirtualTime) -> None:
    """Keys of one organization share a bucket, models of one class too; others don't."""
    simulator = Simulator(requests_per_minute=2, keys={"a": "org-1", "b": "org-1", "c": "org-2"})

    async def status(key: str, model: str) -> int:
        async with simulator.client(key, max_retries=0) as claude:
            with contextlib.suppress(anthropic.RateLimitError):
                await claude.messages.create(model=model, max_tokens=10, messages=HELLO)
        return int(simulator.journal[-1].status or 0)

    assert await status("a", "claude-opus-4-8") == 200
    assert await status("b", "claude-opus-4-7") == 200
    assert await status("a", "claude-opus-4-6") == 429
    assert await status("a", "claude-opus-5") == 200
    assert await status("c", "claude-opus-4-8") == 200
    await anyio.sleep(30)
    assert await status("b", "claude-opus-4-8") == 200


async def test_rate_headers_come_with_success_and_refusal(virtual_time: VirtualTime) -> None:
    """Both carry every limit; resets are RFC 3339 and move with virtual time."""
    simulator = Simulator(requests_per_minute=1)
    seen: list[httpx2.Headers] = []
    async with simulator.client(max_retries=0) as claude:
        raw = await claude.messages.with_raw_response.create(model=MODEL, max_tokens=10, messages=HELLO)
        seen.append(raw.headers)
        with pytest.raises(anthropic.RateLimitError) as caught:
            await claude.messages.create(model=MODEL, max_tokens=10, messages=HELLO)
        seen.append(caught.value.response.headers)
        await anyio.sleep(86_400)
        raw = await claude.messages.with_raw_response.create(model=MODEL, max_tokens=10, messages=HELLO)
        seen.append(raw.headers)
    for headers in seen:
        for limit in ("requests", "tokens", "input-tokens", "output-tokens"):
            assert int(headers[f"anthropic-ratelimit-{limit}-limit"]) >= int(
                headers[f"anthropic-ratelimit-{limit}-remaining"]
            )
    times = [datetime.fromisoformat(headers["anthropic-ratelimit-requests-reset"]) for headers in seen]
    assert abs((times[2] - times[0]).total_seconds() - 86_400) <= 1
    assert simulator.organization("sk-sim-1").quotas["sonnet-5-5"].requests.taken == 2


async def test_output_counts_as_it_is_generated(virtual_time: VirtualTime) -> None:
    """`max_tokens` takes nothing; each delta of a stream takes what it holds, when it is sent."""
    simulator = Simulator(output_tokens_per_minute=Limit(60_000, burst_s=60), tokens_per_s=10, output_tokens=100)

    def left() -> float:
        return simulator.organization("sk-sim-1").quotas["sonnet-5-5"].output_tokens.taken

    async with (
        simulator.client() as claude,
        claude.messages.stream(model=MODEL, max_tokens=20_000, messages=HELLO) as stream,
    ):
        seen = [left() async for _ in stream.text_stream]
    assert seen == [float(tokens) for tokens in range(4, 101, 4)]
    assert simulator.journal[0].output_tokens == 100


async def test_a_plain_reply_takes_latency_and_generation(virtual_time: VirtualTime) -> None:
    """Its headers come when all is generated."""
    simulator = Simulator(latency_s=0.5, tokens_per_s=10, output_tokens=30)
    async with simulator.client() as claude:
        await claude.messages.create(model=MODEL, max_tokens=100, messages=HELLO)
    assert virtual_time.now() == pytest.approx(3.5, abs=0.01)


async def test_a_client_that_leaves_pays_for_what_was_generated(virtual_time: VirtualTime) -> None:
    """A plain reply abandoned half way counts half of its tokens."""
    simulator = Simulator(tokens_per_s=10, output_tokens=100)
    async with simulator.client(max_retries=0) as claude:
        with pytest.raises(TimeoutError), anyio.fail_after(5):
            await claude.messages.create(model=MODEL, max_tokens=1000, messages=HELLO)
    entry = simulator.journal[0]
    assert (entry.outcome, entry.status, entry.output_tokens) == ("client closed", None, 50)
    assert simulator.in_flight == 0


async def test_scripted_usage_corrects_the_input_bucket(virtual_time: VirtualTime) -> None:
    """Input and cache writes count, cache reads don't; the estimate taken at the start is corrected."""
    simulator = Simulator(input_tokens_per_minute=1_000_000)
    usage = {"input_tokens": 100, "cache_creation_input_tokens": 50, "cache_read_input_tokens": 900, "output_tokens": 7}
    simulator.reply("Hi", usage=usage)
    async with simulator.client() as claude:
        message = await claude.messages.create(model=MODEL, max_tokens=10, messages=HELLO)
    assert message.usage.cache_read_input_tokens == 900
    quota = simulator.organization("sk-sim-1").quotas["sonnet-5-5"]
    assert (quota.input_tokens.taken, quota.output_tokens.taken) == (150, 7)
    assert (simulator.journal[0].input_tokens, simulator.journal[0].output_tokens) == (150, 7)


async def test_scripted_replies_come_in_order_to_requests_that_succeed(virtual_time: VirtualTime) -> None:
    """A refused or faulty request takes no reply from the script."""
    simulator = Simulator()
    simulator.reply("first")
    simulator.reply([{"type": "tool_use", "name": "look", "input": {"at": "sky"}}])
    simulator.inject("overloaded")
    async with simulator.client(max_retries=0) as claude:
        with pytest.raises(anthropic.InternalServerError):
            await claude.messages.create(model=MODEL, max_tokens=10, messages=HELLO)
        with pytest.raises(anthropic.BadRequestError):
            await claude.messages.create(model=MODEL, max_tokens=10, messages=[])
        messages = [await claude.messages.create(model=MODEL, max_tokens=10, messages=HELLO) for _ in range(3)]
    assert [message.stop_reason for message in messages] == ["end_turn", "tool_use", "end_turn"]
    call = messages[1].content[0]
    assert isinstance(call, anthropic.types.ToolUseBlock)
    assert (call.name, call.input, call.id[:8]) == ("look", {"at": "sky"}, "toolu_01")


async def test_a_forced_tool_is_called_with_fitting_input(virtual_time: VirtualTime) -> None:
    """`tool_choice` gives a call of that tool, without any script."""
    tools: list[Any] = [
        {"name": "a", "input_schema": {"type": "object"}},
        {"name": "b", "input_schema": {"type": "object", "properties": {"n": {"type": "integer", "minimum": 3}}}},
    ]
    async with Simulator(thinking=True).client() as claude:
        message = await claude.messages.create(
            model="claude-haiku-5-5",
            max_tokens=100,
            messages=HELLO,
            tools=tools,
            tool_choice={"type": "tool", "name": "b"},
        )
    (call,) = message.content
    assert isinstance(call, anthropic.types.ToolUseBlock)
    assert (call.name, call.input, message.stop_reason) == ("b", {"n": 3}, "tool_use")


async def test_the_journal_tells_what_was_asked(virtual_time: VirtualTime) -> None:
    """Number, key, model, body, times: everything a test needs, nothing of it in the repr."""
    simulator = Simulator(latency_s=2)
    async with simulator.client("sk-secret") as claude:
        await claude.messages.create(model=MODEL, max_tokens=10, messages=HELLO)
    (entry,) = simulator.journal
    assert (entry.number, entry.method, entry.path, entry.key) == (1, "POST", "/v1/messages", "sk-secret")
    assert (entry.model, entry.stream, entry.status, entry.outcome) == (MODEL, False, 200, "complete")
    assert entry.body is not None
    assert entry.body["messages"] == HELLO
    assert entry.headers["anthropic-version"] == "2026-10-21"
    assert entry.ended_at is not None
    assert entry.ended_at - entry.started_at == pytest.approx(2, abs=0.01)
    assert "sk-secret" not in repr(entry)
    assert "Hello" not in repr(entry)
    simulator.clear_journal()
    assert simulator.journal == []


def test_bodies_can_be_dropped_and_the_journal_bounded() -> None:
    """A server that runs for ever keeps only what it was told to keep."""
    simulator = Simulator(journal_size=20, keep_bodies=False)
    for _ in range(100):
        answered(simulator, request(ask()))
    assert 18 <= len(simulator.journal) <= 20
    assert simulator.journal[-1].number == 100
    assert simulator.journal[-1].body is None
    assert [entry.number for entry in simulator.journal_after(97)] == [98, 99, 100]


def test_statistics_outlive_the_journal() -> None:
    """Counts by status, fault and outcome, tokens, and what each organization could have used."""
    simulator = Simulator(journal_size=0, requests_per_minute=60, keys={"sk-1": "org-1"})
    simulator.inject("overloaded")
    for body in (ask(), ask(), ask(max_tokens="x")):
        answered(simulator, request(body))
    seen = simulator.statistics()
    assert (seen.requests, seen.in_flight) == (3, 0)
    assert seen.by_status == {529: 1, 200: 1, 400: 1}
    assert seen.by_fault == {"overloaded": 1}
    assert seen.by_outcome == {"fault": 1, "complete": 1, "refused": 1}
    assert (seen.input_tokens, seen.output_tokens) == (6, 5)
    assert seen.organizations["org-1"].quotas["sonnet-5-5"].requests.possible == 60


def test_in_flight_counts_until_closed_once() -> None:
    """A response counts until it is closed; closing again changes nothing."""
    simulator = Simulator()
    exchange = simulator.open(request(ask()))
    assert simulator.in_flight == 1
    exchange.close(complete=False)
    exchange.close(complete=True)
    assert simulator.in_flight == 0
    assert simulator.journal[0].outcome == "client closed"
    assert "Exchange(JournalEntry(number=1" in repr(exchange)


def test_the_same_requests_get_the_same_replies() -> None:
    """Two simulators with one seed answer byte for byte the same; another seed changes the ids only."""
    bodies = []
    for seed in (1, 1, 2):
        simulator = Simulator(seed=seed)
        bodies.append([answered(simulator, request(ask()))[2] for _ in range(3)])
    assert bodies[0] == bodies[1]
    assert bodies[0][0]["id"] != bodies[2][0]["id"]
    assert bodies[0][0]["content"] == bodies[2][0]["content"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"requests_per_minute": 0}, "per_minute"),
        ({"requests_per_minute": 10, "burst_s": 0}, "burst_s"),
        ({"latency_s": -1}, "latency_s"),
        ({"latency_s": float("inf")}, "latency_s"),
        ({"tokens_per_s": 0}, "tokens_per_s"),
        ({"journal_size": -1}, "journal_size"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    """A bad option is named when the simulator is made."""
    with pytest.raises(ValueError, match=message):
        Simulator(**options)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
BLOCK = st.fixed_dictionaries(
    {"type": st.sampled_from(["text", "image", "document", "tool_use", "tool_result", "thinking", "odd"]) | JSON},
    optional={
        name: JSON | st.just({"type": "base64", "media_type": "image/png", "data": "aGk="})
        for name in (
            "text",
            "source",
            "id",
            "name",
            "input",
            "tool_use_id",
            "content",
            "thinking",
            "signature",
            "citations",
        )
    },
)
MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "system"]) | JSON, "content": st.lists(BLOCK, max_size=3) | JSON}
)
TOOL = st.fixed_dictionaries(
    {"name": st.sampled_from(["a", "b"]) | JSON, "input_schema": st.just({"type": "object"}) | JSON},
    optional={"type": st.sampled_from(["custom", "web_search_20250305"]) | JSON, "strict": JSON},
)


@pytest.mark.lengthy
@given(
    st.fixed_dictionaries(
        {
            "model": st.sampled_from([MODEL, "claude-haiku-4-5", "claude-opus-4-6"]) | JSON,
            "max_tokens": st.just(2000) | JSON,
            "messages": st.lists(MESSAGE, max_size=3) | st.just(HELLO) | JSON,
        },
        optional={
            "tools": st.lists(TOOL, max_size=2) | JSON,
            "tool_choice": st.fixed_dictionaries({"type": st.sampled_from(["any", "tool", "auto"]), "name": JSON})
            | JSON,
            "thinking": st.fixed_dictionaries({"type": st.sampled_from(["adaptive", "enabled"]), "budget_tokens": JSON})
            | JSON,
            "output_config": JSON | st.fixed_dictionaries({"format": JSON, "effort": JSON}),
            "system": JSON | st.lists(BLOCK, max_size=2),
            "stop_sequences": JSON,
            "stream": JSON,
            "metadata": JSON,
            "speed": JSON,
            "cache_control": JSON,
            "service_tier": JSON,
            "thread": JSON,
            "temperature": JSON,
        },
    ),
    st.sampled_from(["/v1/messages", "/v1/messages/count_tokens"]),
    st.sampled_from(["2023-06-01", "2026-10-21"]),
)
def test_no_body_breaks_the_simulator(body: dict[str, object], path: str, version: str) -> None:
    """Whatever JSON comes, it is answered or refused as the API would, and never left in flight."""
    simulator = Simulator()
    headers = {"x-api-key": "k", "anthropic-version": version}
    status, _, answer = answered(simulator, request(body, path=path, headers=headers))
    assert status in (200, 400, 404)
    if status != 200:
        assert set(answer["error"]) >= {"type", "message"}
    assert simulator.in_flight == 0
