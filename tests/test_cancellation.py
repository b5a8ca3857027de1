from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anyio
import pytest

from penstock import Client, Limits, RetryOptions
from penstock.simulator import Simulator
from penstock.simulator.server import serving
from penstock.testing import Cancelled, cancel_at_every_await

if TYPE_CHECKING:
    from collections.abc import Callable

    from penstock.testing.cancellation import How
    from penstock.testing.plugin import VirtualTime

MODEL = "claude-sonnet-5-5"
MESSAGES: Any = [{"role": "user", "content": "Hello there"}]
ASK: Any = {"model": MODEL, "max_tokens": 100, "messages": MESSAGES}
ITEMS = 6


async def create(claude: Client) -> None:
    """A plain message."""
    await claude.messages.create(**ASK)


async def stream(claude: Client) -> None:
    """The SDK's stream helper."""
    async with claude.messages.stream(**ASK) as events:
        async for _ in events.text_stream:
            pass
        await events.get_final_message()


async def create_stream(claude: Client) -> None:
    """The SDK's raw event stream."""
    async with await claude.messages.create(**ASK, stream=True) as events:
        async for _ in events:
            pass


async def streaming_response(claude: Client) -> None:
    """The bytes of an answer."""
    async with claude.messages.with_streaming_response.create(**ASK) as response:
        async for _ in response.iter_bytes():
            pass


async def streaming_response_of_events(claude: Client) -> None:
    """The bytes of a stream."""
    async with claude.messages.with_streaming_response.create(**ASK, stream=True) as response:
        async for _ in response.iter_bytes():
            pass


async def count_tokens(claude: Client) -> None:
    """Another kind of request, with a line of its own."""
    await claude.messages.count_tokens(model=MODEL, messages=MESSAGES)


async def fan_out(claude: Client) -> None:
    """Many at once."""
    async with claude.fan_out(["Hello"] * ITEMS, model=MODEL, concurrency=3) as results:
        async for _ in results:
            pass


async def fan_out_in_order(claude: Client) -> None:
    """Many at once, in the order of the input."""
    async with claude.fan_out(["Hello"] * ITEMS, model=MODEL, concurrency=3, order="input") as results:
        async for _ in results:
            pass


async def leave_early(claude: Client) -> None:
    """A stream that is left after its first text."""
    async with claude.messages.stream(**ASK) as events:
        async for _ in events.text_stream:
            break


SURFACES = (
    create,
    stream,
    create_stream,
    streaming_response,
    streaming_response_of_events,
    count_tokens,
    fan_out,
    fan_out_in_order,
    leave_early,
)
HOWS: tuple[How, ...] = ("waiting", "done", "repeatedly")
# As many as are retried; each but the last is of another kind.
FAULTS = ("rate_limited", "overloaded", "stream_error_before_content")


def nothing_left(claude: Client, simulator: Simulator) -> None:
    """No slot, place, reservation or connection is held by what was cancelled."""
    statistics = claude.statistics()
    assert statistics.admission.slots_used == 0
    assert statistics.admission.waiting == {}
    assert statistics.calls.in_flight == 0
    assert statistics.retry.waiting == 0
    assert not claude._chain.record.live
    assert simulator.in_flight == 0
    for quota in claude._chain.admit.pool.quotas.values():
        for allowance in quota.classes.values():
            assert allowance.in_flight == 0


def conserved(claude: Client, simulator: Simulator, elapsed_s: float) -> None:
    """What is missing from the bucket is what was sent, and not more; what was surely not billed was given back."""
    (quota,) = claude.statistics().admission.quotas.values()
    if MODEL.removeprefix("claude-") not in quota:
        return
    bucket = quota[MODEL.removeprefix("claude-")]["requests"]
    spent = bucket.capacity - bucket.available
    refilled = bucket.per_minute / 60 * elapsed_s
    sent = [entry for entry in simulator.journal if entry.path == "/v1/messages"]
    billed = [entry for entry in sent if entry.status == 200]
    assert len(billed) - refilled - 0.01 <= spent <= len(sent) + 0.01


