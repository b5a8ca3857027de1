from __future__ import annotations

import asyncio
import datetime as dt
import email.utils
import math
import re
import ssl
from pathlib import Path
from typing import Any, get_args

import aiohttp
import anthropic
import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock._core.clock import wall_now
from penstock._core.failure import (
    _CAUSES,
    _KINDS,
    _STATUS_OF_TYPE,
    ABANDONED,
    CLOSED,
    INCOMPLETE,
    Cause,
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
        (412, FailureKind.REQUEST, False, False, False),
        (422, FailureKind.REQUEST, False, False, False),
        (431, FailureKind.REQUEST, False, False, False),
        (499, FailureKind.REQUEST, False, False, False),
        (500, FailureKind.SERVER, True, True, True),
        (501, FailureKind.SERVER, False, True, True),
        (502, FailureKind.SERVER, True, True, True),
        (503, FailureKind.SERVER, True, True, True),
        (504, FailureKind.SERVER, True, True, True),
        (505, FailureKind.SERVER, False, True, True),
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


# What a cause means that the API names: status, code, whether to retry, what may cost money.
NAMED = [
    (400, "request_body_timeout", True, False),
    (400, "external_key_validation_timed_out", True, False),
    (400, "image_dimensions_too_large", False, False),
    (400, "workspace_human_review_disabled", False, False),
    (400, "thread_continue_in_flight", False, False),
    (400, "organization_on_hold", False, False),
    (400, "user_profile_required", False, False),
    (402, "linked_organization_spend_limit_reached", False, False),
    (402, "linked_organization_billing_unavailable", False, False),
    (403, "user_profile_billing_not_authorized", False, False),
    (403, "user_profile_not_billable", False, False),
    (409, "concurrent_membership_change", True, False),
    (409, "external_key_changed", True, False),
    (409, "scan_pending", True, False),
    (409, "gcp_project_controlled_by_another_organization", False, False),
    (409, "plugin_name_taken", False, False),
    (409, "skill_name_taken", False, False),
    (409, "skill_read_blocked_undecryptable", False, False),
    (409, "storage_already_registered", False, False),
    (409, "storage_in_use", False, False),
    (409, "slack_channel_set_up_settings_conflict", False, False),
    (409, "storage_attached_during_archive", False, False),
    (409, "storage_changed_concurrently", False, False),
    (409, "workspace_changed_concurrently", False, False),
    (429, "credits_required", False, False),
    (429, "ramp_limit_exceeded", True, False),
    (503, "authorization_check_unavailable", True, False),
    (503, "cmek_context_unavailable", True, False),
    (503, "cmek_key_unreachable", True, False),
    (503, "change_outcome_unknown", False, True),
    (503, "registration_pending", False, True),
    (503, "workspace_created_incomplete", False, True),
    (529, "compaction_unavailable", True, False),
]


@pytest.mark.parametrize(("status", "code", "retryable", "may_be_billed"), NAMED)
def test_a_cause_that_the_api_names_means(status: int, code: str, retryable: bool, may_be_billed: bool) -> None:
    """Where the status alone would be wrong, the cause decides; where it is right, the cause changes nothing."""
    error = {"type": "error", "message": "…", "details": {"error_code": code}}
    failure = failure_of_response(answer(status, error))
    assert (failure.retryable, failure.may_be_billed, failure.error_code) == (retryable, may_be_billed, code)


def test_every_entry_of_the_table_is_tried() -> None:
    """No cause is in the table without a claim here of what it means."""
    caps = {code for code, cause in _CAUSES.items() if cause is Cause.SPEND_CAP}
    assert _CAUSES.keys() - caps - {code for _, code, _, _ in NAMED} == {error_type for error_type, _ in MEMORY}
    assert caps == {"enforced_spend_limit_reached", "contract_spend_limit_reached"}


MEMORY = [("memory_path_conflict_error", 409), ("memory_precondition_failed_error", 409)]


@pytest.mark.parametrize(("error_type", "status"), MEMORY)
def test_a_type_can_name_a_cause_too(error_type: str, status: int) -> None:
    """A conflict that is there until somebody looks is not sent again, though other conflicts are."""
    assert not failure_of_response(answer(status, {"type": error_type, "message": "…"})).retryable
    assert not failure_of_error_event({"error": {"type": error_type}}).retryable


@pytest.mark.parametrize(
    ("code", "word", "retryable"),
    [
        ("change_outcome_unknown", "true", False),
        ("workspace_created_incomplete", "true", False),
        ("request_body_timeout", "false", False),
        ("storage_in_use", "true", True),
    ],
)
def test_the_servers_word_does_not_make_a_blind_repeat_safe(code: str, word: str, retryable: bool) -> None:
    """`x-should-retry` wins over every cause but one: that what was asked for may be done already."""
    error = {"type": "api_error", "details": {"error_code": code}}
    assert failure_of_response(answer(409, error, x_should_retry=word)).retryable is retryable


def test_a_spend_cap_of_a_customer_says_nothing_of_ones_own_quota() -> None:
    """What a user profile's organization may spend doesn't stop requests that it doesn't pay for."""
    error = {"type": "billing_error", "details": {"error_code": "linked_organization_spend_limit_reached"}}
    failure = failure_of_response(answer(402, error))
    assert (failure.kind, failure.of_account, failure.mendable) == (FailureKind.REQUEST, False, True)


# Public reports of errors that clients of the API took for something else, each by its address.
REPORTED = {
    # An overload inside a stream has the status 200 and is not the SDK's OverloadedError.
    "anthropics/anthropic-sdk-python#1918": (None, "overloaded_error", "Overloaded", None, "overloaded", True),
    "Podden/openwebui_anthropic_api_manifold_pipe#19": (None, "overloaded_error", "…", None, "overloaded", True),
    # The same as `api_error`, with only its message telling of an overload, or with none.
    "UKGovernmentBEIS/inspect_ai#2272": (None, "api_error", "Overloaded", None, "server", True),
    "vybestack/llxprt-code#2063": (None, "api_error", "Internal server error", None, "server", True),
    # 529 and its body, taken for an error that is not retried.
    "SWE-agent/mini-swe-agent#184": (529, "overloaded_error", "Overloaded", None, "overloaded", True),
    # A monthly spend limit without any code, retried until the deadline.
    "can1357/oh-my-pi#5418": (
        429,
        "rate_limit_error",
        "This request would exceed your account's monthly spend limit. Please try again later.",
        None,
        "spend_cap",
        False,
    ),
    # Missing credits, retried as a rate limit.
    "code-yeongyu/senpi#484": (
        429,
        "rate_limit_error",
        "Usage credits are required for this model.",
        "credits_required",
        "rate_limited",
        False,
    ),
    # An empty account, and a prompt that is too long, are a plain 400.
    "theopenco/llmgateway#3297": (
        400,
        "invalid_request_error",
        "Your credit balance is too low to access the Anthropic API.",
        None,
        "request",
        False,
    ),
    "zed-industries/zed#63596": (
        400,
        "invalid_request_error",
        "prompt is too long: 200001 tokens > 200000 maximum",
        None,
        "request",
        False,
    ),
    # 413 with the type of a 400, or with a body that lacks `type: error`.
    "anthropics/claude-code#6358": (413, "invalid_request_error", "Request size exceeds …", None, "request", False),
    "anthropics/claude-code#14567": (413, "request_too_large", "Request exceeds the …", None, "request", False),
    # 400s that pass by themselves.
    "docs: fallback credit": (
        400,
        "invalid_request_error",
        "fallback_credit_token: redemption temporarily unavailable",
        None,
        "request",
        True,
    ),
}


@pytest.mark.parametrize("case", REPORTED.values(), ids=REPORTED.keys())
def test_what_other_clients_mistook_is_what_it_is(case: tuple[int | None, str, str, str | None, str, bool]) -> None:
    """Errors of public reports, in an answer or inside a stream, are of their kind and retried where that can help."""
    status, error_type, message, code, kind, retryable = case
    error: dict[str, Any] = {"type": error_type, "message": message, "details": code and {"error_code": code}}
    failure = failure_of_error_event({"error": error}) if status is None else failure_of_response(answer(status, error))
    assert (failure.kind.value, failure.retryable) == (kind, retryable)


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
        ({"retry-after": "1e9"}, 1e9),
        ({"retry-after-ms": "1e15"}, 1e12),
        ({"retry-after-ms": "inf", "retry-after": "nan"}, None),
        ({"retry-after": "Fri, 31 Dec 9999 23:59:59 GMT", "date": "Fri, 31 Dec 9999 23:59:29 GMT"}, 30.0),
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
        (httpx2.PoolTimeout("t"), FailureKind.EXHAUSTED, False),
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


def test_an_error_that_the_sdk_raised_inside_a_stream_means_what_its_event_means() -> None:
    """The SDK gives it the status of the stream, 200, and its class says nothing."""
    body = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}
    stream = httpx2.Response(200, content=b"", request=REQUEST)
    failure = failure_of_exception(anthropic.APIStatusError("Overloaded", response=stream, body=body))
    assert (failure.kind, failure.status, failure.retryable) == (FailureKind.OVERLOADED, 529, True)


