from __future__ import annotations

import contextlib
import functools
import gc
import itertools
import math
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import anthropic
import anyio
import pytest
from anthropic import AsyncAnthropic, omit
from pydantic import ValidationError

from penstock._core.attempt import Attempt, open_attempt
from penstock._core.call import open_call
from penstock._core.context import Pin, deadline, labels, pinned
from penstock._core.failure import FailureKind
from penstock._core.secret import Secret
from penstock.errors import AdmissionTimeout, NoKeyAvailable, QueueFull, RequestExceedsQuota
from penstock.events import Event, KeyChanged, LimitsLearned, Observers, QuotaCooled
from penstock.guards.admit import Admit, AdmitOptions
from penstock.guards.admit.limits import Cost, Limits
from penstock.simulator import Limit, Simulator
from penstock.testing import Cancelled, cancel_at_every_await

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

    from penstock._core.attempt import CallNext, Response
    from penstock._core.background import Background
    from penstock.guards.admit.quota import BucketStatistics
    from penstock.testing.cancellation import How
    from penstock.testing.plugin import VirtualTime

MODEL = "claude-sonnet-5-5"
POOL = "sonnet-5-5"


def ask(text: str = "Hello", **options: Any) -> Any:
    """The arguments of a request."""
    return {"model": MODEL, "max_tokens": 100, "messages": [{"role": "user", "content": text}], **options}


class Watching(anthropic.Middleware):
    """Stands above the guard: keeps every attempt, and may change nothing."""

    def __init__(self, background: Background | None = None) -> None:
        self.attempts = list[Attempt]()
        self.background = background

    @property
    def failures(self) -> list[FailureKind | None]:
        return [None if attempt.failure is None else attempt.failure.kind for attempt in self.attempts]

    async def handle_async(self, request: anthropic.APIRequest, call_next: CallNext) -> Response:
        with open_call(request, background=self.background), open_attempt(request) as attempt:
            self.attempts.append(attempt)
            return await attempt.send(request, call_next)


class Site:
    """A simulator, a client with the guard alone in it, and what the guard reported."""

    def __init__(
        self,
        simulator: Simulator,
        *,
        keys: tuple[str, ...] = (),
        retries: int = 0,
        client: dict[str, Any] | None = None,
        below: tuple[Any, ...] = (),
        **options: Any,
    ) -> None:
        self.simulator = simulator
        self.events = list[Event]()
        self.watching = Watching()
        self.admit = Admit(keys=[Secret(key) for key in keys], observers=Observers((self.events.append,)), **options)
        middleware = [self.watching, self.admit, *below]
        self.claude: AsyncAnthropic = simulator.client(max_retries=retries, middleware=middleware, **(client or {}))

    @property
    def statuses(self) -> Counter[int | None]:
        return Counter(entry.status for entry in self.simulator.journal)

    def bucket(self, name: str, pool: str = POOL) -> BucketStatistics:
        """A bucket of the only quota."""
        (quota,) = self.admit.statistics().quotas.values()
        return quota[pool][name]

    def seen(self, kind: type[Event]) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]

    def is_idle(self) -> bool:
        """Whether nothing is left of any request."""
        statistics = self.admit.statistics()
        return (
            statistics.slots_used == 0
            and not any(statistics.waiting.values())
            and all(key.in_flight == 0 for key in statistics.keys)
            and self.admit.line.waiting == 0
            and self.simulator.in_flight == 0
        )

    async def ask_many(self, count: int, text: str = "Hello", **options: Any) -> None:
        """Ask at once; every one must be answered."""
        async with anyio.create_task_group() as group:
            for _ in range(count):
                group.start_soon(functools.partial(self.claude.messages.create, **ask(text, **options)))


# A quota is used up, and not more.


@pytest.mark.lengthy
@pytest.mark.parametrize("configured", [Limits(requests_per_minute=60), None], ids=["configured", "learned"])
async def test_requests_flow_at_the_rate_that_the_limit_allows(
    configured: Limits | None, virtual_time: VirtualTime
) -> None:
    """180 requests at 60 a minute: the burst at once, the rest in two minutes, hardly any refused."""
    site = Site(Simulator(requests_per_minute=60, latency_s=0.5), retries=4, limits=configured, concurrency=200)
    await site.ask_many(180)
    assert site.statuses[200] == 180
    assert site.statuses[429] <= 4
    assert 119 <= virtual_time.now() <= 130
    assert site.is_idle()


@pytest.mark.lengthy
async def test_input_tokens_flow_at_the_rate_that_the_limit_allows(virtual_time: VirtualTime) -> None:
    """The estimate is calibrated by the answers, so that nearly all of the limit is used."""
    simulator = Simulator(input_tokens_per_minute=60_000, latency_s=0.5)
    site = Site(simulator, retries=4, concurrency=200)
    await site.ask_many(200, "word " * 800)
    assert site.statuses[200] == 200
    assert site.statuses[429] <= 8
    used = sum(entry.input_tokens for entry in simulator.journal if entry.status == 200)
    ideal_s = used / 1000 - 60
    assert ideal_s > 60
    assert ideal_s - 2 <= virtual_time.now() <= 1.15 * ideal_s + 5
    assert site.is_idle()


@pytest.mark.lengthy
async def test_output_tokens_flow_at_the_rate_that_the_limit_allows(virtual_time: VirtualTime) -> None:
    """What is generated counts, not what `max_tokens` allows."""
    simulator = Simulator(output_tokens_per_minute=6000, latency_s=0.5, tokens_per_s=100, output_tokens=100)
    site = Site(simulator, retries=4, concurrency=200)
    await site.ask_many(200, max_tokens=8192)
    assert site.statuses[200] == 200
    assert site.statuses[429] <= 10
    assert 139 <= virtual_time.now() <= 170
    assert site.is_idle()


