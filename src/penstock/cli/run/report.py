"""What a run says of itself on the standard error: how far it is, and what it came to.

The rule here: a line tells numbers, the names of errors, and of one failure what the API said; text from outside is
shown without its control characters.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from decimal import Decimal
from typing import TYPE_CHECKING, Final, Self, cast

import anthropic
import anyio

from penstock.batch.progress import ProgressReporter, Tally, quota_use
from penstock.batch.progress_display import display

if TYPE_CHECKING:
    from types import TracebackType

    from penstock.batch.progress import Progress
    from penstock.batch.result import FanOutResult
    from penstock.client import Client

__all__ = ["Failures", "Watch", "explained", "shown", "summary"]

_LONGEST: Final = 300
_LEAST_USD: Final = Decimal("0.0001")


def shown(text: str, *, longest: int = _LONGEST) -> str:
    r"""Return a text on one line, without control characters, and not too long.

    Example:
        >>> shown("two\nlines \x1b[31mred", longest=14)
        'two lines  [31…'
    """
    line = "".join(character if character.isprintable() else " " for character in text)
    return line if len(line) <= longest else f"{line[:longest]}…"


def explained(error: Exception) -> str:
    """Return what is wrong, in the API's own words where it has said so.

    Example:
        >>> explained(TimeoutError("too late"))
        'too late'
    """
    body: object = error.body if isinstance(error, anthropic.APIStatusError) else None
    told: object = cast("Mapping[str, object]", body).get("error") if isinstance(body, Mapping) else None
    if not isinstance(error, anthropic.APIStatusError) or not isinstance(told, Mapping):
        return str(error) or type(error).__name__
    fields = cast("Mapping[str, object]", told)
    return f"{error.status_code} {fields.get('type')}: {fields.get('message')}"


class Failures:
    """Counts what failed, by the name of the error, and keeps the first one's text."""

    def __init__(self) -> None:
        self._names: Counter[str] = Counter()
        self._first = ""

    def __repr__(self) -> str:
        return f"<Failures {self._names.total()}>"

    def add(self, result: FanOutResult) -> None:
        """Count a result, if it failed."""
        if result.error is None:
            return
        if not self._names:
            self._first = f"{result.custom_id!r}: {explained(result.error)}"
        self._names[type(result.error).__name__] += 1

    def __len__(self) -> int:
        return self._names.total()

    def line(self) -> str:
        """Return what failed, and how the first one did."""
        names = ", ".join(f"{name} {count:,}" for name, count in self._names.most_common())
        return f"{names}; the first was {shown(self._first)}"


class Watch:
    """Counts what a run comes to, and shows it for as long as an `async with` block lasts.

    Args:
        total: Requests in all; `None` if unknown.
        claude: Asks them.
        shows: Whether to show how far it is.

    Attributes:
        tally: The counts.
        failures: What failed.
    """

    def __init__(self, *, total: int | None, claude: Client, shows: bool) -> None:
        self.tally = Tally(
            total=total, now=anyio.current_time(), quota_use=lambda: quota_use(claude.statistics().admission)
        )
        self.failures = Failures()
        self._shows = shows
        self._reporter = ProgressReporter(self.tally, [display()] if shows else [])
        self._group = anyio.create_task_group()

    def __repr__(self) -> str:
        return f"<Watch {self.tally!r}>"

    async def __aenter__(self) -> Self:
        """Begin to show it."""
        await self._group.__aenter__()
        if self._shows:
            self._group.start_soon(self._reporter.run)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Show how it ended."""
        self._group.cancel_scope.cancel()
        try:
            # Without the block's exception, which would come out wrapped in an ExceptionGroup.
            await self._group.__aexit__(None, None, None)
        finally:
            self._reporter.end()

    def add(self, result: FanOutResult) -> None:
        """Count a result."""
        self.tally.add(result)
        self.failures.add(result)

    def summary(self) -> str:
        """Return what it came to."""
        return summary(self.tally.snapshot(now=anyio.current_time(), ended=True))


def summary(progress: Progress) -> str:
    """Return what a run came to.

    Example:
        >>> from penstock.batch.progress import Tally
        >>> summary(Tally(total=2).snapshot())
        '0 answered, 0 failed in 0.0 s; 0 tokens in, 0 out'
    """
    before = f", {progress.resumed:,} there before" if progress.resumed else ""
    counts = f"{progress.answered:,} answered, {progress.failed:,} failed{before} in {_duration(progress.elapsed_s)}"
    return f"{counts}; {progress.input_tokens:,} tokens in, {progress.output_tokens:,} out{_cost(progress.cost_usd)}"


def _cost(cost_usd: Decimal) -> str:
    if not cost_usd:
        return ""
    return f", ${cost_usd:.4f}" if cost_usd >= _LEAST_USD else f", less than ${_LEAST_USD}"


def _duration(seconds: float) -> str:
    """Return a time.

    Example:
        >>> _duration(4.25), _duration(75), _duration(3725)
        ('4.2 s', '1 min 15 s', '1 h 2 min 5 s')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min {rest} s" if hours else f"{minutes} min {rest} s"
