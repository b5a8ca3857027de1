"""The benchmarks of admission work; what comes out is for `nox -s bench`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def output(script: str, *arguments: str) -> str:
    """What a quick run of a benchmark prints."""
    command = [sys.executable, str(BENCHMARKS / script), "--quick", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.mark.slow
def test_a_quick_run_judges_every_target() -> None:
    """Each limit, the backlog, the largest request and the cost of the line get a verdict, and no request is lost."""
    printed = output("admission.py")
    judged = [line for line in printed.splitlines() if line.endswith(("| ✓ |", "| ✗ |"))]
    assert [sum(line.startswith(f"| {name}") for line in judged) for name in ("requests", "input", "output")] == [
        2,
        2,
        2,
    ]
    assert all("| 0 | " in line for line in judged if line.startswith(("| requests", "| input", "| output")))
    assert len(judged) == 6 + 2 + 2 + 6


@pytest.mark.slow
def test_peers_that_are_not_there_are_said_to_be_left_out() -> None:
    """The comparison runs with what is installed, and names the rest."""
    printed = output("peers.py", "--only", "penstock")
    rows = [line.split(" | ") for line in printed.splitlines() if line.startswith("| ")][2:]
    assert [row[0].strip("| ") for row in rows if row[1] not in ("left out", "not installed")] == [
        "penstock, told nothing"
    ]
    ours = rows[-1]
    assert (ours[1], ours[2]) == ("400", "0")
