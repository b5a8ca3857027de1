from __future__ import annotations

import importlib.util
import io
import sys
from decimal import Decimal
from typing import TYPE_CHECKING, Any, cast

import pytest
from rich.console import Console

from penstock import Progress
from penstock.batch.fan_out import FanOut
from penstock.batch.progress import Waits
from penstock.batch.progress_display import ProgressBar, ProgressLines, display, told, waited
from penstock.simulator import Simulator

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture(autouse=True)
def _a_terminal_like_most(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")


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
            "waits": Waits(quota_use=0.8),
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
            waits=Waits(),
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
    for shown in ("1,234/10,000", "5,034/10,000", "10,000/10,000", "98/s", "[?25h"):
        assert shown in text
    assert repr(show) == "<ProgressBar>"
    assert show._live._refresh_thread is None


def test_a_bar_without_a_total_counts() -> None:
    """Where nobody knows the end."""
    out = Terminal()
    bar = ProgressBar(Console(file=out, force_terminal=True, width=200))
    bar(progress(total=None, left_s=None, expected_cost_usd=None))
    bar(progress(total=None, left_s=None, expected_cost_usd=None, ended=True))
    assert "1,234/?" in out.getvalue()


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


WAITS = Waits(
    in_line=412,
    retrying=31,
    quota_use=0.97,
    quota_s=2.2,
    breaker_s=11.5,
    network="can't reach api.anthropic.com: connection refused",
)


@pytest.mark.parametrize(
    ("waits", "text"),
    [
        ({}, ""),
        ({"quota_use": 1.0, "quota_s": 3.0}, ""),
        ({"in_line": 412}, "412 in line"),
        ({"in_line": 1412, "quota_s": 0.0}, "1,412 in line"),
        ({"in_line": 412, "quota_s": 0.01}, "412 in line; quota used up for 1 s"),
        ({"in_line": 412, "quota_s": 119.2}, "412 in line; quota used up for 120 s"),
        ({"in_line": 412, "quota_s": 3725.0}, "412 in line; quota used up for 1:02:05"),
        ({"breaker_s": 11.5}, "circuit breaker open for 12 s"),
        ({"breaker_s": 0.0}, "circuit breaker open, trying again"),
        ({"retrying": 1031}, "1,031 to be tried again"),
        ({"network": "can't reach a: timed out"}, "can't reach a: timed out; trying again"),
    ],
)
def test_what_it_waits_for_is_told(waits: dict[str, Any], text: str) -> None:
    """By name and time; a quota that is used up matters only to those who want some of it."""
    assert waited(progress(waits=Waits(**waits))) == text


def test_at_its_end_it_waits_for_nothing() -> None:
    """Whatever else the client does then."""
    assert waited(progress(waits=WAITS, ended=True)) == ""


def test_lines_tell_what_it_waits_for() -> None:
    """Behind the numbers, while there is anything."""
    out = io.StringIO()
    show, _ = display(out)
    show(progress(waits=Waits(in_line=3)))
    show(progress(waits=Waits()))
    first, second = out.getvalue().splitlines()
    assert first.endswith(", 31 from the journal; waiting: 3 in line")
    assert second.endswith(", 31 from the journal")


def drawn(width: int, *snapshots: Progress) -> list[str]:
    """The last thing that a terminal of so many columns shows."""
    console = Console(file=Terminal(), force_terminal=True, width=width, record=True, color_system=None)
    bar = ProgressBar(console)
    for snapshot in snapshots:
        bar(snapshot)
        console.export_text(clear=True)
    bar._live.refresh()
    shown = console.export_text().splitlines()
    bar._live.stop()
    return shown


@pytest.mark.parametrize(
    ("width", "line"),
    [
        (
            120,
            f"{'━' * 10}{' ' * 10} 5,034/10,000 98/s, 1:02:05 left, 3 failed, 40 retried, $1.23 of about $10.20",
        ),
        (80, f"{'━' * 10}{' ' * 10} 5,034/10,000 98/s, 1:02:05 left, 3 failed, 40 retried, $1"),
        (40, f"{'━' * 5}{' ' * 5} 5,034/10,000 98/s, 1:02:05"),
        (30, f"{'━' * 3}╸{' ' * 3} 5,034/10,000 98/s"),
    ],
)
def test_a_bar_fits_its_terminal(width: int, line: str) -> None:
    """Bar, count and rate are whole; of the rest the end is cut off; below it stands all that the run waits for."""
    first, *below = drawn(width, progress(answered=5000, waits=WAITS))
    assert first.startswith(line)
    assert "…" in first
    assert " ".join(each.strip() for each in below) == f"Waiting: {waited(progress(waits=WAITS))}"
    assert all(len(each) <= width for each in (first, *below))


def test_a_bar_that_waits_for_nothing_is_one_line() -> None:
    """What it waited for before is gone."""
    assert len(drawn(80, progress(waits=WAITS), progress(waits=Waits(quota_use=0.5)))) == 1


@pytest.mark.parametrize(("total", "done", "filled"), [(10, 0, 0), (10, 10, 20), (10, 15, 20), (0, 0, 20)])
def test_the_bar_is_as_long_as_what_is_done(total: int, done: int, filled: int) -> None:
    """And no longer, if more is done than was said."""
    (line,) = drawn(80, progress(total=total, answered=done, failed=0, resumed=0, waits=Waits()))
    assert line.count("━") == filled


class Writes:
    """A stand-in for a stream that only writes, as a logger's or an editor's may be."""

    def __init__(self) -> None:
        self.text = ""

    def write(self, text: str) -> None:
        """Keep it."""
        self.text += text


class Fails(io.StringIO):
    """A stream whose other end is gone."""

    def __init__(self, error: Exception, *, terminal: bool, gone: bool = True) -> None:
        super().__init__()
        self._error, self._terminal = error, terminal
        self.gone = gone
        self.writes = 0

    def isatty(self) -> bool:
        return self._terminal

    def write(self, text: str) -> int:
        self.writes += 1
        if self.gone:
            raise self._error
        return len(text)


def closed(file: io.StringIO) -> io.StringIO:
    """Close a file."""
    file.close()
    return file


def detached() -> io.TextIOWrapper:
    """A stream that has lost what it wrote to."""
    file = io.TextIOWrapper(io.BytesIO())
    file.detach()
    return file


@pytest.mark.lengthy
@pytest.mark.parametrize(
    "stream",
    [
        lambda: None,
        lambda: closed(io.StringIO()),
        lambda: closed(Terminal()),
        detached,
        object,
        Writes,
        lambda: Fails(OSError(5, "gone"), terminal=False),
        lambda: Fails(OSError(5, "gone"), terminal=True),
        lambda: Fails(ValueError("I/O operation on closed file"), terminal=False),
        lambda: Fails(ValueError("I/O operation on closed file"), terminal=True),
    ],
    ids=[
        "none",
        "closed",
        "closed-terminal",
        "detached",
        "no-stream",
        "writes",
        "gone",
        "gone-terminal",
        "shut",
        "shut-terminal",
    ],
)
@pytest.mark.parametrize(
    "printed", [lambda: None, lambda: closed(io.StringIO()), detached], ids=["none", "closed", "detached"]
)
async def test_a_run_needs_no_console(
    stream: Callable[[], Any],
    printed: Callable[[], Any],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Whatever stands in the place of the standard streams, as in notebooks, services and windows without a console."""
    monkeypatch.setattr(sys, "stderr", stream())
    monkeypatch.setattr(sys, "stdout", replaced := printed())
    async with FanOut(
        Simulator().client(), ["x"], model="claude-haiku-5-5", max_tokens=9, progress=True, journal=tmp_path / "run"
    ) as results:
        assert [result.ok async for result in results] == [True]
    assert sys.stdout is replaced
    assert not caplog.messages


@pytest.mark.parametrize("printed", [lambda: None, lambda: closed(io.StringIO()), detached, Terminal])
def test_a_terminal_has_a_bar_wherever_the_output_goes(
    printed: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program may have closed its standard output, or never had one."""
    monkeypatch.setattr(sys, "stdout", printed())
    out = Terminal()
    show, _ = display(out)
    show(progress(ended=True))
    assert "1,234/10,000" in out.getvalue()


def test_what_only_writes_has_lines() -> None:
    """It is asked for nothing else."""
    out = Writes()
    show, _ = display(cast("Any", out))
    show(progress())
    assert "1,234 of 10,000 done" in out.text


@pytest.mark.parametrize("terminal", [False, True])
def test_a_terminal_that_is_gone_is_left_alone(terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing more is written, and what the program prints goes where it went before."""
    monkeypatch.setattr(sys, "stdout", printed := Terminal())
    file = Fails(OSError(5, "gone"), terminal=terminal, gone=False)
    show, _ = display(file)
    show(progress())
    file.gone = True
    show(progress())
    writes = file.writes
    show(progress())
    show(progress(ended=True))
    assert file.writes == writes
    assert sys.stdout is printed


def test_a_terminal_that_redraws_nothing_has_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """As those inside editors."""
    monkeypatch.setenv("TERM", "dumb")
    show, _ = display(Terminal())
    assert isinstance(show, ProgressLines)
