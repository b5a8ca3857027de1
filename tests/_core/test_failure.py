from __future__ import annotations

import asyncio
import datetime as dt
import email.utils
import math
from typing import Any

import aiohttp
import anthropic
import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock._core.clock import wall_now
from penstock._core.failure import (
    ABANDONED,
    CLOSED,
    INCOMPLETE,
    Failure,
    FailureKind,
    failure_of_error_event,
    failure_of_exception,
    failure_of_response,
    retry_after_s,
)
from penstock.errors import InvalidStream, QueueFull, ResponseTooLarge

REQUEST = httpx2.Request("POST", "https://api.example/v1/messages")
SPEND_CAP = {"type": "rate_limit_error", "message": "…", "details": {"error_code": "enforced_spend_limit_reached"}}


def answer(status: int, error: Any = None, **headers: str) -> httpx2.Response:
    """An error response of the API."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx2.Response(status, json={"type": "error", "error": error}, headers=named, request=REQUEST)


def http_date(moment: dt.datetime) -> str:
    """As headers write a moment."""
    return email.utils.format_datetime(moment, usegmt=True)


# What a response means.


@pytest.mark.parametrize(
    ("status", "kind", "retryable", "of_service", "may_be_billed"),
    [
        (400, FailureKind.REQUEST, False, False, False),
        (401, FailureKind.AUTHENTICATION, False, False, False),
        (402, FailureKind.REQUEST, False, False, False),
        (403, FailureKind.REQUEST, False, False, False),
        (404, FailureKind.REQUEST, False, False, False),
        (408, FailureKind.REQUEST, True, False, False),
        (409, FailureKind.REQUEST, True, False, False),
        (413, FailureKind.REQUEST, False, False, False),
        (429, FailureKind.RATE_LIMITED, True, False, False),
        (500, FailureKind.SERVER, True, True, True),
        (502, FailureKind.SERVER, True, True, True),
        (504, FailureKind.SERVER, True, True, True),
        (529, FailureKind.OVERLOADED, True, True, False),
    ],
)
def test_a_status_means(status: int, kind: FailureKind, retryable: bool, of_service: bool, may_be_billed: bool) -> None:
    """The status alone says what failed, whether to retry, what the breaker counts, and what may cost money."""
    failure = failure_of_response(answer(status))
    assert (failure.kind, failure.status) == (kind, status)
    assert (failure.retryable, failure.of_service, failure.may_be_billed) == (retryable, of_service, may_be_billed)


@pytest.mark.parametrize("code", ["enforced_spend_limit_reached", "contract_spend_limit_reached"])
def test_a_spend_cap_is_final(code: str) -> None:
    """A 429 for a spend limit is never retried, whatever a header says."""
    error = {"type": "rate_limit_error", "details": {"error_code": code}}
    failure = failure_of_response(answer(429, error, x_should_retry="true"))
    assert (failure.kind, failure.error_code, failure.retryable) == (FailureKind.SPEND_CAP, code, False)


def test_another_error_code_is_no_spend_cap() -> None:
    """A ramp limit is an ordinary rate limit."""
    error = {"type": "rate_limit_error", "details": {"error_code": "ramp_limit_exceeded"}}
    assert failure_of_response(answer(429, error)).kind is FailureKind.RATE_LIMITED


@pytest.mark.parametrize(
    ("word", "status", "retryable"), [("true", 400, True), ("false", 529, False), ("yes", 529, True)]
)
def test_the_servers_word_wins(word: str, status: int, retryable: bool) -> None:
    """`x-should-retry` overrules the status; anything but true and false is no word."""
    assert failure_of_response(answer(status, x_should_retry=word)).retryable is retryable


@pytest.mark.parametrize(
    "content", [b"<html>502</html>", b"", b"[]", b'"error"', b'{"error": 5}', b'{"error": {"type": 5, "details": []}}']
)
def test_a_body_of_any_shape_is_classified_by_status(content: bytes) -> None:
    """A proxy's page or a strange JSON gives neither type nor code, and no error of ours."""
    failure = failure_of_response(httpx2.Response(502, content=content, request=REQUEST))
    assert (failure.kind, failure.error_type, failure.error_code) == (FailureKind.SERVER, None, None)


