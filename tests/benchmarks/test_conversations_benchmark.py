"""The benchmark of conversations works; what comes out is for `nox -s bench`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "conversations.py"


@pytest.mark.slow
def test_a_quick_run_meets_every_target() -> None:
    """Nothing is refused, nothing exceeds its share, most is read from the cache: each judged, each met."""
    printed = subprocess.run([sys.executable, str(SCRIPT), "--quick"], check=True, capture_output=True, text=True)
    judged = [line for line in printed.stdout.splitlines() if line.endswith(("| ✓ |", "| ✗ |"))]
    assert len(judged) == 7
    assert all(line.endswith("| ✓ |") for line in judged)
