"""One scenario of spending: requests of mixed size against quotas of the simulator, on virtual time.

The rule here: the simulator's own accounts are the measure, not the client's. What is *possible* is what all quotas
together can grant: rate × time + the initial burst. The least time for a run is the time after which that covers
everything that was taken. A run's time is counted from the first arrival at the simulator to the last arrival of a
request that was answered: how long that last answer takes is up to the model. With it, the figure is given too.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field, replace
from statistics import median
from typing import TYPE_CHECKING, Any, Literal

import anthropic
import anyio

import penstock
from penstock.simulator import Simulator
from penstock.testing import VirtualLoop

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anthropic import AsyncAnthropic

    from penstock.simulator.limits import BucketLevel, QuotaState

__all__ = ["MODEL", "Outcome", "Scenario", "middle", "run"]

MODEL = "claude-haiku-5-5"
MAX_TOKENS = 1500
_BUCKETS = ("requests", "input_tokens", "output_tokens")
_STRANGER = "stranger-"
# What is measured is the line.
_NEVER_OPEN = penstock.BreakerOptions(window=100_000, minimum=100_000)


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """What is asked for, and of whom.

    Attributes:
        name: In tables.
        per_minute: Limits of each quota, as the simulator takes them.
        configured: What the client is told of them; `None` for nothing.
        requests: How many.
        quotas: Organizations.
        keys: For each organization.
        burst_s: Capacity of the buckets, in seconds of refill.
        latency_s: To the headers of an answer.
        tokens_per_s: Speed of generation; `None`: at once.
        faults: Probabilities by name.
        streams: Whether answers are streamed.
        stranger: Share of the requests limit that somebody else uses with keys of the same organizations.
        largest: Input tokens of the largest request.
        concurrency: Of the client.
    """

    name: str
    per_minute: dict[str, float]
    configured: penstock.Limits | None = None
    requests: int = 1200
    quotas: int = 2
    keys: int = 1
    burst_s: float = 6.0
    latency_s: float = 0.5
    tokens_per_s: float | None = None
    faults: dict[str, float] = field(default_factory=dict)
    streams: bool = False
    stranger: float = 0.0
    largest: int = 2000
    concurrency: int | Literal["adaptive"] = 512

    def told(self, factor: float = 1.0) -> Scenario:
        """Return the same with the limits, times `factor`, configured."""
        told = {name: factor * limit for name, limit in self.per_minute.items()}
        return replace(self, configured=penstock.Limits(**told))


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a run came to.

    Attributes:
        least_s: After so long the quotas could have granted everything that was taken.
        admitted_s: First arrival to last arrival of an answered request.
        ended_s: First arrival to the end of the last answer.
        refused: Answers of 429 that no fault made.
        answered: Requests answered in full.
        asked: Requests asked for.
    """

    least_s: float
    admitted_s: float
    ended_s: float
    refused: int
    answered: int
    asked: int

    @property
    def used(self) -> float:
        """Least time ÷ time to the last admission."""
        return self.least_s / self.admitted_s

    @property
    def used_with_tail(self) -> float:
        """Least time ÷ time to the end of the last answer."""
        return self.least_s / self.ended_s

    @property
    def refused_share(self) -> float:
        """Answers of 429 for each request asked for."""
        return self.refused / self.asked


def middle(outcomes: Sequence[Outcome], name: str) -> float:
    """Return the median of one figure."""
    figures: list[float] = [getattr(outcome, name) for outcome in outcomes]
    return median(figures)


def run(scenario: Scenario, *, seed: int) -> Outcome:
    """Run a scenario once, on a loop of its own."""
    return anyio.run(_run, scenario, seed, backend_options={"loop_factory": VirtualLoop})


def _sizes(scenario: Scenario, rng: random.Random) -> tuple[list[str], list[int]]:
    """Prompts and lengths of answers: most are small, a few large, as in most services."""
    given = [min(int(rng.lognormvariate(math.log(150), 1.0)) + 5, scenario.largest) for _ in range(scenario.requests)]
    made = [min(int(rng.lognormvariate(math.log(70), 0.9)) + 5, MAX_TOKENS) for _ in range(scenario.requests)]
    return [f"{number} " + "word" * tokens for number, tokens in enumerate(given)], made


