from __future__ import annotations

from typing import TYPE_CHECKING, Any, get_args

import pytest

from penstock import Conversation
from penstock.simulator import Simulator
from penstock.testing import Cancelled, cancel_at_every_await
from penstock.testing.cancellation import How

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

MODEL = "claude-sonnet-5-5"
WORDS = "The water of the upper lake drives the turbine below. " * 8


async def plain(chat: Conversation) -> None:
    """One question."""
    await chat.send("Hello there")


async def with_a_pause(chat: Conversation) -> None:
    """A question that takes three requests."""
    await chat.send("Search")


async def trimmed(chat: Conversation) -> None:
    """A question that needs a summary first."""
    await chat.send(WORDS * 4)


async def streamed(chat: Conversation) -> None:
    """A streamed answer, read to its end."""
    async with chat.stream("Hello there") as stream:
        _ = [text async for text in stream.text_stream]


async def left_early(chat: Conversation) -> None:
    """A streamed answer, left after its first text."""
    async with chat.stream("Hello there") as stream:
        await anext(stream.text_stream)


@pytest.mark.slow
@pytest.mark.parametrize("ask", [plain, with_a_pause, trimmed, streamed, left_early])
@pytest.mark.parametrize("how", get_args(How))
async def test_cancelled_anywhere_the_history_is_whole(ask: Callable[[Conversation], Awaitable[Any]], how: How) -> None:
    """It is as it was, or has question and answer; the next one goes on at once, and no request is left."""

    async def scenario(cancelled: Cancelled) -> None:
        simulator = Simulator(output_tokens=80)
        async with simulator.client() as sdk:
            chat = Conversation(
                sdk, model=MODEL, window_tokens=1_000, max_tokens=200, overflow="summary", summary_max_tokens=100
            )
            for _ in range(2):
                await chat.send(WORDS[:400])
            if ask is with_a_pause:
                search = {"type": "server_tool_use", "name": "web_search", "input": {}}
                simulator.reply(search, stop_reason="pause_turn", times=2)
            before = chat.messages
            spent = chat.spent_tokens

            async def main() -> None:
                await ask(chat)

            await cancelled(main())
            after: Any = chat.messages
            assert after == before or [turn["role"] for turn in after[-2:]] == ["user", "assistant"]
            if not cancelled.reached and ask is not left_early:
                assert after != before
            assert chat.spent_tokens >= spent
            assert not chat._session.turn_lock.busy
            assert simulator.in_flight == 0
            await chat.send("Hello")
            assert all(entry.status in (200, None) for entry in simulator.journal)

    assert await cancel_at_every_await(scenario, how=how) > 3
