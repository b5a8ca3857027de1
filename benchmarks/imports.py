"""What importing a client costs, as a ratio to `import anthropic`, each in an interpreter of its own.

`import penstock` alone loads next to nothing, because its names are loaded when they are asked for; so it is
`from penstock import Client` that is held to the target.

Target: at most 1.15. CPU is compared, because other work on the machine changes it least; the wall clock is told too.
"""

from __future__ import annotations

import subprocess
import sys
from statistics import median

from _harness import Measured, machine, quick, settle_environment, table, verdict

MOST = 1.15
RUNS = 15
IMPORTS = ("import anthropic", "from penstock import Client", "import penstock")
SCRIPT = """\
import time
cpu, wall = time.process_time(), time.perf_counter()
{line}
print(time.process_time() - cpu, time.perf_counter() - wall)
"""


def import_s(line: str) -> tuple[float, float]:
    """Import in a fresh interpreter; returns seconds of CPU and of the wall clock."""
    command = [sys.executable, "-c", SCRIPT.format(line=line)]
    cpu, wall = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    return float(cpu), float(wall)


def main(*, brief: bool) -> None:
    """Measure all in turn."""
    for line in IMPORTS if not brief else ():
        import_s(line)  # the first run compiles, and fills the system's cache
    cpu = {line: Measured(line) for line in IMPORTS}
    wall_s: dict[str, list[float]] = {line: [] for line in IMPORTS}
    for number in range(1 if brief else RUNS):
        for line in IMPORTS[:: 1 if number % 2 else -1]:
            seconds, wall = import_s(line)
            cpu[line].rounds_us.append(seconds * 1e6)
            wall_s[line].append(wall)
    base, ours, _ = cpu.values()
    rows = [
        [
            f"`{one.name}`",
            f"{one.us / 1000:.0f}",
            f"{median(wall_s[one.name]) * 1000:.0f}",
            f"{one.ratio(base):.2f}",
        ]
        for one in cpu.values()
    ]
    table(f"Imports ({machine()})", ("", "CPU, ms", "wall clock, ms", "÷ `import anthropic`"), rows)
    ratio = ours.ratio(base)
    verdicts = [[f"`{ours.name}`", f"{ratio:.2f}", ours.spread(base), f"≤ {MOST:.2f}", verdict(ratio, MOST)]]
    table("Target", ("measure", "result", "rounds", "target", ""), verdicts)


if __name__ == "__main__":
    settle_environment()
    main(brief=quick(__doc__))
