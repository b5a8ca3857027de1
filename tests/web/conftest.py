"""What the tests of `penstock.web` share: browsers without a network, and servers with one."""

from __future__ import annotations

import json
import math
import socket
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import anyio
import pytest
import uvicorn
from starlette.websockets import WebSocket

from penstock import Client
from penstock.streaming import StreamManager, stream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from contextlib import AbstractAsyncContextManager

    from starlette.types import ASGIApp

    from penstock.simulator import Simulator


class Browser:
    """The other end of a WebSocket, by the words of ASGI.

    Attributes:
        frames: What it got, as Python objects.
        closed: The code that it was closed with.
        send_s: Seconds that it takes for each frame.
        on_frame: Called with each frame it got.
    """

    def __init__(self) -> None:
        self.frames: list[dict[str, Any]] = []
        self.times: list[float] = []
        self.closed: int | None = None
        self.send_s = 0.0
        self.on_frame: Callable[[dict[str, Any]], object] = lambda _frame: None
        self._put, self._said = anyio.create_memory_object_stream[dict[str, Any]](math.inf)

    def close(self) -> None:
        self._put.close()
        self._said.close()

    async def _send(self, message: Any) -> None:
        if message["type"] == "websocket.close":
            self.closed = message["code"]
        elif message["type"] == "websocket.send":
            await anyio.sleep(self.send_s)
            frame = json.loads(message["text"])
            self.frames.append(frame)
            self.times.append(anyio.current_time())
            self.on_frame(frame)

    async def connect(self) -> WebSocket:
        """Open the connection, and return the server's end of it."""
        self._put.send_nowait({"type": "websocket.connect"})
        websocket = WebSocket({"type": "websocket", "headers": []}, self._said.receive, self._send)
        await websocket.accept()
        return websocket

    def say(self, text: str | bytes) -> None:
        self._put.send_nowait({"type": "websocket.receive", "text" if isinstance(text, str) else "bytes": text})

    def leave(self, code: int = 1001) -> None:
        self._put.send_nowait({"type": "websocket.disconnect", "code": code, "reason": "gone"})

    @property
    def text(self) -> str:
        return "".join(frame["text"] for frame in self.frames if frame["type"] == "text")


@pytest.fixture
def browser() -> Iterator[Browser]:
    """A browser that has not connected yet."""
    made = Browser()
    yield made
    made.close()


class Api:
    """A simulator, and what a test does with it.

    Attributes:
        simulator: What answers.
    """

    def __init__(self, simulator: Simulator) -> None:
        self.simulator = simulator

    def client(self, **options: Any) -> Client:
        """Make a client of the simulator."""
        return Client(sdk=self.simulator.client(), **{"log": False, **options})

    def ask(self, claude: Client, text: str = "Hello there") -> StreamManager:
        """Ask for a stream of the question's first words, or of what the simulator was told to reply."""
        messages: list[Any] = [{"role": "user", "content": text}]
        return stream(claude.sdk, model="claude-sonnet-5-5", max_tokens=5000, messages=messages)

    def slots(self, claude: Client) -> int:
        """How many slots of a client are taken."""
        return claude.statistics().admission.slots_used

    def idle(self, claude: Client) -> bool:
        """Whether no request is under way, on either side."""
        return self.slots(claude) == self.simulator.in_flight == 0

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for something that another task brings about."""
        with anyio.fail_after(10):
            while not condition():  # noqa: ASYNC110 - nothing tells when it has come about
                await anyio.sleep(0.005)


@pytest.fixture
def api(simulator: Simulator) -> Api:
    """The simulator of the test, and what it takes to use it."""
    return Api(simulator)


class Served:
    """An application behind a real socket.

    Attributes:
        address: Host and port.
        server: What serves it.
    """

    def __init__(self, address: str, server: uvicorn.Server) -> None:
        self.address = address
        self.server = server


@pytest.fixture
def serve() -> Callable[[ASGIApp], AbstractAsyncContextManager[Served]]:
    """What serves an application from the event loop of the test, on 127.0.0.1."""

    @asynccontextmanager
    async def serves(app: ASGIApp) -> AsyncIterator[Served]:
        with socket.create_server(("127.0.0.1", 0), backlog=500) as listener:
            config = uvicorn.Config(app, log_level="critical", ws="websockets-sansio", timeout_graceful_shutdown=5)
            server = uvicorn.Server(config)
            host, port = listener.getsockname()
            async with anyio.create_task_group() as group:
                group.start_soon(server.serve, [listener])
                try:
                    with anyio.fail_after(10):
                        while not server.started:  # noqa: ASYNC110 - uvicorn has no event for it
                            await anyio.sleep(0.005)
                    yield Served(f"{host}:{port}", server)
                finally:
                    server.should_exit = True

    return serves
