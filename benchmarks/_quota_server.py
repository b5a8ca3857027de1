"""A Messages API with a limit of requests for each key, in a process of its own, which costs next to nothing.

The rule here: it counts as the API does, by arrival: a bucket refilled all the time, a refusal takes nothing. Run as a
script, it prints its port and serves until its standard input ends. Arguments: requests a minute, seconds of burst, and
which reading `remaining` follows, that when the answer begins (`begun`) or that when it ends (`ended`). Answers take
0.05 to 0.5 s and don't name an organization. `/account` tells what came.
"""

from __future__ import annotations

import asyncio
import json
import math
import random
import re
import sys
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import formatdate
from functools import partial

from _connection import Connection, serve
from _server import MESSAGE

__all__ = ["FASTEST_S", "SLOWEST_S"]

FASTEST_S, SLOWEST_S = 0.05, 0.5
_KEY = re.compile(rb"\r\n(?:authorization: *bearer|x-api-key:) *([^\r]+)", re.IGNORECASE)
_MESSAGE = json.dumps(MESSAGE, separators=(",", ":")).encode()
_ERROR = json.dumps({"type": "error", "error": {"type": "rate_limit_error", "message": "This would exceed …"}}).encode()


@dataclass
class _Account:
    """The bucket of one key, and what came with it."""

    per_s: float
    capacity: float
    level: float = math.inf
    at: float = 0.0
    granted: int = 0
    refused: list[float] = field(default_factory=list[float])
    last_at: float = 0.0

    def look(self) -> float:
        now = time.perf_counter()
        self.level = min(self.level + (now - self.at) * self.per_s, self.capacity)
        self.at = now
        return self.level

    def take(self) -> bool:
        if self.look() < 1:
            self.refused.append(self.at)
            return False
        self.level -= 1
        self.granted += 1
        self.last_at = self.at
        return True

    def headers(self) -> bytes:
        left = self.look()
        full = datetime.now(UTC) + timedelta(seconds=math.ceil((self.capacity - left) / self.per_s))
        return (
            f"Date: {formatdate(usegmt=True)}\r\n"
            f"anthropic-ratelimit-requests-limit: {self.per_s * 60:.0f}\r\n"
            f"anthropic-ratelimit-requests-remaining: {int(left)}\r\n"
            f"anthropic-ratelimit-requests-reset: {full:%Y-%m-%dT%H:%M:%SZ}\r\n"
        ).encode()


class _Connection(Connection):
    per_s, burst_s, reading = 30.0, 6.0, "ended"
    first_at = 0.0
    accounts: dict[bytes, _Account] = {}  # noqa: RUF012 - of all connections
    chance = random.Random(7)

    def answer(self, path: str, request: bytes) -> None:
        if path == "/account":
            self._respond(b"200 OK", b"", json.dumps(self._account()).encode())
            return
        found = _KEY.search(request)
        account = self.accounts.setdefault(found[1] if found else b"", _Account(self.per_s, self.per_s * self.burst_s))
        if not _Connection.first_at:
            _Connection.first_at = time.perf_counter()
        if not account.take():
            after = f"retry-after: {max(math.ceil((1 - account.level) / self.per_s), 1)}\r\n".encode()
            self._respond(b"429 Too Many Requests", account.headers() + after, _ERROR)
            return
        pause_s = self.chance.uniform(FASTEST_S, SLOWEST_S)
        asyncio.get_running_loop().call_later(
            pause_s, partial(self._grant, account, account.headers() if self.reading == "begun" else None)
        )

    def _grant(self, account: _Account, headers: bytes | None) -> None:
        if not self.transport.is_closing():
            self._respond(b"200 OK", headers or account.headers(), _MESSAGE)

    def _respond(self, status: bytes, headers: bytes, body: bytes) -> None:
        kind = b"\r\nContent-Type: application/json\r\nContent-Length: %d\r\n" % len(body)
        self.transport.write(b"HTTP/1.1 " + status + kind + headers + b"\r\n" + body)

    def _account(self) -> dict[str, object]:
        every = self.accounts.values()
        return {
            "granted": sum(account.granted for account in every),
            "refused": sorted(at - self.first_at for account in every for at in account.refused),
            "admitted_s": max(account.last_at for account in every) - self.first_at,
        }


if __name__ == "__main__":
    _Connection.per_s, _Connection.burst_s = float(sys.argv[1]) / 60, float(sys.argv[2])
    _Connection.reading = sys.argv[3]
    serve(_Connection)
