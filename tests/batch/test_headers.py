"""The headers that an item may bring."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from anthropic import omit
from hypothesis import given
from hypothesis import strategies as st

from penstock.batch.headers import check_headers

if TYPE_CHECKING:
    from collections.abc import Callable

CLIENT_S = (
    "authorization",
    "x-api-key",
    "api-key",
    "proxy-authorization",
    "cookie",
    "x-amz-security-token",
    "x-goog-api-key",
    "x-goog-user-project",
    "cf-aig-authorization",
    "host",
    ":authority",
    "x-forwarded-host",
    "content-length",
    "transfer-encoding",
    "connection",
    "te",
    "upgrade",
)
SPELLINGS: dict[str, Callable[[str], str | bytes]] = {
    "as it is": lambda name: name,
    "in capitals": str.upper,
    "as a title": str.title,
    "with blanks": lambda name: f" {name}\t",
    "with a line feed": lambda name: f"\r\n{name}",
    "with a colon": lambda name: f"{name}: ",
    "with underscores": lambda name: name.replace("-", "_"),
    "as bytes": str.encode,
}


@pytest.mark.lengthy
@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("name", CLIENT_S)
def test_what_is_the_client_s_is_refused(name: str, spelling: str) -> None:
    """However it is spelled, wherever it stands, and though it only takes away; its value is told to nobody."""
    said = f"item 7 sets the header {name}, which is for the client alone"
    spelled = SPELLINGS[spelling](name)
    for value in ("secret-1", omit):
        with pytest.raises(ValueError, match=said) as refused:
            check_headers(7, {"anthropic-beta": "a", spelled: value})
        assert "secret" not in str(refused.value)


@given(st.sampled_from(CLIENT_S), st.data())
def test_case_counts_for_nothing(name: str, data: st.DataObject) -> None:
    """Any mixture of it."""
    mixed = "".join(data.draw(st.sampled_from((each, each.upper()))) for each in name)
    with pytest.raises(ValueError, match=name):
        check_headers(0, {mixed: "x"})


@pytest.mark.parametrize(
    "headers", [None, {}, {"anthropic-beta": "a", "X-Trace-Id": "1", "hosted": "b", "idempotency-key": "c", "": "d"}]
)
def test_others_pass(headers: object) -> None:
    """What tells the API more, or a proxy who is traced, is an item's to say."""
    check_headers(0, headers)


@pytest.mark.parametrize("headers", ["host", ["host"], 1, {1: "x"}, {None: "x"}])
def test_what_is_no_mapping_of_names_is_told(headers: object) -> None:
    """By the item's place."""
    with pytest.raises(TypeError, match="item 2 has bad extra_headers"):
        check_headers(2, headers)
