"""`penstock simulate`: the same as `python -m penstock.simulator`, options and all."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from penstock.simulator.__main__ import main as serve

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["simulate"]


def simulate(arguments: Sequence[str]) -> int:
    """Serve until Ctrl-C; returns the exit code."""
    try:
        return serve(arguments)
    except ImportError as missing:
        sys.stderr.write(f"penstock simulate: {missing}\n")
        return 2
