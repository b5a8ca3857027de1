from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import anthropic
import anyio
import httpx2
import pytest

from penstock.simulator import FAULTS, MIXED_FAULTS, Simulator
from penstock.simulator.faults import PLAIN_EQUIVALENT, Faults, HtmlError, answer

if TYPE_CHECKING:
    from collections.abc import Callable

    from penstock.testing.plugin import VirtualTime

ASK: dict[str, Any] = {
    "model": "claude-sonnet-5-5",
    "max_tokens": 100,
    "messages": [{"role": "user", "content": "One two three four five six seven eight nine ten"}],
}
ANSWERS: dict[str, tuple[type[anthropic.APIStatusError], int, str | None, dict[str, str]]] = {
    "rate_limited": (anthropic.RateLimitError, 429, "rate_limit_error", {"retry-after": "1"}),
    "rate_limited_no_retry_after": (anthropic.RateLimitError, 429, "rate_limit_error", {}),
    "retry_after_ms": (anthropic.RateLimitError, 429, "rate_limit_error", {"retry-after-ms": "250"}),
    "ramp": (anthropic.RateLimitError, 429, "rate_limit_error", {"retry-after": "1"}),
    "spend_cap": (anthropic.RateLimitError, 429, "rate_limit_error", {}),
    "error": (anthropic.InternalServerError, 529, "overloaded_error", {}),
    "overloaded": (anthropic.InternalServerError, 529, "overloaded_error", {}),
    "api_error": (anthropic.InternalServerError, 500, "api_error", {}),
    "should_retry_false": (anthropic.InternalServerError, 500, "api_error", {"x-should-retry": "false"}),
    "unavailable": (anthropic.InternalServerError, 503, "api_error", {}),
    "timeout_error": (anthropic.InternalServerError, 504, "timeout_error", {}),
    "bad_gateway": (anthropic.InternalServerError, 502, None, {}),
    "authentication": (anthropic.AuthenticationError, 401, "authentication_error", {}),
    "permission": (anthropic.PermissionDeniedError, 403, "permission_error", {}),
    "not_found": (anthropic.NotFoundError, 404, "not_found_error", {}),
    "request_timeout": (anthropic.APIStatusError, 408, "timeout_error", {}),
    "conflict": (anthropic.ConflictError, 409, "conflict_error", {}),
    "request_too_large": (anthropic.APIStatusError, 413, None, {}),
}
RETRY_HEADERS = ("retry-after", "retry-after-ms", "x-should-retry")


async def plain(claude: anthropic.AsyncAnthropic) -> anthropic.types.Message:
    """Ask for a whole message."""
    message: anthropic.types.Message = await claude.messages.create(**ASK)
    return message


async def streamed(claude: anthropic.AsyncAnthropic) -> list[str]:
    """Ask for a stream and read its event types."""
    async with await claude.messages.create(stream=True, **ASK) as events:
        return [event.type async for event in events]


@pytest.mark.lengthy
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", sorted(ANSWERS))
async def test_an_answer_fault_is_the_error_the_sdk_knows(virtual_time: VirtualTime, name: str, stream: bool) -> None:
    """Each answer fault has its status, type and retry headers, plain or streamed, and takes nothing from the quota."""
    simulator = Simulator(requests_per_minute=60)
    simulator.inject(name)
    kind, status, error_type, headers = ANSWERS[name]
    async with simulator.client(max_retries=0) as claude:
        with pytest.raises(kind) as caught:
            await (streamed(claude) if stream else plain(claude))
    error = caught.value
    assert error.status_code == status
    assert error.type == error_type
    assert {each: error.response.headers[each] for each in RETRY_HEADERS if each in error.response.headers} == headers
    entry = simulator.journal[0]
    assert error.response.headers["request-id"] == entry.request_id
    assert (entry.status, entry.fault, entry.outcome, entry.input_tokens) == (status, name, "fault", 0)
    assert simulator.organization("sk-sim-1").quotas["sonnet-5-5"].requests.taken == 0
    assert simulator.in_flight == 0


