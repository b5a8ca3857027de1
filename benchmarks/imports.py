"""What `import penstock` costs, as a ratio to `import anthropic`, each in an interpreter of its own.

Target: at most 1.15. CPU is compared, because other work on the machine changes it least; the wall clock is told too.
"""

from __future__ import annotations

import subprocess
import sys
from statistics import median

from _harness import Measured, machine, quick, settle_environment, table, verdict

MOST = 1.15
RUNS = 15
SCRIPT = """\
import sys, time
cpu, wall = time.process_time(), time.perf_counter()
import {module}
print(time.process_time() - cpu, time.perf_counter() - wall)
assert "{module}" in sys.modules
"""


def import_s(module: str) -> tuple[float, float]:
    """Import a module in a fresh interpreter; returns seconds of CPU and of the wall clock."""
    command = [sys.executable, "-c", SCRIPT.format(module=module)]
    cpu, wall = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    return float(cpu), float(wall)


def main(*, brief: bool) -> None:
    """Measure both in turn."""
    modules = ("anthropic", "penstock")
    for module in modules:
        import_s(module)  # the first run compiles, and fills the system's cache
    cpu = {module: Measured(module) for module in modules}
    wall_s: dict[str, list[float]] = {module: [] for module in modules}
    for number in range(2 if brief else RUNS):
        for module in modules[:: 1 if number % 2 else -1]:
            seconds, wall = import_s(module)
            cpu[module].rounds_us.append(seconds * 1e6)
            wall_s[module].append(wall)
    base, ours = cpu["anthropic"], cpu["penstock"]
    rows = [
        [
            f"`import {one.name}`",
            f"{one.us / 1000:.0f}",
            f"{median(wall_s[one.name]) * 1000:.0f}",
            f"{one.ratio(base):.2f}",
        ]
        for one in (base, ours)
    ]
    table(f"Imports ({machine()})", ("import", "CPU, ms", "wall clock, ms", "÷ `import anthropic`"), rows)
    ratio = ours.ratio(base)
    verdicts = [["penstock ÷ anthropic", f"{ratio:.2f}", ours.spread(base), f"≤ {MOST:.2f}", verdict(ratio, MOST)]]
    table("Target", ("measure", "result", "rounds", "target", ""), verdicts)


if __name__ == "__main__":
    settle_environment()
    main(brief=quick(__doc__))
