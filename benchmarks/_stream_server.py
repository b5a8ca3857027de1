"""A Messages API for streams only: as many deltas as asked for, as fast as asked for, in a process of its own.

The rule here: as in `_server`, everything is prepared before the first request. Run as a script, it prints its port and
serves until its standard input ends. The path tells what is sent: `/<deltas>/<pause in ms>/v1/messages` sends so many
deltas, one event after each pause, or all at once where the pause is 0. `/<deltas>/<pause>/overload-<name>/…` fails the
first time that it is asked for, with an overload inside the stream before any content; `…/drop-<name>/…` breaks the
connection, the first time, in the middle of the content. `/ended` tells how many streams were sent to their end,
`/left` how many were not.
"""

from __future__ import annotations

import asyncio
from functools import cache
from typing import ClassVar

from _connection import Connection, event, serve
from _server import HEADERS, MESSAGE, USAGE

__all__ = ["text_of"]

_WORDS = (
    "Backpressure keeps a fast producer from flooding a slow consumer.\n\nA bounded queue sits between the two; when "
    'it is "full", the producer waits — instead of piling up work that nobody can take. '
)
_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n"
    + HEADERS
    + b"\r\n"
)
_OVERLOADED = event({"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}) + b"0\r\n\r\n"


def _piece(number: int) -> str:
    start = number * 16 % (len(_WORDS) - 16)
    return _WORDS[start : start + 16]


def text_of(deltas: int) -> str:
    """Return the text that a stream of so many deltas brings."""
    return "".join(map(_piece, range(deltas)))


@cache
def _events(deltas: int) -> list[bytes]:
    return [
        event({"type": "message_start", "message": {**MESSAGE, "content": [], "stop_reason": None}}),
        event({"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}),
        event({"type": "ping"}),
        *[
            event({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": _piece(number)}})
            for number in range(deltas)
        ],
        event({"type": "content_block_stop", "index": 0}),
        event({"type": "message_delta", "delta": {"stop_reason": "end_turn", "stop_sequence": None}, "usage": USAGE}),
        event({"type": "message_stop"}) + b"0\r\n\r\n",
    ]


@cache
def _whole(deltas: int) -> bytes:
    return _HEAD + b"".join(_events(deltas))


class _Connection(Connection):
    ended = 0
    left = 0
    _failed: ClassVar[set[str]] = set()

    def __init__(self) -> None:
        super().__init__()
        self._sending = False

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        _Connection.left += self._sending

    def answer(self, path: str, request: bytes) -> None:
        del request
        if path in {"/ended", "/left"}:
            body = str(getattr(_Connection, path[1:])).encode()
            self.transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
            return
        deltas, pause_ms = map(int, path.split("/")[1:3])
        fault = path.split("/")[3]
        if fault.startswith(("overload-", "drop-")) and fault not in self._failed:
            self._failed.add(fault)
            self.transport.write(_HEAD)
            self._fail(fault, deltas)
        elif pause_ms:
            self._sending = True
            self.transport.write(_HEAD)
            self.send_each(_events(deltas), pause_ms / 1000)
        else:
            self.transport.write(_whole(deltas))
            _Connection.ended += 1

    def _fail(self, fault: str, deltas: int) -> None:
        events = _events(deltas)
        if fault.startswith("overload-"):
            self.transport.write(b"".join(events[:3]) + _OVERLOADED)
            return
        self.transport.write(b"".join(events[: 3 + deltas // 2]))
        # The last bytes are on their way before the connection is reset.
        asyncio.get_running_loop().call_later(0.1, self.transport.abort)

    def sent_all(self) -> None:
        self._sending = False
        _Connection.ended += 1


if __name__ == "__main__":
    serve(_Connection)
