from __future__ import annotations

import json
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

import anthropic
import anyio
import httpx2
import pytest
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from penstock import CircuitOpen, ClientClosed, NoKeyAvailable, QueueFull, RequestExceedsQuota, UnknownPrice
from penstock.errors import StreamInterrupted
from penstock.web import CloseCode, forward

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from penstock.streaming import Stream

pytestmark = pytest.mark.anyio

STOP = '{"type":"stop"}'
LONG = " ".join(f"word{number}" for number in range(400))
PACED = pytest.mark.simulator(latency_s=1.0, tokens_per_s=40)


@PACED
@pytest.mark.usefixtures("virtual_time")
async def test_a_browser_gets_the_text_as_it_comes_and_then_the_end(api: Any, browser: Any) -> None:
    """Frames hold the whole text in order, as it is generated; the last one says how it ended and what it used."""
    api.simulator.reply(LONG)
    async with api.client() as claude:
        final = await forward(api.ask(claude), await browser.connect())
        assert api.slots(claude) == 0
    assert browser.text == LONG
    assert len(browser.frames) > 100
    assert browser.times[0] < 2
    assert browser.times[-1] > 10
    assert browser.frames[-1] == {
        "type": "final",
        "stop_reason": "end_turn",
        "usage": {
            "input_tokens": final.usage.input_tokens,
            "output_tokens": final.usage.output_tokens,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 0,
            "estimated": False,
        },
        "text_length": len(LONG),
    }
    assert final.usage.output_tokens == api.simulator.journal[0].output_tokens
    assert browser.closed is None


@pytest.mark.usefixtures("virtual_time")
async def test_one_socket_takes_one_answer_after_another(api: Any, browser: Any) -> None:
    """After an answer the socket is open, and nothing that the browser says then is lost."""
    browser.on_frame = lambda frame: browser.say("And then?") if frame["type"] == "final" else None
    async with api.client() as claude:
        websocket = await browser.connect()
        for _ in range(3):
            await forward(api.ask(claude), websocket)
            assert await websocket.receive_text() == "And then?"
    assert [frame["type"] for frame in browser.frames].count("final") == 3


@pytest.mark.usefixtures("virtual_time")
async def test_the_cost_is_told_where_it_is_known(api: Any, browser: Any) -> None:
    """With `cost`, the final frame has the price of the message in USD; not if nobody knows it."""

    def unknown(message: anthropic.types.Message) -> Any:
        raise UnknownPrice(message.model)

    async with api.client() as claude:
        websocket = await browser.connect()
        async with api.ask(claude) as stream:
            await forward(stream, websocket, cost=claude.cost)
            expected = claude.cost(await stream.get_final_message())
        await forward(api.ask(claude), websocket, cost=unknown)
    known, missing = (frame for frame in browser.frames if frame["type"] == "final")
    assert known["cost_usd"] == float(expected) > 0
    assert "cost_usd" not in missing


@PACED
@pytest.mark.usefixtures("virtual_time")
async def test_a_slow_browser_gets_larger_frames_and_holds_nothing_up(api: Any, browser: Any) -> None:
    """The request ends at its own speed and frees its slot, while the browser still takes what has come."""
    api.simulator.reply(LONG)
    browser.send_s = 8.0
    free_at: list[float] = []

    async with api.client() as claude, anyio.create_task_group() as group:

        async def note_when_it_is_free() -> None:
            await anyio.sleep(2)
            while api.slots(claude):  # noqa: ASYNC110 - nothing tells when a slot is free
                await anyio.sleep(0.1)
            free_at.append(anyio.current_time())

        group.start_soon(note_when_it_is_free)
        await forward(api.ask(claude), await browser.connect())
    assert browser.text == LONG
    assert len(browser.frames) < 10
    assert free_at[0] < 30 < browser.times[-1]


