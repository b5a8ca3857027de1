"""What the servers of the benchmarks share: one connection of HTTP/1.1, and serving until the parent process ends.

The rule here: the least that the clients' libraries accept, so that they are what is measured.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
import threading
from abc import ABC, abstractmethod

__all__ = ["Connection", "event", "serve"]

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


class Connection(asyncio.Protocol, ABC):
    """One connection; requests on it come one after the other, as clients send them."""

    transport: asyncio.Transport

    def __init__(self) -> None:
        self._received = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        """Answer a request once all of it has come."""
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
        self.answer(request[: request.find(b"\r\n")].split()[1].decode(), request)

    @abstractmethod
    def answer(self, path: str, request: bytes) -> None:
        """Answer a request."""

    def send_each(self, chunks: list[bytes], pause_s: float, index: int = 0) -> None:
        """Send chunks with pauses between them, as long as somebody listens."""
        if self.transport.is_closing():
            return
        if index == len(chunks):
            self.sent_all()
            return
        self.transport.write(chunks[index])
        asyncio.get_running_loop().call_later(pause_s, self.send_each, chunks, pause_s, index + 1)

    def sent_all(self) -> None:
        """Take note that all chunks were sent."""


def event(body: dict[str, object]) -> bytes:
    """Return an event of a stream as a chunk of its own."""
    data = f"event: {body['type']}\ndata: {json.dumps(body, separators=(',', ':'))}\n\n".encode()
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


def serve(connection: type[Connection]) -> None:
    """Print a port, and serve on it until the standard input ends."""
    asyncio.run(_serve(connection))


async def _serve(connection: type[Connection]) -> None:
    server = await asyncio.get_running_loop().create_server(connection, "127.0.0.1", 0, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    await server.serve_forever()


def _end_with_parent() -> None:
    sys.stdin.buffer.read()
    os._exit(0)
