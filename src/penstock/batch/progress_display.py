"""Progress for people: a bar in a terminal, plain lines elsewhere.

The rule here: it goes to the standard error, never to the standard output, which belongs to the program; nothing of an
item is shown, only numbers. The bar needs rich (extra `cli`); without it there are plain lines in a terminal too.
"""

from __future__ import annotations

import importlib.util
import sys
from decimal import Decimal
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.console import Console

    from penstock.batch.progress import OnProgress, Progress

__all__ = ["ProgressBar", "ProgressLines", "display", "told"]

_LINE_EVERY_S = 5.0
_BAR_EVERY_S = 0.25
_LEAST_USD = Decimal("0.0001")


def display(file: TextIO | None = None) -> tuple[OnProgress, float]:
    """Return what shows progress, and how often it wants to, in seconds.

    Args:
        file: Where to; the standard error by default.
    """
    out: TextIO | None = sys.stderr if file is None else file
    if out is None or out.closed:
        return _nowhere, _LINE_EVERY_S
    if out.isatty() and importlib.util.find_spec("rich") is not None:
        from rich.console import Console  # noqa: PLC0415 - belongs to an extra

        return ProgressBar(Console(file=out, force_terminal=True)), _BAR_EVERY_S
    return ProgressLines(out), _LINE_EVERY_S


def _nowhere(_: Progress) -> None:
    """Show nothing: a program without a console has no standard error."""


class ProgressLines:
    """A line each time."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def __repr__(self) -> str:
        return "<ProgressLines>"

    def __call__(self, progress: Progress) -> None:
        """Show a snapshot."""
        of = "" if progress.total is None else f" of {progress.total:,}"
        self._file.write(f"{_time(progress.elapsed_s)}  {progress.done:,}{of} done, {told(progress)}\n")
        self._file.flush()


class ProgressBar:
    """A bar that stays in its place; what the program prints to the same terminal goes above it.

    Args:
        console: Where to.
    """

    def __init__(self, console: Console) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn  # noqa: PLC0415 - belongs to an extra
        from rich.progress import Progress as Bar  # noqa: PLC0415
        from rich.table import Column  # noqa: PLC0415

        self._bar = Bar(
            BarColumn(bar_width=20, table_column=Column(min_width=8)),
            MofNCompleteColumn(table_column=Column(min_width=17, no_wrap=True)),
            # In a narrow terminal the end is cut off, so what matters most stands first.
            TextColumn("{task.description}", style="dim", markup=False, table_column=Column(no_wrap=True)),
            console=console,
            # Drawn when it is told, by whoever tells: it starts no thread.
            auto_refresh=False,
            # Output that goes elsewhere, to a file or a pipe, must not end up in the terminal.
            redirect_stdout=sys.stdout.isatty(),
            redirect_stderr=False,
        )
        self._task = self._bar.add_task("", total=None)
        self._begun = False

    def __repr__(self) -> str:
        return "<ProgressBar>"

    def __call__(self, progress: Progress) -> None:
        """Show a snapshot."""
        if not self._begun:
            self._begun = True
            self._bar.start()
        self._bar.update(
            self._task, completed=progress.done, total=progress.total, description=told(progress), refresh=True
        )
        if progress.ended:
            self._bar.stop()


def told(progress: Progress) -> str:
    """Return what there is to tell beside the number of items that are done.

    Example:
        >>> from penstock.batch.progress import Tally
        >>> told(Tally(total=None).snapshot())
        '0.0/s, 0 in, 0 out'
    """
    parts = [
        f"{progress.rate_per_s:.1f}/s" if progress.rate_per_s < 10 else f"{progress.rate_per_s:,.0f}/s",
        "" if progress.left_s is None or progress.ended else f"{_time(progress.left_s)} left",
        f"{progress.failed:,} failed" if progress.failed else "",
        f"{progress.retried:,} retried" if progress.retried else "",
        _cost(progress),
        "" if progress.quota_use is None else f"quota {progress.quota_use:.0%}",
        f"{_short(progress.input_tokens)} in",
        f"{_short(progress.output_tokens)} out",
        f"{progress.resumed:,} from the journal" if progress.resumed else "",
    ]
    return ", ".join(part for part in parts if part)


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
