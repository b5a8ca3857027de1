from __future__ import annotations

import importlib.util
import io
import sys
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest
from rich.console import Console

from penstock import Progress
from penstock.batch.fan_out import FanOut
from penstock.batch.progress_display import ProgressBar, ProgressLines, display, told
from penstock.simulator import Simulator

if TYPE_CHECKING:
    from pathlib import Path


class Terminal(io.StringIO):
    """A file that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def progress(**fields: Any) -> Progress:
    """A snapshot in the middle of a run."""
    return Progress(
        **{
            "total": 10_000,
            "answered": 1200,
            "failed": 3,
            "resumed": 31,
            "in_flight": 8,
            "retried": 40,
            "input_tokens": 1_250_000,
            "output_tokens": 300_400,
            "cost_usd": Decimal("1.2345"),
            "expected_cost_usd": Decimal("10.2"),
            "quota_use": 0.8,
            "elapsed_s": 75.4,
            "rate_per_s": 98.4,
            "left_s": 3725.0,
            **fields,
        }
    )


def test_lines_are_plain() -> None:
    """One each time, with everything that is known, and no control characters."""
    out = io.StringIO()
    show, every_s = display(out)
    assert isinstance(show, ProgressLines)
    assert every_s == 5.0
    show(progress())
    show(
        progress(
            total=None,
            failed=0,
            resumed=0,
            retried=0,
            cost_usd=Decimal(0),
            quota_use=None,
            left_s=None,
            rate_per_s=0.25,
            input_tokens=999,
            output_tokens=2_000_000_000,
            elapsed_s=7,
        )
    )
    assert out.getvalue().splitlines() == [
        f"1:15  1,234 of 10,000 done, {told(progress())}",
        "0:07  1,200 done, 0.2/s, 999 in, 2G out",
    ]
    assert repr(show) == "<ProgressLines>"


@pytest.mark.parametrize(
    ("fields", "cost"),
    [
        ({}, "$1.23 of about $10.20"),
        ({"cost_usd": Decimal("0.00012"), "expected_cost_usd": Decimal("0.5")}, "$0.0001 of about $0.5000"),
        ({"cost_usd": Decimal("0.00002"), "expected_cost_usd": Decimal("0.5")}, "less than $0.0001 of about $0.5000"),
        ({"cost_usd": Decimal("0.00002"), "expected_cost_usd": Decimal("0.00004")}, "less than $0.0001"),
        ({"cost_usd": Decimal("0.00002"), "expected_cost_usd": None}, "less than $0.0001"),
        ({"expected_cost_usd": None}, "$1.23"),
    ],
)
def test_small_costs_have_more_digits(fields: dict[str, Any], cost: str) -> None:
    """Below a dollar, cents say too little."""
    assert f"retried, {cost}, quota" in told(progress(**fields))


def test_everything_known_is_told() -> None:
    """What matters most stands first."""
    assert told(progress()) == (
        "98/s, 1:02:05 left, 3 failed, 40 retried, $1.23 of about $10.20, quota 80%, 1.25M in, 300k out, "
        "31 from the journal"
    )


def test_the_last_line_expects_nothing_more() -> None:
    """At the end there is neither time nor cost to come."""
    assert told(progress(ended=True)).startswith("98/s, 3 failed, 40 retried, $1.23, quota 80%")


def test_a_terminal_has_a_bar() -> None:
    """It is redrawn in its place, starts no thread, and stays when it is done."""
    out = Terminal()
    show, every_s = display(out)
    assert isinstance(show, ProgressBar)
    assert every_s < 1
    show(progress())
    show(progress(answered=5000))
    show(progress(answered=9966, ended=True))
    text = out.getvalue()
    for shown in ("1234/10000", "5034/10000", "10000/10000", "98/s", "[?25h"):
        assert shown in text
    assert repr(show) == "<ProgressBar>"
    assert show._bar.live._refresh_thread is None


def test_a_bar_without_a_total_counts() -> None:
    """Where nobody knows the end."""
    out = Terminal()
    bar = ProgressBar(Console(file=out, force_terminal=True, width=200))
    bar(progress(total=None, left_s=None, expected_cost_usd=None))
    bar(progress(total=None, left_s=None, expected_cost_usd=None, ended=True))
    assert "1234/?" in out.getvalue()


@pytest.mark.parametrize("terminal", [True, False])
def test_output_to_elsewhere_stays_there(monkeypatch: pytest.MonkeyPatch, terminal: bool) -> None:
    """What a program prints into a file or a pipe must not end up in the terminal, beside the bar."""
    out, printed = Terminal(), Terminal() if terminal else io.StringIO()
    monkeypatch.setattr(sys, "stdout", printed)
    bar = ProgressBar(Console(file=out, force_terminal=True))
    bar(progress())
    print("the program's own", file=sys.stdout)  # noqa: T201
    bar(progress(ended=True))
    assert ("the program's own" in out.getvalue()) == terminal
    assert ("the program's own" in printed.getvalue()) == (not terminal)


def test_without_rich_a_terminal_has_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bar belongs to an extra."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    show, _ = display(Terminal())
    assert isinstance(show, ProgressLines)


def test_it_goes_to_the_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    """The standard output belongs to the program."""
    show, _ = display()
    show(progress())
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "1,234 of 10,000 done" in captured.err


@pytest.mark.parametrize("closed", [False, True], ids=["without", "closed"])
async def test_without_a_standard_error_nothing_is_shown(
    closed: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A program without a console, or one that closed it, runs all the same."""
    file = io.StringIO()
    file.close()
    monkeypatch.setattr(sys, "stderr", file if closed else None)
    async with FanOut(
        Simulator().client(), ["x"], model="claude-haiku-5-5", max_tokens=9, progress=True, journal=tmp_path / "run"
    ) as results:
        assert [result.ok async for result in results] == [True]


async def test_a_standard_error_that_is_no_file_leaves_the_journal_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What can't be shown is found before the journal is open: it isn't made, and nobody is locked out of it."""
    monkeypatch.setattr(sys, "stderr", object())
    fan_out = FanOut(Simulator().client(), ["x"], progress=True, journal=tmp_path / "run")
    with pytest.raises(AttributeError):
        await fan_out.__aenter__()
    assert not (tmp_path / "run").exists()
