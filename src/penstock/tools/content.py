"""From what a tool returns or raises to what the API takes as a result.

The rule here: whatever comes out can be sent. A result that the API would refuse would end the conversation for good,
because it would stand in every later request: so there are no empty or oversized blocks, nothing that JSON can't hold,
and nothing but text in what failed. What would take long to write is measured first, in bounded time, and refused.
Nothing here raises.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, is_dataclass
from itertools import islice
from typing import Any, Final, cast

from anthropic.lib.tools import ToolError
from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_core import to_jsonable_python

from penstock.tools.definition import InvalidArguments, reasons

__all__ = ["Result", "failed", "failure_of", "result_of"]

# What makes a dict with that type a content block, and not somebody's data: fields that it has, and others it may have.
_BLOCKS: Final[dict[str, dict[str, type]]] = {
    "text": {"text": str},
    "image": {"source": Mapping},
    "document": {"source": Mapping},
    "search_result": {"source": str, "title": str, "content": list},
    "tool_reference": {"tool_name": str},
}
_OTHERS: Final = {
    "text": {"citations"},
    "document": {"title", "context", "citations"},
    "search_result": {"citations"},
}
_SOURCES: Final = {"base64", "url", "file", "text", "content"}
_LONE_SURROGATE: Final = re.compile("[\ud800-\udfff]")
# A request takes 32 MB; one result must leave room for the others.
_MEDIA_CHARS: Final = 10_000_000
_ERROR_CHARS: Final = 4_000
# What is written on the event loop holds it for some milliseconds at most.
_MOST_BLOCKS: Final = 1_000
_VALUES: Final = 10_000
_CHARS: Final = 4_000_000
_HOLDERS: Final = (dict, list, tuple, set, frozenset)
_PLAIN: Final = (int, float, type(None))


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What a call is answered with.

    Attributes:
        content: A text, or content blocks as a `tool_result` takes them.
        is_error: Whether it failed.
    """

    content: str | list[dict[str, Any]] = field(repr=False)
    is_error: bool = False

    @property
    def text(self) -> str:
        """Its text, without what else is in it."""
        if isinstance(self.content, str):
            return self.content
        return "\n".join(block["text"] for block in self.content if block["type"] == "text")


def result_of(value: object, *, most: int, schema: TypeAdapter[Any] | None = None) -> Result:
    """Return the result that a value makes.

    Args:
        value: What the tool returned: text, content blocks, `None`, or anything that can be written as JSON.
        most: Characters of text that are kept; what is longer is cut, and says so.
        schema: What the value must fit; `None` for no check.
    """
    try:
        if isinstance(value, Iterator):
            value = list(islice(cast("Iterator[object]", value), _most_values(most) + 1))
        if not isinstance(value, str) and _size(value, _most_values(most))[0] > _most_values(most):
            kind, values = type(value).__name__, _most_values(most)
            return failed(f"the tool returned {kind} of more than {values} values; it must return fewer")
        if schema is not None:
            value = schema.dump_python(schema.validate_python(value), mode="json")
    except ValidationError as error:
        return failed(f"the tool returned what it should not: {reasons(error)}"[:_ERROR_CHARS])
    except Exception as error:  # noqa: BLE001 - a validator of the tool's own
        return failed(f"the tool's result can't be checked: {_told(error)}")
    try:
        return _sendable(value, most)
    except Exception as error:  # noqa: BLE001 - serializers of the value's own
        return failed(f"the tool returned {type(value).__name__}, which can't be written as JSON: {_told(error)}")


def failure_of(error: Exception, *, most: int) -> Result:
    """Return the result of a tool that raised: what a `ToolError` says, else the error's type and message."""
    if isinstance(error, InvalidArguments):
        return failed(str(error)[:_ERROR_CHARS])
    if not (isinstance(error, ToolError) and hasattr(error, "content")):  # a subclass may not call the constructor
        return failed(_told(error))
    # Of blocks only the text: the API takes nothing else in a result that failed.
    return failed(result_of(error.content, most=most).text if error.content else "")


def failed(reason: str) -> Result:
    """Return the result of a call that failed, with a reason for the model."""
    return Result(content=_well_formed(reason) if reason.strip() else "the tool failed", is_error=True)


def _told(error: Exception) -> str:
    """Return type and message of an error, never its traceback."""
    try:
        message = str(error)
    except Exception:  # noqa: BLE001 - an error that can't even be printed is still one
        message = ""
    kind = type(error).__name__
    return f"{kind}: {message}"[:_ERROR_CHARS] if message else kind


