"""Many prompts at once.

`fan_out` runs them concurrently over any `AsyncAnthropic`, governed or not; `result` is what comes of each.
"""

from __future__ import annotations

from penstock.batch.fan_out import FanOut
from penstock.batch.result import FanOutResult

__all__ = ["FanOut", "FanOutResult"]
