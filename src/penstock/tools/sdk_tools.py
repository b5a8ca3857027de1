"""Function tools of the SDK, taken as they are.

The rule here: what such a tool does and says of itself is its own; only a refusal of arguments is put into words that
help the model.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeGuard, cast

from anthropic.lib.tools import (
    BetaAsyncBuiltinFunctionTool,
    BetaAsyncFunctionTool,
    BetaBuiltinFunctionTool,
    BetaFunctionTool,
)
from pydantic import ValidationError

from penstock.tools.definition import Tool, checked_name, refused, without_empty

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["SDKTool", "is_of_sdk", "of_sdk"]

_Sync: TypeAlias = BetaFunctionTool[Any] | BetaBuiltinFunctionTool
_Async: TypeAlias = BetaAsyncFunctionTool[Any] | BetaAsyncBuiltinFunctionTool
SDKTool: TypeAlias = _Sync | _Async

_SYNC: Final = (BetaFunctionTool, BetaBuiltinFunctionTool)
_ASYNC: Final = (BetaAsyncFunctionTool, BetaAsyncBuiltinFunctionTool)


def is_of_sdk(item: object) -> TypeGuard[SDKTool]:
    """Whether it is a function tool of the SDK."""
    return isinstance(item, _SYNC + _ASYNC)


def of_sdk(given: SDKTool) -> Tool[..., Any]:
    """Take a tool of the SDK as it is.

    Raises:
        ValueError: Its name is none that the API takes.
    """
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