@PACED
@pytest.mark.parametrize("fault", [None, "stall"])
async def test_a_browser_that_hangs_is_given_up(api: Any, fault: str | None, virtual_time: Any, browser: Any) -> None:
    """A frame that is not taken in time ends the request, whatever the model does, and closes the socket."""
    api.simulator.reply(LONG)
    if fault:
        api.simulator.inject(fault)
    browser.send_s = 1e6
    async with api.client() as claude:
        with pytest.raises(TimeoutError):
            await forward(api.ask(claude), await browser.connect(), send_timeout_s=5)
        assert api.slots(claude) == 0
        assert virtual_time.now() < 8
    assert api.simulator.in_flight == 0
    assert browser.closed == CloseCode.POLICY


@PACED
@pytest.mark.parametrize("fault", [None, "stall", "stall_before_headers", "pings_only"])
async def test_a_browser_that_leaves_ends_the_request_at_once(
    api: Any, fault: str | None, virtual_time: Any, browser: Any
) -> None:
    """Also while nothing is sent: the slot is free, the connection closed, and the caller learns the code."""
    api.simulator.reply(LONG)
    if fault:
        api.simulator.inject(fault)
    async with api.client() as claude, anyio.create_task_group() as group:

        async def leave() -> None:
            await anyio.sleep(3)
            assert api.slots(claude) == 1
            browser.leave(1001)

        group.start_soon(leave)
        with pytest.raises(WebSocketDisconnect) as left:
            await forward(api.ask(claude), await browser.connect())
        assert (left.value.code, left.value.reason) == (1001, "gone")
        assert api.slots(claude) == 0
        assert api.simulator.in_flight == 0
        assert virtual_time.now() == pytest.approx(3, abs=0.01)
    assert browser.closed is None


@pytest.mark.lengthy
@PACED
@pytest.mark.usefixtures("virtual_time")
@pytest.mark.parametrize("stops", [False, True])
async def test_a_browser_may_leave_or_stop_while_its_request_waits_in_line(api: Any, stops: bool, browser: Any) -> None:
    """The request is never sent; one that stopped gets a final frame, and the socket stays open."""
    async with api.client(concurrency=1) as claude, api.ask(claude):
        websocket = await browser.connect()
        async with anyio.create_task_group() as group:

            async def end() -> None:
                await anyio.sleep(5)
                assert sum(claude.statistics().admission.waiting.values()) == 1
                if stops:
                    browser.say(STOP)
                else:
                    browser.leave()

            group.start_soon(end)
            if stops:
                final = await forward(api.ask(claude), websocket)
                assert (final.stop_reason, final.text_length) == (None, 0)
                assert browser.frames[0]["stop_reason"] is None
                assert browser.closed is None
            else:
                with pytest.raises(WebSocketDisconnect):
                    await forward(api.ask(claude), websocket)
        assert sum(claude.statistics().admission.waiting.values()) == 0
    assert len(api.simulator.journal) == 1


@PACED
@pytest.mark.usefixtures("virtual_time")
@pytest.mark.parametrize("said", [STOP, STOP.encode(), ' {"type": "stop", "why": "long"} '])
async def test_a_stop_ends_the_answer_and_not_the_conversation(api: Any, said: Any, browser: Any) -> None:
    """The request ends at once, the final frame says so with no stop reason, and the next answer comes whole."""
    api.simulator.reply(LONG)
    browser.on_frame = lambda _frame: browser.say(said) if len(browser.frames) == 3 else None
    async with api.client() as claude:
        websocket = await browser.connect()
        final = await forward(api.ask(claude), websocket, cost=claude.cost)
        assert api.idle(claude)
        assert final.stop_reason is None
        last = browser.frames[-1]
        assert (last["type"], last["stop_reason"], last["usage"]["estimated"]) == ("final", None, True)
        assert last["text_length"] == len(browser.text) < len(LONG)
        assert "cost_usd" not in last
        assert (await forward(api.ask(claude), websocket)).stop_reason == "end_turn"
    assert api.simulator.journal[0].outcome == "client closed"


