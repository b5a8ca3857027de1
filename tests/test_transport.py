from __future__ import annotations

import gc
import socket
import ssl
from typing import TYPE_CHECKING, Any, Literal

import anthropic
import anyio
import httpx2
import pytest
from _listener import MESSAGE, Listener, answer

from penstock import Client, ClientClosed, Limits

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

Kind = Literal["aiohttp", "httpx2"]
KINDS: tuple[Kind, ...] = ("aiohttp", "httpx2")
both = pytest.mark.parametrize("kind", KINDS)
KEY = "sk-example-of-a-key"
PROMPT = "the quick brown prompt"
ASK: Any = {"model": "claude-sonnet-5-5", "max_tokens": 100, "messages": [{"role": "user", "content": PROMPT}]}


def client(url: str, kind: Kind, **options: Any) -> Client:
    """A client of our own for an address."""
    return Client(**{"api_keys": KEY, "base_url": url, "transport": kind, "log": False, **options})


def sockets_to(port: int) -> list[socket.socket]:
    """The sockets of this process that are connected to a port."""
    made = [each for each in gc.get_objects() if isinstance(each, socket.socket)]
    return [each for each in made if each.fileno() >= 0 and _peer(each) == port]


def _peer(each: socket.socket) -> int | None:
    try:
        return int(each.getpeername()[1]) if each.family == socket.AF_INET else None
    except OSError:
        return None


@pytest.mark.lengthy
@both
async def test_a_connection_that_nothing_passes_is_kept_alive(kind: Kind) -> None:
    """After a minute the system asks whether the other side is there: a router would forget a silent connection."""
    async with Listener(answer()) as server, client(server.url, kind) as claude:
        await claude.messages.create(**ASK)
        (made,) = sockets_to(server.port)
        assert made.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        for name, value in {"TCP_KEEPIDLE": 60, "TCP_KEEPINTVL": 60, "TCP_KEEPCNT": 5}.items():
            if (option := getattr(socket, name, None)) is not None:
                assert made.getsockopt(socket.IPPROTO_TCP, option) == value


@pytest.mark.lengthy
@both
@pytest.mark.parametrize(
    "headers",
    [{"x-long": "a" * 60_000}, {f"x-{number}": "a" for number in range(950)}],
    ids=["a long line", "many lines"],
)
async def test_headers_may_be_long_and_many(kind: Kind, headers: dict[str, str]) -> None:
    """What proxies and tracing add makes no paid answer unreadable."""
    async with Listener(answer(headers=headers)) as server, client(server.url, kind) as claude:
        raw = await claude.messages.with_raw_response.create(**ASK)
        assert dict(raw.headers).items() >= headers.items()
        assert len(server.heads) == 1


