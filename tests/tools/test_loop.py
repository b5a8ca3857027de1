from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anthropic
import anyio
import pytest

from penstock import Client, ClientClosed, StreamInterrupted, ToolLoop, ToolLoopLimit
from penstock.simulator import Simulator
from penstock.testing import Cancelled, cancel_at_every_await
from penstock.tools import (
    ApprovalAsked,
    Finished,
    IterationStarted,
    MessageFinished,
    TextDelta,
    ToolCall,
    ToolDenied,
    ToolEvent,
    ToolFinished,
    ToolStarted,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from penstock.testing.cancellation import How
    from penstock.testing.plugin import VirtualTime

PARAMS: dict[str, Any] = {"model": "claude-sonnet-5-5", "max_tokens": 1000}


def use(name: str, **given: Any) -> dict[str, Any]:
    """A call of a tool, as the model makes it."""
    return {"type": "tool_use", "name": name, "input": given}


def check(transcript: Any) -> None:
    """Every call is answered in the next message, in order."""
    calls: list[str] = []
    for message in transcript:
        blocks = message["content"] if isinstance(message["content"], list) else []
        assert [block["tool_use_id"] for block in blocks if block["type"] == "tool_result"] == calls
        calls = [block["id"] for block in blocks if block["type"] == "tool_use"]
    assert calls == []


async def take(loop: ToolLoop, look: Callable[[ToolEvent], object] = lambda _: None) -> None:
    """Take all events, and look at each."""
    async for event in loop:
        look(event)


async def whole(loop: ToolLoop, look: Callable[[ToolEvent], object] = lambda _: None) -> None:
    """Run it to its end, and look at each event."""
    async with loop:
        await take(loop, look)


async def get_weather(city: str) -> str:
    """Get the weather of a city."""
    return f"sunny in {city}"


class Tools:
    """Tools that know how many of them are running."""

    def __init__(self) -> None:
        self.running = 0

    async def hang(self) -> None:
        """Never end."""
        self.running += 1
        try:
            await anyio.sleep_forever()
        finally:
            self.running -= 1

    async def wait(self) -> str:
        """Take a moment."""
        self.running += 1
        try:
            await anyio.sleep(0.01)
        finally:
            self.running -= 1
        return "done"


@pytest.fixture
async def sdk(simulator: Simulator) -> AsyncIterator[anthropic.AsyncAnthropic]:
    """An SDK client of the simulator's, which nobody governs."""
    async with simulator.client(max_retries=0) as client:
        yield client


class TestEvents:
    async def test_everything_is_told_in_order(self, simulator: Simulator, sdk: anthropic.AsyncAnthropic) -> None:
        """Text as it comes, tools as they start and end, and what came of it."""

        async def approve(call: ToolCall) -> bool:
            return bool(call.input["city"] != "Rome")

        simulator.reply([{"type": "text", "text": "Let me see."}, use("get_weather", city="Paris")])
        simulator.reply(use("get_weather", city="Rome"))
        simulator.reply("It is sunny.")
        async with ToolLoop(sdk, "Weather?", tools=[get_weather], approve=approve, **PARAMS) as events:
            told = [event async for event in events]
            assert [event async for event in events] == []
        kinds = [type(event) for event in told if not isinstance(event, TextDelta)]
        assert kinds == [
            *[IterationStarted, MessageFinished, ApprovalAsked, ToolStarted, ToolFinished],
            *[IterationStarted, MessageFinished, ApprovalAsked, ToolDenied],
            *[IterationStarted, MessageFinished, Finished],
        ]
        assert isinstance(told[1], TextDelta)
        texts = dict.fromkeys((1, 2, 3), "")
        for event in told:
            if isinstance(event, TextDelta):
                texts[event.iteration] += event.text
        assert texts == {1: "Let me see.", 2: "", 3: "It is sunny."}
        last = told[-1]
        assert isinstance(last, Finished)
        assert last.run is events.run
        assert events.transcript == events.run.transcript
        assert "Let me" not in repr(told)
        assert "sunny" not in repr(told)

    async def test_text_that_nobody_takes_is_joined(
        self, virtual_time: VirtualTime, simulator: Simulator, sdk: anthropic.AsyncAnthropic
    ) -> None:
        """A slow interface gets fewer, longer pieces, and holds nothing up."""
        simulator.reply([{"type": "text", "text": "word " * 200}, use("get_weather", city="Paris")])
        simulator.reply("word " * 200)
        async with ToolLoop(sdk, "Hello", tools=[get_weather], **PARAMS) as events:
            await anyio.sleep(60)
            assert repr(events) == "<ToolLoop over, 9 events not taken>"
            texts = [event.text async for event in events if isinstance(event, TextDelta)]
        assert texts == ["word " * 200] * 2

    @pytest.mark.simulator(tokens_per_s=10)
    async def test_text_comes_while_it_is_written(
        self, virtual_time: VirtualTime, sdk: anthropic.AsyncAnthropic, simulator: Simulator
    ) -> None:
        """Not when the reply is over."""
        simulator.reply("word " * 20)
        async with ToolLoop(sdk, "Hello", tools=[], **PARAMS) as events:
            times = [virtual_time.now() async for event in events if isinstance(event, TextDelta)]
        assert len(times) > 5
        assert times[-1] - times[0] > 1


class TestFailures:
    async def test_a_bound_is_raised_after_what_came_before_it(
        self, simulator: Simulator, sdk: anthropic.AsyncAnthropic
    ) -> None:
        """Once; the transcript is the loop's too."""
        simulator.reply(use("get_weather", city="Paris"))
        told: list[Any] = []
        async with ToolLoop(sdk, "Hello", tools=[get_weather], max_iterations=1, **PARAMS) as events:
            with pytest.raises(ToolLoopLimit) as caught:
                await take(events, told.append)
            assert [event async for event in events] == []
        assert isinstance(told[-1], MessageFinished)
        assert events.transcript == caught.value.transcript
        with pytest.raises(RuntimeError, match="has not come to its end"):
            _ = events.run

    async def test_a_reply_whose_text_was_seen_is_not_asked_for_again(
        self, simulator: Simulator, sdk: anthropic.AsyncAnthropic
    ) -> None:
        """The transcript is as it was before."""
        simulator.inject("stream_drop_after_content")
        loop = ToolLoop(sdk, "What a day for a long answer", tools=[], **PARAMS)
        with pytest.raises(StreamInterrupted):
            await whole(loop)
        assert len(simulator.journal) == 1
        assert len(loop.transcript) == 1

    async def test_what_the_block_raises_leaves_as_it_is(
        self, simulator: Simulator, sdk: anthropic.AsyncAnthropic
    ) -> None:
        """And everything has ended by then."""
        tools = Tools()
        simulator.reply(use("hang"))

        def fail(event: ToolEvent) -> None:
            if isinstance(event, ToolStarted):
                raise KeyError("mine")

        loop = ToolLoop(sdk, "Hello", tools=[tools.hang], **PARAMS)
        with pytest.raises(KeyError, match="mine"):
            await whole(loop, fail)
        assert tools.running == 0
        check(loop.transcript)

    async def test_an_error_of_the_hook_comes_out_as_it_is(
        self, simulator: Simulator, sdk: anthropic.AsyncAnthropic
    ) -> None:
        """From the iteration."""

        async def approve(call: ToolCall) -> bool:
            raise PermissionError("mine")

        simulator.reply([use("get_weather", city="Paris")] * 3)
        loop = ToolLoop(sdk, "Hello", tools=[get_weather], approve=approve, **PARAMS)
        with pytest.raises(PermissionError, match="mine"):
            await whole(loop)
        check(loop.transcript)

    @pytest.mark.parametrize("fault", ["rate_limited", "overloaded", "spend_cap", "reset"])
    async def test_an_error_between_turns_leaves_what_was_done(
        self, simulator: Simulator, sdk: anthropic.AsyncAnthropic, fault: str
    ) -> None:
        """The results of the tools are in the transcript, so that none is run again."""
        simulator.reply(use("get_weather", city="Paris"))
        simulator.inject(fault, after=1)
        loop = ToolLoop(sdk, "Weather?", tools=[get_weather], **PARAMS)
        with pytest.raises(anthropic.APIError):
            await whole(loop)
        messages: Any = loop.transcript
        assert messages[-1]["content"][0]["content"] == "sunny in Paris"
        again = ToolLoop(sdk, messages, tools=[], **PARAMS)
        await whole(again)
        assert (again.run.iterations, again.run.tool_calls) == (1, 0)

    async def test_a_client_that_is_closed_while_tools_run_keeps_their_results(self, simulator: Simulator) -> None:
        """Its next request is refused; the transcript can be gone on from with another client."""
        claude = Client(sdk=simulator.client(), log=False)

        async def closing() -> str:
            await claude.close()
            return "closed"

        simulator.reply(use("closing"))
        async with claude:
            loop = claude.tool_loop("Hello", tools=[closing], **PARAMS)
            with pytest.raises(ClientClosed):
                await whole(loop)
        messages: Any = loop.transcript
        assert messages[-1]["content"][0]["content"] == "closed"

    async def test_a_closed_client_offers_none(self, simulator: Simulator) -> None:
        """As any other of its verbs."""
        claude = Client(sdk=simulator.client(), log=False)
        with pytest.raises(ClientClosed):
            claude.tool_loop("Hello", tools=[get_weather], **PARAMS)


class TestLife:
    async def test_leaving_early_ends_tools_and_request(
        self, simulator: Simulator, sdk: anthropic.AsyncAnthropic
    ) -> None:
        """At once; the transcript is valid, and can be gone on from."""
        tools = Tools()
        simulator.reply([use("hang"), use("get_weather", city="Paris")])
        async with ToolLoop(sdk, "Hello", tools=[tools.hang, get_weather], **PARAMS) as events:
            async for event in events:
                if isinstance(event, ToolFinished):
                    break
            assert repr(events).startswith("<ToolLoop running")
        assert tools.running == 0
        check(events.transcript)
        contents: Any = events.transcript[-1]["content"]
        assert contents[0]["content"].startswith("Interrupted: the tool had begun")
        assert contents[1]["content"] == "sunny in Paris"
        async with ToolLoop(sdk, events.transcript, tools=[tools.hang, get_weather], **PARAMS) as again:
            assert [event async for event in again]
        assert simulator.statistics().by_status == {200: 2}

    @pytest.mark.simulator(latency_s=10)
    async def test_leaving_before_anything_came_closes_the_request(
        self, virtual_time: VirtualTime, simulator: Simulator, sdk: anthropic.AsyncAnthropic
    ) -> None:
        """The transcript is the prompt."""
        async with ToolLoop(sdk, "Hello", tools=[], **PARAMS) as events:
            await anext(aiter(events))
            await anyio.sleep(1)
            assert simulator.in_flight == 1
        assert simulator.in_flight == 0
        assert virtual_time.now() < 2
        assert events.transcript == [{"role": "user", "content": "Hello"}]

    async def test_it_runs_once_and_only_inside_its_block(self, sdk: anthropic.AsyncAnthropic) -> None:
        """A second time is a mistake, and says what to do."""
        loop = ToolLoop(sdk, "Hello", tools=[], **PARAMS)
        assert repr(loop) == "<ToolLoop not entered, 0 events not taken>"
        await loop.__aexit__(None, None, None)
        with pytest.raises(RuntimeError, match="use it inside"):
            await anext(loop)
        async with loop:
            pass
        with pytest.raises(RuntimeError, match="runs once"):
            await loop.__aenter__()

    async def test_one_that_failed_keeps_no_error(self, simulator: Simulator, sdk: anthropic.AsyncAnthropic) -> None:
        """Its error forms no cycle with what raised it."""
        simulator.inject("overloaded")
        loop = ToolLoop(sdk, "Hello", tools=[], **PARAMS)
        with pytest.raises(anthropic.OverloadedError):
            await whole(loop)
        assert loop._error is None

    @pytest.mark.lengthy
    @pytest.mark.parametrize("how", ["waiting", "done", "repeatedly"])
    @pytest.mark.parametrize("verb", ["run_tools", "tool_loop"])
    async def test_wherever_it_is_cancelled_nothing_is_left(
        self, virtual_time: VirtualTime, how: How, verb: str
    ) -> None:
        """No tool, request or slot; the transcript is valid and the API takes it."""

        async def scenario(cancelled: Cancelled) -> None:
            simulator, tools = Simulator(), Tools()
            simulator.reply([{"type": "text", "text": "Hm."}, use("wait"), use("get_weather", city="Rome")])
            simulator.reply([use("wait")])

            async def approve(call: ToolCall) -> bool:
                await anyio.sleep(0.01)
                return True

            options: Any = {"tools": [tools.wait, get_weather], "approve": approve, **PARAMS}
            async with Client(sdk=simulator.client(), log=False) as claude:
                loop = claude.tool_loop("Hello", **options)

                async def main() -> None:
                    if verb == "run_tools":
                        await claude.run_tools("Hello", **options)
                        return
                    async with loop:
                        async for _ in loop:
                            check(loop.transcript)

                await cancelled(main())
                assert tools.running == 0
                assert simulator.in_flight == 0
                assert claude.statistics().admission.slots_used == 0
                check(loop.transcript)
                if loop.transcript[-1]["role"] == "user":
                    await claude.messages.create(messages=loop.transcript, **PARAMS)
            assert set(simulator.statistics().by_status) <= {0, 200}

        assert await cancel_at_every_await(scenario, how=how) > 10
