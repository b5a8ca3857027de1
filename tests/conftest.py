"""What every test shares: the event loop backend and the Hypothesis profiles. The rest stays in its file."""

from __future__ import annotations

import gc
import os
import socket
import ssl
import sys
from typing import TYPE_CHECKING

import certifi
import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

# Shared machines stall for seconds, so no deadline; in CI the examples are the same in every run.
settings.register_profile("default", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
PROFILE = "ci" if os.environ.get("CI") else "default"
settings.register_profile("quick", settings.get_profile(PROFILE), max_examples=10)  # for `nox -s quick`
settings.load_profile(PROFILE)


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Async tests run on asyncio, the loop that the package is written for."""
    return "asyncio"


@pytest.fixture(scope="session", autouse=True)
def one_certificate(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nothing here is encrypted, and to load all certificates, as each client does, takes longer than most tests."""
    known = ssl.create_default_context(cafile=certifi.where()).get_ca_certs(binary_form=True)
    one = tmp_path_factory.mktemp("tls") / "one.pem"
    one.write_text(ssl.DER_cert_to_PEM_cert(known[0]), encoding="ascii")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSL_CERT_FILE", str(one))
        yield


@pytest.fixture
def refusing_port() -> Iterator[int]:
    """A port of this machine that is nobody else's, and where nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


def pytest_collection_finish() -> None:
    """What was imported by now stays: the garbage collector, which many a test calls, need not go through it again."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """A slow test is not traced, and nor is any process that it starts: its lines have quicker tests of their own.

    To trace them takes as long again as to run them.
    """
    coverage = sys.modules.get("coverage")
    running = None if coverage is None else coverage.Coverage.current()
    if running is None or item.get_closest_marker("slow") is None:
        return (yield)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("COVERAGE_PROCESS_CONFIG", raising=False)
        running.stop()
        try:
            return (yield)
        finally:
            running.start()
