from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Any

import anthropic
import anyio
import pytest

from penstock import Client, InvalidHistory, StreamInterrupted, ToolLoopLimit, ToolRun, UnknownPrice, UnknownTool, tool
from penstock._core.usage import Usage
from penstock.events import CallEnded, Event
from penstock.tools import run_tools
from penstock.tools.run import Drive
from penstock.tools.state import Ask

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from anthropic.types import ToolChoiceAutoParam

    from penstock.simulator import Simulator
    from penstock.testing.plugin import VirtualTime

PARAMS: dict[str, Any] = {"model": "claude-sonnet-5-5", "max_tokens": 1000}
SEARCH = {"type": "server_tool_use", "name": "web_search", "input": {"query": "x"}}


def use(name: str, **given: Any) -> dict[str, Any]:
    """A call of a tool, as the model makes it."""
    return {"type": "tool_use", "name": name, "input": given}


def bodies(simulator: Simulator) -> list[dict[str, Any]]:
    """What was asked."""
    return [entry.body for entry in simulator.journal if entry.body is not None]


async def get_weather(city: str) -> str:
    """Get the weather of a city.

    Args:
        city: Its name.
    """
    return f"sunny in {city}"


@pytest.fixture
async def sdk(simulator: Simulator) -> AsyncIterator[anthropic.AsyncAnthropic]:
    """An SDK client of the simulator's, which nobody governs."""
    async with simulator.client(max_retries=0) as client:
        yield client


