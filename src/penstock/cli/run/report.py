"""What a run says of itself on the standard error: how far it is, and what it came to.

The rule here: a line tells numbers, the names of errors, and of one failure what the API said; text from outside is
shown without its control characters (`penstock.batch.result.reason_of`).
"""

from __future__ import annotations

from collections import Counter
from decimal import Decimal
from typing import TYPE_CHECKING, Final

from penstock.batch.result import is_account_refused, reason_of

if TYPE_CHECKING:
    from penstock.batch.progress import Progress
    from penstock.batch.result import FanOutResult

__all__ = ["Failures", "summary"]

_LEAST_USD: Final = Decimal("0.0001")


class Failures:
    """Counts what failed, by the name of the error, and keeps the first one's text.

    Attributes:
        of_account: Those whose account was refused.
    """

    def __init__(self) -> None:
        self.of_account = 0
        self._names: Counter[str] = Counter()
        self._first = ""

    def __repr__(self) -> str:
        return f"<Failures {self._names.total()}>"

    def add(self, result: FanOutResult) -> None:
        """Count a result, if it failed."""
        if result.error is None:
            return
        if not self._names:
            self._first = f"{result.custom_id!r}: {reason_of(result.error)}"
        self._names[type(result.error).__name__] += 1
        self.of_account += is_account_refused(result.error)

    def __len__(self) -> int:
        return self._names.total()

    def line(self) -> str:
        """Return what failed, and how the first one did."""
        names = ", ".join(f"{name} {count:,}" for name, count in self._names.most_common())
        return f"{names}; the first was {self._first}"


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
