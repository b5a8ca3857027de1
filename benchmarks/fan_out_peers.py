"""5,000 prompts, one service that fails now and then, and a process that may die: what is lost, and what it takes.

Each peer asks the same prompts twice: once undisturbed, and once killed (SIGKILL) when half of the answers are out;
it is then started again, as a user would. Counted are answers that were given, and paid for, but are nowhere after the
kill; and requests that were sent twice though they had been answered. No targets: these are for comparison.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from _batch_peers import MODEL, PEERS, UNDER_WAY, Peer
from _harness import machine, quick, settle_environment, table
from penstock.simulator import Simulator
from penstock.simulator.server import serving

LATENCY_S = 0.2
FAULTS = {"overloaded": 0.04, "api_error": 0.01}
_TICK = threading.Event()


@dataclass(frozen=True, kw_only=True)
class Run:
    """What came of a peer."""

    took_s: float
    cpu_s: float
    most_mb: float
    missing: int
    lost_at_kill: int
    answered_at_kill: int
    paid_twice: int
    missing_after: int


def simulator(seed: int) -> Simulator:
    """A service that fails one request in twenty."""
    return Simulator(latency_s=LATENCY_S, faults=FAULTS, seed=seed)


def command(kind: str, url: str, path: Path, items: int) -> list[str]:
    """How a peer is started."""
    return [sys.executable, str(Path(__file__).with_name("_batch_peers.py")), kind, url, str(path), str(items)]


def answered(service: Simulator) -> Counter[str]:
    """How often each item was answered, by the service's books."""
    return Counter(
        entry.body["messages"][0]["content"].partition(":")[0]
        for entry in service.journal
        if entry.body and entry.status == 200
    )


def kept(path: Path) -> set[str]:
    """Whose answers are in a file."""
    if not path.exists():
        return set()
    return {
        line["custom_id"]
        for line in map(json.loads, path.read_text(encoding="utf-8").split("\n")[:-1])
        if "message" in line or line["result"]["type"] == "succeeded"
    }


def measure(kind: str, items: int) -> Run:
    """Run a peer undisturbed, then killed and started again."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "whole.jsonl"
        with serving(simulator(1)) as url:
            printed = subprocess.run(command(kind, url, path, items), stdout=subprocess.PIPE, text=True, check=True)
        took_s, cpu_s, most_mb = map(float, printed.stdout.split())
        missing = items - len(kept(path))

        path, service = Path(folder) / "killed.jsonl", simulator(2)
        with serving(service) as url:
            with subprocess.Popen(command(kind, url, path, items), stdout=subprocess.DEVNULL) as child:
                while sum(entry.status == 200 for entry in service.journal) < items // 2 and child.poll() is None:
                    _TICK.wait(0.05)
                child.kill()
            while service.in_flight:
                _TICK.wait(0.01)
            given, there = set(answered(service)), kept(path)
            subprocess.run(command(kind, url, path, items), stdout=subprocess.DEVNULL, check=True)
            twice = sum(answered(service).values()) - len(answered(service))
        return Run(
            took_s=took_s,
            cpu_s=cpu_s,
            most_mb=most_mb,
            missing=missing,
            lost_at_kill=len(given - there),
            answered_at_kill=len(given),
            paid_twice=twice,
            missing_after=items - len(kept(path)),
        )


def tell(items: int, runs: dict[str, Run]) -> None:
    """Print them side by side."""
    rows = [
        [
            PEERS[kind].name,
            f"{run.took_s:.1f}",
            f"{run.cpu_s:.1f}",
            f"{run.most_mb:.0f}",
            f"{run.missing:,}",
            f"{run.lost_at_kill:,} of {run.answered_at_kill:,}",
            f"{run.paid_twice:,}",
            f"{run.missing_after:,}",
        ]
        for kind, run in runs.items()
    ]
    header = (
        "",
        "s",
        "CPU s",
        "most MB",
        "not answered",
        "answers lost by the kill",
        "answered and paid twice",
        "not answered after the second start",
    )
    table(f"{items:,} prompts to {MODEL}, {UNDER_WAY} under way, 5 % faults ({machine()})", header, rows)


def main(*, brief: bool) -> None:
    """Measure whoever is installed."""
    items = 300 if brief else 5_000
    runs: dict[str, Run] = {}
    for kind, peer in PEERS.items():
        if peer.installed:
            runs[kind] = measure(kind, items)
        else:
            absent(peer)
    tell(items, runs)


def absent(peer: Peer) -> None:
    """Say who is left out."""
    print(f"{peer.name}: {peer.package} is not installed", file=sys.stderr)


if __name__ == "__main__":
    settle_environment()
    main(brief=quick(__doc__))
