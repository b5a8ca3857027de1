"""What this machine, or its caller, does wrong: told at once, and held against nobody else."""

from __future__ import annotations

import asyncio
import gc
import json
import sys
from typing import TYPE_CHECKING, Any, Literal

import anthropic
import anyio
import httpx2
import pytest
from _scripted_server import OK, serving

from penstock import Client, RetryOptions

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.anyio

Transport = Literal["aiohttp", "httpx2"]
KEYS = ("sk-ant-api03-one",)
ASK: dict[str, Any] = {
    "model": "claude-haiku-5-5",
    "max_tokens": 9,
    "messages": [{"role": "user", "content": "Hello"}],
}
NO_HEADERS: list[dict[str, Any]] = [
    {"x-user": "a\nb"},
    {"x-user": "a\rb"},
    {"x-user": "a\r\nx-api-key: sk"},
    {"x-user": "a\0b"},
    {"x\nuser": "a"},
    {"x-user": "\ud800"},
    {"x-user": 5},
    {"content-length": "many"},
]
NO_BODIES: list[Any] = [object(), "\ud800", float("nan")]


def held_against_nobody(claude: Client) -> None:
    """No attempt was repeated, nothing paid, and the breaker has seen nothing."""
    statistics = claude.statistics()
    assert statistics.retry.retries == 0
    assert statistics.retry.quota == statistics.retry.capacity
    assert all((each.state, each.failures) == ("closed", 0) for each in statistics.breaker.classes.values())


@pytest.mark.lengthy
@pytest.mark.parametrize("transport", ["aiohttp", "httpx2"])
async def test_what_cannot_be_sent_is_refused_once(transport: Transport) -> None:
    """Headers and bodies that are none, 25 times each: nothing arrives or is repeated, and the next is answered."""
    async with (
        serving(OK) as server,
        Client(api_keys=KEYS, base_url=server.url, transport=transport, log=False) as claude,
    ):
        for headers in NO_HEADERS:
            for _ in range(25):
                with pytest.raises((anthropic.APIConnectionError, ValueError, AttributeError, TypeError)):
                    await claude.messages.create(**ASK, extra_headers=headers)
        for body in NO_BODIES:
            with pytest.raises((ValueError, TypeError)):
                await claude.messages.create(**ASK, extra_body={"x": body})
        assert server.arrived == []
        held_against_nobody(claude)
        await claude.messages.create(**ASK)


@pytest.mark.lengthy
@pytest.mark.parametrize("url", ["ftp://127.0.0.1", "ht!tp://x", "http://127.0.0.1:99999", "http://"])
@pytest.mark.parametrize("http_client", [anthropic.DefaultAioHttpClient, anthropic.DefaultAsyncHttpxClient])
async def test_an_address_that_is_none_is_refused_once(http_client: Callable[[], httpx2.AsyncClient], url: str) -> None:
    """A scheme that nobody speaks, a port that isn't there."""
    sdk = anthropic.AsyncAnthropic(api_key=KEYS[0], base_url=url, http_client=http_client())
    async with sdk, Client(sdk=sdk, log=False) as claude:
        for _ in range(25):
            with pytest.raises(anthropic.APIConnectionError):
                await claude.messages.create(**ASK)
        held_against_nobody(claude)


@pytest.mark.lengthy
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_client_of_a_loop_that_is_closed_is_refused_once() -> None:
    """Its connections belong to the other loop, and can't even be closed."""
    sdk = anthropic.AsyncAnthropic(api_key=KEYS[0], http_client=anthropic.DefaultAsyncHttpxClient())

    async def ask() -> None:
        async with serving(OK) as server:
            sdk.base_url = server.url
            async with Client(sdk=sdk, log=False) as claude:
                await claude.messages.create(**ASK)

    async def ask_again() -> None:
        async with Client(sdk=sdk, log=False) as claude:
            with pytest.raises(anthropic.APIConnectionError):
                await claude.messages.create(**ASK)
            held_against_nobody(claude)

    asyncio.run(ask())
    asyncio.run(ask_again())
    gc.collect()


async def test_a_closed_transport_is_refused_once() -> None:
    """Somebody has closed the client that was given to us."""
    sdk = anthropic.AsyncAnthropic(api_key=KEYS[0], base_url="http://127.0.0.1:1")
    async with Client(sdk=sdk, log=False) as claude:
        await sdk.close()
        with pytest.raises(anthropic.APIConnectionError):
            await claude.messages.create(**ASK)
        held_against_nobody(claude)


@pytest.mark.lengthy
async def test_a_pool_of_ones_own_that_is_full_is_no_failure_of_the_service() -> None:
    """With one connection for ten calls, and no patience: those that get none wait and come back; all are answered."""
    http_client = httpx2.AsyncClient(limits=httpx2.Limits(max_connections=1), timeout=httpx2.Timeout(5, pool=0.01))
    retry = RetryOptions(max_attempts=100, base_s=0.02, cap_s=0.05)
    async with serving(OK, slow_s=0.02) as server:
        sdk = anthropic.AsyncAnthropic(api_key=KEYS[0], base_url=server.url, http_client=http_client)
        async with sdk, Client(sdk=sdk, log=False, retry=retry) as claude:
            async with anyio.create_task_group() as group:
                for _ in range(10):
                    group.start_soon(lambda: claude.messages.create(**ASK, timeout=http_client.timeout))
            statistics = claude.statistics()
    assert statistics.retry.retries > 0
    assert statistics.retry.quota == statistics.retry.capacity
    assert [(each.state, each.failures) for each in statistics.breaker.classes.values()] == [("closed", 0)]


FEW_FILES = """
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (96, 96))
import asyncio, json, sys
from penstock import Client, Limits

async def main(url, transport):
    limits = Limits(requests_per_minute=100_000)
    async with Client(api_keys=["sk-ant-api03-one"], base_url=url, transport=transport, log=False, limits=limits,
                      concurrency=200, retry={"max_attempts": 2, "base_s": 0.01}) as claude:
        async def ask():
            try:
                await claude.messages.create(
                    model="claude-haiku-5-5", max_tokens=9, messages=[{"role": "user", "content": "Hello"}]
                )
            except Exception as error:
                return type(error).__name__
            return "answered"
        first = await asyncio.gather(*(ask() for _ in range(200)))
        later = await asyncio.gather(*(ask() for _ in range(20)))
        statistics = claude.statistics()
    breaker = statistics.breaker.classes["haiku-5-5"]
    exhausted = statistics.attempts.total.failures.get("exhausted", 0)
    print(json.dumps([sorted(set(first)), sorted(set(later)), exhausted, breaker.state, breaker.failures,
                      statistics.retry.capacity - statistics.retry.quota]))

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="it has no such limit")
@pytest.mark.parametrize("transport", ["aiohttp", "httpx2"])
async def test_a_lack_of_files_is_no_failure_of_the_service(transport: Transport) -> None:
    """200 calls at once with 96 files: what gets none fails for that reason; the 20 calls after it are answered."""
    async with serving(OK, slow_s=0.05) as server:
        ran = await anyio.run_process([sys.executable, "-c", FEW_FILES, server.url, transport], check=False)
    assert ran.returncode == 0, ran.stderr.decode()
    first, later, exhausted, state, failures, paid = json.loads(ran.stdout)
    assert set(first) <= {"answered", "APIConnectionError"}
    assert later == ["answered"]
    assert exhausted > 20
    assert (state, failures, paid) == ("closed", 0, 0)
