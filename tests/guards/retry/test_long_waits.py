"""What a server that asks to wait for hours, years or for ever may do to one call, and to all others: little."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any

import anthropic
import httpx2
import pytest

from penstock import Client, RetryOptions, deadline
from penstock.events import CallEnded, Event, QuotaCooled, RetryScheduled
from penstock.simulator import Simulator
from penstock.testing import ScriptedTransport

if TYPE_CHECKING:
    from collections.abc import Callable

    from penstock.testing.plugin import VirtualTime

MODEL = "claude-sonnet-5-5"
HOUR_S = 3_600.0
CAPPED = "number 7"

ABSURD: dict[str, dict[str, str]] = {
    "1e9": {"retry-after": "1e9"},
    "1,000,000,000": {"retry-after": "1000000000"},
    "a day": {"retry-after": "86400"},
    "a second more than an hour": {"retry-after": "3601"},
    "year 9999": {"retry-after": "Fri, 31 Dec 9999 23:59:59 GMT"},
    "milliseconds": {"retry-after-ms": "1e15"},
    "the largest of all": {"retry-after": "1.7e308"},
}
NONE: dict[str, dict[str, str]] = {
    "inf": {"retry-after": "inf"},
    "nan": {"retry-after": "nan"},
    "negative": {"retry-after": "-1e9"},
    "too large": {"retry-after-ms": "1e999"},
    "years ago": {"retry-after": "Sat, 01 Jan 2000 00:00:00 GMT"},
}


def asking(
    simulator: Simulator, status: int, headers: dict[str, str], *, times: int, who: str = CAPPED
) -> ScriptedTransport:
    """A transport to the simulator on whose way some requests are refused, so many times."""
    inner, refused = simulator.transport(), iter(range(times))

    async def answer(request: httpx2.Request) -> httpx2.Response:
        if who.encode() in request.content and next(refused, None) is not None:
            kind = "rate_limit_error" if status == 429 else "api_error"
            body = {"type": "error", "error": {"type": kind, "message": "later"}}
            return httpx2.Response(status, headers=headers, json=body)
        return await inner.handle_async_request(request)

    return ScriptedTransport(answer)


def governed(transport: httpx2.AsyncBaseTransport, observer: Callable[[Event], None], **options: Any) -> Client:
    """A governed client that sends through a transport."""
    http_client = httpx2.AsyncClient(transport=transport)
    sdk = anthropic.AsyncAnthropic(api_key="sk-sim-1", http_client=http_client, max_retries=0)
    return Client(sdk=sdk, **{"log": False, "observers": [observer], **options})


@pytest.mark.slow
@pytest.mark.parametrize("status", [429, 503, 529])
@pytest.mark.parametrize("headers", [*ABSURD.values(), *NONE.values()], ids=[*ABSURD, *NONE])
async def test_one_absurd_wait_holds_nobody_up(virtual_time: VirtualTime, status: int, headers: dict[str, str]) -> None:
    """Of 20 items, that one comes back after its back-off, and the others are answered as if nothing had been."""
    events: list[Event] = []
    simulator = Simulator(latency_s=1.0)
    ended: dict[str, float] = {}
    async with governed(asking(simulator, status, headers, times=1), events.append) as claude:
        prompts = [f"number {number}" for number in range(20)]
        async with claude.fan_out(prompts, model=MODEL, max_tokens=20, concurrency=4) as results:
            async for result in results:
                assert result.ok
                ended[result.custom_id] = virtual_time.now()
    assert len(ended) == 20
    (scheduled,) = (event for event in events if isinstance(event, RetryScheduled))
    assert scheduled.delay_s <= 0.5
    assert (scheduled.disbelieved_s is not None) == (headers in ABSURD.values())
    assert max(ended.values()) < 20
    assert [event for event in events if isinstance(event, QuotaCooled)] == []


@pytest.mark.slow
@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("headers", ABSURD.values(), ids=ABSURD)
async def test_a_wait_that_is_asked_for_again_is_believed_up_to_a_bound(
    virtual_time: VirtualTime, status: int, headers: dict[str, str]
) -> None:
    """An hour at a time; the others don't wait for that one."""
    events: list[Event] = []
    ended: dict[str, float] = {}
    async with governed(asking(Simulator(latency_s=1.0), status, headers, times=4), events.append) as claude:
        prompts = [f"number {number}" for number in range(20)]
        async with claude.fan_out(prompts, model=MODEL, max_tokens=20, concurrency=4) as results:
            async for result in results:
                assert result.ok
                ended[result.custom_id] = virtual_time.now()
    waits = [event.delay_s for event in events if isinstance(event, RetryScheduled)]
    assert waits[0] < 1
    assert waits[1:] == pytest.approx([HOUR_S] * 3, abs=0.5)
    late = ended.pop("7")
    assert 3 * HOUR_S < late < 3 * HOUR_S + 30
    assert max(ended.values()) < 20


