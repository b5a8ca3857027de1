from __future__ import annotations

import math

import anthropic
import pytest
from pydantic import Field, ValidationError

from penstock._core.options import Options, given, given_or, is_given, options_from


class Speed(Options):
    """Options as a guard has them."""

    limit: float = Field(default=1.0, gt=0)


def test_fields_make_options() -> None:
    """Without options, the fields given by name make them, and the rest has its defaults."""
    assert options_from(Speed, None, {"limit": 2}) == Speed(limit=2.0)
    assert options_from(Speed, None, {}) == Speed()


def test_options_stay_as_they_are() -> None:
    """Options given whole are used, not copied."""
    options = Speed(limit=3)
    assert options_from(Speed, options, {}) is options


def test_options_and_fields_together_are_refused() -> None:
    """Giving both leaves open which should win, so it is an error that names the options."""
    with pytest.raises(TypeError, match="either Speed or its fields"):
        options_from(Speed, Speed(), {"limit": 2})


@pytest.mark.parametrize("value", [0, -1, math.nan, math.inf, "fast", None])
def test_a_bad_value_names_its_field(value: object) -> None:
    """What is out of range, not a number, or infinite is refused when made, by name."""
    with pytest.raises(ValidationError, match="limit"):
        options_from(Speed, None, {"limit": value})


def test_an_unknown_field_is_refused() -> None:
    """Nothing is accepted and ignored."""
    with pytest.raises(ValueError, match="limti"):
        options_from(Speed, None, {"limti": 2})


def test_options_are_frozen() -> None:
    """Nobody changes options under a guard's feet."""
    with pytest.raises(ValidationError, match="frozen"):
        Speed().limit = 4  # type: ignore[misc]


@pytest.mark.parametrize("nothing", [anthropic.omit, anthropic.NOT_GIVEN, anthropic.not_given])
def test_what_the_sdk_calls_omitted_is_not_there(nothing: object) -> None:
    """All of its signs; `None` is a value."""
    assert not is_given(nothing)
    assert is_given(None)
    assert given({"a": nothing, "b": None}) == {"b": None}
    assert (given_or(nothing, 1), given_or(2, 1)) == (1, 2)
