"""Why a host can't be reached, in words for people.

The rule here: the words are ours and the system's. Those of a library may hold anything, a password in an address too.
"""

from __future__ import annotations

import os
import socket
import ssl
from typing import TYPE_CHECKING

import httpx2

from penstock._core.failure import FailureKind, errors_below, failure_of_exception

if TYPE_CHECKING:
    from penstock._core.failure import Failure

__all__ = ["network_problem"]


def network_problem(error: BaseException, failure: Failure | None = None) -> str | None:
    """Return how the network failed, or what this machine lacks to use it; `None` if it was neither.

    Args:
        error: What was raised.
        failure: What that means, where it is known already.

    Example:
        >>> network_problem(httpx2.ConnectTimeout("…")), network_problem(ValueError("…"))
        ("can't reach the API: timed out", None)
    """
    failure = failure or failure_of_exception(error)
    below = list(errors_below(error))
    host = next((host for each in below if (host := _host_of(each))), "the API")
    why = next((why for each in reversed(below) if (why := _reason_of(each))), "the connection failed")
    if failure.kind is FailureKind.EXHAUSTED:
        return f"no connection can be had here: {why}"
    if failure.kind is FailureKind.TIMEOUT:
        return f"{host} doesn't answer in time" if failure.sent else f"can't reach {host}: timed out"
    if failure.kind is not FailureKind.CONNECTION:
        return None
    if failure.sent:
        return f"the connection to {host} was lost"
    by_proxy = any("Proxy" in type(each).__name__ for each in below)
    return f"can't reach {host}{' through the proxy' * by_proxy}: {why}"


def _host_of(error: BaseException) -> str | None:
    try:
        return error.request.url.host if isinstance(error, httpx2.RequestError) else None
    except RuntimeError:
        # Nobody has told it which request it is about.
        return None


def _reason_of(error: BaseException) -> str | None:
    if isinstance(error, httpx2.PoolTimeout):
        return "all are in use"
    if isinstance(error, httpx2.ProxyError):
        status = str(error)[:3]
        return f"it answered {status}" if status.isdecimal() else None
    if isinstance(error, ssl.SSLError):
        # Its numbers are no system's.
        return f"TLS was refused ({(getattr(error, 'reason', None) or 'no reason').replace('_', ' ').lower()})"
    if not isinstance(error, OSError) or error.errno is None:
        return None
    # Names that aren't found have numbers of their own, and words that name nothing.
    words = error.strerror if isinstance(error, socket.gaierror) else os.strerror(error.errno)
    return None if words is None else words.lower()
