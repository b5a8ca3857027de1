"""Who streams, each set up as its own documentation does, and penstock.

The rule here: each gives a function that asks for one stream and hands on its text, piece by piece, until it is told to
leave.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from anthropic import AsyncAnthropic, DefaultAioHttpClient

import penstock

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from contextlib import AbstractAsyncContextManager

__all__ = ["OURS", "PEERS", "OnText", "Peer", "Read"]

KEY, MODEL, MAX_TOKENS = "sk-ant-benchmark", "claude-sonnet-5-5", 1024
PROMPT = "What does backpressure mean, and where does it go wrong? " * 6
MESSAGES: Any = [{"role": "user", "content": PROMPT}]

# Takes each piece of text; True is for leaving the stream.
OnText: TypeAlias = "Callable[[str], bool]"
# Asks for one stream, and reads it.
Read: TypeAlias = "Callable[[OnText], Awaitable[None]]"


@asynccontextmanager
async def default_sdk(url: str) -> AsyncIterator[Read]:
    """The SDK's own helper, over the client that a user gets who sets nothing."""
    async with AsyncAnthropic(api_key=KEY, base_url=url) as claude:
        yield lambda on_text: _by_sdk(claude, on_text)


@asynccontextmanager
async def aiohttp_sdk(url: str) -> AsyncIterator[Read]:
    """The same over aiohttp."""
    async with AsyncAnthropic(api_key=KEY, base_url=url, http_client=DefaultAioHttpClient()) as claude:
        yield lambda on_text: _by_sdk(claude, on_text)


async def _by_sdk(claude: AsyncAnthropic, on_text: OnText) -> None:
    async with claude.messages.stream(model=MODEL, max_tokens=MAX_TOKENS, messages=MESSAGES) as stream:
        async for text in stream.text_stream:
            if on_text(text):
                break


@asynccontextmanager
async def langchain(url: str) -> AsyncIterator[Read]:
    """A chat model's `astream`."""
    chat = importlib.import_module("langchain_anthropic").ChatAnthropic
    model = chat(model=MODEL, api_key=KEY, base_url=url, max_tokens=MAX_TOKENS)

    async def read(on_text: OnText) -> None:
        async for chunk in model.astream(PROMPT):
            content = chunk.content
            text = content if isinstance(content, str) else "".join(part.get("text", "") for part in content)
            if text and on_text(text):
                break

    yield read


@asynccontextmanager
async def litellm(url: str) -> AsyncIterator[Read]:
    """`acompletion`, with the two retries that its documentation shows."""
    library: Any = importlib.import_module("litellm")
    library.suppress_debug_info = True
    for name in ("LiteLLM", "LiteLLM Router"):
        logging.getLogger(name).setLevel(logging.CRITICAL)

    async def read(on_text: OnText) -> None:
        chunks = await library.acompletion(
            model=f"anthropic/{MODEL}",
            messages=MESSAGES,
            max_tokens=MAX_TOKENS,
            api_base=url,
            api_key=KEY,
            stream=True,
            num_retries=2,
        )
        async for chunk in chunks:
            text = chunk.choices[0].delta.content
            if text and on_text(text):
                break

    yield read


@asynccontextmanager
async def pydantic_ai(url: str) -> AsyncIterator[Read]:
    """An agent's `run_stream`, its text as deltas and not held back."""
    agents: Any = importlib.import_module("pydantic_ai")
    models: Any = importlib.import_module("pydantic_ai.models.anthropic")
    providers: Any = importlib.import_module("pydantic_ai.providers.anthropic")
    async with AsyncAnthropic(api_key=KEY, base_url=url) as claude:
        provider = providers.AnthropicProvider(anthropic_client=claude)
        agent = agents.Agent(models.AnthropicModel(MODEL, provider=provider), model_settings={"max_tokens": MAX_TOKENS})

        async def read(on_text: OnText) -> None:
            async with agent.run_stream(PROMPT) as result:
                async for text in result.stream_text(delta=True, debounce_by=None):
                    if on_text(text):
                        break

        yield read


@asynccontextmanager
async def governed(url: str) -> AsyncIterator[Read]:
    """The whole chain."""
    async with penstock.Client(api_keys=[KEY], base_url=url, concurrency=200, log=False) as claude:

        async def read(on_text: OnText) -> None:
            async with claude.stream(model=MODEL, max_tokens=MAX_TOKENS, messages=MESSAGES) as stream:
                async for text in stream.text_stream:
                    if on_text(text):
                        break

        yield read
        assert claude.statistics().admission.slots_used == 0


@dataclass(frozen=True, kw_only=True)
class Peer:
    """Somebody who streams.

    Attributes:
        name: In tables.
        packages: That it needs, and whose versions are told.
        made: Opens it against a server.
    """

    name: str
    packages: tuple[str, ...]
    made: Callable[[str], AbstractAsyncContextManager[Read]]

    @property
    def installed(self) -> bool:
        """Whether all that it needs is there."""
        return all(
            importlib.util.find_spec(package.replace("-slim", "").replace("-", "_")) for package in self.packages
        )


OURS = "penstock"
PEERS = (
    Peer(name="SDK, default client", packages=("anthropic",), made=default_sdk),
    Peer(name="SDK over aiohttp", packages=("anthropic",), made=aiohttp_sdk),
    Peer(name="langchain-anthropic", packages=("langchain-anthropic",), made=langchain),
    Peer(name="pydantic-ai", packages=("pydantic-ai-slim",), made=pydantic_ai),
    Peer(name="LiteLLM", packages=("litellm",), made=litellm),
    Peer(name=OURS, packages=("penstock",), made=governed),
)
