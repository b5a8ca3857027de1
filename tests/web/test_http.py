"""What a plain handler answers after each error."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import anthropic
import httpx2
import pytest
from starlette.applications import Starlette
from starlette.routing import Route

from penstock import errors
from penstock._core.usage import NOTHING
from penstock.errors import AccountRefused, CircuitOpen, ItemFailed, PenstockError, StreamInterrupted
from penstock.web import http_error

if TYPE_CHECKING:
    from collections.abc import Iterator

SECRET = "sk-ant-secret and the prompt"
REQUEST = httpx2.Request("POST", "https://api.example/v1/messages", headers={"x-api-key": SECRET})

OURS = {
    "AccountRefused": 500,
    "AdmissionTimeout": 503,
    "BudgetExceeded": 429,
    "CircuitOpen": 503,
    "ClientClosed": 503,
    "ContextOverflow": 413,
    "ConversationChanged": 409,
    "InvalidHistory": 422,
    "InvalidImage": 422,
    "InvalidOutput": 502,
    "InvalidStream": 502,
    "ItemFailed": 500,
    "JournalError": 500,
    "KeyNotFound": 500,
    "NoKeyAvailable": 503,
    "PenstockError": 500,
    "QueueFull": 503,
    "RequestExceedsQuota": 413,
    "ResponseTooLarge": 502,
    "StreamInterrupted": 502,
    "SystemPromptChanged": 409,
    "ToolLoopLimit": 500,
    "TooManyFailures": 500,
    "UnknownPrice": 500,
    "UnknownTool": 500,
    "UnsafeInput": 422,
}
STATUSES = {
    400: 422,
    401: 500,
    402: 500,
    403: 500,
    404: 500,
    408: 500,
    409: 500,
    413: 413,
    422: 422,
    429: 503,
    500: 502,
    501: 502,
    503: 502,
    504: 502,
    529: 503,
}


def bare(kind: type[PenstockError]) -> PenstockError:
    """An error with nothing but a text, and what is asked of every one."""
    error = kind.__new__(kind, SECRET)
    error.__dict__.update(cause=None, body=None)
    return error


def told(error: Exception) -> tuple[int, dict[str, Any]]:
    """The status, and what is said; nothing of the error's text gets out."""
    answer = http_error(error)
    said = json.loads(bytes(answer.body))
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["cache-control"] == "no-store"
    assert "secret" not in f"{answer.body!r} {answer.headers}"
    assert (said["type"], set(said["error"]) - {"retry_after_s"}) == ("error", {"type", "message"})
    return answer.status_code, said["error"]


def of_status(status: int, *, body: object = None, headers: dict[str, str] | None = None) -> anthropic.APIStatusError:
    """What the SDK raises for a status."""
    response = httpx2.Response(status, json=body, headers=headers, request=REQUEST)
    return anthropic.AsyncAnthropic(api_key="k")._make_status_error(SECRET, body=body, response=response)


@pytest.mark.parametrize("name", [*errors.__all__, "AccountRefused"])
def test_every_error_of_ours_has_its_status(name: str) -> None:
    """A new one must be placed here."""
    kind = AccountRefused if name == "AccountRefused" else getattr(errors, name)
    status, said = told(bare(kind))
    assert (status, said["type"]) == (OURS[name], name)
    again = status in {500, 502} and name != "KeyNotFound"
    assert said["message"].startswith("This request can’t") == (not again and status != 503)


def all_kinds(of: type[Exception]) -> Iterator[type[Exception]]:
    """All classes of errors below one."""
    for kind in of.__subclasses__():
        yield kind
        yield from all_kinds(kind)


@pytest.mark.lengthy
@pytest.mark.parametrize("status", STATUSES)
def test_every_status_of_the_api_has_one(status: int) -> None:
    """With a body that says what it is, and without."""
    assert told(of_status(status))[0] == STATUSES[status]
    body = {"type": "error", "error": {"type": "of_tomorrow", "message": SECRET}}
    assert told(of_status(status, body=body)) == (STATUSES[status], told(of_status(status, body=body))[1])


def test_every_error_of_the_sdk_and_its_transport_is_answered() -> None:
    """Whatever its class: a status above 400, and no text of it."""
    kinds = [
        kind for kind in (*all_kinds(anthropic.APIError), *all_kinds(httpx2.HTTPError)) if kind.__module__ != __name__
    ]
    assert len(kinds) > 20
    for kind in kinds:
        error = kind.__new__(kind, SECRET)
        error.__dict__.update(request=REQUEST, response=httpx2.Response(500, request=REQUEST), body=None, type=None)
        assert 400 <= told(error)[0] < 600


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (anthropic.APITimeoutError(request=REQUEST), 504),
        (anthropic.APIConnectionError(request=REQUEST, message=SECRET), 502),
        (httpx2.ReadTimeout(SECRET), 504),
        (httpx2.ReadError(SECRET), 502),
        (
            of_status(400, body={"error": {"type": "invalid_request_error", "message": "credit balance is too low"}}),
            500,
        ),
        (of_status(429, body={"error": {"type": "rate_limit_error", "message": "spend limit: secret"}}), 500),
        (of_status(200, body={"error": {"type": "overloaded_error", "message": SECRET}}), 503),
        (ItemFailed("errored", body={"error": {"type": "overloaded_error", "message": SECRET}}), 503),
        (ItemFailed("errored", body={"error": {"type": "invalid_request_error", "message": SECRET}}), 422),
        (StreamInterrupted(SECRET, partial=None, usage=NOTHING, cause=httpx2.ReadTimeout(SECRET)), 504),
        (ValueError(SECRET), 500),
        (TimeoutError(SECRET), 500),
    ],
)
def test_what_failed_decides(error: Exception, status: int) -> None:
    """The account is ours and never theirs; what broke a stream off, or failed an item, counts as itself."""
    assert told(error)[0] == status


def test_when_to_come_again_is_told_where_it_is_known() -> None:
    """In whole seconds, rounded up, for what is busy; an absurd answer of the API's is not handed on."""
    for error, seconds in (
        (CircuitOpen("open", retry_after_s=2.2), "3"),
        (CircuitOpen("open", retry_after_s=None), None),
        (of_status(429, headers={"retry-after": "7"}), "7"),
        (of_status(529, headers={"retry-after": "1e9"}), None),
        (of_status(400, headers={"retry-after": "7"}), None),
        (errors.QueueFull("full"), None),
    ):
        answer = http_error(error)
        assert answer.headers.get("retry-after") == seconds
        assert ("retry_after_s" in json.loads(bytes(answer.body))["error"]) == (seconds is not None)


async def test_an_application_answers_with_it() -> None:
    """As the handler of all errors of the SDK's root, ours among them."""

    async def ask(_: object) -> None:
        raise CircuitOpen(SECRET, retry_after_s=1)

    async def failed(_: object, error: Exception) -> Any:
        return http_error(error)

    app = Starlette(routes=[Route("/", ask)], exception_handlers={anthropic.AnthropicError: failed})
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://here") as browser:
        answer = await browser.get("/")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert answer.json()["error"]["message"] == "The service is busy. Please try again in a moment."
