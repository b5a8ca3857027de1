"""A Messages API for streams only: as many deltas as asked for, as fast as asked for, in a process of its own.

The rule here: as in `_server`, everything is prepared before the first request. Run as a script, it prints its port and
serves until its standard input ends. The path tells what is sent: `/<deltas>/<pause in ms>/v1/messages` sends so many
deltas, one event after each pause, or all at once where the pause is 0. `/ended` tells how many streams were sent to
their end, `/left` how many were not.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
import threading
from functools import cache

from _server import HEADERS, MESSAGE, USAGE

__all__ = ["text_of"]

_WORDS = (
    "Backpressure keeps a fast producer from flooding a slow consumer.\n\nA bounded queue sits between the two; when "
    'it is "full", the producer waits — instead of piling up work that nobody can take. '
)
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n"
    + HEADERS
    + b"\r\n"
)


def _piece(number: int) -> str:
    start = number * 16 % (len(_WORDS) - 16)
    return _WORDS[start : start + 16]


def text_of(deltas: int) -> str:
    """Return the text that a stream of so many deltas brings."""
    return "".join(map(_piece, range(deltas)))


def _event(body: dict[str, object]) -> bytes:
    data = f"event: {body['type']}\ndata: {json.dumps(body, separators=(',', ':'))}\n\n".encode()
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


@cache
def _events(deltas: int) -> list[bytes]:
    return [
        _event({"type": "message_start", "message": {**MESSAGE, "content": [], "stop_reason": None}}),
        _event({"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}),
        _event({"type": "ping"}),
        *[
            _event({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": _piece(number)}})
            for number in range(deltas)
        ],
        _event({"type": "content_block_stop", "index": 0}),
        _event({"type": "message_delta", "delta": {"stop_reason": "end_turn", "stop_sequence": None}, "usage": USAGE}),
        _event({"type": "message_stop"}) + b"0\r\n\r\n",
    ]


@cache
def _whole(deltas: int) -> bytes:
    return _HEAD + b"".join(_events(deltas))


class _Connection(asyncio.Protocol):
    """One connection; requests on it come one after the other, as HTTP/1.1 clients send them."""

    ended = 0
    left = 0

    def __init__(self) -> None:
        self._received = bytearray()
        self._sending = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        _Connection.left += self._sending

    def data_received(self, data: bytes) -> None:
        received = self._received
        received += data
        end = received.find(b"\r\n\r\n")
        if end < 0:
            return
        length = _LENGTH.search(received, 0, end)
        size = end + 4 + (int(length[1]) if length else 0)
        if len(received) < size:
            return
        path = bytes(received[: received.find(b"\r\n")]).split()[1].decode()
        del received[:size]
        self._answer(path)

    def _answer(self, path: str) -> None:
        if path in {"/ended", "/left"}:
            body = str(getattr(_Connection, path[1:])).encode()
            self._transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
            return
        deltas, pause_ms = map(int, path.split("/")[1:3])
        if pause_ms:
            self._sending = True
            self._transport.write(_HEAD)
            self._next(_events(deltas), 0, pause_ms / 1000)
        else:
            self._transport.write(_whole(deltas))
            _Connection.ended += 1

    def _next(self, events: list[bytes], index: int, pause_s: float) -> None:
        if index == len(events):
            self._sending = False
            _Connection.ended += 1
        elif not self._transport.is_closing():
            self._transport.write(events[index])
            asyncio.get_running_loop().call_later(pause_s, self._next, events, index + 1, pause_s)


def _end_with_parent() -> None:
    sys.stdin.buffer.read()
    os._exit(0)


async def _serve() -> None:
    server = await asyncio.get_running_loop().create_server(_Connection, "127.0.0.1", 0, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_serve())
