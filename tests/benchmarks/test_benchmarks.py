"""The benchmarks work: what they measure is checked by themselves, what comes out is for `nox -s bench`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.mark.slow
@pytest.mark.parametrize(
    "script", ["hostile.py", "imports.py", "overhead.py", "streaming.py", "tools.py", "transcripts.py"]
)
def test_a_quick_run_ends_well_and_judges_every_target(script: str, printed: Callable[..., str]) -> None:
    """A benchmark runs to its end, with all its checks, and prints a verdict beside each target."""
    judged = [line for line in printed(script).splitlines() if "≤" in line]
    assert judged
    assert all(line.endswith(("| ✓ |", "| ✗ |")) for line in judged)


@pytest.mark.slow
def test_other_libraries_that_are_not_installed_are_said_to_be(printed: Callable[..., str]) -> None:
    """Every peer has its row in each table, and what it does or that it isn't there; ours repeats what it can."""
    lines = printed("streaming_peers.py").splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line[:1] == "|"]
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
