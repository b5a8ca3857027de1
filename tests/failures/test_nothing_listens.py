"""Nobody is there: told at once, in the log, beside the progress and by `penstock run`, which then ends."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from typing import TYPE_CHECKING, Any, Literal

import anthropic
import anyio
import pytest
from _scripted_server import CLOSE, OK, serving

from penstock import Client, RetryOptions
from penstock.cli import main
from penstock.cli.run import command
from penstock.events import NetworkChanged

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from penstock.events import Event

pytestmark = pytest.mark.anyio

Transport = Literal["aiohttp", "httpx2"]
KEYS = ("sk-ant-api03-one",)
QUICK = RetryOptions(max_attempts=2, base_s=0.001)
ASK: dict[str, Any] = {
    "model": "claude-haiku-5-5",
    "max_tokens": 9,
    "messages": [{"role": "user", "content": "Hello"}],
}


@pytest.fixture
async def no_tls() -> AsyncIterator[int]:
    """A server that speaks no TLS, and answers a CONNECT that it is forbidden."""

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(5)
        writer.write(b"HTTP/1.1 407 Proxy Authentication Required\r\ncontent-length: 0\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(take, "127.0.0.1", 0)
    yield server.sockets[0].getsockname()[1]
    server.close()


@pytest.mark.lengthy
@pytest.mark.parametrize("transport", ["aiohttp", "httpx2"])
async def test_why_nothing_is_reached_is_told_at_once_and_in_the_error(
    transport: Transport, refusing_port: int, no_tls: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Refused, unknown, no TLS, no proxy, a proxy that forbids it: in the first event, and in the note of the error."""
    ways = {
        f"http://127.0.0.1:{refusing_port}": (None, "can't reach 127.0.0.1: connection refused"),
        "http://no-such-host.invalid": (None, "can't reach no-such-host.invalid: "),
        f"https://127.0.0.1:{no_tls}": (None, "can't reach 127.0.0.1: TLS was refused (wrong version number)"),
        "https://api.example": (no_tls, "can't reach api.example through the proxy: it answered 407"),
        "https://api2.example": (refusing_port, "connection refused"),
    }
    for url, (proxy, words) in ways.items():
        if proxy is not None:
            monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{proxy}")
        told: list[Event] = []
        client = Client(
            api_keys=KEYS,
            base_url=url,
            allow_http=True,
            transport=transport,
            retry=QUICK,
            log=False,
            observers=(told.append,),
        )
        async with client as claude:
            with pytest.raises(anthropic.APIConnectionError) as raised:
                await claude.messages.create(**ASK)
            problems = [event.problem for event in told if isinstance(event, NetworkChanged)]
            assert len(problems) == 1
            assert words in str(problems[0])
            assert type(told[0]) is NetworkChanged
            assert words in raised.value.__notes__[0]
            assert not claude.statistics().attempts.reached


async def test_when_it_answers_again_that_is_told_too_and_no_more_often(
    caplog: pytest.LogCaptureFixture, refusing_port: int
) -> None:
    """A warning when it is gone, a line when it is back; one that comes and goes doesn't fill the log."""
    caplog.set_level(logging.INFO, logger="penstock")
    async with Client(
        api_keys=KEYS, base_url=f"http://127.0.0.1:{refusing_port}", retry=RetryOptions(max_attempts=1)
    ) as claude:
        for _ in range(3):
            with pytest.raises(anthropic.APIConnectionError):
                await claude.messages.create(**ASK)
        async with serving(OK) as server:
            away, claude.sdk.base_url = claude.sdk.base_url, server.url
            await claude.messages.create(**ASK)
            claude.sdk.base_url = away
            with pytest.raises(anthropic.APIConnectionError):
                await claude.messages.create(**ASK)
        assert claude.statistics().attempts.reached
    lines = [json.loads(record.getMessage()) for record in caplog.records]
    changes = [(line["level"], line["problem"]) for line in lines if line["event"] == "network_changed"]
    assert changes == [("warning", "can't reach 127.0.0.1: connection refused"), ("info", None)]


async def test_a_connection_that_was_there_and_is_lost_is_no_network_that_is_gone() -> None:
    """It is told with what failed by it."""
    told: list[Event] = []
    async with (
        serving(CLOSE) as server,
        Client(api_keys=KEYS, base_url=server.url, retry=QUICK, log=False, observers=(told.append,)) as claude,
    ):
        with pytest.raises(anthropic.APIConnectionError):
            await claude.messages.create(**ASK)
    assert not [event for event in told if isinstance(event, NetworkChanged)]


@pytest.mark.slow
@pytest.mark.parametrize("progress", [(), ("--progress",), ("--quiet",)])
def test_a_run_says_so_within_seconds_and_gives_up(
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    refusing_port: int,
    progress: tuple[str, ...],
) -> None:
    """Whatever is shown: why, that it tries again, and in the end that not one request got through, with 1."""
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEYS[0])
    monkeypatch.setattr(command, "_HOPELESS_S", 1.5)
    prompts, out = tmp_path / "prompts.txt", tmp_path / "out.jsonl"
    prompts.write_text("Hello\n" * 30, encoding="utf-8")
    arguments = ["run", str(prompts), "-o", str(out), "--model", "claude-haiku-5-5", *progress]
    begun_at = time.perf_counter()
    code = main([*arguments, "--base-url", f"http://127.0.0.1:{refusing_port}"])
    assert time.perf_counter() - begun_at < 10
    lines = capfd.readouterr().err.splitlines()
    assert code == 1
    assert lines[0] == "penstock run: can't reach 127.0.0.1: connection refused; trying again"
    ended = [line for line in lines if "not one request got through in 2 s: can't reach 127.0.0.1" in line]
    assert len(ended) == 1
    assert "Look at the address, the proxy and the network." in ended[0]
    assert "--resume" in lines[-1]


@pytest.mark.slow
def test_a_run_that_got_through_once_is_not_given_up(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Then the service was there, and may come back: items fail or wait as ever."""
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEYS[0])
    monkeypatch.setattr(command, "_HOPELESS_S", 0.5)
    prompts, out = tmp_path / "prompts.txt", tmp_path / "out.jsonl"
    prompts.write_text("One\nTwo\nThree\n", encoding="utf-8")

    async def run() -> int:
        async with serving(lambda _: OK if len(server.arrived) in (1, 8, 9) else CLOSE) as server:
            arguments = ["run", str(prompts), "-o", str(out), "--model", "claude-haiku-5-5", "--base-url", server.url]
            return await anyio.to_thread.run_sync(main, arguments)

    assert anyio.run(run) == 0
    assert "got through" not in capfd.readouterr().err
