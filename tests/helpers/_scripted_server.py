"""A server on a real socket that answers each request as a script says: with bytes, or by closing the connection.

It knows which key a request came with, and counts connections, so that a test can tell a fresh one from one kept.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import anyio
import anyio.lowlevel

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

__all__ = ["CLOSE", "HANG", "OK", "RESET", "Answer", "Arrived", "ScriptedServer", "answer", "error", "serving"]

Answer: TypeAlias = "bytes | str"

CLOSE = "close"
HANG = "hang"
RESET = "reset"


def answer(status: int, body: object, **headers: str) -> bytes:
    """An answer, byte for byte."""
    content = json.dumps(body).encode()
    lines = [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    head = [f"HTTP/1.1 {status} It", "content-type: application/json", f"content-length: {len(content)}", *lines]
    return "\r\n".join((*head, "", "")).encode() + content


def error(status: int, error_type: str, message: str = "…", code: str | None = None, **headers: str) -> bytes:
    """An error as the API words it."""
    told: dict[str, Any] = {"type": error_type, "message": message}
    if code is not None:
        told["details"] = {"error_code": code}
    return answer(status, {"type": "error", "error": told, "request_id": "req_1"}, **headers)


_MESSAGE = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": "claude-haiku-5-5",
    "content": [{"type": "text", "text": "Hi"}],
    "stop_reason": "end_turn",
    "usage": {"input_tokens": 8, "output_tokens": 2},
}
OK = answer(200, _MESSAGE)


@dataclass(frozen=True, slots=True)
class Arrived:
    """A request as it arrived."""

    key: str
    connection: int
    number: int
    """On its connection, from 1."""
    content: bytes = field(repr=False)


class ScriptedServer:
    """Answers as `script` says, which is told of every request."""

    def __init__(self, script: Callable[[Arrived], Answer], slow_s: float = 0.0) -> None:
        self.script = script
        self.slow_s = slow_s
        self.url = ""
        self.arrived: list[Arrived] = []
        self.connections = 0
        self._writers: set[asyncio.StreamWriter] = set()

    @property
    def keys(self) -> Counter[str]:
        """How many requests came with which key."""
        return Counter(each.key for each in self.arrived)

    async def take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve a connection until somebody closes it."""
        self._writers.add(writer)
        self.connections += 1
        connection, number = self.connections, 0
        with suppress(asyncio.IncompleteReadError, OSError):
            while True:
                number += 1
                method = await reader.readexactly(5)
                if method == b"CONNE" or method.startswith(b"\x16\x03"):
                    # No proxy, and no TLS.
                    writer.write(b"HTTP/1.1 407 No\r\ncontent-length: 0\r\n\r\n")
                    break
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                fields = dict(line.split(": ", 1) for line in head.split("\r\n")[1:-2])
                fields = {name.lower(): value for name, value in fields.items()}
                content = await reader.readexactly(int(fields.get("content-length", 0)))
                key = fields.get("x-api-key") or fields.get("authorization", "").removeprefix("Bearer ")
                one = Arrived(key, connection, number, content)
                self.arrived.append(one)
                told = self.script(one)
                if isinstance(told, str):
                    if told == RESET:
                        writer.transport.abort()
                    elif told == HANG:
                        await reader.read()
                    break
                if self.slow_s:
                    await anyio.sleep(self.slow_s)
                writer.write(told)
                await writer.drain()
                if b"connection: close" in told:
                    break
        writer.close()
        self._writers.discard(writer)

    async def close(self) -> None:
        """Close what is open yet, and see it closed."""
        while self._writers:
            for writer in self._writers:
                writer.transport.abort()
            await anyio.lowlevel.checkpoint()
        await anyio.lowlevel.checkpoint()


@asynccontextmanager
async def serving(
    script: Callable[[Arrived], Answer] | Answer, *, slow_s: float = 0.0
) -> AsyncIterator[ScriptedServer]:
    """Serve on a port of this machine, each answer after `slow_s` seconds."""
    server = ScriptedServer(script if callable(script) else lambda _: script, slow_s)
    listening = await asyncio.start_server(server.take, "127.0.0.1", 0)
    server.url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    try:
        yield server
    finally:
        listening.close()
        with anyio.CancelScope(shield=True):
            await server.close()