@pytest.mark.lengthy
async def test_a_limit_that_is_enforced_by_the_second_is_found_out(virtual_time: VirtualTime) -> None:
    """With a second's burst, headers soon tell that a minute's worth is never there at once."""
    site = Site(Simulator(requests_per_minute=Limit(600, burst_s=1), latency_s=0.2), retries=8, concurrency=200)
    await site.ask_many(300)
    assert site.statuses[200] == 300
    assert site.statuses[429] <= 40
    assert 28 <= virtual_time.now() <= 45
    assert site.is_idle()


@pytest.mark.lengthy
async def test_two_quotas_carry_twice_as_much(virtual_time: VirtualTime) -> None:
    """Two keys of two organizations, in turn."""
    keys = {"sk-a": "org-a", "sk-b": "org-b"}
    site = Site(
        Simulator(requests_per_minute=60, keys=keys, latency_s=0.5),
        keys=("sk-a", "sk-b"),
        retries=4,
        balance="round_robin",
        concurrency=300,
    )
    await site.ask_many(240)
    assert site.statuses[200] == 240
    assert site.statuses[429] <= 6
    assert 59 <= virtual_time.now() <= 70
    by_key = Counter(entry.key for entry in site.simulator.journal if entry.status == 200)
    assert by_key["sk-a"] == pytest.approx(120, abs=6)
    assert {key.quota for key in site.admit.statistics().keys} == {"org-a", "org-b"}


@pytest.mark.lengthy
async def test_two_keys_of_one_organization_carry_no_more_than_one(virtual_time: VirtualTime) -> None:
    """They are recognised by their answers, and share one quota."""
    keys = {"sk-a": "org", "sk-b": "org"}
    site = Site(
        Simulator(requests_per_minute=60, keys=keys, latency_s=0.5), keys=("sk-a", "sk-b"), retries=4, concurrency=300
    )
    await site.ask_many(120)
    assert site.statuses[200] == 120
    assert site.statuses[429] <= 6
    assert 59 <= virtual_time.now() <= 70
    assert list(site.admit.statistics().quotas) == ["org"]


async def test_keys_count_apart_if_so_configured(virtual_time: VirtualTime) -> None:
    """`quota_scope="key"` ignores the ids of answers."""
    keys = {"sk-a": "org", "sk-b": "org"}
    site = Site(Simulator(keys=keys), keys=("sk-a", "sk-b"), quota_scope="key", balance="round_robin")
    await site.ask_many(2)
    assert set(site.admit.statistics().quotas) == {Secret("sk-a").name, Secret("sk-b").name}


async def test_no_more_are_under_way_than_there_are_slots(virtual_time: VirtualTime) -> None:
    """Whatever comes at once."""
    simulator = Simulator(latency_s=1)
    most = 0

    class Counting(anthropic.Middleware):
        async def handle_async(self, request: anthropic.APIRequest, call_next: CallNext) -> Response:
            nonlocal most
            most = max(most, site.admit.statistics().slots_used, simulator.in_flight + 1)
            return await call_next(request)

    site = Site(simulator, concurrency=3, below=(Counting(),))
    await site.ask_many(30)
    assert most == 3
    assert virtual_time.now() == pytest.approx(10, abs=0.5)
    statistics = site.admit.statistics()
    assert (statistics.concurrency, statistics.admitted) == (3, 30)
    assert statistics.wait.mean_s == pytest.approx(4.5, rel=0.1)


async def test_limits_are_learned_once_and_told(virtual_time: VirtualTime) -> None:
    """Observers hear what an answer taught, with every limit."""
    simulator = Simulator(requests_per_minute=50, input_tokens_per_minute=20_000, output_tokens_per_minute=8000)
    site = Site(simulator)
    for _ in range(3):
        await site.claude.messages.create(**ask())
    (learned,) = site.seen(LimitsLearned)
    assert (learned.model_class, learned.requests_per_minute) == (POOL, 50)
    assert (learned.input_tokens_per_minute, learned.output_tokens_per_minute) == (20_000, 8000)
    assert site.bucket("requests").per_minute == 50


@pytest.mark.lengthy
async def test_configured_limits_are_an_upper_bound(virtual_time: VirtualTime) -> None:
    """The API allows more; the caller wants less, by model."""
    site = Site(Simulator(requests_per_minute=1000), limits={"claude-sonnet-*": Limits(requests_per_minute=30)})
    await site.ask_many(60)
    assert virtual_time.now() == pytest.approx(60, abs=2)
    assert site.bucket("requests").per_minute == 30


# What a request took is settled.


async def test_real_usage_is_settled_without_cache_reads(virtual_time: VirtualTime) -> None:
    """Fresh input and cache writes count, cache reads don't, and of output what was generated."""
    simulator = Simulator()
    usage = {
        "input_tokens": 100,
        "cache_creation_input_tokens": 200,
        "cache_read_input_tokens": 50_000,
        "output_tokens": 7,
    }
    simulator.reply("Hi", usage=usage)
    limits = Limits(requests_per_minute=100, input_tokens_per_minute=60_000, output_tokens_per_minute=10_000)
    site = Site(simulator, limits=limits)
    await site.claude.messages.create(**ask())
    levels = {name: site.bucket(name).capacity - site.bucket(name).available for name in Cost.NAMES}
    assert levels["requests"] == pytest.approx(1, abs=0.01)
    assert levels["input_tokens"] == pytest.approx(300, abs=5)
    assert levels["output_tokens"] == pytest.approx(7, abs=1)


