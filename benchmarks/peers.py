"""What users do today against a quota, beside penstock: the same requests, the same harness, a simulator as a server.

900 requests of mixed size, 2 keys of 1,800 requests a minute each, 6 s of burst. All but 30 come at once; the 30 are
somebody waiting at a screen, one each quarter of a second, and the time until they are answered is the measure of
fairness. Everyone may have 200 requests under way, and is set up as its own documentation does. Needs the dependency
group `peers`; who is not installed is left out, and said to be.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import os
import random
import sys
import urllib.request
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import anyio

from _harness import machine, server, settle_environment, table
from _peers import BURST_S, KEYS, OURS, PEERS, PER_MINUTE, Peer

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

REQUESTS, URGENT, EVERY_S, LATENCY_S = 900, 30, 0.25, 0.1
PLOT = Path(__file__).parent.parent / "docs" / "images" / "admission.png"


# One run


@dataclass(kw_only=True)
class Run:
    """What one peer did.

    Attributes:
        answered_at: Seconds from the start to each answer.
        urgent_s: How long each interactive request took, those that were lost left out.
        lost: Requests that ended in an exception.
        refused: Answers of 429 as the server counted them.
    """

    answered_at: list[float] = field(default_factory=list[float])
    urgent_s: list[float] = field(default_factory=list[float])
    lost: int = 0
    refused: int = 0

    @property
    def finished_s(self) -> float:
        """When the last answer came."""
        return max(self.answered_at, default=math.nan)


@contextmanager
def simulator() -> Iterator[str]:
    """Run a simulator with fresh quotas; gives its address."""
    limits = ("--rpm", str(PER_MINUTE), "--burst-s", str(BURST_S), "--latency-s", str(LATENCY_S))
    keys = [part for number, key in enumerate(KEYS) for part in ("--key", f"{key}=org-{number}")]
    with server("-m", "penstock.simulator", "--port", "0", *limits, *keys, announces="stderr") as line:
        yield next(word for word in line.split() if word.startswith("http://"))


async def measure(peer: Peer, requests: int, every_s: float, seed: int) -> Run:
    """Let a peer send everything, and count what came of it."""
    rng, run = random.Random(seed), Run()
    prompts = ["word " * min(int(rng.lognormvariate(math.log(150), 1.0)) + 5, 2000) for _ in range(requests)]
    with simulator() as url:
        async with peer.made(url) as ask, anyio.create_task_group() as group:
            began = anyio.current_time()

            async def one(prompt: str, *, urgent: bool = False) -> None:
                asked = anyio.current_time()
                try:
                    await ask(prompt, urgent)
                except Exception:  # noqa: BLE001 - each peer raises its own
                    run.lost += 1
                    return
                run.answered_at.append(anyio.current_time() - began)
                if urgent:
                    run.urgent_s.append(anyio.current_time() - asked)

            for prompt in prompts[URGENT:]:
                group.start_soon(one, prompt)
            for prompt in prompts[:URGENT]:
                await anyio.sleep(every_s)
                group.start_soon(partial(one, prompt, urgent=True))
        run.refused = await anyio.to_thread.run_sync(_refused, url)
    return run


def _refused(url: str) -> int:
    with urllib.request.urlopen(f"{url}/_simulator/statistics") as response:  # noqa: S310 - a server of ours
        return int(json.load(response)["by_status"].get("429", 0))


# Telling


def ideal_s(requests: int) -> float:
    """When the last of so many can be answered, with nothing refused and nothing left unused."""
    return (requests - 2 * PER_MINUTE / 60 * BURST_S) / (2 * PER_MINUTE / 60) + LATENCY_S


def report(runs: dict[str, list[Run]], requests: int) -> None:
    """Print the table; medians of all runs."""
    rows: list[list[str]] = []
    for peer in PEERS:
        mine = runs.get(peer.name)
        if mine is None:
            rows.append([peer.name, "left out" if peer.installed else "not installed", *[""] * 7])
            continue
        answered, finished = median(len(run.answered_at) for run in mine), median(run.finished_s for run in mine)
        urgent = sorted(second for run in mine for second in run.urgent_s)
        rows.append(
            [
                peer.name,
                f"{answered:.0f}",
                f"{median(run.lost for run in mine):.0f}",
                f"{median(run.refused for run in mine):.0f}",
                f"{finished:.1f} s",
                f"{ideal_s(int(answered)) / finished:.0%}",
                f"{urgent[len(urgent) // 2]:.2f} s",
                f"{urgent[int(len(urgent) * 0.9)]:.2f} s",
                f"{1 - len(urgent) / (URGENT * len(mine)):.0%}",
            ]
        )
    header = ("who", "answered", "lost", "429s", "finished", "of the quota", "interactive, p50", "p90", "lost of them")
    title = f"{requests} requests, 2 keys of 1,800 a minute ({machine()}); ideal {ideal_s(requests):.1f} s"
    table(title, header, rows)
    print("; ".join(dict.fromkeys(peer.versions for peer in PEERS if peer.installed)))


def plot(runs: dict[str, list[Run]], requests: int) -> None:
    """Draw how many were answered over time, for the run of each in the middle."""
    matplotlib = importlib.import_module("matplotlib")
    matplotlib.use("Agg")
    pyplot = importlib.import_module("matplotlib.pyplot")
    figure, axes = pyplot.subplots(figsize=(8, 4.5), dpi=120)
    until, burst = ideal_s(requests), 2 * PER_MINUTE / 60 * BURST_S
    axes.plot(
        [LATENCY_S, LATENCY_S, until], [0, burst, requests], color="0.6", linewidth=5, alpha=0.5, label="possible"
    )
    for peer in PEERS:
        if peer.name not in runs:
            continue
        ranked = sorted(runs[peer.name], key=lambda run: (len(run.answered_at), run.finished_s))
        run = ranked[len(ranked) // 2]
        times = sorted(run.answered_at)
        ours = peer is OURS
        axes.step(
            [0, *times],
            range(len(times) + 1),
            where="post",
            linewidth=2.2 if ours else 1.3,
            color="black" if ours else None,
            label=f"{peer.name}: {run.lost or 'none'} lost",
        )
    axes.axhline(requests, color="0.8", linewidth=0.8)
    axes.set(xlabel="seconds", ylabel="requests answered", xlim=(0, None), ylim=(0, requests * 1.05))
    axes.legend(fontsize=8, loc="lower right", frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    PLOT.parent.mkdir(exist_ok=True)
    figure.savefig(PLOT)


async def main(requests: int, rounds: int, every_s: float, names: Sequence[str]) -> dict[str, list[Run]]:
    """Let all peers take turns."""
    present = [peer for peer in PEERS if peer.installed and (not names or any(name in peer.name for name in names))]
    runs: dict[str, list[Run]] = {peer.name: [] for peer in present}
    for number in range(rounds):
        start = number % len(present)
        for peer in present[start:] + present[:start]:
            runs[peer.name].append(await measure(peer, requests, every_s, seed=number))
    return runs


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="few requests, to see that it works; figures mean little")
    parser.add_argument("--plot", action="store_true", help=f"draw {PLOT.name} too (needs matplotlib)")
    parser.add_argument("--only", nargs="*", default=(), help="peers whose name has one of these words")
    given = parser.parse_args()
    settle_environment()
    # Nothing is fetched: prices have no part in this.
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
    count, rounds, every_s = (400, 1, 0.02) if given.quick else (REQUESTS, 5, EVERY_S)
    found = anyio.run(main, count, rounds, every_s, given.only)
    report(found, count)
    if given.plot:
        plot(found, count)
    sys.stdout.flush()
    # Peers leave threads and sessions behind.
    os._exit(0)
