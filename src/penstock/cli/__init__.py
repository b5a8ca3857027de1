"""The command `penstock`: what the package does from a shell.

The rule here: only this folder prints. A command loads what it needs when it is called, says in one line what is
missing, and returns an exit code: 0 for success, 1 for a run with failures, 2 for one that could not start, 130 after
Ctrl-C.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from contextlib import contextmanager, nullcontext
from importlib.metadata import version
from importlib.util import find_spec
from io import TextIOWrapper
from typing import TYPE_CHECKING

from penstock.cli.run.arguments import add_run, run_options

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

__all__ = ["main"]

_CANNOT_START = 2
_INTERRUPTED = 130
_RUN = "run"
_SIMULATE = "simulate"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: Those after the program's name; the process's own by default.

    Returns:
        The exit code.

    Raises:
        SystemExit: Help or version was asked for, or the arguments are wrong.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            # Docstrings hold characters that not every terminal can show.
            stream.reconfigure(errors="replace")
    try:
        return _simulate(given[1:]) if given[:1] == [_SIMULATE] else _command(given)
    except KeyboardInterrupt:
        sys.stderr.write("Interrupted.\n")
        return _INTERRUPTED


def _command(given: Sequence[str]) -> int:
    parser = _parser()
    options = parser.parse_args(given)
    if options.command is None:
        parser.print_help(sys.stderr)
        return _CANNOT_START
    return _run(options, given[1:]) if options.command == _RUN else _demo(options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="penstock", description="Govern the official anthropic SDK.")
    parser.add_argument("--version", action="version", version=f"penstock {version('penstock')}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    add_run(commands.add_parser(_RUN, help="ask many prompts, from a file or a pipe, and go on after any end"))
    _add_demo(commands.add_parser("demo", help="summarize docstrings of Python's standard library, all at once"))
    # It has a parser of its own; this one is for the list of commands.
    commands.add_parser(_SIMULATE, help="serve a simulated Messages API on this machine", add_help=False)
    return parser


def _add_demo(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Ask for one-line summaries of docstrings of Python's standard library, all at once and with two keys, from a "
        "simulated Messages API on this machine that has rate limits and fails now and then."
    )
    add = parser.add_argument
    add("-n", "--n", type=_count, default=2000, metavar="N", help="number of prompts (default: %(default)s)")
    add("--seed", type=int, default=0, help="fixes the docstrings and the faults (default: %(default)s)")
    add("--faults", type=_share, default=0.1, metavar="SHARE", help="share of requests that fail (default: 0.1)")
    add("--rpm", type=_count, default=2000, metavar="N", help="requests a minute for each key (default: %(default)s)")
    add("--live", type=_count, metavar="N", help="send N prompts to the real API instead (needs ANTHROPIC_API_KEY)")
    add("--log", action="store_true", help="log a line for each call to standard error")


def _run(options: argparse.Namespace, arguments: Sequence[str]) -> int:
    from penstock.cli.run.command import run  # noqa: PLC0415 - loads the SDK, which help and version don't need
    from penstock.cli.run.pipes import patient_stderr  # noqa: PLC0415

    with patient_stderr(), _log_to_stderr(logging.INFO if options.log else logging.WARNING):
        return run(run_options(options), arguments)


def _count(text: str) -> int:
    number = int(text) if text.isascii() and text.isdecimal() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1 up, not {text!r}")
    return number


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to 1, not {text!r}")
    return share


def _demo(options: argparse.Namespace) -> int:
    live = options.live is not None
    if live and not any(os.environ.get(name, "").strip() for name in ("ANTHROPIC_API_KEY", "PENSTOCK_API_KEYS")):
        return _cannot_start("--live needs an API key: set ANTHROPIC_API_KEY")
    missing = [name for name in (("rich",) if live else ("rich", "starlette", "uvicorn")) if find_spec(name) is None]
    if missing:
        return _cannot_start(f"the demo needs {' and '.join(missing)}: pip install 'penstock[cli,simulator]'")
    from penstock.cli.demo import DemoOptions, demo  # noqa: PLC0415 - loads the SDK, which help and version don't need

    chosen = {name: getattr(options, name) for name in DemoOptions.__slots__}
    with _log_to_stderr(logging.INFO) if options.log else nullcontext():
        return demo(DemoOptions(**chosen))


def _simulate(arguments: Sequence[str]) -> int:
    from penstock.cli.simulate import simulate  # noqa: PLC0415 - other commands don't serve

    return simulate(arguments)


def _cannot_start(why: str) -> int:
    sys.stderr.write(f"penstock: {why}\n")
    return _CANNOT_START


@contextmanager
def _log_to_stderr(level: int) -> Generator[None, None, None]:
    """Write what the package logs to standard error, from a level up, as long as the block lasts."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger = logging.getLogger("penstock")
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)
