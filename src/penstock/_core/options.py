"""The base of every part's options: frozen, checked once when made, nothing accepted and ignored.

The rule here: an option carries its default and range where it is defined; a bad value names the field, what is
allowed, and the value.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import anthropic
from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Options", "given", "given_or", "is_given", "options_from"]

T = TypeVar("T")


class Options(BaseModel):
    """Frozen options; unknown names are errors, and so are NaN and infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


OptionsT = TypeVar("OptionsT", bound=Options)


def options_from(kind: type[OptionsT], options: OptionsT | None, fields: dict[str, object]) -> OptionsT:
    """Return `options`, or new ones made of `fields`; both together are an error.

    Raises:
        TypeError: Both were given.
        pydantic.ValidationError: A field is unknown or out of range; it is also a `ValueError`.
    """
    if options is None:
        return kind.model_validate(fields)
    if fields:
        raise TypeError(f"give either {kind.__name__} or its fields, not both")
    return options


def is_given(value: object) -> bool:
    """Whether a value is there: the SDK's `omit` and `NOT_GIVEN` mean that it isn't.

    Example:
        >>> is_given(None), is_given(anthropic.omit), is_given(anthropic.NOT_GIVEN)
        (True, False, False)
    """
    return not isinstance(value, anthropic.Omit | anthropic.NotGiven)


def given(params: Mapping[str, T]) -> dict[str, T]:
    """Return those parameters that are there.

    Example:
        >>> given({"system": anthropic.omit, "model": "claude-haiku-5-5"})
        {'model': 'claude-haiku-5-5'}
    """
    return {name: value for name, value in params.items() if is_given(value)}


def given_or(value: T, otherwise: T) -> T:
    """Return a value, or another where it isn't there."""
    return value if is_given(value) else otherwise
