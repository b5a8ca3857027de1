from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from anthropic.types import Message
from pydantic import ValidationError

from penstock import ToolLoopLimit, UnknownPrice, UnknownTool
from penstock._core.usage import Usage
from penstock.tools import ToolOptions, Tools
from penstock.tools.content import Result
from penstock.tools.state import Ask, End, LoopState, RunCalls, Stop

CALL: dict[str, Any] = {"type": "tool_use", "id": "toolu_1", "name": "look", "input": {}}
TEXT: dict[str, Any] = {"type": "text", "text": "Hello"}
ASKED = {"role": "user", "content": "Hello"}


def look() -> None:
    """Look."""


def reply(*content: dict[str, Any], stop: str | None = "tool_use", **fields: Any) -> Any:
    """A reply that used 1,200 tokens."""
    message: dict[str, Any] = {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "claude-sonnet-5-5",
        "content": list(content),
        "stop_reason": stop,
        "usage": {"input_tokens": 1000, "output_tokens": 200},
    }
    return Message.construct(**{**message, **fields})


def loop(prompt: Any = "Hello", **options: Any) -> LoopState:
    """A loop at its start."""
    state = LoopState(prompt, Tools([look]), ToolOptions(**options))
    state.begin(100.0)
    return state


def turn(state: LoopState, *, content: str = "seen", number: int = 1, given: Any = None) -> None:
    """A reply with calls, and their answers."""
    calls = [{**CALL, "id": f"toolu_{place}", "input": given or {}} for place in range(number)]
    state.received(reply(*calls))
    step = state.next(100.0)
    assert isinstance(step, RunCalls), step
    for call in step.calls:
        state.answered(call, Result(content=content))


def limit(step: object) -> ToolLoopLimit:
    """The bound that ended it; every call must be answered."""
    assert isinstance(step, Stop)
    assert isinstance(step.error, ToolLoopLimit)
    messages: Any = step.error.transcript
    assert messages[-1]["role"] == "user"
    return step.error


class TestSteps:
    def test_it_asks_runs_calls_asks_again_and_ends(self) -> None:
        """Each reply is an iteration, and the transcript grows by what happened."""
        state = loop()
        first = state.next(100.0)
        assert isinstance(first, Ask)
        assert (first.iteration, first.messages) == (1, [ASKED])
        turn(state, number=2)
        step = state.next(100.0)
        assert isinstance(step, Ask)
        assert step.iteration == 2
        assert [message["role"] for message in step.messages] == ["user", "assistant", "user"]
        state.received(reply(TEXT, stop="end_turn"))
        ended = state.next(100.0)
        assert isinstance(ended, End)
        run = ended.run
        assert (run.iterations, run.tool_calls, run.usage.total_tokens, run.text) == (2, 2, 2400, "Hello")
        assert [message["role"] for message in run.transcript] == ["user", "assistant", "user", "assistant"]
        assert repr(state) == "<LoopState 2 replies, 2 calls, <Transcript of 4 messages, 0 calls unanswered>>"

    def test_calls_at_the_end_of_a_transcript_are_run_first(self) -> None:
        """They are no iteration."""
        state = loop([ASKED, {"role": "assistant", "content": [CALL]}])
        step = state.next(100.0)
        assert isinstance(step, RunCalls)
        state.answered(step.calls[0], Result(content="seen"))
        assert isinstance(state.next(100.0), Ask)
        assert state.iterations == 0

    @pytest.mark.parametrize("stop", ["pause_turn", "compaction"])
    def test_a_turn_that_is_not_over_is_sent_back_as_it_is(self, stop: str) -> None:
        """Its calls are not run before the model has gone on; then they are."""
        state = loop()
        state.received(reply(TEXT, {**CALL, "id": "toolu_0"}, stop=stop))
        step = state.next(100.0)
        assert isinstance(step, Ask)
        assert step.messages[-1]["role"] == "assistant"
        state.received(reply(CALL))
        later = state.next(100.0)
        assert isinstance(later, RunCalls)
        assert [call.id for call in later.calls] == ["toolu_0", "toolu_1"]

    @pytest.mark.parametrize("stop", ["end_turn", "max_tokens", "stop_sequence", "model_context_window_exceeded", None])
    def test_every_other_reason_ends_it_and_runs_nothing(self, stop: str | None) -> None:
        """A call that was cut off may be incomplete; the transcript answers it all the same."""
        state = loop()
        state.received(reply(TEXT, CALL, stop=stop))
        ended = state.next(100.0)
        assert isinstance(ended, End)
        messages: Any = ended.run.transcript
        assert messages[-1]["content"] == [
            {
                "type": "tool_result",
                "tool_use_id": "toolu_1",
                "content": f"Not run: the reply ended before, with stop_reason {stop}.",
                "is_error": True,
            }
        ]

    def test_a_refusal_is_a_reply_but_no_part_of_the_transcript(self) -> None:
        """Sent again, it would be refused again."""
        state = loop()
        state.received(reply(TEXT, stop="refusal"))
        ended = state.next(100.0)
        assert isinstance(ended, End)
        assert ended.run.message.stop_reason == "refusal"
        assert ended.run.transcript == [ASKED]

    def test_a_reply_that_should_call_but_does_not_ends_it(self) -> None:
        """A server's mistake must not be asked about for ever."""
        state = loop()
        state.received(reply(TEXT, stop="tool_use"))
        assert isinstance(state.next(100.0), End)

    def test_the_container_of_the_last_reply_is_kept(self) -> None:
        """Code on the server goes on where it was."""
        state = loop()
        state.received(reply(CALL, container={"id": "container_1", "expires_at": "2026-12-01T00:00:00Z"}))
        assert state.transcript.container == "container_1"
        turn(state)
        assert state.transcript.container == "container_1"


