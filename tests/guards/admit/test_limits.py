from __future__ import annotations

import datetime as dt
import email.utils
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from penstock._core.clock import wall_now
from penstock.guards.admit.limits import Cost, LimitHeaders, Limits, QuotaScope, limits_for

NAMES = ("requests_per_minute", "input_tokens_per_minute", "output_tokens_per_minute")
DATE = b"Fri, 20 Nov 2026 10:00:00 GMT"


def headers(**values: str) -> LimitHeaders:
    """Headers of an answer, as the transport gives them."""
    return LimitHeaders.read(
        [(f"anthropic-{name.replace('_', '-')}".encode(), v.encode()) for name, v in values.items()]
    )


# Limits.


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("bad", [0, -1, math.nan, math.inf, "many"])
def test_a_limit_is_a_number_above_zero(name: str, bad: Any) -> None:
    """A bad one is refused when made, by name."""
    with pytest.raises(ValidationError, match=name):
        Limits(**{name: bad})


def test_limits_left_out_are_unknown() -> None:
    """They are learned, not taken for zero or infinity."""
    limits = Limits(requests_per_minute=50)
    assert (limits.requests_per_minute, limits.input_tokens_per_minute) == (50.0, None)


def test_the_first_pattern_that_matches_holds() -> None:
    """Patterns are tried in order; a model that none matches has limits to be learned."""
    haiku, rest = Limits(requests_per_minute=9), Limits(requests_per_minute=5)
    by_model = {"claude-haiku-*": haiku, "claude-*": rest}
    assert limits_for("claude-haiku-5-5", by_model) is haiku
    assert limits_for("claude-opus-5-5", by_model) is rest
    assert limits_for("other", by_model) == Limits()
    assert limits_for("CLAUDE-haiku-5-5", {"claude-haiku-*": haiku}) == Limits()


def test_limits_for_all_models_hold_for_each() -> None:
    """One object is for every model; none at all is for none."""
    limits = Limits(requests_per_minute=9)
    assert limits_for("claude-haiku-5-5", limits) is limits
    assert limits_for("claude-haiku-5-5", None) == Limits()


# Costs.


@pytest.mark.parametrize("name", Cost.NAMES)
@pytest.mark.parametrize("bad", [-1, -1e-9, math.nan, math.inf])
def test_a_cost_is_made_of_numbers_from_zero_up(name: str, bad: float) -> None:
    """What would spoil a bucket is refused when made."""
    with pytest.raises(ValueError, match=f"a cost's {name}"):
        Cost(**{name: bad})


def test_a_request_costs_one_request() -> None:
    """Unless told otherwise."""
    assert Cost() == Cost(1, 0, 0)


# Headers.


def test_headers_tell_limits_and_what_remains() -> None:
    """By bucket name; whichever bucket isn't mentioned isn't there."""
    told = headers(
        ratelimit_requests_limit="50", ratelimit_requests_remaining="49", ratelimit_input_tokens_remaining="30000"
    )
    assert told.limits == {"requests": 50.0}
    assert told.remaining == {"requests": 49.0, "input_tokens": 30_000.0}


def test_the_case_of_a_header_is_nothing() -> None:
    """Transports differ in it."""
    told = LimitHeaders.read([(b"Anthropic-RateLimit-Output-Tokens-Limit", b"8000"), (b"DATE", DATE)])
    assert told.limits == {"output_tokens": 8000.0}
    assert told.date == DATE


@pytest.mark.parametrize("value", ["", "many", "-1", "nan", "inf", "1e999", "0x10", "\u00e9"])
def test_a_number_that_cant_be_read_is_left_out(value: str) -> None:
    """A header must never break a call, and a missing number is better than a wrong one."""
    told = headers(ratelimit_requests_limit=value, ratelimit_requests_remaining=value)
    assert (told.limits, told.remaining) == ({}, {})


@given(st.lists(st.tuples(st.binary(max_size=60), st.binary(max_size=40))))
def test_no_header_raises(raw: list[tuple[bytes, bytes]]) -> None:
    """Whatever a server sends."""
    told = LimitHeaders.read([*raw, *((b"anthropic-ratelimit-requests-reset", value) for _, value in raw)])
    assert all(0 <= limit < math.inf for limit in told.limits.values())
    told.seconds_to_full("requests")


@pytest.mark.parametrize(
    ("organization", "workspace", "scope", "quota"),
    [
        ("org", "wrk", "workspace", "org/wrk"),
        ("org", None, "workspace", "org"),
        (None, "wrk", "workspace", "/wrk"),
        ("org", "wrk", "organization", "org"),
        (None, "wrk", "organization", None),
        ("org", "wrk", "key", None),
        (None, None, "workspace", None),
    ],
)
def test_the_ids_name_the_quota(
    organization: str | None, workspace: str | None, scope: QuotaScope, quota: str | None
) -> None:
    """As far as configured: workspaces apart, an organization as one, or each key on its own."""
    assert LimitHeaders(organization, workspace).quota_id(scope) == quota


def test_empty_ids_are_none() -> None:
    """A header without a value names nothing."""
    assert headers(organization_id="", workspace_id="").quota_id("workspace") is None
    assert headers(organization_id="org", workspace_id="wrk").quota_id("workspace") == "org/wrk"


@pytest.mark.parametrize(
    ("reset", "date", "seconds"),
    [
        (b"2026-11-20T10:00:30Z", DATE, 30.0),
        (b"2026-11-20T10:00:00Z", DATE, 0.0),
        (b"2026-11-20T09:59:59Z", DATE, -1.0),
        (b"2026-11-20T09:00:00Z", DATE, None),
        (b"2026-11-20T11:00:00Z", DATE, None),
        (b"2026-11-20T10:00:30", DATE, None),
        (b"soon", DATE, None),
        (b"\xff", DATE, None),
        (b"2026-11-20T10:00:30Z", b"today", None),
        (None, DATE, None),
    ],
)
def test_when_a_bucket_is_full_is_read_by_the_servers_clock(
    reset: bytes | None, date: bytes, seconds: float | None
) -> None:
    """What a minute can't explain, or can't be read, tells nothing."""
    told = LimitHeaders(resets={} if reset is None else {"requests": reset}, date=date)
    assert told.seconds_to_full("requests") == seconds


def test_without_the_servers_clock_the_local_one_has_to_do() -> None:
    """An answer without `date` is compared with the wall clock."""
    in_half_a_minute = wall_now() + dt.timedelta(seconds=30)
    told = LimitHeaders(resets={"requests": in_half_a_minute.isoformat().encode()})
    assert told.seconds_to_full("requests") == pytest.approx(30, abs=3)
    assert email.utils.parsedate_to_datetime(DATE.decode()).tzinfo is not None


def test_a_cost_of_finite_parts_is_one_however_large_their_sum() -> None:
    """Only the parts must be numbers; nobody adds them up."""
    assert Cost(1e308, 1e308, 1e308).output_tokens == 1e308