@PACED
@pytest.mark.usefixtures("virtual_time")
async def test_a_stop_counts_even_as_the_stream_opens(api: Any, browser: Any) -> None:
    """A stream whose opening can't be cut short any more is closed unread."""

    @asynccontextmanager
    async def stubborn(claude: Any) -> AsyncIterator[Stream]:
        with anyio.CancelScope(shield=True):
            manager = api.ask(claude)
            stream = await manager.__aenter__()
        try:
            yield stream
        finally:
            await manager.__aexit__(None, None, None)

    api.simulator.reply(LONG)
    async with api.client() as claude:
        websocket = await browser.connect()
        browser.say(STOP)
        final = await forward(stubborn(claude), websocket)
        assert (final.stop_reason, browser.text) == (None, "")
    assert api.simulator.in_flight == 0


@pytest.mark.usefixtures("virtual_time")
@pytest.mark.parametrize(
    ("fault", "kind", "code"),
    [
        ("stream_error_after_content", "overloaded_error", CloseCode.TRY_LATER),
        ("stream_drop_after_content", "RemoteProtocolError", CloseCode.FAILED),
        ("no_message_stop", "APIConnectionError", CloseCode.FAILED),
    ],
)
async def test_an_answer_that_breaks_off_is_told_after_all_its_text(
    api: Any, fault: str, kind: str, code: CloseCode, browser: Any
) -> None:
    """The browser gets everything that came, then the error, then a close code; the caller gets the exception."""
    api.simulator.reply(LONG)
    api.simulator.inject(fault)
    async with api.client() as claude:
        with pytest.raises(StreamInterrupted) as broken:
            await forward(api.ask(claude), await browser.connect())
    assert browser.text
    assert broken.value.partial is not None
    assert broken.value.partial.content[0].text == browser.text  # type: ignore[union-attr]
    last = browser.frames[-1]
    assert (last["type"], last["error"]["type"], last["text_length"]) == ("error", kind, len(browser.text))
    assert browser.closed == code


class Failing(AbstractAsyncContextManager[Any]):
    """A stream that never opens."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    async def __aenter__(self) -> Any:
        raise self.error

    async def __aexit__(self, *_: object) -> None:
        raise AssertionError


def refusal(status: int, kind: str, **headers: str) -> anthropic.APIStatusError:
    """What the SDK raises for a refusal of the API."""
    response = httpx2.Response(status, headers=headers, request=httpx2.Request("POST", "http://api.invalid"))
    body = {"type": "error", "error": {"type": kind, "message": "secret prompt"}}
    return anthropic.APIStatusError("secret prompt", response=response, body=body)


@pytest.mark.usefixtures("virtual_time")
@pytest.mark.parametrize(
    ("error", "kind", "code", "sentence"),
    [
        (QueueFull("secret prompt"), "QueueFull", 1013, "busy"),
        (CircuitOpen("secret prompt", retry_after_s=12.5), "CircuitOpen", 1013, "busy"),
        (NoKeyAvailable("secret prompt", retry_after_s=60), "NoKeyAvailable", 1013, "busy"),
        (refusal(429, "rate_limit_error"), "rate_limit_error", 1013, "busy"),
        (refusal(529, "overloaded_error"), "overloaded_error", 1013, "busy"),
        (ClientClosed("secret prompt"), "ClientClosed", 1012, "shutting down"),
        (refusal(500, "api_error"), "api_error", 1011, "failed"),
        (refusal(400, "invalid_request_error"), "invalid_request_error", 1011, "can’t be answered"),
        (RequestExceedsQuota("tokens", needed=2, capacity=1), "RequestExceedsQuota", 1011, "can’t be answered"),
        (TypeError("secret prompt"), "TypeError", 1011, "failed"),
    ],
)
async def test_a_request_that_fails_is_told_by_type_sentence_and_close_code(
    error: Exception, kind: str, code: int, sentence: str, browser: Any
) -> None:
    """The browser learns what it can act on, and nothing of the error's own text; the caller gets the error."""
    with pytest.raises(type(error)) as raised:
        await forward(Failing(error), await browser.connect())
    assert raised.value is error
    (frame,) = browser.frames
    assert (frame["type"], frame["error"]["type"], frame["text_length"]) == ("error", kind, 0)
    assert sentence in frame["error"]["message"]
    assert "secret" not in json.dumps(frame)
    assert browser.closed == code