UNTRUSTED = ssl.SSLCertVerificationError(1, "certificate verify failed")


@pytest.mark.parametrize(
    "error",
    [
        httpx2.UnsupportedProtocol("ftp"),
        caused(anthropic.APIConnectionError(request=REQUEST), httpx2.UnsupportedProtocol("ftp")),
        caused(anthropic.APIConnectionError(request=REQUEST), httpx2.LocalProtocolError("Illegal header value")),
        # aiohttp's word for the same.
        caused(anthropic.APIConnectionError(request=REQUEST), ValueError("Newline in a header")),
        caused(anthropic.APIConnectionError(request=REQUEST), TypeError("no bytes")),
        caused(anthropic.APIConnectionError(request=REQUEST), httpx2.TooManyRedirects("20")),
        # A certificate: as httpcore keeps it, an argument, and as aiohttp does, the cause of the cause.
        caused(httpx2.ConnectError("c"), OSError(UNTRUSTED)),
        caused(anthropic.APIConnectionError(request=REQUEST), caused(httpx2.ConnectError("c"), UNTRUSTED)),
        httpx2.InvalidURL("port"),
        anthropic.CredentialsError("no such file"),
        anthropic.IdentityTokenFileError("no token"),
        anthropic.WorkloadIdentityError("not exchanged"),
    ],
    ids=lambda error: f"{type(error).__name__} of {error.__cause__!r}",
)
def test_what_fails_on_this_machine_each_time_is_no_connection_error(error: Exception) -> None:
    """A header or address that is none, a certificate that isn't trusted: not retried, not the service's, not paid."""
    failure = failure_of_exception(error)
    assert (failure.kind, failure.sent) == (FailureKind.OTHER, False)
    assert (failure.retryable, failure.of_service, failure.may_be_billed) == (False, False, False)