async def test_quota_errors_carry_their_error_code(virtual_time: VirtualTime) -> None:
    """The spend cap and the acceleration limit are told apart by `error_code`."""
    simulator = Simulator()
    simulator.inject("ramp", retry_after_s=7)
    simulator.inject("spend_cap")
    codes: list[tuple[str | None, str | None]] = []
    async with simulator.client(max_retries=0) as claude:
        for _ in range(2):
            with pytest.raises(anthropic.RateLimitError) as caught:
                await plain(claude)
            codes.append((caught.value.error_code, caught.value.response.headers.get("retry-after")))
    assert codes == [("ramp_limit_exceeded", "7"), ("enforced_spend_limit_reached", None)]


@pytest.mark.parametrize(
    ("params", "status", "headers"),
    [
        ({"type": "billing_error"}, 402, {}),
        ({"type": "some_new_error"}, 500, {}),
        ({"type": "api_error", "status": 503, "error_code": "change_outcome_unknown", "retry_after_s": 2}, 503,
         {"retry-after": "2"}),
        ({"type": "invalid_request_error", "error_code": "image_dimensions_too_large", "details": {"paths": ["a"]},
          "should_retry": False}, 400, {"x-should-retry": "false"}),
        ({"type": "rate_limit_error", "message": "Slower.", "should_retry": True}, 429, {"x-should-retry": "true"}),
        ({"type": "conflict_error", "details": {"id": 1}}, 409, {}),
    ],
)  # fmt: skip
async def test_any_error_of_the_api_can_be_scripted(
    virtual_time: VirtualTime, params: dict[str, Any], status: int, headers: dict[str, str]
) -> None:
    """Type, status, words, code, details and retry headers are as the test says; the status is that of the type."""
    simulator = Simulator()
    simulator.inject("error", **params)
    async with simulator.client(max_retries=0) as claude:
        with pytest.raises(anthropic.APIStatusError) as caught:
            await plain(claude)
    error, body = caught.value, caught.value.body
    assert (error.status_code, error.type, error.error_code) == (status, params["type"], params.get("error_code"))
    assert isinstance(body, dict)
    code = {"error_code": params["error_code"]} if "error_code" in params else {}
    assert body["error"].get("details", {}) == {**code, **params.get("details", {})}
    assert body["error"]["message"] == params.get("message", "The request failed.")
    assert {each: error.response.headers[each] for each in RETRY_HEADERS if each in error.response.headers} == headers


@pytest.mark.parametrize("name", ["stream_error_before_content", "stream_error_after_content"])
async def test_an_error_within_a_stream_can_be_any(virtual_time: VirtualTime, name: str) -> None:
    """A plain request gets the same error with the status of its type."""
    simulator = Simulator()
    simulator.inject(name, times=2, type="rate_limit_error", error_code="ramp_limit_exceeded")
    _, error = await collected(simulator)
    assert isinstance(error, anthropic.APIStatusError)
    assert (error.status_code, error.type, error.error_code) == (200, "rate_limit_error", "ramp_limit_exceeded")
    async with simulator.client(max_retries=0) as claude:
        with pytest.raises(anthropic.RateLimitError) as caught:
            await plain(claude)
    assert caught.value.error_code == "ramp_limit_exceeded"


async def test_proxy_errors_are_html(virtual_time: VirtualTime) -> None:
    """What the proxy in front answers has no JSON."""
    simulator = Simulator()
    simulator.inject("bad_gateway")
    async with simulator.client(max_retries=0) as claude:
        with pytest.raises(anthropic.InternalServerError) as caught:
            await plain(claude)
    assert caught.value.response.headers["content-type"] == "text/html"
    assert "502 Bad Gateway" in caught.value.response.text


