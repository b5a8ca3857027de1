"""The demo, run for real."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from penstock.cli import main
from penstock.simulator import Simulator
from penstock.simulator.server import serving

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.slow

COMMAND = (sys.executable, "-c", "import sys; from penstock.cli import main; sys.exit(main())", "demo")
# Nothing listens at port 9: whatever went through the proxy would fail.
ENVIRONMENT = {**os.environ, "HTTP_PROXY": "http://127.0.0.1:9", "http_proxy": "http://127.0.0.1:9", "COLUMNS": "80"}


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Iterator[Simulator]:
    """A server in place of the real API, with the key that the environment names."""
    simulator = Simulator(keys={"sk-live": "org"}, tokens_per_s=200)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-live")
    with serving(simulator) as url:
        monkeypatch.setenv("ANTHROPIC_BASE_URL", url)
        yield simulator


def test_every_prompt_is_answered() -> None:
    """Faults and limits notwithstanding, all are answered; a file gets plain lines, and so does the progress."""
    arguments = ("-n", "40", "--rpm", "1200", "--seed", "5")
    done = subprocess.run([*COMMAND, *arguments], check=False, capture_output=True, text=True, env=ENVIRONMENT)
    assert done.returncode == 0
    assert all(re.match(r"\d+:\d\d  \d+ of 39 done, ", line) for line in done.stderr.splitlines())
    assert "40 of 40" in done.stdout
    assert "Quota used" in done.stdout
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", done.stdout)
    assert max(map(len, done.stdout.splitlines())) <= 80 + len("Summary: ") + 24 * 40


def test_ctrl_c_ends_it_at_once_and_leaves_no_server() -> None:
    """An interrupt gives one line and 130, and the simulator's process is gone."""
    with subprocess.Popen(
        [*COMMAND, "--rpm", "60"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        said = ""
        while "The others" not in said:
            line = process.stdout.readline()
            assert line, process.stderr.read()
            said += line
        process.send_signal(signal.SIGINT)
        said += process.stdout.read()
        assert process.wait(10) == 130
        assert "Traceback" not in process.stderr.read()
    assert re.search(r"^Interrupted: \d+ answered\.$", said, re.MULTILINE)
    port = int(re.findall(r"http://127\.0\.0\.1:(\d+)", said)[0])
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0


def test_live_sends_so_many_to_the_api_of_the_environment(api: Simulator, capsys: pytest.CaptureFixture[str]) -> None:
    """`--live 3` estimates the cost, sends three prompts with the environment's key, and starts no server."""
    assert main(["demo", "--live", "3"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"Cost +at most about \$0\.0\d+", said)
    assert "3 of 3" in said
    assert "Quota used" not in said
    assert [(entry.status, entry.stream) for entry in api.journal] == [(200, True), (200, False), (200, False)]


def test_a_stream_that_breaks_is_asked_again(api: Simulator, capsys: pytest.CaptureFixture[str]) -> None:
    """The streamed reply that broke off comes with the others, so that none is missing."""
    api.inject("stream_drop_after_content", after_deltas=2)
    assert main(["demo", "--live", "3"]) == 0
    said = capsys.readouterr().out
    assert "It broke off (" in said
    assert "3 of 3" in said


def test_failures_are_counted_by_name(api: Simulator, capsys: pytest.CaptureFixture[str]) -> None:
    """If some are not answered, the table says why, and the exit code is 1."""
    api.inject("not_found", after=1)
    assert main(["demo", "--live", "3"]) == 1
    said = capsys.readouterr().out
    assert "2 of 3" in said
    assert "NotFoundError 1" in said


@pytest.mark.usefixtures("api")
def test_a_bad_setting_in_the_environment_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A setting that can't be used is an error in words, without a traceback."""
    monkeypatch.setenv("PENSTOCK_CONCURRENCY", "0")
    assert main(["demo", "--live", "3"]) == 2
    assert "concurrency" in capsys.readouterr().err


def test_a_server_that_does_not_start_is_reported(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """If there is no simulator to run against, that is said, and the exit code is 2."""
    monkeypatch.setattr(sys, "executable", "/bin/false")
    assert main(["demo", "-n", "1"]) == 2
    assert "the simulator did not start" in capsys.readouterr().err