async def test_a_body_that_was_never_read_is_classified_by_status() -> None:
    """Nothing is read here; the status says enough."""

    async def chunks() -> Any:
        yield b"{}"

    response = httpx2.Response(503, content=chunks(), request=REQUEST)
    assert failure_of_response(response).kind is FailureKind.SERVER


# How long to wait.


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after-ms": "250", "retry-after": "7"}, 0.25),
        ({"retry-after-ms": "soon", "retry-after": "7"}, 7.0),
        ({"retry-after-ms": "-1"}, None),
        ({"retry-after": "0"}, None),
        ({"retry-after": "-3"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "1e999"}, None),
        ({"retry-after": ""}, None),
        ({"retry-after": "tomorrow"}, None),
        ({"retry-after": "Fri, 20 Nov 2026 10:00:30 GMT", "date": "Fri, 20 Nov 2026 10:00:00 GMT"}, 30.0),
        ({"retry-after": "Fri, 20 Nov 2026 10:00:00 GMT", "date": "Fri, 20 Nov 2026 10:00:30 GMT"}, None),
        ({"retry-after": "Fri, 20 Nov 2026 10:00:30 -0000", "date": "Fri, 20 Nov 2026 10:00:00 GMT"}, None),
        ({"retry-after": "Fri, 20 Nov 2026 10:00:30 GMT", "date": "nonsense"}, None),
    ],
)
def test_the_wait_that_a_response_asks_for(headers: dict[str, str], seconds: float | None) -> None:
    """Milliseconds win over seconds and dates; what is past, zero or unreadable asks for nothing."""
    assert retry_after_s(headers) == seconds


def test_a_date_without_the_servers_own_is_compared_with_the_clock() -> None:
    """Where a response has no `date`, the local wall clock has to do."""
    in_a_minute = wall_now() + dt.timedelta(seconds=60)
    assert retry_after_s({"retry-after": http_date(in_a_minute)}) == pytest.approx(60, abs=5)


@given(st.dictionaries(st.sampled_from(["retry-after", "retry-after-ms", "date"]), st.text(max_size=40)))
def test_no_header_breaks_a_call(headers: dict[str, str]) -> None:
    """Whatever a server sends, the answer is a positive finite number or none."""
    seconds = retry_after_s(headers)
    assert seconds is None or 0 < seconds < math.inf


# What an event inside a stream means.


@pytest.mark.parametrize(
    ("error_type", "kind", "status"),
    [
        ("overloaded_error", FailureKind.OVERLOADED, 529),
        ("api_error", FailureKind.SERVER, 500),
        ("rate_limit_error", FailureKind.RATE_LIMITED, 429),
        ("authentication_error", FailureKind.AUTHENTICATION, 401),
        ("invalid_request_error", FailureKind.REQUEST, 400),
        ("timeout_error", FailureKind.SERVER, 504),
        ("some_new_error", FailureKind.SERVER, 500),
    ],
)
def test_an_error_inside_a_stream_counts_as_what_it_is(error_type: str, kind: FailureKind, status: int) -> None:
    """The HTTP status was 200, so the event's type stands for it; an unknown one is the server's fault."""
    failure = failure_of_error_event({"type": "error", "error": {"type": error_type, "message": "…"}})
    assert (failure.kind, failure.status, failure.error_type) == (kind, status, error_type)


def test_a_spend_cap_inside_a_stream_is_final() -> None:
    """The error code is read there too."""
    assert failure_of_error_event({"error": SPEND_CAP}).kind is FailureKind.SPEND_CAP


@pytest.mark.parametrize("data", [None, [], {}, {"error": "overloaded"}])
def test_an_error_event_of_any_shape_is_the_servers_fault(data: object) -> None:
    """An event that can't be understood is retried like any server error."""
    assert failure_of_error_event(data).kind is FailureKind.SERVER


# What an exception means.


def caused(error: Exception, cause: BaseException) -> Exception:
    """The error, raised from a cause."""
    error.__cause__ = cause
    return error