async def test_reset_drops_the_connection_before_headers(virtual_time: VirtualTime) -> None:
    """A reset is a connection error, and the journal knows no status."""
    simulator = Simulator()
    simulator.inject("reset")
    async with simulator.client(max_retries=0) as claude:
        with pytest.raises(anthropic.APIConnectionError) as caught:
            await plain(claude)
    assert isinstance(caught.value.__cause__, httpx2.ReadError)
    assert (simulator.journal[0].status, simulator.journal[0].outcome) == (None, "fault")


async def test_a_truncated_plain_body_is_shorter_than_its_content_length(virtual_time: VirtualTime) -> None:
    """The connection breaks inside the body; what was generated is charged."""
    simulator = Simulator()
    simulator.inject("truncated")
    async with simulator.client(max_retries=0) as claude:
        with pytest.raises(anthropic.APIConnectionError) as caught:
            await plain(claude)
    assert isinstance(caught.value.__cause__, httpx2.RemoteProtocolError)
    assert "received" in str(caught.value.__cause__)
    assert simulator.journal[0].output_tokens > 0


@pytest.mark.parametrize("name", ["stall", "stall_before_headers"])
async def test_a_stall_lasts_until_the_reader_gives_up(virtual_time: VirtualTime, name: str) -> None:
    """Nothing comes for ever; the read timeout of the request ends it, at its time."""
    simulator = Simulator()
    simulator.inject(name)
    async with simulator.client(max_retries=0, timeout=30) as claude:
        with pytest.raises(anthropic.APITimeoutError):
            await plain(claude)
    assert 30 <= virtual_time.now() < 31
    assert (simulator.journal[0].fault, simulator.journal[0].outcome) == (name, "client closed")
    assert simulator.in_flight == 0


async def test_a_stall_without_read_timeout_lasts_for_ever(virtual_time: VirtualTime) -> None:
    """Without a timeout, only the caller's patience ends a stall."""
    simulator = Simulator()
    simulator.inject("stall_before_headers")
    async with simulator.client(max_retries=0, timeout=httpx2.Timeout(None)) as claude:
        with pytest.raises(TimeoutError), anyio.fail_after(100_000):
            await plain(claude)
    assert simulator.journal[0].ended_at == pytest.approx(100_000, abs=1)


async def collected(simulator: Simulator, patience_s: float = math.inf) -> tuple[list[str], BaseException | None]:
    """Event types of one stream, and how it ended."""
    types: list[str] = []
    async with simulator.client(max_retries=0) as claude:
        try:
            with anyio.fail_after(patience_s):
                async with await claude.messages.create(stream=True, **ASK) as events:
                    async for event in events:
                        types.append(event.type)  # noqa: PERF401 - what came before an error counts
        except (anthropic.APIError, httpx2.HTTPError, TimeoutError, json.JSONDecodeError) as error:
            return types, error
    return types, None


STREAMS: dict[str, tuple[type[BaseException] | None, Callable[[int], bool]]] = {
    "stream_error_before_content": (anthropic.APIStatusError, lambda deltas: deltas == 0),
    "stream_error_after_content": (anthropic.APIStatusError, lambda deltas: deltas > 0),
    "stream_drop_before_content": (httpx2.RemoteProtocolError, lambda deltas: deltas == 0),
    "stream_drop_after_content": (httpx2.RemoteProtocolError, lambda deltas: deltas > 0),
    "truncated": (httpx2.RemoteProtocolError, lambda deltas: deltas == 0),
    "no_message_stop": (None, lambda deltas: deltas > 0),
    "bad_json": (json.JSONDecodeError, lambda deltas: deltas == 0),
}


