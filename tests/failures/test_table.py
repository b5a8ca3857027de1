"""The page of the docs is what the code says, and what the code says is what happens on a real socket."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anthropic
import anyio
import pytest
from _failure_table import GROUPS, ROWS, Row, page
from _scripted_server import OK, Arrived, serving

from penstock import Client, RetryOptions
from penstock.events import KeyChanged, NetworkChanged, QuotaCooled, RetryScheduled

if TYPE_CHECKING:
    from _scripted_server import Answer

    from penstock.events import Event

pytestmark = pytest.mark.anyio

KEYS = ("sk-ant-api03-one", "sk-ant-api03-two")
ASK: dict[str, Any] = {
    "model": "claude-haiku-5-5",
    "max_tokens": 9,
    "messages": [{"role": "user", "content": "Hello"}],
}
STREAM = b"""event: message_start
data: {"type": "message_start", "message": {"id": "msg_1", "type": "message", "role": "assistant", "content": [], \
"model": "claude-haiku-5-5", "stop_reason": null, "usage": {"input_tokens": 8, "output_tokens": 1}}}

event: message_stop
data: {"type": "message_stop"}

"""
OK_STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: %d\r\n\r\n" % len(STREAM) + STREAM
CALLED = {KeyChanged: "`KeyChanged`", NetworkChanged: "`NetworkChanged`", QuotaCooled: "`QuotaCooled`"}


def test_the_page_is_what_the_code_says() -> None:
    """Written anew by `python tests/helpers/_failure_table.py > docs/failures.md`."""
    assert (Path(__file__).parents[2] / "docs/failures.md").read_text(encoding="utf-8") == page()
    assert len(ROWS) >= 60
    assert len({row.what for row in ROWS}) == len(ROWS)


@dataclass(frozen=True, slots=True)
class Seen:
    """What came of one call whose first request fails as a row says: what the page says, in the page's words."""

    again: bool
    paid: int
    breaker: str
    spent: str
    told: str


def expected(row: Row) -> Seen:
    """What the page says of a row."""
    again = row.again != "no"
    told = row.told.partition(":")[0]
    return Seen(again, row.paid, row.breaker, row.spent, told)


async def happens(row: Row) -> Seen:
    """Ask once, with two keys and one retry, where the first request fails as `row` says, and all after it succeed."""

    def script(request: Arrived) -> Answer:
        fails = row.sent is not None and len(server.arrived) == 1
        return row.sent if fails and row.sent is not None else OK_STREAM if b'"stream":true' in request.content else OK

    told: list[Event] = []
    paid: list[int] = []

    def watch(event: Event) -> None:
        told.append(event)
        if isinstance(event, RetryScheduled):
            retry = claude.statistics().retry
            paid.append(retry.capacity - retry.quota)

    async with serving(script) as server:
        options = row.client(server.url)
        keys: dict[str, Any] = {} if "sdk" in options else {"api_keys": KEYS}
        retry = RetryOptions(max_attempts=2, base_s=0.001)
        async with Client(**options, **keys, retry=retry, log=False, observers=(watch,)) as claude:
            try:
                answer = await claude.messages.create(**{**ASK, **row.ask})
                if row.ask.get("stream"):
                    assert [event.type async for event in answer] == ["message_start", "message_stop"]
            except (anthropic.APIError, RuntimeError):
                assert row.again == "no" or row.sent is None
            statistics = claude.statistics()
        if "sdk" in options:
            await options["sdk"].close()
    breaker, attempts = statistics.breaker.classes["haiku-5-5"], statistics.attempts.total
    scheduled = [event for event in told if isinstance(event, RetryScheduled)]
    failed = attempts.attempts - attempts.successes
    return Seen(
        again=bool(scheduled),
        paid=max(paid, default=0),
        breaker="against the service"
        if breaker.failures
        else "an answer"
        if breaker.seen == 1 + len(scheduled)
        else "nothing",
        spent="as estimated" if failed and attempts.estimated else "nothing",
        told=next((CALLED[type(event)] for event in told if type(event) in CALLED), ""),
    )


@pytest.mark.lengthy
@pytest.mark.parametrize("group", GROUPS)
async def test_what_the_page_says_is_what_happens(group: str) -> None:
    """Each row, over a real socket: sent again, paid, held against the service, spent, and told as it stands there."""
    wrong: dict[str, tuple[Seen, Seen]] = {}
    for row in GROUPS[group][1]:
        if row.what.startswith("an event loop"):
            # Needs loops of its own: see `test_our_own.py`.
            continue
        with anyio.fail_after(20):
            seen = await happens(row)
        if seen != expected(row):
            wrong[row.what] = (expected(row), seen)
    assert not wrong
