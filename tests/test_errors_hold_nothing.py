"""What tools that report errors see of them, local variables and pickles among it: no key, no prompt."""

from __future__ import annotations

import asyncio
import pickle
import re
import sys
import traceback
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, Final

import anthropic
import anyio
import httpx2
import pytest

from penstock import Client, RetryOptions, errors
from penstock._core import secret
from penstock._core.secret import clean_error
from penstock.testing import ScriptedTransport

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

KEY: Final = "sk-ant-api03-very-secret-key"
PROMPT: Final = "the-very-private-prompt"
# Before Python 3.13, frames of coroutines are left out.
STAYS: Final = sys.version_info >= (3, 13)
ONCE: Final = RetryOptions(max_attempts=2, base_s=0.001)


def asked(**more: Any) -> dict[str, Any]:
    """What is asked; never in a variable of the test's, which would be shown."""
    return {
        "model": "claude-sonnet-5-5",
        "max_tokens": 100,
        "messages": [{"role": "user", "content": PROMPT}],
        **more,
    }


def tree(error: BaseException) -> Iterator[BaseException]:
    """An error and all that hangs on it."""
    waiting: list[BaseException | None] = [error]
    seen: set[int] = set()
    while waiting:
        each = waiting.pop()
        if each is not None and id(each) not in seen:
            seen.add(id(each))
            yield each
            waiting += [each.__cause__, each.__context__, *(arg for arg in each.args if isinstance(arg, BaseException))]


# The methods of the SDK that the caller is inside of hold what the caller gave them.
CALLED: Final = re.compile(r"anthropic/(_base_client\.py:(post|request|_request)|resources/.*:(create|stream))$")


def frames(error: BaseException) -> Iterator[tuple[str, dict[str, str]]]:
    """The place and the variables of every frame, but the test's own."""
    for each in tree(error):
        for frame in traceback.TracebackException.from_exception(each, capture_locals=True).stack:
            if frame.filename != __file__:
                yield f"{frame.filename}:{frame.name}", frame.locals or {}


def check(error: BaseException, *, callers: bool = True) -> None:
    """Neither key nor prompt is anywhere; but with `callers`, methods that were called may have the prompt."""
    for each in tree(error):
        told = f"{each!r} {each} {each.args} {getattr(each, '__notes__', '')} {vars(each)}"
        for protocol in (0, pickle.HIGHEST_PROTOCOL):
            with suppress(TypeError, AttributeError, pickle.PicklingError):
                told += repr(pickle.dumps(each, protocol))
        assert KEY not in told, type(each)
        assert PROMPT not in told, type(each)
    for place, variables in frames(error):
        assert not [name for name, shown in variables.items() if KEY in shown], place
        if not (callers and CALLED.search(place)):
            assert not [name for name, shown in variables.items() if PROMPT in shown], place


async def raised(sdk: anthropic.AsyncAnthropic, *, stream: bool = False, **more: Any) -> Exception:
    """What a request raises."""
    try:
        if stream:
            async with sdk.messages.stream(**asked(**more)) as events:
                await events.get_final_message()
        else:
            await sdk.messages.create(**asked(**more))
    except Exception as error:  # noqa: BLE001 - looked at from all sides
        return error
    raise AssertionError("nothing was raised")


