"""The journal: what came of every item, in a file that survives the process.

`journal` is what users hold; `file` is the file and its lock, `lines` says what stands in it, `checksum` whether that
is as it was written, `index` what of it counts and where, `notes` is the file beside it. `request` tells whether an
answer is that of the same request, `digests` keeps many ids in little memory.
"""

from __future__ import annotations

from penstock.batch.journal.index import Entry
from penstock.batch.journal.journal import Journal, logged_journal_errors

__all__ = ["Entry", "Journal", "logged_journal_errors"]