@pytest.mark.parametrize("name", sorted(STREAMS))
async def test_a_stream_fault_breaks_the_stream_where_it_says(virtual_time: VirtualTime, name: str) -> None:
    """Each damage to a stream comes after HTTP 200, before or after content, and is journaled as a fault."""
    simulator = Simulator()
    simulator.inject(name)
    types, error = await collected(simulator)
    kind, where = STREAMS[name]
    assert types[0] == "message_start"
    assert "message_stop" not in types
    assert where(types.count("content_block_delta"))
    assert (type(error) if error else None) is kind
    entry = simulator.journal[0]
    assert (entry.status, entry.fault, entry.outcome) == (200, name, "fault")
    assert simulator.in_flight == 0


async def test_an_error_within_a_stream_has_status_200_and_its_type(virtual_time: VirtualTime) -> None:
    """`event: error` names overload and the request, though the status was 200."""
    simulator = Simulator()
    simulator.inject("stream_error_before_content")
    _, error = await collected(simulator)
    assert isinstance(error, anthropic.APIStatusError)
    assert (error.status_code, error.type) == (200, "overloaded_error")
    assert error.request_id == simulator.journal[0].request_id


@pytest.mark.parametrize("name", ["stream_error_after_content", "stream_drop_after_content", "stall"])
async def test_after_deltas_chooses_how_much_content_comes_first(virtual_time: VirtualTime, name: str) -> None:
    """The number of deltas before the damage can be set."""
    simulator = Simulator(output_tokens=80)
    simulator.inject(name, after_deltas=7)
    types, _ = await collected(simulator, patience_s=60)
    assert types.count("content_block_delta") == 7


@pytest.mark.parametrize("name", sorted(STREAMS.keys() | {"stall"}))
async def test_a_stream_without_content_can_be_damaged_too(virtual_time: VirtualTime, name: str) -> None:
    """Where there is no content, the damage comes at the end of what there is."""
    simulator = Simulator()
    simulator.reply([])
    simulator.inject(name)
    types, _ = await collected(simulator, patience_s=60)
    assert types[0] == "message_start"
    assert simulator.journal[0].fault == name
    assert simulator.in_flight == 0


async def test_pings_only_never_ends_and_never_times_out(virtual_time: VirtualTime) -> None:
    """Pings defeat the read timeout: after an hour the stream still gives nothing."""
    simulator = Simulator()
    simulator.inject("pings_only", interval_s=5)
    types, error = await collected(simulator, patience_s=3600)
    assert types == ["message_start"]
    assert isinstance(error, TimeoutError)
    assert simulator.journal[0].outcome == "client closed"


@pytest.mark.parametrize(("name", "same_as"), sorted(PLAIN_EQUIVALENT.items()))
async def test_a_plain_request_gets_the_equivalent_of_a_stream_fault(
    virtual_time: VirtualTime, name: str, same_as: str
) -> None:
    """A stream fault hits a plain request as its documented equivalent, journaled under its own name."""
    errors: list[anthropic.APIError] = []
    simulator = Simulator()
    for each in (name, same_as):
        simulator.inject(each)
        async with simulator.client(max_retries=0, timeout=10) as claude:
            with pytest.raises(anthropic.APIError) as caught:
                await plain(claude)
        errors.append(caught.value)
    assert type(errors[0]) is type(errors[1])
    assert type(errors[0].__cause__) is type(errors[1].__cause__)
    assert simulator.journal[0].fault == name


async def test_bad_json_in_a_plain_body_is_a_complete_response(virtual_time: VirtualTime) -> None:
    """The body arrives whole, as long as it says, and isn't JSON."""
    simulator = Simulator()
    simulator.inject("bad_json")
    async with simulator.client(max_retries=0) as claude:
        with pytest.raises(json.JSONDecodeError):
            await plain(claude)


async def test_injected_faults_come_in_order_and_let_others_pass(virtual_time: VirtualTime) -> None:
    """`times` and `after` count requests; the order of injection is kept."""
    simulator = Simulator()
    simulator.inject("overloaded", times=2, after=1)
    simulator.inject("api_error", delay_s=3)
    async with simulator.client(max_retries=0) as claude:
        for _ in range(5):
            try:
                await plain(claude)
            except anthropic.InternalServerError:
                continue
    assert [entry.status for entry in simulator.journal] == [200, 529, 529, 500, 200]
    assert 3 <= virtual_time.now() < 3.1


