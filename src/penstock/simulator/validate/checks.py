"""Single checks that all validation is made of, worded as the API words them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from penstock.simulator.wire import Json, invalid, is_list, is_object

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

__all__ = ["boolean", "choice", "integer", "known", "listed", "mapping", "required", "string"]


def required(body: Json, name: str, at: str) -> Any:
    """`body[name]`, which must be there."""
    if name not in body:
        raise invalid(f"{at}: Field required")
    return body[name]


def known(body: Json, names: Collection[str], at: str = "") -> None:
    """No fields but `names`."""
    for name in body:
        if name not in names:
            raise invalid(f"{at}{name}: Extra inputs are not permitted")


def string(value: object, at: str) -> str:
    """A string."""
    if not isinstance(value, str):
        raise invalid(f"{at}: Input should be a valid string")
    return value


def integer(value: object, at: str, *, at_least: int) -> int:
    """An integer, not a boolean."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise invalid(f"{at}: Input should be a valid integer")
    if value < at_least:
        raise invalid(f"{at}: Input should be greater than or equal to {at_least}")
    return value


def boolean(value: object, at: str) -> bool:
    """A boolean."""
    if not isinstance(value, bool):
        raise invalid(f"{at}: Input should be a valid boolean")
    return value


def listed(value: object, at: str) -> list[Any]:
    """A list."""
    if not is_list(value):
        raise invalid(f"{at}: Input should be a valid list")
    return value


def mapping(value: object, at: str) -> Json:
    """An object."""
    if not is_object(value):
        raise invalid(f"{at}: Input should be a valid dictionary")
    return value


def choice(value: object, allowed: Iterable[str], at: str) -> str:
    """One of the strings `allowed`."""
    names = list(allowed)
    if not isinstance(value, str) or value not in names:
        quoted = [f"'{name}'" for name in names]
        raise invalid(f"{at}: Input should be {' or '.join(filter(None, (', '.join(quoted[:-1]), quoted[-1])))}")
    return value
