"""What every test shares: the event loop backend and the Hypothesis profiles. The rest stays in its file."""

from __future__ import annotations

import os

import pytest
from hypothesis import settings

# Shared machines stall for seconds, so no deadline; in CI the examples are the same in every run.
settings.register_profile("default", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "default")


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Async tests run on asyncio, the loop that the package is written for."""
    return "asyncio"
