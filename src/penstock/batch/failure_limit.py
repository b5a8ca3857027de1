"""When a fan-out gives up.

The rule here: failures count when they are delivered, so that whoever reads the results sees what led to the end.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, cast

from penstock.errors import TooManyFailures

if TYPE_CHECKING:
    from penstock.batch.result import FanOutResult

__all__ = ["FailureLimit"]

# So many finished items tell a share.
_ENOUGH: Final = 20


class FailureLimit:
    """Raises when too much has failed.

    Args:
        fail_fast: Whether the first failure is too much.
        max_failures: A count from 0 up that may fail, or a share between 0 and 1 of the finished ones; `None` for all.

    Raises:
        ValueError: `max_failures` is neither.

    Example:
        >>> from penstock import FanOutResult
        >>> limit = FailureLimit(fail_fast=False, max_failures=0)
        >>> limit.count(FanOutResult(custom_id="a", index=0, error=ValueError("no")))
        Traceback (most recent call last):
        ...
        penstock.errors.TooManyFailures: 1 of 1 items failed, ...
    """

    __slots__ = ("_fail_fast", "_failed", "_finished", "_most", "_share")

    def __init__(self, *, fail_fast: bool, max_failures: float | None) -> None:
        given = cast("object", max_failures)
        count = isinstance(given, int) and not isinstance(given, bool) and given >= 0
        share = isinstance(given, float) and 0 < given < 1
        if given is not None and not count and not share:
            raise ValueError(f"max_failures must be a count from 0 up, or a share between 0 and 1, not {given!r}")
        self._fail_fast = fail_fast
        self._most = max_failures
        self._share = share
        self._failed = self._finished = 0

    def __repr__(self) -> str:
        return f"<FailureLimit {self._most}, {self._failed} of {self._finished} failed>"

    def count(self, result: FanOutResult) -> None:
        """Count a result of this run; what an earlier one left would stop a program that is started again at once.

        Raises:
            TooManyFailures: More failed than may.
            Exception: The first failure, with `fail_fast`.
        """
        if result.replayed:
            return
        self._finished += 1
        if result.error is None:
            return
        self._failed += 1
        if self._fail_fast:
            raise result.error
        if self._exceeded():
            raise TooManyFailures(failed=self._failed, finished=self._finished) from result.error

    def _exceeded(self) -> bool:
        if self._most is None:
            return False
        if self._share:
            return self._finished >= _ENOUGH and self._failed > self._most * self._finished
        return self._failed > self._most
