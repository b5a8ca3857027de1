"""Tools and the choice among them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from penstock.simulator.validate import checks
from penstock.simulator.wire import invalid, is_list, is_object

if TYPE_CHECKING:
    from collections.abc import Iterator

    from penstock.simulator.models import Model
    from penstock.simulator.wire import Json

__all__ = ["check_tool_choice", "check_tools", "refuse_server_tools"]

_NAME = re.compile(r"[a-zA-Z0-9_-]{1,128}")
_MAX_STRICT = 20
_RUN_BY_CLIENT = ("memory_", "bash_", "text_editor_", "computer_", "browser_toolset_")
_RUN_BY_SERVER = ("web_search_", "web_fetch_", "code_execution_", "tool_search_", "mcp_toolset", "advisor_")
_CUSTOM_FIELDS = frozenset({
    "allowed_callers", "cache_control", "defer_loading", "description", "eager_input_streaming", "input_examples",
    "input_schema", "name", "strict", "type",
})  # fmt: skip


def check_tools(body: Json, model: Model) -> None:
    """Every tool is well formed, and their names differ."""
    if "tools" not in body:
        return
    tools = checks.listed(body["tools"], "tools")
    names: set[str] = set()
    for index, tool in enumerate(tools):
        _check_tool(checks.mapping(tool, f"tools.{index}"), f"tools.{index}", model)
        if "name" not in tool:
            continue
        if checks.string(tool["name"], f"tools.{index}.name") in names:
            raise invalid("tools: Tool names must be unique.")
        names.add(tool["name"])
    if sum(tool.get("strict") is True for tool in tools) > _MAX_STRICT:
        raise invalid(f"tools: at most {_MAX_STRICT} tools may be strict.")


def _check_tool(tool: Json, at: str, model: Model) -> None:
    kind = tool.get("type")
    if kind is None or kind == "custom":
        _check_custom(tool, f"{at}.custom")
        return
    if not checks.string(kind, f"{at}.type").startswith(_RUN_BY_CLIENT + _RUN_BY_SERVER):
        raise invalid(f"{at}: Input tag '{kind}' found using 'type' does not match any of the expected tags")
    if kind.startswith("computer_2025") and model.id.endswith("-5-5"):
        raise invalid(f"{at}: '{kind}' is not supported for this model.")


def _check_custom(tool: Json, at: str) -> None:
    checks.known(tool, _CUSTOM_FIELDS, f"{at}.")
    name = checks.string(checks.required(tool, "name", f"{at}.name"), f"{at}.name")
    if not _NAME.fullmatch(name):
        raise invalid(f"{at}.name: String should match pattern '^[a-zA-Z0-9_-]{{1,128}}$'")
    if "description" in tool:
        checks.string(tool["description"], f"{at}.description")
    schema = checks.mapping(checks.required(tool, "input_schema", f"{at}.input_schema"), f"{at}.input_schema")
    checks.choice(checks.required(schema, "type", f"{at}.input_schema.type"), ("object",), f"{at}.input_schema.type")
    if tool.get("strict") is True and not all(each.get("additionalProperties") is False for each in _objects(schema)):
        raise invalid(f"{at}.input_schema: For 'object' type, 'additionalProperties' must be explicitly set to false")


def _objects(schema: object) -> Iterator[Json]:
    if is_object(schema):
        if schema.get("type") == "object":
            yield schema
        for value in schema.values():
            yield from _objects(value)
    elif is_list(schema):
        for value in schema:
            yield from _objects(value)


def check_tool_choice(body: Json, model: Model) -> None:
    """A choice among tools that are there, forced only where the model may be forced."""
    if body.get("tool_choice") is None:
        return
    choice = checks.mapping(body["tool_choice"], "tool_choice")
    kind = checks.choice(choice.get("type"), ("auto", "any", "tool", "none"), "tool_choice.type")
    if "disable_parallel_tool_use" in choice:
        checks.boolean(choice["disable_parallel_tool_use"], f"tool_choice.{kind}.disable_parallel_tool_use")
    if kind in ("any", "tool") and not model.forced_tools:
        raise invalid('tool_choice: type "tool" and "any" are not supported for this model.')
    tools: list[Json] = body.get("tools") or []
    if not tools and kind != "none":
        raise invalid("tool_choice: tool_choice may only be specified while providing tools.")
    if kind == "tool":
        name = checks.string(checks.required(choice, "name", "tool_choice.tool.name"), "tool_choice.tool.name")
        if name not in [tool.get("name") for tool in tools]:
            raise invalid(f"Tool '{name}' not found in provided tools")


def refuse_server_tools(body: Json) -> None:
    """Tokens of tools that run on the server cannot be counted, except the advisor's."""
    if body.get("mcp_servers"):
        raise invalid("mcp_servers: not supported by token counting")
    for index, tool in enumerate(body.get("tools") or []):
        kind = str(tool.get("type"))
        if kind.startswith(_RUN_BY_SERVER) and not kind.startswith("advisor_"):
            raise invalid(f"tools.{index}: Server tools are not supported in the count_tokens endpoint: {kind}")