@pytest.mark.parametrize(
    ("fault", "refunded"),
    [
        ("rate_limited", True),
        ("overloaded", True),
        ("not_found", True),
        ("permission", True),
        ("api_error", False),
        ("reset", False),
        ("timeout_error", False),
    ],
)
async def test_only_what_was_certainly_not_processed_is_refunded(
    fault: str, refunded: bool, virtual_time: VirtualTime
) -> None:
    """A 4xx, 429 or 529 costs nothing; what may have been billed stays spent at the estimate."""
    simulator = Simulator()
    simulator.inject(fault)
    site = Site(simulator, limits=Limits(requests_per_minute=1000, output_tokens_per_minute=10_000))
    with pytest.raises(anthropic.APIError):
        await site.claude.messages.create(**ask())
    spent = site.bucket("output_tokens").capacity - site.bucket("output_tokens").available
    assert spent == pytest.approx(0 if refunded else 100, abs=1)
    assert site.is_idle()


async def test_a_stream_left_early_is_settled_as_an_estimate(virtual_time: VirtualTime) -> None:
    """What was seen, or what was expected, whichever is more; and its slot is free at once."""
    simulator = Simulator(tokens_per_s=10, output_tokens=80)
    site = Site(simulator, limits=Limits(output_tokens_per_minute=10_000), concurrency=1)
    stream = await site.claude.messages.create(**ask(), stream=True)
    await anext(aiter(stream))
    assert site.admit.statistics().slots_used == 1
    await stream.close()
    assert site.is_idle()
    spent = site.bucket("output_tokens").capacity - site.bucket("output_tokens").available
    assert spent == pytest.approx(100, abs=1)
    assert site.watching.attempts[0].usage is not None
    assert site.watching.attempts[0].usage.estimated


async def test_a_cancelled_request_is_settled_as_an_estimate(virtual_time: VirtualTime) -> None:
    """It was sent, so that it may be billed."""
    site = Site(Simulator(latency_s=10), limits=Limits(output_tokens_per_minute=600))
    with anyio.move_on_after(1):
        await site.claude.messages.create(**ask())
    spent = site.bucket("output_tokens").capacity - site.bucket("output_tokens").available
    # A second's worth of ten has flowed in since.
    assert spent == pytest.approx(90, abs=1)
    assert site.is_idle()


async def test_only_real_usage_teaches_the_estimate(virtual_time: VirtualTime) -> None:
    """An answer of unknown usage doesn't make the next request look free."""

    class Cached(anthropic.Middleware):
        async def handle_async(self, request: anthropic.APIRequest, call_next: CallNext) -> Response:
            return await call_next(request) if used else "an answer of the user's own"

    used = list[int]()
    site = Site(Simulator(output_tokens=11), limits=Limits(output_tokens_per_minute=10_000), below=(Cached(),))
    answer: object = await site.claude.messages.create(**ask())
    assert answer == "an answer of the user's own"
    assert site.bucket("output_tokens").available == pytest.approx(9900, abs=1)
    assert site.admit.estimator._models == {} or site.admit.estimator._of(MODEL).answers == 0
    used.append(1)
    await site.claude.messages.create(**ask())
    assert site.admit.estimator._of(MODEL).output_tokens == 11


async def test_a_stream_frees_its_slot_when_it_is_read_to_its_end(virtual_time: VirtualTime) -> None:
    """Not before: its tokens are still being generated."""
    site = Site(Simulator(tokens_per_s=10, output_tokens=20), concurrency=1)
    async with site.claude.messages.stream(**ask()) as stream:
        async for _ in stream:
            assert site.admit.statistics().slots_used in {0, 1}
        assert site.is_idle()
    assert virtual_time.now() > 1.9


async def test_a_dropped_stream_frees_its_slot_at_once(virtual_time: VirtualTime) -> None:
    """A loop that is left, and a stream that nobody refers to any more."""
    site = Site(Simulator(tokens_per_s=10, output_tokens=20), concurrency=1)

    async def leave_early() -> None:
        async for event in await site.claude.messages.create(**ask(), stream=True):
            if event.type == "content_block_delta":
                return

    await leave_early()
    await anyio.sleep(0.001)
    assert site.is_idle()
    await site.claude.messages.create(**ask())


@pytest.mark.lengthy
async def test_a_stream_that_nobody_reads_is_collected_and_reported(virtual_time: VirtualTime) -> None:
    """Its owner is warned, and the next request is let in."""
    site = Site(Simulator(), concurrency=1)
    stream = await site.claude.messages.create(**ask(), stream=True)
    site.watching.attempts.clear()
    with pytest.warns(ResourceWarning, match="dropped without being closed"):  # noqa: PT031 - the last reference
        del stream
        gc.collect()
    assert site.admit.statistics().slots_used == 0
    await site.claude.messages.create(**ask())


# Keys.


async def test_our_key_replaces_the_clients_own(virtual_time: VirtualTime) -> None:
    """Its default key header is taken out: one request must not name two keys."""
    site = Site(
        Simulator(keys={"sk-ours": "org"}),
        keys=("sk-ours",),
        client={"api_key": "sk-theirs", "default_headers": {"X-Api-Key": "sk-default"}},
    )
    await site.claude.messages.create(**ask())
    (entry,) = site.simulator.journal
    assert entry.key == "sk-ours"
    assert entry.headers["authorization"] == "Bearer sk-ours"
    assert "x-api-key" not in entry.headers
    assert site.watching.attempts[0].key == Secret("sk-ours").name


async def test_without_keys_the_clients_own_stays(virtual_time: VirtualTime) -> None:
    """Used alone, the guard touches no header."""
    site = Site(Simulator(keys={"sk-theirs": "org"}), client={"api_key": "sk-theirs"})
    await site.claude.messages.create(**ask())
    assert site.simulator.journal[0].key == "sk-theirs"
    assert site.admit.statistics().keys[0].name == "sdk"


