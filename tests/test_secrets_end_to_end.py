from __future__ import annotations

import asyncio
import contextlib
import copy
import dataclasses
import io
import logging
import os
import pickle
import traceback
from typing import TYPE_CHECKING, Any

import anthropic
import anyio
import pytest

import penstock
from penstock import Client, RetryOptions
from penstock.observe.logs import json_handler
from penstock.simulator import Simulator
from penstock.simulator.server import serving

if TYPE_CHECKING:
    from collections.abc import Iterator

    from penstock.events import Event

KEY = "sk-ant-api03-very-secret-key"
PROMPT = "the-very-private-prompt"
ANSWER = "the-very-private-answer"
SECRETS = (KEY, PROMPT, ANSWER)
ASK: Any = {"model": "claude-sonnet-5-5", "max_tokens": 100, "messages": [{"role": "user", "content": PROMPT}]}

FAULTS: dict[str, tuple[str, dict[str, Any]]] = {
    "400": ("", {"messages": [{"role": "boss", "content": PROMPT}]}),
    "404": ("", {"model": "claude-nonesuch"}),
    "401": ("authentication", {}),
    "403": ("permission", {}),
    "429": ("rate_limited_no_retry_after", {}),
    "spend cap": ("spend_cap", {}),
    "500": ("api_error", {}),
    "502 page": ("bad_gateway", {}),
    "529": ("overloaded", {}),
    "reset": ("reset", {}),
    "truncated": ("truncated", {}),
    "stall": ("stall_before_headers", {}),
    "error in the stream, before content": ("stream_error_before_content", {"stream": True}),
    "error in the stream, after content": ("stream_error_after_content", {"stream": True}),
    "drop in the stream, before content": ("stream_drop_before_content", {"stream": True}),
    "drop in the stream, after content": ("stream_drop_after_content", {"stream": True}),
    "stream without end": ("no_message_stop", {"stream": True}),
    "nobody listens": ("closed port", {}),
    "client closed": ("client closed", {}),
    "deadline": ("deadline", {}),
    "all is well": ("", {}),
}


class Seen:
    """Everything that a client tells of its calls: log lines at all levels, events, statistics."""

    def __init__(self) -> None:
        self.log = io.StringIO()
        self.events: list[Event] = []

    def shows(self, client: Client) -> str:
        """All of it as text."""
        fields = [[getattr(event, field.name) for field in dataclasses.fields(event)] for event in self.events]
        return f"{self.log.getvalue()} {self.events} {fields} {client} {client.statistics()} {client.settings}"


@pytest.fixture
def seen() -> Iterator[Seen]:
    """All loggers of the process at their most talkative."""
    seen = Seen()
    handler = json_handler(seen.log, most_lines=1)
    logger = logging.getLogger("penstock")
    logger.addHandler(handler)
    before = logger.level
    logger.setLevel(logging.DEBUG)
    yield seen
    logger.setLevel(before)
    logger.removeHandler(handler)
    handler.close()


async def ask(claude: Client, *, stream: bool = False, **changes: Any) -> None:
    """Ask, and read all there is."""
    params = {**ASK, **changes}
    if stream:
        async with claude.messages.stream(**params) as events:
            await events.get_final_message()
    else:
        await claude.messages.create(**params)


def tree(error: BaseException) -> Iterator[BaseException]:
    """An error and all that hangs on it."""
    waiting: list[BaseException | None] = [error]
    known: set[int] = set()
    while waiting:
        each = waiting.pop()
        if each is None or id(each) in known:
            continue
        known.add(id(each))
        yield each
        waiting += [each.__cause__, each.__context__]


def shows(error: BaseException) -> str:
    """All that an error tells: by its text, arguments, notes, attributes, requests, and its pickle."""
    told: list[str] = []
    for each in tree(error):
        told += [f"{each!r} {each} {each.args} {getattr(each, '__notes__', '')} {vars(each)}"]
        for holder in (each, getattr(each, "response", None)):
            with contextlib.suppress(RuntimeError):
                request = getattr(holder, "request", None)
                if request is not None:
                    told += [f"{request.headers.multi_items()} {request.url} {request.read()!r}"]
        with contextlib.suppress(TypeError):  # an error that can't be pickled shows nothing in a pickle
            told += [repr(pickle.dumps(each, protocol)) for protocol in (0, pickle.HIGHEST_PROTOCOL)]
        with contextlib.suppress(TypeError):
            told += [f"{vars(copy.copy(each))}"]
    told += traceback.format_exception(error)
    return "\n".join(told)


def locals_shown(error: BaseException) -> dict[str, dict[str, str]]:
    """The local variables of our own frames, as tools that report errors show them."""
    frames: dict[str, dict[str, str]] = {}
    for each in tree(error):
        for frame in traceback.TracebackException.from_exception(each, capture_locals=True).stack:
            if f"{os.sep}penstock{os.sep}" in frame.filename and f"{os.sep}simulator{os.sep}" not in frame.filename:
                frames[f"{frame.filename}:{frame.lineno}"] = frame.locals or {}
    return frames


