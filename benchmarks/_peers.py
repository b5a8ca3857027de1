"""Who sends requests against a quota today, each set up as its own documentation does, and penstock.

The rule here: each gives a function that asks one prompt, and may have the same number of requests under way.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import itertools
import logging
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, TypeAlias

from aiolimiter import AsyncLimiter
from anthropic import AsyncAnthropic, DefaultAioHttpClient

import penstock

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from contextlib import AbstractAsyncContextManager

__all__ = ["BURST_S", "KEYS", "OURS", "PEERS", "PER_MINUTE", "Peer"]

MODEL = "claude-haiku-5-5"
KEYS = ("sk-peers-1", "sk-peers-2")
PER_MINUTE, BURST_S = 1800, 6
MAX_TOKENS, UNDER_WAY = 100, 200

# Asks a prompt; somebody may be waiting for it at a screen.
Ask: TypeAlias = "Callable[[str, bool], Awaitable[object]]"


@asynccontextmanager
async def bare_sdk(url: str) -> AsyncIterator[Ask]:
    """A client for each key, in turn, behind a semaphore."""
    async with AsyncExitStack() as stack:
        clients = itertools.cycle([await stack.enter_async_context(_sdk(url, key)) for key in KEYS])
        slots = asyncio.Semaphore(UNDER_WAY)

        async def ask(prompt: str, urgent: bool) -> object:  # noqa: ARG001, FBT001
            async with slots:
                return await _create(next(clients), prompt)

        yield ask


@asynccontextmanager
async def limiter(url: str) -> AsyncIterator[Ask]:
    """The same, behind an `AsyncLimiter` for each key."""
    async with AsyncExitStack() as stack:
        pairs = [(await stack.enter_async_context(_sdk(url, key)), AsyncLimiter(PER_MINUTE, 60)) for key in KEYS]
        turn = itertools.cycle(pairs)
        slots = asyncio.Semaphore(UNDER_WAY)

        async def ask(prompt: str, urgent: bool) -> object:  # noqa: ARG001, FBT001
            client, limit = next(turn)
            async with slots, limit:
                return await _create(client, prompt)

        yield ask


@asynccontextmanager
async def litellm_router(url: str) -> AsyncIterator[Ask]:
    """A router over two deployments, told their limits, with five retries."""
    litellm: Any = importlib.import_module("litellm")
    litellm.suppress_debug_info = True
    logging.getLogger("LiteLLM Router").setLevel(logging.CRITICAL)
    logging.getLogger("LiteLLM").setLevel(logging.CRITICAL)
    deployments = [
        {
            "model_name": MODEL,
            "litellm_params": {
                "model": f"anthropic/{MODEL}",
                "api_base": url,
                "api_key": key,
                "rpm": PER_MINUTE,
                "tpm": 10_000_000,
            },
        }
        for key in KEYS
    ]
    router = litellm.Router(model_list=deployments, num_retries=5)
    slots = asyncio.Semaphore(UNDER_WAY)

    async def ask(prompt: str, urgent: bool) -> object:  # noqa: ARG001, FBT001
        async with slots:
            messages = [{"role": "user", "content": prompt}]
            return await router.acompletion(model=MODEL, max_tokens=MAX_TOKENS, messages=messages)

    yield ask


@asynccontextmanager
async def langchain(url: str) -> AsyncIterator[Ask]:
    """A chat model for each key, each with an in-memory limiter, whose bucket is empty at the start."""
    limiters = importlib.import_module("langchain_core.rate_limiters")
    chat = importlib.import_module("langchain_anthropic").ChatAnthropic
    models = [
        chat(
            model=MODEL,
            api_key=key,
            base_url=url,
            max_tokens=MAX_TOKENS,
            rate_limiter=limiters.InMemoryRateLimiter(
                requests_per_second=PER_MINUTE / 60,
                check_every_n_seconds=0.1,
                max_bucket_size=PER_MINUTE / 60 * BURST_S,
            ),
        )
        for key in KEYS
    ]
    turn = itertools.cycle(models)
    slots = asyncio.Semaphore(UNDER_WAY)

    async def ask(prompt: str, urgent: bool) -> object:  # noqa: ARG001, FBT001
        async with slots:
            return await next(turn).ainvoke(prompt)

    yield ask


@asynccontextmanager
async def governed(url: str) -> AsyncIterator[Ask]:
    """One client with both keys, told nothing of any limit."""
    async with penstock.Client(api_keys=KEYS, base_url=url, concurrency=UNDER_WAY, log=False) as claude:

        async def ask(prompt: str, urgent: bool) -> object:  # noqa: FBT001
            with penstock.labels(priority="interactive" if urgent else "batch"):
                return await _create(claude.sdk, prompt)

        yield ask


def _sdk(url: str, key: str) -> AsyncAnthropic:
    return AsyncAnthropic(api_key=key, base_url=url, http_client=DefaultAioHttpClient())


async def _create(client: AsyncAnthropic, prompt: str) -> object:
    messages: Any = [{"role": "user", "content": prompt}]
    return await client.messages.create(model=MODEL, max_tokens=MAX_TOKENS, messages=messages)


@dataclass(frozen=True, kw_only=True)
class Peer:
    """Somebody who sends requests.

    Attributes:
        name: In tables.
        packages: That it needs, and whose versions are told.
        made: Opens it against a server.
    """

    name: str
    packages: tuple[str, ...]
    made: Callable[[str], AbstractAsyncContextManager[Ask]]

    @property
    def installed(self) -> bool:
        """Whether all that it needs is there."""
        return all(importlib.util.find_spec(package.replace("-", "_")) for package in self.packages)

    @property
    def versions(self) -> str:
        """What it is made of."""
        return ", ".join(f"{package} {version(package)}" for package in self.packages)


OURS = Peer(name="penstock, told nothing", packages=("penstock",), made=governed)
PEERS = (
    Peer(name="bare SDK, semaphore of 200", packages=("anthropic",), made=bare_sdk),
    Peer(name="aiolimiter in front", packages=("aiolimiter", "anthropic"), made=limiter),
    Peer(name="LiteLLM Router, rpm and tpm, 5 retries", packages=("litellm",), made=litellm_router),
    Peer(name="LangChain, in-memory limiter", packages=("langchain-core", "langchain-anthropic"), made=langchain),
    OURS,
)
