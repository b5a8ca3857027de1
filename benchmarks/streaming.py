"""What a stream costs: CPU of a delta, time to the first one, memory of an open stream, and a relay to a slow consumer.

Targets: `claude.stream(…).text_stream` through the whole chain takes at most 0.25 × the CPU that the SDK's default
`messages.stream(…).text_stream` takes for each delta at one event each 10 ms, and 0.12 × when all come at once; first
tokens of 200 streams come no later than the bare SDK's; each of 2,000 open streams takes no more memory than the bare
SDK's, nor than 50 KB, and none starves; a consumer at a hundredth of the speed holds nothing up.
"""

from __future__ import annotations

import gc
import resource
import subprocess
import sys
import time
from contextlib import asynccontextmanager
from pathlib import Path
from statistics import median, quantiles
from typing import TYPE_CHECKING, Any

import anyio
import httpx2
from anthropic import AsyncAnthropic, DefaultAioHttpClient, DefaultAsyncHttpxClient

import penstock
from _harness import machine, quick, server, settle_environment, table, take_turns, verdict
from _stream_server import text_of
from penstock.streaming import FinalFrame, TextFrame, relay, stream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from contextlib import AbstractAsyncContextManager

    from _harness import Ask
    from penstock.streaming import Frame

KEY = "sk-ant-benchmark"
PARAMS: dict[str, Any] = {
    "model": "claude-sonnet-5-5",
    "max_tokens": 1024,
    "messages": [{"role": "user", "content": "What does backpressure mean, and where does it go wrong? " * 6}],
}
DELTAS = 300
STREAMS = 60
MEMORY = "--memory"
TARGETS: list[list[str]] = []


def by_sdk(claude: AsyncAnthropic) -> AbstractAsyncContextManager[Any]:
    """The SDK's own helper."""
    return claude.messages.stream(**PARAMS)


def by_penstock(claude: AsyncAnthropic) -> AbstractAsyncContextManager[Any]:
    """Ours."""
    return stream(claude, **PARAMS)


@asynccontextmanager
async def default_client(url: str, concurrency: int) -> AsyncIterator[AsyncAnthropic]:
    """What a user of the SDK gets who sets nothing."""
    del concurrency
    async with AsyncAnthropic(api_key=KEY, base_url=url) as claude:
        yield claude


@asynccontextmanager
async def bare_client(
    url: str, concurrency: int, transport: Any = DefaultAioHttpClient
) -> AsyncIterator[AsyncAnthropic]:
    """An SDK client with our transport, and room for all streams."""
    http = transport(limits=httpx2.Limits(max_connections=max(1000, concurrency)))
    async with AsyncAnthropic(
        api_key=KEY, base_url=url, http_client=http, max_retries=0, open_telemetry=False
    ) as claude:
        yield claude


@asynccontextmanager
async def governed_client(url: str, concurrency: int) -> AsyncIterator[AsyncAnthropic]:
    """The whole chain; everything must have been given back in the end."""
    async with penstock.Client(api_keys=[KEY], base_url=url, concurrency=concurrency, log=False) as client:
        yield client.sdk
        assert client.statistics().admission.slots_used == 0


BARE = "bare SDK client (aiohttp), messages.stream"
VARIANTS: dict[str, tuple[Any, Any]] = {
    "SDK's default client, messages.stream": (default_client, by_sdk),
    BARE: (bare_client, by_sdk),
    "bare SDK client (aiohttp), penstock.streaming": (bare_client, by_penstock),
    "penstock.Client, stream": (governed_client, by_penstock),
}


# CPU


def read(claude: AsyncAnthropic, opened: Any, wanted: str, *, final: bool = False) -> Ask:
    """Read one stream's text to its end."""

    async def ask() -> None:
        async with opened(claude) as answer:
            text = [piece async for piece in answer.text_stream]
            if final:
                await answer.get_final_message()
        assert "".join(text) == wanted

    return ask


