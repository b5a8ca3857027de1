"""How the tests of this folder run a benchmark."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def printed() -> Callable[..., str]:
    """Runs a script of the benchmarks with `--quick`, and gives what it prints.

    Whoever measures coverage looks away: what benchmarks reach is tested elsewhere, and being watched takes time.
    """

    def run(script: str, *arguments: str) -> str:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("COV")}
        command = [sys.executable, str(BENCHMARKS / script), "--quick", *arguments]
        return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout

    return run