class TestBounds:
    def test_iterations(self) -> None:
        """The last reply's calls are not run, because nobody would read the results."""
        state = loop(max_iterations=2)
        turn(state)
        assert isinstance(state.next(100.0), Ask)
        state.received(reply(CALL))
        error = limit(state.next(100.0))
        assert error.limit == "max_iterations=2"
        messages: Any = error.transcript
        assert messages[-1]["content"][0]["content"] == "Not run: the tool loop reached max_iterations=2."

    def test_a_last_reply_without_calls_is_the_end(self) -> None:
        """The bound is on going on."""
        state = loop(max_iterations=1, max_total_tokens=1, max_cost_usd=0.001)
        state.received(reply(TEXT, stop="end_turn"))
        assert isinstance(state.next(1000.0), End)

    def test_tool_calls(self) -> None:
        """A turn whose calls are too many runs none of them."""
        state = loop(max_tool_calls=3)
        turn(state, number=2)
        assert isinstance(state.next(100.0), Ask)
        state.received(reply(CALL, {**CALL, "id": "toolu_2"}))
        assert limit(state.next(100.0)).limit == "max_tool_calls=3"
        exact = loop(max_tool_calls=2)
        turn(exact, number=2)
        assert isinstance(exact.next(100.0), Ask)

    def test_tokens(self) -> None:
        """No reply is asked for once they are used."""
        state = loop(max_total_tokens=2400)
        turn(state)
        assert isinstance(state.next(100.0), Ask)
        state.received(reply(CALL))
        assert limit(state.next(100.0)).limit == "max_total_tokens=2400"

    def test_cost(self) -> None:
        """A reply costs 0.4 cents; a price that is not known is an error."""
        state = loop(max_cost_usd=0.008)
        turn(state)
        assert isinstance(state.next(100.0), Ask)
        state.received(reply(CALL))
        assert limit(state.next(100.0)).limit == "max_cost_usd=0.008"
        unknown = loop(max_cost_usd=1)
        unknown.received(reply(CALL, model="claude-unheard-of"))
        with pytest.raises(UnknownPrice):
            unknown.next(100.0)

    def test_what_broke_off_counts_too(self) -> None:
        """It was used, if nobody has seen it."""
        state = loop(max_total_tokens=1000)
        state.broke_off(Usage(input_tokens=1000), "claude-sonnet-5-5")
        assert limit(state.next(100.0)).limit == "max_total_tokens=1000"

    def test_time(self) -> None:
        """From the start of the loop."""
        state = loop(max_seconds=2.5)
        assert isinstance(state.next(102.4), Ask)
        assert limit(state.next(102.5)).limit == "max_seconds=2.5"
        assert limit(state.out_of_time()).limit == "max_seconds=2.5"

    def test_turns_that_are_all_the_same(self) -> None:
        """The same calls with the same results three times running lead nowhere; the results are in the transcript."""
        state = loop(max_iterations=100)
        for _ in range(2):
            turn(state)
            assert isinstance(state.next(100.0), Ask)
        turn(state)
        error = limit(state.next(100.0))
        assert error.limit == "max_identical_turns=3"
        messages: Any = error.transcript
        assert messages[-1]["content"][0]["content"] == "seen"

    @pytest.mark.parametrize("other", [{"content": "new"}, {"given": {"x": 1}}, {"number": 2}])
    def test_anything_else_in_between_begins_anew(self, other: dict[str, Any]) -> None:
        """Another result, another input, another call."""
        state = loop(max_iterations=100)
        for kind in ({}, {}, other, {}, {}):
            turn(state, **kind)
            assert isinstance(state.next(100.0), Ask)

    def test_repetition_may_be_allowed(self) -> None:
        """Who polls does the same many times."""
        state = loop(max_iterations=100, max_identical_turns=None)
        for _ in range(10):
            turn(state)
            assert isinstance(state.next(100.0), Ask)