@pytest.mark.parametrize("name", ["overloaded", "reset", "bad_gateway", "truncated", "no_message_stop"])
async def test_every_fault_can_be_delayed(virtual_time: VirtualTime, name: str) -> None:
    """`delay_s` holds back whatever the fault does."""
    simulator = Simulator()
    simulator.inject(name, delay_s=8)
    await collected(simulator)
    assert 8 <= virtual_time.now() < 8.1


async def test_faults_hit_counting_and_listing_too(virtual_time: VirtualTime) -> None:
    """Any request that would succeed can be hit, and token counting gives its request back."""
    simulator = Simulator(count_tokens_per_minute=10)
    simulator.inject("overloaded", times=2)
    async with simulator.client(max_retries=0) as claude:
        with pytest.raises(anthropic.InternalServerError):
            await claude.messages.count_tokens(model=ASK["model"], messages=ASK["messages"])
        with pytest.raises(anthropic.InternalServerError):
            await claude.models.list()
    assert simulator.organization("sk-sim-1").count_tokens.taken == 0


def test_a_seed_fixes_the_faults() -> None:
    """The same seed draws the same faults; another seed others; shares are as asked."""
    drawn = [[faults.draw() for _ in range(2000)] for faults in (Faults(MIXED_FAULTS(0.2), seed) for seed in (1, 1, 2))]
    assert drawn[0] == drawn[1] != drawn[2]
    assert 300 < sum(fault is not None for fault in drawn[0]) < 500


def test_the_mix_adds_up_and_can_be_retried() -> None:
    """A mix splits its share over known faults, none of which is final for a client."""
    mix = MIXED_FAULTS(0.3)
    assert sum(mix.values()) == pytest.approx(0.3)
    assert mix.keys() <= FAULTS
    assert not mix.keys() & {"spend_cap", "authentication", "should_retry_false", "stream_error_after_content"}
    with pytest.raises(ValueError, match="between 0 and 1"):
        MIXED_FAULTS(1.5)


@pytest.mark.parametrize(
    ("faults", "message"),
    [
        ({"nonsense": 0.1}, "no fault is called 'nonsense'; there are: api_error"),
        ({"reset": 1.5}, "between 0 and 1"),
        ({"reset": 0.6, "stall": 0.6}, "add up to 1.2"),
    ],
)
def test_impossible_probabilities_are_refused(faults: dict[str, float], message: str) -> None:
    """Names and probabilities are checked when the simulator is made."""
    with pytest.raises(ValueError, match=message):
        Simulator(faults=faults)


def test_impossible_injections_are_refused() -> None:
    """Names, counts and parameters are checked when the fault is injected."""
    simulator = Simulator()
    with pytest.raises(ValueError, match="no fault is called"):
        simulator.inject("nonsense")
    with pytest.raises(ValueError, match="at least 1"):
        simulator.inject("reset", times=0)
    with pytest.raises(ValueError, match="takes no retry_after_s; it takes: delay_s"):
        simulator.inject("reset", retry_after_s=1)


def test_every_fault_is_of_exactly_one_kind() -> None:
    """A fault answers, breaks the transport, or damages a body."""
    simulator = Simulator()
    for name in FAULTS:
        simulator.inject(name)
    faults = [fault for fault in (simulator._api.faults.draw() for _ in FAULTS) if fault is not None]
    answers = {fault.name for fault in faults if answer(fault) is not None}
    assert answers == ANSWERS.keys()
    assert FAULTS - answers == {"reset", "stall_before_headers", "stall", "pings_only"} | STREAMS.keys()
    assert isinstance(answer(next(fault for fault in faults if fault.name == "bad_gateway")), HtmlError)
    assert "injected" in repr(simulator)