@pytest.mark.parametrize("header", ["X-Api-Key", "x-api-key", "Authorization"])
async def test_a_call_with_credentials_of_its_own_bypasses_the_pool(header: str, virtual_time: VirtualTime) -> None:
    """It spends from another quota, so that it neither waits nor takes a slot, and keeps its key."""
    value = "Bearer sk-own" if header == "Authorization" else "sk-own"
    site = Site(Simulator(latency_s=5), keys=("sk-ours",), concurrency=1)
    async with anyio.create_task_group() as group:
        group.start_soon(functools.partial(site.claude.messages.create, **ask()))
        await anyio.sleep(1)
        await site.claude.messages.create(**ask(), extra_headers={header: value})
        assert virtual_time.now() == pytest.approx(6, abs=0.1)
    entry = site.simulator.journal[1]
    assert entry.headers[header.lower()] == value
    assert "sk-ours" not in str(entry.headers)
    assert site.admit.statistics().admitted == 1
    assert site.watching.attempts[1].may_be_billed


async def test_a_refused_key_is_quarantined_and_another_serves(virtual_time: VirtualTime) -> None:
    """The call that found out is marked to be tried again; from then on the refused key isn't used."""
    site = Site(
        Simulator(keys={"sk-good": "org"}), keys=("sk-bad", "sk-good"), balance="round_robin", retries=0, concurrency=8
    )
    with pytest.raises(anthropic.AuthenticationError):
        await site.claude.messages.create(**ask())
    failure = site.watching.attempts[0].failure
    assert failure is not None
    assert (failure.kind, failure.elsewhere, failure.retryable) == (FailureKind.AUTHENTICATION, True, True)
    for _ in range(4):
        await site.claude.messages.create(**ask())
    assert Counter(entry.key for entry in site.simulator.journal) == {"sk-bad": 1, "sk-good": 4}
    bad, good = site.admit.statistics().keys
    assert (bad.state, good.state) == ("quarantined", "ok")
    assert bad.again_in_s == pytest.approx(60, abs=0.1)
    (changed,) = site.seen(KeyChanged)
    assert (changed.key, changed.state, changed.again_s) == (Secret("sk-bad").name, "quarantined", pytest.approx(60))
    assert "sk-bad" not in repr(site.events)
    assert "sk-bad" not in repr(site.admit)


async def test_with_no_key_left_the_next_call_is_refused_at_once(virtual_time: VirtualTime) -> None:
    """The error says when the key is tried again, and the refused call's own says that no other is left."""
    site = Site(Simulator(keys={}), keys=("sk-bad",))
    with pytest.raises(anthropic.AuthenticationError):
        await site.claude.messages.create(**ask())
    attempt = site.watching.attempts[0]
    assert attempt.failure is not None
    assert not attempt.failure.retryable
    note = f"{Secret('sk-bad').name} was refused (authentication failed) and no other key is left"
    assert attempt.call.notes == [f"{note}; it is tried again in 60 s"]
    with pytest.raises(NoKeyAvailable) as raised:
        await site.claude.messages.create(**ask())
    assert raised.value.retry_after_s == pytest.approx(60, abs=0.1)
    assert len(site.simulator.journal) == 1
    assert site.is_idle()


async def test_a_probe_brings_a_key_back(virtual_time: VirtualTime) -> None:
    """After a minute one request tries it; a refusal doubles the wait, a success ends the quarantine."""
    simulator = Simulator()
    simulator.inject("authentication", times=2)
    site = Site(simulator, keys=("sk-a",), concurrency=1)
    refused = {"AuthenticationError": 1, "NoKeyAvailable": 4}
    assert await site_outcomes(site, 5) == refused
    await anyio.sleep(60)
    assert await site_outcomes(site, 5) == refused
    await anyio.sleep(119)
    assert await site_outcomes(site, 5) == {"NoKeyAvailable": 5}
    await anyio.sleep(1)
    assert await site_outcomes(site, 1) == {"answered": 1}
    assert await site_outcomes(site, 5) == {"answered": 5}
    assert site.admit.statistics().keys[0].state == "ok"
    assert site.seen(KeyChanged)[-1].state == "ok"
    assert site.is_idle()


async def site_outcomes(site: Site, count: int) -> Counter[str]:
    """Ask so many times at once; count answers and errors by class."""
    outcomes = Counter[str]()

    async def one() -> None:
        try:
            await site.claude.messages.create(**ask())
        except anthropic.AnthropicError as error:
            outcomes[type(error).__name__] += 1
        else:
            outcomes["answered"] += 1

    async with anyio.create_task_group() as group:
        for _ in range(count):
            group.start_soon(one)
    return outcomes


async def test_a_probe_that_told_nothing_is_repeated(virtual_time: VirtualTime) -> None:
    """An overload says nothing of the key, which is not lost for it."""
    simulator = Simulator()
    simulator.inject("authentication")
    site = Site(simulator, keys=("sk-a",))
    await site_outcomes(site, 1)
    await anyio.sleep(60)
    simulator.inject("overloaded")
    assert await site_outcomes(site, 1) == {"OverloadedError": 1}
    assert await site_outcomes(site, 1) == {"answered": 1}


async def test_those_who_wait_hear_of_the_last_keys_quarantine(virtual_time: VirtualTime) -> None:
    """Nobody waits for a key that was refused."""
    site = Site(Simulator(keys={}, latency_s=1), keys=("sk-bad",), concurrency=1)
    outcomes = await site_outcomes(site, 20)
    assert outcomes == {"AuthenticationError": 1, "NoKeyAvailable": 19}
    assert virtual_time.now() < 2
    assert site.is_idle()


