"""What a run through message batches is told: sizes, attempts, times.

The rule here: whatever is out of range is refused before anything is done, and names itself.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from penstock.batch.run import check_whole

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["MOST_BYTES", "MOST_REQUESTS", "Plan"]

MOST_REQUESTS: Final = 100_000
# 256 MB, less what the body has around its requests.
MOST_BYTES: Final = 255_000_000
_LEAST_LIVE_S: Final = 60.0
_OF_THE_SDK: Final = ("extra_headers", "extra_query")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How a run goes.

    Attributes:
        batch_size: Requests in a batch at most.
        batch_bytes: Bytes in a batch at most.
        max_attempts: How often a request is submitted at most.
        poll_s: Seconds until a batch is looked at for the first time.
        deadline_s: Seconds until all must be over; `None` for no bound.
        live_s: Seconds before the deadline from when on what remains is asked live; `None` for the default.
        concurrency: Of what is asked live.
        params: Of every request.

    Raises:
        ValueError: A number is out of its range.

    Example:
        >>> Plan(deadline_s=3600).live_for(3600), Plan(deadline_s=3600, live_s=5).live_for(3600)
        (360.0, 5)
    """

    batch_size: int = MOST_REQUESTS
    batch_bytes: int = MOST_BYTES
    max_attempts: int = 3
    poll_s: float = 5.0
    deadline_s: float | None = None
    live_s: float | None = None
    concurrency: int = 64
    params: Mapping[str, Any] = field(default_factory=dict[str, Any], repr=False)

    def __post_init__(self) -> None:
        check_whole("batch_size", self.batch_size, MOST_REQUESTS)
        check_whole("batch_bytes", self.batch_bytes, MOST_BYTES)
        check_whole("max_attempts", self.max_attempts)
        check_whole("concurrency", self.concurrency)
        _check_seconds("poll_s", self.poll_s)
        _check_seconds("deadline_s", self.deadline_s)
        _check_seconds("live_s", self.live_s)

    @property
    def sending(self) -> dict[str, Any]:
        """What the SDK is to send with each submission, and with what is asked live."""
        return {name: self.params[name] for name in _OF_THE_SDK if self.params.get(name) is not None}

    def live_for(self, left_s: float) -> float:
        """Return for how many of the last seconds everything is asked live, if so many are left."""
        if left_s == math.inf:
            return 0.0
        return max(left_s / 10, _LEAST_LIVE_S) if self.live_s is None else self.live_s


def _check_seconds(name: str, value: float | None) -> None:
    if value is not None and not 0 < value < math.inf:
        raise ValueError(f"{name} must be a finite number of seconds above 0, not {value!r}")
