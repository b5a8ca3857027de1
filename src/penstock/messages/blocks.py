"""One turn of a conversation, and the plain data it is made of.

The rule here: a turn is never changed. Its content is a list of blocks made of what JSON knows, copied when it comes
in, without the marks of the prompt cache, which belong to a request and not to the history.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias, cast

from pydantic import BaseModel

from penstock.errors import InvalidHistory

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from anthropic.types import MessageParam

__all__ = [
    "CONTINUE",
    "Block",
    "Role",
    "Turn",
    "answer_blocks",
    "ids_of",
    "is_fresh",
    "plain",
    "plain_block",
    "text_of",
]

Block: TypeAlias = dict[str, Any]
Role: TypeAlias = Literal["user", "assistant", "system"]

_DEEPEST: Final = 100
_LONGEST_PLACE: Final = 100
_SURROGATES: Final = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One message of the history.

    Attributes:
        role: Who speaks.
        content: Its blocks.
        pinned: Whether it is kept whatever is trimmed.
        paused: Whether it is an answer that the API paused, to be sent back as it is.
        left_out: How many messages it stands for, if it is a note about what was trimmed; else 0.
    """

    role: Role
    content: tuple[Block, ...] = field(repr=False)
    pinned: bool = False
    paused: bool = False
    left_out: int = 0

    def param(self) -> MessageParam:
        """Return it as the SDK takes it."""
        return cast("MessageParam", {"role": self.role, "content": list(self.content)})


CONTINUE: Final = Turn(
    role="user",
    content=(
        {
            "type": "text",
            "text": "Your answer was cut off at the length limit. Go on exactly where it stopped; repeat nothing.",
        },
    ),
)
"""What asks for the rest of an answer."""


def is_fresh(turn: Turn) -> bool:
    """Whether the user begins something new with it: neither answers tool calls nor asks for the rest of an answer."""
    results = turn.content and turn.content[0]["type"] == "tool_result"
    return turn.role == "user" and not results and turn.content != CONTINUE.content


def ids_of(blocks: Iterable[Block], kind: str) -> list[str]:
    """Return the ids of tool calls (`tool_use`), or those that results (`tool_result`) name."""
    name = "id" if kind == "tool_use" else "tool_use_id"
    return [block[name] for block in blocks if block["type"] == kind]


def text_of(blocks: Iterable[Block]) -> str:
    """Return the text of all text blocks."""
    return "".join(block["text"] for block in blocks if block["type"] == "text")


def answer_blocks(content: Sequence[BaseModel]) -> tuple[Block, ...]:
    """Return an answer's blocks as they are sent back: unmodified, less those that say nothing.

    The API refuses empty texts, and ignores a compaction that failed, which has no content. Half of a surrogate pair
    can't be sent at all, and becomes U+FFFD.
    """
    blocks = (_sendable(block.model_dump(mode="json", exclude_unset=True, exclude_none=True)) for block in content)
    needed = {"text": "text", "compaction": "content"}
    return tuple(
        block for block in blocks if (name := needed.get(block["type"])) is None or block.get(name, "").strip()
    )


def _sendable(value: Any) -> Any:
    if isinstance(value, str):
        return value if value.isascii() else _SURROGATES.sub("\ufffd", value)
    if isinstance(value, dict):
        return {name: _sendable(part) for name, part in cast("Block", value).items()}
    if isinstance(value, list):
        return [_sendable(part) for part in cast("Sequence[Any]", value)]
    return value


def plain_block(value: object, place: str, depth: int = 0) -> Block:
    """Return a copy of a content block, a dict or one of the SDK's objects, less its nulls and cache marks.

    Raises:
        InvalidHistory: It is no block, or holds what JSON can't.
    """
    if depth > _DEEPEST:
        raise InvalidHistory(place[:_LONGEST_PLACE], "is nested too deeply")
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json", exclude_unset=True, exclude_none=True)
    if not isinstance(value, dict):
        raise InvalidHistory(place, f"must be a content block (a dict with a 'type'), not {type(value).__name__}")
    fields = cast("Mapping[object, object]", value)
    block: Block = {}
    for name, part in fields.items():
        if part is None or name == "cache_control":
            continue
        if name == "content" and isinstance(part, list | tuple):
            inner = cast("Sequence[object]", part)
            at = f"{place}.content"
            block["content"] = [plain_block(each, f"{at}.{index}", depth + 1) for index, each in enumerate(inner)]
        else:
            block[_name(name, place)] = plain(part, f"{place}.{name}")
    return block


def plain(value: object, place: str, depth: int = 0) -> Any:
    """Return a copy of a value made of what JSON knows.

    Raises:
        InvalidHistory: It holds something else.
    """
    if value is None or isinstance(value, str | bool | int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    if depth > _DEEPEST:
        raise InvalidHistory(place[:_LONGEST_PLACE], "is nested too deeply")
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json", exclude_unset=True, exclude_none=True)
    if isinstance(value, dict):
        fields = cast("Mapping[object, object]", value)
        return {_name(name, place): plain(part, f"{place}.{name}", depth + 1) for name, part in fields.items()}
    if isinstance(value, list | tuple):
        parts = cast("Sequence[object]", value)
        return [plain(part, f"{place}.{index}", depth + 1) for index, part in enumerate(parts)]
    raise InvalidHistory(place, f"is a {type(value).__name__}, which JSON can't hold")


def _name(name: object, place: str) -> str:
    if not isinstance(name, str):
        raise InvalidHistory(place, f"has a {type(name).__name__} as the name of a field")
    return name
