"""The command line."""

from __future__ import annotations

import logging
import subprocess
import sys
from importlib.metadata import version
from typing import TYPE_CHECKING

import pytest

import penstock.cli
from penstock.cli import main

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys of whoever runs the tests are none of theirs."""
    monkeypatch.delenv("ANTHROPIC_API_KEY", raising=False)
    monkeypatch.delenv("PENSTOCK_API_KEYS", raising=False)


@pytest.fixture
def without_extras(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretend that nothing optional is installed."""
    monkeypatch.setattr(penstock.cli, "find_spec", lambda _name: None)


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    """The package's logger, put back as it was."""
    found = logging.getLogger("penstock")
    handlers, level = list(found.handlers), found.level
    yield found
    found.handlers[:] = handlers
    found.setLevel(level)


def test_it_tells_its_version(capsys: pytest.CaptureFixture[str]) -> None:
    """`penstock --version` names the program and its version."""
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"penstock {version('penstock')}\n"


@pytest.mark.lengthy
@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["run", "--help"], ["run", "--rpm", "x"]])
def test_what_needs_no_sdk_loads_none(arguments: list[str]) -> None:
    """Help, version and complaints about arguments come at once: neither the SDK nor pydantic is loaded for them."""
    script = (
        "import atexit, sys; from penstock.cli import main\n"
        "loaded = lambda: sorted({'anthropic', 'pydantic', 'rich'} & set(sys.modules))\n"
        "atexit.register(lambda: print(loaded(), file=sys.stderr))\n"
        "main(sys.argv[1:])"
    )
    command = [sys.executable, "-c", script, *arguments]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.stderr.splitlines()[-1] == "[]"


def test_help_lists_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    """`penstock --help` names every command with a line on each."""
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    help_text = capsys.readouterr().out
    assert "run " in help_text
    assert "demo " in help_text
    assert "simulate " in help_text


def test_without_a_command_there_is_help(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """`penstock` alone tells what it can do, and that nothing was done."""
    monkeypatch.setattr(sys, "argv", ["penstock"])
    assert main() == 2
    assert "demo" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["demo", "--n", "0"],
        ["demo", "--n", "many"],
        ["demo", "--live", "0"],
        ["demo", "--live", "-3"],
        ["demo", "--rpm", "0"],
        ["demo", "--faults", "1.5"],
        ["demo", "--faults", "some"],
        ["drain"],
    ],
)
def test_a_bad_argument_is_named(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """What can't be used is refused before anything starts, and shown."""
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert repr(arguments[-1]) in capsys.readouterr().err


@pytest.mark.usefixtures("without_extras")
def test_missing_extras_are_named_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """Without its extras the demo says what to install."""
    assert main(["demo"]) == 2
    error = capsys.readouterr().err
    assert "needs rich and starlette and uvicorn: pip install 'penstock[cli,simulator]'" in error
    assert error.count("\n") == 1


@pytest.mark.usefixtures("without_extras")
def test_the_real_api_needs_no_server(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """With `--live`, only what shows the run is asked for."""
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-live")
    assert main(["demo", "--live", "3"]) == 2
    assert "needs rich: pip" in capsys.readouterr().err


@pytest.mark.parametrize("key", [None, "", "  "])
def test_the_real_api_needs_a_key(
    key: str | None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--live` without a key says which variable to set."""
    if key is not None:
        monkeypatch.setenv("ANTHROPIC_API_KEY", key)
    assert main(["demo", "--live", "3"]) == 2
    assert capsys.readouterr().err == "penstock: --live needs an API key: set ANTHROPIC_API_KEY\n"


def test_an_interrupt_while_it_starts_leaves_no_traceback(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C at any moment ends in one line and 130."""

    def interrupted(_name: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(penstock.cli, "find_spec", interrupted)
    assert main(["demo"]) == 130
    assert capsys.readouterr().err == "Interrupted.\n"


def test_the_log_goes_to_standard_error(
    logger: logging.Logger, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With `--log`, lines of the logger `penstock` appear as they are; the command itself is told its options."""
    told: list[object] = []

    def record(options: object) -> int:
        told.append(options)
        logger.info('{"event": "call"}')
        return 0

    monkeypatch.setattr("penstock.cli.demo.demo", record)
    assert main(["demo", "--log", "-n", "7", "--seed", "3", "--faults", "0.25"]) == 0
    assert capsys.readouterr().err == '{"event": "call"}\n'
    assert "n=7, seed=3, faults=0.25" in repr(told)
