"""Progress for people: a bar in a terminal, plain lines elsewhere.

The rule here: it goes to the standard error, never to the standard output, which belongs to the program; nothing of an
item is shown, only numbers. The bar needs rich (extra `cli`); without it there are plain lines in a terminal too. What
can't be written to shows nothing, and breaks nothing.
"""

from __future__ import annotations

import importlib.util
import math
import sys
from abc import ABC, abstractmethod
from contextlib import suppress
from decimal import Decimal
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.console import Console, Group

    from penstock.batch.progress import OnProgress, Progress

__all__ = ["ProgressBar", "ProgressLines", "display", "draws_bar", "told", "waited"]

_LINE_EVERY_S = 5.0
_BAR_EVERY_S = 0.25
_LEAST_USD = Decimal("0.0001")
_WIDEST_BAR = 20


def display(file: TextIO | None = None) -> tuple[OnProgress, float]:
    """Return what shows progress, and how often it wants to, in seconds.

    Args:
        file: Where to; the standard error by default.
    """
    out: TextIO | None = sys.stderr if file is None else file
    if out is None or not _is_open(out):
        return _nowhere, _LINE_EVERY_S
    if draws_bar(out):
        from rich.console import Console  # noqa: PLC0415 - belongs to an extra

        console = Console(file=out, force_terminal=True, force_jupyter=False)
        if not console.is_dumb_terminal:
            return ProgressBar(console), _BAR_EVERY_S
    return ProgressLines(out), _LINE_EVERY_S


def draws_bar(file: TextIO | None) -> bool:
    """Whether progress there is a bar, but in a terminal that can't place one."""
    return _is_terminal(file) and importlib.util.find_spec("rich") is not None


def _nowhere(_: Progress) -> None:
    """Show nothing: a program without a console has no standard error."""


def _is_open(file: TextIO) -> bool:
    """Whether it can be written to; what stands in for a stream may know `write` alone, a detached one nothing."""
    try:
        return callable(getattr(file, "write", None)) and not getattr(file, "closed", False)
    except ValueError:
        return False


def _is_terminal(file: TextIO | None) -> bool:
    try:
        return file is not None and file.isatty()
    except (AttributeError, ValueError):
        return False


class _Shown(ABC):
    """What shows snapshots until it can't any more: its file was closed, or the terminal is gone."""

    _lost = False

    def __call__(self, progress: Progress) -> None:
        """Show a snapshot."""
        if self._lost:
            return
        try:
            self._show(progress)
        except (OSError, ValueError):
            self._lost = True
            with suppress(OSError, ValueError):
                self._leave()

    @abstractmethod
    def _show(self, progress: Progress) -> None: ...

    @abstractmethod
    def _leave(self) -> None:
        """Put back what it has changed."""


