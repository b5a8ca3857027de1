"""A Messages API that costs next to nothing: fixed answers with realistic headers, in a process of its own.

The rule here: everything is prepared before the first request, so that the clients are what is measured. Run as a
script, it prints its port and serves until its standard input ends. What it answers is told by the path:
`/v1/messages` plain JSON or a stream, `/gzip/…` the same compressed, `/paced/…` a stream of one event each 10 ms,
`/count` how many messages it has answered.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import re
import sys
import threading

__all__ = ["DELTAS", "TEXT"]

DELTAS = 100
PAUSE_S = 0.01
TEXT = (
    "Backpressure keeps a fast producer from flooding a slow consumer. A bounded queue sits between the two; when it "
    "is full, the producer waits instead of piling up work that nobody can take. "
) * 4
USAGE = {
    "input_tokens": 412,
    "cache_creation_input_tokens": 0,
    "cache_read_input_tokens": 1024,
    "cache_creation": {"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 0},
    "output_tokens": 163,
    "service_tier": "standard",
}
MESSAGE = {
    "id": "msg_01XFDUDYJgAACzvnptvVoYEL",
    "type": "message",
    "role": "assistant",
    "model": "claude-sonnet-5-5",
    "content": [{"type": "text", "text": TEXT}],
    "stop_reason": "end_turn",
    "stop_sequence": None,
    "usage": USAGE,
}
HEADERS = """\
Date: Fri, 20 Nov 2026 09:00:00 GMT
Connection: keep-alive
Cache-Control: no-cache
anthropic-ratelimit-requests-limit: 1000000000
anthropic-ratelimit-requests-remaining: 999999999
anthropic-ratelimit-requests-reset: 2026-11-20T09:00:01Z
anthropic-ratelimit-input-tokens-limit: 1000000000000
anthropic-ratelimit-input-tokens-remaining: 999999999000
anthropic-ratelimit-input-tokens-reset: 2026-11-20T09:00:01Z
anthropic-ratelimit-output-tokens-limit: 1000000000000
anthropic-ratelimit-output-tokens-remaining: 999999999000
anthropic-ratelimit-output-tokens-reset: 2026-11-20T09:00:01Z
request-id: req_011CSHoEeqs5C35K2UUqR7Fy
anthropic-organization-id: 5a4c7f0e-6d5b-4c57-9f43-0d2c4d1be001
strict-transport-security: max-age=31536000; includeSubDomains; preload
via: 1.1 google
cf-cache-status: DYNAMIC
X-Robots-Tag: none
Server: cloudflare
CF-RAY: 8f1d2c3b4a596877-FRA
""".replace("\n", "\r\n").encode()

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


def _event(body: dict[str, object]) -> bytes:
    data = f"event: {body['type']}\ndata: {json.dumps(body, separators=(',', ':'))}\n\n".encode()
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


def _plain(body: bytes, encoding: bytes = b"") -> bytes:
    length = f"Content-Length: {len(body)}\r\n".encode()
    return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n" + encoding + length + HEADERS + b"\r\n" + body


def _stream() -> tuple[bytes, list[bytes]]:
    """Head and events of a streamed answer, each event a chunk of its own."""
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n"
    delta = {"type": "text_delta", "text": " a bounded queue"}
    events = [
        _event({"type": "message_start", "message": {**MESSAGE, "content": [], "stop_reason": None}}),
        _event({"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}),
        _event({"type": "ping"}),
        *[_event({"type": "content_block_delta", "index": 0, "delta": delta})] * DELTAS,
        _event({"type": "content_block_stop", "index": 0}),
        _event({"type": "message_delta", "delta": {"stop_reason": "end_turn", "stop_sequence": None}, "usage": USAGE}),
        _event({"type": "message_stop"}) + b"0\r\n\r\n",
    ]
    return head + HEADERS + b"\r\n", events


_BODY = json.dumps(MESSAGE, separators=(",", ":")).encode()
_JSON = _plain(_BODY)
_GZIP = _plain(gzip.compress(_BODY), b"Content-Encoding: gzip\r\n")
_HEAD, _EVENTS = _stream()
_BURST = _HEAD + b"".join(_EVENTS)


class _Connection(asyncio.Protocol):
    """One connection; requests on it come one after the other, as HTTP/1.1 clients send them."""

    answered = 0

    def __init__(self) -> None:
        self._received = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

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
        request = bytes(received[:size])
        del received[:size]
        self._answer(request)

    def _answer(self, request: bytes) -> None:
        path = request[: request.find(b"\r\n")].split()[1]
        if path == b"/count":
            self._transport.write(_plain(str(_Connection.answered).encode()))
            return
        _Connection.answered += 1
        if b'"stream":true' not in request:
            self._transport.write(_GZIP if path.startswith(b"/gzip/") else _JSON)
        elif path.startswith(b"/paced/"):
            self._transport.write(_HEAD)
            self._next(0)
        else:
            self._transport.write(_BURST)

    def _next(self, index: int) -> None:
        if index < len(_EVENTS) and not self._transport.is_closing():
            self._transport.write(_EVENTS[index])
            asyncio.get_running_loop().call_later(PAUSE_S, self._next, index + 1)


def _end_with_parent() -> None:
    sys.stdin.buffer.read()
    os._exit(0)


async def _serve() -> None:
    server = await asyncio.get_running_loop().create_server(_Connection, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_serve())
