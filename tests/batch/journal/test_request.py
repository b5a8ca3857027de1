from __future__ import annotations

import json
from typing import Any

import anthropic
import httpx2
import pytest
from anthropic.types import TextBlock
from hypothesis import given
from hypothesis import strategies as st

from penstock.batch.journal.request import RequestDigest, encode_params

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)
params = st.dictionaries(st.sampled_from("abcdef"), values, max_size=5)


def plain(value: dict[str, Any]) -> str:
    """What is compared: the JSON, with its keys in order."""
    return json.dumps(value, sort_keys=True)


@pytest.mark.lengthy
@given(common=params, own=params, other=params)
def test_equal_requests_have_equal_digests_and_others_have_others(
    common: dict[str, Any], own: dict[str, Any], other: dict[str, Any]
) -> None:
    """However the params are divided between an item and what it shares with others."""
    digest = RequestDigest(common)
    merged = {**common, **own}
    assert digest(own)[8:] == RequestDigest({})(merged)[8:]
    assert digest(own)[8:] == RequestDigest(merged)({})[8:]
    assert digest(own) == RequestDigest(dict(reversed(common.items())))(dict(reversed(own.items())))
    assert (digest(own)[8:] == digest(other)[8:]) == (plain(merged) == plain({**common, **other}))
    assert (digest(own)[:8] == digest(other)[:8]) == (plain(own) == plain(other))


def test_what_the_api_is_not_sent_counts_for_nothing() -> None:
    """Neither time limits nor headers, nor a param that is left out."""
    bare = RequestDigest({"model": "m"})({"messages": []})
    timed = RequestDigest({"model": "m", "timeout": httpx2.Timeout(5)})
    assert timed({"messages": [], "extra_headers": {"x": "y"}, "extra_query": {}, "system": anthropic.omit}) == bare
    assert RequestDigest({"model": "m", "system": "S"})({"messages": [], "system": anthropic.omit}) == bare
    assert RequestDigest({"model": "m"})({"messages": [], "extra_body": {"x": 1}}) != bare


def test_blocks_of_an_answer_count_as_their_json() -> None:
    """A history may hold the SDK's own objects."""
    block = TextBlock(type="text", text="Hi")
    digest = RequestDigest({})
    as_object = {"messages": [{"role": "assistant", "content": [block]}]}
    as_json = {"messages": [{"role": "assistant", "content": [{"type": "text", "text": "Hi"}]}]}
    assert digest(as_object) == digest(as_json)
    assert json.loads(encode_params(as_object)) == as_json


@pytest.mark.parametrize("value", [b"bytes", object(), {1, 2}, iter([])])
def test_what_json_cannot_hold_is_refused(value: object) -> None:
    """The error names the type, and not the value."""
    for digest in (RequestDigest({}), RequestDigest({"system": value})):
        with pytest.raises(TypeError, match=f"{type(value).__name__} is not"):
            digest({"messages": value})


def test_encoded_params_are_what_is_sent() -> None:
    """What only the SDK sees is left out."""
    given = {"model": "m", "timeout": 5, "system": anthropic.omit, "top_p": anthropic.not_given}
    assert encode_params(given) == '{"model":"m"}'


def test_it_tells_nothing_of_the_params() -> None:
    """Its text says how many there are."""
    assert repr(RequestDigest({"system": "secret"})) == "<RequestDigest, 1 params in common>"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_json_does_not_have_are_refused(value: float) -> None:
    """The API could not be sent them, and no other reader of the journal could read them."""
    with pytest.raises(ValueError, match="not JSON compliant"):
        RequestDigest({})({"metadata": {"number": value}})
    with pytest.raises(ValueError, match="not JSON compliant"):
        encode_params({"metadata": [value]})
