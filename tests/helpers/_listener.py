"""A server of a few bytes: what comes is kept, and what goes is what the test says."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from typing import TYPE_CHECKING, Self

import anyio
import anyio.lowlevel

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Mapping

__all__ = ["MESSAGE", "Listener", "answer"]

MESSAGE = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": "claude-sonnet-5-5",
    "content": [{"type": "text", "text": "Hi"}],
    "stop_reason": "end_turn",
    "stop_sequence": None,
    "usage": {"input_tokens": 1, "output_tokens": 1},
}


def answer(status: int = 200, body: object = MESSAGE, headers: Mapping[str, str] | None = None) -> bytes:
    """The bytes of an answer."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = {"content-type": "application/json", "content-length": str(len(content)), **(headers or {})}
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"HTTP/1.1 {status} Any\r\n{head}\r\n".encode() + content


class Listener:
    """Listens on 127.0.0.1 and gives answers in turn, the last one for ever; `b""` for silence.

    Attributes:
        heads: What was asked: request lines and headers.
        bodies: And the bodies.
        connections: How many were made.
        open: How many there are.
        url: Where it listens.
    """

    def __init__(self, *answers: bytes, tls: ssl.SSLContext | None = None) -> None:
        self._tls = tls
        self.answers = list(answers)
        self.heads: list[str] = []
        self.bodies: list[bytes] = []
        self.connections = self.open = 0

    async def __aenter__(self) -> Self:
        self._writers: set[asyncio.StreamWriter] = set()
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, backlog=1000, limit=2**20, ssl=self._tls)
        self.port: int = self._server.sockets[0].getsockname()[1]
        self.url = f"http{'' if self._tls is None else 's'}://127.0.0.1:{self.port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        while self._writers:
            for writer in self._writers:
                writer.transport.abort()
            await anyio.lowlevel.checkpoint()
        await self._server.wait_closed()

    async def until(self, reached: Callable[[], bool], *, within_s: float = 10) -> None:
        """Wait until something is so."""
        with anyio.fail_after(within_s):
            while not reached():  # noqa: ASYNC110 - what is waited for happens in the code under test
                await anyio.sleep(0.005)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.open += 1
        self._writers.add(writer)
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                lengths = [line for line in head.lower().splitlines() if line.startswith("content-length:")]
                body = await reader.readexactly(int(lengths[0].split(":")[1])) if lengths else b""
                self.heads.append(head)
                self.bodies.append(body)
                writer.write(self.answers.pop(0) if len(self.answers) > 1 else self.answers[0])
                await writer.drain()
        self.open -= 1
        self._writers.discard(writer)
        writer.close()
