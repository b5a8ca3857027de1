"""`penstock run`: many prompts from a file or a pipe, results into a file or a pipe.

The rule here: whatever can be refused is refused before anything is sent or made. With a file of results, a result is
in it before it counts, so that the same command with `--resume` goes on after any end of this one.
"""

from __future__ import annotations

import shlex
import sys
from contextlib import AsyncExitStack, closing, suppress
from typing import TYPE_CHECKING, Any, Final

import anthropic
import anyio

from penstock._core.context import labels
from penstock.batch.journal import Journal
from penstock.batch.progress_display import draws_bar
from penstock.batch.result import is_account_refused, reason_of
from penstock.cli.run.feed import Feed
from penstock.cli.run.interrupt import Interruptible
from penstock.cli.run.lines import BadInput
from penstock.cli.run.output import Output, OutputFailed
from penstock.cli.run.report import Failures, summary
from penstock.cli.run.setup import Refused, check_options, open_input, output_of, reading_of, schema_of, settings_of
from penstock.client import Client
from penstock.errors import AccountRefused, JournalError, KeyNotFound, TooManyFailures

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from penstock.batch.progress import Progress
    from penstock.batch.run import Run
    from penstock.cli.run.arguments import RunOptions
    from penstock.settings import Settings

__all__ = ["run"]

_SOME_FAILED: Final = 1
_REFUSED: Final = 2
_ACCOUNT_REFUSED: Final = 3
_READER_LEFT: Final = 141
_LOOK_AT: Final = "Look at the address, the proxy and the network."
# Seconds in which not one request got through.
_HOPELESS_S: Final = 60.0


def run(options: RunOptions, arguments: Sequence[str]) -> int:
    """Run it.

    Args:
        options: What it shall do.
        arguments: As they were given, to tell how to go on.

    Returns:
        The exit code: 0 if all were answered, 1 if some weren't, 2 for bad input or what else must be mended first, 3
        if the key or its organization was refused, 130 after Ctrl-C, 143 after SIGTERM, 141 if whoever read the output
        has left.
    """
    try:
        check_options(options)
        with closing(open_input(options.input)) as source:
            settings = settings_of(options)
            with closing(Feed(source, reading_of(options, source, settings))) as feed:
                feed.check()
                return anyio.run(_Run(options, arguments, settings, feed).ask)
    except (Refused, BadInput) as error:
        _say(f"penstock run: {error}")
        return _REFUSED


def _say(text: str) -> None:
    # Whether anybody reads it changes nothing of what the run came to.
    with suppress(OSError):
        if sys.stderr is not None:
            sys.stderr.write(f"{text}\n")
            sys.stderr.flush()