class ProgressLines(_Shown):
    """A line each time."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def __repr__(self) -> str:
        return "<ProgressLines>"

    def _show(self, progress: Progress) -> None:
        of = "" if progress.total is None else f" of {progress.total:,}"
        waits = waited(progress)
        self._file.write(
            f"{_time(progress.elapsed_s)}  {progress.done:,}{of} done, {told(progress)}"
            f"{'; waiting: ' if waits else ''}{waits}\n"
        )
        if hasattr(self._file, "flush"):
            self._file.flush()

    def _leave(self) -> None:
        """Nothing was changed."""


class ProgressBar(_Shown):
    """A bar that stays in its place; what the program prints to the same terminal goes above it.

    Below it stands what the run waits for, while it waits.

    Args:
        console: Where to.
    """

    def __init__(self, console: Console) -> None:
        from rich.live import Live  # noqa: PLC0415 - belongs to an extra

        self._live = Live(
            console=console,
            # Drawn when it is told, by whoever tells: it starts no thread.
            auto_refresh=False,
            # Output that goes elsewhere, to a file or a pipe, must not end up in the terminal.
            redirect_stdout=_is_terminal(sys.stdout),
            redirect_stderr=False,
        )
        self._begun = False

    def __repr__(self) -> str:
        return "<ProgressBar>"

    def _show(self, progress: Progress) -> None:
        if not self._begun:
            self._begun = True
            self._live.start()
        self._live.update(_drawn(progress, width=self._live.console.width), refresh=True)
        if progress.ended:
            self._live.stop()

    def _leave(self) -> None:
        self._live.stop()


def _drawn(progress: Progress, *, width: int) -> Group:
    """Return a line that fits, in which the end of the numbers may be cut off, and below it what it waits for."""
    from rich.console import Group  # noqa: PLC0415 - belongs to an extra
    from rich.progress_bar import ProgressBar as Bar  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    bar_width = min(width // 4, _WIDEST_BAR)
    line = Table.grid(padding=(0, 1))
    line.add_column()
    line.add_column(no_wrap=True)
    line.add_column()
    line.add_row(
        Bar(total=progress.total, completed=progress.done, width=bar_width),
        Text(f"{progress.done:,}/{'?' if progress.total is None else format(progress.total, ',')}"),
        Text(told(progress), style="dim", no_wrap=True, overflow="ellipsis"),
    )
    waits = waited(progress)
    return Group(line, Text(f"Waiting: {waits}", style="yellow")) if waits else Group(line)


def told(progress: Progress) -> str:
    """Return what there is to tell beside the number of items that are done; what matters most stands first.

    Example:
        >>> from penstock.batch.progress import Tally
        >>> told(Tally(total=None).snapshot())
        '0.0/s, 0 in, 0 out'
    """
    use = progress.waits.quota_use
    parts = [
        f"{progress.rate_per_s:.1f}/s" if progress.rate_per_s < 10 else f"{progress.rate_per_s:,.0f}/s",
        "" if progress.left_s is None or progress.ended else f"{_time(progress.left_s)} left",
        f"{progress.failed:,} failed" if progress.failed else "",
        f"{progress.retried:,} retried" if progress.retried else "",
        _cost(progress),
        "" if use is None else f"quota {use:.0%}",
        f"{_short(progress.input_tokens)} in",
        f"{_short(progress.output_tokens)} out",
        f"{progress.resumed:,} from the journal" if progress.resumed else "",
    ]
    return ", ".join(part for part in parts if part)


def waited(progress: Progress) -> str:
    """Return what it waits for; empty if for nothing but answers, or if it has ended.

    Example:
        >>> from penstock.batch.progress import Tally, Waits
        >>> tally = Tally(total=None, waits=lambda now: Waits(in_line=40, quota_s=2.4, breaker_s=12))
        >>> tally.begin(lambda: 0.0)
        >>> waited(tally.snapshot())
        'circuit breaker open for 12 s; 40 in line; quota used up for 3 s'
    """
    waits = progress.waits
    if progress.ended:
        return ""
    parts = [
        "" if waits.network is None else f"{waits.network}; trying again",
        _breaker(waits.breaker_s),
        f"{waits.retrying:,} to be tried again" if waits.retrying else "",
        f"{waits.in_line:,} in line" if waits.in_line else "",
        f"quota used up for {_seconds(waits.quota_s)}" if waits.in_line and waits.quota_s else "",
    ]
    return "; ".join(part for part in parts if part)


def _breaker(open_s: float | None) -> str:
    if open_s is None:
        return ""
    return f"circuit breaker open for {_seconds(open_s)}" if open_s else "circuit breaker open, trying again"


def _seconds(seconds: float) -> str:
    """Return a wait: whole seconds, rounded up, so that none reads as no time."""
    return f"{math.ceil(seconds)} s" if seconds <= 120 else _time(seconds)


def _cost(progress: Progress) -> str:
    if not progress.cost_usd:
        return ""
    if progress.expected_cost_usd is None or progress.ended:
        return _usd(progress.cost_usd)
    if progress.expected_cost_usd < _LEAST_USD:
        return _usd(progress.expected_cost_usd)
    return f"{_usd(progress.cost_usd)} of about {_usd(progress.expected_cost_usd)}"


def _usd(amount: Decimal) -> str:
    if amount < _LEAST_USD:
        return f"less than ${_LEAST_USD}"
    return f"${amount:.2f}" if amount >= 1 else f"${amount:.4f}"


def _short(count: float) -> str:
    for unit in ("", "k", "M"):
        if count < 1000:
            return f"{count:.3g}{unit}"
        count /= 1000
    return f"{count:.3g}G"


def _time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
