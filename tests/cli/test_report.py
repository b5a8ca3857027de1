"""The table at the end of a run."""

from __future__ import annotations

from collections import Counter
from decimal import Decimal

from penstock.cli.report import Report, rows
from penstock.cli.tally import Tally


def example() -> Tally:
    """A run with everything in it."""
    tally = Tally()
    tally.answered = 1998
    tally.errors = Counter(InternalServerError=1, APIConnectionError=1)
    tally.retries = Counter(rate_limited=30, overloaded=100, server=20, connection=40, timeout=1, invalid=1)
    tally.failures = Counter(server=1, connection=1)
    tally.latencies_s = [1.0, 2.0, 3.0]
    tally.waits_s = [0.25]
    tally.input_tokens, tally.output_tokens = 1_234_567, 89
    tally.cost_usd = Decimal("1.23456")
    return tally


def test_every_number_stands_in_its_row() -> None:
    """Large numbers are grouped, failures named, times and shares rounded for the eye."""
    report = Report(tally=example(), asked=2000, elapsed_s=20.0, quota_used=("input_tokens", 0.9567))
    assert rows(report) == [
        ("Answered", "1,998 of 2,000"),
        ("Failed", "2   InternalServerError 1, APIConnectionError 1"),
        ("Retried", "192"),
        ("  429 seen", "30"),
        ("  5xx and 529 seen", "121"),
        ("  connection errors", "43"),
        ("Waited in line", "p50 0.25 s   p99 0.25 s"),
        ("Answered within", "p50 2.00 s   p99 3.00 s"),
        ("Tokens", "1,234,567 in   89 out"),
        ("Cost", "$1.2346"),
        ("Elapsed", "20.0 s   100 answers a second"),
        ("Quota used", "95.7% of the input tokens that the limits allowed"),
    ]


def test_an_unknown_quota_has_no_row() -> None:
    """The real API doesn't say what was possible, so nothing is claimed."""
    report = Report(tally=Tally(), asked=0, elapsed_s=0.0)
    assert "Quota used" not in dict(rows(report))
    assert dict(rows(report))["Failed"] == "0"
