"""The headers that an item may bring.

The rule here: an item is data, and data doesn't say who asks, whom, or how a request is framed. What a program gives
all items in common is its own matter.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, cast

from penstock._core.secret import names_credential

__all__ = ["check_headers"]

# Besides credentials, of whatever provider or proxy.
_CLIENT_S: Final = frozenset(
    (
        # Who pays.
        "x-goog-user-project",
        # Whom it asks.
        *("host", ":authority", "forwarded", "x-forwarded-host"),
        # How it is framed: one that disagrees with the body lets a proxy take its end for another request.
        *("content-length", "transfer-encoding", "connection", "proxy-connection", "keep-alive", "te", "trailer"),
        *("upgrade", "expect"),
    )
)


def check_headers(index: int, headers: object) -> None:
    """Refuse headers of an item that replace what is the client's to say: credentials, the host, the framing.

    Args:
        index: Place of the item in the input, from 0.
        headers: Its `extra_headers`, as given; `None` for none.

    Raises:
        TypeError: They are no mapping of names.
        ValueError: One of them is the client's, however it is spelled.

    Example:
        >>> check_headers(3, {"anthropic-beta": "context-1m-2025-08-07"})
        >>> check_headers(3, {"Authorization ": "Bearer …"})
        Traceback (most recent call last):
            ...
        ValueError: item 3 sets the header authorization, which is for the client alone: leave it out of extra_headers
    """
    if headers is None:
        return
    if not isinstance(headers, Mapping):
        raise TypeError(f"item {index} has bad extra_headers: give it a mapping of names to texts")
    for given in cast("Mapping[object, object]", headers):
        name = _plain(given)
        if name is None:
            raise TypeError(f"item {index} has bad extra_headers: give it a mapping of names to texts")
        if name in _CLIENT_S or names_credential(name.encode(errors="replace")):
            raise ValueError(
                f"item {index} sets the header {name}, which is for the client alone: leave it out of extra_headers"
            )


def _plain(name: object) -> str | None:
    """Return a name as the most lenient reader takes it: in any case, with blanks, underscores for hyphens."""
    text = name.decode("latin-1") if isinstance(name, bytes) else name
    return "".join(text.split()).lower().replace("_", "-").rstrip(":") if isinstance(text, str) else None
