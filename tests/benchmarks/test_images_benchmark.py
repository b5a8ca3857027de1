"""The benchmark of images works; what comes out is for `nox -s bench`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "images.py"


@pytest.mark.slow
def test_a_quick_run_judges_every_target() -> None:
    """How late the event loop comes and how much memory grows get a verdict, one at a time and all at once."""
    command = [sys.executable, str(BENCHMARK), "--quick"]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    judged = [line for line in printed.splitlines() if line.endswith(("| ✓ |", "| ✗ |"))]
    assert [line.split("|")[1].strip() for line in judged] == ["one at a time", "all at once"] * 2