async def cpu(url: str, *, brief: bool) -> None:
    """Compare the CPU of a delta, paced and all at once."""
    deltas = 15 if brief else DELTAS
    for title, pause_ms, most in (("one event each 10 ms, 60 streams", 10, 0.25), ("all at once", 0, 0.12)):
        effort = {"rounds": 7, "requests": STREAMS, "concurrency": STREAMS, "warm_up": STREAMS}
        if brief:
            effort = {"rounds": 1, "requests": 4, "concurrency": 4, "warm_up": 2}
        async with anyio.create_task_group() as group:
            clients = {
                name: (await group.start(_keep, make, f"{url}/{deltas}/{pause_ms}"), opened)
                for name, (make, opened) in VARIANTS.items()
            }
            wanted = text_of(deltas)
            asks = {name: read(claude, opened, wanted) for name, (claude, opened) in clients.items()}
            asks["the same, and its final message"] = read(*clients["penstock.Client, stream"], wanted, final=True)
            measured = await take_turns(asks, **effort)
            group.cancel_scope.cancel()
        base, ours = measured["SDK's default client, messages.stream"], measured["penstock.Client, stream"]
        rows = [
            [one.name, f"{one.us / deltas:.1f}", f"{one.ratio(base):.3f}", one.spread(base)]
            for one in measured.values()
        ]
        table(f"{deltas} deltas, {title} ({machine()})", ("client", "CPU of a delta, µs", "÷ default", "rounds"), rows)
        judge(
            f"CPU of a delta, {title}: penstock.Client ÷ SDK's default",
            ours.ratio(base),
            most,
            f"{ours.ratio(base):.3f} ({ours.spread(base)})",
        )


async def _keep(make: Any, url: str, *, task_status: Any) -> None:
    async with make(url, STREAMS) as claude:
        task_status.started(claude)
        await anyio.sleep_forever()


def judge(name: str, value: float, most: float, result: str = "") -> None:
    """Note a measure and its target."""
    TARGETS.append([name, result or f"{value:.3f}", f"≤ {most:g}", verdict(value, most)])


# Time to first token


async def first_tokens(make: Any, opened: Any, url: str, streams: int) -> list[float]:
    """Open streams at once, read them to the end; returns the seconds until the first text of each."""
    seconds: list[float] = []

    async def one(claude: AsyncAnthropic) -> None:
        began = time.perf_counter()
        async with opened(claude) as answer:
            texts = answer.text_stream
            await anext(texts)
            seconds.append(time.perf_counter() - began)
            async for _ in texts:
                pass

    async with make(url, streams) as claude:
        # One goes first: what is loaded once is not what is measured.
        await one(claude)
        seconds.clear()
        async with anyio.create_task_group() as group:
            for _ in range(streams):
                group.start_soon(one, claude)
    return seconds


async def time_to_first_token(url: str, *, brief: bool) -> None:
    """Compare the time to the first token of 200 streams that begin at once."""
    streams, runs = (5, 1) if brief else (200, 5)
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in VARIANTS}
    names = list(VARIANTS)
    for run in range(runs):
        for name in names[run % len(names) :] + names[: run % len(names)]:
            make, opened = VARIANTS[name]
            parts = quantiles(await first_tokens(make, opened, f"{url}/20/50", streams), n=10)
            found[name].append((parts[4] * 1000, parts[8] * 1000))
    medians = {name: [median(one[at] for one in each) for at in (0, 1)] for name, each in found.items()}
    rows = [[name, *(f"{value:.0f}" for value in each)] for name, each in medians.items()]
    table(f"Time to first token, {streams} streams at once, medians of {runs}", ("client", "p50, ms", "p90, ms"), rows)
    ours = medians["penstock.Client, stream"]
    for whose, name in (("the default client", "SDK's default client, messages.stream"), ("bare, aiohttp", BARE)):
        for quantile, mine, theirs in zip(("p50", "p90"), ours, medians[name], strict=True):
            judge(f"first token, {quantile}: penstock.Client ÷ {whose}", mine / theirs, 1, f"{mine / theirs:.2f}")


# Memory


def resident_kb() -> float:
    """Memory of this process."""
    with Path("/proc/self/statm").open(encoding="ascii") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 1024


