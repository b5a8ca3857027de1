from __future__ import annotations

from functools import partial
from typing import Any

import anthropic
import pytest
from anthropic.lib.tools import BetaAsyncBuiltinFunctionTool, BetaAsyncRunnableToolset, BetaBuiltinFunctionTool
from pydantic import TypeAdapter

from penstock import ToolCall, tool
from penstock.tools import Tool, Tools
from penstock.tools.definition import InvalidArguments

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


@pytest.mark.parametrize("item", [None, 3, "add", partial(add, a=1), staticmethod(add), len, Tool])
def test_what_is_no_function_is_refused_by_its_type(item: Any) -> None:
    """What a partial holds, a key perhaps, is not shown."""
    with pytest.raises(TypeError, match=r"^a tool must be a function, not \w+(; write a function that calls it)?$"):
        Tools([item])


@pytest.mark.parametrize("tools", [add, "add", b"add", SEARCH, sdk_add, tool(add)])
def test_tools_are_a_list(tools: Any) -> None:
    """One tool is not taken for many."""
    with pytest.raises(TypeError, match=r"tools must be a list of tools.*\[tool\]"):
        Tools(tools)


@anthropic.beta_async_tool(name="async_add", description="")
async def add_async(a: int, b: int) -> str:  # noqa: D103 - it has nothing to say
    return str(a + b)


@anthropic.beta_async_tool
async def parse(text: str) -> str:
    """Raise as the SDK does when it refuses arguments, but for a reason of its own."""
    try:
        return str(TypeAdapter(int).validate_json(text))
    except ValueError as error:
        raise ValueError("not a number") from error


class Memory(BetaBuiltinFunctionTool):
    def to_dict(self) -> Any:
        return {"type": "memory_20250818", "name": "memory"}

    def call(self, input: object) -> str:  # noqa: A002
        return f"kept {input}"


class AsyncMemory(BetaAsyncBuiltinFunctionTool):
    def to_dict(self) -> Any:
        return {"type": "memory_20250818", "name": "memory"}

    async def call(self, input: object) -> str:  # noqa: A002
        return f"kept {input}"


def of_sdk(given: Any) -> Tool[..., Any]:
    """What a tool of the SDK is taken as."""
    return Tools([given]).runnable[0]


def test_entry_and_call_are_the_sdks_own() -> None:
    """Nothing is made anew."""
    found = of_sdk(sdk_add)
    assert (found.name, found.is_async, found.param) == ("sdk_add", False, sdk_add.to_dict())
    assert found.bind({"a": 1, "b": "2"})() == "3"


async def test_async_tools_are_awaited() -> None:
    """With an empty description left out."""
    found = of_sdk(add_async)
    assert found.is_async
    assert "description" not in found.param
    assert await found.bind({"a": 1, "b": 2})() == "3"  # type: ignore[misc]


async def test_builtin_tools_get_their_input_as_it_came() -> None:
    """The API knows their schema."""
    assert of_sdk(Memory()).bind({"x": 1})() == "kept {'x': 1}"
    assert await of_sdk(AsyncMemory()).bind({"x": 1})() == "kept {'x': 1}"  # type: ignore[misc]


async def test_refused_arguments_are_told_with_their_reasons() -> None:
    """The SDK says only that they are invalid."""
    with pytest.raises(InvalidArguments, match=r"^invalid arguments: b: Missing required argument$"):
        of_sdk(sdk_add).bind({"a": 1})()
    with pytest.raises(InvalidArguments, match=r"^invalid arguments: b: Missing required argument$"):
        await of_sdk(add_async).bind({"a": 1})()  # type: ignore[misc]


async def test_what_a_tool_raises_itself_stays_as_it_is() -> None:
    """It is no refusal of arguments, though it looks like one."""
    with pytest.raises(ValueError, match=r"^not a number$") as caught:
        await of_sdk(parse).bind({"text": "x"})()  # type: ignore[misc]
    assert not isinstance(caught.value, InvalidArguments)


def test_a_sync_tool_that_raises_raises_as_it_is() -> None:
    """The same in a thread."""

    class Broken(Memory):
        def call(self, input: object) -> str:  # noqa: A002
            raise ValueError("full")

    with pytest.raises(ValueError, match=r"^full$"):
        of_sdk(Broken()).bind({})()
