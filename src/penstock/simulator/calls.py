"""The tool calls that the simulated model makes: those that a request forces, and those that it was told to make.

Inputs fit their schemas. Plain text in them is a name out of the prompt, where it has one, so that calls differ.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import cycle
from typing import TYPE_CHECKING, TypeAlias

from penstock.simulator.sample import sample
from penstock.simulator.wire import Json, identifier, is_list, is_object

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["ToolCalls", "make_calls"]

ToolCalls: TypeAlias = int | Callable[[Json], int] | None

_NAME = re.compile(r"(?<=\w )[A-Z]\w+")
_PLAIN = frozenset({"type", "title", "description"})


def make_calls(body: Json, wanted: ToolCalls, prompt: str, salt: str) -> list[Json]:
    """The tool calls that answer `body`, none where it is answered with words; `prompt` gives the names in them."""
    if not body.get("tools"):
        return []
    tools = {tool["name"]: tool["input_schema"] for tool in body["tools"] if _is_callable(tool)}
    chosen: Json = body.get("tool_choice") or {"type": "auto"}
    if not tools or chosen["type"] == "none":
        return []
    if chosen["type"] in ("any", "tool"):
        name = chosen.get("name", next(iter(tools)))
        names, number = [name] if name in tools else [], 1
    else:
        names, number = list(tools), _number(body, wanted)
    if chosen.get("disable_parallel_tool_use") is True:
        number = min(number, 1)
    found = zip(range(number), cycle(names), _words(prompt), strict=False)
    return [_call(name, tools[name], word, f"{salt}-{at}" if at else salt) for at, name, word in found]


def _is_callable(tool: Json) -> bool:
    return "name" in tool and is_object(tool.get("input_schema"))


def _number(body: Json, wanted: ToolCalls) -> int:
    """A number is meant for questions, not for results that came in answer to calls; a function sees for itself."""
    if callable(wanted):
        return wanted(body)
    return 0 if wanted is None or not _asks(body["messages"]) else wanted


def _asks(messages: list[Json]) -> bool:
    """Whether the last turn is the user's, with words and no tool results."""
    for message in reversed(messages):
        if message["role"] == "assistant":
            return message is not messages[-1]
        content = message["content"]
        if is_list(content) and any(block["type"] == "tool_result" for block in content):
            return False
    return True


def _words(prompt: str) -> Iterator[str | None]:
    return cycle(_NAME.findall(prompt) or [None])


def _call(name: str, schema: Json, word: str | None, salt: str) -> Json:
    given: Json = sample(schema) or {}
    properties = schema.get("properties")
    for key, value in properties.items() if is_object(properties) else ():
        if word and is_object(value) and value.get("type") == "string" and value.keys() <= _PLAIN:
            given[key] = word
    return {"type": "tool_use", "id": identifier("toolu", salt), "name": name, "input": given}
