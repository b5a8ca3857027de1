"""The benchmarks work: what they measure is checked by themselves, what comes out is for `nox -s bench`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.slow
@pytest.mark.parametrize(
    "script", ["hostile.py", "imports.py", "overhead.py", "streaming.py", "tools.py", "transcripts.py"]
)
def test_a_quick_run_ends_well_and_judges_every_target(script: str) -> None:
    """A benchmark runs to its end, with all its checks, and prints a verdict beside each target."""
    command = [sys.executable, str(BENCHMARKS / script), "--quick"]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    judged = [line for line in output.splitlines() if "≤" in line]
    assert judged
    assert all(line.endswith(("| ✓ |", "| ✗ |")) for line in judged)


@pytest.mark.slow
def test_other_libraries_that_are_not_installed_are_said_to_be() -> None:
    """Every peer has its row in each table, and what it does or that it isn't there; ours repeats what it can."""
    command = [sys.executable, str(BENCHMARKS / "streaming_peers.py"), "--quick"]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in output.splitlines() if line[:1] == "|"]
    for peer in (
        "SDK, default client",
        "SDK over aiohttp",
        "langchain-anthropic",
        "pydantic-ai",
        "LiteLLM",
        "penstock",
    ):
        assert [len(row) for row in rows if row[0] == peer] == [5, 6]
    (ours,) = (row for row in rows if row[0] == "penstock" and len(row) == 6)
    assert ours[3:5] == ["repeated, whole", "`StreamInterrupted`, after all that came"]
    assert ours[5].startswith("ended after")
