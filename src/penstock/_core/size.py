"""How large a request is: the characters of its text, and what its media cost in tokens.

The rule here: characters are counted, never copied.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, cast

from penstock._core.images import image_tokens, pdf_tokens

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Size", "size_of"]

_HOLDERS: Final = (dict, list, tuple)


@dataclass(frozen=True, slots=True)
class Size:
    """How large a request is.

    Attributes:
        characters: Of all text, tools and system prompt included.
        media_tokens: Tokens of images and documents, which don't depend on the tokenizer.
    """

    characters: float
    media_tokens: float = 0.0


def size_of(body: object, model: str = "") -> Size:
    """Measure a request body; images and documents count as what they cost, not as their encoding.

    Example:
        >>> size_of({"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 5})
        Size(characters=9, media_tokens=0.0)
    """
    characters = 0
    media = 0.0
    stack: list[object] = [[body]]
    while stack:
        item = stack.pop()
        if isinstance(item, dict):
            fields = cast("dict[str, object]", item)
            if fields.get("type") == "base64" and isinstance(data := fields.get("data"), str):
                pdf = fields.get("media_type") == "application/pdf"
                media += pdf_tokens(data) if pdf else image_tokens(data, model)
                continue
            values: Iterable[object] = fields.values()
        else:
            values = cast("list[object]", item)
        for value in values:
            if isinstance(value, str):
                characters += len(value)
            elif isinstance(value, _HOLDERS):
                stack.append(cast("object", value))
    return Size(characters, media)
