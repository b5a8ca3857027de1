from __future__ import annotations

import json
import socket
import sys
from typing import TYPE_CHECKING, Any, cast

import anthropic
import anyio
import httpx2
import pytest
from starlette.applications import Starlette

from penstock.simulator import Simulator
from penstock.simulator.server import _url, run, serving

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MODEL = "claude-sonnet-5-5"
HELLO: list[Any] = [{"role": "user", "content": "Hello there"}]
ASK: dict[str, Any] = {"model": MODEL, "max_tokens": 500, "messages": HELLO}


@pytest.fixture
def served() -> Iterator[tuple[Simulator, str]]:
    """A simulator behind a real socket, and its URL."""
    simulator = Simulator()
    with serving(simulator) as url:
        yield simulator, url


def client(url: str, **options: Any) -> anthropic.AsyncAnthropic:
    """An SDK client that never retries."""
    return anthropic.AsyncAnthropic(api_key="sk-1", base_url=url, max_retries=0, **options)


async def until_idle(simulator: Simulator) -> None:
    """The server notices a closed connection a moment after the client closed it."""
    await until(lambda: not simulator.in_flight)


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what another thread brings about."""
    with anyio.fail_after(5):
        while not condition():  # noqa: ASYNC110 - nothing tells when the server thread got there
            await anyio.sleep(0.005)


async def test_the_sdk_talks_to_it_over_a_socket(served: tuple[Simulator, str]) -> None:
    """Plain, streamed, counted and listed: the same core answers as in process."""
    simulator, url = served
    async with client(url) as claude:
        message = await claude.messages.create(**ASK)
        async with claude.messages.stream(**ASK) as stream:
            text = await stream.get_final_text()
        count = await claude.messages.count_tokens(model=MODEL, messages=HELLO)
        models = await claude.models.list(limit=3)
    assert text == "Summary: Hello there"
    assert message.usage.input_tokens == count.input_tokens
    assert len(models.data) == 3
    await until_idle(simulator)
    assert [entry.outcome for entry in simulator.journal] == ["complete"] * 4


async def test_a_reset_really_drops_the_connection(served: tuple[Simulator, str]) -> None:
    """The socket is reset before any byte of an answer, and the next request works."""
    simulator, url = served
    simulator.inject("reset")
    async with client(url) as claude:
        with pytest.raises(anthropic.APIConnectionError) as caught:
            await claude.messages.create(**ASK)
        assert isinstance(caught.value.__cause__, httpx2.ReadError)
        assert (await claude.messages.create(**ASK)).stop_reason == "end_turn"
    host, port = url.removeprefix("http://").split(":")
    simulator.inject("reset")
    body = json.dumps(ASK).encode()
    async with await anyio.connect_tcp(host, int(port)) as raw:
        await raw.send(
            b"POST /v1/messages HTTP/1.1\r\nhost: x\r\nx-api-key: k\r\nanthropic-version: 2026-10-21\r\n"
            b"content-length: %d\r\n\r\n%b" % (len(body), body)
        )
        with pytest.raises(anyio.BrokenResourceError) as broken:
            await raw.receive()
    assert isinstance(broken.value.__cause__, ConnectionResetError)


async def read(response: httpx2.Response, into: bytearray) -> None:
    """Collect the body, and keep what came before an error."""
    async for chunk in response.aiter_bytes():
        into += chunk


@pytest.mark.lengthy
@pytest.mark.parametrize("stream", [False, True])
async def test_a_truncated_body_ends_early(served: tuple[Simulator, str], stream: bool) -> None:
    """Headers and a part of the body arrive, then the connection is closed."""
    simulator, url = served
    simulator.inject("truncated")
    headers = {"x-api-key": "k", "anthropic-version": "2026-10-21"}
    received = bytearray()
    async with (
        httpx2.AsyncClient() as raw,
        raw.stream("POST", f"{url}/v1/messages", json={**ASK, "stream": stream}, headers=headers) as response,
    ):
        assert response.status_code == 200
        with pytest.raises(httpx2.RemoteProtocolError):
            await read(response, received)
    assert b"message" in received
    await until_idle(simulator)
    assert simulator.journal[0].outcome == "fault"


async def test_a_stream_is_sent_as_it_is_generated() -> None:
    """Deltas arrive one after another, not all at the end."""
    with serving(Simulator(tokens_per_s=400, output_tokens=40)) as url:
        async with client(url) as claude, claude.messages.stream(**ASK) as stream:
            times = [anyio.current_time() async for _ in stream.text_stream]
    assert len(times) == 10
    assert times[-1] - times[0] > 0.05


async def test_a_client_that_leaves_is_noticed() -> None:
    """Whether it waits for headers or reads a stream: leaving ends the request on the server."""
    simulator = Simulator(tokens_per_s=20, output_tokens=100)
    with serving(simulator) as url:
        async with client(url) as claude:
            with anyio.move_on_after(0.05):
                await claude.messages.create(**ASK)
            async with claude.messages.stream(**ASK) as stream:
                async for _ in stream.text_stream:
                    break
        await until_idle(simulator)
    assert [entry.outcome for entry in simulator.journal] == ["client closed", "client closed"]
    assert [entry.status for entry in simulator.journal] == [None, 200]


async def test_a_client_that_leaves_while_sending_asks_nothing(served: tuple[Simulator, str]) -> None:
    """Half a request is no request."""
    simulator, url = served
    host, port = url.removeprefix("http://").split(":")
    async with await anyio.connect_tcp(host, int(port)) as raw:
        await raw.send(b"POST /v1/messages HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{")
    async with client(url) as claude:
        await claude.messages.create(**ASK)
    assert len(simulator.journal) == 1


@pytest.mark.lengthy
async def test_a_body_over_32_mb_is_refused(served: tuple[Simulator, str]) -> None:
    """It is read to its end, not kept, and answered 413."""
    _, url = served
    async with client(url) as claude:
        with pytest.raises(anthropic.APIStatusError) as caught:
            await claude.messages.create(
                model=MODEL, max_tokens=5, messages=[{"role": "user", "content": "x" * (33 * 1024 * 1024)}]
            )
    assert (caught.value.status_code, caught.value.type) == (413, "request_too_large")


async def test_statistics_and_journal_can_be_read(served: tuple[Simulator, str]) -> None:
    """Counts, and entries without body, headers and key, as JSON."""
    simulator, url = served
    simulator.inject("overloaded")
    async with client(url) as claude:
        with pytest.raises(anthropic.InternalServerError):
            await claude.messages.create(**ASK)
        await claude.messages.create(**ASK)
    async with httpx2.AsyncClient(base_url=url) as raw:
        statistics = (await raw.get("/_simulator/statistics")).json()
        journal = (await raw.get("/_simulator/journal", params={"after": 1})).json()
        everything = (await raw.get("/_simulator/journal?after=x")).json()
    assert statistics["requests"] == 2
    assert statistics["by_status"] == {"529": 1, "200": 1}
    assert [entry["number"] for entry in everything] == [1, 2]
    (entry,) = journal
    assert (entry["number"], entry["outcome"], entry["model"]) == (2, "complete", MODEL)
    assert not entry.keys() & {"body", "headers", "key"}
    assert "sk-1" not in json.dumps(journal)


async def asgi(app: Starlette, path: str, host: str, method: str = "GET", body: bytes = b"") -> list[Any]:
    """What `app` sends to one request of a server that isn't uvicorn."""
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": body}

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"x-api-key", b"k"), (b"anthropic-version", b"2026-10-21")]
    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "query_string": b"",
        "headers": headers,
        "client": (host, 1),
    }
    await app(scope, receive, send)
    return sent