@pytest.mark.usefixtures("virtual_time")
@pytest.mark.parametrize(
    ("error", "told"),
    [
        (QueueFull("full"), {}),
        (CircuitOpen("open", retry_after_s=12.5), {"retry_after_s": 12.5}),
        (refusal(429, "rate_limit_error", **{"retry-after": "7"}), {"retry_after_s": 7}),
        (refusal(529, "overloaded_error"), {}),
        (TypeError("bug"), {}),
    ],
)
async def test_a_browser_learns_when_to_ask_again(error: Exception, told: dict[str, float], browser: Any) -> None:
    """Where the error knows how long to wait, the frame says so."""
    with pytest.raises(type(error)):
        await forward(Failing(error), await browser.connect())
    shown = browser.frames[0]["error"]
    assert {name: shown[name] for name in shown if name not in {"type", "message"}} == told


@PACED
@pytest.mark.usefixtures("virtual_time")
async def test_closing_the_client_ends_answers_with_a_frame_and_a_code(api: Any, browser: Any) -> None:
    """An answer that outlasts the client's `close_timeout_s` is told of the end, and the browser to connect again."""
    api.simulator.reply(LONG)
    async with api.client(close_timeout_s=2) as claude, anyio.create_task_group() as group:

        async def close() -> None:
            await anyio.sleep(3)
            await claude.close()

        group.start_soon(close)
        with pytest.raises(StreamInterrupted):
            await forward(api.ask(claude), await browser.connect())
    assert browser.frames[-1]["error"]["type"] == "ClientClosed"
    assert browser.text
    assert browser.closed == CloseCode.RESTART
    assert api.simulator.in_flight == 0


@pytest.mark.usefixtures("virtual_time")
async def test_a_socket_that_breaks_while_a_frame_is_sent_counts_as_left(api: Any) -> None:
    """A transport that fails, without a word before, ends the request as any leaving does; closing it does no harm."""

    async def receive() -> Any:
        return await anyio.sleep_forever()

    async def send(message: Any) -> None:
        if message["type"] != "websocket.accept":
            raise OSError

    websocket = WebSocket({"type": "websocket", "headers": []}, receive, send)
    async with api.client() as claude:
        await websocket.send({"type": "websocket.accept"})
        with pytest.raises(WebSocketDisconnect):
            await forward(api.ask(claude), websocket)
        assert api.idle(claude)


@PACED
@pytest.mark.usefixtures("virtual_time")
@pytest.mark.parametrize("said", ["Hurry!", '"stop"', "[]", "[" * 100_000, b"\xff"])
async def test_other_messages_go_to_whoever_wants_them(api: Any, said: Any, browser: Any) -> None:
    """`on_message` gets what is no stop; without it, it is dropped. The answer comes whole in any case."""
    heard: list[Any] = []
    async with api.client() as claude:
        websocket = await browser.connect()
        for on_message in (heard.append, None):
            browser.say(said)
            assert (await forward(api.ask(claude), websocket, on_message=on_message)).stop_reason == "end_turn"
    assert heard == [said]


@PACED
@pytest.mark.usefixtures("virtual_time")
async def test_what_on_message_raises_comes_out_as_it_is(api: Any, browser: Any) -> None:
    """It ends the request, closes the socket, and is wrapped in nothing."""

    def refuse(_message: str | bytes) -> None:
        raise LookupError("no")

    api.simulator.reply(LONG)
    async with api.client() as claude:
        websocket = await browser.connect()
        browser.say("Hurry!")
        with pytest.raises(LookupError, match="no"):
            await forward(api.ask(claude), websocket, on_message=refuse)
        assert api.idle(claude)
    assert browser.closed == CloseCode.FAILED


