"""What can fail, row by row: how it looks on the wire, what the code makes of it, and the page that says so.

`python tests/helpers/_failure_table.py > docs/failures.md` writes the page anew; a test holds it equal.
"""

from __future__ import annotations

import errno
import json
import socket
import ssl
import sys
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import anthropic
import httpx2
from _scripted_server import CLOSE, HANG, answer, error

from penstock._core.failure import (
    INCOMPLETE,
    Failure,
    FailureKind,
    failure_of_error_event,
    failure_of_exception,
    failure_of_response,
)
from penstock.guards.retry.quota import RetryQuota

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["GROUPS", "ROWS", "Row", "page"]

_REQUEST = httpx2.Request("POST", "https://api.example/v1/messages")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One way to fail.

    Attributes:
        what: For people.
        failure: What the code makes of it.
        sent: What the server does with the first request; `None` if nothing gets there.
        client: Options of the client, given the server's address.
        ask: Of the request.
    """

    what: str
    failure: Failure
    sent: bytes | str | None = None
    client: Callable[[str], dict[str, Any]] = field(default=lambda url: {"base_url": url})
    ask: dict[str, Any] = field(default_factory=dict)

    @property
    def again(self) -> str:
        """Whether it is sent again."""
        failure = self.failure
        if failure.dropped:
            return "at once, once in a call"
        if failure.of_request_maybe:
            return "at once, with one other key"
        if failure.of_account:
            return "at once, with another key"
        return "after a back-off" if failure.retryable else "no"

    @property
    def paid(self) -> int:
        """What sending it again takes from the retry quota."""
        if self.again != "after a back-off" or self.failure.kind is FailureKind.EXHAUSTED:
            return 0
        quota = RetryQuota(500, cost=14, throttled_cost=5, probe_s=30.0)
        charge = quota.take(self.failure)
        return 0 if charge is None else charge.paid

    @property
    def breaker(self) -> str:
        """What the breaker makes of it."""
        if self.failure.of_service:
            return "against the service"
        return "an answer" if self.failure.status is not None else "nothing"

    @property
    def spent(self) -> str:
        """What it counts for limits and costs."""
        return "as estimated" if self.failure.may_be_billed else "nothing"

    @property
    def told(self) -> str:
        """Who is told, besides the caller."""
        failure = self.failure
        if failure.of_account and not failure.of_request_maybe:
            return "`KeyChanged`: the key rests" if failure.of_key else "`KeyChanged`: the quota rests"
        if failure.kind is FailureKind.RATE_LIMITED and failure.retry_after_s:
            return "`QuotaCooled`"
        unreached = failure.kind in {FailureKind.CONNECTION, FailureKind.TIMEOUT, FailureKind.EXHAUSTED}
        return "`NetworkChanged`" if unreached and not failure.sent else ""


def _answered(what: str, given: bytes) -> Row:
    head, _, content = given.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines)
    response = httpx2.Response(int(first.split()[1]), headers=headers, content=content, request=_REQUEST)
    return Row(what=what, failure=failure_of_response(response), sent=given)


def _status(status: int, error_type: str, why: str) -> Row:
    return _answered(f"{status} `{error_type}`: {why}", error(status, error_type))


def _code(status: int, code: str) -> Row:
    return _answered(f"{status} `{code}`", error(status, "invalid_request_error", code=code))


def _text(status: int, error_type: str, text: str) -> Row:
    return _answered(f"{status} “{text}”", error(status, error_type, text))


def _streamed(error_type: str) -> Row:
    event = {"type": "error", "error": {"type": error_type, "message": "…"}}
    frames = f"event: error\ndata: {json.dumps(event)}\n\n".encode()
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: %d\r\n\r\n" % len(frames)
    return Row(
        what=f"`{error_type}` inside a stream, before its content",
        failure=failure_of_error_event(event),
        sent=head + frames,
        ask={"stream": True},
    )


def _raised(what: str, below: Exception, cause: Exception | None = None, **how: Any) -> Row:
    """A failure of no answer, as the SDK raises it."""
    timed_out = isinstance(below, httpx2.TimeoutException)
    raised: Exception = (anthropic.APITimeoutError if timed_out else anthropic.APIConnectionError)(request=_REQUEST)
    raised.__cause__, below.__cause__ = below, cause
    return Row(what=what, failure=failure_of_exception(raised), **how)


def _dropped(row: Row) -> Row:
    return replace(row, failure=replace(row.failure, dropped=True))


def _nobody(_url: str) -> dict[str, Any]:
    """Where nobody listens: a port that was somebody's a moment ago."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return {"base_url": f"http://127.0.0.1:{taken.getsockname()[1]}"}


def _sdk(url: str, **options: Any) -> dict[str, Any]:
    http_client = httpx2.AsyncClient(**options)
    return {"sdk": anthropic.AsyncAnthropic(api_key="sk-ant-api03-one", base_url=url, http_client=http_client)}


