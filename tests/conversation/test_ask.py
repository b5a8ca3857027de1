"""Typed answers: a question that says what the answer is to be, and a reply that has one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import BaseModel

from penstock import Conversation, InvalidOutput

if TYPE_CHECKING:
    from penstock.simulator import Simulator

MODEL = "claude-sonnet-5-5"


class City(BaseModel):
    """A city."""

    name: str
    people: int


@dataclass
class River:
    """A river."""

    name: str


async def test_an_answer_is_of_the_type_that_was_asked_for(simulator: Simulator) -> None:
    """The request holds the schema, the reply the object, the history the text; other questions are asked as ever."""
    async with simulator.client() as sdk:
        chat = Conversation(sdk, model=MODEL, output_config={"effort": "low"})
        simulator.reply('{"name": "Rome", "people": 2800000}')
        reply = await chat.ask("Name a city.", output_format=City)
        assert reply.parsed == City(name="Rome", people=2_800_000)
        simulator.reply('{"name": "Po"}')
        assert (await chat.ask("And a river?", output_format=River)).parsed == River(name="Po")
        plain = await chat.send("Thanks")
        assert plain.parsed is None
        configs = [(entry.body or {})["output_config"] for entry in simulator.journal]
        assert [config.get("format", {}).get("type") for config in configs] == ["json_schema", "json_schema", None]
        assert [config["effort"] for config in configs] == ["low"] * 3
        assert set(configs[0]["format"]["schema"]["properties"]) == {"name", "people"}
        assert len(chat.messages) == 6
        assert Conversation.from_json(chat.to_json(), sdk).messages == chat.messages


@pytest.mark.parametrize(
    ("answer", "stop_reason"),
    [('{"name": "Rome"}', None), ("Rome", None), ('{"name": "Ro', "max_tokens"), ("", "refusal")],
)
async def test_an_answer_that_does_not_fit_is_a_reply_that_says_so(
    simulator: Simulator, answer: str, stop_reason: str | None
) -> None:
    """It was paid for and it came: what is wrong is told where it is read, without quoting it."""
    simulator.reply(answer, stop_reason)
    async with simulator.client() as sdk:
        chat = Conversation(sdk, model=MODEL)
        reply = await chat.ask("Name a city.", output_format=City)
        assert reply.text == answer
        with pytest.raises(InvalidOutput) as caught:
            _ = reply.parsed
        assert caught.value.stop_reason == reply.stop_reason
        assert "Ro" not in str(caught.value)


async def test_an_answer_in_parts_is_read_as_one(simulator: Simulator) -> None:
    """A continued answer is one text."""
    simulator.reply('{"name": "Ro', "max_tokens")
    simulator.reply('me", "people": 1}')
    async with simulator.client() as sdk:
        chat = Conversation(sdk, model=MODEL)
        reply = await chat.ask("Name a city.", output_format=City, on_truncation="continue")
        assert reply.parsed == City(name="Rome", people=1)


async def test_functions_run_before_a_typed_answer(simulator: Simulator) -> None:
    """The last answer is the one that fits; each request of the question asks for it."""

    async def people_of(city: str) -> int:
        """Count the people."""
        return len(city)

    simulator.reply([{"type": "tool_use", "name": "people_of", "input": {"city": "Rome"}}])
    simulator.reply('{"name": "Rome", "people": 4}')
    async with simulator.client() as sdk:
        chat = Conversation(sdk, model=MODEL, tools=[people_of])
        reply = await chat.ask("How many people?", output_format=City)
        assert reply.parsed.people == 4
        assert all("format" in (entry.body or {})["output_config"] for entry in simulator.journal)


@pytest.mark.parametrize("wanted", [{"type": "object"}, Conversation])
async def test_what_is_no_type_is_refused_before_anything_is_sent(simulator: Simulator, wanted: Any) -> None:
    """With a TypeError."""
    async with simulator.client() as sdk:
        chat = Conversation(sdk, model=MODEL)
        with pytest.raises(TypeError):
            await chat.ask("Name a city.", output_format=wanted)
        assert (chat.messages, len(simulator.journal)) == ([], 0)
