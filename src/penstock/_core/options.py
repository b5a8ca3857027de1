"""The base of every part's options: frozen, checked once when made, nothing accepted and ignored.

The rule here: an option carries its default and range where it is defined; a bad value names the field, what is
allowed, and the value.
"""

from __future__ import annotations

from typing import TypeVar

from pydantic import BaseModel, ConfigDict

__all__ = ["Options", "options_from"]


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
