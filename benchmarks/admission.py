"""Whether the line spends the whole quota without tripping it, and who waits for whom.

Targets: at least 97 % of what the quotas can grant, and 429s for at most 0.5 % of the requests, whichever limit binds,
with limits configured and with none; an interactive request waits for at most 2 others under a backlog of 10,000, and
batch still gets its weight; the largest of 10,000 is admitted within its fair share; an admission takes less than 30 µs
with 10,000 waiting, and grows no faster than the logarithm of their number. Exits with 1 if a target is missed.
"""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from statistics import median
from typing import TYPE_CHECKING

from _harness import machine, quick, settle_environment, table
from _spending import Scenario, middle, run
from _waiting import backlog, bytes_of_a_waiter, large, line_us
from penstock.simulator import MIXED_FAULTS

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from _spending import Outcome

BINDING = {
    "requests": Scenario(name="requests", per_minute={"requests_per_minute": 1800}),
    "input tokens": Scenario(name="input tokens", per_minute={"input_tokens_per_minute": 200_000}),
    "output tokens": Scenario(name="output tokens", per_minute={"output_tokens_per_minute": 50_000}),
}
USED, REFUSED, PASSED, LEAST_SHARE, MOST_US = 0.97, 0.005, 2, 0.95, 30.0
INTERACTIVE, BATCH = 16, 1


class Verdicts:
    """Collects whether targets are met."""

    def __init__(self) -> None:
        self.missed = 0

    def __call__(self, *, met: bool) -> str:
        """Note one, and return its mark."""
        self.missed += not met
        return "✓" if met else "✗"


def both_ways(scenarios: Iterable[Scenario]) -> list[Scenario]:
    """Each with its limits configured, and with none."""
    return [
        replace(way, name=f"{one.name}, {how}")
        for one in scenarios
        for how, way in (("learned", one), ("configured", one.told()))
    ]


def spending(title: str, scenarios: Sequence[Scenario], seeds: range, verdicts: Verdicts | None = None) -> None:
    """Print how much of the possible each scenario uses, and how often it is refused."""
    runs: dict[str, list[Outcome]] = {scenario.name: [] for scenario in scenarios}
    for seed in seeds:
        for scenario in scenarios:
            runs[scenario.name].append(run(scenario, seed=seed))
    rows: list[list[str]] = []
    for name, outcomes in runs.items():
        used, refused = middle(outcomes, "used"), middle(outcomes, "refused_share")
        row = [
            name,
            f"{middle(outcomes, 'least_s'):.1f} s",
            f"{used:.1%}",
            f"{min(outcome.used for outcome in outcomes):.1%}",
            f"{middle(outcomes, 'used_with_tail'):.1%}",
            f"{refused:.2%}",
            str(sum(outcome.asked - outcome.answered for outcome in outcomes)),
        ]
        if verdicts is not None:
            row.append(verdicts(met=used >= USED and refused <= REFUSED))
        rows.append(row)
    header = ["limit that binds", "least time", "used", "worst run", "with the last answer", "429s", "lost"]
    table(title, header + [""] * (verdicts is not None), rows)


def paced(scenario: Scenario) -> Scenario:
    """With answers that take their time: 0.5 s and 80 tokens a second."""
    return replace(scenario, name=f"{scenario.name}, 80 tokens/s", tokens_per_s=80.0)


def burst(scenario: Scenario, seconds: float, part: float) -> Scenario:
    """With buckets of another size; `part` of the limits, so that they still bind."""
    limits = {name: limit * part for name, limit in scenario.per_minute.items()}
    return replace(scenario, name=f"{scenario.name}, burst {seconds:g} s", burst_s=seconds, per_minute=limits)


def beyond() -> list[Scenario]:
    """What the targets don't speak of."""
    requests, given, made = BINDING.values()
    return [
        *(burst(one, 60, 0.25) for one in BINDING.values()),
        *(burst(one, 1, 1.0) for one in BINDING.values()),
        *(replace(one, name=f"{one.name}, streams", streams=True, tokens_per_s=80.0) for one in BINDING.values()),
        replace(requests, name="requests, a stranger takes 30 %", stranger=0.3),
        replace(requests, name="requests, answers take 30 s", latency_s=30.0, concurrency=2000),
        replace(given, name="input tokens, answers take 30 s", latency_s=30.0, concurrency=2000),
        replace(requests, name="requests, 10 organizations", quotas=10, per_minute={"requests_per_minute": 360}),
        replace(requests, name="requests, 10 keys of 2 organizations", keys=5),
        replace(requests.told(0.5), name="requests, half of the limit configured"),
        replace(requests.told(10), name="requests, ten times the limit configured"),
        replace(given.told(10), name="input tokens, ten times the limit configured"),
        replace(
            given, name="input tokens, 20,000 a minute", per_minute={"input_tokens_per_minute": 20_000}, burst_s=60.0
        ),
        *(replace(one, name=f"{one.name}, 5 % faults", faults=MIXED_FAULTS(0.05)) for one in (requests, given, made)),
    ]