@pytest.mark.lengthy
@pytest.mark.parametrize("transport", ["aiohttp", "httpx2"])
@pytest.mark.parametrize("case", FAULTS)
async def test_neither_key_nor_content_is_shown_anywhere(case: str, transport: Any, seen: Seen) -> None:
    """Not in log lines, events, statistics, nor in an error, its causes, its pickle, or the variables of our frames."""
    fault, changes = FAULTS[case]
    simulator = Simulator(output_tokens=40)
    simulator.reply(f"{ANSWER} and many more words, so that there is something to be cut", times=20)
    if fault in penstock.simulator.FAULTS:
        simulator.inject(fault, times=20, **({"after_deltas": 1} if fault.endswith("after_content") else {}))
    if fault in {"client closed", "deadline"}:
        simulator.inject("stall_before_headers")
    with serving(simulator) as url:
        claude = Client(
            api_keys=[KEY],
            base_url="http://127.0.0.1:9" if fault == "closed port" else url,
            transport=transport,
            observers=[seen.events.append],
            timeout_s=0.05 if case == "stall" else None,
            deadline_s=0.05 if case == "deadline" else 60,
            close_timeout_s=0.01,
            retry=RetryOptions(max_attempts=2, base_s=0.001),
        )
        error = await _failure(claude, fault, changes)
    told = seen.shows(claude)
    assert '"event":"call_ended"' in seen.log.getvalue()
    assert not any(secret in told for secret in SECRETS)
    # The SDK takes a stream that just ends for a whole one; the log doesn't.
    if case in {"all is well", "stream without end"}:
        assert error is None
        return
    assert error is not None
    told = shows(error)
    assert KEY not in told
    assert PROMPT not in told
    frames = locals_shown(error)
    assert frames or fault not in {"reset", "stall_before_headers", "closed port", "deadline"}
    for place, variables in frames.items():
        assert not any(KEY in shown for shown in variables.values()), (place, variables)


async def _failure(claude: Client, fault: str, changes: dict[str, Any]) -> Exception | None:
    """What a call came to, with its traceback as its caller gets it."""
    caught: list[Exception] = []

    async def call() -> None:
        try:
            await ask(claude, **changes)
        except Exception as error:  # noqa: BLE001 - looked at from all sides
            caught.append(error)

    async with anyio.create_task_group() as group, claude:
        group.start_soon(call)
        await anyio.sleep(0.05 if fault == "client closed" else 0)
        if fault != "client closed":
            while claude.statistics().calls.calls + claude.statistics().calls.in_flight == 0:  # noqa: ASYNC110
                await anyio.sleep(0.001)
            await claude._chain.record.idle(within_s=5)
    return caught[0] if caught else None


@pytest.mark.lengthy
@pytest.mark.parametrize("transport", ["aiohttp", "httpx2"])
async def test_a_key_that_is_no_header_is_not_shown(transport: Any) -> None:
    """What can't be sent is quoted by those who can't send it; not the key, nor the prompt."""
    with serving(Simulator()) as url:
        async with Client(api_keys=[KEY], base_url=url, transport=transport, log=False) as claude:
            for changes in ({"extra_headers": {"X-Mine": f"{KEY}\r\n"}}, {"system": f"{PROMPT} \ud800"}):
                with pytest.raises(Exception) as raised:  # noqa: PT011 - each transport has its own
                    await claude.messages.create(**{**ASK, **changes})
                assert PROMPT not in shows(raised.value)


async def test_cancelling_shows_nothing(seen: Seen) -> None:
    """A cancelled call is logged like any other."""
    simulator = Simulator(latency_s=60)
    sdk = simulator.client(KEY)
    async with Client(sdk=sdk, observers=[seen.events.append]) as claude:
        with anyio.move_on_after(0.01):
            await claude.messages.create(**ASK)
        assert '"failure":"cancelled"' in seen.log.getvalue()
        told = seen.shows(claude)
    assert not any(secret in told for secret in SECRETS)


async def test_a_client_and_its_parts_show_no_key() -> None:
    """Whoever prints what a client is made of sees names of keys."""
    with serving(Simulator()) as url:
        async with Client(api_keys=[KEY, "sk-another"], base_url=url, log=False) as claude:
            await claude.messages.create(**ASK)
            told = f"{claude} {claude.settings} {claude.statistics()} {claude._chain} {claude._chain.admit.pool.keys}"
            told += f"{[repr(task) for task in asyncio.all_tasks()]}"
    assert KEY not in told
    assert penstock._core.secret.key_name(KEY) in told  # type: ignore[attr-defined]


@pytest.mark.lengthy
async def test_the_sdk_s_debug_log_shows_no_key(caplog: pytest.LogCaptureFixture) -> None:
    """Even at its most talkative the SDK is given nothing to show: the header's value masks itself."""
    caplog.set_level(logging.DEBUG)
    with serving(Simulator()) as url:
        for transport in ("aiohttp", "httpx2"):
            async with Client(api_keys=[KEY], base_url=url, transport=transport, log=False) as claude:
                await claude.messages.create(**ASK)
                with pytest.raises(anthropic.NotFoundError):
                    await claude.messages.create(**{**ASK, "model": "claude-nonesuch"})
    assert caplog.records
    assert KEY not in caplog.text
