"""A small value that fits a JSON schema: the answer where an output format or a tool call is forced.

Keywords that it doesn't know are ignored; `pattern` is not followed.
"""

from __future__ import annotations

from typing import Any

from penstock.simulator.wire import Json, is_list, is_object

__all__ = ["sample"]

_DEPTH = 12
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
        >>> sample(
        ...     {
        ...         "type": "object",
        ...         "properties": {"city": {"type": "string"}, "days": {"type": "integer", "minimum": 1}},
        ...     }
        ... )
        {'city': 'text', 'days': 1}
    """
    return _sample(schema, schema, _DEPTH)


def _sample(schema: object, root: Json, depth: int) -> Any:
    if not is_object(schema) or depth < 0:
        return None
    if "$ref" in schema:
        return _sample(_resolve(str(schema["$ref"]), root), root, depth - 1)
    for fixed in ("const", "default"):
        if fixed in schema:
            return schema[fixed]
    if is_list(schema.get("enum")):
        return schema["enum"][0]
    for choice in ("anyOf", "oneOf", "allOf"):
        if is_list(schema.get(choice)):
            return _sample(schema[choice][0], root, depth - 1)
    return _typed(schema, root, depth)


def _typed(schema: Json, root: Json, depth: int) -> Any:
    kind = schema.get("type", "object")
    match kind[0] if is_list(kind) else kind:
        case "object":
            properties = schema.get("properties")
            named = properties if is_object(properties) else {}
            return {name: _sample(each, root, depth - 1) for name, each in named.items()}
        case "array":
            return [_sample(schema.get("items"), root, depth - 1) for _ in range(int(schema.get("minItems", 1)))]
        case "string":
            return _string(schema)
        case "integer" | "number":
            return _number(schema)
        case "boolean":
            return True
        case _:
            return None


def _string(schema: Json) -> str:
    text = _FORMATS.get(str(schema.get("format")), "text")
    return text.ljust(int(schema.get("minLength", 0)), ".")[: int(schema.get("maxLength", len(text) + 10_000))]


def _number(schema: Json) -> float:
    low: float = schema.get("minimum", 0)
    if "exclusiveMinimum" in schema:
        low = schema["exclusiveMinimum"] + 1
    high: float = schema.get("maximum", low)
    return min(low, high)


def _resolve(reference: str, root: Json) -> object:
    found: object = root
    for part in reference.removeprefix("#/").split("/"):
        found = found.get(part) if is_object(found) else None
    return found
