from __future__ import annotations

import anthropic
import pytest
from anthropic._models import FinalRequestOptions

from penstock._core.kind import RequestKind, kind_of, model_of


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
