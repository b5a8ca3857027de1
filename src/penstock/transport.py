"""How requests reach the API: the http client of our own, and what every http client is held to.

The rule here: a request goes to where the SDK client points and nowhere else, an answer is read no further than it may
go, and a connection that nothing passes for minutes stays one.
"""

from __future__ import annotations

import socket
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Literal, cast

import anthropic
import httpx2

from penstock._core.attempt import read_whole
from penstock._core.call import current_call

if TYPE_CHECKING:
    import ssl
    from collections.abc import Awaitable, Callable

    import aiohttp

__all__ = ["held", "own_http_client"]

_KEEP_ALIVE_S: Final = {"TCP_KEEPIDLE": 60, "TCP_KEEPALIVE": 60, "TCP_KEEPINTVL": 60}
_KEEP_ALIVE: Final = {**_KEEP_ALIVE_S, "TCP_KEEPCNT": 5}
"""As the SDK's own default client has it; each system knows some of these names."""

# Proxies and tracing add headers: httpx2 takes 100 kB of them together, aiohttp by itself 8 kB a line and 128 lines.
_HEADER_LINE_BYTES: Final = 65_536
_HEADER_LINES: Final = 1_000


def own_http_client(kind: Literal["aiohttp", "httpx2"], *, most_at_once: int) -> httpx2.AsyncClient:
    """Return an http client as the SDK's own makes it, proxies and certificates of the environment included.

    Args:
        kind: What carries the requests.
        most_at_once: Requests that may be under way together.
    """
    # Never fewer connections than slots, or requests that were let in would wait a second time, unseen.
    limits = httpx2.Limits(
        max_connections=max(1000, most_at_once),
        max_keepalive_connections=max(100, most_at_once),
        keepalive_expiry=30.0,
    )
    if kind == "httpx2":
        return anthropic.DefaultAsyncHttpxClient(limits=limits)
    http_client: Any = anthropic.DefaultAioHttpClient(limits=limits)
    # One for each proxy of the environment; `None` where none is used. A test watches that they are what they are.
    for transport in (http_client._transport, *http_client._mounts.values()):  # noqa: SLF001
        if transport is not None:
            transport.client = partial(_session, transport.ssl_context, limits)
    return cast("httpx2.AsyncClient", http_client)


def _session(ssl_context: ssl.SSLContext, limits: httpx2.Limits) -> aiohttp.ClientSession:
    """Make what sends with aiohttp, in the event loop in which it does."""
    import aiohttp  # noqa: PLC0415 - not loaded where it isn't used

    connector = aiohttp.TCPConnector(
        limit=limits.max_connections or 0,
        keepalive_timeout=limits.keepalive_expiry,
        ssl=ssl_context,
        socket_factory=_kept_alive,
    )
    return aiohttp.ClientSession(
        connector=connector,
        max_line_size=_HEADER_LINE_BYTES,
        max_field_size=_HEADER_LINE_BYTES,
        max_headers=_HEADER_LINES,
    )


def _kept_alive(address: tuple[Any, ...]) -> socket.socket:
    """Make a socket that stays in use while nothing passes: a router would forget it, and both sides wait for ever."""
    made = socket.socket(*address[:3])
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEP_ALIVE.items():
        if (option := getattr(socket, name, None)) is not None:
            made.setsockopt(socket.IPPROTO_TCP, option, value)
    return made


def held(http_client: httpx2.AsyncClient) -> httpx2.AsyncClient:
    """Return a client that is `http_client` in everything, but reads and follows no further than it may.

    A guard can't: where nothing is streamed, the client has read the answer before any of them sees it.
    """
    kind: Any = type(http_client)

    class Held(kind):  # type: ignore[misc] # it stays whatever it is
        async def send(
            self,
            request: httpx2.Request,
            *,
            stream: bool = False,
            follow_redirects: Any = httpx2.USE_CLIENT_DEFAULT,
            **options: Any,
        ) -> httpx2.Response:
            given: Any = super()
            response: httpx2.Response = await given.send(request, stream=True, follow_redirects=False, **options)
            if response.next_request is not None:
                follows = self.follow_redirects if follow_redirects is httpx2.USE_CLIENT_DEFAULT else follow_redirects
                if follows:
                    send = partial(given.send, stream=True, follow_redirects=False, **options)
                    response = await _followed(response, send, most=self.max_redirects)
            if not stream:
                await _read(response)
            return response

        def __del__(self) -> None:
            """Close nothing: it is the other's."""

    same: httpx2.AsyncClient = Held.__new__(Held)
    # All that it has and opens is the other's; so closing one closes both.
    same.__dict__ = http_client.__dict__
    return same


async def _read(response: httpx2.Response) -> None:
    try:
        await read_whole(response)
    except BaseException:
        await response.aclose()
        raise


async def _followed(
    response: httpx2.Response, send: Callable[[httpx2.Request], Awaitable[httpx2.Response]], *, most: int
) -> httpx2.Response:
    """Follow redirects within one host, scheme and port: what is sent is meant for nobody else."""
    history: list[httpx2.Response] = []
    while (following := response.next_request) is not None:
        if following.url.origin != response.request.url.origin:
            _tell(following.url)
            break
        await _read(response)
        if len(history) == most:
            raise httpx2.TooManyRedirects("Exceeded maximum allowed redirects.", request=following)
        history.append(response)
        # Else aiohttp sends what there is in chunks, where there is nothing as well.
        await following.aread()
        response = await send(following)
        response.history = list(history)
    return response


def _tell(url: httpx2.URL) -> None:
    if (call := current_call.get()) is not None:
        call.notes.append(
            f"a redirect to {url.scheme}://{url.host[:100]} was not followed, because credentials and prompts go to "
            "base_url only; if it is meant, make that the base_url"
        )
