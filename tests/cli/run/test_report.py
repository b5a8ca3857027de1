"""What a run says of itself."""

from __future__ import annotations

import dataclasses
from decimal import Decimal

import pytest

from penstock import FanOutResult
from penstock.batch.progress import Tally
from penstock.cli.run.report import Failures, summary


def failed(custom_id: str, error: Exception) -> FanOutResult:
    """A result that is none."""
    return FanOutResult(custom_id=custom_id, index=0, error=error)


def test_failures_are_counted_by_name() -> None:
    """All failures are counted, the most frequent first, and the first one's text is told."""
    failures = Failures()
    failures.add(FanOutResult(custom_id="good", index=0))
    failures.add(failed("a", ValueError("bad\nvalue")))
    failures.add(failed("b", OSError("gone")))
    failures.add(failed("c", OSError("gone")))
    assert len(failures) == 3
    assert repr(failures) == "<Failures 3>"
    assert failures.line() == "OSError 2, ValueError 1; the first was 'a': bad value"


@pytest.mark.parametrize(
    ("cost", "told"),
    [
        ("0", "0 out"),
        ("0.00001", "0 out, less than $0.0001"),
        ("0.0001", "0 out, $0.0001"),
        ("12.3", "0 out, $12.3000"),
    ],
)
def test_the_cost_is_told_if_there_is_one(cost: str, told: str) -> None:
    """A cost that is known is told, however small."""
    progress = dataclasses.replace(Tally(total=None).snapshot(), cost_usd=Decimal(cost), resumed=1200, elapsed_s=75.0)
    assert summary(progress) == f"0 answered, 0 failed, 1,200 there before in 1 min 15 s; 0 tokens in, {told}"


@pytest.mark.parametrize(("seconds", "told"), [(0.04, "0.0 s"), (60, "1 min 0 s"), (90_000, "25 h 0 min 0 s")])
def test_times_are_told_as_people_do(seconds: float, told: str) -> None:
    """Up to a minute there are tenths of seconds, from then on minutes, then hours."""
    assert f" in {told};" in summary(dataclasses.replace(Tally(total=None).snapshot(), elapsed_s=seconds))
