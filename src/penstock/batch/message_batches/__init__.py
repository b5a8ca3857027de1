"""Many prompts at half the price: submitting, following and collecting message batches.

`batches` is what users hold; `run` reads the input and passes it on, `spool` and `submit` make batches of it, `follow`
polls and collects them, `ledger` notes in the journal what must survive a restart, `remote` is the API, `results_file`
reads what it made, `desk` is where results are delivered.
"""

from __future__ import annotations

from penstock.batch.message_batches.batches import MessageBatches

__all__ = ["MessageBatches"]
