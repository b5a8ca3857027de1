from __future__ import annotations

import gc
import weakref
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import anthropic
import httpx2
import pytest
from anthropic.types import Message

from penstock import FanOutResult, InvalidOutput
from penstock.batch.ask import ask, fitted
from penstock.batch.fan_out import FanOut
from penstock.batch.items import read_item
from penstock.batch.journal import Journal
from penstock.batch.output_format import OutputFormat

if TYPE_CHECKING:
    from pathlib import Path

    from penstock.simulator import Simulator

COMMON: dict[str, Any] = {"model": "claude-haiku-5-5", "max_tokens": 99}


class Prompt(str):  # noqa: SLOT000 - with slots it could not be watched
    """A text that can be watched."""


def message(text: str) -> Message:
    """An answer."""
    return Message.construct(content=[{"type": "text", "text": text}], stop_reason="end_turn")


async def test_a_failure_is_freed_with_its_result(simulator: Simulator) -> None:
    """Without waiting for the garbage collector: it holds the prompt."""
    gc.collect()
    gc.disable()
    try:
        prompt = Prompt("x")
        watched = weakref.ref(prompt)
        result = await ask(simulator.client(max_retries=0), read_item(0, prompt), None)
        assert isinstance(result.error, TypeError)
        del prompt, result
        assert watched() is None
    finally:
        gc.enable()


def test_an_answer_of_an_earlier_run_is_read_as_the_present_one_wants() -> None:
    """Parsed, or told that it doesn't fit; without a type it stays as it is."""
    result = FanOutResult(custom_id="a", index=0, message=message("7"), replayed=True)
    assert fitted(result, None) is result
    parsed = fitted(replace(result, error=ValueError("old")), OutputFormat(int))
    assert (parsed.parsed, parsed.ok, parsed.replayed) == (7, True, True)
    assert isinstance(fitted(result, OutputFormat(list[str])).error, InvalidOutput)
    failed = FanOutResult(custom_id="a", index=0, error=ValueError("no"))
    assert fitted(failed, OutputFormat(int)) is failed


@pytest.mark.parametrize("max_tokens", [None, "many", 100])
async def test_a_bad_or_short_max_tokens_is_left_to_the_sdk(simulator: Simulator, max_tokens: object) -> None:
    """What it says of it is the result."""
    item = read_item(0, "x")
    params = {**item.params, "model": "claude-haiku-5-5", "max_tokens": max_tokens}
    result = await ask(simulator.client(), replace(item, params=params), None)
    assert result.ok == (max_tokens == 100)


@pytest.mark.parametrize("body", ["null", "[]", '"text"', "7"])
async def test_an_answer_that_is_no_message_is_a_failure(body: str, tmp_path: Path) -> None:
    """An ungoverned client hands on any JSON that comes with a 200; it goes into the journal as a failure."""

    def answer(_: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(200, content=body, headers={"content-type": "application/json"})

    http = httpx2.AsyncClient(transport=httpx2.MockTransport(answer))
    async with anthropic.AsyncAnthropic(api_key="sk-x", http_client=http) as sdk, Journal(tmp_path / "run") as journal:
        async with FanOut(sdk, ["x"], journal=journal, **COMMON) as results:
            (result,) = [result async for result in results]
        assert (result.ok, result.message, str(result.error)) == (False, None, "the API's answer is no message")
        assert (journal.answered, journal.failed) == (0, 1)