async def test_a_rate_limited_quota_cools_and_another_takes_over(virtual_time: VirtualTime) -> None:
    """The call goes on at once where there is another quota; alone it waits as long as the API asks."""
    simulator = Simulator(keys={"sk-a": "org-a", "sk-b": "org-b"})
    simulator.inject("rate_limited", retry_after_s=30)
    site = Site(simulator, keys=("sk-a", "sk-b"), balance="round_robin")
    with pytest.raises(anthropic.RateLimitError):
        await site.claude.messages.create(**ask())
    failure = site.watching.attempts[0].failure
    assert failure is not None
    assert (failure.kind, failure.retry_after_s, failure.retryable) == (FailureKind.RATE_LIMITED, None, True)
    (cooled,) = site.seen(QuotaCooled)
    assert (cooled.quota, cooled.model_class, cooled.seconds) == ("org-a", POOL, 30)
    assert [key.state for key in site.admit.statistics().keys] == ["cooling", "ok"]
    assert [key.again_in_s for key in site.admit.statistics().keys] == [pytest.approx(30, abs=0.1), 0]
    for _ in range(4):
        await site.claude.messages.create(**ask())
    assert {entry.key for entry in simulator.journal[1:]} == {"sk-b"}


async def test_alone_a_rate_limited_quota_rests_as_long_as_the_api_asks(virtual_time: VirtualTime) -> None:
    """Whoever comes waits, and the longer of two cool-downs holds."""
    simulator = Simulator()
    site = Site(simulator)
    for seconds in (30, 5):
        simulator.inject("rate_limited", retry_after_s=seconds, delay_s=1)

    async def refused() -> None:
        with pytest.raises(anthropic.RateLimitError):
            await site.claude.messages.create(**ask())

    async with anyio.create_task_group() as group:
        group.start_soon(refused)
        group.start_soon(refused)
    failure = site.watching.attempts[0].failure
    assert failure is not None
    assert failure.retry_after_s == 30
    await site.claude.messages.create(**ask())
    assert virtual_time.now() == pytest.approx(31, abs=0.1)
    assert [event.seconds for event in site.seen(QuotaCooled)] == [30]


async def test_a_429_without_a_time_cools_nothing(virtual_time: VirtualTime) -> None:
    """The retry's own back-off has to do."""
    simulator = Simulator()
    simulator.inject("rate_limited_no_retry_after")
    site = Site(simulator)
    with pytest.raises(anthropic.RateLimitError):
        await site.claude.messages.create(**ask())
    assert site.seen(QuotaCooled) == []
    await site.claude.messages.create(**ask())
    assert virtual_time.now() < 1.1


async def test_a_spend_cap_quarantines_the_quota_with_all_its_keys(virtual_time: VirtualTime) -> None:
    """Its keys are not used, and the call goes on with another quota, though a spend cap is final in itself."""
    simulator = Simulator(keys={"sk-a": "org", "sk-b": "org", "sk-c": "other"})
    site = Site(simulator, keys=("sk-a", "sk-b", "sk-c"), balance="round_robin")
    for _ in range(3):
        await site.claude.messages.create(**ask())
    simulator.inject("spend_cap")
    with pytest.raises(anthropic.RateLimitError):
        await site.claude.messages.create(**ask())
    failure = site.watching.attempts[-1].failure
    assert failure is not None
    assert failure.retryable
    assert [key.state for key in site.admit.statistics().keys] == ["quarantined", "quarantined", "ok"]
    simulator.inject("spend_cap")
    with pytest.raises(anthropic.RateLimitError):
        await site.claude.messages.create(**ask())
    failure = site.watching.attempts[-1].failure
    assert failure is not None
    assert (failure.kind, failure.retryable) == (FailureKind.SPEND_CAP, False)
    with pytest.raises(NoKeyAvailable):
        await site.claude.messages.create(**ask())


async def test_too_steep_a_growth_is_slowed_down(virtual_time: VirtualTime) -> None:
    """After the API's complaint, requests go evenly, not in another burst."""
    simulator = Simulator()
    simulator.inject("ramp", retry_after_s=1)
    site = Site(simulator)
    with pytest.raises(anthropic.RateLimitError):
        await site.claude.messages.create(**ask())
    await site.ask_many(10)
    starts = [entry.started_at for entry in simulator.journal[1:]]
    gaps = [later - earlier for earlier, later in itertools.pairwise(starts)]
    assert min(gaps) > 0.5


async def test_keys_can_be_changed_while_requests_are_under_way(virtual_time: VirtualTime) -> None:
    """A retired key finishes what it has begun, and serves no more; without any key, calls are refused."""
    site = Site(Simulator(latency_s=2), keys=("sk-old",))
    async with anyio.create_task_group() as group:
        group.start_soon(functools.partial(site.claude.messages.create, **ask()))
        await anyio.sleep(1)
        site.admit.pool.add(Secret("sk-new"))
        site.admit.pool.retire(Secret("sk-old").name)
        await site.claude.messages.create(**ask())
    assert [entry.key for entry in site.simulator.journal] == ["sk-old", "sk-new"]
    site.admit.pool.retire(Secret("sk-new").name)
    with pytest.raises(NoKeyAvailable, match="no API key left"):
        await site.claude.messages.create(**ask())
    await site.claude.models.list()
    assert site.simulator.journal[-1].key == "sk-sim-1"
    assert site.is_idle()


# What isn't a message.