def test_an_answer_of_the_wrong_shape_is_invalid() -> None:
    """What the SDK can't parse may be a proxy's page, and be right the next time."""
    failure = failure_of_exception(anthropic.APIResponseValidationError(answer(200), None))
    assert (failure.kind, failure.retryable, failure.may_be_billed) == (FailureKind.INVALID, True, True)


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


# What the installed SDK knows.

_SDK = Path(anthropic.__file__).parent


def _words(text: str) -> frozenset[str]:
    """The words of a text."""
    return frozenset(text.split())


# Codes for which the status that they come with is right.
BY_STATUS = _words(
    """
    already_member api_key_scope_missing approval_required available_tools_limit_exceeded
    bundle_attachment_not_supported bundle_on_call cannot_invite_emails_with_unverified_domains
    cannot_remove_last_member cannot_sign_out_managed_member cannot_sign_out_membership_admin cannot_sign_out_owner
    cannot_sign_out_primary_owner cannot_sign_out_privileged_member cannot_sign_out_self
    claude_code_key_creator_not_member claude_code_version_too_old claude_tag_writes_not_enabled
    cmek_feature_unsupported cmek_key_disabled cmek_key_network_blocked cmek_not_approved compaction_block_ambiguous
    compaction_block_misplaced compaction_content_mismatch compaction_incomplete_turn
    compaction_nothing_to_summarize compaction_signature_invalid compaction_too_many_tool_references
    compaction_tool_changes_mismatch compaction_unavailable compliance_configuration_restricted
    concurrent_membership_change email_domain_not_allowed environment_archived environment_create_disabled
    environment_not_found environment_update_disabled external_key_changed external_key_in_workspace_policy
    external_key_not_found external_key_provider_mismatch external_key_validation_failed external_storage_in_use
    external_storage_in_workspace_policy external_storage_not_available file_expired file_not_downloadable
    gcp_project_not_verified grant_required heartbeat_precondition_failed human_review_not_available
    human_review_on_with_external_storage image_dimensions_too_large invalid_config_type_change invalid_metadata
    invalid_storage_arn invite_already_exists key_profile_mismatch
    org_api_key_limit_exceeded org_member_limit_exceeded
    organization_level_scoped_api_key_required organization_not_eligible organization_not_enrolled_in_beta
    organization_type_not_supported parent_organization_required provider_not_allowed
    ramp_limit_exceeded rbac_group_grants_owner_access rbac_group_managed_settings_not_found rbac_group_not_found
    rbac_group_order_limit_exceeded rbac_group_owner_access_unconfirmed rbac_role_not_found region_not_supported
    request_body_encoding_invalid request_body_encoding_unsupported request_body_too_large_after_decoding
    sandbox_egress_restricted scan_failed scan_pending settings_document_limit_exceeded
    settings_history_limit_exceeded slack_channel_set_up_environment_not_found slack_channel_set_up_settings_refused
    spend_limits_admin_api_writes_not_enabled storage_attach_limit_reached storage_not_approved
    storage_not_attachable storage_profile_mismatch storage_profile_still_required storage_quota_exceeded
    storage_verification_failed thread_already_continued thread_continue_in_flight thread_fingerprint_mismatch
    thread_not_found thread_unsupported_request tool_name_conflict tool_reference_unresolved
    transcripts_storage_required unsupported_charset unsupported_region
    user_profile_not_found user_profile_required workspace_api_key_limit_exceeded
    workspace_human_review_disabled workspace_member_limit_exceeded workspace_policy_violation
    """
)
# Types that are no errors of an answer: results of server tools, and what befell runs and sessions of agents.
NO_ANSWERS = _words(
    """
    advisor_tool_result_error agent_archived_error bash_code_execution_tool_result_error
    code_execution_tool_result_error compaction_limit_reached_error credential_host_unreachable_error
    environment_archived_error environment_not_found_error file_not_found_error max_workflow_runs_error
    mcp_authentication_failed_error mcp_connection_failed_error mcp_egress_blocked_error memory_store_archived_error
    model_overloaded_error model_rate_limited_error model_request_failed_error organization_disabled_error
    program_error repository_authentication_error repository_checkout_error repository_clone_error
    repository_forbidden_error repository_not_found_error self_hosted_resources_unsupported_error
    session_creation_rejected_error session_rate_limited_error session_resource_not_found_error skill_not_found_error
    text_editor_code_execution_tool_result_error thread_limit_error tool_search_tool_result_error
    tool_use_limit_reached_error unknown_error vault_archived_error vault_not_found_error web_fetch_tool_result_error
    web_search_tool_result_error workspace_archived_error
    """
)
# Classes of errors that no answer brings. Of these, only the first is retried: it asks for it.
NO_STATUS = _words(
    """
    RetryableError
    AnthropicError APIError APIWebhookValidationError CredentialsError IdentityTokenFileError WorkloadIdentityError
    MissingDependencyError MutuallyExclusiveAuthError StreamAlreadyConsumed
    AsyncOnSyncToolsetError BrowserStateError NestedCallError SyncOnAsyncToolsetError ToolsetClosedError
    ToolsetConfigError ToolsetContractError ToolsetUsageError ToolsetsFixedError
    """
)


