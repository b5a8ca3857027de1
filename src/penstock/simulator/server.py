"""The server front end: the simulator behind real sockets, on Starlette and uvicorn. It waits, sends, decides nothing.

A dropped connection is really dropped. That needs uvicorn, whose transport is reached through the `send` callable;
under another server a drop ends in whatever that server does when an application fails.
"""

from __future__ import annotations

import socket
import struct
import threading
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, cast
from urllib.parse import parse_qsl

import anyio

from penstock.simulator.exchange import Dropped
from penstock.simulator.validate.request import max_bytes
from penstock.simulator.wire import Request, dump

try:
    import uvicorn
    from starlette.applications import Starlette
    from starlette.responses import Response
    from starlette.routing import Route
except ImportError as missing:
    raise ImportError(
        f"the simulator's server needs {missing.name}: pip install 'penstock[simulator]'", name=missing.name
    ) from missing

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Generator

    from starlette.requests import Request as HttpRequest
    from starlette.types import Receive, Scope, Send

    from penstock.simulator.exchange import Exchange, Service
    from penstock.simulator.journal import JournalEntry

__all__ = ["application", "run", "serving"]

_CONNECTION = "penstock.connection"
_LOOPBACK = ("127.0.0.1", "::1")
_JOURNAL_PAGE = 1000
# A body of any size is sent in pieces of about this size.
_PIECE = 65_536
_RESET = struct.pack("ii", 1, 0)


class _ClientLeft(Exception):
    """The client closed the connection before it had everything."""


