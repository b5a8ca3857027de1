"""What the guards cost: CPU of a request through the chain, as a ratio to bare SDK clients in the same run.

Targets: `messages.create` through the whole chain at most 1.15 × a bare `AsyncAnthropic` with the same transport and
its spans off too, 1.25 × with the log line, and 0.80 × the SDK's default client as a user gets it.
"""

from __future__ import annotations

import logging
import tempfile
from contextlib import AsyncExitStack, contextmanager
from typing import TYPE_CHECKING, Any, TextIO, TypedDict

import anyio
from anthropic import AsyncAnthropic, DefaultAioHttpClient, Middleware

import penstock
from _harness import fast_server, machine, quick, settle_environment, table, take_turns, verdict
from _server import DELTAS, TEXT
from penstock.observe.logs import json_handler

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from anthropic import APIRequest

    from _harness import Ask, Measured

CONCURRENCY = 24
STREAMS = 60
KEY = "sk-ant-benchmark"
PARAMS: dict[str, Any] = {
    "model": "claude-sonnet-5-5",
    "max_tokens": 1024,
    "system": "You explain concepts of distributed systems to experienced engineers, in short paragraphs. " * 4,
    "messages": [
        {"role": "user", "content": "What does backpressure mean, and where does it go wrong? " * 6},
        {"role": "assistant", "content": "It means that a slow consumer can hold a fast producer back. " * 8},
        {"role": "user", "content": "And between services?"},
    ],
}
STREAMED = " a bounded queue" * DELTAS


class Effort(TypedDict):
    """How much is measured."""

    rounds: int
    requests: int
    concurrency: int
    warm_up: int


class Nothing(Middleware):
    """The least that a middleware can do."""

    async def handle_async(self, request: APIRequest, call_next: Any) -> Any:
        """Hand the request on."""
        return await call_next(request)


@contextmanager
def request_log() -> Iterator[TextIO]:
    """Write the request log to a file, as a service would; gives the file."""
    logger = logging.getLogger("penstock")
    with tempfile.TemporaryFile("w+", encoding="utf-8") as file:
        handler = json_handler(file)
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        try:
            yield file
        finally:
            logger.removeHandler(handler)
            handler.close()


class Bench:
    """Clients against one server, each closed with it."""

    def __init__(self, url: str, stack: AsyncExitStack) -> None:
        self.url = url
        self._stack = stack
        self._governed: list[penstock.Client] = []

    async def bare(self, middleware: Sequence[Middleware] = (), path: str = "") -> AsyncAnthropic:
        """Make an SDK client with the transport and the OpenTelemetry setting that a `penstock.Client` has."""
        return await self._stack.enter_async_context(
            AsyncAnthropic(
                api_key=KEY,
                base_url=self.url + path,
                max_retries=0,
                middleware=middleware,
                http_client=DefaultAioHttpClient(),
                open_telemetry=False,
            )
        )

    async def default(self) -> AsyncAnthropic:
        """Make the client that a user gets who sets nothing."""
        return await self._stack.enter_async_context(AsyncAnthropic(api_key=KEY, base_url=self.url))

    async def client(self, path: str = "", *, log: bool = False) -> AsyncAnthropic:
        """Make a governed client."""
        client = await self._stack.enter_async_context(
            penstock.Client(api_keys=[KEY], base_url=self.url + path, concurrency=STREAMS, log=log)
        )
        self._governed.append(client)
        return client.sdk

    def check(self, log: TextIO) -> None:
        """Stop unless every request was answered at once, logged once where it should be, and gave everything back."""
        for client in self._governed:
            seen = client.statistics()
            assert seen.calls.calls == seen.calls.successes == seen.attempts.total.attempts, seen
            assert seen.calls.in_flight == seen.admission.slots_used == sum(seen.admission.waiting.values()) == 0, seen
        calls = sum(client.statistics().calls.calls for client in self._governed if client.settings.log)
        log.seek(0)
        assert sum('"call_ended"' in line for line in log) == calls


def create(client: AsyncAnthropic) -> Ask:
    """One plain request."""

    async def ask() -> None:
        message = await client.messages.create(**PARAMS)
        assert message.content[0].type == "text"
        assert message.content[0].text == TEXT

    return ask


def stream(client: AsyncAnthropic) -> Ask:
    """One streamed request, read to its end."""

    async def ask() -> None:
        async with client.messages.stream(**PARAMS) as events:
            text = [piece async for piece in events.text_stream]
        assert "".join(text) == STREAMED

    return ask


