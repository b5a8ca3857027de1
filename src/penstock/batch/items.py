"""The items of a fan-out, as the input gives them.

The rule here: what is wrong with an item is told by its place in the input, and fails that item alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias, cast

from pydantic import BaseModel

from penstock._core.context import PRIORITIES
from penstock.batch.headers import check_headers

__all__ = ["Item", "Placed", "Request", "copied", "name_of", "read_item"]

Request: TypeAlias = "str | Mapping[str, Any]"


@dataclass(slots=True, kw_only=True)
class Item:
    """One item of the input; made anew for each, and completed by whoever reads the input.

    Attributes:
        index: Place in the input, from 0.
        custom_id: Its name.
        params: Of `messages.create`, its own and the common ones.
        labels: Its own.
        by_place: Whether nothing but its place names it.
        request: Digest of its params; `None` where nobody needs it.
    """

    index: int
    custom_id: str
    params: Mapping[str, Any] = field(repr=False)
    labels: Mapping[str, str]
    by_place: bool = False
    request: str | None = None


class Placed(dict[str, Any]):
    """A request whose `custom_id` is but its place in the input."""


def name_of(index: int, request: object) -> str:
    """Return an item's custom_id, or its index if it has none."""
    if isinstance(request, Mapping):
        given = cast("Mapping[str, object]", request).get("custom_id")
        if isinstance(given, str) and given:
            return given
    return str(index)


def read_item(index: int, request: object) -> Item:
    """Read an item.

    Args:
        index: Place in the input, from 0.
        request: A prompt, or a request as Message Batches takes it; it may have `labels` besides.

    Returns:
        The item with its own params.

    Raises:
        TypeError: It is neither, or a part of it has the wrong type.
        ValueError: It has no `custom_id`, or asks for a stream.

    Example:
        >>> read_item(3, "Hello").custom_id
        '3'
    """
    if isinstance(request, str):
        asked = {"messages": [{"role": "user", "content": request}]}
        return Item(index=index, custom_id=str(index), params=asked, labels={}, by_place=True)
    if not isinstance(request, Mapping):
        raise TypeError(
            f"item {index} must be a prompt or a mapping with custom_id and params, not {type(request).__name__}"
        )
    item = cast("Mapping[str, object]", request)
    custom_id, params, own = item.get("custom_id"), item.get("params"), item.get("labels")
    if not isinstance(custom_id, str) or not custom_id:
        raise ValueError(f"item {index} has no custom_id: give it a text that names it")
    if not isinstance(params, Mapping):
        raise TypeError(f"item {index} has no params: give it those of messages.create")
    wanted = cast("Mapping[str, Any]", params)
    if wanted.get("stream"):
        raise ValueError(f"item {index} asks for a stream; a fan-out gives whole messages")
    check_headers(index, wanted.get("extra_headers"))
    return Item(
        index=index,
        custom_id=custom_id,
        params=copied(wanted),
        labels=_labels(index, own),
        by_place=isinstance(request, Placed),
    )


def copied(params: Mapping[str, Any]) -> dict[str, Any]:
    """Return params as they are now, so that whoever gave them may use the same object for the next ones.

    Example:
        >>> params = {"messages": [{"role": "user", "content": "one"}]}
        >>> kept = copied(params)
        >>> params["messages"][0]["content"] = "two"
        >>> kept["messages"][0]["content"]
        'one'
    """
    return {name: _copied(value) for name, value in params.items()}


def _copied(value: object) -> object:
    kind = type(value)
    if kind is str or kind is int:
        return value
    if isinstance(value, Mapping):
        return {name: _copied(each) for name, each in cast("Mapping[object, object]", value).items()}
    if isinstance(value, list):
        return [_copied(each) for each in cast("list[object]", value)]
    if isinstance(value, tuple):
        return tuple(map(_copied, cast("tuple[object, ...]", value)))
    # A block of an answer; what else there is has nothing inside that changes, or is the SDK's to judge.
    return value.model_copy(deep=True) if isinstance(value, BaseModel) else value


def _labels(index: int, own: object) -> dict[str, str]:
    if own is None:
        return {}
    given = cast("Mapping[object, object]", own) if isinstance(own, Mapping) else {None: own}
    labels = {name: value for name, value in given.items() if isinstance(name, str) and isinstance(value, str)}
    if len(labels) < len(given):
        raise TypeError(f"item {index} has bad labels: give it a mapping of texts to texts")
    if labels.get("priority", "batch") not in PRIORITIES:
        allowed = ", ".join(PRIORITIES)
        raise ValueError(f"item {index} has the priority {labels['priority'][:20]!r}: it must be one of {allowed}")
    return labels