def connector_error() -> aiohttp.ClientConnectorError:
    """What aiohttp raises where no connection can be made."""
    return aiohttp.ClientConnectorError(None, OSError(111, "refused"))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("error", "kind", "sent"),
    [
        (httpx2.ReadTimeout("t"), FailureKind.TIMEOUT, True),
        (httpx2.ConnectTimeout("t"), FailureKind.TIMEOUT, False),
        (httpx2.PoolTimeout("t"), FailureKind.TIMEOUT, False),
        (httpx2.ReadError("r"), FailureKind.CONNECTION, True),
        (httpx2.ConnectError("c"), FailureKind.CONNECTION, False),
        (httpx2.RemoteProtocolError("p"), FailureKind.CONNECTION, True),
        (httpx2.DecodingError("d"), FailureKind.INVALID, True),
        (InvalidStream("no UTF-8", position=0), FailureKind.INVALID, True),
        (ResponseTooLarge(7), FailureKind.INVALID, True),
        (anthropic.APITimeoutError(request=REQUEST), FailureKind.TIMEOUT, True),
        (anthropic.APIConnectionError(request=REQUEST), FailureKind.CONNECTION, True),
        (caused(anthropic.APITimeoutError(request=REQUEST), httpx2.ConnectTimeout("t")), FailureKind.TIMEOUT, False),
        (
            caused(anthropic.APIConnectionError(request=REQUEST), httpx2.ConnectError("c")),
            FailureKind.CONNECTION,
            False,
        ),
        (caused(anthropic.APIConnectionError(request=REQUEST), httpx2.ReadError("r")), FailureKind.CONNECTION, True),
        (QueueFull("full"), FailureKind.REFUSED, False),
        (ValueError("mine"), FailureKind.OTHER, True),
        (asyncio.CancelledError(), FailureKind.CANCELLED, True),
        (KeyboardInterrupt(), FailureKind.CANCELLED, True),
        (GeneratorExit(), FailureKind.ABANDONED, True),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_exception_means(error: BaseException, kind: FailureKind, sent: bool) -> None:
    """Its class says what failed, and whether the request may have left this machine."""
    failure = failure_of_exception(error)
    assert (failure.kind, failure.sent, failure.error_type) == (kind, sent, type(error).__name__)


@pytest.mark.parametrize(
    ("cause", "sent"), [(aiohttp.ServerDisconnectedError(), True), (connector_error(), False), (OSError(), False)]
)
def test_only_the_error_below_tells_a_dropped_connection_from_none(cause: Exception, sent: bool) -> None:
    """The aiohttp transport calls both `ConnectError`; a dropped one may have been billed."""
    error = caused(anthropic.APIConnectionError(request=REQUEST), caused(httpx2.ConnectError("c"), cause))
    failure = failure_of_exception(error)
    assert failure.sent is sent
    assert failure.may_be_billed is sent


def test_a_status_error_means_what_its_response_means() -> None:
    """An error of the SDK that a user's middleware raised is classified by its response."""
    error = anthropic.RateLimitError("slow down", response=answer(429, SPEND_CAP), body=None)
    assert failure_of_exception(error).kind is FailureKind.SPEND_CAP


def test_an_error_that_asks_to_be_retried_is() -> None:
    """The SDK's `RetryableError` is the word of a user's own middleware."""
    failure = failure_of_exception(anthropic.RetryableError("again"))
    assert failure.kind is FailureKind.OTHER
    assert failure.retryable


def test_an_answer_that_is_too_large_is_not_asked_for_again() -> None:
    """The next would be as large; this one was sent, and may have been billed. A broken stream may come whole."""
    failure = failure_of_exception(ResponseTooLarge(7))
    assert not failure.retryable
    assert failure.may_be_billed
    assert failure_of_exception(InvalidStream("no UTF-8", position=0)).retryable


def test_failures_that_are_nobodys_exception() -> None:
    """Leaving early is the caller's doing; a body that breaks off is a connection's."""
    assert not ABANDONED.retryable
    assert ABANDONED.may_be_billed
    assert INCOMPLETE.retryable
    assert INCOMPLETE.of_service
    assert not CLOSED.retryable
    assert CLOSED.may_be_billed


def test_what_was_never_sent_is_never_billed() -> None:
    """A connection that could not be made costs nothing, one that broke may."""
    assert not Failure(kind=FailureKind.CONNECTION, sent=False).may_be_billed
    assert Failure(kind=FailureKind.CONNECTION).may_be_billed


def test_every_kind_is_classified() -> None:
    """No kind is both a refusal and the service's fault, and no refusal is billed."""
    for kind in FailureKind:
        failure = Failure(kind=kind)
        assert not (failure.of_service and kind is FailureKind.REFUSED)
        assert failure.may_be_billed or not failure.of_service or kind is FailureKind.OVERLOADED