def _sources() -> str:
    """All Python sources of the SDK in one text."""
    return "\n".join(path.read_text(encoding="utf-8") for path in sorted(_SDK.rglob("*.py")))


SOURCES = _sources()


def _bases() -> dict[str, set[str]]:
    """The names of each class's bases."""
    found: dict[str, set[str]] = {}
    for name, bases in re.findall(r"^class (\w+)\(([^)]*)\):", SOURCES, re.MULTILINE):
        found.setdefault(name, set()).update(base.strip().rpartition(".")[2] for base in bases.split(","))
    return found


def _descendants(root: str) -> set[str]:
    """The class itself and all that derive from it."""
    bases, found = _bases(), {root}
    while more := {name for name, of in bases.items() if of & found} - found:
        found |= more
    return found


@pytest.mark.lengthy
def test_every_error_code_of_the_sdk_is_known() -> None:
    """Each code that the SDK names is in the table, or was looked at and falls under its status."""
    codes = set(re.findall(r"\berror_code: Literal\[\"(\w+)\"\]", SOURCES))
    codes |= set(re.findall(r"^    \(\d+, \"(\w+)\"\): \w+", SOURCES, re.MULTILINE))
    assert len(codes) > 30
    assert codes <= _CAUSES.keys() | BY_STATUS
    assert not BY_STATUS & _CAUSES.keys()


