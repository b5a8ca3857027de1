"""How one asks thousands of prompts today, each set up as its own documentation does, and penstock.

The rule here: each reads the same requests, has the same number of them under way, and leaves its answers in a file of
JSON lines with a `custom_id`, as soon as its pattern does. Run as a script, it is the process that is measured, or
killed: it prints seconds, CPU seconds and the most memory that it held.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import json
import resource
import sys
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anthropic

import penstock

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator

__all__ = ["PEERS", "Peer", "prompt"]

MODEL, MAX_TOKENS, UNDER_WAY = "claude-haiku-5-5", 100, 100


def prompt(number: int) -> str:
    """A prompt that no other is."""
    return f"item-{number}: what is a bounded queue good for?"


def requests(count: int) -> Iterator[dict[str, Any]]:
    """All of them, made as they are read."""
    for number in range(count):
        messages = [{"role": "user", "content": prompt(number)}]
        yield {"custom_id": f"item-{number}", "params": {"messages": messages}}


async def gathered(url: str, path: Path, count: int) -> None:
    """The SDK, a semaphore and `gather`; answers are written when all are there."""
    slots = asyncio.Semaphore(UNDER_WAY)
    async with anthropic.AsyncAnthropic(
        api_key="sk-bench", base_url=url, http_client=anthropic.DefaultAioHttpClient()
    ) as claude:

        async def ask(item: dict[str, Any]) -> object:
            async with slots:
                return await claude.messages.create(model=MODEL, max_tokens=MAX_TOKENS, **item["params"])

        items = list(requests(count))
        answers = await asyncio.gather(*(ask(item) for item in items), return_exceptions=True)  # noqa: TID251 - is measured
    with path.open("a", encoding="utf-8") as file:
        for item, answer in zip(items, answers, strict=True):
            if isinstance(answer, anthropic.types.Message):
                file.write(json.dumps({"custom_id": item["custom_id"], "message": answer.to_dict()}) + "\n")


async def langchain(url: str, path: Path, count: int) -> None:
    """LangChain's `abatch`; answers are written when all are there."""
    chat = importlib.import_module("langchain_anthropic").ChatAnthropic
    model = chat(model=MODEL, api_key="sk-bench", base_url=url, max_tokens=MAX_TOKENS)
    items = list(requests(count))
    prompts = [item["params"]["messages"][0]["content"] for item in items]
    answers = await model.abatch(prompts, config={"max_concurrency": UNDER_WAY}, return_exceptions=True)
    with path.open("a", encoding="utf-8") as file:
        for item, answer in zip(items, answers, strict=True):
            if not isinstance(answer, Exception):
                file.write(json.dumps({"custom_id": item["custom_id"], "message": answer.content}) + "\n")


@dataclass
class Capacity:
    """What a minute's limits leave, refilled as time goes by."""

    per_minute: float
    left: float = field(init=False)
    since: float = field(default_factory=time.perf_counter)

    def __post_init__(self) -> None:
        """Begin with a full minute."""
        self.left = self.per_minute

    def refill(self, now: float) -> None:
        """Add what has flowed in."""
        self.left = min(self.left + self.per_minute * (now - self.since) / 60, self.per_minute)
        self.since = now


async def paced(url: str, path: Path, count: int) -> None:
    """The pattern of the OpenAI cookbook's parallel processor.

    One loop reads requests, starts a task for each while the minute's capacities last, puts failed ones into a queue to
    be tried again (5 times), stops for 15 s after an answer of 429, and each task appends its answer to the file.
    """
    again: deque[tuple[dict[str, Any], int]] = deque()
    capacity = Capacity(6_000_000)
    cool_until = 0.0
    running: set[asyncio.Task[None]] = set()
    left = requests(count)
    async with anthropic.AsyncAnthropic(
        api_key="sk-bench", base_url=url, max_retries=0, http_client=anthropic.DefaultAioHttpClient()
    ) as claude:

        async def call(item: dict[str, Any], tries: int) -> None:
            nonlocal cool_until
            try:
                answer = await claude.messages.create(model=MODEL, max_tokens=MAX_TOKENS, **item["params"])
            except anthropic.APIError as error:
                if isinstance(error, anthropic.RateLimitError):
                    cool_until = time.perf_counter() + 15
                if tries > 1:
                    again.append((item, tries - 1))
                return
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"custom_id": item["custom_id"], "message": answer.to_dict()}) + "\n")

        waiting: tuple[dict[str, Any], int] | None = None
        while True:
            if waiting is None and again:
                waiting = again.popleft()
            elif waiting is None and (item := next(left, None)) is not None:
                waiting = item, 5
            now = time.perf_counter()
            capacity.refill(now)
            if waiting is not None and capacity.left >= 1 and len(running) < UNDER_WAY and now >= cool_until:
                capacity.left -= 1
                task = asyncio.create_task(call(*waiting))  # noqa: TID251 - is measured
                running.add(task)
                task.add_done_callback(running.discard)
                waiting = None
            elif waiting is None and not running and not again:
                return
            await asyncio.sleep(0.001)  # noqa: TID251 - is measured


async def governed(url: str, path: Path, count: int) -> None:
    """A fan-out with a journal."""
    async with (
        penstock.Client(api_keys=["sk-bench"], base_url=url, concurrency=UNDER_WAY, log=False) as claude,
        claude.fan_out(
            requests(count), model=MODEL, max_tokens=MAX_TOKENS, concurrency=UNDER_WAY, journal=path
        ) as results,
    ):
        async for _ in results:
            pass


@dataclass(frozen=True, kw_only=True)
class Peer:
    """A way to ask thousands of prompts.

    Attributes:
        name: In tables.
        package: That it needs.
        run: Asks them.
    """

    name: str
    package: str
    run: Callable[[str, Path, int], Coroutine[Any, Any, None]]

    @property
    def installed(self) -> bool:
        """Whether all that it needs is there."""
        return importlib.util.find_spec(self.package) is not None


PEERS = {
    "gather": Peer(name="SDK, semaphore, `gather`", package="anthropic", run=gathered),
    "cookbook": Peer(name="the OpenAI cookbook's parallel-processor pattern", package="anthropic", run=paced),
    "langchain": Peer(name="LangChain `abatch`", package="langchain_anthropic", run=langchain),
    "penstock": Peer(name="`fan_out` with a journal", package="penstock", run=governed),
}


def most_mb() -> float:
    """Return the most memory that this process held, in MB."""
    status = Path("/proc/self/status")
    if status.exists():
        # The system's own figure of a process also counts what its parent held when it was started.
        return int(status.read_text(encoding="ascii").partition("VmHWM:")[2].split()[0]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    kind, where, file_path, number = sys.argv[1:]
    begun = time.perf_counter()
    asyncio.run(PEERS[kind].run(where, Path(file_path), int(number)))
    used = resource.getrusage(resource.RUSAGE_SELF)
    print(time.perf_counter() - begun, used.ru_utime + used.ru_stime, most_mb())