class _Application(Starlette):
    """A Starlette application that knows the connection of each request."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        cycle = getattr(send, "__self__", None)
        scope[_CONNECTION] = getattr(cycle, "transport", None)
        await super().__call__(scope, receive, send)


def application(simulator: Service) -> Starlette:
    """`simulator` as a Starlette application: the API, and `/_simulator/…` for callers on this machine."""

    async def statistics(request: HttpRequest) -> Response:
        return _local(request, asdict(simulator.statistics()))

    async def journal(request: HttpRequest) -> Response:
        after = request.query_params.get("after", "0")
        number = int(after) if after.isascii() and after.isdecimal() else 0
        return _local(request, [_line(entry) for entry in simulator.journal_after(number)[:_JOURNAL_PAGE]])

    routes = [
        Route("/_simulator/statistics", statistics),
        Route("/_simulator/journal", journal),
        Route("/{path:path}", _Api(simulator)),
    ]
    return _Application(routes=routes)


def _local(request: HttpRequest, content: object) -> Response:
    if request.client is None or request.client.host not in _LOOPBACK:
        return Response(status_code=404)
    return Response(dump(content), media_type="application/json")


def _line(entry: JournalEntry) -> dict[str, object]:
    hidden = {"body", "headers", "key"}
    return {name: getattr(entry, name) for name in entry.__slots__ if name not in hidden}


class _Api:
    """The ASGI application that answers for the API."""

    def __init__(self, simulator: Service) -> None:
        self._simulator = simulator

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            exchange = self._simulator.open(await _request(scope, receive))
        except _ClientLeft:
            return
        try:
            await _pause(exchange.delay_s, receive)
            await _send(exchange, receive, send)
        except _ClientLeft:
            exchange.close(complete=False)
        except Dropped:
            exchange.close(complete=True)
            await _drop(scope, receive, reset=not exchange.headers)
        finally:
            exchange.close(complete=False)


async def _request(scope: Scope, receive: Receive) -> Request:
    body = bytearray()
    size, most = 0, max_bytes(scope["path"])
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _ClientLeft
        chunk: bytes = message.get("body", b"")
        size += len(chunk)
        if size <= most:
            body += chunk
        more = bool(message.get("more_body"))
    return Request(
        method=scope["method"],
        path=scope["path"],
        query=dict(parse_qsl(scope["query_string"].decode("latin-1"))),
        headers={name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]},
        body=bytes(body),
        too_large=size > most,
    )


async def _pause(seconds: float, receive: Receive) -> None:
    """Wait, unless the client leaves meanwhile."""
    if seconds <= 0:
        return
    with anyio.move_on_after(seconds):
        await receive()  # the body is read, so that nothing but the end of the connection is left to receive
        raise _ClientLeft


async def _send(exchange: Exchange, receive: Receive, send: Send) -> None:
    status = exchange.begin()
    headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in exchange.headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    held = b""
    try:
        for step in exchange.steps:
            if step.delay_s > 0:
                held = await _flush(held, send)
                await _pause(step.delay_s, receive)
            held += exchange.produce(step)
            if len(held) >= _PIECE:
                held = await _flush(held, send)
    except Dropped:
        await _flush(held, send)
        raise
    await send({"type": "http.response.body", "body": held})
    exchange.close(complete=True)


async def _flush(held: bytes, send: Send) -> bytes:
    """Send what is held back; pieces that are due at the same moment go out together."""
    await send({"type": "http.response.body", "body": held, "more_body": True})
    return b""


async def _drop(scope: Scope, receive: Receive, *, reset: bool) -> None:
    connection = cast("asyncio.Transport | None", scope.get(_CONNECTION))
    if connection is None:
        raise ConnectionAbortedError("a fault drops this connection, which this server cannot do; uvicorn can")
    if reset:
        connection.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        connection.abort()
    else:
        connection.close()
    await receive()


class _Server(uvicorn.Server):
    """Says where it listens, once it does."""

    def __init__(self, simulator: Service, listener: socket.socket, ready: Callable[[str], object]) -> None:
        super().__init__(
            uvicorn.Config(
                application(simulator),
                access_log=False,
                date_header=False,  # the simulator's own clock dates its answers
                lifespan="off",
                log_level="warning",
                server_header=False,
                timeout_graceful_shutdown=1,
                timeout_keep_alive=60,
                ws="none",
            )
        )
        self._listener = listener
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        self._ready(_url(self._listener))

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for protocol in list(self.server_state.connections):
            protocol.transport.abort()  # or a stalled response would hold it up
        await super().shutdown(sockets=sockets)

    def listen(self) -> None:
        """Serve until told to exit."""
        self.run(sockets=[self._listener])


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # Named as TCP, because asyncio sends small pieces at once only on sockets that say so.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(2048)
    except OSError:
        listener.close()
        raise
    return listener


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def run(
    simulator: Service,
    *,
    host: str = "127.0.0.1",
    port: int = 8080,
    ready: Callable[[str], object] = str,
) -> None:
    """Serve `simulator` until Ctrl-C.

    Args:
        simulator: answers the requests.
        host: address to listen at; anything but a loopback address lets other machines in.
        port: 0 picks a free one.
        ready: called with the URL once it listens.

    Raises:
        OSError: the address is in use, or not of this machine.
    """
    server = _Server(simulator, _listen(host, port), ready)
    try:
        server.listen()
    except KeyboardInterrupt:
        return


@contextmanager
def serving(simulator: Service, *, host: str = "127.0.0.1", port: int = 0) -> Generator[str]:
    """Serve `simulator` from a thread of its own, as long as the block lasts; gives the URL.

    Example:
        >>> from penstock.simulator import Simulator
        >>> from penstock.simulator.server import serving
        >>> with serving(Simulator()) as url:
        ...     url.startswith("http://127.0.0.1:")
        True
    """
    listening = threading.Event()
    where: list[str] = []

    def ready(url: str) -> None:
        where.append(url)
        listening.set()

    server = _Server(simulator, _listen(host, port), ready)
    thread = threading.Thread(target=server.listen, name="penstock-simulator", daemon=True)
    thread.start()
    listening.wait()
    try:
        yield where[0]
    finally:
        server.should_exit = True
        thread.join()
