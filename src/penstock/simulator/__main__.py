"""`python -m penstock.simulator`: the simulated Messages API as a server on this machine."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from collections import Counter
from typing import TYPE_CHECKING

from penstock.simulator.batches import BatchOptions
from penstock.simulator.core import Simulator
from penstock.simulator.faults import FAULTS, MIXED_FAULTS

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["main"]


def _pairs(text: str) -> dict[str, float]:
    """`overloaded=0.05,reset=0.01`."""
    found: dict[str, float] = {}
    for part in filter(None, text.split(",")):
        name, separator, value = part.partition("=")
        try:
            found[name.strip()] = float(value)
        except ValueError:
            separator = ""
        if not separator:
            raise argparse.ArgumentTypeError(f"expected NAME=PROBABILITY, separated by commas, not {part!r}")
    return found


def _key(text: str) -> tuple[str, str]:
    """`sk-a=org-1`, or a key alone, which is its own organization."""
    key, _, organization = text.partition("=")
    if not key:
        raise argparse.ArgumentTypeError("expected KEY=ORGANIZATION")
    return key, organization or f"org-{key[-4:]}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m penstock.simulator",
        description="A local Messages API with rate limits, faults and a pace of its own. It costs and knows nothing.",
        epilog=f"Faults: {', '.join(sorted(FAULTS))}.",
    )
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="address to listen at (default: %(default)s, this machine only)")
    add("--port", type=int, default=8080, help="port; 0 picks a free one (default: %(default)s)")
    add("--rpm", type=float, metavar="N", help="requests a minute, for each organization and model class")
    add("--itpm", type=float, metavar="N", help="input tokens a minute")
    add("--otpm", type=float, metavar="N", help="output tokens a minute")
    add("--burst-s", type=float, default=60.0, metavar="S", help="burst, in seconds of refill (default: %(default)s)")
    add("--faults", type=_pairs, default={}, metavar="NAME=P,…", help="faults and their probability for each request")
    add("--mixed-faults", type=float, default=0.0, metavar="P", help="a realistic mix of faults, with this probability")
    add("--key", type=_key, action="append", metavar="KEY=ORG", help="accept this key only; repeatable")
    add("--seed", type=int, default=0, help="fixes which requests get a fault (default: %(default)s)")
    add("--latency-s", type=float, default=0.0, metavar="S", help="time to the first byte (default: %(default)s)")
    add("--tokens-per-s", type=float, metavar="N", help="speed of generation (default: instantly)")
    add("--output-tokens", type=int, metavar="N", help="length of replies (default: a short summary)")
    add("--tool-calls", type=int, metavar="N", help="tools that are called in answer to a question (default: none)")
    add("--batch-s", type=float, default=1.0, metavar="S", help="time that a batch takes (default: %(default)s)")
    add("--journal-size", type=int, default=10_000, metavar="N", help="requests remembered (default: %(default)s)")
    add("--end-with-stdin", action="store_true", help="end when standard input does: for a server that is a child")
    return parser


def _simulator(options: argparse.Namespace) -> Simulator:
    faults = Counter[str]()
    faults.update(options.faults)
    faults.update(MIXED_FAULTS(options.mixed_faults))
    return Simulator(
        requests_per_minute=options.rpm,
        input_tokens_per_minute=options.itpm,
        output_tokens_per_minute=options.otpm,
        burst_s=options.burst_s,
        faults={name: chance for name, chance in faults.items() if chance},
        keys=dict(options.key) if options.key else None,
        seed=options.seed,
        latency_s=options.latency_s,
        tokens_per_s=options.tokens_per_s,
        output_tokens=options.output_tokens,
        tool_calls=options.tool_calls,
        batch=BatchOptions(duration_s=options.batch_s, cancel_s=options.batch_s / 10),
        journal_size=options.journal_size,
        keep_bodies=False,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until Ctrl-C; returns the exit code: 0, or 1 where it cannot listen; wrong arguments exit with 2."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        simulator = _simulator(options)
    except ValueError as error:
        parser.error(str(error))
    if not 0 <= options.port <= 65_535:
        parser.error(f"--port must be between 0 and 65535, not {options.port}")
    from penstock.simulator.server import run  # noqa: PLC0415 - needs an extra, wrong arguments don't

    if options.end_with_stdin:
        threading.Thread(target=_end_with_stdin, name="end-with-stdin", daemon=True).start()
    try:
        run(simulator, host=options.host, port=options.port, ready=_announce)
    except OSError as error:
        sys.stderr.write(f"cannot listen at {options.host}, port {options.port}: {error.strerror or error}\n")
        return 1
    return 0


def _end_with_stdin() -> None:
    """Wait until the parent closes our standard input, as it does by ending in whatever way; then stop as by Ctrl-C."""
    # The descriptor, because a thread that reads from `sys.stdin` would hold its lock when the interpreter ends.
    while os.read(0, 1024):
        pass
    signal.raise_signal(signal.SIGINT)


def _announce(url: str) -> None:
    sys.stderr.write(f"Simulated Messages API at {url} (Ctrl-C ends it)\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
