"""Turns and their blocks, as plain data, and how an answer goes back.

The rule here: a turn is never changed; its content is a copy made of what JSON knows. An answer goes back as it came,
less what the API refuses of it: blocks that say nothing, half characters, input of tools that is no object, an id that
stands for two calls.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias, TypeVar, cast

from pydantic import BaseModel

from penstock.errors import InvalidHistory

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from anthropic.types import Message, MessageParam
    from anthropic.types.beta import BetaMessage

__all__ = [
    "CALLS",
    "CONTINUE",
    "NO_JSON",
    "Block",
    "Role",
    "Turn",
    "answer_block",
    "answer_blocks",
    "ids_of",
    "is_fresh",
    "is_wrapped",
    "mended",
    "plain",
    "plain_block",
    "says_nothing",
    "text_of",
    "whole",
    "wrapped",
]

Block: TypeAlias = dict[str, Any]
Role: TypeAlias = Literal["user", "assistant", "system"]
Lone: TypeAlias = Literal["surrogatepass", "replace", "ignore"]
MessageT = TypeVar("MessageT", bound="Message | BetaMessage")

CALLS: Final = frozenset({"tool_use", "server_tool_use", "mcp_tool_use"})
NO_JSON: Final = "invalid arguments: the input is not a JSON object; call the tool again with one"
"""What a call with such input is answered with."""

_INVALID: Final = "INVALID_JSON"
_DEEPEST: Final = 100
# Python writes no longer number than 4,300 digits.
_LONGEST_BITS: Final = 14_000
_LONGEST_PLACE: Final = 100
_SURROGATES: Final = re.compile("[\ud800-\udfff]")
_LONE: Final = {"replace": "\ufffd", "ignore": ""}
# What the SDK's helpers add to an answer.
_OF_HELPERS: Final = frozenset({"parsed_output"})
# The API requires these of a citation, though they may be null; who stored it without nulls has lost them.
_TITLES: Final = {
    "char_location": "document_title",
    "page_location": "document_title",
    "content_block_location": "document_title",
    "web_search_result_location": "title",
    "search_result_location": "title",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One message of the history.

    Attributes:
        role: Who speaks.
        content: Its blocks.
        pinned: Whether it is kept whatever is trimmed.
        paused: Whether it is an answer that the API paused, to be sent back as it is.
        left_out: How many messages it stands for, if it is a note about what was trimmed; else 0.
        as_text: Whether its one block is sent as a text.
    """

    role: Role
    content: tuple[Block, ...] = field(repr=False)
    pinned: bool = False
    paused: bool = False
    left_out: int = 0
    as_text: bool = False

    def param(self) -> MessageParam:
        """Return it as the SDK takes it."""
        content = self.content[0]["text"] if self.as_text else list(self.content)
        return cast("MessageParam", {"role": self.role, "content": content})


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


# How an answer goes back


def whole(message: MessageT, seen: Iterable[str] = ()) -> MessageT:
    """Return an answer with what can't go back made good; the very same if there is nothing.

    Characters that were cut in two are joined; input that is no object is wrapped; each call has an id of its own, and
    one that came twice is there once. Half a character alone stays, and becomes U+FFFD in what goes back.

    Args:
        message: As it came.
        seen: Ids of calls that stand before it in the same turn.
    """
    content: list[Any] = []
    calls: dict[str, Any] = dict.fromkeys(seen)
    for block in message.content:
        made: Any = block
        if changes := _changes(block):
            made = block.model_copy(update=changes)
        if made.type == "tool_use":
            same = calls.get(made.id)
            if same is not None and (same.name, same.input) == (made.name, made.input):
                continue
            if not _is_id(made.id) or made.id in calls:
                made = made.model_copy(update={"id": _free(made.id, calls)})
            calls[made.id] = made
        content.append(made)
    if [id(block) for block in content] == [id(block) for block in message.content]:
        return message
    return cast("MessageT", message.model_copy(update={"content": content}))


def _changes(block: Any) -> dict[str, object]:
    changes: dict[str, object] = {}
    text: object = getattr(block, "text", None)
    if isinstance(text, str) and not text.isascii() and (joined := mended(text, lone="surrogatepass")) != text:
        changes["text"] = joined
    if block.type in CALLS and (made := tool_input(given := getattr(block, "input", None))) != given:
        changes["input"] = made
    return changes


def _is_id(value: object) -> bool:
    return isinstance(value, str) and bool(value)


def _free(identity: object, taken: Mapping[str, object]) -> str:
    stem, number = (identity if isinstance(identity, str) and identity else "toolu"), 2
    while f"{stem}_{number}" in taken:
        number += 1
    return f"{stem}_{number}"


def answer_blocks(content: Iterable[object]) -> tuple[Block, ...]:
    """Return an answer's blocks as they are sent back: as they came, less those that say nothing."""
    blocks = (answer_block(plain_block(block, "content", lone="replace")) for block in content)
    return tuple(block for block in blocks if not says_nothing(block))


def answer_block(block: Block) -> Block:
    """Return a block of an answer, wherever it was kept, as it is sent back."""
    if block.get("type") in CALLS:
        return block if "input" in block else {**block, "input": {}}
    if block.get("type") != "text":
        return block
    citations = block.get("citations")
    if isinstance(citations, list):
        block = {**block, "citations": [_cited(each) for each in cast("Sequence[Any]", citations)]}
    return {name: part for name, part in block.items() if name not in _OF_HELPERS}


def _cited(citation: Any) -> Any:
    if not isinstance(citation, dict):
        return citation
    fields = cast("Block", citation)
    title = _TITLES.get(str(fields.get("type")))
    return fields if title is None or title in fields else {**fields, title: None}


