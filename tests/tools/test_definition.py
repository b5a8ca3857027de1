from __future__ import annotations

import functools
from collections.abc import Callable  # noqa: TC003 - pydantic reads it
from typing import TYPE_CHECKING, Annotated, Any

import pytest
from pydantic import BaseModel, Field

from penstock import Tool, tool
from penstock.tools.definition import InvalidArguments

if TYPE_CHECKING:
    from collections.abc import Iterator
    from decimal import Decimal


class Place(BaseModel):
    city: str


class Opaque:
    """Nothing that JSON knows."""


async def get_weather(place: Place, days: Annotated[int, Field(ge=1, le=7)] = 1, *, unit: str = "C") -> Decimal:
    """Get the weather.

    Of one place at a time.

    Args:
        place: Where.
        days: How many days.
        unit: Of degrees.
    """
    raise NotImplementedError(place, days, unit)


def nothing() -> None:  # noqa: D103 - it has nothing to say
    pass


class TestSchema:
    def test_name_description_and_schema_come_from_the_function(self) -> None:
        """The model is told what the signature and the docstring say, though the return type can't be found."""
        found = tool(get_weather)
        assert isinstance(found, Tool)
        assert found.name == "get_weather"
        assert found.is_async
        assert found.param["description"] == "Get the weather.\n\nOf one place at a time."
        schema = found.param["input_schema"]
        assert schema["required"] == ["place"]
        assert schema["additionalProperties"] is False
        assert schema["properties"]["days"] == {
            "default": 1,
            "description": "How many days.",
            "maximum": 7,
            "minimum": 1,
            "title": "Days",
            "type": "integer",
        }

    def test_options_win_over_the_function(self) -> None:
        """Name, description and further fields can be given."""
        found = tool(nothing, name="other", description="Does nothing.", extra_fields={"strict": True})
        assert found.param == {
            "name": "other",
            "description": "Does nothing.",
            "input_schema": {"additionalProperties": False, "properties": {}, "type": "object"},
            "strict": True,
        }

    def test_a_function_without_docstring_has_no_description(self) -> None:
        """An empty description says nothing, so it is left out."""
        assert "description" not in tool(nothing).param

    def test_as_a_decorator_it_takes_options(self) -> None:
        """With or without parentheses; what comes of it can still be called."""

        @tool(safe_to_retry=True, timeout_s=3, needs_approval=True)
        def add(a: int, b: int) -> int:
            return a + b

        assert (add.safe_to_retry, add.timeout_s, add.needs_approval, add.is_async) == (True, 3, True, False)
        assert add(1, b=2) == 3
        assert repr(add) == "Tool(name='add', is_async=False, safe_to_retry=True, timeout_s=3, needs_approval=True)"

    def test_methods_are_tools_without_self(self) -> None:
        """What a method is bound to is none of the model's arguments."""

        class Shop:
            async def buy(self, number: int) -> int:
                return number

        assert list(tool(Shop().buy).param["input_schema"]["properties"]) == ["number"]


class TestBinding:
    def test_arguments_are_validated_and_made_what_the_function_takes(self) -> None:
        """Objects become models, and defaults are filled in."""
        bound: Any = tool(get_weather).bind({"place": {"city": "Paris"}, "days": "3"})
        assert bound.keywords == {"place": Place(city="Paris"), "days": 3, "unit": "C"}

    def test_a_refusal_names_every_place_and_no_value(self) -> None:
        """The model can mend what it did; the function was not called."""
        with pytest.raises(InvalidArguments) as caught:
            tool(get_weather).bind({"place": {"town": "SECRET"}, "days": 9, "SECRET2": 1})
        assert str(caught.value) == (
            "invalid arguments: place.city: Field required; days: Input should be less than or equal to 7; "
            "SECRET2: Unexpected keyword argument"
        )

    def test_reasons_are_bounded(self) -> None:
        """A hundred wrong arguments are told by twenty."""
        with pytest.raises(InvalidArguments, match=r"and 80 more$"):
            tool(nothing).bind({f"x{number}": 1 for number in range(100)})


def unannotated(city) -> str:  # type: ignore[no-untyped-def]  # noqa: ANN001
    """Say not what it takes."""
    raise NotImplementedError(city)


def variadic(*cities: str) -> str:
    """Take any number."""
    raise NotImplementedError(cities)


def keywords(**cities: str) -> str:
    """Take any names."""
    raise NotImplementedError(cities)


def positional(city: str, /) -> str:
    """Take no names."""
    raise NotImplementedError(city)


def opaque(thing: Opaque) -> str:
    """Take what is no JSON."""
    raise NotImplementedError(thing)


def not_imported(given: Decimal) -> str:
    """Take what only type checkers know."""
    raise NotImplementedError(given)


def uncallable_schema(call: Callable[[], int]) -> str:
    """Take what has no schema."""
    raise NotImplementedError(call)


def generator(city: str) -> Iterator[str]:
    """Give piece by piece."""
    yield city


async def async_generator(city: str) -> Any:
    """Give piece by piece."""
    yield city


class TestRefusals:
    @pytest.mark.parametrize(
        ("function", "says"),
        [
            (unannotated, r"tool 'unannotated': parameter 'city' has no type annotation.*write e\.g\. `city: str`"),
            (variadic, r"tool 'variadic' takes \*cities, "),
            (keywords, r"tool 'keywords' takes \*\*cities, "),
            (positional, "tool 'positional' takes 'city' by position only"),
            (opaque, "tool 'opaque': no JSON schema can be made for its parameters: .*Opaque"),
            (uncallable_schema, "tool 'uncallable_schema': no JSON schema can be made"),
            (not_imported, "tool 'not_imported': name 'Decimal' is not defined; .* not only for type checkers"),
            (generator, "tool 'generator' is a generator"),
            (async_generator, "tool 'async_generator' is a generator"),
        ],
    )
    def test_what_can_not_be_described_is_refused_by_name(self, function: Callable[..., Any], says: str) -> None:
        """The error names the function and what to do, before anything is sent."""
        with pytest.raises(TypeError, match=says):
            tool(function)

    @pytest.mark.parametrize("given", [3, "name", Place, functools.partial(nothing), print])
    def test_what_is_no_function_is_refused(self, given: Any) -> None:
        """Classes, partials and built-ins don't say what they take."""
        with pytest.raises(TypeError, match="a tool must be a function"):
            tool(given)

    @pytest.mark.parametrize("name", ["two words", "a" * 129, "naïve", "x\n"])
    def test_names_that_the_api_refuses_are_refused(self, name: str) -> None:
        """The message says which are taken, and how to give another."""
        with pytest.raises(ValueError, match=r"can't be the name of a tool.*penstock\.tool"):
            tool(nothing, name=name)

    def test_a_lambda_needs_a_name(self) -> None:
        """Its own is none that the API takes."""
        with pytest.raises(ValueError, match="<lambda>"):
            tool(lambda: None)
        assert tool(lambda: None, name="nothing").name == "nothing"

    @pytest.mark.parametrize("timeout_s", [0, -1, float("nan")])
    def test_a_timeout_is_above_zero(self, timeout_s: float) -> None:
        """No call could be made within less."""
        with pytest.raises(ValueError, match="timeout_s of tool 'nothing' must be above 0"):
            tool(nothing, timeout_s=timeout_s)
