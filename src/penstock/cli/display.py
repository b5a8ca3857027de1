"""What a run looks like: live in a terminal, plain lines anywhere else.

The rule here: everything goes to the one console, and text from outside is shown without its control characters.
"""

from __future__ import annotations

import sys
import textwrap
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeAlias

from rich import box
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence
    from typing import IO


__all__ = ["Display", "clean"]

Grow: TypeAlias = "Callable[[str], None]"


def clean(text: str) -> str:
    r"""Return a text on one line, without control characters.

    Example:
        >>> clean("two\nlines \x1b[31mred")
        'two lines  [31mred'
    """
    return "".join(character if character.isprintable() else " " for character in text)


class Display:
    """Shows a run.

    Args:
        file: Where to; standard output by default.
        animated: Whether lines may be redrawn; by default, if `file` is a terminal.

    Attributes:
        animated: Whether they may.
    """

    def __init__(self, file: IO[str] | None = None, *, animated: bool | None = None) -> None:
        out: IO[str] = sys.stdout if file is None else file
        # Not left to the environment: FORCE_COLOR would send control characters to a file.
        self._console = Console(file=out, force_terminal=out.isatty(), highlight=False, markup=False, emoji=False)
        redrawable = self._console.is_terminal and not self._console.is_dumb_terminal
        self.animated = redrawable if animated is None else animated

    def __repr__(self) -> str:
        return f"<Display {'animated' if self.animated else 'plain'}, {self._console.width} columns>"

    def line(self, text: str = "", style: str = "") -> None:
        """Show a line; a long one is wrapped between words."""
        self._console.print(Text(text, style=style))

    def facts(self, rows: Sequence[tuple[str, str]]) -> None:
        """Show rows of a name and a value."""
        indent = max(len(name) for name, _ in rows) + 2
        for name, value in rows:
            first, *more = textwrap.wrap(value, self._console.width - indent)
            self._console.print(Text.assemble((name.ljust(indent), "dim"), first))
            for line in more:
                self._console.print(Text(" " * indent + line))

    def table(self, rows: Sequence[tuple[str, str]], *, good: bool) -> None:
        """Show rows of a name and a value as a table, the first row coloured as `good` or bad news."""
        table = Table(box=box.ROUNDED, border_style="dim", show_header=False)
        for index, (name, value) in enumerate(rows):
            style = "" if index else "bold green" if good else "bold red"
            table.add_row(Text(name, style="" if index else "bold"), Text(value, style=style))
        self._console.print(table)

    @contextmanager
    def growing(self) -> Generator[Grow]:
        """Show a text while it comes, piece by piece."""
        if not self.animated:
            try:
                yield lambda piece: self._console.out(clean(piece), end="", highlight=False)
            finally:
                self.line()
            return
        text = Text()
        with Live(text, console=self._console, refresh_per_second=20, vertical_overflow="visible"):
            yield lambda piece: _append(text, piece)


def _append(text: Text, piece: str) -> None:
    text.append(clean(piece))
