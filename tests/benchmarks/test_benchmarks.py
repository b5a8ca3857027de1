"""The benchmarks work: what they measure is checked by themselves, what comes out is for `nox -s bench`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.slow
@pytest.mark.parametrize("script", ["imports.py", "overhead.py"])
def test_a_quick_run_ends_well_and_judges_every_target(script: str) -> None:
    """A benchmark runs to its end, with all its checks, and prints a verdict beside each target."""
    command = [sys.executable, str(BENCHMARKS / script), "--quick"]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    judged = [line for line in output.splitlines() if "≤" in line]
    assert judged
    assert all(line.endswith(("| ✓ |", "| ✗ |")) for line in judged)