@pytest.mark.lengthy
@both
async def test_the_proxy_of_the_environment_is_used(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the SDK does, and with the same long headers."""
    async with Listener(answer(headers={"x-long": "a" * 60_000})) as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        async with client("http://api.example", kind, allow_http=True) as claude:
            await claude.messages.create(**ASK)
            # To proxies, httpx2 gives no options of a socket along.
            kept = sockets_to(proxy.port)[0].getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            assert kept == (1 if kind == "aiohttp" else 0)
        assert proxy.heads[0].startswith("POST http://api.example/v1/messages HTTP/1.1\r\n")
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        async with Listener(answer()) as server, client(server.url, kind) as claude:
            await claude.messages.create(**ASK)
        assert len(proxy.heads) == len(server.heads) == 1


# A certificate for this machine alone, made for this test, and its key.
CERTIFICATE = """\
-----BEGIN CERTIFICATE-----
MIIBmzCCAUGgAwIBAgIUCir1vKLx5Qfg/r9wklGYcO0RcF4wCgYIKoZIzj0EAwIw
FDESMBAGA1UEAwwJbG9jYWxob3N0MCAXDTI2MTEzMDIyMzg0N1oYDzIxMjYxMTA2
MjIzODQ3WjAUMRIwEAYDVQQDDAlsb2NhbGhvc3QwWTATBgcqhkjOPQIBBggqhkjO
PQMBBwNCAAR9Q3il5rZFv+Px5BncrqiNlSeqMcffcIhrj382iNqP9x6/0Xxfnn//
hlUWOvbDa/9EdCFENtKL12tQd6GJzhm3o28wbTAdBgNVHQ4EFgQUY+P810RpNEkj
ho/69P2T07FfXVIwHwYDVR0jBBgwFoAUY+P810RpNEkjho/69P2T07FfXVIwDwYD
VR0TAQH/BAUwAwEB/zAaBgNVHREEEzARgglsb2NhbGhvc3SHBH8AAAEwCgYIKoZI
zj0EAwIDSAAwRQIgNAKu8IrKy21cglzjyygixLc294iK5Jdwql3Lpy/KoWECIQCz
W1mO5khEmpH3Hu6WpN3xkEsfDi50X4QaRZb1iszQlg==
-----END CERTIFICATE-----
-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgtnoCfJHKgRcRizvb
1y/Wnf0pjWGRAkbfBpBjRXzw1SqhRANCAAR9Q3il5rZFv+Px5BncrqiNlSeqMcff
cIhrj382iNqP9x6/0Xxfnn//hlUWOvbDa/9EdCFENtKL12tQd6GJzhm3
-----END PRIVATE KEY-----
"""


@both
async def test_the_certificates_of_the_environment_are_used(
    kind: Kind, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """`SSL_CERT_FILE` says whom to trust, as in the SDK; nobody else is, and nothing is sent to them."""
    path = tmp_path / "certificate.pem"
    path.write_text(CERTIFICATE)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(path)
    async with Listener(answer(), tls=tls) as server:
        async with client(server.url, kind) as claude:
            with pytest.raises(anthropic.APIConnectionError):
                await claude.messages.create(**ASK)
        assert server.heads == []
        monkeypatch.setenv("SSL_CERT_FILE", str(path))
        async with client(server.url, kind) as claude:
            await claude.messages.create(**ASK)
        assert len(server.heads) == 1


class TestElsewhere:
    """What is sent is meant for `base_url`: its scheme, its host, its port."""

    @pytest.mark.lengthy
    @both
    async def test_no_redirect_leads_elsewhere(self, kind: Kind) -> None:
        """Neither credentials nor prompts go along, whatever the status and the request; it is told, and final."""
        async with Listener(answer()) as other, Listener(b"") as server, client(server.url, kind) as claude:
            places = (other.url, f"http://localhost:{server.port}", f"https://127.0.0.1:{server.port}")
            for status in (301, 302, 303, 307, 308):
                for place in places:
                    for ask in (lambda: claude.messages.create(**ASK), claude.models.list):
                        server.answers = [answer(status, headers={"location": f"{place}/v1/messages"})]
                        asked = len(server.heads)
                        with pytest.raises(anthropic.APIStatusError) as raised:
                            await ask()
                        assert raised.value.status_code == status
                        assert "base_url" in raised.value.__notes__[0]
                        assert len(server.heads) == asked + 1
            assert other.connections == 0
            assert claude.statistics().breaker.refused == 0
            server.answers = [answer()]
            assert (await claude.messages.create(**ASK)).content

    @both
    async def test_a_stream_is_not_led_elsewhere_either(self, kind: Kind) -> None:
        """Nor does a client whose credentials the user brings send them along."""
        async with Listener(answer()) as other, Listener(b"") as server:
            server.answers = [answer(307, headers={"location": f"{other.url}/v1/messages"})]
            sdk = anthropic.AsyncAnthropic(
                auth_token=KEY, base_url=server.url, default_headers={"X-Api-Key": KEY}, max_retries=0
            )
            async with sdk, client(server.url, kind) as own, Client(sdk=sdk, log=False) as given:
                for claude in (own, given):
                    with pytest.raises(anthropic.APIStatusError):
                        async with claude.messages.stream(**ASK) as stream:
                            await stream.get_final_message()
                    with pytest.raises(anthropic.APIStatusError):
                        async with claude.stream(**ASK) as text:
                            await text.get_final_message()
            assert other.connections == 0

    @both
    async def test_a_redirect_on_the_same_host_is_followed(self, kind: Kind) -> None:
        """As the SDK follows it: the body again after 307 and 308, a GET after the others."""
        async with Listener(b"") as server, client(server.url, kind) as claude:
            for status, line in ((307, "POST /v1/there HTTP/1.1"), (302, "GET /v1/there HTTP/1.1")):
                server.answers = [answer(status, headers={"location": "/v1/there"}), answer()]
                raw = await claude.messages.with_raw_response.create(**ASK)
                assert raw.http_response.json() == MESSAGE
                assert [each.status_code for each in raw.http_response.history] == [status]
                assert server.heads[-1].startswith(line)
                assert f"Bearer {KEY}" in server.heads[-1]
                assert (PROMPT.encode() in server.bodies[-1]) is (status == 307)
                assert server.connections == 1

    @both
    async def test_redirects_without_end_end(self, kind: Kind) -> None:
        """As the SDK ends them, and once."""
        async with (
            Listener(answer(302, headers={"location": "/v1/models"})) as server,
            client(server.url, kind) as claude,
        ):
            with pytest.raises(anthropic.APIConnectionError) as raised:
                await claude.models.list()
            assert isinstance(raised.value.__cause__, httpx2.TooManyRedirects)
            assert len(server.heads) == 21

    @both
    async def test_a_redirect_need_not_be_followed(self, kind: Kind) -> None:
        """Then it is what the SDK raises, and no answer that broke off."""
        async with (
            Listener(answer(302, headers={"location": "/v1/there"})) as server,
            client(server.url, kind) as claude,
        ):
            with pytest.raises(anthropic.APIStatusError) as raised:
                await claude.sdk.get("/v1/here", cast_to=httpx2.Response, options={"follow_redirects": False})
            assert raised.value.status_code == 302
            assert raised.value.response.next_request is not None
            assert not hasattr(raised.value, "__notes__")
            assert len(server.heads) == 1

    @pytest.mark.lengthy
    @both
    @pytest.mark.parametrize(
        ("mounted", "path"),
        [
            ("", "/v1/messages/batches/b_1/results?beta=true"),
            ("/gateway", "/v1/messages/batches/b_1/results"),
            ("/gateway", "/gateway/v1/messages/batches/b_1/results"),
            ("", "/anywhere?x=/v2/"),
        ],
    )
    async def test_results_are_read_at_the_base_url(self, kind: Kind, mounted: str, path: str) -> None:
        """Whatever host an answer names for them: the key goes to none but the one it is meant for."""
        line = b'{"custom_id": "a", "result": {"type": "expired"}}\n'
        async with Listener(answer()) as other, Listener(b"") as server, client(server.url + mounted, kind) as claude:
            for results in (claude.messages.batches.results, claude.beta.messages.batches.results):
                server.answers = [answer(body=_ended(other.url + path)), answer(body=line)]
                found: AsyncIterator[Any] = await results("b_1")
                assert [each.custom_id async for each in found] == ["a"]
                asked = path if path.startswith(mounted) else mounted + path
                assert server.heads[-1].startswith(f"GET {asked} HTTP/1.1\r\n")
                assert f"Bearer {KEY}" in server.heads[-1]
            assert other.connections == 0


def _ended(results_url: str) -> dict[str, Any]:
    counts = {"canceled": 0, "errored": 0, "expired": 1, "processing": 0, "succeeded": 0}
    times = dict.fromkeys(("created_at", "ended_at", "expires_at"), "2026-01-01T00:00:00Z")
    return {
        "id": "b_1",
        "type": "message_batch",
        "processing_status": "ended",
        "request_counts": counts,
        "results_url": results_url,
        **times,
    }


HEAD = b"HTTP/1.1 200 Any\r\ncontent-type: application/json\r\ncontent-length: 1000\r\n\r\n{"


@pytest.mark.slow
@both
async def test_closing_leaves_no_connection(kind: Kind) -> None:
    """With hundreds under way: not answered, with half a head, with a body that has begun."""
    limits = Limits(requests_per_minute=10**6, input_tokens_per_minute=10**9, output_tokens_per_minute=10**9)
    answers = [b"", HEAD[:20], HEAD] * 99 + [HEAD]
    async with Listener(*answers) as server:
        claude = await client(server.url, kind, limits=limits, concurrency=500, close_timeout_s=0).__aenter__()
        ended: list[type[BaseException]] = []

        async def ask() -> None:
            try:
                await claude.messages.create(**ASK)
            except ClientClosed as error:
                ended.append(type(error))

        async with anyio.create_task_group() as group:
            for _ in range(300):
                group.start_soon(ask)
            await server.until(lambda: len(server.heads) == 300)
            await claude.close()
        assert len(ended) == server.connections == 300
        await server.until(lambda: server.open == 0)
        assert sockets_to(server.port) == []