async def targets(bench: Bench, effort: Effort) -> None:
    """Compare the whole chain with the two bare clients."""
    measured = await take_turns(
        {
            "bare SDK client (aiohttp, spans off)": create(await bench.bare()),
            "whole chain, no log line": create(await bench.client()),
            "whole chain, one JSON log line a call": create(await bench.client(log=True)),
            "SDK's default client (httpx2, spans)": create(await bench.default()),
        },
        **effort,
    )
    bare, chain, logged, default = measured.values()
    against(f"`messages.create` ({machine()})", measured.values(), bare)
    rows = [
        target("chain without log line ÷ bare", chain, bare, 1.15),
        target("chain with log line ÷ bare", logged, bare, 1.25),
        target("chain without log line ÷ default client", chain, default, 0.80),
        ["chain with log line ÷ default client", f"{logged.ratio(default):.2f}", logged.spread(default), "–", ""],
    ]
    table("Targets", ("measure", "result", "rounds", "target", ""), rows)


async def guards(bench: Bench, effort: Effort) -> None:
    """Show what each guard adds, outermost first."""
    chain: dict[str, Middleware] = {
        "record": penstock.Record(),
        "retry": penstock.Retry(),
        "breaker": penstock.CircuitBreaker(),
        "admit": penstock.Admit(concurrency=CONCURRENCY),
        "meter": penstock.Meter(),
    }
    variants = {
        "bare": create(await bench.bare()),
        "8 no-op middlewares": create(await bench.bare([Nothing() for _ in range(8)])),
    }
    for number, name in enumerate(chain, 1):
        variants[f"+ {name}"] = create(await bench.bare(list(chain.values())[:number]))
    measured = await take_turns(variants, **effort)
    bare, no_ops, *added = measured.values()
    rows = [
        [bare.name, f"{bare.us:.0f}", "", "1.00"],
        [no_ops.name, f"{no_ops.us:.0f}", "", f"{no_ops.ratio(bare):.2f}"],
    ]
    for before, after in zip((bare, *added), added, strict=False):
        rows.append([after.name, f"{after.us:.0f}", f"{after.us - before.us:+.0f}", f"{after.ratio(bare):.2f}"])
    table("What each guard adds", ("guards", "CPU of a request, µs", "added", "÷ bare"), rows)


async def gzipped(bench: Bench, effort: Effort) -> None:
    """Show the same for compressed answers, of which the tap inflates a copy."""
    measured = await take_turns(
        {
            "bare, answers gzipped": create(await bench.bare(path="/gzip")),
            "whole chain, answers gzipped": create(await bench.client("/gzip")),
        },
        **effort,
    )
    against("Compressed answers", measured.values(), next(iter(measured.values())))


async def streams(bench: Bench, burst: Effort, paced: Effort) -> None:
    """Show `messages.stream`, all events at once and one event each 10 ms."""
    for title, path, effort in (("all at once", "", burst), ("one event each 10 ms, 60 streams", "/paced", paced)):
        measured = await take_turns(
            {
                f"bare, {title}": stream(await bench.bare(path=path)),
                f"whole chain, {title}": stream(await bench.client(path)),
            },
            **effort,
        )
        against(f"`messages.stream`, {DELTAS} deltas, {title}", measured.values(), next(iter(measured.values())))


def against(title: str, measured: Iterable[Measured], base: Measured) -> None:
    """Print variants with their ratios to one of them."""
    rows = [[one.name, f"{one.us:.0f}", f"{one.ratio(base):.2f}", one.spread(base)] for one in measured]
    table(title, ("client", "CPU of a request, µs", "÷ bare", "rounds"), rows)


def target(name: str, one: Measured, base: Measured, most: float) -> list[str]:
    """Judge one measure."""
    ratio = one.ratio(base)
    return [name, f"{ratio:.2f}", one.spread(base), f"≤ {most:.2f}", verdict(ratio, most)]


async def main(*, brief: bool) -> None:
    """Measure everything."""
    long: Effort = {"rounds": 9, "requests": 1500, "concurrency": CONCURRENCY, "warm_up": 300}
    short: Effort = {**long, "rounds": 5}
    burst: Effort = {**short, "requests": 300, "warm_up": 60}
    paced: Effort = {**short, "requests": 2 * STREAMS, "concurrency": STREAMS, "warm_up": STREAMS}
    if brief:
        long = short = burst = {"rounds": 1, "requests": 12, "concurrency": CONCURRENCY, "warm_up": 4}
        paced = {"rounds": 1, "requests": 4, "concurrency": 4, "warm_up": 2}
    with fast_server() as url, request_log() as log:
        async with AsyncExitStack() as stack:
            bench = Bench(url, stack)
            await targets(bench, long)
            await guards(bench, short)
            await gzipped(bench, short)
            await streams(bench, burst, paced)
            for handler in logging.getLogger("penstock").handlers:
                handler.flush()
            bench.check(log)


if __name__ == "__main__":
    settle_environment()
    anyio.run(lambda: main(brief=quick(__doc__)))
