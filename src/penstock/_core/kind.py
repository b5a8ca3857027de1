"""What a request is, read off its URL, and which pool of limits its model belongs to.

The rule here: nothing is looked up; both answers follow from the text alone, so that an unknown model still gets one:
its own class.
"""

from __future__ import annotations

import enum
import re
from functools import lru_cache
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from collections.abc import Mapping

    from anthropic import APIRequest

__all__ = ["RequestKind", "kind_of", "model_class", "model_of", "model_version"]


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


_FAMILY = re.compile(r"claude-(opus|sonnet|haiku|fable|mythos)-(\d+)(?:-(\d{1,2}))?(?![\d])")
_SHARED = {
    **dict.fromkeys(("opus-4-5", "opus-4-6", "opus-4-7", "opus-4-8"), "opus-4"),
    **dict.fromkeys(("sonnet-4-5", "sonnet-4-6"), "sonnet-4"),
}


@lru_cache(maxsize=1024)
def model_class(model: str) -> str:
    """Return the pool of rate limits that `model` belongs to; models that share a pool have the same class.

    Pools as documented under "Rate limits": Opus 4.5 to 4.8 share one, as do Sonnet 4.5 and 4.6, the Fable 5 models,
    and the Mythos models; every other model has its own. An unknown name is its own class.

    Example:
        >>> model_class("us.anthropic.claude-opus-4-8-v1:0"), model_class("claude-opus-5-5")
        ('opus-4', 'opus-5-5')
    """
    match = _FAMILY.search(model)
    if match is None:
        return model
    family, major, minor = match.groups()
    if family in {"fable", "mythos"}:
        return family
    name = "-".join(filter(None, (family, major, minor)))
    return _SHARED.get(name, name)


def model_version(model: str) -> tuple[int, int] | None:
    """Return the version of a Claude model; `None` for an unknown name.

    Example:
        >>> model_version("claude-opus-4-8"), model_version("claude-sonnet-5"), model_version("another")
        ((4, 8), (5, 0), None)
    """
    match = _FAMILY.search(model)
    return None if match is None else (int(match.group(2)), int(match.group(3) or 0))
