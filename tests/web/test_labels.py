from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import pytest

from penstock._core.context import current_labels
from penstock.web import LabelsMiddleware

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

pytestmark = pytest.mark.anyio


async def labels_seen(labels_from: Callable[[Any], Mapping[str, Any] | None], kind: str = "http") -> dict[str, str]:
    """The labels in force where the application runs."""
    seen: dict[str, str] = {}

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.update(current_labels())

    async def unused(*_: object) -> Any:
        raise AssertionError

    await LabelsMiddleware(app, labels_from)({"type": kind, "path": "/chat"}, unused, unused)
    assert current_labels() == {}
    return seen


@pytest.mark.parametrize("kind", ["http", "websocket"])
async def test_a_web_request_runs_with_its_labels(kind: str) -> None:
    """What the function makes of the scope is in force in the application, and only there."""
    seen = await labels_seen(lambda scope: {"path": scope["path"], "priority": "interactive"}, kind)
    assert seen == {"path": "/chat", "priority": "interactive"}


async def test_the_lifespan_has_no_labels() -> None:
    """The function is asked about requests only."""
    assert await labels_seen(lambda scope: scope["no such key"], "lifespan") == {}


async def test_no_labels_are_fine(caplog: pytest.LogCaptureFixture) -> None:
    """A function may have nothing to say."""
    assert await labels_seen(lambda _scope: None) == {}
    assert caplog.records == []


def fails(_scope: object) -> dict[str, str]:
    """A function with a bug."""
    raise LookupError("who is secret-user?")


@pytest.mark.parametrize(
    ("labels_from", "kind"),
    [
        (fails, "LookupError"),
        (lambda _scope: {"user": 7}, "TypeError"),
        (lambda _scope: {"priority": "secret-user"}, "ValueError"),
        (lambda _scope: {7: "secret-user"}, "TypeError"),
        (lambda _scope: "secret-user", "TypeError"),
    ],
)
async def test_a_function_that_fails_costs_labels_and_no_request(
    labels_from: Any, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The request goes on unlabelled; the log names the type of the error, and nothing of its text."""
    with caplog.at_level(logging.WARNING, "penstock"):
        assert await labels_seen(labels_from) == {}
    (record,) = caplog.records
    assert kind in record.getMessage()
    assert "secret" not in record.getMessage()
    assert record.exc_info is None
