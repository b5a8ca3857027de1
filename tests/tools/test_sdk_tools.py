from __future__ import annotations

from typing import Any

import anthropic
import pytest
from anthropic.lib.tools import BetaAsyncBuiltinFunctionTool, BetaBuiltinFunctionTool
from pydantic import TypeAdapter

from penstock.tools.definition import InvalidArguments
from penstock.tools.sdk_tools import is_of_sdk, of_sdk


@anthropic.beta_tool
def add(a: int, b: int) -> str:
    """Add two numbers."""
    return str(a + b)


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


@pytest.mark.parametrize("given", [add, add_async, Memory(), AsyncMemory()])
def test_function_tools_are_known(given: object) -> None:
    """All four kinds of the SDK's."""
    assert is_of_sdk(given)


def test_other_things_are_not() -> None:
    """A function is none."""
    assert not is_of_sdk(print)


def test_entry_and_call_are_the_sdks_own() -> None:
    """Nothing is made anew."""
    found = of_sdk(add)
    assert (found.name, found.is_async, found.param) == ("add", False, add.to_dict())
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
        of_sdk(add).bind({"a": 1})()
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
