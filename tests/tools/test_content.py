from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Annotated, Any

import pytest
from anthropic.types import TextBlock
from hypothesis import given
from hypothesis import strategies as st
from pydantic import AfterValidator, BaseModel, TypeAdapter, field_serializer

from penstock import ToolError
from penstock.tools.content import Result, failed, failure_of, result_of

IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aGk="}}
TEXT = {"type": "text", "text": "Hello"}


class Weather(BaseModel):
    city: str
    degrees: float


@dataclass
class Point:
    x: int


class Broken(BaseModel):
    type: str = "text"

    @field_serializer("type")
    def fail(self, value: str) -> str:
        raise RuntimeError("no")


class OwnError(ToolError):
    def __init__(self) -> None:
        Exception.__init__(self, "own")


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no")


def content(value: object, most: int = 1000, schema: Any = None) -> Any:
    """What a value becomes, if it is no failure."""
    result = result_of(value, most=most, schema=None if schema is None else TypeAdapter(schema))
    assert not result.is_error
    return result.content


def failure(value: object, schema: Any = None) -> str:
    """Why a value can't be sent."""
    result = result_of(value, most=1000, schema=None if schema is None else TypeAdapter(schema))
    assert result.is_error
    assert isinstance(result.content, str)
    return result.content


class TestValues:
    @pytest.mark.parametrize(
        ("value", "sent"),
        [
            ("text", "text"),
            (None, ""),
            ("", ""),
            (" \n\t", ""),
            ("lone \ud800 half", "lone \ufffd half"),
            ({"a": ["\ud800"]}, '{"a":["\ufffd"]}'),
            ({"ü": float("nan")}, '{"ü":NaN}'),
            (3, "3"),
            (True, "true"),
            ({"a": None}, '{"a":null}'),
            ([1, "two"], '[1,"two"]'),
            ([], "[]"),
            ({1}, "[1]"),
            (Weather(city="Paris", degrees=20.5), '{"city":"Paris","degrees":20.5}'),
            (Point(x=1), '{"x":1}'),
            (Decimal("1.10"), '"1.10"'),
            (datetime(2026, 1, 2, tzinfo=UTC), '"2026-01-02T00:00:00Z"'),
            ((number for number in range(2)), "[0,1]"),
        ],
    )
    def test_text_is_sent_as_it_is_and_the_rest_as_json(self, value: object, sent: str) -> None:
        """Nothing is no text at all."""
        assert content(value) == sent

    @pytest.mark.parametrize("value", [b"\xff", bytearray(b"x"), memoryview(b"x")])
    def test_bytes_are_refused(self, value: object) -> None:
        """The model can't read them, and the reason says what can be sent."""
        assert "bytes" in failure(value)
        assert "image block" in failure(value)

    def test_what_is_no_json_is_refused_by_the_name_of_its_type(self) -> None:
        """The object itself is not shown."""
        assert failure(object()).startswith("the tool returned object, which can't be written as JSON")
        loop: list[object] = []
        loop.append(loop)
        assert failure(loop).startswith("the tool returned list")
        assert failure(10**5000).startswith("the tool returned int")
        assert failure({**TEXT, "citations": [object()]}).startswith("the tool returned dict")

    def test_a_value_whose_own_code_fails_is_refused_too(self) -> None:
        """A serializer's mistake is told like any other."""
        assert failure(Broken()).endswith("RuntimeError: no")

    @given(st.recursive(st.none() | st.booleans() | st.floats() | st.text() | st.binary(), st.lists))
    def test_whatever_is_returned_can_be_sent(self, value: object) -> None:
        """A result is text that is valid UTF-8, or a list of blocks, and never raises."""
        result = result_of(value, most=50)
        assert json.dumps(result.content).encode()
        assert isinstance(result.content, str)
        result.content.encode()
        assert not result.is_error or result.content.strip()


class TestSize:
    def test_long_text_is_cut_and_says_so(self) -> None:
        """The model knows that there is more."""
        assert content("x" * 50, most=50) == "x" * 50
        assert content("x" * 51, most=50) == "x" * 50 + "\n[cut: these are the first 50 of 51 characters]"
        assert content(["x" * 60], most=10).startswith('["xxxxxxxx\n[cut')

    def test_fifty_megabytes_are_cut_too(self) -> None:
        """What is sent has the length that was set."""
        assert len(content("x" * 50_000_000, most=100_000)) < 100_100

    def test_the_text_of_all_blocks_together_is_bounded(self) -> None:
        """What comes after the bound is left out; images stay."""
        blocks = [{"type": "text", "text": "x" * 30}, IMAGE, {"type": "text", "text": "y" * 30}, TEXT]
        sent = content(blocks, most=40)
        assert [block["type"] for block in sent] == ["text", "image", "text"]
        assert sent[2]["text"] == "y" * 10 + "\n[cut: these are the first 10 of 30 characters]"

    def test_images_that_no_request_takes_are_refused(self) -> None:
        """Sent once, they would be sent again in every later request."""
        huge = {**IMAGE, "source": {"type": "base64", "media_type": "image/png", "data": "x" * 10_000_001}}
        assert "more than 10000000 characters of images" in failure(huge)