def test_without_the_extra_the_error_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where Starlette is missing, `app()` says what to install; the rest of the simulator works."""
    monkeypatch.delitem(sys.modules, "penstock.simulator.server")
    monkeypatch.setitem(sys.modules, "starlette.applications", None)
    with pytest.raises(ImportError, match=r"needs starlette.applications: pip install 'penstock\[simulator\]'"):
        Simulator().app()


async def test_leaving_the_block_ends_stalled_responses() -> None:
    """Nothing that is still open holds up the end of the server."""
    simulator = Simulator()
    simulator.inject("stall_before_headers")
    failed: list[anthropic.APIConnectionError] = []

    async def ask(url: str) -> None:
        async with client(url) as claude:
            with pytest.raises(anthropic.APIConnectionError) as caught:
                await claude.messages.create(**ASK)
        failed.append(caught.value)

    async with anyio.create_task_group() as group:
        with serving(simulator) as url:
            group.start_soon(ask, url)
            await until(lambda: simulator.in_flight == 1)
    assert len(failed) == 1
    assert simulator.journal[0].outcome == "client closed"


async def test_statistics_are_for_this_machine_only() -> None:
    """Other machines find nothing there."""
    app = Simulator().app()
    assert isinstance(app, Starlette)
    for host, status in (("127.0.0.1", 200), ("::1", 200), ("192.0.2.7", 404)):
        sent = await asgi(app, "/_simulator/statistics", host)
        assert sent[0]["status"] == status


async def test_a_server_that_cannot_drop_connections_fails_instead() -> None:
    """Under another server than uvicorn, a drop is an error of the application."""
    simulator = Simulator()
    simulator.inject("reset")
    with pytest.raises(ConnectionAbortedError):
        await asgi(simulator.app(), "/v1/messages", "127.0.0.1", "POST", json.dumps(ASK).encode())
    assert simulator.journal[0].outcome == "fault"
    assert simulator.in_flight == 0


def test_an_address_in_use_is_an_error() -> None:
    """Nothing is served where something else listens, and no socket is left open."""
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(OSError, match="in use"):
        run(Simulator(), port=taken.getsockname()[1])


def test_ipv6_addresses_are_written_in_brackets() -> None:
    """The URL can be used as it is, whatever the address."""

    class Listener:
        def getsockname(self) -> tuple[str, int, int, int]:
            return "::1", 8080, 0, 0

    assert _url(cast("socket.socket", Listener())) == "http://[::1]:8080"
