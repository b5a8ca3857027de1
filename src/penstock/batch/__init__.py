"""Many prompts at once.

`fan_out` runs them concurrently over any `AsyncAnthropic`, governed or not; `result` is what comes of each; `journal`
keeps that in a file, from which a later run goes on; `progress` tells how far it is. `message_batches` asks at half the
price, within a day.
"""

from __future__ import annotations

from penstock.batch.ask_all import ask_all
from penstock.batch.fan_out import FanOut
from penstock.batch.journal import Journal
from penstock.batch.message_batches import MessageBatches
from penstock.batch.progress import Progress, Waits
from penstock.batch.result import DeadLetter, FanOutResult, Result

__all__ = [
    "DeadLetter",
    "FanOut",
    "FanOutResult",
    "Journal",
    "MessageBatches",
    "Progress",
    "Result",
    "Waits",
    "ask_all",
]
