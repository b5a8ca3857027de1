from __future__ import annotations

from typing import Any

import anthropic
import pytest
from anthropic.lib.tools import BetaAsyncRunnableToolset

from penstock import ToolCall, tool
from penstock.tools import Tools

SEARCH = {"type": "web_search_20250305", "name": "web_search"}
MCP = {"type": "mcp_toolset", "mcp_server_name": "files"}


def add(a: int, b: int) -> int:
    """Add."""
    return a + b


@anthropic.beta_tool
def sdk_add(a: int, b: int) -> str:
    """Add."""
    return str(a + b)


class Screen(BetaAsyncRunnableToolset):
    def to_dict(self) -> Any:
        raise NotImplementedError

    async def call(self, context: object, name: str, input: object) -> Any:  # noqa: A002
        raise NotImplementedError


def call(name: str, **fields: Any) -> ToolCall:
    """A call of a tool."""
    return ToolCall(id="toolu_1", name=name, input={}, **fields)


def test_every_kind_of_tool_is_taken_in_order() -> None:
    """Functions, tools of ours and of the SDK, and entries of tools that run on the server."""
    mine = tool(add, name="mine")
    tools = Tools([add, mine, sdk_add, SEARCH, MCP])
    assert [param.get("name") or param["mcp_server_name"] for param in tools.params] == [
        "add",
        "mine",
        "sdk_add",
        "web_search",
        "files",
    ]
    assert tools.params[3:] == [SEARCH, MCP]
    assert repr(tools) == "<Tools add, mine, sdk_add, web_search, files>"
    assert len(tools) == 5
    assert tools.find(call("mine")) is mine
    assert [found.name for found in tools.runnable] == ["add", "mine", "sdk_add"]


def test_a_registry_can_be_made_of_another() -> None:
    """It gives back what it was made of."""
    first = Tools([add, SEARCH])
    assert Tools(first).params == first.params


def test_none_is_a_registry_too() -> None:
    """A loop without tools asks once."""
    assert not len(Tools([]))
    assert repr(Tools([])) == "<Tools none>"


@pytest.mark.parametrize("name", ["web_search", "files", "unheard_of"])
def test_what_does_not_run_here_is_not_found(name: str) -> None:
    """A tool of the server's is none that could be run here."""
    assert Tools([add, SEARCH, MCP]).find(call(name)) is None


def test_a_member_of_a_toolset_is_no_tool_of_the_same_name() -> None:
    """Names of a toolset's members are not reserved."""
    assert Tools([add]).find(call("add", toolset_name="browser")) is None


@pytest.mark.parametrize("other", [tool(add), tool(lambda: None, name="add"), {"type": "web_fetch_1", "name": "add"}])
def test_two_tools_of_one_name_are_refused(other: Any) -> None:
    """Which of them the model means could not be told."""
    with pytest.raises(ValueError, match=r"two tools are named 'add'.*name=…"):
        Tools([add, other])


@pytest.mark.parametrize(
    "entry",
    [
        {"name": "mine", "input_schema": {"type": "object"}},
        {"type": "custom", "name": "mine", "input_schema": {"type": "object"}},
        {"type": "bash_20250124", "name": "bash"},
        {"type": "memory_20250818", "name": "memory"},
        {"type": "computer_toolset_20260801"},
        {"type": 3},
    ],
)
def test_an_entry_that_nothing_would_run_is_refused(entry: Any) -> None:
    """A call of it could never be answered."""
    with pytest.raises(TypeError, match="is given as a dict, and nothing would run it"):
        Tools([entry])


def test_toolsets_of_the_sdk_are_refused() -> None:
    """Their calls must not run at the same time."""
    with pytest.raises(TypeError, match=r"Screen: a toolset acts on one screen.*tool_runner"):
        Tools([Screen()])  # type: ignore[list-item]


@pytest.mark.parametrize("tools", [add, "add", b"add", SEARCH, sdk_add, tool(add)])
def test_tools_are_a_list(tools: Any) -> None:
    """One tool is not taken for many."""
    with pytest.raises(TypeError, match=r"tools must be a list of tools.*\[tool\]"):
        Tools(tools)