async def test_counting_tokens_has_a_line_of_its_own(virtual_time: VirtualTime) -> None:
    """It takes nothing of the messages' limits, and waits for its own."""
    simulator = Simulator(requests_per_minute=60, count_tokens_per_minute=30)
    site = Site(simulator)
    for _ in range(2):
        await site.claude.messages.create(**ask())
    async with anyio.create_task_group() as group:
        for _ in range(45):
            group.start_soon(
                functools.partial(
                    site.claude.messages.count_tokens, model=MODEL, messages=[{"role": "user", "content": "Hi"}]
                )
            )
    assert site.bucket("requests", "count_tokens").per_minute == 30
    assert 28 <= virtual_time.now() <= 36
    assert site.bucket("requests").available == pytest.approx(60, abs=0.1)
    assert site.is_idle()


async def test_configured_limits_are_not_those_of_counting(virtual_time: VirtualTime) -> None:
    """Its limit is the API's own, whatever messages may use."""
    site = Site(Simulator(), limits=Limits(requests_per_minute=1))
    for _ in range(5):
        await site.claude.messages.count_tokens(model=MODEL, messages=[{"role": "user", "content": "Hi"}])
    assert virtual_time.now() < 1


async def test_other_requests_take_a_key_and_nothing_else(virtual_time: VirtualTime) -> None:
    """A list of models waits for no slot, even with all of them in use."""
    site = Site(Simulator(latency_s=5, keys={"sk-a": "org"}), keys=("sk-a",), concurrency=1)
    async with anyio.create_task_group() as group:
        group.start_soon(functools.partial(site.claude.messages.create, **ask()))
        await anyio.sleep(1)
        await site.claude.models.list()
        assert virtual_time.now() < 2
    assert [entry.key for entry in site.simulator.journal] == ["sk-a", "sk-a"]
    assert site.admit.statistics().admitted == 1


async def test_a_pin_learns_which_key_served_and_holds_on_to_it(virtual_time: VirtualTime) -> None:
    """The first success fills it in, with the quota that the answer names; a failure tells nothing."""
    simulator = Simulator(keys={"sk-a": "org-1", "sk-b": "org-2", "sk-c": "org-2"})
    site = Site(simulator, keys=("sk-bad", "sk-b", "sk-a", "sk-c"))
    pin = Pin()
    with pinned(pin):
        with pytest.raises(anthropic.AuthenticationError):
            await site.claude.models.list()
        assert pin == Pin()
        await site.claude.models.list()
        assert pin == Pin(key=Secret("sk-b").name, quota="org-2")
        # It would be the first to be tried again.
        site.admit.pool.add(Secret("sk-bad"))
        await site.claude.models.list()
    assert [entry.key for entry in simulator.journal] == ["sk-bad", "sk-b", "sk-b"]


async def test_another_request_finds_out_a_refused_key_too(virtual_time: VirtualTime) -> None:
    """Its 401 quarantines the key, tells those who wait, and the next one uses another key."""
    simulator = Simulator(keys={"sk-good": "org"}, latency_s=5)
    site = Site(simulator, keys=("sk-bad", "sk-good"))
    with pytest.raises(anthropic.AuthenticationError):
        await site.claude.models.list()
    assert site.watching.failures == [FailureKind.AUTHENTICATION]
    await site.claude.models.list()
    assert [entry.key for entry in simulator.journal] == ["sk-bad", "sk-good"]
    alone = Site(Simulator(keys={}), keys=("sk-bad",))
    for _ in range(2):
        # Where every key is quarantined, a request without limits is the cheapest probe.
        with pytest.raises(anthropic.AuthenticationError):
            await alone.claude.models.list()


# Waiting has an end.


async def test_a_queue_timeout_ends_the_wait(virtual_time: VirtualTime) -> None:
    """Nothing was sent, and the error says what to change."""
    site = Site(Simulator(latency_s=10), concurrency=1, queue_timeout_s=3)
    async with anyio.create_task_group() as group:
        group.start_soon(functools.partial(site.claude.messages.create, **ask()))
        await anyio.sleep(1)
        with pytest.raises(AdmissionTimeout, match="within queue_timeout_s=3; nothing was sent"):
            await site.claude.messages.create(**ask())
        assert virtual_time.now() == pytest.approx(4, abs=0.1)
    assert len(site.simulator.journal) == 1
    failure = site.watching.attempts[1].failure
    assert failure is not None
    assert (failure.kind, failure.may_be_billed) == (FailureKind.REFUSED, False)
    await site.claude.messages.create(**ask())
    assert site.is_idle()


async def test_a_deadline_ends_the_wait(virtual_time: VirtualTime) -> None:
    """By the same error as a queue timeout; under way, the SDK's own time-out is raised."""
    site = Site(Simulator(latency_s=10), concurrency=1)
    async with anyio.create_task_group() as group:
        group.start_soon(functools.partial(site.claude.messages.create, **ask()))
        await anyio.sleep(1)
        with pytest.raises(AdmissionTimeout, match="within the deadline of 3 s; nothing was sent"), deadline(3):
            await site.claude.messages.create(**ask())
        assert virtual_time.now() == pytest.approx(4, abs=0.1)
    with pytest.raises(anthropic.APITimeoutError), deadline(3):
        await site.claude.messages.create(**ask())
    assert site.watching.failures[-1] is FailureKind.TIMEOUT
    assert site.is_idle()


async def test_a_full_line_refuses(virtual_time: VirtualTime) -> None:
    """With `max_queued` waiting, the next is refused, and nothing of it is sent."""
    site = Site(Simulator(latency_s=1), concurrency=1, max_queued=2)
    outcomes = await site_outcomes(site, 10)
    assert outcomes == {"answered": 3, "QueueFull": 7}
    assert site.is_idle()
    assert issubclass(QueueFull, anthropic.AnthropicError)