def interactive(seeds: range, waiting: int, urgent: int, flood: int, verdicts: Verdicts) -> None:
    """Print what interactive requests and a backlog do to each other."""
    seen = [backlog(waiting=waiting, urgent=urgent, flood=flood, seed=seed) for seed in seeds]
    passed = [number for one in seen for number in one.passed]
    weight = BATCH / (INTERACTIVE + BATCH)
    share = median(one.batch_share for one in seen)
    waits = sorted(wait for one in seen for wait in one.waits_s)
    rows = [
        ["admissions that an interactive request waits for, mean", f"{sum(passed) / len(passed):.2f}", "", ""],
        ["the same, p90", f"{sorted(passed)[int(len(passed) * 0.9)]}", "", ""],
        ["the same, most", f"{max(passed)}", f"≤ {PASSED}", verdicts(met=max(passed) <= PASSED)],
        ["seconds until it is sent, p90", f"{waits[int(len(waits) * 0.9)]:.2f} s", "", ""],
        [
            "batch's share of the tokens while interactive work floods in, ÷ its weight of 1 in 17",
            f"{share / weight:.2f}",
            f"≥ {LEAST_SHARE:.2f}",
            verdicts(met=share / weight >= LEAST_SHARE),
        ],
    ]
    table(f"A backlog of {waiting:,} batch requests ({machine()})", ("measure", "result", "target", ""), rows)


def fair(seeds: range, waiting: int, verdicts: Verdicts) -> None:
    """Print when the largest request is admitted."""
    rows: list[list[str]] = []
    for tenants in (1, 100):
        found = [large(waiting=waiting, tenants=tenants, seed=seed) for seed in seeds]
        part = median(one.waited_s / one.share_s for one in found)
        name = "one tenant, in its turn" if tenants == 1 else f"{tenants} tenants"
        waited, share = (median(getattr(one, name) for one in found) for name in ("waited_s", "share_s"))
        rows.append([name, f"{waited:.0f} s", f"{share:.0f} s", f"{part:.2f}", "≤ 1.00", verdicts(met=part < 1.0005)])
    header = ("line", "admitted after", "fair share", "÷", "target", "")
    table(f"The largest of {waiting:,}, two thirds of the bucket", header, rows)


def costs(rounds: int, sizes: Sequence[int], admissions: int, verdicts: Verdicts) -> None:
    """Print what an admission and a waiter cost."""
    names = {"one tenant": 1, "100 tenants": 100, "each its own": math.inf}
    cases = [(name, waiting, int(min(tenants, waiting))) for name, tenants in names.items() for waiting in sizes]
    us: dict[tuple[str, int], list[float]] = {(name, waiting): [] for name, waiting, _ in cases}
    for number in range(rounds):
        for name, waiting, tenants in cases[number % len(cases) :] + cases[: number % len(cases)]:
            us[name, waiting].append(line_us(waiting=waiting, tenants=tenants, admissions=admissions))
    rows: list[list[str]] = []
    for name, waiting, tenants in cases:
        mine, first = median(us[name, waiting]), median(us[name, sizes[0]])
        most = math.log(waiting) / math.log(sizes[0])
        ok = mine / first <= most and (waiting != 10_000 or mine < MOST_US)
        memory = bytes_of_a_waiter(waiting=waiting, tenants=tenants)
        rows.append(
            [
                name,
                f"{waiting:,}",
                f"{mine:.1f}",
                f"{mine / first:.2f}",
                f"≤ {most:.2f}",
                f"{memory:,.0f}",
                verdicts(met=ok),
            ]
        )
    header = ("tenants", "waiting", "CPU of an admission, µs", "growth", "log n", "bytes a waiter", "")
    table(f"What the line costs ({machine()})", header, rows)


def main(*, brief: bool) -> int:
    """Measure everything; return the exit status."""
    verdicts = Verdicts()
    seeds = range(1, 2 if brief else 6)
    targets = [*BINDING.values(), *map(paced, BINDING.values())]
    if brief:
        targets = [replace(one, requests=150) for one in BINDING.values()]
    spending("Share of the quota that is used", both_ways(targets), seeds, verdicts)
    if not brief:
        spending("Beyond the targets", beyond(), seeds)
    waiting = 1000 if brief else 10_000
    interactive(seeds, waiting, 10 if brief else 100, 200 if brief else 3000, verdicts)
    fair(seeds, waiting, verdicts)
    costs(1 if brief else 5, (50, 200) if brief else (1000, 10_000, 100_000), 100 if brief else 20_000, verdicts)
    return int(verdicts.missed > 0 and not brief)


if __name__ == "__main__":
    settle_environment()
    sys.exit(main(brief=quick(__doc__)))
