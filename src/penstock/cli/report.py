"""The table at the end of a run.

The rule here: numbers become text here and nowhere else, and a row that has nothing to tell is left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from penstock.cli.tally import percentile

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Sequence

    from penstock.cli.tally import Tally

__all__ = ["Report", "rows"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """A run that is over.

    Attributes:
        tally: What it came to.
        asked: Number of items.
        elapsed_s: How long it took.
        quota_used: The limit that held it back, and the share of it that was used; `None` if unknown.
    """

    tally: Tally
    asked: int
    elapsed_s: float
    quota_used: tuple[str, float] | None = None


def rows(report: Report) -> list[tuple[str, str]]:
    """Return the table as names and values.

    Example:
        >>> from penstock.cli.tally import Tally
        >>> dict(rows(Report(tally=Tally(), asked=2, elapsed_s=0.5)))["Answered"]
        '0 of 2'
    """
    tally = report.tally
    lines = [
        ("Answered", f"{tally.answered:,} of {report.asked:,}"),
        ("Failed", _failed(tally.errors)),
        ("Retried", f"{tally.retries.total():,}"),
        ("  429 seen", f"{tally.seen('rate_limited', 'spend_cap'):,}"),
        ("  5xx and 529 seen", f"{tally.seen('overloaded', 'server'):,}"),
        ("  connection errors", f"{tally.seen('connection', 'timeout', 'invalid'):,}"),
        ("Waited in line", _spread(tally.waits_s)),
        ("Answered within", _spread(tally.latencies_s)),
        ("Tokens", f"{tally.input_tokens:,} in   {tally.output_tokens:,} out"),
        ("Cost", f"${tally.cost_usd:.4f}"),
        ("Elapsed", f"{report.elapsed_s:.1f} s   {tally.answered / max(report.elapsed_s, 0.001):.0f} answers a second"),
    ]
    if report.quota_used is not None:
        name, share = report.quota_used
        lines.append(("Quota used", f"{share:.1%} of the {name.replace('_', ' ')} that the limits allowed"))
    return lines


def _failed(errors: Counter[str]) -> str:
    names = ", ".join(f"{name} {count:,}" for name, count in errors.most_common())
    return f"{errors.total():,}   {names}" if names else "0"


def _spread(seconds: Sequence[float]) -> str:
    return f"p50 {percentile(seconds, 0.5):.2f} s   p99 {percentile(seconds, 0.99):.2f} s"