def _simulator(scenario: Scenario, made: list[int], seed: int) -> tuple[Simulator, list[str], list[str]]:
    """Return a simulator, the client's keys and the stranger's."""
    ours = {f"sk-{quota}-{key}": f"org-{quota}" for key in range(scenario.keys) for quota in range(scenario.quotas)}
    strangers = {f"{_STRANGER}{quota}": f"org-{quota}" for quota in range(scenario.quotas)}

    def length(body: dict[str, Any]) -> int:
        return made[int(body["messages"][0]["content"].partition(" ")[0])]

    simulator = Simulator(
        requests_per_minute=scenario.per_minute.get("requests_per_minute"),
        input_tokens_per_minute=scenario.per_minute.get("input_tokens_per_minute"),
        output_tokens_per_minute=scenario.per_minute.get("output_tokens_per_minute"),
        burst_s=scenario.burst_s,
        latency_s=scenario.latency_s,
        tokens_per_s=scenario.tokens_per_s,
        output_tokens=length,
        faults=scenario.faults,
        keys={**ours, **strangers},
        seed=seed,
        keep_bodies=False,
    )
    return simulator, list(ours), list(strangers)


async def _run(scenario: Scenario, seed: int) -> Outcome:
    prompts, made = _sizes(scenario, random.Random(seed))
    simulator, keys, strangers = _simulator(scenario, made, seed)
    async with (
        simulator.client(api_key=keys[0]) as sdk,
        penstock.Client(
            sdk=sdk,
            api_keys=keys,
            limits=scenario.configured,
            concurrency=scenario.concurrency,
            breaker=_NEVER_OPEN,
            log=False,
        ) as claude,
        anyio.create_task_group() as others,
    ):
        for key in strangers if scenario.stranger else ():
            others.start_soon(_stranger, simulator, key, scenario.stranger * scenario.per_minute["requests_per_minute"])
        ask = _ask_streams if scenario.streams else _ask
        answered = await ask(claude, prompts)
        others.cancel_scope.cancel()
        assert claude.statistics().admission.slots_used == 0
    return _account(simulator, scenario, answered)


async def _ask(claude: penstock.Client, prompts: list[str]) -> int:
    answered = 0
    async with claude.fan_out(prompts, model=MODEL, max_tokens=MAX_TOKENS, concurrency=2 * len(prompts)) as results:
        async for result in results:
            answered += result.ok
    return answered


async def _ask_streams(claude: penstock.Client, prompts: list[str]) -> int:
    answered = 0

    async def ask(prompt: str) -> None:
        nonlocal answered
        messages: Any = [{"role": "user", "content": prompt}]
        async with claude.messages.stream(model=MODEL, max_tokens=MAX_TOKENS, messages=messages) as stream:
            message = await stream.get_final_message()
        answered += message.stop_reason is not None

    async with anyio.create_task_group() as group:
        for prompt in prompts:
            group.start_soon(ask, prompt)
    return answered


async def _stranger(simulator: Simulator, key: str, per_minute: float) -> None:
    """Use a quota evenly from elsewhere, taking every refusal as it comes."""
    async with simulator.client(api_key=key, max_retries=0) as sdk, anyio.create_task_group() as group:
        while True:
            group.start_soon(_one, sdk)
            await anyio.sleep(60 / per_minute)


async def _one(sdk: AsyncAnthropic) -> None:
    try:
        await sdk.messages.create(model=MODEL, max_tokens=9, messages=[{"role": "user", "content": "0 Hello"}])
    except anthropic.RateLimitError:
        return


def _account(simulator: Simulator, scenario: Scenario, answered: int) -> Outcome:
    entries = [entry for entry in simulator.journal if not str(entry.key).startswith(_STRANGER)]
    began = min(entry.started_at for entry in entries)
    last = max((entry for entry in entries if entry.status == 200), key=lambda entry: entry.started_at)
    quotas = [quota for one in simulator.statistics().organizations.values() for quota in one.quotas.values()]
    return Outcome(
        least_s=max(_least_s(quotas, name) for name in _BUCKETS),
        admitted_s=last.started_at - began,
        ended_s=max(entry.ended_at or 0.0 for entry in entries) - began,
        refused=sum(entry.status == 429 and entry.fault is None for entry in entries),
        answered=answered,
        asked=scenario.requests,
    )


def _least_s(quotas: list[QuotaState], name: str) -> float:
    """Return the time after which all quotas together could have granted what was taken from them."""
    buckets: list[BucketLevel] = [getattr(quota, name) for quota in quotas]
    per_s = sum((bucket.limit_per_minute or math.inf) / 60 for bucket in buckets)
    burst = sum(bucket.capacity or 0.0 for bucket in buckets)
    return max(sum(bucket.taken for bucket in buckets) - burst, 0.0) / per_s