@pytest.mark.lengthy
def test_every_error_type_of_the_sdk_is_known() -> None:
    """Each `error.type` stands for a status, or is none that an answer or a stream brings."""
    types = set(re.findall(r"\btype: Literal\[\"(\w+_error)\"\]", SOURCES))
    assert {"api_error", "overloaded_error"} <= types
    answered = {*get_args(anthropic.types.ErrorType), *(types - NO_ANSWERS)}
    assert answered <= _STATUS_OF_TYPE.keys()


def test_every_error_class_of_the_sdk_is_known() -> None:
    """Each exception is one of a status, one of the kinds of transport errors, or was looked at and is neither."""
    names = _descendants("AnthropicError")
    of_status, of_kind = _descendants("APIStatusError"), {of.__name__ for of, _ in _KINDS}
    assert "RateLimitError" in of_status
    assert names - of_status - of_kind <= NO_STATUS


@pytest.mark.lengthy
def test_every_status_of_the_sdk_is_retried_or_not_for_a_reason() -> None:
    """Each status for which the SDK has a class is one of those above."""
    statuses = {int(status) for status in re.findall(r"\bstatus_code: Literal\[(\d+)\]", SOURCES)}
    tried = {400, 401, 402, 403, 404, 408, 409, 412, 413, 422, 429, 431, 499, 501, 503, 504, 529}
    assert statuses <= tried
    retried = {status for status in tried if failure_of_response(answer(status)).retryable}
    assert retried == {408, 409, 429, 503, 504, 529}


@pytest.mark.parametrize("name", sorted(NO_STATUS))
def test_an_error_of_the_sdk_without_a_status_is_final_unless_it_asks(name: str) -> None:
    """What no answer brought is the caller's own: it is not retried, and says nothing of the service."""
    error = getattr(anthropic, name, anthropic.AnthropicError).__new__(
        getattr(anthropic, name, anthropic.AnthropicError)
    )
    failure = failure_of_exception(error)
    assert (failure.kind, failure.retryable, failure.of_service) == (FailureKind.OTHER, name == "RetryableError", False)
