from __future__ import annotations

import errno
import gc
import socket
from typing import TYPE_CHECKING, Any, Literal

import anthropic
import anyio
import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock import CircuitOpen, Client, RetryOptions
from penstock._core.durations import Durations
from penstock.guards.meter import Meter

if TYPE_CHECKING:
    from penstock.simulator import Simulator
    from penstock.testing.plugin import VirtualTime

HELLO: Any = {"model": "claude-sonnet-5-5", "max_tokens": 100, "messages": [{"role": "user", "content": "Hello"}]}


def metered(simulator: Simulator) -> tuple[Meter, anthropic.AsyncAnthropic]:
    """A meter, and a client in which it stands alone."""
    meter = Meter()
    return meter, simulator.client(max_retries=0, middleware=[meter])


async def read(claude: anthropic.AsyncAnthropic) -> None:
    """Stream one answer to its end."""
    async for _ in await claude.messages.create(**HELLO, stream=True):
        pass


seconds = st.floats(min_value=1e-4, max_value=3600, allow_nan=False)


@given(st.lists(seconds, min_size=1, max_size=200), st.sampled_from([0.01, 0.5, 0.9, 0.99, 1.0]))
def test_percentiles_are_within_a_fortieth(values: list[float], share: float) -> None:
    """A percentile is within 2.5 % of the value that it stands for, and the mean is exact."""
    durations = Durations()
    for value in values:
        durations.add(value)
    rank = max(1, -int(-share * len(values) // 1))
    assert durations.percentile(share) == pytest.approx(sorted(values)[rank - 1], rel=0.026)
    assert durations.statistics().mean_s == pytest.approx(sum(values) / len(values))


@given(st.lists(st.floats(min_value=0, max_value=1e6)), st.lists(st.floats(min_value=0, max_value=1e6)))
def test_durations_of_two_add_up_to_those_of_both(first: list[float], second: list[float]) -> None:
    """Including another's durations is the same as having counted them."""
    both, one, other = Durations(), Durations(), Durations()
    for value in first:
        both.add(value)
        one.add(value)
    for value in second:
        both.add(value)
        other.add(value)
    one.include(other)
    mine, theirs = one.statistics(), both.statistics()
    assert (mine.count, mine.p50_s, mine.p90_s, mine.p99_s) == (theirs.count, theirs.p50_s, theirs.p90_s, theirs.p99_s)
    assert mine.mean_s == pytest.approx(theirs.mean_s)


def test_durations_beyond_all_buckets_are_counted_as_they_are() -> None:
    """Nothing, and a day, are shown as what they were, not as the edge of a bucket."""
    durations = Durations()
    durations.add(0.0)
    assert durations.percentile(1.0) == 0.0
    durations.add(86_400.0)
    assert durations.percentile(0.5) == pytest.approx(0.0, abs=2e-4)
    assert durations.statistics().mean_s == 43_200
    assert repr(durations) == "<Durations 2, mean 4.32e+04 s>"


def test_without_durations_everything_is_zero() -> None:
    """Statistics of nothing are zeros, not an error."""
    assert Durations().percentile(0.5) == Durations().statistics().p99_s == 0.0


@pytest.mark.simulator(latency_s=2.0, output_tokens=10)
async def test_an_answer_adds_its_tokens_and_its_time(simulator: Simulator, virtual_time: VirtualTime) -> None:
    """A plain answer is one success with the usage that it reports."""
    meter, claude = metered(simulator)
    usage = (await claude.messages.create(**HELLO)).usage
    total = meter.statistics().total
    assert (total.attempts, total.successes, dict(total.failures)) == (1, 1, {})
    assert (total.input_tokens, total.output_tokens) == (usage.input_tokens, usage.output_tokens)
    assert (total.counted, total.estimated, total.estimated_share) == (1, 0, 0.0)
    assert total.latency.p50_s == pytest.approx(2.0, rel=0.01)
    assert total.first_token.count == 0


@pytest.mark.simulator(latency_s=2.0, output_tokens=10)
async def test_cache_tokens_are_apart(simulator: Simulator) -> None:
    """What was read from and written to the prompt cache is in sums of its own."""
    simulator.reply("Hi", usage={"cache_read_input_tokens": 70, "cache_creation_input_tokens": 20})
    meter, claude = metered(simulator)
    await read(claude)
    total = meter.statistics().total
    assert (total.cache_read_tokens, total.cache_write_tokens) == (70, 20)


@pytest.mark.simulator(latency_s=2.0, tokens_per_s=10, output_tokens=40)
async def test_a_stream_adds_its_time_to_first_token(simulator: Simulator, virtual_time: VirtualTime) -> None:
    """A stream counts when it has ended; its first content came long before."""
    meter, claude = metered(simulator)
    stream = await claude.messages.create(**HELLO, stream=True)
    assert meter.statistics().total.attempts == 0
    async for _ in stream:
        pass
    total = meter.statistics().total
    assert total.output_tokens == 40
    assert 2 <= total.first_token.mean_s < 4
    assert total.latency.mean_s == pytest.approx(6, rel=0.1)


async def test_failures_are_counted_by_kind(simulator: Simulator) -> None:
    """Every failed attempt counts under its kind, and 429s once more by themselves."""
    for fault in ("overloaded", "rate_limited", "spend_cap", "reset"):
        simulator.inject(fault)
    meter, claude = metered(simulator)
    for _ in range(4):
        with pytest.raises(anthropic.APIError):
            await claude.messages.create(**HELLO)
    total = meter.statistics().total
    assert total.failures == {"overloaded": 1, "rate_limited": 1, "spend_cap": 1, "connection": 1}
    assert (total.attempts, total.successes, total.rate_limited) == (4, 0, 2)
    assert total.latency.count == 4


async def test_a_broken_stream_is_a_failure_with_estimated_tokens(simulator: Simulator) -> None:
    """What broke off in the middle may have been billed, so that it counts, marked as estimated."""
    simulator.inject("stream_drop_after_content", after_deltas=1)
    simulator.reply("One word after the other, until the connection breaks off somewhere. " * 20)
    meter, claude = metered(simulator)
    with pytest.raises(httpx2.RemoteProtocolError):
        await read(claude)
    await read(claude)
    total = meter.statistics().total
    assert (total.successes, total.failures) == (1, {"connection": 1})
    assert total.estimated_share == 0.5


@pytest.mark.lengthy
async def test_models_are_apart_and_bounded_in_number() -> None:
    """The first 100 models have sums of their own, the others are together under `other`."""

    async def answer(request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(200, json={"usage": {"input_tokens": 1, "output_tokens": 2}})

    meter = Meter()
    transport = httpx2.MockTransport(answer)
    async with httpx2.AsyncClient(transport=transport) as http:
        claude = anthropic.AsyncAnthropic(api_key="sk-test", http_client=http, max_retries=0, middleware=[meter])
        for number in range(103):
            await claude.messages.create(**{**HELLO, "model": f"m{number}"})
        await claude.messages.create(**{**HELLO, "model": "m7"})
    statistics = meter.statistics()
    assert len(statistics.models) == 101
    assert (statistics.models["m7"].attempts, statistics.models["other"].attempts) == (2, 3)
    assert (statistics.total.attempts, statistics.total.output_tokens) == (104, 208)
    assert repr(meter) == "<Meter 104 attempts, 101 models>"


async def test_only_messages_are_measured(simulator: Simulator) -> None:
    """Counting tokens and listing models cost nothing and would spoil the latencies."""
    meter, claude = metered(simulator)
    await claude.messages.count_tokens(model=HELLO["model"], messages=HELLO["messages"])
    await claude.models.list()
    assert meter.statistics().total.attempts == 0


def caused(error: Exception, *causes: Exception) -> Exception:
    """An error with what is below it."""
    above = error
    for cause in causes:
        above.__cause__ = above = cause
    return error


REFUSED = OSError(errno.ECONNREFUSED, "Connect call failed ('secret', 443)")


@pytest.mark.parametrize(
    ("error", "network"),
    [
        (
            caused(httpx2.ConnectError("secret"), OSError("secret"), REFUSED),
            "can't reach test.invalid: connection refused",
        ),
        (
            caused(httpx2.ConnectError("secret"), socket.gaierror(socket.EAI_NONAME, "Name or service not known")),
            "can't reach test.invalid: name or service not known",
        ),
        (
            caused(
                httpx2.ConnectError("secret"),
                OSError(-2, "secret"),
                socket.gaierror(socket.EAI_NONAME, "Name or service not known"),
            ),
            "can't reach test.invalid: name or service not known",
        ),
        (
            caused(httpx2.ConnectError("secret"), socket.gaierror(5, None)),
            "can't reach test.invalid: the connection failed",
        ),
        (httpx2.ConnectError("secret"), "can't reach test.invalid: the connection failed"),
        (httpx2.ConnectTimeout("secret"), "can't reach test.invalid: timed out"),
        (httpx2.ReadTimeout("secret"), "test.invalid doesn't answer in time"),
        (httpx2.RemoteProtocolError("secret"), "the connection to test.invalid was lost"),
        (
            caused(httpx2.ReadError("secret"), ConnectionResetError(104, "secret")),
            "the connection to test.invalid was lost",
        ),
        (httpx2.LocalProtocolError("secret"), None),
        (ValueError("secret"), None),
    ],
)
async def test_why_the_api_cannot_be_reached_is_told_until_it_answers(error: Exception, network: str | None) -> None:
    """In words of the system's, never in those of a library, which may hold anything; any answer is one."""
    answers: list[Exception | int] = [error, 500]

    async def answer(request: httpx2.Request) -> httpx2.Response:
        given = answers.pop(0)
        if isinstance(given, Exception):
            raise given
        return httpx2.Response(given, json={})

    meter = Meter()
    async with httpx2.AsyncClient(transport=httpx2.MockTransport(answer)) as http:
        claude = anthropic.AsyncAnthropic(
            api_key="sk-test",
            base_url="https://user:secret@test.invalid:8443",
            http_client=http,
            max_retries=0,
            middleware=[meter],
        )
        assert meter.statistics().network is None
        with pytest.raises((anthropic.APIConnectionError, ValueError)):
            await claude.messages.create(**HELLO)
        assert meter.statistics().network == network
        with pytest.raises(anthropic.InternalServerError):
            await claude.messages.create(**HELLO)
        assert meter.statistics().network is None


@pytest.mark.parametrize("transport", ["httpx2", "aiohttp"])
async def test_every_transport_says_that_a_connection_is_refused(
    transport: Literal["httpx2", "aiohttp"], refusing_port: int
) -> None:
    """At whatever depth it keeps what the system said."""
    async with Client(
        api_keys=["sk-ant-1"],
        base_url=f"http://127.0.0.1:{refusing_port}",
        allow_http=True,
        transport=transport,
        retry=RetryOptions(max_attempts=1),
        log=False,
    ) as claude:
        with pytest.raises(anthropic.APIConnectionError):
            await claude.messages.create(**HELLO)
        assert claude.statistics().attempts.network == "can't reach 127.0.0.1: connection refused"


async def test_other_errors_of_the_chain_leave_it_as_it_was(simulator: Simulator) -> None:
    """A lost connection of which nobody says where to, and a refusal, which says nothing of the network."""
    errors = [httpx2.ConnectError("secret"), CircuitOpen("open", retry_after_s=1.0)]

    class Raises(anthropic.Middleware):
        async def handle_async(self, request: anthropic.APIRequest, call_next: Any) -> Any:
            raise errors.pop(0)

    meter = Meter()
    claude = simulator.client(max_retries=0, middleware=[meter, Raises()])
    for kind in (anthropic.APIConnectionError, CircuitOpen):
        with pytest.raises((kind, httpx2.ConnectError)):
            await claude.messages.create(**HELLO)
        assert meter.statistics().network == "can't reach the API: the connection failed"


async def test_a_body_that_was_dropped_is_added_even_outside_the_loop(simulator: Simulator) -> None:
    """The garbage collector may end an attempt anywhere, and it is still measured."""
    meter, claude = metered(simulator)
    gc.disable()  # or it may come on its own, before it is asked for
    try:
        circle: list[object] = [await claude.messages.create(**HELLO, stream=True)]
        circle.append(circle)
        del circle

        def collect() -> None:
            with pytest.warns(ResourceWarning, match="dropped"):
                gc.collect()

        await anyio.to_thread.run_sync(collect)
    finally:
        gc.enable()
    assert meter.statistics().total.failures == {"abandoned": 1}
