"""The simulator as a server in a process of its own, for as long as a block lasts.

The rule here: the child never outlives the parent. It ends when its standard input does, and that ends with the parent,
however the parent ends.
"""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

__all__ = ["LocalServer", "ServerFailed", "ServerOptions"]

_READY = re.compile(r"Simulated Messages API at (http://\S+)")
_STARTS_WITHIN_S = 30.0
_ENDS_WITHIN_S = 3.0


class ServerFailed(Exception):
    """The simulator's process ended, or stayed silent, before it listened."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerOptions:
    """What the simulator shall be like.

    Attributes:
        keys: API key to organization.
        requests_per_minute: For each organization.
        input_tokens_per_minute: For each organization.
        burst_s: Burst, in seconds of refill.
        faults: Share of requests that get a fault, 0 to 1.
        seed: Fixes which.
        latency_s: Seconds to the first byte.
        tokens_per_s: Speed of generation.
    """

    keys: dict[str, str]
    requests_per_minute: float
    input_tokens_per_minute: float
    burst_s: float = 6.0
    faults: float = 0.0
    seed: int = 0
    latency_s: float = 0.1
    tokens_per_s: float = 100.0

    def arguments(self) -> list[str]:
        """As arguments of `python -m penstock.simulator`."""
        keys = [f"--key={key}={organization}" for key, organization in self.keys.items()]
        return [
            "--port=0",
            "--end-with-stdin",
            f"--rpm={self.requests_per_minute:g}",
            f"--itpm={self.input_tokens_per_minute:g}",
            f"--burst-s={self.burst_s:g}",
            f"--mixed-faults={self.faults:g}",
            f"--seed={self.seed}",
            f"--latency-s={self.latency_s:g}",
            f"--tokens-per-s={self.tokens_per_s:g}",
            *keys,
        ]


class LocalServer:
    """Starts the simulator when the block is entered, and ends it when the block is left.

    What the server writes later goes to standard error.

    Args:
        options: What it shall be like.
        command: What starts it, before its options; `python -m penstock.simulator` by default.

    Example:
        >>> options = ServerOptions(keys={"sk-1": "org-1"}, requests_per_minute=600, input_tokens_per_minute=1e6)
        >>> with LocalServer(options) as server:
        ...     print(server.url().startswith("http://127.0.0.1:"))
        True
    """

    def __init__(self, options: ServerOptions, *, command: Sequence[str] = ()) -> None:
        start = command or (sys.executable, "-P", "-m", "penstock.simulator")
        self._command = [*start, *options.arguments()]
        self._process: subprocess.Popen[str] | None = None
        self._url: str | None = None
        self._forwarder: threading.Thread | None = None

    def __repr__(self) -> str:
        process = self._process
        state = "not started" if process is None else "running" if process.poll() is None else "ended"
        return f"<LocalServer {state}, {self._url}>"

    def __enter__(self) -> Self:
        """Start the process; it may take a second until it listens."""
        self._process = subprocess.Popen(  # noqa: S603 - this interpreter, and our own arguments
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
            # Ctrl-C reaches every process of the terminal's foreground group: this one shall end after its client.
            start_new_session=True,
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the process, whatever happened."""
        process = self._running
        if process.stdin is not None:
            process.stdin.close()
        try:
            process.wait(_ENDS_WITHIN_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if self._forwarder is not None:
            self._forwarder.join()
        if process.stderr is not None:
            process.stderr.close()

    @property
    def _running(self) -> subprocess.Popen[str]:
        if self._process is None:
            raise RuntimeError("use it inside `with LocalServer(…) as server:`")
        return self._process

    def url(self) -> str:
        """Wait until it listens, and return where.

        Raises:
            ServerFailed: It ended, or did not listen within 30 s.
        """
        process = self._running
        if self._url is None and process.stderr is not None:
            self._url = _wait_for_url(process, process.stderr)
            self._forwarder = threading.Thread(target=_forward, args=(process.stderr,), daemon=True)
            self._forwarder.start()
        return str(self._url)


def _wait_for_url(process: subprocess.Popen[str], lines: IO[str]) -> str:
    said: list[str] = []
    alarm = threading.Timer(_STARTS_WITHIN_S, process.kill)
    alarm.start()
    try:
        for line in lines:
            if found := _READY.search(line):
                return found.group(1)
            said.append(line)
    finally:
        alarm.cancel()
    raise ServerFailed(f"the simulator did not start: {''.join(said).strip() or 'it said nothing'}")


def _forward(lines: IO[str]) -> None:
    for line in lines:
        sys.stderr.write(line)
