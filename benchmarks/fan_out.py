"""What a fan-out costs beside its requests: CPU of an item, and memory over a million of them.

Targets: with a journal, an item costs at most 80 µs of CPU more than `messages.create` through the same client; from
item 10,000 of 1,000,000 to the end, memory grows by at most 20 MB and 16 bytes an item. Exits with 1 if one is missed.

Answers come from a transport that costs next to nothing, with the headers of the API; `--simulator` takes the simulator
in its place, in this process. The variants take turns; memory is measured in a process of its own.
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anthropic
import anyio
import httpx2

import penstock
from _harness import Measured, machine, settle_environment, table, verdict
from _server import HEADERS, MESSAGE
from penstock.simulator import Simulator

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

MODEL = "claude-haiku-5-5"
CONCURRENCY = 64
MOST_US, MOST_MB, BYTES_AN_ITEM = 80.0, 20.0, 16
FROM_ITEM = 10_000
MB = 1 << 20


class Instant(httpx2.AsyncBaseTransport):
    """Answers every request with the same message, after a turn of the loop."""

    def __init__(self) -> None:
        self._body = json.dumps(MESSAGE).encode()
        lines = [line.partition(": ") for line in HEADERS.decode().splitlines() if line]
        kept = [(name, value) for name, _, value in lines if name.lower() != "connection"]
        self._headers = [*kept, ("content-type", "application/json"), ("content-length", str(len(self._body)))]

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:  # noqa: ARG002 - the transport's
        """Answer."""
        await anyio.lowlevel.checkpoint()
        return httpx2.Response(200, headers=self._headers, content=self._body)


def sdk(*, simulated: bool) -> anthropic.AsyncAnthropic:
    """An SDK client whose answers come from this process."""
    if simulated:
        client: anthropic.AsyncAnthropic = Simulator(journal_size=100).client()
        return client
    return anthropic.AsyncAnthropic(
        api_key="sk-bench", http_client=httpx2.AsyncClient(transport=Instant()), max_retries=0
    )


def requests(count: int) -> Iterator[dict[str, Any]]:
    """Items, made as they are read."""
    for number in range(count):
        params = {"messages": [{"role": "user", "content": f"Summarize paragraph {number} in one sentence."}]}
        yield {"custom_id": f"item-{number}", "params": params}


# CPU


async def created(claude: penstock.Client, count: int) -> None:
    """Ask one after the other in each of the workers, as a careful user would."""
    left = requests(count)

    async def work() -> None:
        for item in left:
            await claude.messages.create(model=MODEL, max_tokens=100, **item["params"])

    async with anyio.create_task_group() as group:
        for _ in range(CONCURRENCY):
            group.start_soon(work)


async def fanned_out(claude: penstock.Client, count: int, **options: Any) -> None:
    """The same through a fan-out."""
    async with claude.fan_out(
        requests(count), model=MODEL, max_tokens=100, concurrency=CONCURRENCY, **options
    ) as results:
        async for result in results:
            assert result.ok, result.error


async def cpu(*, simulated: bool, rounds: int, count: int) -> bool:
    """Measure the CPU of an item; returns whether the target was reached."""
    with tempfile.TemporaryDirectory() as folder:
        paths = (Path(folder) / f"{number}.jsonl" for number in range(10_000))
        variants: dict[str, dict[str, Any] | None] = {
            "`messages.create`": None,
            "`fan_out`": {},
            "`fan_out` with a journal": {"journal": ""},
            "`fan_out` with a journal and progress": {"journal": "", "on_progress": lambda progress: progress},
        }
        measured = {name: Measured(name) for name in variants}
        async with penstock.Client(sdk=sdk(simulated=simulated), log=False, concurrency=CONCURRENCY) as claude:

            async def turn(options: dict[str, Any] | None) -> float:
                gc.collect()
                before = time.process_time()
                if options is None:
                    await created(claude, count)
                else:
                    journal = {"journal": next(paths)} if "journal" in options else {}
                    await fanned_out(claude, count, **{**options, **journal})
                return (time.process_time() - before) * 1e6 / count

            for options in variants.values():
                await turn(options)
            names = list(variants)
            for number in range(rounds):
                start = number % len(names)
                for name in names[start:] + names[:start]:
                    measured[name].rounds_us.append(await turn(variants[name]))
    return tell_cpu(measured)


def tell_cpu(measured: dict[str, Measured]) -> bool:
    """Print what was measured; returns whether the target was reached."""
    base, *others = measured.values()
    rows = [[base.name, f"{base.us:.0f}", "", "", ""]]
    reached = True
    for each in others:
        more = sorted(mine - bare for mine, bare in zip(each.rounds_us, base.rounds_us, strict=True))
        median = more[len(more) // 2]
        target = "with a journal" in each.name and "progress" not in each.name
        reached &= not target or median <= MOST_US
        said = (f"≤ {MOST_US:.0f}", verdict(median, MOST_US)) if target else ("", "")
        rows.append([each.name, f"{each.us:.0f}", f"+{median:.0f} ({more[0]:.0f}–{more[-1]:.0f})", *said])
    table(f"CPU of an item, µs ({machine()})", ("", "µs", "more than `messages.create`", "target", ""), rows)
    return reached


# Memory


def resident() -> float:
    """Return the memory of this process, in MB."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * 4096 / MB


