from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anthropic
import anyio
import httpx2
import pytest

from penstock.simulator import Simulator

if TYPE_CHECKING:
    from penstock.testing.plugin import VirtualTime

MODEL = "claude-opus-5-5"
HELLO: list[Any] = [{"role": "user", "content": "Hello there"}]
HEADERS = {"x-api-key": "sk-1", "anthropic-version": "2026-10-21"}
BODY = {"model": MODEL, "max_tokens": 1000, "messages": HELLO, "stream": True}


def raw(simulator: Simulator, timeout: float | None = None) -> httpx2.AsyncClient:
    """An HTTP client without any SDK."""
    return httpx2.AsyncClient(transport=simulator.transport(), base_url="http://sim", timeout=timeout, headers=HEADERS)


async def test_the_first_chunk_arrives_before_the_last_is_made(virtual_time: VirtualTime) -> None:
    """A stream is handed over as it is generated, each delta at its time."""
    simulator = Simulator(latency_s=1, tokens_per_s=4, output_tokens=40)
    times: list[float] = []
    async with (
        simulator.client() as claude,
        claude.messages.stream(model=MODEL, max_tokens=1000, messages=HELLO) as stream,
    ):
        async for _ in stream.text_stream:
            times.append(virtual_time.now())
            assert simulator.journal[0].output_tokens == 4 * len(times)
    assert times == [pytest.approx(1 + each, abs=0.01) for each in range(1, 11)]


async def test_streams_interleave(virtual_time: VirtualTime) -> None:
    """Two streams at the same time take no longer than one."""
    simulator = Simulator(tokens_per_s=10, output_tokens=100)
    order: list[str] = []

    async def read(name: str) -> None:
        async with (
            simulator.client() as claude,
            claude.messages.stream(model=MODEL, max_tokens=1000, messages=HELLO) as stream,
        ):
            async for _ in stream.text_stream:
                order.append(name)  # noqa: PERF401 - the order among tasks is what is tested

    async with anyio.create_task_group() as group:
        group.start_soon(read, "a")
        group.start_soon(read, "b")
    assert virtual_time.now() == pytest.approx(10, abs=0.1)
    assert sorted(order[:2]) == ["a", "b"]


async def test_a_client_that_closes_early_is_noticed(virtual_time: VirtualTime) -> None:
    """Closing a stream before its end stops generation, frees the request and is journaled."""
    simulator = Simulator(tokens_per_s=10, output_tokens=100)
    async with simulator.client() as claude:
        async with claude.messages.stream(model=MODEL, max_tokens=1000, messages=HELLO) as stream:
            async for _ in stream.text_stream:
                assert simulator.in_flight == 1
                break
        assert simulator.in_flight == 0
    entry = simulator.journal[0]
    assert (entry.status, entry.outcome, entry.output_tokens) == (200, "client closed", 4)


async def test_a_response_nobody_closes_stays_in_flight(virtual_time: VirtualTime) -> None:
    """What a real connection would leak is seen here, until it is closed."""
    simulator = Simulator()
    client = raw(simulator)
    response = await client.send(client.build_request("POST", "/v1/messages", json=BODY), stream=True)
    assert simulator.in_flight == 1
    await response.aclose()
    assert simulator.in_flight == 0
    await client.aclose()


async def test_cancelling_a_read_closes_the_response(virtual_time: VirtualTime) -> None:
    """As over a socket, a read that is cancelled ends the response."""
    simulator = Simulator(tokens_per_s=1, output_tokens=100)
    async with raw(simulator) as client, client.stream("POST", "/v1/messages", json=BODY) as response:
        with anyio.move_on_after(10):
            async for _ in response.aiter_bytes():
                pass
        assert simulator.in_flight == 0
    assert simulator.journal[0].outcome == "client closed"


async def test_the_read_timeout_runs_between_chunks(virtual_time: VirtualTime) -> None:
    """A slow stream lives as long as each chunk is in time, and dies when one is not."""
    slow = Simulator(tokens_per_s=1, output_tokens=40)
    async with raw(slow, timeout=5) as client:
        response = await client.post("/v1/messages", json=BODY)
        assert "message_stop" in response.text
    slower = Simulator(tokens_per_s=0.5, output_tokens=40)
    async with raw(slower, timeout=5) as client:
        with pytest.raises(httpx2.ReadTimeout):
            await client.post("/v1/messages", json=BODY)


async def test_headers_later_than_the_read_timeout_never_come(virtual_time: VirtualTime) -> None:
    """Latency above the read timeout is a read timeout, at its time."""
    simulator = Simulator(latency_s=60)
    async with raw(simulator, timeout=10) as client:
        with pytest.raises(httpx2.ReadTimeout):
            await client.post("/v1/messages", json=BODY)
    assert virtual_time.now() == pytest.approx(10, abs=0.01)
    assert simulator.journal[0].outcome == "client closed"


async def test_query_and_streamed_request_bodies_arrive(virtual_time: VirtualTime) -> None:
    """Whatever form the request has, the simulator sees all of it."""
    simulator = Simulator()

    async def chunks() -> Any:
        yield b'{"model": "claude-opus-5-5", "messages": '
        yield b'[{"role": "user", "content": "Hi"}]}'

    async with raw(simulator) as client:
        page = await client.get("/v1/models", params={"limit": 2})
        count = await client.post("/v1/messages/count_tokens", content=chunks())
    assert len(page.json()["data"]) == 2
    assert count.json() == {"input_tokens": 4}


async def test_the_sdk_retries_through_the_simulator(virtual_time: VirtualTime) -> None:
    """The SDK's own retries reach it as attempts of their own."""
    simulator = Simulator()
    simulator.inject("reset")
    simulator.inject("rate_limited", retry_after_s=20)
    async with simulator.client() as claude:
        await claude.messages.create(model=MODEL, max_tokens=10, messages=HELLO)
    assert [entry.headers["x-stainless-retry-count"] for entry in simulator.journal] == ["0", "1", "2"]
    assert 20 < virtual_time.now() < 22


async def test_a_client_takes_the_sdks_keywords(virtual_time: VirtualTime) -> None:
    """Everything `AsyncAnthropic` takes can be given, an `http_client` of one's own too."""
    simulator = Simulator()
    http_client = anthropic.DefaultAsyncHttpxClient(transport=simulator.transport())
    claude = simulator.client("sk-9", http_client=http_client, base_url="http://else", default_headers={"x-mine": "1"})
    async with claude:
        await claude.messages.create(model=MODEL, max_tokens=10, messages=HELLO)
    assert simulator.journal[0].headers["x-mine"] == "1"
    assert simulator.journal[0].headers["host"] == "else"
    assert repr(simulator.transport()).startswith("SimulatorTransport(Simulator(requests=1")