SSE: Final = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: 9999\r\n\r\n"
START: Final = (
    b'event: message_start\ndata: {"type":"message_start","message":{"id":"m","type":"message","role":"assistant",'
    b'"model":"m","content":[],"stop_reason":null,"usage":{"input_tokens":1,"output_tokens":1}}}\n\n'
    b'event: content_block_start\ndata: {"type":"content_block_start","index":0,"content_block":{"type":"text",'
    b'"text":""}}\n\nevent: content_block_delta\ndata: {"type":"content_block_delta","index":0,"delta":{'
    b'"type":"text_delta","text":"Hi"}}\n\n'
)
ERROR: Final = b'event: error\ndata: {"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}\n\n'
BODIES: Final = {
    "closes at once": (b"", False),
    "garbage": (b"no HTTP at all\r\n\r\n", False),
    "half a header": (b"HTTP/1.1 200 OK\r\nContent-Le", False),
    "half a body": (b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{", False),
    "a bad chunk": (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n", False),
    "not compressed": (b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 2\r\n\r\n{}", False),
    "no JSON": (b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\n<html>", False),
    "no message": (b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}", False),
    "a redirect": (b"HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:9/\r\ncontent-length: 0\r\n\r\n", False),
    "a stream cut before content": (SSE, True),
    "a stream cut after content": (SSE + START, True),
    "an error in a stream": (SSE + START + ERROR, True),
    "an error before content": (SSE + ERROR, True),
    "half an event": (SSE + START + b"event: content_block_de", True),
    "no event": (SSE + b"data: {]}\n\n", True),
}
STATUSES: Final = (400, 401, 402, 403, 404, 408, 409, 413, 422, 429, 500, 501, 503, 504, 529)


@asynccontextmanager
async def answering(raw: bytes | None) -> AsyncIterator[str]:
    """A server that gives these bytes in answer to whatever comes, and closes; `None`: that stays silent."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            await reader.read(65_536)
            if raw is None:
                await reader.read(65_536)
            else:
                writer.write(raw)
                await writer.drain()
            writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


def made(transport: Any, url: str, **options: Any) -> Client:
    """A client with the key; `sdk`: one of the SDK's own, governed."""
    given: dict[str, Any] = {"retry": ONCE, "log": False, "close_timeout_s": 0.01, **options}
    if transport == "sdk":
        return Client(sdk=anthropic.AsyncAnthropic(api_key=KEY, base_url=url), **given)
    return Client(api_keys=[KEY], base_url=url, transport=transport, **given)


transports = pytest.mark.parametrize("transport", ["aiohttp", "httpx2", "sdk"])


@pytest.mark.lengthy
@transports
async def test_no_answer_that_fails_is_told_with_key_or_prompt(transport: str) -> None:
    """Whatever comes over the socket, at any point of an answer."""
    for name, (raw, stream) in BODIES.items():
        async with answering(raw) as url, made(transport, url) as claude:
            try:
                check(await raised(claude.sdk, stream=stream))
            except AssertionError as error:
                error.add_note(name)
                raise


@pytest.mark.lengthy
@transports
async def test_no_request_that_gets_nowhere_is_told_with_key_or_prompt(transport: str) -> None:
    """Nobody listens, nobody answers, no TLS, no such scheme, the deadline, the client's close; places stay."""
    async with answering(None) as url:
        tries: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
            "refused": ("http://127.0.0.1:9", {}, {}),
            "no TLS": (url.replace("http", "https"), {}, {"timeout": 0.05}),
            "silence": (url, {}, {"timeout": 0.02}),
            "deadline": (url, {"deadline_s": 0.02}, {}),
        }
        for name, (to, options, more) in tries.items():
            async with made(transport, to, **options) as claude:
                error = await raised(claude.sdk, **more)
            check(error)
            places = {place for place, _ in frames(error)}
            assert any("aiohttp" in place or "httpcore2" in place for place in places) or not STAYS, name
            assert any(place.endswith("guards/record.py:handle_async") for place in places), name
        async with made(transport, url) as claude, anyio.create_task_group() as group:
            errors_of_closing: list[Exception] = []

            async def ask(sdk: anthropic.AsyncAnthropic) -> None:
                errors_of_closing.append(await raised(sdk))

            group.start_soon(ask, claude.sdk)
            await anyio.sleep(0.02)
            await claude.close()
        (error,) = errors_of_closing
        assert isinstance(error, errors.ClientClosed)
        check(error)


BAD_HEADERS: Final = {
    "a new line": ("x-user", f"a\n{PROMPT}"),
    "a header of its own": ("x-user", f"a\r\nx-more: {PROMPT}"),
    "a zero": ("x-user", f"a\0{PROMPT}"),
    "words": ("x-user", f"a\n{PROMPT.replace('-', ' ')} {PROMPT}"),
    "blanks around": ("x-user", f" {PROMPT}"),
    "half a character": ("x-user", f"{PROMPT}\ud800"),
    "a new line in its name": (f"x\n{PROMPT}", "a"),
    "a blank in its name": (f"x {PROMPT}", "a"),
    "no name": ("", PROMPT),
    "a name of letters that none has": (f"ü{PROMPT}", "a"),
    "no text": ("x-user", PROMPT.encode()),
}


@pytest.mark.lengthy
@transports
async def test_no_header_that_can_t_be_sent_is_quoted(transport: str) -> None:
    """Neither in the text of whoever refuses it, nor in the request of the error, nor in its pickle."""
    async with (
        answering(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 2\r\n\r\n{}") as url,
        made(transport, url) as claude,
    ):
        for name, value in BAD_HEADERS.values():
            error = await raised(claude.sdk, extra_headers={name: value})
            # What a transport sends all the same, and is refused, is a header like any other.
            if not (name == "x-user" and isinstance(error, anthropic.BadRequestError)):
                check(error)


@pytest.mark.lengthy
@pytest.mark.parametrize("status", STATUSES)
async def test_no_status_is_told_with_key_or_prompt(status: int) -> None:
    """An error of every class that the SDK has, made from an answer whose request held both."""
    body = {"type": "error", "error": {"type": "api_error", "message": "no"}}
    transport = ScriptedTransport(lambda _: httpx2.Response(status, json=body, headers={"x-should-retry": "false"}))
    async with Client(sdk=transport.client(api_key=KEY), retry=ONCE, log=False) as claude:
        error = await raised(claude.sdk)
    assert isinstance(error, anthropic.APIStatusError)
    check(error)


@pytest.mark.lengthy
@pytest.mark.parametrize("name", errors.__all__)
async def test_no_error_of_ours_is_told_with_key_or_prompt(name: str) -> None:
    """Wherever in the chain, or below it, it is raised: here the frame that raises holds both."""
    kind = getattr(errors, name)

    def fail(request: httpx2.Request) -> httpx2.Response:
        shown = f"{request.headers.multi_items()} {request.content!r}"
        assert KEY in shown
        assert PROMPT in shown
        raise kind.__new__(kind, "no")

    async with Client(sdk=ScriptedTransport(fail).client(api_key=KEY), retry=ONCE, log=False) as claude:
        error = await raised(claude.sdk)
    assert isinstance(error, kind)
    check(error)
    own = list(traceback.TracebackException.from_exception(error, capture_locals=True).stack)
    assert not any(KEY in shown for frame in own for shown in (frame.locals or {}).values())


async def test_errors_in_results_hold_nothing_at_all() -> None:
    """The error of an item is ours to keep: not even the methods that were called have the prompt."""
    async with answering(b"") as url, made("aiohttp", url) as claude:
        more = {"extra_headers": {"x-user": f"a\n{PROMPT}"}}
        items = [{"custom_id": str(number), "params": asked(**more)} for number in range(3)]
        results = await claude.map(items)
        del items
    assert [result.ok for result in results] == [False] * 3
    for result in results:
        assert result.error is not None
        check(result.error, callers=False)
        assert any("aiohttp" in place for place, _ in frames(result.error)) or not STAYS


async def test_an_error_that_the_caller_is_handling_is_the_caller_s() -> None:
    """Whoever asks in an `except` block finds the variables of that error as they were."""

    def own() -> None:
        mine = "kept"
        raise LookupError(mine[:0])

    found: list[Exception] = []
    async with made("httpx2", "http://127.0.0.1:9") as claude:
        try:
            own()
        except LookupError:
            found.append(await raised(claude.sdk))
    (error,) = found
    (mine,) = (each for each in tree(error) if isinstance(each, LookupError))
    assert mine.__traceback__ is not None
    assert mine.__traceback__.tb_next is not None
    assert mine.__traceback__.tb_next.tb_frame.f_locals["mine"] == "kept"


@pytest.mark.parametrize("knows", [True, False])
async def test_a_task_that_was_told_the_same_error_goes_on(knows: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its frame waits, and is in the traceback of the other's error: it is left alone, by any Python."""
    monkeypatch.setattr(secret, "_KNOWS_WHAT_WAITS", knows and secret._KNOWS_WHAT_WAITS)
    shared, told, go_on = ConnectionError("both"), anyio.Event(), anyio.Event()
    went_on: list[str] = []

    def refuse() -> None:
        key = KEY
        raise shared if key else AssertionError

    async def one() -> None:
        mine = "kept"
        try:
            refuse()
        except ConnectionError:
            told.set()
            await go_on.wait()
        went_on.append(mine)

    async with anyio.create_task_group() as group:
        group.start_soon(one)
        await told.wait()
        try:
            raise shared
        except ConnectionError as error:
            clean_error(error)
            lines = traceback.extract_tb(error.__traceback__)
        go_on.set()
    assert went_on == ["kept"]
    shown = traceback.TracebackException.from_exception(shared, capture_locals=True)
    assert ([frame.name for frame in lines][-1], "one" in [frame.name for frame in lines]) == (
        "refuse",
        secret._KNOWS_WHAT_WAITS,
    )
    assert not [name for frame in shown.stack for name, value in (frame.locals or {}).items() if KEY in value]
