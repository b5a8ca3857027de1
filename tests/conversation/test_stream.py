from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anthropic
import anyio
import pytest

from penstock import Conversation, InvalidHistory, InvalidStream, StreamInterrupted
from penstock.simulator import Simulator
from penstock.streaming import Stream

if TYPE_CHECKING:
    from penstock.testing.plugin import VirtualTime

MODEL = "claude-sonnet-5-5"
LONG = " ".join(["word"] * 60)


async def by_text(stream: Stream) -> None:
    """Read the text."""
    _ = [text async for text in stream.text_stream]


async def by_events(stream: Stream) -> None:
    """Read all events."""
    _ = [event async for event in stream]


async def by_message(stream: Stream) -> None:
    """Ask for the message."""
    await stream.get_final_message()


async def by_some_of_each(stream: Stream) -> None:
    """Read a text, an event, then the rest."""
    await anext(stream.text_stream)
    await anext(stream)
    await stream.until_done()


@pytest.mark.parametrize("read", [by_text, by_events, by_message, by_some_of_each])
async def test_a_stream_that_was_read_enters_the_history(simulator: Simulator, read: Any) -> None:
    """By whichever method; as `send` would have left it."""
    async with simulator.client() as sdk:
        chat, other = Conversation(sdk, model=MODEL), Conversation(sdk, model=MODEL)
        asked = chat.stream("Hello there")
        assert repr(asked) == "<ConversationStream not entered>"
        async with asked as stream:
            assert isinstance(stream, Stream)
            await read(stream)
        assert "complete" in repr(asked)
        assert asked.reply is not None
        assert asked.reply.text == "Summary: Hello there"
        await other.send("Hello there")
        assert chat.messages == other.messages
        assert chat.usage == other.usage == asked.reply.usage


async def read_and_raise(chat: Conversation, error: Exception | None) -> None:
    """Read all of a streamed answer, and raise in its block."""
    async with chat.stream("Hello") as stream:
        await by_text(stream)
        if error is not None:
            raise error


async def left(stream: Stream) -> None:
    """Leave after the first text."""
    await anext(stream.text_stream)


async def unread(stream: Stream) -> None:
    """Read nothing."""


@pytest.mark.parametrize("read", [left, unread])
async def test_a_stream_that_was_left_changes_nothing(simulator: Simulator, read: Any) -> None:
    """However much has come meanwhile; what it used counts."""
    async with simulator.client() as sdk:
        chat = Conversation(sdk, model=MODEL)
        asked = chat.stream(LONG)
        async with asked as stream:
            await read(stream)
        assert chat.messages == []
        assert asked.reply is None
        await chat.send("Hello")
        assert len(chat.messages) == 2
    assert simulator.in_flight == 0


async def test_what_was_read_of_a_stream_that_was_left_counts(virtual_time: VirtualTime) -> None:
    """Input exactly, output as an estimate."""
    simulator = Simulator(tokens_per_s=10, output_tokens=100)
    async with simulator.client() as sdk:
        chat = Conversation(sdk, model=MODEL)
        async with chat.stream(LONG) as stream:
            with anyio.move_on_after(5):
                await stream.until_done()
        assert chat.messages == []
        assert chat.usage.input_tokens == simulator.journal[0].input_tokens
        assert chat.usage.estimated
        assert 30 < chat.usage.output_tokens < 90


async def test_a_stream_that_breaks_off_changes_nothing(simulator: Simulator) -> None:
    """Its error comes out as it is."""
    async with simulator.client(max_retries=0) as sdk:
        chat = Conversation(sdk, model=MODEL)
        simulator.inject("stream_drop_after_content")
        with pytest.raises(StreamInterrupted):
            async with chat.stream(LONG) as stream:
                await by_text(stream)
        simulator.inject("overloaded")
        with pytest.raises(anthropic.APIStatusError):
            async with chat.stream(LONG):
                raise AssertionError
        with pytest.raises(InvalidHistory):
            async with chat.stream(""):
                raise AssertionError
        assert chat.messages == []
        assert chat.usage.input_tokens > 0
        await chat.send("Hello")


async def test_a_stream_that_cannot_be_understood_changes_nothing(simulator: Simulator) -> None:
    """Whoever leaves it without having come to that event is not told of it."""
    simulator.inject("bad_json", times=2)
    async with simulator.client(max_retries=0) as sdk:
        chat = Conversation(sdk, model=MODEL)
        with pytest.raises(Exception, match=r"event stream|first content"):
            async with chat.stream("Hello") as stream:
                await by_events(stream)
        async with chat.stream("Hello") as stream:
            pass
        simulator.inject("bad_json", times=2)
        with pytest.raises(InvalidStream):
            await read_and_raise(chat, None)
        with pytest.raises(KeyError, match="mine"):
            async with chat.stream("Hello"):
                raise KeyError("mine")
        assert chat.messages == []


async def test_an_exception_of_the_block_leaves_as_it_is(simulator: Simulator) -> None:
    """An answer that had come to its end is kept all the same."""
    async with simulator.client() as sdk:
        chat = Conversation(sdk, model=MODEL)
        with pytest.raises(KeyError, match="mine"):
            await read_and_raise(chat, KeyError("mine"))
        assert len(chat.messages) == 2


async def test_others_wait_until_it_is_left(virtual_time: VirtualTime) -> None:
    """It has its turn as any other; its own task is told not to wait for itself."""
    simulator = Simulator(latency_s=1)
    async with simulator.client() as sdk:
        chat = Conversation(sdk, model=MODEL)
        async with anyio.create_task_group() as group:
            async with chat.stream("One") as stream:
                group.start_soon(chat.send, "Two")
                await anyio.sleep(5)
                assert len(simulator.journal) == 1
                with pytest.raises(RuntimeError, match="leave its block"):
                    await chat.send("Three")
                await stream.until_done()
            assert len(chat.messages) == 2
        assert len(chat.messages) == 4


async def test_it_runs_once(simulator: Simulator) -> None:
    """A new answer needs a new one; leaving what was not entered does nothing."""
    async with simulator.client() as sdk:
        chat = Conversation(sdk, model=MODEL)
        asked = chat.stream("Hello")
        async with asked:
            pass
        with pytest.raises(RuntimeError, match="runs once"):
            await asked.__aenter__()
        await chat.stream("Hello").__aexit__(None, None, None)


async def test_a_pause_and_a_cut_come_as_they_are(simulator: Simulator) -> None:
    """The next question, or none, goes on."""
    search = {"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search", "input": {}}
    simulator.reply(search, stop_reason="pause_turn")
    simulator.reply("found", stop_reason="max_tokens")
    async with simulator.client() as sdk:
        chat = Conversation(sdk, model=MODEL, on_truncation="continue")
        for content in ("Search", ""):
            async with chat.stream(content) as stream:
                await stream.until_done()
        assert len(chat.messages) == 2
        async with chat.stream("Go on") as stream:
            assert await stream.get_final_text() == "Summary: Go on"
    assert len(chat.messages) == 4


async def test_it_may_be_left_in_another_task(simulator: Simulator) -> None:
    """As a generator that a web framework closes."""
    async with simulator.client() as sdk:
        chat = Conversation(sdk, model=MODEL)
        asked = chat.stream("Hello")
        stream = await asked.__aenter__()
        await stream.until_done()
        async with anyio.create_task_group() as group:
            group.start_soon(asked.__aexit__, None, None, None)
        assert len(chat.messages) == 2
        await chat.send("On")