def says_nothing(block: Block) -> bool:
    """Whether a block is an empty text, which the API refuses, or a compaction that failed, which it ignores."""
    said = {"text": ("text",), "compaction": ("content", "encrypted_content")}.get(str(block.get("type")))
    return said is not None and not any(_is_said(block.get(name)) for name in said)


def _is_said(value: object) -> bool:
    return bool(value.strip()) if isinstance(value, str) else value is not None


# Input of tools


def tool_input(value: object) -> Block:
    """Return a copy of a call's input as it can be sent; one that is no object, or no JSON, is wrapped.

    Source: https://platform.claude.com/docs/en/agents-and-tools/tool-use/fine-grained-tool-streaming

    Example:
        >>> tool_input({"city": "Rome"}), tool_input(["Rome"]), tool_input(None)
        ({'city': 'Rome'}, {'INVALID_JSON': '["Rome"]'}, {})
    """
    if value is None:
        return {}
    fields = value
    if isinstance(fields, dict):
        try:
            return cast("Block", plain(cast("object", fields), "input", lone="replace"))
        except InvalidHistory:
            pass
    return wrapped(_written(value))


def wrapped(text: str) -> Block:
    """Return the input that stands for a text that is no JSON object."""
    return {_INVALID: text}


def is_wrapped(given: Mapping[str, object]) -> bool:
    """Whether an input was wrapped, here or by who brought the history: no tool is to run with it."""
    return list(given) == [_INVALID]


def _written(value: object) -> str:
    try:
        return json.dumps(value)
    except (TypeError, ValueError, RecursionError):
        return f"({type(value).__name__} that can't be written as JSON)"


# Plain data


def mended(text: str, *, lone: Lone = "replace") -> str:
    r"""Return a text with the halves of characters joined that belong together.

    Args:
        text: Any.
        lone: What becomes of halves that stand alone: U+FFFD (`replace`), nothing (`ignore`), or they stay.

    Example:
        >>> ascii(mended("\ud83d\ude00 \ud83d"))
        "'\\U0001f600 \\ufffd'"
    """
    if text.isascii() or not _SURROGATES.search(text):
        return text
    # JSON writes halves and reads pairs; the codec of UTF-16 stops at each, which takes thirty times as long.
    joined = cast("str", json.loads(json.dumps(text)))
    return joined if lone == "surrogatepass" else _SURROGATES.sub(_LONE[lone], joined)


def plain_block(
    value: object, place: str, depth: int = 0, *, marks: bool = False, lone: Lone = "surrogatepass"
) -> Block:
    """Return a copy of a content block, a dict or one of the SDK's objects, without its fields that are null.

    Args:
        value: The block.
        place: Where it stands.
        depth: How deep.
        marks: Whether those of the prompt cache stay: they belong to a request, and not to a history.
        lone: As for `mended`.

    Raises:
        InvalidHistory: It is no block, or holds what JSON can't.
    """
    if depth > _DEEPEST:
        raise InvalidHistory(place[:_LONGEST_PLACE], "is nested too deeply")
    if isinstance(value, BaseModel):
        value = _dumped(value)
    if not isinstance(value, dict):
        raise InvalidHistory(place, f"must be a content block (a dict with a 'type'), not {type(value).__name__}")
    fields = cast("Mapping[object, object]", value)
    block: Block = {}
    for name, part in fields.items():
        if part is None or (name == "cache_control" and not marks):
            continue
        if name == "content" and fields.get("type") == "tool_result" and isinstance(part, list | tuple):
            inner, at = cast("Sequence[object]", part), f"{place}.content"
            block["content"] = [
                plain_block(each, f"{at}.{index}", depth + 1, marks=marks, lone=lone)
                for index, each in enumerate(inner)
            ]
        elif name == "input" and fields.get("type") in CALLS:
            block["input"] = tool_input(part)
        else:
            block[_name(name, place, lone)] = plain(part, f"{place}.{name}", lone=lone)
    return block


def plain(value: object, place: str, depth: int = 0, *, lone: Lone = "surrogatepass") -> Any:
    """Return a copy of a value made of what JSON knows.

    Raises:
        InvalidHistory: It holds something else.
    """
    if isinstance(value, str):
        return mended(value, lone=lone)
    if value is None or isinstance(value, bool) or (isinstance(value, float) and math.isfinite(value)):
        return value
    if isinstance(value, int) and value.bit_length() < _LONGEST_BITS:
        return value
    if depth > _DEEPEST:
        raise InvalidHistory(place[:_LONGEST_PLACE], "is nested too deeply")
    if isinstance(value, BaseModel):
        value = _dumped(value)
    if isinstance(value, dict):
        fields = cast("Mapping[object, object]", value)
        return {
            _name(name, place, lone): plain(part, f"{place}.{name}", depth + 1, lone=lone)
            for name, part in fields.items()
        }
    if isinstance(value, list | tuple):
        parts = cast("Sequence[object]", value)
        return [plain(part, f"{place}.{index}", depth + 1, lone=lone) for index, part in enumerate(parts)]
    raise InvalidHistory(place, f"is a {type(value).__name__}, which JSON can't hold")


def _dumped(value: BaseModel) -> object:
    """What came, as it came."""
    return value.model_dump(mode="json", by_alias=True, exclude_unset=True, exclude=set(_OF_HELPERS), warnings=False)


def _name(name: object, place: str, lone: Lone) -> str:
    if not isinstance(name, str):
        raise InvalidHistory(place, f"has a {type(name).__name__} as the name of a field")
    return mended(name, lone=lone)