class TestRun:
    @pytest.mark.simulator(tool_calls=2)
    async def test_a_question_is_answered_with_tools(self, simulator: Simulator) -> None:
        """As in the README: the last reply, the transcript, and what it took."""
        async with Client(sdk=simulator.client(), log=False) as claude:
            run = await claude.run_tools("What's the weather in Paris and Rome?", tools=[get_weather], **PARAMS)
        assert isinstance(run, ToolRun)
        assert run.message.stop_reason == "end_turn"
        assert run.text == "Summary: sunny in Paris sunny in Rome"
        assert (run.iterations, run.tool_calls) == (2, 2)
        assert run.usage.output_tokens > 0
        assert run.cost_usd is not None
        assert run.cost_usd > Decimal(0)
        assert [message["role"] for message in run.transcript] == ["user", "assistant", "user", "assistant"]
        first, second = bodies(simulator)
        assert first["tools"] == second["tools"]
        assert first["tools"][0]["input_schema"]["properties"]["city"]["description"] == "Its name."
        assert second["messages"] == run.transcript[:-1]

    async def test_an_unknown_price_is_no_cost(self, simulator: Simulator, sdk: anthropic.AsyncAnthropic) -> None:
        """It is not known, and not nothing."""
        simulator.reply("Hello")
        run = await run_tools(sdk, "Hello", tools=[], **PARAMS)
        run._spending.add("claude-unheard-of", Usage(input_tokens=1))
        assert run.cost_usd is None

    async def test_printing_a_run_shows_no_content(self, simulator: Simulator, sdk: anthropic.AsyncAnthropic) -> None:
        """It may be logged."""
        simulator.reply("SECRET")
        run = await run_tools(sdk, "SECRET", tools=[], **PARAMS)
        assert repr(run) == "ToolRun(iterations=1, tool_calls=0)"

    async def test_without_tools_it_asks_once(self, simulator: Simulator, sdk: anthropic.AsyncAnthropic) -> None:
        """And sends none."""
        await run_tools(sdk, "Hello", tools=[], **PARAMS)
        assert "tools" not in bodies(simulator)[0]

    async def test_thoughts_and_server_tools_are_sent_back_as_they_came(
        self, simulator: Simulator, sdk: anthropic.AsyncAnthropic
    ) -> None:
        """A paused turn is continued; its results and the thoughts stay unmodified."""
        found = {"type": "web_search_tool_result", "tool_use_id": "srvtoolu_1", "content": []}
        search = {**SEARCH, "id": "srvtoolu_1"}
        simulator.reply([{"type": "thinking"}, search], stop_reason="pause_turn")
        simulator.reply([found, use("get_weather", city="Rome")])
        simulator.reply("Sunny.")
        entry = {"type": "web_search_20250305", "name": "web_search"}
        run = await run_tools(sdk, "Hello", tools=[get_weather, entry], **PARAMS)
        assert run.iterations == 3
        _, paused, last = bodies(simulator)
        assert paused["messages"][1]["content"][1] == search
        assert paused["messages"][1]["content"][0]["signature"]
        assert last["messages"][2]["content"][0] == found
        assert [block["type"] for block in last["messages"][3]["content"]] == ["tool_result"]
        assert last["tools"][1] == entry

    async def test_beta_parameters_go_to_the_beta_interface(
        self, simulator: Simulator, sdk: anthropic.AsyncAnthropic
    ) -> None:
        """With the header that they need."""
        simulator.reply(use("get_weather", city="Rome"))
        run = await run_tools(sdk, "Hello", tools=[get_weather], betas=["example-2026-01-01"], **PARAMS)
        assert run.iterations == 2
        assert simulator.journal[0].headers["anthropic-beta"] == "example-2026-01-01"

    async def test_each_request_is_labelled_with_its_depth(self, simulator: Simulator) -> None:
        """So it stands in the log; tools don't inherit it."""
        seen: list[Any] = []
        inner: list[Any] = []

        def observe(event: Event) -> None:
            if isinstance(event, CallEnded):
                seen.append(event.labels.get("tool_iteration"))

        async def ask() -> str:
            from penstock._core.context import current_labels

            inner.append(dict(current_labels()))
            return "x"

        simulator.reply(use("ask"))
        async with Client(sdk=simulator.client(), log=False, observers=[observe]) as claude:
            await claude.run_tools("Hello", tools=[ask], **PARAMS)
        assert seen == ["1", "2"]
        assert inner == [{}]

    async def test_a_tool_may_use_the_client_itself(self, simulator: Simulator) -> None:
        """No slot is held while tools run, though there is only one."""
        async with Client(sdk=simulator.client(), log=False, concurrency=1) as claude:

            async def research(question: str) -> str:
                """Ask the model, which asks for the weather."""
                simulator.reply([use("get_weather", city="Rome")] * 2)
                simulator.reply(f"about {question}")
                return (await claude.run_tools(question, tools=[get_weather], **PARAMS)).text

            simulator.reply(use("research", question="rivers"))
            simulator.reply([use("get_weather", city="Rome")] * 2)
            with anyio.fail_after(10):
                run = await claude.run_tools("Hello", tools=[research, get_weather], **PARAMS)
        assert run.message.stop_reason == "end_turn"

    async def test_a_forced_choice_holds_for_the_first_reply(self, simulator: Simulator) -> None:
        """Forced again and again, it could never end."""
        choice = {"type": "any", "disable_parallel_tool_use": True}
        async with simulator.client() as sdk:
            asked = {**PARAMS, "model": "claude-opus-4-8", "tool_choice": choice}
            run = await run_tools(sdk, "Weather in Rome", tools=[get_weather], **asked)
            await run_tools(sdk, "Hello", tools=[get_weather], **{**PARAMS, "tool_choice": {"type": "auto"}})
        assert run.iterations == 2
        first, second, third = bodies(simulator)
        assert first["tool_choice"] == choice
        assert second["tool_choice"] == {"type": "auto", "disable_parallel_tool_use": True}
        assert third["tool_choice"] == {"type": "auto"}

    async def test_a_choice_that_forces_nothing_stays(self, simulator: Simulator) -> None:
        """It is the caller's."""
        simulator.reply(use("get_weather", city="Rome"))
        async with simulator.client() as sdk:
            choice: ToolChoiceAutoParam = {"type": "auto", "disable_parallel_tool_use": True}
            await run_tools(sdk, "Hello", tools=[get_weather], tool_choice=choice, **PARAMS)
        assert [body["tool_choice"] for body in bodies(simulator)] == [choice, choice]


