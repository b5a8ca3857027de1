from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from penstock.simulator import Simulator
from penstock.simulator.calls import make_calls

if TYPE_CHECKING:
    from penstock.testing.plugin import VirtualTime

WEATHER: Any = {
    "name": "get_weather",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"title": "City", "type": "string"}, "unit": {"type": "string", "enum": ["text", "C"]}},
    },
}
TOOLS: list[Any] = [
    {"name": "a", "input_schema": {"type": "object"}},
    {"type": "web_search_20250305", "name": "web_search"},
]
QUESTION = "What's the weather in Paris and Rome?"
USER: Any = {"role": "user", "content": QUESTION}
CALL: Any = {"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": "a", "input": {}}]}
RESULT: Any = {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": "sunny"}]}
SYSTEM: Any = {"role": "system", "content": "Be terse."}


def calls(wanted: Any = None, prompt: str = QUESTION, **fields: Any) -> list[tuple[str, Any]]:
    """(name, input) of the calls that answer a request."""
    body = {"messages": [USER], "tools": [WEATHER], **fields}
    found = make_calls(body, wanted, prompt, "s")
    assert len({call["id"] for call in found}) == len(found)
    return [(call["name"], call["input"]) for call in found]


@pytest.mark.parametrize(
    ("choice", "tools", "called"),
    [
        ({"type": "any"}, TOOLS, ["a"]),
        ({"type": "tool", "name": "a"}, TOOLS, ["a"]),
        ({"type": "tool", "name": "web_search"}, TOOLS, []),
        ({"type": "any"}, TOOLS[1:], []),
        ({"type": "auto"}, TOOLS, []),
        (None, TOOLS, []),
    ],
)
def test_only_forced_tools_of_the_client_are_called_unasked(choice: object, tools: object, called: list[str]) -> None:
    """Without a script, a tool is called where the request forces it and its input can be made up."""
    assert [name for name, _ in calls(tools=tools, tool_choice=choice)] == called


def test_as_many_are_called_as_wanted() -> None:
    """Tools are called in the order they are offered, and over again; those that the server runs are left out."""
    assert [name for name, _ in calls(3, tools=[*TOOLS, WEATHER])] == ["a", "get_weather", "a"]
    assert calls(0) == calls(-1) == calls(2, tools=[]) == calls(2, tools=TOOLS[1:]) == []


def test_names_in_the_prompt_are_what_is_asked_about() -> None:
    """Each call is about one of them; fields with a choice of their own are left alone."""
    paris, rome = {"city": "Paris", "unit": "text"}, {"city": "Rome", "unit": "text"}
    assert [given for _, given in calls(3)] == [paris, rome, paris]
    assert calls(1, prompt="what now") == [("get_weather", {"city": "text", "unit": "text"})]
    assert calls(1, tools=[{"name": "odd", "input_schema": {"type": "object", "properties": {"x": True}}}]) == [
        ("odd", {"x": None})
    ]


@pytest.mark.parametrize(
    ("messages", "number"),
    [
        ([USER], 2),
        ([USER, SYSTEM], 2),
        ([USER, CALL, RESULT], 0),
        ([USER, CALL, RESULT, SYSTEM], 0),
        ([USER, CALL, RESULT, {"role": "assistant", "content": "Sunny."}, USER], 2),
        ([USER, {"role": "assistant", "content": "So"}], 0),
    ],
)
def test_questions_are_answered_with_calls_and_results_with_words(messages: list[Any], number: int) -> None:
    """What decides is the user's last turn."""
    assert len(calls(2, messages=messages)) == number


def test_a_function_is_asked_each_time() -> None:
    """It sees the request, and can call tools for ever."""
    assert len(calls(lambda body: len(body["messages"]), messages=[USER, CALL, RESULT])) == 3


def test_parallel_calls_can_be_turned_off_and_calls_altogether() -> None:
    """The request's `tool_choice` is obeyed."""
    assert len(calls(4, tool_choice={"type": "auto", "disable_parallel_tool_use": True})) == 1
    assert calls(4, tool_choice={"type": "none"}) == []


async def test_a_tool_loop_needs_no_script(virtual_time: VirtualTime) -> None:
    """A question is answered with calls, their results with words; thinking comes first."""
    simulator = Simulator(tool_calls=2, thinking=True)
    messages: list[Any] = [USER]
    async with simulator.client() as claude:
        turn = await claude.messages.create(
            model="claude-sonnet-5-5", max_tokens=500, messages=messages, tools=[WEATHER]
        )
        assert [block.type for block in turn.content] == ["thinking", "tool_use", "tool_use"]
        assert turn.stop_reason == "tool_use"
        results = [
            {"type": "tool_result", "tool_use_id": block.id, "content": f"sunny in {block.input['city']}"}
            for block in turn.content
            if block.type == "tool_use"
        ]
        messages += [
            {"role": "assistant", "content": [block.to_dict() for block in turn.content]},
            {"role": "user", "content": results},
        ]
        last = await claude.messages.create(
            model="claude-sonnet-5-5", max_tokens=500, messages=messages, tools=[WEATHER]
        )
    assert last.stop_reason == "end_turn"
    text = last.content[-1]
    assert text.type == "text"
    assert text.text == "Summary: sunny in Paris sunny in Rome"
