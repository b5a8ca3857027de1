"""Which tools a model is offered, by name.

The rule here: a name means one tool, and every tool that the model may call here has something that runs it. What
isn't so is refused before anything is sent. Function tools of the SDK are taken as they are; only their refusal of
arguments is put into words that help the model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeAlias, cast

from anthropic.lib.tools import (
    BetaAsyncBuiltinFunctionTool,
    BetaAsyncFunctionTool,
    BetaAsyncRunnableToolset,
    BetaBuiltinFunctionTool,
    BetaFunctionTool,
    BetaRunnableToolset,
)
from pydantic import ValidationError

from penstock.tools.definition import Tool, checked_name, refused, tool, without_empty

if TYPE_CHECKING:
    from penstock.tools.events import ToolCall

__all__ = ["AnyTool", "SDKTool", "Tools"]

_Sync: TypeAlias = BetaFunctionTool[Any] | BetaBuiltinFunctionTool
_Async: TypeAlias = BetaAsyncFunctionTool[Any] | BetaAsyncBuiltinFunctionTool
SDKTool: TypeAlias = _Sync | _Async
AnyTool: TypeAlias = Tool[..., Any] | Callable[..., Any] | SDKTool | Mapping[str, Any]

# Entries that the API knows by their type, whose calls are nevertheless to be run by whoever sent them.
_RUN_BY_CLIENT: Final = ("custom", "bash_", "browser_", "computer_", "memory_", "text_editor_")
_TOOLSETS: Final = (BetaRunnableToolset, BetaAsyncRunnableToolset)
_SYNC: Final = (BetaFunctionTool, BetaBuiltinFunctionTool)
_ASYNC: Final = (BetaAsyncFunctionTool, BetaAsyncBuiltinFunctionTool)


class Tools:
    """The tools of a loop, in the order in which the model is told of them.

    Args:
        tools: Functions, what `penstock.tool` makes of them, function tools of the SDK, and entries of tools that run
            on the server as plain dicts.

    Raises:
        TypeError: One is no tool, can't be described to the model, or has nothing that would run it.
        ValueError: Two have the same name, or one has a name that the API doesn't take.

    Example:
        >>> def add(a: int, b: int) -> int:
        ...     '''Add two numbers.'''
        ...     return a + b
        >>> Tools([add, {"type": "web_search_20250305", "name": "web_search"}])
        <Tools add, web_search>
    """

    def __init__(self, tools: Iterable[AnyTool] | Tools) -> None:
        kind = type(cast("object", tools))
        if issubclass(kind, str | bytes | Mapping) or not issubclass(kind, Iterable):
            raise TypeError(f"tools must be a list of tools, not {kind.__name__}; for one tool give [tool]")
        self._entries: list[tuple[str, Tool[..., Any] | None, Mapping[str, Any]]] = []
        for item in tools:
            self._add(item)
        self._by_name = {name: found for name, found, _ in self._entries if found is not None}

    def __repr__(self) -> str:
        return f"<Tools {', '.join(name for name, _, _ in self._entries) or 'none'}>"

    def __iter__(self) -> Iterator[AnyTool]:
        """The tools, and the entries of those that run on the server."""
        return iter([param if found is None else found for _, found, param in self._entries])

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def params(self) -> list[dict[str, Any]]:
        """The request's `tools`."""
        return [dict(param) for _, _, param in self._entries]

    @property
    def runnable(self) -> list[Tool[..., Any]]:
        """Those that run here."""
        return list(self._by_name.values())

    def find(self, call: ToolCall) -> Tool[..., Any] | None:
        """Return what runs a call; `None` if no tool here does."""
        return None if call.toolset_name else self._by_name.get(call.name)

    def _add(self, item: object) -> None:
        if isinstance(item, Mapping):
            param = dict(cast("Mapping[str, Any]", item))
            self._enter(_server_name(param), None, param)
        else:
            found = _tool_of(item)
            self._enter(found.name, found, found.param)

    def _enter(self, name: str, found: Tool[..., Any] | None, param: Mapping[str, Any]) -> None:
        if any(name == other for other, _, _ in self._entries):
            raise ValueError(f"two tools are named {name!r}; give one of them another: penstock.tool(function, name=…)")
        self._entries.append((name, found, param))


def _tool_of(item: object) -> Tool[..., Any]:
    if isinstance(item, Tool):
        return cast("Tool[..., Any]", item)
    if isinstance(item, _SYNC + _ASYNC):
        return _of_sdk(cast("Any", item))
    if isinstance(item, _TOOLSETS):
        raise TypeError(
            f"{type(item).__name__}: a toolset acts on one screen, one step after the other; use the SDK's "
            "beta.messages.tool_runner for it"
        )
    if item is None:
        raise TypeError("a tool must be a function, not None")
    return tool(cast("Callable[..., Any]", item))


def _server_name(param: Mapping[str, Any]) -> str:
    """Return what an entry is called, if it is of a tool that runs on the server."""
    kind = param.get("type") or "custom"
    name = str(param.get("name") or param.get("mcp_server_name") or kind)
    if not isinstance(kind, str) or kind.startswith(_RUN_BY_CLIENT):
        raise TypeError(
            f"tool {name!r} is given as a dict, and nothing would run it: write a function, or subclass "
            "anthropic.lib.tools.BetaAsyncBuiltinFunctionTool for a tool that the API knows by its type"
        )
    return name


# Of the SDK


def _of_sdk(given: SDKTool) -> Tool[..., Any]:
    is_async = isinstance(given, _ASYNC)

    def bind(value: dict[str, Any]) -> Callable[[], object]:
        return partial(_call_async, given, value) if isinstance(given, _ASYNC) else partial(_call, given, value)

    return Tool(
        name=checked_name(given.name),
        param=without_empty(cast("dict[str, Any]", given.to_dict())),
        function=given.call,
        bind=bind,
        is_async=is_async,
    )


def _call(given: _Sync, value: dict[str, Any]) -> object:
    try:
        return given.call(value)
    except ValueError as error:
        raise (refused(error) if _refuses(error) else error) from None


async def _call_async(given: _Async, value: dict[str, Any]) -> object:
    try:
        return await given.call(value)
    except ValueError as error:
        raise (refused(error) if _refuses(error) else error) from None


def _refuses(error: ValueError) -> bool:
    """Whether the SDK refuses the arguments, other than the tool itself raising."""
    return isinstance(error.__cause__, ValidationError) and str(error).startswith("Invalid arguments for function")
