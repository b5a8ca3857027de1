"""How many tokens something is: a fourth of its characters, rounded up; the same for counting, limits and usage."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from penstock.simulator.media import HIGH_RESOLUTION, STANDARD, image_tokens, pdf_tokens
from penstock.simulator.wire import dump, is_list, is_object

if TYPE_CHECKING:
    from penstock.simulator.models import Model
    from penstock.simulator.wire import Json

__all__ = ["CHARACTERS", "PER_MESSAGE", "count_block", "count_input", "count_text", "count_tools", "plain_text"]

CHARACTERS = 4
PER_MESSAGE = 3
_TOOL_PROMPT = 286

Tier: TypeAlias = tuple[int, int]


def count_text(text: str) -> int:
    """Tokens of a text."""
    return -(-len(text) // CHARACTERS)


def count_input(body: Json, model: Model) -> int:
    """Input tokens of a request to `model`: system, messages and tools."""
    tier = _tier(model)
    total = _content(body.get("system"), tier) + sum(count_tools(body.get("tools")))
    messages = body.get("messages")
    if is_list(messages):
        total += sum(PER_MESSAGE + _content(message.get("content"), tier) for message in messages if is_object(message))
    return max(1, total)


def count_tools(tools: object) -> list[int]:
    """Input tokens of each tool; the first one brings the instructions that all need."""
    if not is_list(tools):
        return []
    return [_tool(tool) + (0 if index else _TOOL_PROMPT) for index, tool in enumerate(tools)]


def _tool(tool: Json) -> int:
    if "cache_control" in tool:
        tool = {name: value for name, value in tool.items() if name != "cache_control"}
    return count_text(dump(tool).decode())


def count_block(block: Json, model: Model) -> int:
    """Input tokens of a content block."""
    return _block(block, _tier(model))


def _tier(model: Model) -> Tier:
    return HIGH_RESOLUTION if model.high_resolution else STANDARD


def _content(content: object, tier: Tier) -> int:
    if isinstance(content, str):
        return count_text(content)
    return sum(_block(block, tier) for block in content) if is_list(content) else 0


def _block(block: object, tier: Tier) -> int:
    if not is_object(block):
        return 0
    match block.get("type"):
        case "text":
            return count_text(str(block.get("text", "")))
        case "image":
            return image_tokens(block, tier)
        case "document":
            return pdf_tokens(block)
        case "tool_result" | "search_result":
            return _content(block.get("content"), tier)
        case "thinking" | "redacted_thinking":
            return 0
        case "compaction":
            return count_text(str(block.get("content") or ""))
        case _:
            return count_text(dump(block.get("input", "")).decode())


def plain_text(content: object) -> str:
    """The words of a message's content, tool results included."""
    if isinstance(content, str):
        return content
    if not is_list(content):
        return ""
    blocks = [block for block in content if is_object(block)]
    return " ".join(str(block.get("text") or "") or plain_text(block.get("content")) for block in blocks)
