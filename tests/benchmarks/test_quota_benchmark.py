"""The benchmark of quotas over real sockets works."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.mark.slow
def test_a_quick_run_loses_nothing_and_is_judged(printed: Callable[..., str]) -> None:
    """One server in another process; every request is answered, and a verdict stands at the end."""
    rows = [line for line in printed("quota.py").splitlines() if line.startswith("| 2 |")]
    (cells,) = ([cell.strip() for cell in row.strip("|").split("|")] for row in rows)
    assert cells[1:3] == ["learned", "ended"]
    assert cells[-2] == "0"
    assert cells[-1] in {"✓", "✗"}
