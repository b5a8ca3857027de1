"""The in-process front end: an `httpx2` transport without sockets that streams for real, under virtual time too.

Chunks are handed over as they are produced; closing early is noticed; a cut connection and a read timeout
raise what `httpx2` raises over a socket. Nothing runs in the background.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import anyio
import anyio.lowlevel
import httpx2

from penstock.simulator.exchange import Dropped
from penstock.simulator.wire import Request

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from penstock.simulator.exchange import Exchange, Service

__all__ = ["SimulatorTransport"]


class SimulatorTransport(httpx2.AsyncBaseTransport):
    """Hands every request to a `Simulator`, whatever host it names."""

    def __init__(self, simulator: Service) -> None:
        self._simulator = simulator

    def __repr__(self) -> str:
        return f"SimulatorTransport({self._simulator!r})"

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Answer `request`; raises `httpx2.ReadError`, `httpx2.ReadTimeout` as a socket would."""
        exchange = self._simulator.open(
            Request(
                method=request.method,
                path=request.url.path,
                query=dict(request.url.params),
                headers=dict(request.headers),
                body=await request.aread(),
            )
        )
        timeout_s = _read_timeout(request)
        try:
            await _wait(exchange.delay_s, timeout_s)
            status = exchange.begin()
        except Dropped:
            exchange.close(complete=True)
            raise httpx2.ReadError("connection reset by peer", request=request) from None
        except BaseException:
            exchange.close(complete=False)
            raise
        body = _Body(exchange, timeout_s)
        return httpx2.Response(status, headers=exchange.headers, stream=body, extensions={"http_version": b"HTTP/1.1"})


class _Body(httpx2.AsyncByteStream):
    """The body of one response; like a socket's, it closes itself when reading it fails or is cancelled."""

    def __init__(self, exchange: Exchange, timeout_s: float) -> None:
        self._exchange = exchange
        self._timeout_s = timeout_s

    async def __aiter__(self) -> AsyncIterator[bytes]:
        sent = 0
        try:
            for step in self._exchange.steps:
                await _wait(step.delay_s, self._timeout_s)
                chunk = self._exchange.produce(step)
                sent += len(chunk)
                yield chunk
        except Dropped:
            self._exchange.close(complete=True)
            raise httpx2.RemoteProtocolError(self._explain(sent)) from None
        except BaseException:
            self._exchange.close(complete=False)
            raise
        self._exchange.close(complete=True)

    async def aclose(self) -> None:
        self._exchange.close(complete=False)

    def _explain(self, sent: int) -> str:
        expected = self._exchange.headers.get("content-length")
        detail = "incomplete chunked read" if expected is None else f"received {sent} bytes, expected {expected}"
        return f"peer closed connection without sending complete message body ({detail})"


def _read_timeout(request: httpx2.Request) -> float:
    timeout = request.extensions.get("timeout", {}).get("read")
    return math.inf if timeout is None else float(timeout)


async def _wait(seconds: float, timeout_s: float) -> None:
    """Wait as long as the response takes, but no longer than the reader is ready to."""
    if seconds == 0:
        await anyio.lowlevel.checkpoint()
    elif seconds >= timeout_s:
        await anyio.sleep(timeout_s)
        raise httpx2.ReadTimeout(f"nothing received for {timeout_s:g} s")
    else:
        await anyio.sleep(seconds)