@PACED
@pytest.mark.usefixtures("virtual_time")
async def test_cancelling_the_caller_ends_the_request(api: Any, browser: Any) -> None:
    """A cancellation from outside is no error: it passes, and nothing is left behind."""
    api.simulator.reply(LONG)
    async with api.client() as claude:
        websocket = await browser.connect()
        with anyio.move_on_after(3) as scope:
            await forward(api.ask(claude), websocket)
        assert scope.cancelled_caught
        assert api.idle(claude)
    assert browser.closed is None


class TestBehindRealSockets:
    @pytest.mark.lengthy
    async def test_a_hundred_browsers_at_once_get_each_its_own_answer(self, api: Any, serve: Any) -> None:
        """A third leaves in the middle; the others get everything, and all slots are free in the end."""
        async with api.client(concurrency=100) as claude:

            async def answer(websocket: WebSocket) -> None:
                await websocket.accept()
                question = await websocket.receive_text()
                try:
                    await forward(api.ask(claude, question), websocket)
                except WebSocketDisconnect:
                    return

            finals: list[int] = []

            async def browse(address: str, number: int) -> None:
                async with connect(f"ws://{address}/", proxy=None) as socket:
                    await socket.send(f"I am number {number}. " + "Well. " * 30)
                    text = ""
                    async for message in socket:
                        frame = json.loads(message)
                        if frame["type"] == "final":
                            assert f"number {number}." in text
                            finals.append(number)
                            return
                        text += frame["text"]
                        if number % 3 == 0:
                            return

            app = Starlette(routes=[WebSocketRoute("/", answer)])
            async with serve(app) as served, anyio.create_task_group() as group:
                for number in range(100):
                    group.start_soon(browse, served.address, number)
            await api.until(lambda: api.idle(claude))
        assert sorted(finals) == [number for number in range(100) if number % 3]

    async def test_a_connection_that_is_cut_ends_the_request(self, api: Any, serve: Any) -> None:
        """Without any goodbye, while the model is silent."""
        api.simulator.inject("stall")
        left: list[WebSocketDisconnect] = []
        async with api.client() as claude:

            async def answer(websocket: WebSocket) -> None:
                await websocket.accept()
                with pytest.raises(WebSocketDisconnect) as caught:
                    await forward(api.ask(claude), websocket)
                left.append(caught.value)

            async with (
                serve(Starlette(routes=[WebSocketRoute("/", answer)])) as served,
                connect(f"ws://{served.address}/", proxy=None) as socket,
            ):
                await api.until(lambda: api.slots(claude) == 1)
                socket.transport.abort()
                await api.until(lambda: bool(left))
                assert api.idle(claude)

    async def test_a_server_that_shuts_down_closes_its_sockets_with_1012(self, api: Any, serve: Any) -> None:
        """The client lives in the application's lifespan; whoever was being answered is told to connect again."""
        api.simulator.inject("stall")
        claude = api.client(close_timeout_s=1)

        @asynccontextmanager
        async def lifespan(_app: Starlette) -> AsyncIterator[None]:
            async with claude:
                yield

        async def answer(websocket: WebSocket) -> None:
            await websocket.accept()
            with pytest.raises(WebSocketDisconnect):
                await forward(api.ask(claude), websocket)

        app = Starlette(routes=[WebSocketRoute("/", answer)], lifespan=lifespan)
        async with serve(app) as served, connect(f"ws://{served.address}/", proxy=None) as socket:
            await api.until(lambda: api.slots(claude) == 1)
            served.server.should_exit = True
            with suppress(ConnectionClosed):
                while True:
                    await socket.recv()
            assert socket.close_code == CloseCode.RESTART
        assert repr(claude).startswith("<Client closed")
        assert api.idle(claude)