async def watched(count: int, *, simulated: bool) -> AsyncIterator[tuple[int, float]]:
    """Run one long fan-out with a journal; gives memory as it goes."""
    with tempfile.TemporaryDirectory() as folder:
        async with (
            penstock.Client(sdk=sdk(simulated=simulated), log=False, concurrency=CONCURRENCY) as claude,
            claude.fan_out(
                requests(count),
                model=MODEL,
                max_tokens=100,
                concurrency=CONCURRENCY,
                journal=Path(folder) / "run.jsonl",
            ) as results,
        ):
            done = 0
            async for result in results:
                assert result.ok, result.error
                done += 1
                if done == FROM_ITEM or done % (count // 20) == 0:
                    gc.collect()
                    yield done, resident()


async def memory(count: int, *, simulated: bool) -> None:
    """Print memory as it goes, for the process that reads it."""
    async for done, megabytes in watched(count, simulated=simulated):
        print(done, megabytes, flush=True)


def measure_memory(count: int, *, simulated: bool) -> bool:
    """Measure memory in a process of its own; returns whether the target was reached."""
    command = [sys.executable, __file__, "--watch", "--items", str(count), *(["--simulator"] if simulated else [])]
    started_at = time.perf_counter()
    printed = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    took_s = time.perf_counter() - started_at
    seen = [(int(done), float(megabytes)) for done, megabytes in (line.split() for line in printed.splitlines())]
    before = dict(seen)[FROM_ITEM]
    later = [(done, megabytes) for done, megabytes in seen if done >= FROM_ITEM]
    growth = max(megabytes for _, megabytes in later) - before
    beyond = growth - BYTES_AN_ITEM * (count - FROM_ITEM) / MB
    rows = [
        [f"resident at item {FROM_ITEM:,}", f"{before:.1f}", "", ""],
        [f"most from there to item {count:,}", f"{before + growth:.1f}", "", ""],
        [f"growth beyond {BYTES_AN_ITEM} bytes an item", f"{beyond:.1f}", f"≤ {MOST_MB:.0f}", verdict(beyond, MOST_MB)],
    ]
    table(f"Memory of {count:,} lazy items with a journal, MB ({machine()})", ("", "MB", "target", ""), rows)
    print(f"{took_s:.0f} s, {count / took_s:.0f} items a second.\n")
    return beyond <= MOST_MB


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a few seconds, to see that it works; figures mean little")
    parser.add_argument("--items", type=int, help="items over which memory is watched; a million by default")
    parser.add_argument("--simulator", action="store_true", help="answers from the simulator, in this process")
    parser.add_argument("--watch", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    items = given.items or (20_000 if given.quick else 1_000_000)
    if given.watch:
        anyio.run(lambda: memory(items, simulated=given.simulator))
        return
    rounds, count = (3, 300) if given.quick else (15, 2000)
    reached = anyio.run(lambda: cpu(simulated=given.simulator, rounds=rounds, count=count))
    if not measure_memory(items, simulated=given.simulator) or not reached:
        sys.exit("a target was missed")


if __name__ == "__main__":
    settle_environment()
    main()
