"""What tests of message batches share: clients, transports that change what passes, and checks of results."""

from __future__ import annotations

import asyncio
import itertools
import json
import shutil
from typing import TYPE_CHECKING, Any

import anthropic
import anyio
import httpx2

from penstock import Client, RetryOptions
from penstock.testing import ScriptedTransport

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from penstock.batch.items import Request
    from penstock.batch.message_batches import MessageBatches
    from penstock.batch.result import FanOutResult
    from penstock.simulator import Simulator
    from penstock.testing.cancellation import How

MODEL = "claude-sonnet-5-5"
DAY_S = 86_400.0
HOUR_S = 3_600.0
BATCHES = "/v1/messages/batches"
HOWS: tuple[How, ...] = ("waiting", "done", "repeatedly")


def governed(simulator: Simulator, *keys: str, **options: Any) -> Client:
    """Make a client that governs an SDK client of the simulator's."""
    given = {"api_keys": keys} if keys else {}
    return Client(sdk=simulator.client(), **{"log": False, "retry": RetryOptions(base_s=0.001), **given, **options})


def between(
    simulator: Simulator,
    change: Callable[
        [httpx2.Request, Callable[[httpx2.Request], Awaitable[httpx2.Response]]], Awaitable[httpx2.Response]
    ],
) -> ScriptedTransport:
    """A transport between client and simulator, with a function that changes what passes."""
    inner = simulator.transport()
    return ScriptedTransport(lambda request: change(request, inner.handle_async_request))


def kind_of(request: httpx2.Request) -> str:
    """What a request about batches is about."""
    if request.url.path.endswith("/results"):
        return "results"
    if request.url.path == BATCHES:
        return "make" if request.method == "POST" else "list"
    return "look" if request.method == "GET" else "stop"


def changed(simulator: Simulator, kind: str, change: Callable[[bytes], httpx2.Response], *, times: float = 1) -> Client:
    """Make a governed client, to whom the first answers of a kind come otherwise."""
    count = itertools.count()

    async def change_some(
        request: httpx2.Request, call: Callable[[httpx2.Request], Awaitable[httpx2.Response]]
    ) -> httpx2.Response:
        response = await call(request)
        if kind_of(request) != kind or next(count) >= times:
            return response
        return change(await response.aread())

    return passing(between(simulator, change_some))


def passing(transport: httpx2.AsyncBaseTransport) -> Client:
    """Make a governed client that sends through a transport."""
    sdk = anthropic.AsyncAnthropic(
        api_key="sk-sim-1", http_client=httpx2.AsyncClient(transport=transport), max_retries=0
    )
    return Client(sdk=sdk, log=False, retry=RetryOptions(base_s=0.001))


def reply(content: bytes, kind: str = "application/json", status: int = 200) -> httpx2.Response:
    """An answer of HTTP."""
    return httpx2.Response(status, headers={"content-type": kind}, content=content)


def prompts(size: int) -> Iterator[Request]:
    """So many requests."""
    return (
        {"custom_id": f"row-{number}", "params": {"messages": [{"role": "user", "content": f"Number {number}"}]}}
        for number in range(size)
    )


async def ran(claude: Client, requests: Iterable[Any] | AsyncIterator[Any], **options: Any) -> list[FanOutResult]:
    """All results of a run."""
    async with claude.batch(requests, **{"model": MODEL, "max_tokens": 100, **options}) as results:
        return [result async for result in results]


async def drain(source: AsyncIterator[FanOutResult], into: list[FanOutResult]) -> None:
    """Take results as they come; what came before a cancellation stays."""
    async for result in source:
        into.append(result)  # noqa: PERF401 - a comprehension would lose them


def text_of(result: FanOutResult) -> str:
    """The text that an item was answered with."""
    assert result.message is not None
    (block,) = result.message.content
    assert block.type == "text"
    return block.text


def check_all(results: Sequence[FanOutResult], size: int) -> None:
    """Each of `prompts` has its own answer, once."""
    assert sorted(result.index for result in results) == list(range(size))
    for result in results:
        assert (result.custom_id, text_of(result)) == (f"row-{result.index}", f"Summary: Number {result.index}")


def made(simulator: Simulator) -> list[list[str]]:
    """The wire ids of each batch that was submitted and taken, whether its answer arrived or not."""
    return [
        [request["custom_id"] for request in entry.body["requests"]]
        for entry in simulator.journal
        if entry.path == BATCHES and entry.body is not None and entry.fault in {None, "truncated"}
    ]


def asked(simulator: Simulator, method: str, ending: str = "") -> list[float]:
    """When the requests of a kind came."""
    return [
        entry.started_at
        for entry in simulator.journal
        if entry.method == method and entry.path.startswith(BATCHES) and entry.path.endswith(ending)
    ]


class Killed:
    """A run that is cut off at a moment; what its journal holds just then is all that is left."""

    def __init__(self, simulator: Simulator, folder: Path, **options: Any) -> None:
        self.simulator = simulator
        self.folder = folder
        self.journal = folder / "run.jsonl"
        self.options: dict[str, Any] = {"journal": self.journal, **options}
        self.seen: list[FanOutResult] = []

    async def until(self, moment: float, size: int) -> None:
        """Run until a time of the event loop."""
        with anyio.CancelScope(deadline=moment):
            async with (
                governed(self.simulator) as claude,
                claude.batch(prompts(size), model=MODEL, max_tokens=100, **self.options) as results,
            ):
                try:
                    async for result in results:
                        self.seen.append(result)
                except asyncio.CancelledError:
                    self._save()
                    raise
        self._bring_back()

    def _save(self) -> None:
        for path in self.folder.glob("run.jsonl*"):
            shutil.copy(path, self.folder / f"saved-{path.name}")

    def _bring_back(self) -> None:
        for path in self.folder.glob("saved-*"):
            path.replace(self.folder / path.name.removeprefix("saved-"))

    async def finish(self, size: int, **options: Any) -> list[FanOutResult]:
        """Run again with the same journal, to the end."""
        async with governed(self.simulator) as claude:
            return await ran(claude, prompts(size), **{**self.options, **options})


async def leave(run: MessageBatches) -> None:
    """Enter it, and fail after ten seconds."""
    async with run:
        await anyio.sleep(10)
        raise RuntimeError("the caller's own")


def edited(**fields: Any) -> Callable[[bytes], httpx2.Response]:
    """An answer with other fields."""
    return lambda content: reply(json.dumps({**json.loads(content), **fields}).encode())
