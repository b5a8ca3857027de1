"""The simulator in a process of its own."""

from __future__ import annotations

import socket
import subprocess
import sys

import httpx2
import pytest

from penstock.cli.local_server import LocalServer, ServerFailed, ServerOptions

OPTIONS = ServerOptions(
    keys={"sk-1": "org-1", "sk-2": "org-2"},
    requests_per_minute=600,
    input_tokens_per_minute=60_000,
    faults=0.05,
    latency_s=0.0,
)
PARENT = """
from penstock.cli.local_server import LocalServer, ServerOptions
options = ServerOptions(keys={"sk-1": "org-1"}, requests_per_minute=600, input_tokens_per_minute=60_000)
with LocalServer(options) as server:
    print(server.url(), flush=True)
    input()
"""


def address(url: str) -> tuple[str, int]:
    """Where a URL points to."""
    parsed = httpx2.URL(url)
    return parsed.host, parsed.port or 80


def listens(url: str) -> bool:
    """Whether anybody listens there."""
    with socket.socket() as probe:
        return probe.connect_ex(address(url)) == 0


def python(script: str) -> tuple[str, ...]:
    """A command that runs a script."""
    return (sys.executable, "-c", script)


@pytest.mark.slow
def test_it_serves_while_the_block_lasts() -> None:
    """Inside the block the simulator answers at its URL; after it, nothing listens there."""
    with LocalServer(OPTIONS) as server:
        url = server.url()
        assert httpx2.get(f"{url}/_simulator/statistics", trust_env=False).status_code == 200
        assert httpx2.get(f"{url}/v1/models", headers={"x-api-key": "sk-3"}, trust_env=False).status_code == 401
        assert server.url() == url
        assert repr(server) == f"<LocalServer running, {url}>"
    assert not listens(url)
    assert repr(server) == f"<LocalServer ended, {url}>"


def test_an_exception_ends_it_too() -> None:
    """However the block is left, the server ends first."""
    server = LocalServer(OPTIONS, command=python("import sys; sys.stdin.read()"))

    def interrupted() -> None:
        with server:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert repr(server) == "<LocalServer ended, None>"


@pytest.mark.slow
def test_it_dies_with_a_parent_that_cannot_say_so() -> None:
    """A parent that is killed leaves no server behind."""
    with subprocess.Popen(python(PARENT), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        url = parent.stdout.readline().strip()
        with socket.create_connection(address(url), timeout=10) as connection:
            parent.kill()
            assert connection.recv(1) == b""
    assert not listens(url)


def test_a_server_that_cannot_start_says_why() -> None:
    """What the process said before it ended is in the error."""
    server = LocalServer(OPTIONS, command=python("import sys; sys.exit('no room for a server')"))
    with pytest.raises(ServerFailed, match="did not start: no room for a server"), server:
        server.url()


def test_a_server_that_says_nothing_is_reported_as_such() -> None:
    """An end without a word is an error with a text of its own."""
    with pytest.raises(ServerFailed, match="it said nothing"), LocalServer(OPTIONS, command=python("")) as server:
        server.url()


def test_a_silent_server_is_not_waited_for_forever(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that never listens is killed, and reported."""
    monkeypatch.setattr("penstock.cli.local_server._STARTS_WITHIN_S", 0.2)
    monkeypatch.setattr("penstock.cli.local_server._ENDS_WITHIN_S", 0.05)
    sleeper = "import threading; threading.Event().wait()"
    with pytest.raises(ServerFailed, match="did not start"), LocalServer(OPTIONS, command=python(sleeper)) as server:
        server.url()


def test_a_server_that_will_not_end_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that ignores the end of its standard input is ended all the same."""
    monkeypatch.setattr("penstock.cli.local_server._ENDS_WITHIN_S", 0.05)
    sleeper = "import threading; threading.Event().wait()"
    with LocalServer(OPTIONS, command=python(sleeper)) as server:
        pass
    assert repr(server) == "<LocalServer ended, None>"


def test_later_words_of_the_server_reach_standard_error(capfd: pytest.CaptureFixture[str]) -> None:
    """What the server complains about once it listens is not lost."""
    script = """
import sys
sys.stderr.write("Simulated Messages API at http://127.0.0.1:1 (Ctrl-C ends it)\\n")
sys.stderr.write("something is odd\\n")
"""
    with LocalServer(OPTIONS, command=python(script)) as server:
        assert server.url() == "http://127.0.0.1:1"
    assert "something is odd\n" in capfd.readouterr().err


def test_outside_of_its_block_there_is_no_server() -> None:
    """Asking for the URL before the block is a mistake that is named."""
    server = LocalServer(OPTIONS)
    assert repr(server) == "<LocalServer not started, None>"
    with pytest.raises(RuntimeError, match="with LocalServer"):
        server.url()
