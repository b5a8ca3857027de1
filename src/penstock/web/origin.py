"""Whose page opened a WebSocket.

The rule here: browsers let every page open a WebSocket to every server, cookies included, and only say where the page
came from. A server that spends money on its users' behalf must look.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Collection

    from starlette.requests import HTTPConnection

__all__ = ["check_origin"]

_PORTS: Final = {"http": 80, "https": 443}


def check_origin(connection: HTTPConnection, *, allowed: Collection[str] = ()) -> bool:
    """Return whether a WebSocket was opened by a page of this server, or of another that is allowed.

    The header `Origin` must name the host and port of the header `Host`, or be one of `allowed`. A handshake without an
    `Origin` comes from no browser, and passes: it carries nobody's cookies but its own. Check the host too where the
    server is reached by a name (Starlette's `TrustedHostMiddleware`), or a page may pretend to be of this server by
    letting its own name point here.

    Args:
        connection: The WebSocket, not yet accepted; close it if this is false, and the browser gets a 403.
        allowed: Origins of other pages, e.g. `https://app.example.com`.

    Example:
        >>> from starlette.requests import HTTPConnection
        >>> headers = [(b"host", b"127.0.0.1:8000"), (b"origin", b"https://evil.example")]
        >>> check_origin(HTTPConnection({"type": "websocket", "headers": headers}))
        False
    """
    origins = connection.headers.getlist("origin")
    if not origins:
        return True
    if len(origins) > 1:
        return False
    return origins[0] in allowed or _same_origin(origins[0], connection.headers.get("host", ""))


def _same_origin(origin: str, host: str) -> bool:
    try:
        page, server = urlsplit(origin), urlsplit(f"//{host}")
        # A proxy that ends TLS leaves the server no way to know the scheme; it follows the page's.
        port = _PORTS.get(page.scheme)
        return (
            port is not None
            and bool(page.hostname)
            and page.hostname == server.hostname
            and (page.port or port) == (server.port or port)
        )
    except ValueError:
        # No valid host or port.
        return False
