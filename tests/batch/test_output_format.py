from __future__ import annotations

import pickle
from typing import Any

import anthropic
import pydantic
import pytest
from anthropic.types import Message

from penstock import InvalidOutput
from penstock.batch.output_format import OutputFormat
from penstock.simulator import Simulator


class City(pydantic.BaseModel):
    name: str
    people: int


def message(*texts: str, stop_reason: str = "end_turn") -> Message:
    """An answer of some texts, after what is no text."""
    return Message.construct(
        content=[{"type": "thinking", "thinking": "…", "signature": ""}]
        + [{"type": "text", "text": text} for text in texts],
        stop_reason=stop_reason,
    )


async def test_it_asks_as_the_sdk_does() -> None:
    """The same body as that of `messages.parse`, and the same value from the same answer."""
    simulator = Simulator()
    sdk = simulator.client()
    ask: Any = {"model": "claude-sonnet-5-5", "max_tokens": 99, "messages": [{"role": "user", "content": "x"}]}
    ask["output_config"] = {"effort": "low"}
    theirs = await sdk.messages.parse(**ask, output_format=City)
    output = OutputFormat(City)
    ours = await sdk.messages.create(**output.asked(ask))
    assert simulator.journal[0].body == simulator.journal[1].body
    assert type(output.parsed(ours)) is City
    assert output.parsed(theirs) == theirs.parsed_output


def test_the_first_text_is_read() -> None:
    """What is no text is passed over."""
    assert OutputFormat(City).parsed(message('{"name": "Bonn", "people": 3}')) == City(name="Bonn", people=3)
    assert OutputFormat(list[int]).parsed(message("[1]", "[2]")) == [1]


@pytest.mark.parametrize(
    ("texts", "stop_reason", "problems"),
    [
        (['{"name": "the secret'], "max_tokens", ("json_invalid",)),
        (['{"name": "the secret", "people": "secret"}'], "end_turn", ("int_parsing",)),
        (['{"secret": 1}'], "end_turn", ("missing",)),
        ([], "refusal", ("no text",)),
    ],
)
def test_what_does_not_fit_is_told_without_quoting_it(
    texts: list[str], stop_reason: str, problems: tuple[str, ...]
) -> None:
    """Neither the error nor what hangs on it holds the answer."""
    with pytest.raises(InvalidOutput) as raised:
        OutputFormat(City).parsed(message(*texts, stop_reason=stop_reason))
    error = raised.value
    assert (error.stop_reason, error.problems) == (stop_reason, problems)
    assert "secret" not in str(error) + repr(error)
    assert error.__context__ is None
    assert b"secret" not in pickle.dumps(error)
    assert ("Allow more max_tokens" in str(error)) == (stop_reason == "max_tokens")


@pytest.mark.parametrize("content", [None, "x", [], [None], [{"type": "text"}]])
def test_an_answer_of_another_shape_has_no_text(content: object) -> None:
    """As a compatible server may send it."""
    with pytest.raises(InvalidOutput) as raised:
        OutputFormat(City).parsed(Message.construct(content=content, stop_reason="end_turn"))
    assert raised.value.problems == ("no text",)


def test_a_type_without_a_schema_is_refused() -> None:
    """And so is a schema in the place of a type."""
    with pytest.raises(TypeError, match="no JSON schema"):
        OutputFormat(anthropic.AsyncAnthropic)
    with pytest.raises(TypeError, match="must be a type"):
        OutputFormat({"type": "object"})


def test_it_says_what_for() -> None:
    """Its text names the type."""
    assert "City" in repr(OutputFormat(City))


def test_what_is_omitted_is_not_there() -> None:
    """The SDK's own signs for it, as `None`."""
    for nothing in (None, anthropic.omit, anthropic.NOT_GIVEN, anthropic.not_given):
        assert OutputFormat.of(nothing) is None
    assert OutputFormat.of(int) is not None