async def memory(name: str, url: str, streams: int, seconds: int) -> None:
    """Keep streams open, in a process of its own; prints memory for each in KB, and slowest ÷ median rate."""
    make, opened = VARIANTS[name]
    if make is default_client:
        make = lambda url, concurrency: bare_client(url, concurrency, DefaultAsyncHttpxClient)  # noqa: E731 - the default client has no room for so many
    counts = [0] * streams
    begun, all_begun = 0, anyio.Event()

    async def one(claude: AsyncAnthropic, number: int) -> None:
        nonlocal begun
        async with opened(claude) as answer:
            async for _ in answer.text_stream:
                counts[number] += 1
                begun += counts[number] == 1
                if begun == streams:
                    all_begun.set()

    async with make(url, streams) as claude:
        async with opened(claude) as answer:
            await anext(answer.text_stream)
        gc.collect()
        before = resident_kb()
        async with anyio.create_task_group() as group:
            for number in range(streams):
                group.start_soon(one, claude, number)
                if number % 100 == 99:
                    await anyio.sleep(0.05)
            await all_begun.wait()
            seen = counts[:]
            await anyio.sleep(seconds)
            gc.collect()
            each_kb = (resident_kb() - before) / streams
            rates = [now - then for now, then in zip(counts, seen, strict=True)]
            group.cancel_scope.cancel()
    print(each_kb, min(rates) / median(rates))


def open_streams(url: str, *, brief: bool) -> None:
    """Compare the memory of open streams, and whether all of them advance."""
    streams, seconds = (20, 1) if brief else (2000, 8)
    found: dict[str, tuple[float, float]] = {}
    for name in (BARE, "penstock.Client, stream") if brief else VARIANTS:
        command = [sys.executable, __file__, MEMORY, name, f"{url}/10000/{seconds * 62}", str(streams), str(seconds)]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
        found[name] = (float(said[0]), float(said[1]))
    rows = [[name, f"{each_kb:.1f}", f"{rate:.2f}"] for name, (each_kb, rate) in found.items()]
    table(f"{streams} streams open at once", ("client", "memory of each, KB", "slowest ÷ median rate"), rows)
    ours, slowest = found["penstock.Client, stream"]
    bare = found[BARE][0]
    judge("memory of an open stream, KB", ours, 50, f"{ours:.1f}")
    judge("memory of an open stream ÷ bare", ours / bare, 1, f"{ours / bare:.2f}")
    judge("median ÷ slowest rate", 1 / slowest, round(1 / 0.9, 2), f"{1 / slowest:.2f}")


# Relay


async def slow_consumer(url: str, *, brief: bool) -> None:
    """Relay to a consumer that takes a frame in the time of a hundred deltas."""
    deltas, pause_s = (100, 0.005) if brief else (500, 0.01)
    frames: list[Frame] = []
    async with penstock.Client(
        api_keys=[KEY], base_url=f"{url}/{deltas}/{pause_s * 1000:.0f}", concurrency=1, log=False
    ) as client:
        freed_s = 0.0

        async def send(frame: Frame) -> None:
            await anyio.sleep(100 * pause_s)
            frames.append(frame)

        async def watch() -> None:
            nonlocal freed_s
            for used in (0, 1):
                while client.statistics().admission.slots_used == used:  # noqa: ASYNC110 - nothing tells of it
                    await anyio.sleep(0.01)
            freed_s = time.perf_counter() - began

        began = time.perf_counter()
        async with anyio.create_task_group() as group:
            group.start_soon(watch)
            async with stream(client.sdk, **PARAMS) as answer:
                await relay(answer, send)
        took_s = time.perf_counter() - began
    assert "".join(frame.text for frame in frames if isinstance(frame, TextFrame)) == text_of(deltas)
    assert isinstance(frames[-1], FinalFrame)
    full_s = (deltas + 6) * pause_s
    table(
        f"Relay of {deltas} deltas to a consumer at 1 % of the speed",
        ("frames", "time at full speed, s", "slot free after, s", "all sent after, s"),
        [[str(len(frames)), f"{full_s:.1f}", f"{freed_s:.1f}", f"{took_s:.1f}"]],
    )
    judge("relay: slot free after ÷ time at full speed", freed_s / full_s, 1.2, f"{freed_s / full_s:.2f}")
    judge("relay: frames ÷ deltas", len(frames) / deltas, 0.02)


async def main(*, brief: bool) -> None:
    """Measure everything."""
    program = str(Path(__file__).with_name("_stream_server.py"))
    with server(program, announces="stdout") as port:
        url = f"http://127.0.0.1:{int(port)}"
        await cpu(url, brief=brief)
        await time_to_first_token(url, brief=brief)
        open_streams(url, brief=brief)
        await slow_consumer(url, brief=brief)
    table("Targets", ("measure", "result", "target", ""), TARGETS)


if __name__ == "__main__":
    settle_environment()
    if sys.argv[1:2] == [MEMORY]:
        anyio.run(memory, sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))
    else:
        brief = quick(__doc__)
        anyio.run(lambda: main(brief=brief))
