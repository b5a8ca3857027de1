"""`penstock simulate`."""

from __future__ import annotations

import signal
import subprocess
import sys
from typing import NoReturn

import pytest

import penstock.cli.simulate
from penstock.cli import main


@pytest.mark.slow
def test_it_serves_until_ctrl_c() -> None:
    """It says where it listens, and ends well on an interrupt."""
    command = (sys.executable, "-c", "import sys; from penstock.cli import main; sys.exit(main())", "simulate")
    with subprocess.Popen([*command, "--port", "0"], stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        assert "http://127.0.0.1:" in server.stderr.readline()
        server.send_signal(signal.SIGINT)
        assert server.wait(10) == 0
        assert not server.stderr.read()


def test_it_takes_the_options_of_the_module(capsys: pytest.CaptureFixture[str]) -> None:
    """Its help is that of `python -m penstock.simulator`."""
    with pytest.raises(SystemExit) as ended:
        main(["simulate", "--help"])
    assert ended.value.code == 0
    assert "--mixed-faults" in capsys.readouterr().out


def test_a_missing_extra_is_named_in_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without its extra it says what to install."""

    def missing(_arguments: object) -> NoReturn:
        raise ImportError("the simulator's server needs uvicorn: pip install 'penstock[simulator]'")

    monkeypatch.setattr(penstock.cli.simulate, "serve", missing)
    assert main(["simulate"]) == 2
    error = "penstock simulate: the simulator's server needs uvicorn: pip install 'penstock[simulator]'\n"
    assert capsys.readouterr().err == error
