from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import anyio.lowlevel
import pytest

from penstock import FanOutResult
from penstock.batch.intake import Intake
from penstock.batch.items import Item
from penstock.batch.output_format import OutputFormat

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


async def everything(intake: Intake) -> list[Item | FanOutResult]:
    """Read to the end."""
    read: list[Item | FanOutResult] = []
    intake.begin()
    while (ready := await intake.next()) is not None:
        read.append(ready)
    await intake.end()
    return read


async def test_an_item_has_the_common_params_and_its_own() -> None:
    """Its own win."""
    ask = {"messages": [], "max_tokens": 1}
    intake = Intake(["x", {"custom_id": "a", "params": ask}], {"model": "m", "max_tokens": 9})
    first, second = await everything(intake)
    assert isinstance(first, Item)
    assert isinstance(second, Item)
    assert first.params == {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "x"}]}
    assert second.params == {"model": "m", "max_tokens": 1, "messages": []}
    assert (first.request, second.request) == (None, None)


async def test_what_is_wrong_with_an_item_is_its_result() -> None:
    """At its place, and the reading goes on."""
    bad: Any = [7, "x", {"custom_id": "1", "params": {}}]
    first, second, third = await everything(Intake(bad, {"model": "m"}))
    assert isinstance(second, Item)
    assert isinstance(first, FanOutResult)
    assert isinstance(third, FanOutResult)
    assert (first.custom_id, first.index, third.custom_id, third.index) == ("0", 0, "1", 2)
    assert "item 2 has the custom_id '1'" in str(third.error)


async def test_the_end_stays_the_end() -> None:
    """An input is not read on after it, nor after its own error."""

    async def broken() -> AsyncIterator[str]:
        yield "a"
        raise OSError("the user's own")

    intake = Intake(broken(), {"model": "m"})
    assert len(await everything(intake)) == 1
    assert isinstance(intake.error, OSError)
    assert await intake.next() is None
    assert repr(intake) == "<Intake 1 read, 0 resumed, ended>"


async def test_the_schema_is_asked_for_beside_what_else_is() -> None:
    """In the common params, and in an item's own."""
    own = {"custom_id": "a", "params": {"messages": [], "output_config": {"effort": "low"}}}
    intake = Intake(["x", own], {"model": "m", "output_config": {"effort": "high"}}, output=OutputFormat(int))
    configs = [item.params["output_config"] for item in await everything(intake) if isinstance(item, Item)]
    assert [config["effort"] for config in configs] == ["high", "low"]
    assert [config["format"]["schema"] for config in configs] == [{"type": "integer"}] * 2


@pytest.mark.parametrize("requests", ["one prompt", b"bytes", {"custom_id": "a"}, 7])
def test_what_is_no_input_is_refused(requests: Any) -> None:
    """One prompt is no list of prompts."""
    with pytest.raises(TypeError, match="for one prompt give"):
        Intake(requests, {})


async def test_prompts_without_a_model_are_one_error() -> None:
    """Of the run, before anything is asked; not one for each."""
    intake = Intake(["x", "y"], {"max_tokens": 5})
    assert await everything(intake) == []
    assert isinstance(intake.error, TypeError)
    assert str(intake.error) == "no model: give the run one, as model=…"


async def test_an_item_that_was_read_for_somebody_who_is_gone_is_the_next_one_s() -> None:
    """Whether it had been handed over by then, or was still to be read."""
    intake = Intake([str(number) for number in range(4)], {"model": "m"})
    intake.begin()
    loop = asyncio.get_running_loop()
    first = loop.create_task(intake.next())
    while intake.read == 0:
        await anyio.lowlevel.checkpoint()
    # It is read and handed over; the task has not run since.
    first.cancel()
    await asyncio.wait([first])
    second, third = loop.create_task(intake.next()), loop.create_task(intake.next())
    await anyio.lowlevel.checkpoint()
    third.cancel()
    items = [await second, *[await intake.next() for _ in range(3)]]
    assert first.cancelled()
    assert [item.custom_id for item in items if item is not None] == ["0", "1", "2", "3"]
    assert await intake.next() is None
    await intake.end()
