from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.simulator.sample import sample


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"type": "string"}, "text"),
        ({"type": "string", "minLength": 6}, "text.."),
        ({"type": "string", "maxLength": 2}, "te"),
        ({"type": "string", "format": "date"}, "2026-11-20"),
        ({"type": "integer"}, 0),
        ({"type": "integer", "minimum": 4}, 4),
        ({"type": "integer", "maximum": -4}, -4),
        ({"type": "number", "exclusiveMinimum": 1}, 2),
        ({"type": "boolean"}, True),
        ({"type": "null"}, None),
        ({"type": ["string", "null"]}, "text"),
        ({"type": "array", "items": {"type": "integer"}}, [0]),
        ({"type": "array", "items": {"type": "integer"}, "minItems": 2}, [0, 0]),
        ({"enum": ["a", "b"]}, "a"),
        ({"const": 5}, 5),
        ({"type": "string", "default": "d"}, "d"),
        ({"anyOf": [{"type": "integer"}, {"type": "null"}]}, 0),
        ({"properties": {"a": {"type": "string"}}}, {"a": "text"}),
        ({"type": "object"}, {}),
        ({"type": "object", "properties": {"a": True}}, {"a": None}),
    ],
)
def test_a_sample_fits_its_schema(schema: dict[str, Any], value: object) -> None:
    """Each keyword that it knows is followed."""
    assert sample(schema) == value


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["type", "items", "properties", "enum", "anyOf", "minItems", "minLength", "maxLength", "minimum"]
            ),
            inner | st.sampled_from(["array", "string", "integer"]) | st.just({"$ref": "#"}),
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(st.dictionaries(st.sampled_from(["type", "items", "properties", "anyOf", "$ref", "minItems", "format"]), JSON))
def test_no_schema_breaks_it(schema: dict[str, Any]) -> None:
    """Malformed and endless schemas give some small JSON value."""
    assert len(json.dumps(sample(schema))) < 100_000


def test_a_schema_that_branches_into_itself_stays_small() -> None:
    """The number of values is bounded, not only the depth."""
    schema: dict[str, Any] = {"type": "object", "properties": {str(each): {"$ref": "#"} for each in range(10)}}
    assert len(json.dumps(sample(schema))) < 100_000


def test_a_tree_ends_in_empty_lists() -> None:
    """A schema of nodes with children gives a valid, finite tree."""
    node = {"type": "object", "properties": {"children": {"type": "array", "items": {"$ref": "#/$defs/node"}}}}
    found = sample({"$ref": "#/$defs/node", "$defs": {"node": node}})
    while found["children"]:
        found = found["children"][0]
    assert found == {"children": []}


def test_references_are_followed_but_not_for_ever() -> None:
    """`$ref` finds its definition; one that leads to itself ends in null."""
    assert sample({"$ref": "#/$defs/n", "$defs": {"n": {"type": "integer"}}}) == 0
    assert sample({"$ref": "#/$defs/none"}) is None
    assert sample({"$ref": "#/$defs/n", "$defs": {"n": {"$ref": "#/$defs/n"}}}) is None