_NO_ADDRESS = OSError(errno.EADDRNOTAVAIL, "Cannot assign requested address")
_CUT = b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 99\r\n\r\n{"
_TOO_MANY = "Extra usage is required for long context requests."

GROUPS: dict[str, tuple[str, tuple[Row, ...]]] = {
    "The request's": (
        "Nothing but another request helps, so it is sent once.",
        (
            _status(400, "invalid_request_error", "anything else"),
            _text(400, "invalid_request_error", "prompt is too long: 200001 tokens > 200000 maximum"),
            _status(404, "not_found_error", "no such model or object"),
            _status(405, "invalid_request_error", "not with this method"),
            _status(413, "request_too_large", "too large"),
            _status(422, "invalid_request_error", "of the wrong shape"),
            _status(431, "invalid_request_error", "headers too large"),
            _code(409, "storage_in_use"),
            _code(409, "storage_already_registered"),
            _code(409, "skill_name_taken"),
            _code(409, "skill_read_blocked_undecryptable"),
            _code(409, "plugin_name_taken"),
            _code(409, "gcp_project_controlled_by_another_organization"),
            _answered("409 `memory_path_conflict_error`", error(409, "memory_path_conflict_error")),
            _answered("409 `memory_precondition_failed_error`", error(409, "memory_precondition_failed_error")),
            _code(429, "credits_required"),
            _text(429, "rate_limit_error", _TOO_MANY),
            _code(402, "linked_organization_spend_limit_reached"),
            _code(402, "linked_organization_billing_unavailable"),
            _code(403, "user_profile_not_billable"),
            _code(403, "user_profile_billing_not_authorized"),
            _raised(
                "a header with a line break",
                httpx2.LocalProtocolError("Illegal header value"),
                ask={"extra_headers": {"x-user": "a\nb"}},
            ),
            _raised(
                "an address of a scheme that nobody speaks",
                httpx2.UnsupportedProtocol("ftp"),
                client=lambda url: _sdk(url.replace("http://", "ftp://")),
            ),
        ),
    ),
    "This machine's": (
        "What it lacks, it may have again in a moment, so such a call comes back; nobody else is blamed.",
        (
            _raised(
                "files, ports or memory have run out (`EMFILE`, `ENFILE`, `EADDRNOTAVAIL`, `ENOBUFS`, `ENOMEM`)",
                httpx2.ConnectError("no address"),
                _NO_ADDRESS,
                client=lambda url: _sdk(url, transport=httpx2.AsyncHTTPTransport(local_address="192.0.2.1")),
            ),
            _raised(
                "a pool of connections that is full",
                httpx2.PoolTimeout("full"),
                client=lambda url: _sdk(url, limits=httpx2.Limits(max_connections=0)),
                ask={"timeout": httpx2.Timeout(1, pool=0.001)},
            ),
            _raised("an event loop, or a transport, that is closed", RuntimeError("closed")),
        ),
    ),
    "The key's, or its organization's": (
        """\
Another key takes over at once, which is no retry. The refused one rests, and is probed by one request after a minute,
then after two, up to an hour. With none left, the error says whose key it was, and later calls are `NoKeyAvailable`,
which names each key and why it rests. A 403 may be the request's as well: so no key rests.""",
        (
            _status(401, "authentication_error", "the key"),
            _answered("401, with `x-should-retry: true`", error(401, "authentication_error", x_should_retry="true")),
            _status(402, "billing_error", "payment"),
            _status(403, "permission_error", "not for this key"),
            _text(403, "permission_error", "This organization has been disabled."),
            _text(400, "invalid_request_error", "This organization has been disabled."),
            _text(400, "invalid_request_error", "Your credit balance is too low to access the Anthropic API."),
            _text(400, "invalid_request_error", "You have reached your specified API usage limits."),
            _text(400, "invalid_request_error", "You have reached your specified workspace API usage limits."),
            _code(400, "organization_on_hold"),
            _text(429, "rate_limit_error", "This request would exceed your account's monthly spend limit."),
            _code(429, "enforced_spend_limit_reached"),
            _code(429, "contract_spend_limit_reached"),
        ),
    ),
    "The quota's": (
        "It says nothing of the service's health. Told how long to wait, the quota rests, and another may serve.",
        (
            _answered("429 with `retry-after`", error(429, "rate_limit_error", retry_after="1")),
            _status(429, "rate_limit_error", "without a time"),
            _code(429, "ramp_limit_exceeded"),
        ),
    ),
    "A connection's": (
        """\
A server may close a connection that it was to keep just as a request comes. So that is forgiven once in a call, within
two seconds of sending.""",
        (_dropped(_raised("closed as the request came", httpx2.RemoteProtocolError("…"), sent=CLOSE)),),
    ),
    "The network's": (
        "Nobody was reached: it is told at once, and tried again.",
        (
            _raised(
                "connection refused",
                httpx2.ConnectError("refused"),
                OSError(errno.ECONNREFUSED, "refused"),
                client=_nobody,
            ),
            _raised(
                "unknown host",
                httpx2.ConnectError("unknown"),
                socket.gaierror(socket.EAI_NONAME, "unknown"),
                client=lambda _: {"base_url": "http://no-such-host.invalid", "allow_http": True},
            ),
            _raised(
                "TLS refused, e.g. by a server that speaks none",
                httpx2.ConnectError("…"),
                ssl.SSLError(1, "wrong version number"),
                client=lambda url: {"base_url": url.replace("http://", "https://")},
            ),
            _raised(
                "a proxy that refuses",
                httpx2.ProxyError("407"),
                client=lambda url: _sdk("https://api.example", proxy=url),
            ),
        ),
    ),
    "The service's": (
        "It is tried again after a back-off, from the retry quota. The breaker counts what speaks of its health.",
        (
            _answered("408", error(408, "timeout_error")),
            _answered("409 without a cause", error(409, "conflict_error")),
            _code(400, "request_body_timeout"),
            _code(400, "external_key_validation_timed_out"),
            _text(400, "invalid_request_error", "fallback_credit_token: redemption temporarily unavailable"),
            _status(500, "api_error", "an error of its own"),
            _answered("500, with `x-should-retry: false`", error(500, "api_error", x_should_retry="false")),
            _answered("400, with `x-should-retry: true`", error(400, "invalid_request_error", x_should_retry="true")),
            _answered("501", error(501, "api_error")),
            _answered("502, a page of a proxy", answer(502, "<html>")),
            _status(503, "api_error", "away"),
            _code(503, "authorization_check_unavailable"),
            _code(503, "cmek_context_unavailable"),
            _code(503, "cmek_key_unreachable"),
            _status(504, "timeout_error", "too late"),
            _answered("505", error(505, "api_error")),
            _status(529, "overloaded_error", "overloaded"),
            _streamed("overloaded_error"),
            _streamed("api_error"),
            _streamed("rate_limit_error"),
            _streamed("some_new_error"),
            _raised(
                "no answer in time",
                httpx2.ReadTimeout("slow"),
                sent=HANG,
                ask={"timeout": httpx2.Timeout(5, read=0.05)},
            ),
            Row(
                what="an answer that breaks off",
                failure=INCOMPLETE,
                sent=_CUT,
            ),
        ),
    ),
    "Nobody knows": (
        "A part of it may be done, or others have changed what it is about: look first. It is never repeated blindly.",
        (
            _code(409, "storage_changed_concurrently"),
            _code(409, "storage_attached_during_archive"),
            _code(409, "workspace_changed_concurrently"),
            _code(409, "slack_channel_set_up_settings_conflict"),
            _code(503, "change_outcome_unknown"),
            _code(503, "registration_pending"),
            _code(503, "workspace_created_incomplete"),
        ),
    ),
}
ROWS = tuple(row for _, rows in GROUPS.values() for row in rows)

_HEAD = """\
# When it fails: who is told what

Whose failure is it? That decides who is told, whether it is sent again, who pays, and whether the circuit breaker
holds it against the service. One table in the code (`penstock._core.failure`) says so for all guards; what stands here
is made from it, and each row is tried over a real socket.

- **Sent again**, as long as attempts are left: one attempt means one. `x-should-retry` of the server wins, except for
  an account, and where a part may be done.
- **Retry quota** is what that takes from the 500 that all calls of a client share; it comes back if it succeeds.
- **Breaker**: what it holds *against the service*, what it takes for *an answer*, which shows that the service is
  there, and what says *nothing*.
- **Spent** is what the attempt counts in limits and costs: *as estimated* where the API may have worked for it.
- The caller is always told, by the SDK's own error of the last attempt, with a note of how often it was tried, and,
  where nobody was reached, why. **Told besides** is the event that observers and the log get.
"""


def page() -> str:
    """The page of the docs."""
    return "\n".join([_HEAD, *(_section(name, why, rows) for name, (why, rows) in GROUPS.items())])


def _section(name: str, why: str, rows: Iterable[Row]) -> str:
    lines = ["| What fails | Sent again | Retry quota | Breaker | Spent | Told besides |", "|---|---|---|---|---|---|"]
    lines += [
        f"| {row.what} | {row.again} | {row.paid or '–'} | {row.breaker} | {row.spent} | {row.told or '–'} |"
        for row in rows
    ]
    return "\n".join([f"## {name}", "", why, "", *lines, ""])


if __name__ == "__main__":
    sys.stdout.write(page())