@pytest.mark.lengthy
@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("surface", SURFACES, ids=lambda surface: surface.__name__)
async def test_cancelled_anywhere_nothing_is_left(
    surface: Callable[[Client], Any], how: How, virtual_time: VirtualTime
) -> None:
    """Wherever a caller is cancelled (in line, in a retry's wait, in a stream), all it held is given back at once."""

    async def scenario(cancelled: Cancelled) -> None:
        simulator = Simulator(latency_s=0.1, tokens_per_s=50, output_tokens=8)
        for fault in FAULTS:
            simulator.inject(fault)
        started = virtual_time.now()
        options: dict[str, Any] = {"limits": Limits(requests_per_minute=30), "retry": RetryOptions(base_s=0.01)}
        async with Client(sdk=simulator.client(), concurrency=1, log=False, **options) as claude:
            async with anyio.create_task_group() as group:
                # Another holds the only slot at first, so that there is a wait in line to be cancelled in.
                group.start_soon(create, claude)
                await anyio.sleep(0.05)
                await cancelled(surface(claude))
            # What is closed in the background takes a turn or two; whatever is still held then is held for good.
            await anyio.sleep(0.01)
            nothing_left(claude, simulator)
            conserved(claude, simulator, virtual_time.now() - started)
            if not cancelled.reached:
                assert {entry.fault for entry in simulator.journal} > {"rate_limited", "overloaded"}
            await create(claude)
        nothing_left(claude, simulator)

    suspensions = await cancel_at_every_await(scenario, how=how)
    assert suspensions > 5


@pytest.mark.slow
@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("surface", SURFACES, ids=lambda surface: surface.__name__)
@pytest.mark.parametrize("transport", ["aiohttp", "httpx2"])
async def test_cancelled_anywhere_no_connection_is_left(
    surface: Callable[[Client], Any], how: How, transport: Any
) -> None:
    """The same over real sockets: no connection stays in use, and the server has nothing under way."""
    simulator = Simulator(latency_s=0.002, tokens_per_s=2000, output_tokens=8)

    async def scenario(cancelled: Cancelled) -> None:
        simulator.inject("overloaded")
        simulator.inject("stream_error_before_content")
        options: dict[str, Any] = {"retry": RetryOptions(base_s=0.001), "transport": transport, "concurrency": 2}
        async with Client(api_keys="sk-1", base_url=url, log=False, **options) as claude:
            await cancelled(surface(claude))
            await until(lambda: not simulator.in_flight and not connections_in_use(claude))
            nothing_left(claude, simulator)
        # Faults that nobody met must not meet the next.
        simulator._api.faults._injected.clear()

    with serving(simulator) as url:
        assert await cancel_at_every_await(scenario, how=how, every=3) > 5


def connections_in_use(claude: Client) -> int:
    """How many connections of the client's pool carry a request."""
    http: Any = claude.sdk._client
    transport: Any = http._transport
    if claude.settings.transport == "aiohttp":
        # The session is made by the first request.
        connector = getattr(transport.client, "connector", None)
        return 0 if connector is None else len(connector._acquired)
    return sum(not connection.is_idle() and not connection.is_closed() for connection in transport._pool.connections)


async def until(condition: Callable[[], bool]) -> None:
    """Wait for the other side of a socket."""
    with anyio.fail_after(5):
        while not condition():  # noqa: ASYNC110 - nobody tells when
            await anyio.sleep(0.002)


@pytest.mark.lengthy
async def test_a_scope_that_times_out_leaves_nothing(virtual_time: VirtualTime) -> None:
    """The common way to be cancelled, a time limit, at any time: it ends at once, and nothing is left."""
    simulator = Simulator(latency_s=0.5, tokens_per_s=20, output_tokens=20)
    async with Client(sdk=simulator.client(), concurrency=2, log=False) as claude:
        for tenths in range(1, 30):
            begun = virtual_time.now()
            with anyio.move_on_after(tenths / 10) as scope:
                await fan_out(claude)
            assert scope.cancelled_caught
            assert virtual_time.now() - begun == pytest.approx(tenths / 10, abs=0.01)
            await anyio.sleep(0.01)
            nothing_left(claude, simulator)