class _Run:
    """What is asked, and what comes of it.

    Args:
        options: What it shall do.
        arguments: As they were given.
        settings: Of the client.
        feed: The requests.
    """

    def __init__(self, options: RunOptions, arguments: Sequence[str], settings: Settings, feed: Feed) -> None:
        self._options = options
        self._arguments = arguments
        self._settings = settings
        self._feed = feed
        self._path = output_of(options)
        self._schema = schema_of(options)
        self._journal: Journal | None = None
        self._results: Run | None = None
        self._failures = Failures()
        self._complete = False
        self._claude: Client | None = None
        self._told = False
        # Set once it is given up, because nothing gets through.
        self._unreached: str | None = None
        self._scope: anyio.CancelScope

    async def ask(self) -> int:
        """Ask all; return the exit code."""
        try:
            with Interruptible() as interruptible:
                await self._ask()
        except (BadInput, Refused) as error:
            return self._stopped(error, _REFUSED)
        except OutputFailed as error:
            return _READER_LEFT if error.left else self._stopped(error, _SOME_FAILED)
        except (anthropic.AnthropicError, OSError) as error:
            # Of the run as a whole: what concerns one request is its result.
            refused = isinstance(error, AccountRefused) or is_account_refused(error)
            return self._stopped(error, _ACCOUNT_REFUSED if refused else _SOME_FAILED)
        if self._unreached is not None:
            return self._stopped(anthropic.AnthropicError(self._unreached), _SOME_FAILED)
        if interruptible.code and not self._complete:
            return self._stopped(None, interruptible.code)
        return self._ended()

    async def _ask(self) -> None:
        async with AsyncExitStack() as stack:
            claude = self._claude = await self._client(stack)
            self._scope = stack.enter_context(anyio.CancelScope())
            await self._feed.wait()
            if self._path is not None:
                self._journal = await self._opened(stack, self._path)
            if self._options.priority is not None:
                stack.enter_context(labels(priority=self._options.priority))
            output = stack.enter_context(closing(Output())) if self._journal is None else None
            async with self._begun(claude) as self._results:
                async for result in self._results:
                    self._failures.add(result)
                    if isinstance(result.error, JournalError):
                        raise Refused(str(result.error))
                    if output is not None:
                        await output.write(result)
        self._complete = True

    async def _client(self, stack: AsyncExitStack) -> Client:
        try:
            return await stack.enter_async_context(Client(self._settings))
        except KeyNotFound as error:
            variables = [place for place in error.places if place.isupper()]
            raise Refused(f"no API key found: set {' or '.join(reversed(variables))}") from None
        except ValueError as error:
            raise Refused(str(error)) from None

    async def _opened(self, stack: AsyncExitStack, path: Path) -> Journal:
        try:
            journal = await stack.enter_async_context(Journal(path, keep_params=self._options.keep_params))
        except JournalError as error:
            raise Refused(str(error)) from None
        await self._feed.look_up(journal)
        if journal.damaged_lines or journal.repaired_bytes:
            damaged = journal.damaged_lines + (journal.repaired_bytes > 0)
            _say(f"{damaged:,} lines of {path} are damaged or cut off. What they held is asked again.")
        return journal

    def _common(self) -> dict[str, Any]:
        """Return the params of every request."""
        given = {"model": self._settings.model, "system": self._options.system, "output_config": self._schema}
        return {
            "max_tokens": self._settings.max_tokens,
            **{name: value for name, value in given.items() if value is not None},
        }

    def _begun(self, claude: Client) -> Run:
        given: dict[str, Any] = {
            **self._common(),
            "journal": self._journal,
            "retry_failed": self._options.retry_failed,
            "total": self._feed.total,
            "progress": self._shows_progress(),
            "on_progress": self._watch,
        }
        if self._options.via == "batches":
            times = {"deadline_s": self._options.deadline_s, "poll_s": self._options.poll_s}
            given |= {name: value for name, value in times.items() if value is not None}
            return claude.batch(self._feed, **given)
        return claude.fan_out(self._feed, max_failures=self._options.max_failures, **given)

    def _shows_progress(self) -> bool:
        if self._options.quiet or sys.stderr is None:
            return False
        if self._options.progress is not None:
            return self._options.progress
        # Results in the same terminal would tear the bar.
        return sys.stderr.isatty() and (self._path is not None or not sys.stdout.isatty())

    def _watch(self, progress: Progress) -> None:
        """Tell once that the API can't be reached, and give up where it never was."""
        problem = self._never_reached()
        if problem is None or progress.ended:
            return
        if not self._told:
            self._told = True
            # A bar tells it by itself, and would be torn.
            if not (self._shows_progress() and draws_bar(sys.stderr)):
                _say(f"penstock run: {problem}; trying again")
        if progress.elapsed_s >= _HOPELESS_S:
            self._unreached = f"not one request got through in {_HOPELESS_S:.0f} s: {problem}. {_LOOK_AT}"
            self._scope.cancel()

    def _never_reached(self) -> str | None:
        """Return why not one request got through, if that is so."""
        attempts = None if self._claude is None else self._claude.statistics().attempts
        return None if attempts is None or attempts.reached else attempts.network

    # What is told in the end

    def _ended(self) -> int:
        """Tell what came of it; return the exit code."""
        failed = len(self._failures) > 0
        in_file = 0 if self._journal is None else self._journal.failed
        if not self._options.quiet and self._results is not None:
            _say(summary(self._results.progress))
            if failed:
                _say(f"Failed: {self._failures.line()}")
            if in_file:
                _say(f"{in_file:,} failed by {self._path}. Ask again with: {self._command('--retry-failed')}")
            elif failed and self._journal is not None:
                _say(f"None for a reason of its own. Ask again with: {self._command('--resume')}")
        if problem := self._never_reached():
            _say(f"penstock run: not one request got through: {problem}. {_LOOK_AT}")
        if failed and self._failures.of_account == len(self._failures):
            return _ACCOUNT_REFUSED
        return _SOME_FAILED if failed or in_file else 0

    def _stopped(self, error: Exception | None, code: int) -> int:
        """Tell why it ended early, what there is, and how to go on."""
        _say("Interrupted." if error is None else f"penstock run: {reason_of(error)}")
        if isinstance(error, TooManyFailures) and isinstance(error.__cause__, Exception):
            _say(f"The last error: {reason_of(error.__cause__)}")
        if self._results is None:
            return code
        if not self._options.quiet:
            _say(summary(self._results.progress))
        if self._journal is not None:
            batches = self._options.via == "batches"
            _say(
                f"What came is in {self._path}{', and batches that were submitted go on' * batches}. "
                f"{'Go on' if error is None else 'Once that is mended, go on'} with: {self._command('--resume')}"
            )
        return code

    def _command(self, *flags: str) -> str:
        given = [argument for argument in self._arguments if argument not in flags]
        return shlex.join(["penstock", "run", *given, *flags])
