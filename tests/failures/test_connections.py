"""A connection that was kept alive is closed by the server as the next request comes: nobody's failure."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any, Literal

import anthropic
import anyio
import httpx2
import pytest
from _scripted_server import CLOSE, OK, RESET, Arrived, serving

from penstock import Client, RetryOptions
from penstock.events import RetryScheduled
from penstock.testing import ScriptedTransport

if TYPE_CHECKING:
    from _scripted_server import Answer

    from penstock.client import ClientStatistics
    from penstock.events import Event
    from penstock.testing.plugin import VirtualTime

pytestmark = pytest.mark.anyio

Transport = Literal["aiohttp", "httpx2"]
KEYS = ("sk-ant-api03-one",)
ASK: dict[str, Any] = {
    "model": "claude-haiku-5-5",
    "max_tokens": 9,
    "messages": [{"role": "user", "content": "Hello"}],
}


def spent(statistics: ClientStatistics) -> tuple[int, int]:
    """What was paid from the retry quota, and what the breaker holds against the service."""
    retry = statistics.retry
    return retry.capacity - retry.quota, sum(each.failures for each in statistics.breaker.classes.values())


@pytest.mark.lengthy
@pytest.mark.parametrize("way", [CLOSE, RESET])
@pytest.mark.parametrize("transport", ["aiohttp", "httpx2"])
async def test_a_kept_connection_that_is_closed_costs_nothing(transport: Transport, way: str) -> None:
    """A server that closes each connection at its second request: each call is sent again at once, on a fresh one."""

    def script(request: Arrived) -> Answer:
        return OK if request.number == 1 else way

    told: list[Event] = []
    async with serving(script) as server:
        client = Client(api_keys=KEYS, base_url=server.url, transport=transport, log=False, observers=(told.append,))
        async with client as claude:
            for _ in range(20):
                await claude.messages.create(**ASK)
            statistics = claude.statistics()
    assert spent(statistics) == (0, 0)
    assert len(server.arrived) == 20 + 19
    assert server.connections == 20
    assert statistics.breaker.classes["haiku-5-5"].seen == 20
    assert {event.delay_s for event in told if isinstance(event, RetryScheduled)} == {0.0}
    # Nobody generated anything for what was dropped.
    assert statistics.attempts.total.estimated == 0


@pytest.mark.parametrize("transport", ["aiohttp", "httpx2"])
async def test_a_server_that_never_answers_is_a_failing_one(transport: Transport) -> None:
    """The first connection of a call is forgiven, the others count: four attempts, and three are paid."""
    async with serving(CLOSE) as server:
        client = Client(
            api_keys=KEYS,
            base_url=server.url,
            transport=transport,
            log=False,
            retry=RetryOptions(base_s=0.001, cap_s=0.001),
        )
        async with client as claude:
            with pytest.raises(anthropic.APIConnectionError) as raised:
                await claude.messages.create(**ASK)
            assert len(server.arrived) == 1 + 4
            assert "5 attempts" in raised.value.__notes__[0]
            assert spent(claude.statistics()) == (3 * 14, 4)
            assert claude.statistics().attempts.total.estimated == 4


@pytest.mark.parametrize("transport", ["aiohttp", "httpx2"])
async def test_one_attempt_means_one(transport: Transport) -> None:
    """Whoever allows no retry gets none: then a dropped connection is a failure like any other."""
    async with serving(CLOSE) as server:
        client = Client(
            api_keys=KEYS, base_url=server.url, transport=transport, log=False, retry=RetryOptions(max_attempts=1)
        )
        async with client as claude:
            with pytest.raises(anthropic.APIConnectionError):
                await claude.messages.create(**ASK)
            assert len(server.arrived) == 1
            assert spent(claude.statistics()) == (0, 1)


@pytest.mark.parametrize("transport", ["aiohttp", "httpx2"])
async def test_an_answer_that_breaks_off_is_not_forgiven(transport: Transport) -> None:
    """The head had come, so the server had begun; that may have been paid for, and counts."""

    def script(_: Arrived) -> Answer:
        cut = OK[:-20].replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n")
        return OK if len(server.arrived) > 1 else cut

    async with serving(script) as server:
        client = Client(
            api_keys=KEYS, base_url=server.url, transport=transport, log=False, retry=RetryOptions(base_s=0.001)
        )
        async with client as claude:
            await claude.messages.create(**ASK)
            assert spent(claude.statistics())[1] == 1
            assert claude.statistics().attempts.total.estimated == 1


@pytest.mark.lengthy
async def test_many_at_once_find_fresh_connections() -> None:
    """Ten connections are kept and all are closed as they are used again: all calls are answered, free of charge."""

    def script(request: Arrived) -> Answer:
        return OK if request.number == 1 else CLOSE

    async with serving(script) as server, Client(api_keys=KEYS, base_url=server.url, log=False) as claude:
        for _ in range(3):
            async with anyio.create_task_group() as group:
                for _ in range(10):
                    group.start_soon(lambda: claude.messages.create(**ASK))
        assert spent(claude.statistics()) == (0, 0)
    assert math.isclose(len(server.arrived), 50, abs_tol=20)


@pytest.mark.parametrize(("seconds", "forgiven"), [(0.5, True), (5.0, False)])
async def test_a_server_that_lets_go_after_a_while_had_begun(
    seconds: float, forgiven: bool, virtual_time: VirtualTime
) -> None:
    """One that closes an idle connection does so at once; later, it may have worked, and that is a failure."""

    async def lost(request: httpx2.Request) -> httpx2.Response:
        await anyio.sleep(seconds)
        raise httpx2.ReadError("reset", request=request)

    message = json.loads(OK.partition(b"\r\n\r\n")[2])
    transport = ScriptedTransport(lost, httpx2.Response(200, json=message))
    async with Client(sdk=transport.client(), log=False) as claude:
        await claude.messages.create(**ASK)
        assert spent(claude.statistics())[1] == (not forgiven)
        assert claude.statistics().attempts.total.estimated == (not forgiven)
