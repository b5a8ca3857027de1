"""What a request asks for, as one short text: to tell whether a journal's answer is that of the same request.

The rule here: two requests have the same digest if the API would be sent the same JSON. The order of keys counts for
nothing; what only the SDK sees (`timeout`, `extra_headers`, `extra_query`) counts for nothing either. The first half of
a digest is that of the item's own params, so that a prompt can be told from another one, whatever all have in common.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any, Final

from anthropic import NotGiven, Omit
from pydantic import BaseModel

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["RequestDigest", "encode_params", "same_prompt"]

_HALF_BITS: Final = 32
_NOT_SENT: Final = frozenset({"timeout", "extra_headers", "extra_query"})


def _plain(value: object) -> object:
    if isinstance(value, BaseModel):
        # Blocks of an answer go back to the API as they came.
        return value.model_dump(mode="json", by_alias=True, exclude_unset=True, warnings=False)
    raise TypeError(f"params must be what JSON can hold, and {type(value).__name__} is not")


_encode: Final = json.JSONEncoder(sort_keys=True, separators=(",", ":"), default=_plain, allow_nan=False).encode


class RequestDigest:
    """Digests requests that have most of their params in common.

    Args:
        common: Params of every request; encoded once, so they must not change.

    Example:
        >>> digest = RequestDigest({"model": "claude-haiku-5-5", "max_tokens": 9})
        >>> digest({"messages": []}) == RequestDigest({"max_tokens": 9, "model": "claude-haiku-5-5"})({"messages": []})
        True
        >>> len(digest({}))
        16
    """

    __slots__ = ("_common", "_encoded")

    def __init__(self, common: Mapping[str, Any]) -> None:
        self._common = common
        self._encoded: dict[str, bytes] | None = None

    def __repr__(self) -> str:
        return f"<RequestDigest, {len(self._common)} params in common>"

    def __call__(self, params: Mapping[str, Any]) -> str:
        """Return the digest of a request: 16 hex digits.

        Args:
            params: Of the one request; they win over the common ones.

        Raises:
            TypeError: They are nothing that JSON can hold.
            ValueError: They contain themselves, or a number that JSON doesn't have (`nan`, `inf`).
        """
        if self._encoded is None:
            # Not when it is made: params that can't be encoded fail the items, as they would fail the requests.
            self._encoded = _lines(self._common)
        own = _lines(params)
        return _half(own) + _half({**self._encoded, **own})


def same_prompt(request: int, other: int) -> bool:
    """Return whether two digests, as numbers, are of requests whose own params are the same.

    Example:
        >>> ask = {"messages": []}
        >>> one, other = (RequestDigest({"model": model})(ask) for model in ("claude-haiku-5-5", "claude-opus-5"))
        >>> one == other, same_prompt(int(one, 16), int(other, 16))
        (False, True)
    """
    return request >> _HALF_BITS == other >> _HALF_BITS


def _half(lines: Mapping[str, bytes]) -> str:
    return hashlib.blake2b(b"".join([lines[name] for name in sorted(lines)]), digest_size=_HALF_BITS // 8).hexdigest()


def encode_params(params: Mapping[str, Any]) -> str:
    """Return a request's params as JSON: those that the API is sent.

    Raises:
        TypeError: They are nothing that JSON can hold.
    """
    return _encode(
        {
            name: value
            for name, value in params.items()
            if name not in _NOT_SENT and not isinstance(value, NotGiven | Omit)
        }
    )


def _lines(params: Mapping[str, Any]) -> dict[str, bytes]:
    """Return a line for each param; one that is not given has an empty one, because it takes a common one away."""
    return {
        name: b"" if isinstance(value, NotGiven | Omit) else b"%b:%b\n" % (_bytes(name), _bytes(value))
        for name, value in params.items()
        if name not in _NOT_SENT
    }


def _bytes(value: object) -> bytes:
    return _encode(value).encode()
