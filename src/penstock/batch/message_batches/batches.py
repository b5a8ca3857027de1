"""Message batches: many prompts at half the price, within a day.

The rule here: what was submitted is paid for, so it is never lost: with a journal, whoever comes back collects it;
without one, leaving stops it. Same input, same journal, same results as `penstock.batch.fan_out`, in the order in
which they come.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Unpack

from penstock._core.chance import CHANCE
from penstock.batch.message_batches.engine import Batches
from penstock.batch.message_batches.plan import MOST_BYTES, MOST_REQUESTS, Plan
from penstock.batch.message_batches.requests import BatchIntake
from penstock.batch.run import Model, Run, RunOptions, first_of

if TYPE_CHECKING:
    import os
    import random
    from collections.abc import AsyncIterable, Callable, Iterable

    from anthropic import AsyncAnthropic, NotGiven, Omit

    from penstock._core.params import ItemParams
    from penstock.batch.items import Request
    from penstock.batch.journal import Journal
    from penstock.batch.progress import OnProgress, Waits

__all__ = ["MessageBatches"]


class MessageBatches(Run[Model]):
    """Runs requests through message batches: `async with` it, iterate over it.

    Args:
        sdk: The client that sends them, governed or not.
        requests: As for a fan-out: plain prompts, or mappings with `custom_id` and `params`; read lazily, one batch at
            a time.
        journal: A file, or an open `Journal`, that holds results and batches across runs. With one, leaving the block
            lets batches run on, and the next run collects them; without, leaving stops them.
        retry_failed: Ask again what failed in an earlier run.
        replay: Give results of earlier runs too.
        keep_params: Whether the journal keeps the params of failed items.
        output_format: A type that answers are to fit; see `FanOutResult.parsed`.
        batch_size: Requests in a batch at most, 1 to 100,000.
        batch_bytes: Bytes of requests in a batch at most, 1 to 255,000,000.
        max_attempts: How often a request is submitted at most, if it expires or the service fails on it; 1 or more.
        poll_s: Seconds until a batch is looked at for the first time, above 0; the pauses grow to a minute.
        deadline_s: Seconds until all must be over, above 0; `None` for a day and more. In time for it, what batches
            haven't got done is cancelled and asked live, at full price.
        live_s: Seconds before the deadline when that happens, above 0; a tenth of `deadline_s` by default, and at
            least a minute. If it is `deadline_s` or more, there are no batches at all.
        concurrency: Of what is asked live, 1 or more; as a verb of a client, its own `concurrency` by default.
        progress: Show progress on the standard error: a bar in a terminal, else a line every five seconds.
        on_progress: Told how far it is, with a `Progress`, every second and at the end.
        total: Items in all, where `requests` doesn't tell by its length.
        waits: Tells what requests wait for, for the progress, given the time of the event loop; as a verb of a client,
            what its guards know.
        rng: Source of jitter.
        **params: Of `messages.create`, for every item; an item's own `params` win. As a verb of a client, `model` and
            `max_tokens` are its settings by default.

    Raises:
        ValueError: A number is out of its range.
        TypeError: `requests` is a single text, or can't be iterated over; no schema can be made of `output_format`; or
            `on_progress` is a coroutine function.

    Example:
        >>> from penstock import Client
        >>> async def main() -> None:
        ...     async with (
        ...         Client() as claude,
        ...         claude.batch(["One?", "Two?"], model="claude-haiku-5-5", poll_s=0.05) as results,
        ...     ):
        ...         print(sorted([result.custom_id async for result in results if result.ok]))
        >>> import anyio
        >>> anyio.run(main)
        ['0', '1']
    """

    _NAME = "batch"

    def __init__(
        self,
        sdk: AsyncAnthropic,
        requests: Iterable[Request] | AsyncIterable[Request],
        *,
        journal: str | os.PathLike[str] | Journal | None = None,
        retry_failed: bool = False,
        replay: bool = False,
        keep_params: bool = False,
        output_format: type[Model] | Omit | NotGiven | None = None,
        batch_size: int = MOST_REQUESTS,
        batch_bytes: int = MOST_BYTES,
        max_attempts: int = 3,
        poll_s: float = 5.0,
        deadline_s: float | None = None,
        live_s: float | None = None,
        concurrency: int = 64,
        progress: bool = False,
        on_progress: OnProgress | None = None,
        total: int | None = None,
        waits: Callable[[float], Waits] | None = None,
        rng: random.Random | None = None,
        **params: Unpack[ItemParams],
    ) -> None:
        options = RunOptions(
            journal=journal,
            retry_failed=retry_failed,
            replay=replay,
            keep_params=keep_params,
            output_format=output_format,
            progress=progress,
            on_progress=on_progress,
            total=total,
            waits=waits,
            params=params,
        )
        plan = Plan(
            batch_size=batch_size,
            batch_bytes=batch_bytes,
            max_attempts=max_attempts,
            poll_s=poll_s,
            deadline_s=deadline_s,
            live_s=live_s,
            concurrency=concurrency,
            params=params,
        )
        self._batches = Batches(sdk, plan, rng=CHANCE if rng is None else rng)
        super().__init__(self._batches, requests, options, intake=BatchIntake)

    async def cancel(self) -> None:
        """Stop: nothing more is read or submitted, and batches under way are cancelled.

        What they have done by then still comes out; the rest comes out as failed with `ItemFailed` (`canceled`), and is
        asked again by a later run with the same journal.

        Raises:
            RuntimeError: It has not begun.
            JournalError: That can't be noted.
        """
        self._check_entered()
        try:
            await self._batches.turn("cancelled")
        except ExceptionGroup as errors:
            raise first_of(errors) from None
