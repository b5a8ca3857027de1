"""What the benchmarks share: processes to measure against, CPU measured in rounds, results as Markdown.

The rule here: figures of one run are compared with each other only. What is compared takes turns in rounds, in an
order that rotates, so that whatever else the machine does hits all of it alike; each ratio is taken within a round.
"""

from __future__ import annotations

import argparse
import gc
import os
import platform
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Literal, TypeAlias

import anyio

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence

__all__ = [
    "Ask",
    "Measured",
    "fast_server",
    "machine",
    "open_sockets",
    "quick",
    "server",
    "settle_environment",
    "table",
    "take_turns",
    "verdict",
]

Ask: TypeAlias = "Callable[[], Awaitable[object]]"

_FOREIGN = ("ANTHROPIC_", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "OTEL_", "PENSTOCK_")


def quick(description: str | None) -> bool:
    """Read the command line: whether only to see that it works (`--quick`)."""
    parser = argparse.ArgumentParser(description=(description or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a few seconds, to see that it works; figures mean little")
    return bool(parser.parse_args().quick)


def settle_environment() -> None:
    """Forget what in the environment would configure a client, so that every run measures the same."""
    for name in tuple(os.environ):
        if name.upper().startswith(_FOREIGN):
            del os.environ[name]


def machine() -> str:
    """Describe what it runs on, in general terms."""
    return f"{os.cpu_count()} cores, Python {platform.python_version()}, {platform.system()}"


# Processes


@contextmanager
def server(*command: str, announces: Literal["stdout", "stderr"]) -> Iterator[str]:
    """Run a Python program beside the block; gives the first line that it prints, which tells where it listens."""
    with subprocess.Popen(
        [sys.executable, *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE if announces == "stdout" else subprocess.DEVNULL,
        stderr=subprocess.PIPE if announces == "stderr" else None,
        text=True,
    ) as child:
        printed = child.stdout if announces == "stdout" else child.stderr
        assert printed is not None
        try:
            first = printed.readline()
            # Whatever else it prints must not fill the pipe, where it would wait for a reader.
            reader = threading.Thread(target=printed.read, daemon=True)
            reader.start()
            yield first
        finally:
            child.terminate()
        reader.join()


@contextmanager
def fast_server() -> Iterator[str]:
    """Run the server of fixed answers; gives its address."""
    with server(str(Path(__file__).with_name("_server.py")), announces="stdout") as port:
        yield f"http://127.0.0.1:{int(port)}"


def open_sockets() -> int | None:
    """Return how many sockets this process holds; `None` where the system can't tell."""
    folder = Path("/proc/self/fd")
    if not folder.is_dir():
        return None
    return sum(entry.is_socket() for entry in folder.iterdir())


# Measuring


@dataclass
class Measured:
    """CPU of one variant, in microseconds for each request, round by round."""

    name: str
    rounds_us: list[float] = field(default_factory=list)

    @property
    def us(self) -> float:
        """The median round."""
        return median(self.rounds_us)

    def ratios(self, base: Measured) -> list[float]:
        """Return the ratio to `base`, round by round."""
        return [mine / other for mine, other in zip(self.rounds_us, base.rounds_us, strict=True)]

    def ratio(self, base: Measured) -> float:
        """Return the median of the rounds' ratios."""
        return median(self.ratios(base))

    def spread(self, base: Measured) -> str:
        """Return the lowest and the highest ratio of a round."""
        ratios = self.ratios(base)
        return f"{min(ratios):.2f}–{max(ratios):.2f}"


async def take_turns(
    variants: dict[str, Ask], *, rounds: int, requests: int, concurrency: int, warm_up: int
) -> dict[str, Measured]:
    """Measure variants in turn.

    Args:
        variants: Each by name, as a function that makes one request and checks its answer.
        rounds: How often each has its turn.
        requests: In each turn.
        concurrency: Requests under way at once.
        warm_up: Requests of each before anything is measured.
    """
    for ask in variants.values():
        await _cpu_us(ask, warm_up, concurrency)
    # What is there after the warm-up stays: the collector need not look through all modules in somebody's turn.
    gc.collect()
    gc.freeze()
    measured = {name: Measured(name) for name in variants}
    names = list(variants)
    for number in range(rounds):
        start = number % len(names)
        for name in names[start:] + names[:start]:
            measured[name].rounds_us.append(await _cpu_us(variants[name], requests, concurrency))
    gc.unfreeze()
    return measured


async def _cpu_us(ask: Ask, requests: int, concurrency: int) -> float:
    """Return the CPU that this process spends on a request, all its threads and the kernel's work for it included."""
    left = requests

    async def work() -> None:
        nonlocal left
        while left > 0:
            left -= 1
            await ask()

    gc.collect()
    before = time.process_time()
    try:
        async with anyio.create_task_group() as group:
            for _ in range(min(concurrency, requests)):
                group.start_soon(work)
    except ExceptionGroup as failed:
        # What stopped one request stopped the others too.
        raise failed.exceptions[0] from None
    return (time.process_time() - before) * 1e6 / requests


# Telling


def table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a Markdown table."""
    print(f"\n### {title}\n")
    for cells in (header, ["---"] * len(header), *rows):
        print(f"| {' | '.join(cells)} |")
    print(flush=True)


def verdict(value: float, target: float) -> str:
    """Return whether `value` is within `target`."""
    return "✓" if value <= target else "✗"
