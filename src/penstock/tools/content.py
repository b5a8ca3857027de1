"""From what a tool returns or raises to what the API takes as a result.

The rule here: whatever comes out can be sent. A result that the API would refuse would end the conversation for good,
because it would stand in every later request: so there are no empty or oversized blocks, no lone surrogates, and
nothing but text in what failed. Nothing here raises.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final, cast

from anthropic.lib.tools import ToolError
from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_core import to_json

from penstock.tools.call import Result
from penstock.tools.definition import InvalidArguments, reasons

__all__ = ["failed", "failure_of", "result_of"]

# What makes a dict with that type a content block, and not somebody's data.
_BLOCKS: Final = {
    "text": {"text"},
    "image": {"source"},
    "document": {"source"},
    "search_result": {"source", "title", "content"},
    "tool_reference": {"tool_name"},
}
_OF_TEXT: Final = {"type", "text", "cache_control", "citations"}
_LONE_SURROGATE: Final = re.compile("[\ud800-\udfff]")
# A request takes 32 MB; one result must leave room for the others.
_MEDIA_CHARS: Final = 10_000_000
_ERROR_CHARS: Final = 4_000


def result_of(value: object, *, most: int, schema: TypeAdapter[Any] | None = None) -> Result:
    """Return the result that a value makes.

    Args:
        value: What the tool returned: text, content blocks, `None`, or anything that can be written as JSON.
        most: Characters of text that are kept; what is longer is cut, and says so.
        schema: What the value must fit; `None` for no check.
    """
    if schema is not None:
        try:
            value = schema.dump_python(schema.validate_python(value), mode="json")
        except ValidationError as error:
            return failed(f"the tool returned what it should not: {reasons(error)}")
        except Exception as error:  # noqa: BLE001 - a validator of the tool's own
            return failed(f"the tool's result can't be checked: {_told(error)}")
    if isinstance(value, str):
        return Result(content=_cut(value, most))
    if value is None:
        return Result(content="")
    if isinstance(value, bytes | bytearray | memoryview):
        return failed("the tool returned bytes, which can't be sent; it must return text, or an image block")
    blocks = _blocks_of(value)
    return _of_blocks(blocks, most) if blocks is not None else _of_data(value, most)


def failure_of(error: Exception, *, most: int) -> Result:
    """Return the result of a tool that raised: what a `ToolError` says, else the error's type and message."""
    if isinstance(error, InvalidArguments):
        return failed(str(error)[:_ERROR_CHARS])
    if not isinstance(error, ToolError):
        return failed(_told(error))
    said = result_of(error.content if isinstance(error.content, str) else list(error.content), most=most)
    if isinstance(said.content, str):
        return failed(said.content)
    # The API takes nothing but text in a result that failed.
    return failed("\n".join(block["text"] for block in said.content if block["type"] == "text"))


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


# Text


def _cut(text: str, most: int) -> str:
    if not text.strip():
        return ""
    if len(text) <= most:
        return _well_formed(text)
    return f"{_well_formed(text[:most])}\n[cut: these are the first {most} of {len(text)} characters]"


def _well_formed(text: str) -> str:
    return _LONE_SURROGATE.sub("\ufffd", text)


# Blocks


def _blocks_of(value: object) -> list[dict[str, Any]] | None:
    """Return content blocks, if that is what the value is: one of them, or a list of nothing else."""
    items = cast("list[object]", value) if isinstance(value, list | tuple) else [value]
    blocks = [_block_of(item) for item in items]
    return [block for block in blocks if block is not None] if blocks and all(blocks) else None


def _block_of(item: object) -> dict[str, Any] | None:
    if isinstance(item, BaseModel):
        item = item.model_dump(mode="json", exclude_none=True)
    if not isinstance(item, Mapping):
        return None
    block = dict(cast("Mapping[str, Any]", item))
    kind = block.get("type")
    needed = _BLOCKS.get(kind) if isinstance(kind, str) else None
    if needed is None or not needed <= block.keys():
        return None
    is_data = kind == "text" and not (isinstance(block["text"], str) and block.keys() <= _OF_TEXT)
    return None if is_data else block


def _of_blocks(blocks: list[dict[str, Any]], most: int) -> Result:
    left, media, kept = most, 0, list[dict[str, Any]]()
    for block in blocks:
        if block["type"] != "text":
            media += _size(block)
            kept.append(block)
        elif left > 0 and (text := _cut(block["text"], left)):
            left -= len(block["text"])
            kept.append({**block, "text": text})
    if media > _MEDIA_CHARS:
        return failed(f"the tool returned more than {_MEDIA_CHARS} characters of images or documents; return fewer")
    return Result(content=kept)


def _size(block: dict[str, Any]) -> int:
    """Return about how many characters a block takes in a request."""
    try:
        return len(to_json(block))
    except ValueError:
        return _MEDIA_CHARS + 1


# Anything else


def _of_data(value: object, most: int) -> Result:
    try:
        text = to_json(value).decode()
    except Exception as error:  # noqa: BLE001 - serializers of the value's own
        return failed(f"the tool returned {type(value).__name__}, which can't be written as JSON: {_told(error)}")
    return Result(content=_cut(text, most))
