from __future__ import annotations

import json
import logging
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any

import anyio
import httpx2
import pytest
from sse_starlette.sse import AppStatus
from starlette.applications import Starlette
from starlette.routing import Route

from penstock.web import EventStreamResponse, event_stream

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.responses import Response

pytestmark = pytest.mark.anyio

LONG = " ".join(f"word{number}" for number in range(400))
PACED = pytest.mark.simulator(latency_s=1.0, tokens_per_s=40)


class Page:
    """The other end of an HTTP response, by the words of ASGI.

    Attributes:
        status: Of the response.
        headers: Of the response.
        body: What came, event by event or comment by comment, each with its time.
        complete: Whether the response has ended properly.
        send_s: Seconds that it takes for each piece.
    """

    def __init__(self) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.body: list[tuple[float, str]] = []
        self.complete = False
        self.send_s = 0.0
        self.left = anyio.Event()
        self.on_piece: Callable[[], object] = lambda: None

    async def open(self, response: Response, method: str = "GET", headers: dict[str, str] | None = None) -> None:
        given = [(name.encode(), value.encode()) for name, value in (headers or {}).items()]
        await response({"type": "http", "method": method, "headers": given}, self._receive, self._send)

    async def _receive(self) -> Any:
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        await anyio.sleep(self.send_s)
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = {name.decode(): value.decode() for name, value in message["headers"]}
        else:
            if message["body"]:
                self.body.append((anyio.current_time(), message["body"].decode()))
            self.complete = not message.get("more_body")
            self.on_piece()

    @property
    def frames(self) -> list[dict[str, Any]]:
        lines = [line for _, piece in self.body for line in piece.splitlines()]
        return [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")]

    @property
    def text(self) -> str:
        return "".join(frame["text"] for frame in self.frames if frame["type"] == "text")


class Failing(AbstractAsyncContextManager[Any]):
    """A stream that never opens, for a reason of the application's own."""

    async def __aenter__(self) -> Any:
        raise LookupError("secret prompt")

    async def __aexit__(self, *_: object) -> None:
        raise AssertionError


@pytest.fixture
async def page(anyio_backend: object) -> Page:
    """A page that has not asked yet."""
    return Page()


@PACED
@pytest.mark.usefixtures("virtual_time")
async def test_a_page_gets_events_with_ids_and_the_frames_of_a_websocket(api: Any, page: Page) -> None:
    """Unnamed events, numbered, in order, whose data is the JSON that `forward` sends; then the response ends."""
    api.simulator.reply(LONG)
    async with api.client() as claude:
        await page.open(event_stream(api.ask(claude), cost=claude.cost))
    assert page.status == 200
    assert page.headers["content-type"].startswith("text/event-stream")
    assert page.headers["cache-control"] == "no-store"
    assert page.headers["x-accel-buffering"] == "no"
    events = [piece for _, piece in page.body if not piece.startswith(":")]
    assert [event.splitlines()[0] for event in events] == [f"id: {number + 1}" for number in range(len(events))]
    assert all(event.endswith("\n\n") and "event:" not in event for event in events)
    assert page.text == LONG
    final = page.frames[-1]
    assert (final["type"], final["stop_reason"], final["text_length"]) == ("final", "end_turn", len(LONG))
    assert final["cost_usd"] > 0
    assert page.complete
    assert api.simulator.in_flight == 0


@pytest.mark.simulator(latency_s=50.0)
@pytest.mark.usefixtures("virtual_time")
@pytest.mark.parametrize(("heartbeat_s", "beats"), [(15, [15, 30, 45]), (20.5, [20.5, 41]), (0, [])])
async def test_comments_keep_a_silent_response_alive(
    api: Any, heartbeat_s: float, beats: list[float], page: Page
) -> None:
    """While the model says nothing, a comment goes out every `heartbeat_s` seconds."""
    async with api.client() as claude:
        await page.open(event_stream(api.ask(claude), heartbeat_s=heartbeat_s))
    comments = [time for time, piece in page.body if piece == ": heartbeat\n\n"]
    assert comments == pytest.approx(beats, abs=0.1)
    assert page.frames[-1]["type"] == "final"


async def test_a_heartbeat_below_zero_is_refused(api: Any) -> None:
    """Time goes forward only."""
    with pytest.raises(ValueError, match="interval"):
        event_stream(api.ask(api.client()), heartbeat_s=-1)


@PACED
@pytest.mark.parametrize("fault", [None, "stall", "stall_before_headers"])
async def test_a_page_that_leaves_ends_the_request(api: Any, fault: str | None, virtual_time: Any, page: Page) -> None:
    """At once, also while nothing is sent."""
    api.simulator.reply(LONG)
    if fault:
        api.simulator.inject(fault)
    async with api.client() as claude:
        async with anyio.create_task_group() as group:
            group.start_soon(page.open, event_stream(api.ask(claude)))
            await anyio.sleep(3)
            assert api.slots(claude) == 1
            page.left.set()
        assert api.idle(claude)
        assert virtual_time.now() == pytest.approx(3, abs=0.01)


@PACED
@pytest.mark.usefixtures("virtual_time")
async def test_a_slow_page_gets_larger_events_and_holds_nothing_up(api: Any, page: Page) -> None:
    """The request ends at its own speed and frees its slot, while the page still takes what has come."""
    api.simulator.reply(LONG)
    page.send_s = 8.0
    async with api.client() as claude, anyio.create_task_group() as group:
        group.start_soon(page.open, event_stream(api.ask(claude), heartbeat_s=0))
        await anyio.sleep(30)
        assert api.slots(claude) == 0
        assert page.text != LONG
    assert page.text == LONG
    assert len(page.frames) < 10


@PACED
async def test_a_page_that_hangs_is_given_up(api: Any, virtual_time: Any, page: Page) -> None:
    """An event that is not taken in time ends the request; the server is told, and drops the connection."""

    def hang() -> None:
        page.send_s = 1e6

    api.simulator.reply(LONG)
    page.on_piece = hang
    async with api.client() as claude:
        with pytest.raises(TimeoutError):
            await page.open(event_stream(api.ask(claude), send_timeout_s=5))
        assert api.idle(claude)
        assert virtual_time.now() < 10
    assert not page.complete


@pytest.mark.usefixtures("virtual_time")
async def test_an_answer_that_breaks_off_ends_with_an_error_after_its_text(api: Any, page: Page) -> None:
    """Everything that came is sent, then the error, then a proper end; the page decides what to do."""
    api.simulator.reply(LONG)
    api.simulator.inject("stream_error_after_content")
    async with api.client() as claude:
        await page.open(event_stream(api.ask(claude)))
    last = page.frames[-1]
    assert (last["type"], last["error"]["type"], last["text_length"]) == ("error", "overloaded_error", len(page.text))
    assert page.text
    assert page.complete


@pytest.mark.usefixtures("virtual_time")
async def test_a_refused_request_is_an_error_event(api: Any, page: Page) -> None:
    """The response has begun by then, so that the refusal is told in it."""
    api.simulator.inject("rate_limited", retry_after_s=3600)
    async with api.client() as claude:
        await page.open(event_stream(api.ask(claude)))
    (frame,) = page.frames
    assert (frame["error"]["type"], frame["error"]["retry_after_s"]) == ("rate_limit_error", 3600)
    assert page.complete


@pytest.mark.usefixtures("virtual_time")
async def test_an_error_of_the_application_reaches_the_server_too(page: Page) -> None:
    """What is not the API's fault is told to the page by its type, and raised, so that the server logs it."""
    with pytest.raises(LookupError):
        await page.open(event_stream(Failing()))
    (frame,) = page.frames
    assert frame["error"]["type"] == "LookupError"
    assert "secret" not in json.dumps(frame)
    assert page.complete


@pytest.mark.usefixtures("virtual_time")
@pytest.mark.parametrize(("method", "headers", "status"), [("GET", {"last-event-id": "4"}, 204), ("HEAD", {}, 200)])
async def test_a_browser_that_connects_again_asks_for_nothing(
    api: Any, method: str, headers: dict[str, str], status: int, page: Page
) -> None:
    """An `EventSource` that lost its connection is told to stay away, rather than pay for a second answer."""
    async with api.client() as claude:
        await page.open(event_stream(api.ask(claude)), method, headers)
    assert (page.status, page.body, page.complete) == (status, [], True)
    assert api.simulator.journal == []


@PACED
@pytest.mark.parametrize("hangs", [False, True])
async def test_a_server_that_shuts_down_says_so(
    api: Any, hangs: bool, virtual_time: Any, page: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer under way ends with an error frame, and the request with it; a page that hangs can't delay it."""
    api.simulator.reply(LONG)
    async with api.client() as claude, anyio.create_task_group() as group:
        group.start_soon(page.open, event_stream(api.ask(claude)))
        await anyio.sleep(5)
        page.send_s = 1e6 if hangs else 0.0
        # What sse-starlette notices on uvicorn's way out.
        monkeypatch.setattr(AppStatus, "should_exit", True)
        await anyio.sleep(2)
        assert api.idle(claude)
    assert virtual_time.now() < 10
    assert page.text
    if not hangs:
        last = page.frames[-1]
        assert (last["error"]["type"], last["text_length"]) == ("ClientClosed", len(page.text))
        assert page.complete


@pytest.mark.usefixtures("virtual_time")
async def test_no_log_holds_a_completion(api: Any, page: Page, caplog: pytest.LogCaptureFixture) -> None:
    """At no level: sse-starlette's own log of what it sends is kept quiet, and only that."""
    api.simulator.reply("secret completion")
    with caplog.at_level(logging.DEBUG):
        async with api.client() as claude:
            await page.open(event_stream(api.ask(claude)))
        logging.getLogger("sse_starlette.sse").debug("something else")
    assert page.text == "secret completion"
    assert "secret" not in caplog.text
    assert "something else" in caplog.text


async def test_it_serves_a_real_browser_and_notices_a_cut_connection(api: Any, serve: Any) -> None:
    """Behind uvicorn, a whole answer arrives; and one that is read in part ends its request when the page goes."""
    api.simulator.reply("All of it.")
    async with api.client() as claude:

        async def answer(_request: object) -> EventStreamResponse:
            return event_stream(api.ask(claude))

        async with (
            serve(Starlette(routes=[Route("/", answer)])) as served,
            httpx2.AsyncClient(base_url=f"http://{served.address}", trust_env=False) as http,
        ):
            whole = (await http.get("/")).text
            assert [line for line in whole.splitlines() if line.startswith("id")] == ["id: 1", "id: 2"]
            api.simulator.inject("stall")
            async with http.stream("GET", "/") as response:
                assert await anext(response.aiter_lines()) == "id: 1"
                assert api.slots(claude) == 1
            await api.until(lambda: api.idle(claude))