class TestUnknownTools:
    def test_they_are_run_like_others_where_the_model_is_to_be_told(self) -> None:
        """What answers them is not decided here."""
        state = loop()
        state.received(reply({**CALL, "name": "unheard_of"}))
        assert isinstance(state.next(100.0), RunCalls)

    def test_or_end_the_loop_before_any_call_runs(self) -> None:
        """With the transcript answered."""
        state = loop(on_unknown_tool="raise")
        state.received(reply(CALL, {**CALL, "id": "toolu_2", "name": "unheard_of"}))
        step = state.next(100.0)
        assert isinstance(step, Stop)
        assert isinstance(step.error, UnknownTool)
        assert step.error.name == "unheard_of"
        messages: Any = step.error.transcript
        assert [block["content"] for block in messages[-1]["content"]] == [
            "Not run: one of the tools called in this turn does not exist."
        ] * 2
        known = loop(on_unknown_tool="raise")
        known.received(reply(CALL))
        assert isinstance(known.next(100.0), RunCalls)


class TestOptions:
    def test_the_defaults_bound_what_a_model_can_do_by_mistake(self) -> None:
        """Replies, time of a tool, tools at once, size, repetition; money, tokens, time are the caller's to bound."""
        assert ToolOptions() == ToolOptions(
            max_iterations=5,
            max_tool_calls=None,
            max_total_tokens=None,
            max_cost_usd=None,
            max_seconds=None,
            max_identical_turns=3,
            max_parallel_tools=8,
            tool_timeout_s=60.0,
            max_result_chars=100_000,
            on_unknown_tool="answer",
        )

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("max_iterations", 0),
            ("max_iterations", True),
            ("max_iterations", 1.0),
            ("max_iterations", None),
            ("max_tool_calls", -1),
            ("max_total_tokens", 0),
            ("max_cost_usd", 0),
            ("max_cost_usd", float("nan")),
            ("max_seconds", 0),
            ("max_seconds", float("inf")),
            ("max_identical_turns", 1),
            ("max_parallel_tools", 0),
            ("tool_timeout_s", 0),
            ("max_result_chars", 0),
            ("on_unknown_tool", "ignore"),
        ],
    )
    def test_a_value_out_of_range_is_named(self, name: str, value: Any) -> None:
        """The error says which option it is."""
        with pytest.raises(ValidationError, match=name):
            ToolOptions(**{name: value})

    def test_a_cost_may_be_a_float(self) -> None:
        """It is taken as it is written."""
        assert ToolOptions(max_cost_usd=0.1).max_cost_usd == Decimal("0.1")  # type: ignore[arg-type]
