"""What a model reads, block by block and in its order, as bytes that are equal where two requests say the same.

A text is a list of one text block, null is absent, and `cache_control` is a mark on the page, no part of it. The order
of keys counts inside tool inputs and schemas, as it does for the API.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from penstock.simulator.wire import Json, dump, is_list, is_object

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["THOUGHTS", "Block", "blocks_of", "canonical", "is_compaction", "marks_of", "message_blocks"]

THOUGHTS = ("thinking", "redacted_thinking")


class Block(NamedTuple):
    """A content block, whose it is, and where."""

    role: str
    content: Json
    message: int
    nth: int

    @property
    def kind(self) -> str:
        """Its type."""
        return str(self.content["type"])

    @property
    def place(self) -> str:
        """As the API names it."""
        return f"messages.{self.message}.content.{self.nth}"


def blocks_of(content: object) -> list[Json]:
    """The blocks of a message, a system prompt or a tool result; a text is one block."""
    if isinstance(content, str):
        return [{"type": "text", "text": content}] if content else []
    return [block for block in content if is_object(block)] if is_list(content) else []


def message_blocks(messages: list[Json]) -> Iterator[Block]:
    """All blocks of a conversation."""
    for at, message in enumerate(messages):
        for index, block in enumerate(blocks_of(message["content"])):
            yield Block(message["role"], block, at, index)


def marks_of(body: Json) -> list[tuple[str, object]]:
    """(place, `cache_control`) of all blocks that have one, in the order of reading."""
    found: list[tuple[str, object]] = []
    for name in ("tools", "system"):
        content = body.get(name)
        for index, block in enumerate(content) if is_list(content) else ():
            if block.get("cache_control") is not None:
                found.append((f"{name}.{index}", block["cache_control"]))
    for at, message in enumerate(body["messages"]):
        content = message["content"]
        for index, block in enumerate(content) if is_list(content) else ():
            if block.get("cache_control") is not None:
                found.append((f"messages.{at}.content.{index}", block["cache_control"]))
    return found


def canonical(block: Json) -> bytes:
    """A tool or content block without marks, the same however it is written down."""
    return dump(_plain(block))


def _plain(block: Json) -> Json:
    if block.get("type") == "tool_result":
        block = {**block, "content": [_plain(inner) for inner in blocks_of(block.get("content"))]}
    return {key: block[key] for key in sorted(block) if key != "cache_control" and block[key] is not None}


def is_compaction(block: Json) -> bool:
    """Whether a block stands for everything before it; one without content is a compaction that failed."""
    return block["type"] == "compaction" and block.get("content") is not None
