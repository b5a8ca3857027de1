"""The benchmark of images works; what comes out is for `nox -s bench`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.mark.slow
def test_a_quick_run_judges_every_target(printed: Callable[..., str]) -> None:
    """How late the event loop comes and how much memory grows get a verdict, one at a time and all at once."""
    judged = [line for line in printed("images.py").splitlines() if line.endswith(("| ✓ |", "| ✗ |"))]
    assert [line.split("|")[1].strip() for line in judged] == ["one at a time", "all at once"] * 2
