"""The benchmarks of admission work; what comes out is for `nox -s bench`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.mark.slow
def test_a_quick_run_judges_every_target(printed: Callable[..., str]) -> None:
    """Each limit, the backlog, the largest request and the cost of the line get a verdict, and no request is lost."""
    output = printed("admission.py")
    judged = [line for line in output.splitlines() if line.endswith(("| ✓ |", "| ✗ |"))]
    assert [sum(line.startswith(f"| {name}") for line in judged) for name in ("requests", "input", "output")] == [
        2,
        2,
        2,
    ]
    assert all("| 0 | " in line for line in judged if line.startswith(("| requests", "| input", "| output")))
    assert len(judged) == 6 + 2 + 2 + 6


@pytest.mark.slow
def test_peers_that_are_not_there_are_said_to_be_left_out(printed: Callable[..., str]) -> None:
    """The comparison runs with what is installed, and names the rest."""
    output = printed("peers.py", "--only", "penstock")
    rows = [line.split(" | ") for line in output.splitlines() if line.startswith("| ")][2:]
    assert [row[0].strip("| ") for row in rows if row[1] not in ("left out", "not installed")] == [
        "penstock, told nothing"
    ]
    ours = rows[-1]
    assert (ours[1], ours[2]) == ("400", "0")
