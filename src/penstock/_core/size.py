"""How large a request is, and how many tokens that makes: the one estimate, which learns from what the API counts.

The rule here: characters are counted, never copied. Media count as what they cost, not as their encoding or their
address; what is long and costs little, the signature of thinking, doesn't count.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, cast

from penstock._core.images import image_tokens, pdf_tokens
from penstock._core.models import known

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["CHARACTERS_PER_TOKEN", "Size", "TokenRate", "size_of"]

CHARACTERS_PER_TOKEN: Final = 3.2
"""Where nothing has been learned yet: the newer tokenizers make a third more tokens than one for four characters."""

_PRIOR_TOKENS: Final = 100.0
_MEMORY: Final = 0.9
_HOLDERS: Final = (dict, list, tuple)
# Media that are not in the request: a document costs some pages of it; an image, at most what its model sees.
_REMOTE: Final = frozenset({"url", "file"})
_REMOTE_DOCUMENT: Final = 10_000
# Rare scripts and emoji take some tokens a character, and no text more than that; nor does one answer change more.
_MOST_PER_CHARACTER: Final = 4.0
_MOST_CHANGE: Final = 4.0
_DATE: Final = re.compile(r"_\d+$")


@dataclass(frozen=True, slots=True)
class Size:
    """How large a request is.

    Attributes:
        characters: Of all text, tools and system prompt included.
        media_tokens: Tokens of images and documents, which don't depend on the tokenizer; a guess for those elsewhere.
        unseen: What it can't tell the size of, by kind: `file`, `url`, `container`, `thread`, `mcp`, or a server tool.
    """

    characters: float
    media_tokens: float = 0.0
    unseen: tuple[str, ...] = ()


class TokenRate:
    """How many characters make a token: a running mean, recent answers weighing more, which begins with a guess.

    Args:
        per_token: What it begins with, more than 0.

    Example:
        >>> rate = TokenRate()
        >>> rate.tokens(Size(320, media_tokens=50))
        150.0
        >>> rate.learn(8000, 2000)
        >>> round(rate.per_token, 1)
        4.0
    """

    __slots__ = ("_characters", "_tokens")

    def __init__(self, per_token: float = CHARACTERS_PER_TOKEN) -> None:
        self._characters = per_token * _PRIOR_TOKENS
        self._tokens = _PRIOR_TOKENS

    def __repr__(self) -> str:
        return f"<TokenRate {self._characters:.0f} characters in {self._tokens:.0f} tokens>"

    @property
    def per_token(self) -> float:
        """Characters for each token."""
        return self._characters / self._tokens

    def tokens(self, size: Size) -> float:
        """Return what something of that size takes."""
        return size.characters * self._tokens / self._characters + size.media_tokens

    def learn(self, characters: float, tokens: float) -> None:
        """Learn that so many characters took so many tokens; of too many only what text can take, bit by bit."""
        if characters > 0:
            expected = characters * self._tokens / self._characters
            tokens = min(tokens, _MOST_CHANGE * expected, _MOST_PER_CHARACTER * characters)
            # Sums, not a mean of ratios: a long prompt tells more about the tokenizer than a short one.
            self._characters = self._characters * _MEMORY + characters
            self._tokens = self._tokens * _MEMORY + tokens


def size_of(body: object, model: str = "") -> Size:
    """Measure a request body, or a part of one.

    Example:
        >>> size_of({"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 5})
        Size(characters=9, media_tokens=0.0, unseen=())
    """
    characters = 0
    media = 0.0
    unseen = _elsewhere(cast("dict[str, object]", body)) if isinstance(body, dict) and "messages" in body else []
    stack: list[object] = [[body]]
    while stack:
        item = stack.pop()
        if isinstance(item, dict):
            fields = cast("dict[str, object]", item)
            if fields.get("type") == "base64" and isinstance(data := fields.get("data"), str):
                pdf = fields.get("media_type") == "application/pdf"
                media += pdf_tokens(data) if pdf else image_tokens(data, model)
                continue
            if "source" in fields or "file_id" in fields:
                there = _there(fields)
                unseen += there
                media += _remote_tokens(fields, model) if there else 0
            elif "signature" in fields:
                fields = {**fields, "signature": None}
            values: Iterable[object] = fields.values()
        else:
            values = cast("list[object]", item)
        for value in values:
            if isinstance(value, str):
                characters += len(value)
            elif isinstance(value, _HOLDERS):
                stack.append(cast("object", value))
    return Size(characters, media, tuple(unseen))


def _elsewhere(body: dict[str, object]) -> list[str]:
    """What a request names that takes place, or is kept, at the service."""
    found = [name.removesuffix("_servers") for name in ("container", "thread", "mcp_servers") if body.get(name)]
    tools = body.get("tools")
    for tool in cast("list[object]", tools) if isinstance(tools, list) else ():
        kind = cast("dict[str, object]", tool).get("type") if isinstance(tool, dict) else None
        if isinstance(kind, str) and kind != "custom":
            found.append(_DATE.sub("", kind))
    return found


def _there(block: dict[str, object]) -> tuple[str, ...]:
    """How a block names what is not in the request, if it does."""
    if block.get("type") == "container_upload":
        return ("file",)
    source = block.get("source")
    kind = cast("dict[str, object]", source).get("type") if isinstance(source, dict) else None
    return (kind,) if isinstance(kind, str) and kind in _REMOTE else ()


def _remote_tokens(block: dict[str, object], model: str) -> float:
    """What an image or a document probably costs that the request only names."""
    kind = block.get("type")
    return known(model).tier[1] if kind == "image" else _REMOTE_DOCUMENT if kind == "document" else 0