@pytest.mark.parametrize(("asked", "most_s", "waits"), [("90", 100.0, [90, 90]), ("90", 60.0, [0.5, 60])])
async def test_the_bound_can_be_told(virtual_time: VirtualTime, asked: str, most_s: float, waits: list[float]) -> None:
    """What is within it is obeyed at once; the quota rests, or doesn't, by the same bound."""
    events: list[Event] = []
    transport = asking(Simulator(), 429, {"retry-after": asked}, times=2)
    async with governed(transport, events.append, retry=RetryOptions(max_retry_after_s=most_s)) as claude:
        await claude.messages.create(model=MODEL, max_tokens=20, messages=[{"role": "user", "content": CAPPED}])
    told = [event for event in events if isinstance(event, RetryScheduled)]
    assert [event.delay_s for event in told] == pytest.approx(waits, abs=0.5)
    assert {event.disbelieved_s for event in told} == ({None} if most_s > 90 else {90.0})
    assert len([event for event in events if isinstance(event, QuotaCooled)]) == (2 if most_s > 90 else 0)


@pytest.mark.parametrize("most_s", [0, -1, float("nan"), float("inf"), 1e6])
def test_a_bound_that_is_none_is_refused(most_s: float) -> None:
    """Up to a day."""
    with pytest.raises(ValueError, match="max_retry_after_s"):
        RetryOptions(max_retry_after_s=most_s)


async def test_doubt_is_forgotten(virtual_time: VirtualTime) -> None:
    """What is asked for twice, with something else in between, is believed no more than at first."""
    events: list[Event] = []
    simulator = Simulator()
    refusals = [httpx2.Response(503, headers={"retry-after": asked}, json={}) for asked in ("1e9", "2", "1e9")]
    transport = ScriptedTransport(*refusals, simulator.transport().handle_async_request)
    async with governed(transport, events.append) as claude:
        await claude.messages.create(model=MODEL, max_tokens=20, messages=[{"role": "user", "content": "hello"}])
    assert virtual_time.now() < 10
    assert [event.disbelieved_s for event in events if isinstance(event, RetryScheduled)] == [1e9, None, 1e9]


async def test_a_deadline_is_no_reason_to_give_up_for_an_absurd_wait(virtual_time: VirtualTime) -> None:
    """Once is tried again; twice is taken at its word, and told."""
    transport = asking(Simulator(), 503, {"retry-after": "1e9"}, times=5)
    events: list[Event] = []
    ask: dict[str, Any] = {"model": MODEL, "max_tokens": 20, "messages": [{"role": "user", "content": CAPPED}]}
    async with governed(transport, events.append) as claude:
        with deadline(60), pytest.raises(anthropic.InternalServerError) as raised:
            await claude.messages.create(**ask)
    assert virtual_time.now() < 5
    assert "3.6e+03 s would pass the deadline" in raised.value.__notes__[0]
    (call,) = (event for event in events if isinstance(event, CallEnded))
    assert call.attempts == 2


async def test_another_quota_takes_over(virtual_time: VirtualTime) -> None:
    """A key whose quota asks for years costs a call no hour, where another key can serve it."""
    simulator = Simulator(keys={"sk-a": "org-a", "sk-b": "org-b"})
    inner = simulator.transport()
    refused = 0

    async def one_of_two(request: httpx2.Request) -> httpx2.Response:
        nonlocal refused
        if any("sk-a" in value for value in request.headers.values()):
            refused += 1
            return httpx2.Response(429, headers={"retry-after": "1e9"}, json={})
        return await inner.handle_async_request(request)

    options: dict[str, Any] = {"api_keys": ["sk-a", "sk-b"]}
    events: list[Event] = []
    async with governed(ScriptedTransport(one_of_two), events.append, **options) as claude:
        results = await claude.map([f"number {n}" for n in range(20)], model=MODEL, max_tokens=20)
    assert all(result.ok for result in results)
    assert {event.seconds for event in events if isinstance(event, QuotaCooled)} == {60.0}
    assert 0 < refused <= 20
    assert virtual_time.now() < 60


async def test_a_batch_is_submitted_again_after_an_hour_at_most(virtual_time: VirtualTime) -> None:
    """Where there is no room for it, however long the API asks to wait."""
    transport = asking(Simulator(), 429, {"retry-after": "1e9"}, times=3)
    async with (
        governed(transport, lambda _: None) as claude,
        claude.batch([CAPPED], model=MODEL, max_tokens=20) as results,
    ):
        assert [result.ok async for result in results] == [True]
    assert 3 * HOUR_S <= virtual_time.now() < 3 * HOUR_S + 300


async def test_a_long_wait_is_a_line_of_the_log(virtual_time: VirtualTime, caplog: pytest.LogCaptureFixture) -> None:
    """A warning where the server wasn't believed, and a line where it was; short waits are for debugging."""
    caplog.set_level(logging.INFO, "penstock")
    for asked in ("1e9", "300", "2"):
        transport = asking(Simulator(), 503, {"retry-after": asked}, times=1)
        async with governed(transport, lambda _: None, log=True) as claude:
            await claude.messages.create(model=MODEL, max_tokens=20, messages=[{"role": "user", "content": CAPPED}])
    lines = [json.loads(line) for line in caplog.messages if line.startswith("{")]
    told = [line for line in lines if line["event"] == "retry_scheduled"]
    assert [(line["level"], line["disbelieved_s"]) for line in told] == [("warning", 1e9), ("info", None)]
    assert told[1]["delay_s"] >= 300
