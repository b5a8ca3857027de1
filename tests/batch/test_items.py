from __future__ import annotations

from typing import Any

import pytest

from penstock.batch.items import name_of, read_item


def test_a_prompt_is_a_request_named_by_its_place() -> None:
    """One turn of the user."""
    item = read_item(7, "Hello")
    assert (item.index, item.custom_id, item.labels, item.request) == (7, "7", {}, None)
    assert item.params == {"messages": [{"role": "user", "content": "Hello"}]}


def test_a_request_keeps_its_name_params_and_labels() -> None:
    """As Message Batches takes it, with labels besides."""
    params: dict[str, Any] = {"messages": []}
    item = read_item(7, {"custom_id": "a", "params": params, "labels": {"user": "u1"}})
    assert (item.custom_id, item.labels) == ("a", {"user": "u1"})
    assert item.params == params
    params["messages"].append("another")
    assert item.params == {"messages": []}


@pytest.mark.parametrize("labels", ["user", ["user"], {"user": 7}, {7: "user"}, 7])
def test_bad_labels_are_refused(labels: object) -> None:
    """Texts to texts, and nothing else."""
    with pytest.raises(TypeError, match="item 3 has bad labels"):
        read_item(3, {"custom_id": "a", "params": {}, "labels": labels})


@pytest.mark.parametrize(
    ("request_", "name"),
    [("x", "3"), ({"custom_id": "a"}, "a"), ({"custom_id": ""}, "3"), ({"custom_id": 7}, "3"), (None, "3")],
)
def test_what_is_wrong_has_a_name_as_well(request_: object, name: str) -> None:
    """The custom_id if there is one, else the place."""
    assert name_of(3, request_) == name


def test_a_bad_priority_is_found_as_the_item_is_read() -> None:
    """Not when it has waited for its turn."""
    item = {"custom_id": "a", "params": {"messages": []}, "labels": {"priority": "urgent"}}
    with pytest.raises(ValueError, match="item 7 has the priority 'urgent': it must be one of interactive, default"):
        read_item(7, item)


def test_an_item_s_headers_are_checked() -> None:
    """Data doesn't say who asks."""
    item = {"custom_id": "a", "params": {"messages": [], "extra_headers": {"X-Api-Key": "another"}}}
    with pytest.raises(ValueError, match="item 7 sets the header x-api-key"):
        read_item(7, item)
