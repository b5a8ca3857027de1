from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from types import SimpleNamespace
from typing import Any

import pytest

from penstock.simulator import BatchOptions, server
from penstock.simulator import __main__ as command
from penstock.simulator.__main__ import main


@pytest.mark.lengthy
def test_it_serves_until_ctrl_c() -> None:
    """One line with the URL when ready; the options are in force; Ctrl-C ends it cleanly."""
    options = ["--port", "0", "--rpm", "60", "--burst-s", "1", "--key", "sk-a=org-1", "--key", "sk-b"]
    process = subprocess.Popen(
        [sys.executable, "-m", "penstock.simulator", *options], stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    line = process.stderr.readline()
    url = line.split(" at ")[1].split()[0]
    body = {"model": "claude-opus-5", "max_tokens": 5, "messages": [{"role": "user", "content": "Hi"}]}
    headers = {"x-api-key": "sk-a", "anthropic-version": "2026-10-21"}
    request = urllib.request.Request(f"{url}/v1/messages", data=json.dumps(body).encode(), headers=headers)
    with urllib.request.urlopen(request) as response:
        assert response.headers["anthropic-organization-id"] == "org-1"
        assert response.headers["anthropic-ratelimit-requests-limit"] == "60"
        assert response.headers["anthropic-ratelimit-requests-remaining"] == "0"
    process.send_signal(signal.SIGINT)
    _, rest = process.communicate(timeout=20)
    assert (process.returncode, rest) == (0, "")
    assert line == f"Simulated Messages API at {url} (Ctrl-C ends it)\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--faults", "overloaded"], "expected NAME=PROBABILITY, separated by commas, not 'overloaded'"),
        (["--faults", "overloaded=x"], "expected NAME=PROBABILITY"),
        (["--faults", "nonsense=0.1"], "no fault is called 'nonsense'"),
        (["--mixed-faults", "2"], "share must be between 0 and 1"),
        (["--rpm", "0"], "per_minute must be a finite number above 0"),
        (["--key", "=org"], "expected KEY=ORGANIZATION"),
        (["--port", "70000"], "--port must be between 0 and 65535, not 70000"),
        (["--latency-s", "-1"], "latency_s must be"),
        (["--nonsense"], "unrecognized arguments"),
    ],
)
def test_wrong_arguments_exit_with_2(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Each wrong argument is named in one clear line."""
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_an_address_in_use_exits_with_1(capsys: pytest.CaptureFixture[str]) -> None:
    """The address and the reason are named."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["--port", str(port)]) == 1
    assert f"cannot listen at 127.0.0.1, port {port}: " in capsys.readouterr().err


def test_it_says_where_it_listens(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The address given is the one served, and the URL goes to stderr."""

    def run(simulator: object, *, host: str, port: int, ready: Any) -> None:
        ready(f"http://{host}:{port}")

    monkeypatch.setattr(server, "run", run)
    assert main(["--port", "1234", "--host", "127.0.0.2"]) == 0
    captured = capsys.readouterr()
    assert captured.err == "Simulated Messages API at http://127.0.0.2:1234 (Ctrl-C ends it)\n"
    assert captured.out == ""


def test_faults_of_both_options_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """`--faults` and `--mixed-faults` go together, and every option reaches the simulator."""
    seen: dict[str, Any] = {}

    def simulator(**options: Any) -> Any:
        seen.update(options)
        raise ValueError("enough")

    monkeypatch.setattr(command, "Simulator", simulator)
    with pytest.raises(SystemExit):
        main(
            [
                "--faults",
                "overloaded=0.1,reset=0.05,",
                "--mixed-faults",
                "0.2",
                "--itpm",
                "5",
                "--otpm",
                "6",
                "--seed",
                "7",
                "--tool-calls",
                "4",
                "--batch-s",
                "20",
            ]
        )
    assert sum(seen["faults"].values()) == pytest.approx(0.35)
    assert seen["faults"]["overloaded"] == pytest.approx(0.15)
    assert (seen["input_tokens_per_minute"], seen["output_tokens_per_minute"], seen["seed"]) == (5, 6, 7)
    assert (seen["keys"], seen["keep_bodies"], seen["tool_calls"]) == (None, False, 4)
    assert seen["batch"] == BatchOptions(duration_s=20, cancel_s=2)


@pytest.mark.lengthy
def test_as_a_child_it_ends_with_its_parent() -> None:
    """With `--end-with-stdin`, closing its standard input ends it as Ctrl-C does."""
    process = subprocess.Popen(
        [sys.executable, "-m", "penstock.simulator", "--port", "0", "--end-with-stdin"],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    assert process.stdin is not None
    process.stderr.readline()
    process.stdin.write("kept alive\n")
    process.stdin.close()
    assert process.wait(timeout=20) == 0
    assert process.stderr.read() == ""
    process.stderr.close()


def test_the_end_of_standard_input_interrupts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The option reads standard input to its end, then raises what Ctrl-C raises."""
    chunks = [b"x", b"y", b""]
    raised: list[int] = []
    done = threading.Event()

    def interrupt(number: int) -> None:
        raised.append(number)
        done.set()

    monkeypatch.setattr(command, "os", SimpleNamespace(read=lambda descriptor, size: chunks.pop(0)))
    monkeypatch.setattr(command, "signal", SimpleNamespace(raise_signal=interrupt, SIGINT=signal.SIGINT))
    monkeypatch.setattr(server, "run", lambda simulator, **options: done.wait(5))
    assert main(["--end-with-stdin"]) == 0
    assert raised == [signal.SIGINT]
