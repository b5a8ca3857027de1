from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import anthropic
import pytest

from penstock import Client, RetryOptions, SanitizeOptions, Settings
from penstock._core.attempt import Attempt
from penstock._core.background import Background
from penstock.chain import build_chain
from penstock.events import Observers

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from penstock.chain import Chain
    from penstock.simulator import Simulator

MODEL = "claude-sonnet-5-5"
MESSAGES: Any = [{"role": "user", "content": "Hello there"}]
ASK: Any = {"model": MODEL, "max_tokens": 100, "messages": MESSAGES}

CALLS: dict[str, Callable[[anthropic.AsyncAnthropic], Awaitable[object]]] = {
    "messages": lambda sdk: sdk.messages.create(**ASK),
    "beta messages": lambda sdk: sdk.beta.messages.create(**ASK),
    "count_tokens": lambda sdk: sdk.messages.count_tokens(model=MODEL, messages=MESSAGES),
    "beta count_tokens": lambda sdk: sdk.beta.messages.count_tokens(model=MODEL, messages=MESSAGES),
    "models.list": lambda sdk: sdk.models.list(),
    "models.retrieve": lambda sdk: sdk.models.retrieve(MODEL),
}


def chain_of(**fields: Any) -> Chain:
    """The guards of a client, without the client."""
    observers = Observers()
    return build_chain(
        Settings(log=False, **fields),
        observers=observers,
        background=Background(observers),
        gate=lambda: None,
        rng=random.Random(7),
    )


class Watch(anthropic.Middleware):
    """Notes that a request came by."""

    def __init__(self, seen: list[str], name: str) -> None:
        self._seen = seen
        self._name = name

    async def handle_async(self, request: anthropic.APIRequest, call_next: Any) -> Any:
        self._seen.append(self._name)
        return await call_next(request)


def test_the_order_is_pinned() -> None:
    """Outermost first: the order is a decision, which nobody changes by accident."""
    names = [type(guard).__name__ for guard in chain_of().middleware]
    assert names == ["Record", "Retry", "CircuitBreaker", "Admit", "Meter"]
    names = [type(guard).__name__ for guard in chain_of(sanitize=True).middleware]
    assert names == ["Record", "Sanitize", "Retry", "CircuitBreaker", "Admit", "Meter"]


def test_a_client_has_that_chain() -> None:
    """What is pinned is what runs."""
    names = [type(guard).__name__ for guard in Client(log=False).sdk.middleware]
    assert names == [type(guard).__name__ for guard in chain_of().middleware]


async def test_each_attempt_passes_what_is_inside_retry_and_only_that(simulator: Simulator) -> None:
    """A call with two attempts is seen once outside of retry, and twice inside."""
    seen: list[str] = []
    record, *inner = chain_of(retry=RetryOptions(base_s=0.001)).middleware
    retry, *innermost = inner
    simulator.inject("overloaded")
    middleware = [record, Watch(seen, "outside"), retry, Watch(seen, "inside"), *innermost]
    await simulator.client(max_retries=0, middleware=middleware).messages.create(**ASK)
    assert seen == ["outside", "inside", "inside"]


@pytest.mark.lengthy
@pytest.mark.parametrize("name", CALLS)
async def test_only_messages_pass_every_guard(simulator: Simulator, name: str) -> None:
    """Breaker, limits of a model and meter are for `/v1/messages`; the rest is recorded, retried and given a key."""
    chain = chain_of(retry=RetryOptions(base_s=0.001))
    sdk = simulator.client(max_retries=0, middleware=chain.middleware)
    simulator.inject("overloaded")
    await CALLS[name](sdk)
    every = name.endswith("messages")
    assert len(simulator.journal) == 2
    assert (chain.record.statistics().calls, chain.record.statistics().successes) == (1, 1)
    assert chain.retry.statistics().retries == 1
    assert bool(chain.breaker.statistics().classes) is every
    assert chain.meter.statistics().total.attempts == (2 if every else 0)
    admission = chain.admit.statistics()
    assert admission.admitted == (0 if name.startswith("models") else 2)
    classes = {model_class for quota in admission.quotas.values() for model_class in quota}
    assert ("sonnet-5-5" in classes) is every
    assert ("count_tokens" in classes) is name.endswith("count_tokens")


async def test_an_open_breaker_stops_messages_only(simulator: Simulator) -> None:
    """While a model's service is down, its messages are refused, and everything else goes on."""
    chain = chain_of(retry=RetryOptions(max_attempts=1))
    sdk = simulator.client(max_retries=0, middleware=chain.middleware)
    simulator.inject("api_error", times=20)
    for _ in range(20):
        with pytest.raises(anthropic.InternalServerError):
            await CALLS["messages"](sdk)
    assert {name: await _outcome(CALLS[name], sdk) for name in CALLS} == {
        "messages": "CircuitOpen",
        "beta messages": "CircuitOpen",
        "count_tokens": "ok",
        "beta count_tokens": "ok",
        "models.list": "ok",
        "models.retrieve": "ok",
    }
    assert len(simulator.journal) == 24


async def _outcome(call: Callable[[anthropic.AsyncAnthropic], Awaitable[object]], sdk: Any) -> str:
    try:
        await call(sdk)
    except anthropic.AnthropicError as error:
        return type(error).__name__
    return "ok"


async def test_settings_reach_their_guards() -> None:
    """Each part of the settings is what its guard works with."""
    chain = chain_of(
        concurrency=3, retry=RetryOptions(quota=17), deadline_s=5, sanitize=SanitizeOptions(max_characters=9)
    )
    assert chain.admit.statistics().concurrency == 3
    assert chain.retry.statistics().capacity == 17
    assert chain.record._deadline_s == 5
    assert chain.sanitize is not None
    assert chain.sanitize._options.max_characters == 9


async def test_the_guards_share_one_attempt(simulator: Simulator) -> None:
    """Every guard of a chain sees the same call and attempt, and opens none of its own."""
    begun: list[Attempt] = []
    original = Attempt.__init__

    def watched(self: Attempt, *arguments: Any) -> None:
        begun.append(self)
        original(self, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Attempt, "__init__", watched)
        sdk = simulator.client(max_retries=0, middleware=chain_of().middleware)
        await sdk.messages.create(**ASK)
        await sdk.models.list()
    assert len(begun) == 2
