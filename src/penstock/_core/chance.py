"""The chance of clients: jitter, and which key.

The rule here: it has no state. A generator with one is copied with the process that forks, so that all workers of a
server would wait equally long, and come back at the same instant; the system's own differs for everybody.
"""

from __future__ import annotations

import random
from typing import Final

__all__ = ["CHANCE"]

CHANCE: Final[random.Random] = random.SystemRandom()
"""For whoever is given no generator of its own (tests give one that is seeded)."""
