"""The texts of a request that come from outside: what users wrote, what tools returned, what stands in documents.

The rule here: the caller's own objects are never changed. What differs is made anew, with all that it stands in, and
whatever does not differ is the very same object. Turns of the model are nobody's to change: the API wants them back as
it gave them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeAlias, cast

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["Change", "Fields", "changed_message", "changed_messages", "characters_of"]

Change: TypeAlias = "Callable[[str, str], str]"
"""Returns what is to stand for a text, given the text and its place."""
Fields: TypeAlias = "dict[str, object]"

# By type of block: which fields are text, and which hold text or further blocks.
_TEXTS: Final[dict[str, tuple[str, ...]]] = {
    "text": ("text",),
    "document": ("title", "context"),
    "search_result": ("title", "source"),
}
_CONTENTS: Final[dict[str, tuple[str, ...]]] = {"tool_result": ("content",), "search_result": ("content",)}
_SOURCES: Final[dict[str, str]] = {"text": "data", "content": "content"}


def _changed(content: object, place: str, change: Change) -> object:
    """Return text or blocks with every text changed; the very same object if nothing has changed."""
    if isinstance(content, str):
        return change(content, place)
    blocks = _sequence(content)
    after = [_changed_block(block, f"{place}.{number}", change) for number, block in enumerate(blocks)]
    return content if _same(blocks, after) else after


def _changed_block(block: object, place: str, change: Change) -> object:
    fields = _fields(block)
    kind = str(fields.get("type"))
    changed = _changed_fields(fields, (*_TEXTS.get(kind, ()), *_CONTENTS.get(kind, ())), place, change)
    source = _fields(fields.get("source"))
    name = _SOURCES.get(str(source.get("type"))) if kind == "document" else None
    if name is not None:
        new = _changed_fields(source, (name,), f"{place}.source", change)
        changed = changed if new is source else {**changed, "source": new}
    return block if changed is fields else changed


def _changed_fields(fields: Fields, names: Sequence[str], place: str, change: Change) -> Fields:
    changed = {name: _changed(fields[name], f"{place}.{name}", change) for name in names if name in fields}
    return fields if all(fields[name] is value for name, value in changed.items()) else {**fields, **changed}


def changed_messages(body: object, change: Callable[[Fields, str], Fields]) -> object:
    """Return the body of a request with every message of the role `user` changed.

    Args:
        body: As the SDK is about to send it.
        change: Given a message and its place, e.g. `messages.3`.
    """
    fields = _fields(body)
    messages = _sequence(fields.get("messages"))
    after = [_changed_turn(message, f"messages.{number}", change) for number, message in enumerate(messages)]
    return body if _same(messages, after) else {**fields, "messages": after}


def changed_message(message: Fields, place: str, change: Change) -> Fields:
    """Return a message with every text in it changed: its own, those of tool results, and those of documents.

    Example:
        >>> message = {"role": "user", "content": [{"type": "text", "text": "Hello"}]}
        >>> changed_message(message, "messages.0", lambda text, place: place)["content"]
        [{'type': 'text', 'text': 'messages.0.content.0.text'}]
    """
    return _changed_fields(message, ("content",), place, change)


def characters_of(message: Fields) -> int:
    """Return how many characters all texts of a message have together.

    Example:
        >>> characters_of({"role": "user", "content": "Hello"})
        5
    """
    lengths: list[int] = []

    def count(text: str, _place: str) -> str:
        lengths.append(len(text))
        return text

    changed_message(message, "", count)
    return sum(lengths)


def _changed_turn(message: object, place: str, change: Callable[[Fields, str], Fields]) -> object:
    fields = _fields(message)
    return change(fields, place) if fields.get("role") == "user" else message


def _fields(value: object) -> Fields:
    return cast("Fields", value) if isinstance(value, dict) else {}


def _sequence(value: object) -> Sequence[object]:
    return cast("Sequence[object]", value) if isinstance(value, list | tuple) else ()


def _same(before: Sequence[object], after: Sequence[object]) -> bool:
    return all(new is old for new, old in zip(after, before, strict=True))