class TestSettings:
    async def test_settings_fill_in_what_is_not_given(self, simulator: Simulator) -> None:
        """Model, tokens and iterations; what is given wins."""
        settings: Any = {"model": "claude-haiku-5-5", "max_tokens": 77, "max_tool_iterations": 2}
        async with Client(sdk=simulator.client(), log=False, **settings) as claude:
            for _ in range(4):
                simulator.reply(use("get_weather", city="Rome"))
            with pytest.raises(ToolLoopLimit, match="max_iterations=2"):
                await claude.run_tools("Hello", tools=[get_weather])
            run = await claude.run_tools("Hello", tools=[get_weather], max_iterations=3, **PARAMS)
        assert run.iterations == 3
        asked = [(body["model"], body["max_tokens"]) for body in bodies(simulator)]
        assert asked[0] == ("claude-haiku-5-5", 77)
        assert asked[-1] == ("claude-sonnet-5-5", 1000)


class TestRefusedBefore:
    @pytest.mark.parametrize(
        ("given", "error", "says"),
        [
            ({"messages": []}, TypeError, "'messages' is no parameter of a tool loop: give the messages as the prompt"),
            ({"stream": True}, TypeError, "'stream' is no parameter of a tool loop"),
            ({"approve": True}, TypeError, "approve must be an async function"),
            ({"max_iterations": 0}, ValueError, "max_iterations"),
            ({"tools": get_weather}, TypeError, "for one tool give"),
            ({"tools": [get_weather, get_weather]}, ValueError, "two tools are named 'get_weather'"),
            ({"tools": [tool(get_weather, needs_approval=True)]}, TypeError, "'get_weather' needs approval: give"),
            ({"prompt": ""}, InvalidHistory, "prompt: must not be blank"),
            ({"max_cost_usd": 1, "model": "claude-unheard-of"}, UnknownPrice, "claude-unheard-of"),
        ],
    )
    async def test_nothing_is_sent(
        self,
        simulator: Simulator,
        sdk: anthropic.AsyncAnthropic,
        given: dict[str, Any],
        error: type[Exception],
        says: str,
    ) -> None:
        """What is wrong is told at once, and by name."""
        options = {"prompt": "Hello", "tools": [get_weather], **PARAMS, **given}
        with pytest.raises(error, match=says):
            await run_tools(sdk, options.pop("prompt"), **options)
        assert simulator.journal == []


async def test_what_a_user_profile_pays_for_is_in_no_budget(sdk: anthropic.AsyncAnthropic) -> None:
    """It costs what it costs, and somebody else pays."""
    theirs: dict[str, Any] = {
        "billing_policy": {"type": "billing_policy", "bill_to": "user_profile"},
        "user_profile_id": "uprof_1",
        "betas": ["user-profiles-2026-03-24"],
    }
    run = await run_tools(sdk, "Hello", tools=[get_weather], **{**PARAMS, **theirs}, max_cost_usd=0.000_001)
    assert run.cost_usd is not None
    assert run.cost_usd > Decimal("0.000001")


