"""What a request is, read off its URL, and which model its body names.

The rule here: nothing is looked up, and nothing raises: both answers follow from the request alone.
"""

from __future__ import annotations

import enum
from functools import lru_cache
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from collections.abc import Mapping

    from anthropic import APIRequest

__all__ = ["RequestKind", "kind_of", "model_of"]


class RequestKind(enum.Enum):
    """Which guards a request passes."""

    MESSAGES = "messages"
    """`/v1/messages`: passes every guard."""
    COUNT_TOKENS = "count_tokens"
    """`/v1/messages/count_tokens`: has a requests bucket of its own."""
    OTHER = "other"
    """Models, batches, files and the rest: record, retry and key only."""


@lru_cache(maxsize=1024)
def kind_of(method: str, url: str) -> RequestKind:
    """Return the kind of a request, by its method and URL (with or without host and query).

    Example:
        >>> kind_of("post", "/v1/messages?beta=true")
        <RequestKind.MESSAGES: 'messages'>
    """
    if method.lower() != "post":
        return RequestKind.OTHER
    path = url.partition("?")[0].rstrip("/")
    if path.endswith("/v1/messages"):
        return RequestKind.MESSAGES
    if path.endswith("/v1/messages/count_tokens"):
        return RequestKind.COUNT_TOKENS
    return RequestKind.OTHER


def model_of(request: APIRequest) -> str:
    """Return the model that a request names, or `""`."""
    body = request.json
    model = cast("Mapping[str, object]", body).get("model") if isinstance(body, dict) else None
    return model if isinstance(model, str) else ""
