"""What a killed run costs: a fan-out with a journal is killed again and again, at points drawn by lot, and goes on.

Targets: 10,000 items, 50 kills (SIGKILL): no answer lost, no id twice in the results, and at each kill no more than
what was in flight is asked again; the same for 200 small runs. Exits with 1 if a target is missed.

Children are forked from a process that has imported everything, so that a start costs milliseconds. The server runs
here and knows what it was asked; what the file holds is read after each kill, as another program would.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import anyio

import penstock
from _harness import machine, quick, settle_environment, table
from penstock.simulator import Simulator
from penstock.simulator.server import serving

if TYPE_CHECKING:
    from types import TracebackType

MODEL = "claude-haiku-5-5"
LATENCY_S = 0.01
_TICK = threading.Event()


@dataclass(frozen=True, kw_only=True)
class Job:
    """One fan-out, as its process is told."""

    url: str
    path: str
    items: int
    concurrency: int


@dataclass(kw_only=True)
class Outcome:
    """What a run came to, with all its kills."""

    kills: int = 0
    lost: int = 0
    twice: int = 0
    torn: int = 0
    unfinished: int = 0
    asked_again: list[int] = field(default_factory=list)
    too_many: int = 0


# The process that is killed


async def run(job: Job) -> None:
    """Ask all items that the journal has no answer for."""
    requests = (
        {"custom_id": f"item-{number}", "params": {"messages": [{"role": "user", "content": f"item-{number}"}]}}
        for number in range(job.items)
    )
    async with (
        penstock.Client(api_keys=["sk-bench"], base_url=job.url, concurrency=job.concurrency, log=False) as claude,
        claude.fan_out(requests, model=MODEL, max_tokens=50, concurrency=job.concurrency, journal=job.path) as results,
    ):
        async for result in results:
            assert result.ok, result.error


def serve_forks() -> None:
    """Fork a child for each job that comes in; say its number, and how it ended."""
    for line in sys.stdin:
        child = os.fork()
        if not child:
            anyio.run(run, Job(**json.loads(line)))
            os._exit(0)
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


class Forks:
    """The process that forks them."""

    def __enter__(self) -> Self:
        command = [sys.executable, __file__, "--forks"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()

    def start(self, job: Job) -> int:
        """Start a job; returns its process."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(job.__dict__) + "\n")
        self._process.stdin.flush()
        return self._read()

    def ended(self) -> int:
        """Wait for its end; returns its status."""
        return self._read()

    def _read(self) -> int:
        assert self._process.stdout is not None
        return int(self._process.stdout.readline())


# Killing it


def torment(forks: Forks, rng: random.Random, *, items: int, kills: int, concurrency: int) -> Outcome:
    """Run a fan-out to its end through some kills; returns what that came to."""
    outcome = Outcome()
    simulator = Simulator(latency_s=LATENCY_S)
    with tempfile.TemporaryDirectory() as folder, serving(simulator) as url:
        path = Path(folder) / "run.jsonl"
        job = Job(url=url, path=str(path), items=items, concurrency=concurrency)
        answered: set[str] = set()
        for _ in range(kills):
            before = len(simulator.journal)
            # So that the kills spread over the whole of the run, in the start and the reading of the journal, too.
            after = rng.randrange(0, max(2 * (items - len(answered)) // (kills + 1), 2))
            killed = kill(forks, job, simulator, after=before + after, pause_s=rng.random() * 3 * LATENCY_S)
            asked = {entry.body["messages"][0]["content"] for entry in simulator.journal[before:] if entry.body}
            now, torn = whole_lines(path)
            outcome.kills += killed
            outcome.torn += torn
            outcome.lost += len(answered - set(now))
            outcome.asked_again.append(len(asked - set(now)))
            outcome.too_many += len(asked - set(now)) > concurrency
            answered = set(now)
        forks.start(job)
        outcome.unfinished += forks.ended() != 0
        ids, torn = whole_lines(path)
        outcome.torn += torn
        outcome.lost += items - len(set(ids))
        outcome.twice += len(ids) - len(set(ids))
        asked_in_all = Counter(entry.body["messages"][0]["content"] for entry in simulator.journal if entry.body)
        assert sum(asked_in_all.values()) - items == sum(outcome.asked_again), "something else was asked again"
    return outcome


def kill(forks: Forks, job: Job, simulator: Simulator, *, after: int, pause_s: float) -> bool:
    """Start a job and kill it soon after so many requests have come; returns whether it was still running."""
    process = forks.start(job)
    while len(simulator.journal) < after and running(process):
        _TICK.wait(0.0005)
    _TICK.wait(pause_s)
    if running(process):
        os.kill(process, signal.SIGKILL)
    ended = forks.ended()
    while simulator.in_flight:
        _TICK.wait(0.001)
    return ended == -signal.SIGKILL


def running(process: int) -> bool:
    """Whether a process is there."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def whole_lines(path: Path) -> tuple[list[str], int]:
    """Return the ids of a journal's lines, and whether the last one is torn."""
    if not path.exists():
        return [], 0
    *lines, rest = path.read_bytes().split(b"\n")
    ids: list[str] = []
    for line in lines:
        read: dict[str, Any] = json.loads(line)
        assert read["result"]["message"]["content"][0]["text"].endswith(read["custom_id"]), "another's answer"
        ids.append(read["custom_id"])
    return ids, int(bool(rest))


# Telling


def tell(title: str, outcomes: list[Outcome], *, concurrency: int) -> bool:
    """Print what some runs came to; returns whether every target was reached."""
    again = sorted(number for outcome in outcomes for number in outcome.asked_again)
    counted = [
        ("answers lost", sum(outcome.lost for outcome in outcomes)),
        ("ids twice in the results", sum(outcome.twice for outcome in outcomes)),
        ("kills after which more was asked again than was in flight", sum(each.too_many for each in outcomes)),
        ("last runs that failed", sum(outcome.unfinished for outcome in outcomes)),
    ]
    rows = [[name, f"{number:,}", "0", "✗" if number else "✓"] for name, number in counted]
    rows.append(
        ["asked again at a kill, most", f"{again[-1]}", f"≤ {concurrency}", "✓" if again[-1] <= concurrency else "✗"]
    )
    rows.append(["asked again at a kill, median", f"{again[len(again) // 2]}", "", ""])
    rows.append(["kills", f"{sum(outcome.kills for outcome in outcomes):,}", "", ""])
    rows.append(["torn last lines found", f"{sum(outcome.torn for outcome in outcomes):,}", "", ""])
    table(f"{title} ({machine()})", ("what", "counted", "target", ""), rows)
    return all(not number for _, number in counted)


def main(*, brief: bool) -> bool:
    """Run both; returns whether every target was reached."""
    items, kills, runs = (500, 5, 5) if brief else (10_000, 50, 200)
    with Forks() as forks:
        large = torment(forks, random.Random(0), items=items, kills=kills, concurrency=64)
        reached = tell(f"{items:,} items, 64 in flight, {kills} kills", [large], concurrency=64)
        small: list[Outcome] = []
        for seed in range(1, runs + 1):
            rng = random.Random(seed)
            small.append(torment(forks, rng, items=rng.randrange(20, 80), kills=rng.randrange(1, 5), concurrency=8))
        return tell(f"{runs} runs of 20 to 80 items, 8 in flight, 1 to 4 kills each", small, concurrency=8) and reached


if __name__ == "__main__":
    settle_environment()
    if sys.argv[1:] == ["--forks"]:
        serve_forks()
        sys.exit()
    shortened = quick(__doc__)
    if not main(brief=shortened):
        sys.exit("a target was missed")