def _sendable(value: object, most: int) -> Result:
    if isinstance(value, str):
        return Result(content=_cut(value, most))
    if value is None:
        return Result(content="")
    if isinstance(value, bytes | bytearray | memoryview):
        return failed("the tool returned bytes, which can't be sent; it must return text, or an image block")
    blocks = _blocks_of(value)
    if blocks is not None:
        return _of_blocks(blocks, most)
    if _size(value, _most_values(most))[1] > (chars := max(most, _CHARS)):
        return failed(f"the tool returned more than {chars} characters of JSON; it must return fewer, or text")
    # By way of Python's values, because a lone surrogate would make the direct way fail.
    return Result(content=_cut(json.dumps(to_jsonable_python(value), ensure_ascii=False, separators=(",", ":")), most))


# Size


def _most_values(most: int) -> int:
    """Return how many values a result may have: each takes two characters or more, so that more would be cut anyway."""
    return max(most // 2, _VALUES)


def _size(value: object, most: int) -> tuple[int, int]:
    """Return how many values something holds, itself and keys included, and characters; it counts to about `most`."""
    values = characters = 0
    left = [value]
    while left and values <= most:
        item = left.pop()
        values += 1
        if isinstance(item, str):
            characters += len(item)
        elif isinstance(item, _HOLDERS):
            if len(parts := cast("Collection[object]", item)) > most:
                return len(parts), characters
            left += parts
            left += cast("dict[object, object]", parts).values() if isinstance(item, dict) else ()
        elif not isinstance(item, _PLAIN) and (isinstance(item, BaseModel) or is_dataclass(item)):
            left += getattr(item, "__dict__", {}).values()
    return values, characters


# Text


def _cut(text: str, most: int) -> str:
    if not text.strip():
        return ""
    if len(text) <= most:
        return _well_formed(text)
    return f"{_well_formed(text[:most])}\n[cut: these are the first {most} of {len(text)} characters]"


def _well_formed(text: str) -> str:
    return text if text.isascii() else _LONE_SURROGATE.sub("\ufffd", text)


# Blocks


def _blocks_of(value: object) -> list[Mapping[str, Any]] | None:
    """Return content blocks, if that is what the value is: one of them, or a list of nothing else."""
    items = cast("list[object]", value) if isinstance(value, list | tuple) else [value]
    blocks: list[Mapping[str, Any]] = []
    for item in items:
        block: Any = item.model_dump(mode="json", exclude_none=True) if isinstance(item, BaseModel) else item
        if not _is_block(block):
            return None
        blocks.append(block)
    return blocks or None


def _is_block(value: object) -> bool:
    """Whether it is a content block as the API takes it in a result."""
    if not isinstance(value, Mapping):
        return False
    block = cast("Mapping[str, Any]", value)
    kind = block.get("type")
    needed = _BLOCKS.get(kind) if isinstance(kind, str) else None
    if needed is None or not all(isinstance(block.get(name), needed[name]) for name in needed):
        return False
    if not block.keys() <= {"type", "cache_control", *needed, *_OTHERS.get(str(kind), ())}:
        return False
    source, content = block.get("source"), block.get("content", [])
    if isinstance(source, Mapping) and not _is_source(cast("Mapping[str, Any]", source)):
        return False
    return all(_is_block(part) and part["type"] == "text" for part in content)


def _is_source(source: Mapping[str, Any]) -> bool:
    return source.get("type") in _SOURCES and isinstance(source.get("data", ""), str)


def _plain(value: Any) -> Any:
    """Return a JSON value without what can't be sent: lone surrogates, and numbers that are none."""
    if isinstance(value, str):
        return _well_formed(value)
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in cast("Mapping[str, Any]", value).items()}
    if isinstance(value, list):
        return [_plain(part) for part in cast("Iterable[Any]", value)]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _of_blocks(blocks: list[Mapping[str, Any]], most: int) -> Result:
    if sum(1 + len(block.get("content", ())) for block in blocks) > _MOST_BLOCKS:
        return failed(f"the tool returned more than {_MOST_BLOCKS} content blocks; it must return fewer, or text")
    if sum(_size(block, _VALUES)[1] for block in blocks if block["type"] != "text") > _MEDIA_CHARS:
        return failed(f"the tool returned more than {_MEDIA_CHARS} characters of images or documents; return fewer")
    left, kept = most, list[dict[str, Any]]()
    for block in blocks:
        if block["type"] != "text":
            kept.append(_plain(to_jsonable_python(block)))
        elif left > 0 and (text := _cut(block["text"], left)):
            left -= len(block["text"])
            kept.append(_plain(to_jsonable_python({**block, "text": text})))
    return Result(content=kept)
