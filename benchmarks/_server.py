"""A Messages API that costs next to nothing: fixed answers with realistic headers, in a process of its own.

The rule here: everything is prepared before the first request, so that the clients are what is measured. Run as a
script, it prints its port and serves until its standard input ends. What it answers is told by the path:
`/v1/messages` plain JSON or a stream, `/gzip/…` the same compressed, `/paced/…` a stream of one event each 10 ms,
`/count` how many messages it has answered.
"""

from __future__ import annotations

import gzip
import json

from _connection import Connection, event, serve

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


def _plain(body: bytes, encoding: bytes = b"") -> bytes:
    length = f"Content-Length: {len(body)}\r\n".encode()
    return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n" + encoding + length + HEADERS + b"\r\n" + body


def _stream() -> tuple[bytes, list[bytes]]:
    """Head and events of a streamed answer, each event a chunk of its own."""
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n"
    delta = {"type": "text_delta", "text": " a bounded queue"}
    events = [
        event({"type": "message_start", "message": {**MESSAGE, "content": [], "stop_reason": None}}),
        event({"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}),
        event({"type": "ping"}),
        *[event({"type": "content_block_delta", "index": 0, "delta": delta})] * DELTAS,
        event({"type": "content_block_stop", "index": 0}),
        event({"type": "message_delta", "delta": {"stop_reason": "end_turn", "stop_sequence": None}, "usage": USAGE}),
        event({"type": "message_stop"}) + b"0\r\n\r\n",
    ]
    return head + HEADERS + b"\r\n", events


_BODY = json.dumps(MESSAGE, separators=(",", ":")).encode()
_JSON = _plain(_BODY)
_GZIP = _plain(gzip.compress(_BODY), b"Content-Encoding: gzip\r\n")
_HEAD, _EVENTS = _stream()
_BURST = _HEAD + b"".join(_EVENTS)


class _Connection(Connection):
    answered = 0

    def answer(self, path: str, request: bytes) -> None:
        if path == "/count":
            self.transport.write(_plain(str(_Connection.answered).encode()))
            return
        _Connection.answered += 1
        if b'"stream":true' not in request:
            self.transport.write(_GZIP if path.startswith("/gzip/") else _JSON)
        elif path.startswith("/paced/"):
            self.transport.write(_HEAD)
            self.send_each(_EVENTS, PAUSE_S)
        else:
            self.transport.write(_BURST)


if __name__ == "__main__":
    serve(_Connection)