class TestEnds:
    async def test_a_bound_leaves_a_transcript_to_go_on_from(
        self, simulator: Simulator, sdk: anthropic.AsyncAnthropic
    ) -> None:
        """The error has it, but shows none of it."""
        for _ in range(3):
            simulator.reply(use("get_weather", city="SECRET"))
        with pytest.raises(ToolLoopLimit, match=r"^the tool loop reached max_iterations=2") as caught:
            await run_tools(sdk, "SECRET", tools=[get_weather], max_iterations=2, **PARAMS)
        assert "SECRET" not in repr(caught.value)
        transcript = caught.value.transcript
        assert transcript is not None
        run = await run_tools(sdk, transcript, tools=[get_weather], **PARAMS)
        assert run.transcript[: len(transcript)] == transcript
        assert simulator.statistics().by_status == {200: 4}

    async def test_an_unknown_tool_may_end_it(self, simulator: Simulator, sdk: anthropic.AsyncAnthropic) -> None:
        """Where that is wanted; else the model is told."""
        simulator.reply(use("unheard_of"))
        with pytest.raises(UnknownTool, match="'unheard_of'"):
            await run_tools(sdk, "Hello", tools=[get_weather], on_unknown_tool="raise", **PARAMS)
        simulator.reply(use("unheard_of"))
        run = await run_tools(sdk, "Hello", tools=[get_weather], **PARAMS)
        assert run.message.stop_reason == "end_turn"

    async def test_a_refusal_is_a_run(self, simulator: Simulator, sdk: anthropic.AsyncAnthropic) -> None:
        """Not an exception, and no part of the transcript."""
        simulator.reply("I can't", stop_reason="refusal")
        run = await run_tools(sdk, "Hello", tools=[get_weather], **PARAMS)
        assert run.message.stop_reason == "refusal"
        assert run.transcript == [{"role": "user", "content": "Hello"}]

    async def test_its_time_ends_what_is_under_way(
        self, virtual_time: VirtualTime, simulator: Simulator, sdk: anthropic.AsyncAnthropic
    ) -> None:
        """A tool, and what it had done so far is kept."""

        async def hang() -> None:
            await anyio.sleep_forever()

        simulator.reply([use("get_weather", city="Rome"), use("hang")])
        with pytest.raises(ToolLoopLimit, match=r"max_seconds=2\.5") as caught:
            await run_tools(sdk, "Hello", tools=[get_weather, hang], max_seconds=2.5, **PARAMS)
        assert 2.5 <= virtual_time.now() < 2.6
        messages: Any = caught.value.transcript
        assert [block.get("is_error", False) for block in messages[-1]["content"]] == [False, True]

    @pytest.mark.simulator(latency_s=10)
    async def test_its_time_ends_a_reply_too(
        self, virtual_time: VirtualTime, simulator: Simulator, sdk: anthropic.AsyncAnthropic
    ) -> None:
        """The request is closed."""
        with pytest.raises(ToolLoopLimit, match="max_seconds=2"):
            await run_tools(sdk, "Hello", tools=[get_weather], max_seconds=2, **PARAMS)
        assert simulator.in_flight == 0

    async def test_an_error_of_the_api_comes_out_as_it_is(
        self, simulator: Simulator, sdk: anthropic.AsyncAnthropic
    ) -> None:
        """After what the guards, or the SDK, have tried."""
        simulator.inject("overloaded")
        with pytest.raises(anthropic.OverloadedError):
            await run_tools(sdk, "Hello", tools=[get_weather], **PARAMS)

    async def test_a_reply_that_breaks_off_is_asked_for_again(
        self, simulator: Simulator, sdk: anthropic.AsyncAnthropic
    ) -> None:
        """Nobody has seen any of it; what it used is counted, as an estimate."""
        simulator.inject("stream_drop_after_content", times=2)
        run = await run_tools(sdk, "What a day for a long answer", tools=[get_weather], **PARAMS)
        assert (run.iterations, len(simulator.journal)) == (1, 3)
        assert run.usage.estimated
        assert run.usage.input_tokens == 3 * run.message.usage.input_tokens
        assert run.cost_usd

    async def test_but_not_for_ever(self, simulator: Simulator, sdk: anthropic.AsyncAnthropic) -> None:
        """Three times are enough."""
        simulator.inject("stream_drop_after_content", times=9)
        with pytest.raises(StreamInterrupted):
            await run_tools(sdk, "What a day for a long answer", tools=[get_weather], **PARAMS)
        assert len(simulator.journal) == 3


def drive(**params: Any) -> Drive:
    """A run that sends nothing."""
    sdk = anthropic.AsyncAnthropic(api_key="sk-1", base_url="http://nowhere.invalid")
    return Drive(sdk, "Hello", tools=[], approve=None, params={"model": "m", **params})


class TestRequests:
    ASK = Ask(iteration=2, turns=())

    def test_code_on_the_server_goes_on_in_its_container(self) -> None:
        """The API refuses a follow-up without it; one that the caller names stays."""
        run = drive()
        assert "container" not in run._params_of(self.ASK)
        run._state.transcript.container = "container_1"
        assert run._params_of(self.ASK)["container"] == "container_1"
        named = drive(container="container_2")
        named._state.transcript.container = "container_1"
        assert named._params_of(self.ASK)["container"] == "container_2"

    def test_options_of_the_loop_are_not_sent(self) -> None:
        """What remains is a request's."""
        assert drive(max_iterations=2, system="Be brief.")._params_of(self.ASK) == {"model": "m", "system": "Be brief."}

    def test_its_repr_shows_where_it_stands(self) -> None:
        """And no content."""
        assert repr(drive()) == (
            "<Drive of 'm', <LoopState 0 replies, 0 calls, <Transcript of 1 messages, 0 calls unanswered>>>"
        )
