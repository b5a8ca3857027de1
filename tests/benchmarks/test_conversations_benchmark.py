"""The benchmark of conversations works; what comes out is for `nox -s bench`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.mark.slow
def test_a_quick_run_meets_every_target(printed: Callable[..., str]) -> None:
    """Nothing is refused, nothing exceeds its share, most is read from the cache: each judged, each met."""
    judged = [line for line in printed("conversations.py").splitlines() if line.endswith(("| ✓ |", "| ✗ |"))]
    assert len(judged) == 7
    assert all(line.endswith("| ✓ |") for line in judged)
