from __future__ import annotations

from typing import Any

import pytest

from penstock import FanOutResult, TooManyFailures
from penstock.batch.failure_limit import FailureLimit

ERROR = ValueError("no")


def counted(limit: FailureLimit, outcomes: str) -> tuple[int, TooManyFailures | None]:
    """Count outcomes (`.` answered, `x` failed) until it raises: how many were counted before, and the error."""
    for number, outcome in enumerate(outcomes):
        try:
            limit.count(FanOutResult(custom_id="a", index=number, error=ERROR if outcome == "x" else None))
        except TooManyFailures as error:
            return number, error
    return len(outcomes), None


@pytest.mark.parametrize(
    ("most", "outcomes", "ends_at"),
    [
        (None, "x" * 100, 100),
        (0, "...x.", 3),
        (2, "x.x...x.", 6),
        (0.5, "x" * 19, 19),
        (0.5, "x" * 30, 19),
        (0.5, ".x" * 40, 80),
        (0.5, ".x" * 20 + "x", 40),
        (0.1, "." * 100 + "x" * 12, 111),
    ],
)
def test_too_many_is_more_than_may(most: float | None, outcomes: str, ends_at: int) -> None:
    """A count is exceeded at once, a share when enough are finished to tell."""
    number, error = counted(FailureLimit(fail_fast=False, max_failures=most), outcomes)
    assert number == ends_at
    if error is not None:
        assert error.__cause__ is ERROR
        assert (error.finished, error.failed) == (number + 1, outcomes[: number + 1].count("x"))


def test_fail_fast_raises_the_failure_itself() -> None:
    """Whatever else may fail."""
    limit = FailureLimit(fail_fast=True, max_failures=5)
    limit.count(FanOutResult(custom_id="a", index=0))
    with pytest.raises(ValueError, match="no") as raised:
        limit.count(FanOutResult(custom_id="a", index=1, error=ERROR))
    assert raised.value is ERROR
    assert repr(limit) == "<FailureLimit 5, 1 of 2 failed>"


@pytest.mark.parametrize("most", [-1, 0.0, 1.0, 1.5, True, "3", float("nan")])
def test_a_limit_that_is_none_is_refused(most: Any) -> None:
    """A count or a share."""
    with pytest.raises(ValueError, match="max_failures must be a count from 0 up, or a share between 0 and 1"):
        FailureLimit(fail_fast=False, max_failures=most)


@pytest.mark.parametrize("fail_fast", [False, True])
def test_failures_of_an_earlier_run_dont_count(fail_fast: bool) -> None:
    """A program that stopped for them, and is started again, gets as far as the rest."""
    limit = FailureLimit(fail_fast=fail_fast, max_failures=0)
    for number in range(10):
        limit.count(FanOutResult(custom_id="a", index=number, error=ERROR, replayed=True))
    with pytest.raises((TooManyFailures, ValueError)):
        limit.count(FanOutResult(custom_id="b", index=10, error=ERROR))
