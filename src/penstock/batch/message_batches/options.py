"""What may be said of a run through message batches.

The rule here: whatever is out of range is refused before anything is done, and names itself.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from penstock.batch.journal import Journal

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping
    from typing import Any

__all__ = ["check_journal_options", "check_seconds", "check_whole"]


def check_journal_options(
    journal: str | os.PathLike[str] | Journal | None, params: Mapping[str, Any], **of_the_journal: bool
) -> None:
    """Refuse options that need a journal without one, and what a batch can't do.

    Raises:
        ValueError: So it is.
    """
    if params.get("stream"):
        raise ValueError("a batch gives whole messages: leave stream out")
    for name, wanted in of_the_journal.items():
        if wanted and journal is None:
            raise ValueError(f"{name} needs a journal: give it journal='run.jsonl', or leave it out")
    if of_the_journal["keep_params"] and isinstance(journal, Journal):
        raise ValueError("keep_params belongs to a journal of your own: Journal(…, keep_params=True)")


def check_whole(name: str, value: object, most: float = math.inf) -> None:
    """Refuse what is no whole number from 1 up.

    Raises:
        ValueError: So it is.
    """
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
        limit = "up" if most == math.inf else f"to {most}"
        raise ValueError(f"{name} must be a whole number from 1 {limit}, not {value!r}")


def check_seconds(name: str, value: float | None) -> None:
    """Refuse what is no time.

    Raises:
        ValueError: So it is.
    """
    if value is not None and not 0 < value < math.inf:
        raise ValueError(f"{name} must be a finite number of seconds above 0, not {value!r}")
