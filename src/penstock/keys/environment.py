"""API keys in the environment.

The rule here: read when asked, never at import time, and never shown.
"""

from __future__ import annotations

import os

from penstock._core.secret import Secret
from penstock.errors import KeyNotFound

__all__ = ["as_secret", "keys_of_environment"]


def as_secret(key: str | Secret) -> Secret:
    """Return `key` as one that a header can carry.

    Raises:
        ValueError: It is empty, or holds something else than printable ASCII characters.

    Example:
        >>> as_secret(" sk-example ")
        Secret('key-f2d4b279')
    """
    if isinstance(key, Secret):
        return key
    text = key.strip()
    if not (text and text.isascii() and text.isprintable()):
        raise ValueError("must be API keys, each a text of printable ASCII characters that is not empty")
    return Secret(text)


def keys_of_environment() -> tuple[Secret, ...]:
    """Return the key that the official SDK would take, `ANTHROPIC_API_KEY`.

    Raises:
        KeyNotFound: There is none; it names every place where one may stand.
    """
    key = os.environ.get("ANTHROPIC_API_KEY", "").strip()
    if not key:
        raise KeyNotFound(("Client(api_keys=…)", "PENSTOCK_API_KEYS", "ANTHROPIC_API_KEY"))
    return (as_secret(key),)
