from __future__ import annotations

import anthropic
import pytest
from anthropic._models import FinalRequestOptions
from hypothesis import given
from hypothesis import strategies as st

from penstock._core.kind import RequestKind, kind_of, model_class, model_of


@pytest.mark.parametrize(
    ("method", "url", "kind"),
    [
        ("post", "/v1/messages", RequestKind.MESSAGES),
        ("POST", "/v1/messages/", RequestKind.MESSAGES),
        ("post", "/v1/messages?beta=true", RequestKind.MESSAGES),
        ("post", "https://gateway.example/anthropic/v1/messages?a=/v1/models", RequestKind.MESSAGES),
        ("post", "/v1/messages/count_tokens", RequestKind.COUNT_TOKENS),
        ("get", "/v1/messages", RequestKind.OTHER),
        ("get", "/v1/models", RequestKind.OTHER),
        ("post", "/v1/messages/batches", RequestKind.OTHER),
        ("post", "/v1/messages/batches/b1/cancel", RequestKind.OTHER),
        ("post", "/v1/files", RequestKind.OTHER),
        ("post", "", RequestKind.OTHER),
    ],
)
def test_method_and_path_decide_the_kind(method: str, url: str, kind: RequestKind) -> None:
    """Only a POST to the two paths passes the line; host, query and a final slash change nothing."""
    assert kind_of(method, url) is kind


@pytest.mark.parametrize(
    ("body", "model"),
    [
        ({"model": "claude-haiku-5-5"}, "claude-haiku-5-5"),
        ({"model": 5}, ""),
        ({}, ""),
        (None, ""),
        (["claude-haiku-5-5"], ""),
    ],
)
def test_the_model_is_what_the_body_names(body: object, model: str) -> None:
    """A body without a model, or of another shape, names none and breaks nothing."""
    options = FinalRequestOptions.construct(method="post", url="/v1/messages", json_data=body)
    assert model_of(anthropic.APIRequest(options=options, cast_to=object)) == model


@pytest.mark.parametrize(
    "pool",
    [
        {
            "claude-opus-4-5",
            "claude-opus-4-6-20260101",
            "us.anthropic.claude-opus-4-7-v1:0",
            "claude-opus-4-8@20260801",
        },
        {"claude-sonnet-4-5", "claude-sonnet-4-6"},
        {"claude-fable-5", "claude-fable-5-2", "claude-fable-5-1-20260901"},
        {"claude-mythos-1", "claude-mythos-1-5"},
    ],
)
def test_models_of_one_pool_share_a_class(pool: set[str]) -> None:
    """Models whose limits the API counts together have one class, however a cloud spells their names."""
    assert len({model_class(model) for model in pool}) == 1


def test_models_of_different_pools_differ() -> None:
    """No model of one pool has the class of another."""
    models = [
        "opus-5-5",
        "opus-5",
        "opus-4-6",
        "sonnet-5-5",
        "sonnet-5",
        "sonnet-4-6",
        "haiku-5-5",
        "haiku-4-5",
        "fable-5",
    ]
    assert len({model_class(f"claude-{model}") for model in models}) == len(models)


def test_a_date_is_no_version() -> None:
    """A snapshot date after a major version is not read as a minor one."""
    assert model_class("claude-opus-5-20260301") == model_class("claude-opus-5")
    assert model_class("claude-opus-5-5-20260301") == model_class("claude-opus-5-5")


@given(st.text())
def test_any_text_has_a_class(model: str) -> None:
    """An unknown name is a class of its own, and none raises."""
    if "claude-" not in model:
        assert model_class(model) == model
