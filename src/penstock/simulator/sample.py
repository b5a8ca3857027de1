"""A small value that fits a JSON schema: the answer where an output format or a tool call is forced.

Keywords that it doesn't know, or that are malformed, are ignored; `pattern` is not followed.
"""

from __future__ import annotations

from typing import Any

from penstock.simulator.wire import Json, is_list, is_object

__all__ = ["sample"]

_DEPTH = 12
_SHALLOW = 8
_MOST_VALUES = 2000
_LONGEST = 10_000
_FORMATS = {
    "date": "2026-11-20",
    "date-time": "2026-11-20T12:00:00Z",
    "time": "12:00:00Z",
    "email": "someone@example.com",
    "uri": "https://example.com/",
    "uuid": "00000000-0000-4000-8000-000000000000",
}


def sample(schema: Json) -> Any:
    """A value valid under `schema`, the same each time.

    Example:
        >>> sample({"type": "object", "properties": {"city": {"type": "string"}, "days": {"const": 3}}})
        {'city': 'text', 'days': 3}
    """
    return _Sampler(schema).value(schema, _DEPTH)


class _Sampler:
    """One schema, and how many values may still be made: a schema may refer to itself."""

    __slots__ = ("_left", "_root")

    def __init__(self, root: Json) -> None:
        self._root = root
        self._left = _MOST_VALUES

    def value(self, schema: object, depth: int) -> Any:
        """A value for one part of the schema."""
        self._left -= 1
        if not is_object(schema) or depth < 0 or self._left < 0:
            return None
        if "$ref" in schema:
            return self.value(self._resolve(str(schema["$ref"])), depth - 1)
        for fixed in ("const", "default"):
            if fixed in schema:
                return schema[fixed]
        if is_list(schema.get("enum")) and schema["enum"]:
            return schema["enum"][0]
        for choice in ("anyOf", "oneOf", "allOf"):
            if is_list(schema.get(choice)) and schema[choice]:
                return self.value(schema[choice][0], depth - 1)
        return self._typed(schema, depth)

    def _typed(self, schema: Json, depth: int) -> Any:
        kind = schema.get("type", "object")
        match kind[0] if is_list(kind) and kind else kind:
            case "object":
                properties = schema.get("properties")
                named = properties if is_object(properties) else {}
                return {name: self.value(each, depth - 1) for name, each in named.items()}
            case "array":
                few = _number(schema, "minItems", 1 if depth > _SHALLOW else 0)
                return [self.value(schema.get("items"), depth - 1) for _ in range(min(int(few), self._left))]
            case "string":
                return _string(schema)
            case "integer" | "number":
                return _bounded(schema)
            case "boolean":
                return True
            case _:
                return None

    def _resolve(self, reference: str) -> object:
        found: object = self._root
        for part in reference.removeprefix("#").strip("/").split("/"):
            if part:
                found = found.get(part) if is_object(found) else None
        return found


def _number(schema: Json, name: str, default: float) -> float:
    value = schema.get(name)
    return value if isinstance(value, int | float) and not isinstance(value, bool) else default


def _string(schema: Json) -> str:
    text = _FORMATS.get(str(schema.get("format")), "text")
    shortest = int(min(_number(schema, "minLength", 0), _LONGEST))
    return text.ljust(shortest, ".")[: int(max(0, _number(schema, "maxLength", _LONGEST)))]


def _bounded(schema: Json) -> float:
    low = _number(schema, "exclusiveMinimum", _number(schema, "minimum", 0) - 1) + 1
    return min(low, _number(schema, "maximum", low))