class TestBlocks:
    @pytest.mark.parametrize("value", [[TEXT, IMAGE], (TEXT, IMAGE)])
    def test_lists_of_blocks_are_blocks(self, value: object) -> None:
        """As the SDK's tools return them."""
        assert content(value) == [TEXT, IMAGE]

    def test_a_single_block_is_one_too(self) -> None:
        """As is one of the SDK's own types."""
        assert content(IMAGE) == [IMAGE]
        assert content(TextBlock(type="text", text="Hello")) == [TEXT]

    def test_blank_text_blocks_are_left_out(self) -> None:
        """The API takes none."""
        assert content([{"type": "text", "text": " "}, IMAGE]) == [IMAGE]
        assert content([{"type": "text", "text": " "}]) == []

    @pytest.mark.parametrize(
        "block",
        [
            {**IMAGE, "cache_control": {"type": "ephemeral"}},
            {"type": "document", "source": {"type": "file", "file_id": "file_1"}, "title": "A page"},
            {"type": "search_result", "source": "wiki/1", "title": "A page", "content": [TEXT]},
            {"type": "tool_reference", "tool_name": "add"},
            {**TEXT, "citations": None},
        ],
    )
    def test_every_kind_of_block_is_taken_with_its_fields(self, block: dict[str, Any]) -> None:
        """As the API takes them in a result."""
        assert content(block) == [block]

    def test_what_json_does_not_hold_is_replaced_in_blocks(self) -> None:
        """It would make every later request fail."""
        source = {"type": "text", "media_type": "text/plain", "data": "lone \ud800 half"}
        (sent,) = content({"type": "document", "source": source, "citations": {"a": float("inf"), "b": [1.5]}})
        assert sent["source"]["data"] == "lone \ufffd half"
        assert sent["citations"] == {"a": None, "b": [1.5]}

    @pytest.mark.parametrize(
        "value",
        [
            {"type": "text", "text": "Hello", "author": "me"},
            {"type": "text", "text": 3},
            {"type": "image", "url": "x"},
            {"type": "search_result", "source": "x"},
            {"type": "message"},
            {"type": ["text"]},
            [TEXT, 3],
            {"type": "image", "source": "https://a.example/a.png"},
            {"type": "image", "source": {"type": "camera"}},
            {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": 3}},
            [{"type": "document", "source": "wiki/1", "title": "A page", "body": "Hello"}],
            {"type": "search_result", "source": "wiki/1", "title": "A page", "content": "Hello"},
            {"type": "search_result", "source": "wiki/1", "title": "A page", "content": [IMAGE]},
        ],
    )
    def test_data_that_looks_like_blocks_stays_data(self, value: object) -> None:
        """The API would refuse it as blocks."""
        assert json.loads(content(value)) == value


def no_negatives(value: int) -> int:
    """Raise what pydantic does not know."""
    if value < 0:
        raise KeyError("negative")
    return value


class TestSchema:
    def test_a_result_that_fits_is_sent_as_its_type_says(self) -> None:
        """Validated and written by the schema."""
        assert content({"city": "Paris", "degrees": "20"}, schema=Weather) == '{"city":"Paris","degrees":20.0}'

    def test_one_that_does_not_is_an_error_with_the_reason(self) -> None:
        """Without the value."""
        assert failure({"city": "SECRET"}, schema=Weather) == (
            "the tool returned what it should not: degrees: Field required"
        )
        assert failure("SECRET", schema=int).endswith("unable to parse string as an integer")

    def test_a_validator_that_fails_itself_is_an_error(self) -> None:
        """Whatever it raises."""
        assert failure(-1, schema=AnnotatedInt) == "the tool's result can't be checked: KeyError: 'negative'"


AnnotatedInt: Any = Annotated[int, AfterValidator(no_negatives)]


class TestFailures:
    @pytest.mark.parametrize(
        ("error", "told"),
        [
            (ValueError("bad"), "ValueError: bad"),
            (RuntimeError(), "RuntimeError"),
            (Unprintable(), "Unprintable"),
            (ValueError("\ud800"), "ValueError: \ufffd"),
            (ToolError("no such city"), "no such city"),
            (ToolError(" "), "the tool failed"),
            (ToolError([]), "the tool failed"),
            (OwnError(), "OwnError: own"),
            (ToolError([TEXT, IMAGE, {"type": "text", "text": "there"}]), "Hello\nthere"),  # type: ignore[list-item]
            (ToolError([IMAGE]), "the tool failed"),  # type: ignore[list-item]
        ],
    )
    def test_an_error_is_its_type_and_message_or_what_a_tool_error_says(self, error: Exception, told: str) -> None:
        """In nothing but text, because the API takes nothing else from what failed."""
        assert failure_of(error, most=1000) == Result(content=told, is_error=True)

    def test_long_messages_are_cut(self) -> None:
        """A page of HTML in an exception is no help to the model."""
        assert len(str(failure_of(ValueError("x" * 100_000), most=1000).content)) == 4_000

    def test_a_failure_is_never_blank(self) -> None:
        """The API takes no empty error."""
        assert failed("") == Result(content="the tool failed", is_error=True)