async def test_a_request_larger_than_its_limit_is_refused(virtual_time: VirtualTime) -> None:
    """It would wait for ever."""
    site = Site(Simulator(), limits=Limits(input_tokens_per_minute=100))
    with pytest.raises(RequestExceedsQuota, match="input_tokens"):
        await site.claude.messages.create(**ask("word " * 1000))
    assert site.is_idle()


# Who goes first.


async def order_of(site: Site, asked: list[tuple[str, dict[str, Any]]]) -> list[str]:
    """Ask all at once, each under its labels, behind one that holds the only slot; return the order of arrival."""
    async with anyio.create_task_group() as group:
        group.start_soon(functools.partial(site.claude.messages.create, **ask("first")))
        await anyio.sleep(0.01)
        for text, given in asked:
            metadata = {"metadata": {"user_id": given["user_id"]}} if "user_id" in given else {}
            with labels(**{name: value for name, value in given.items() if name != "user_id"}):
                group.start_soon(functools.partial(site.claude.messages.create, **ask(text, **metadata)))
            await anyio.sleep(0.01)
    bodies = [entry.body for entry in site.simulator.journal[1:]]
    return [body["messages"][0]["content"] for body in bodies if body is not None]


async def test_a_backlog_of_batch_work_hardly_delays_an_interactive_request(virtual_time: VirtualTime) -> None:
    """It is let in with the next or the one after it, and the batch still advances."""
    site = Site(Simulator(latency_s=1), concurrency=1)
    batch = [("batch", {"priority": "batch"})] * 30
    order = await order_of(site, [*batch, ("interactive", {"priority": "interactive"})])
    assert order.index("interactive") <= 2
    assert order.count("batch") == 30


@pytest.mark.lengthy
@pytest.mark.parametrize("by", ["user", "user_id"])
async def test_tenants_share_alike_whatever_backlog_one_has(by: str, virtual_time: VirtualTime) -> None:
    """By the label `user`, or by the request's own `metadata.user_id`."""
    site = Site(Simulator(latency_s=1), concurrency=1)
    order = await order_of(site, [("a", {by: "a"})] * 20 + [("b", {by: "b"})] * 5)
    assert order[:12].count("b") >= 4


@pytest.mark.lengthy
async def test_another_label_may_name_the_tenant_and_weights_may_differ(virtual_time: VirtualTime) -> None:
    """`fair_by` and `tenant_weights`: a tenant of weight 3 gets three of four."""
    site = Site(Simulator(latency_s=1), concurrency=1, fair_by="team", tenant_weights={"a": 3.0})
    order = await order_of(site, [("a", {"team": "a"})] * 20 + [("b", {"team": "b"})] * 20)
    assert order[:20].count("a") == pytest.approx(15, abs=2)


async def test_a_request_tried_again_keeps_its_place(virtual_time: VirtualTime) -> None:
    """Whoever was let in meanwhile is in; an attempt of the same call goes before all who still wait."""

    class Twice(anthropic.Middleware):
        async def handle_async(self, request: anthropic.APIRequest, call_next: CallNext) -> Response:
            with open_call(request):
                with open_attempt(request) as attempt:
                    response = await attempt.send(request, call_next)
                if not attempt.ok:
                    with open_attempt(request) as attempt:
                        response = await attempt.send(request, call_next)
            return response

    simulator = Simulator(latency_s=1)
    simulator.inject("overloaded", delay_s=1)
    admit = Admit(concurrency=1)
    claude = simulator.client(max_retries=0, middleware=[Twice(), admit])
    async with anyio.create_task_group() as group:
        for number in range(5):
            group.start_soon(functools.partial(claude.messages.create, **ask(str(number))))
            await anyio.sleep(0.01)
    texts = [entry.body["messages"][0]["content"] for entry in simulator.journal if entry.body is not None]
    assert texts == ["0", "1", "0", "2", "3", "4"]


async def test_a_session_stays_with_its_organization(virtual_time: VirtualTime) -> None:
    """Because its prompt cache lives there."""
    keys = {f"sk-{name}": f"org-{name}" for name in "abc"}
    site = Site(Simulator(keys=keys), keys=tuple(keys), balance="round_robin")
    with labels(session="s1"):
        for _ in range(6):
            await site.claude.messages.create(**ask())
    assert len({entry.key for entry in site.simulator.journal}) == 1


@pytest.mark.lengthy
async def test_adaptive_concurrency_follows_what_the_service_bears(virtual_time: VirtualTime) -> None:
    """Overloads take slots away, successes bring them back, within the bounds."""
    simulator = Simulator(latency_s=1)
    site = Site(simulator, concurrency="adaptive", min_concurrency=2, max_concurrency=10)
    assert site.admit.statistics().concurrency == 10
    for _ in range(6):
        simulator.inject("overloaded")
        await site_outcomes(site, 1)
        await anyio.sleep(1)
    assert site.admit.statistics().concurrency == 2
    await site.ask_many(100)
    assert site.admit.statistics().concurrency > 4


# Left behind: nothing.


async def plain(claude: AsyncAnthropic) -> None:
    """A message, whole."""
    await claude.messages.create(**ask())


async def streamed(claude: AsyncAnthropic) -> None:
    """A message, event by event."""
    async for _ in await claude.messages.create(**ask(), stream=True):
        pass


async def helper(claude: AsyncAnthropic) -> None:
    """The helper that gathers a stream."""
    async with claude.messages.stream(**ask()) as stream:
        await stream.get_final_message()


async def raw(claude: AsyncAnthropic) -> None:
    """The HTTP response of a whole message."""
    async with claude.messages.with_streaming_response.create(**ask()) as response:
        await response.parse()


async def counted(claude: AsyncAnthropic) -> None:
    """A count of tokens."""
    await claude.messages.count_tokens(model=MODEL, messages=[{"role": "user", "content": "Hi"}])


@pytest.mark.lengthy
@pytest.mark.parametrize("how", ["waiting", "done", "repeatedly"])
@pytest.mark.parametrize("surface", [plain, streamed, helper, raw, counted])
async def test_cancelled_at_any_await_nothing_is_left(
    surface: Callable[[AsyncAnthropic], Coroutine[Any, Any, None]], how: How, virtual_time: VirtualTime
) -> None:
    """In line, at the grant, under way, in the body: slots, buckets, keys, line and connection are free again."""

    async def scenario(cancelled: Cancelled) -> None:
        site = Site(
            Simulator(latency_s=1, tokens_per_s=20, output_tokens=8),
            limits=Limits(requests_per_minute=60),
            concurrency=1,
            queue_timeout_s=60,
        )
        async with anyio.create_task_group() as group:
            # Holds the only slot, so that the other one has to wait.
            group.start_soon(functools.partial(site.claude.messages.create, **ask()))
            await anyio.sleep(0.5)
            await cancelled(surface(site.claude))
        await anyio.sleep(0.001)
        assert site.is_idle()
        assert all(attempt.ended and attempt.call.ended for attempt in site.watching.attempts)
        for quota in site.admit.pool.quotas.values():
            for allowance in quota.classes.values():
                assert allowance.in_flight == 0
        await site.claude.messages.create(**ask())

    assert await cancel_at_every_await(scenario, how=how) >= 3


@pytest.mark.lengthy
@pytest.mark.parametrize(
    "fault", ["reset", "truncated", "stream_drop_after_content", "stall", "bad_json", "overloaded"]
)
@pytest.mark.parametrize("surface", [plain, streamed, helper, raw])
async def test_no_fault_keeps_a_slot(
    surface: Callable[[AsyncAnthropic], Awaitable[None]], fault: str, virtual_time: VirtualTime
) -> None:
    """However an answer goes wrong, what was taken is given back once."""
    simulator = Simulator(output_tokens=30)
    site = Site(simulator, concurrency=1)
    for _ in range(3):
        simulator.inject(fault)
        with contextlib.suppress(Exception):
            await surface(site.claude)
        assert site.admit.statistics().slots_used == 0
    await surface(site.claude)
    assert site.is_idle()


# Options.


@pytest.mark.parametrize(
    "bad",
    [
        {"concurrency": 0},
        {"concurrency": -1},
        {"concurrency": "many"},
        {"concurrency": math.inf},
        {"max_queued": -1},
        {"queue_timeout_s": 0},
        {"queue_timeout_s": math.nan},
        {"balance": "fastest"},
        {"limits": {"claude-*": {"requests_per_minute": 0}}},
        {"limits": 50},
        {"min_concurrency": 9, "max_concurrency": 8},
        {"min_concurrency": 0},
        {"key_weights": {"key-1": 0}},
        {"tenant_weights": {"u1": -1}},
        {"priority_weights": {"batch": math.nan}},
        {"priority_weights": {"urgent": 2}},
        {"fair_by": ""},
        {"quota_scope": "world"},
        {"slots": 5},
    ],
    ids=str,
)
def test_a_bad_option_is_refused_when_made(bad: dict[str, Any]) -> None:
    """By name; nothing is accepted and ignored."""
    with pytest.raises(ValidationError):
        Admit(**bad)


def test_options_may_be_given_whole_or_by_name() -> None:
    """Both at once leave open which should win."""
    options = AdmitOptions(concurrency=3)
    assert Admit(options).options is options
    assert Admit(concurrency=3).options == options
    with pytest.raises(TypeError, match="not both"):
        Admit(options, concurrency=3)
    assert options.most_at_once == 3
    assert AdmitOptions(concurrency="adaptive").most_at_once == 512


def test_adaptive_concurrency_starts_within_its_bounds() -> None:
    """At 64, or at the ceiling below it."""
    assert Admit(concurrency="adaptive")._slots.total == 64
    assert Admit(concurrency="adaptive", max_concurrency=10)._slots.total == 10
    assert Admit(concurrency="adaptive", min_concurrency=100)._slots.total == 100


async def test_its_repr_and_statistics_show_no_key(virtual_time: VirtualTime) -> None:
    """Keys appear by name only."""
    site = Site(Simulator(), keys=("sk-secret",))
    await site.claude.messages.create(**ask())
    text = repr(site.admit) + repr(site.admit._feedback) + repr(site.admit.statistics()) + repr(site.events)
    assert "sk-secret" not in text
    assert Secret("sk-secret").name in text


async def test_an_explicitly_omitted_header_is_the_callers_own_affair(virtual_time: VirtualTime) -> None:
    """Whoever takes the credentials out of a request doesn't get ours put in."""
    site = Site(Simulator(), keys=("sk-ours",), client={"default_headers": {"Authorization": "Bearer sk-gateway"}})
    await site.claude.messages.create(**ask(), extra_headers={"X-Api-Key": omit})
    assert site.simulator.journal[0].headers["authorization"] == "Bearer sk-gateway"


async def test_a_failure_is_a_value_that_others_may_read(virtual_time: VirtualTime) -> None:
    """What the guard adds to a failure is a new one: the old stays as it was."""
    site = Site(Simulator(keys={"sk-good": "org"}), keys=("sk-bad", "sk-good"), balance="round_robin")
    with pytest.raises(anthropic.AuthenticationError):
        await site.claude.messages.create(**ask())
    failure = site.watching.attempts[0].failure
    assert failure is not None
    assert replace(failure, elsewhere=False).retryable is False
